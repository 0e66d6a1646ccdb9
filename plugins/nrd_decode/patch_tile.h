/*
 * What a block of the kernels for the released networks (d = m = 16, f = 8, s = 4) shares: theta and guidance of one
 * patch of the logits and of the ring around it.
 *
 * Enlarged pixels lie in cells between four pixels of the logits. The block that draws the enlargement of a patch
 * therefore decodes its 8 x 8 pixels and a ring of one row and one column, which belong to up to three other patches:
 *
 *               column 0 1 2 3 4 5 6 7   8
 *         row 0        o o o o o o o o | r      o  own patch     slot 0   positions  0 to 63, row by row
 *             1        o o o o o o o o | r      r  right         slot 1             64 to 71
 *             :        : : : : : : : : | :      b  below         slot 2             72 to 79
 *             7        o o o o o o o o | r      c  below right   slot 3             80
 *                      ----------------+--
 *             8        b b b b b b b b | c      At the image's border the ring repeats the last column and row.
 *
 * The block that writes logits out decodes slot 0 alone.
 */
#pragma once

#ifdef __CUDACC__
#include "device_cuda.h"
#else
#include "emulation.h"
#endif

#include "decode_arithmetic.h"

namespace nrd
{

constexpr int32_t kTHREADS = 128;
constexpr int32_t kWARP_SIZE = 32;
constexpr int32_t kSLOTS = 4;
constexpr int32_t kTILE = 8; //!< f, pixels of a patch's side
constexpr int32_t kUPSAMPLE = 4;
constexpr int32_t kHIDDEN = 16;
constexpr int32_t kGUIDANCE = 16;
constexpr int32_t kINPUTS = 2 + kGUIDANCE;
constexpr int32_t kGRID = kTILE + 1; //!< side of a patch with its ring
constexpr int32_t kPOSITIONS = kGRID * kGRID;
constexpr int32_t kPITCH
    = 84; //!< floats from class to class of the logits: 2 * 84 % 32 == 8 spreads fragments over banks
constexpr int32_t kCHUNK = 24; //!< classes at a time where not all fit
constexpr int32_t kMANY = 32;  //!< candidates at a time, and the number of classes from which looking for them pays

// Where things begin in theta, which begins with W0: at multiples of 16 bytes, as the rows of W1 and W2 do.
constexpr int32_t kB0 = kINPUTS * kHIDDEN;
constexpr int32_t kW1 = kB0 + kHIDDEN;
constexpr int32_t kB1 = kW1 + kHIDDEN * kHIDDEN;
constexpr int32_t kW2 = kB1 + kHIDDEN;

NRD_HD int32_t atMost(int32_t value, int32_t limit)
{
    return value < limit ? value : limit;
}

NRD_HD int32_t atLeast(int32_t value, int32_t limit)
{
    return value > limit ? value : limit;
}

//! Row and column of a position, 0 to 8.
struct Place
{
    int32_t row;
    int32_t column;

    NRD_HD int32_t index() const
    {
        return row * kGRID + column;
    }
};

NRD_HD Place findPlace(int32_t position)
{
    constexpr int32_t kOWN = kTILE * kTILE;
    if (position < kOWN)
    {
        return {position / kTILE, position % kTILE};
    }
    return position < kOWN + kTILE ? Place{position - kOWN, kTILE} : Place{kTILE, position - kOWN - kTILE};
}

NRD_HD int32_t findSlot(int32_t position)
{
    return position < kTILE * kTILE ? 0 : position == kPOSITIONS - 1 ? 3 : position < kTILE * kTILE + kTILE ? 1 : 2;
}

//! The type of theta's elements in memory.
template <ElementType kTYPE>
struct ElementOf
{
    using Type = uint16_t;
};
template <>
struct ElementOf<ElementType::kFLOAT>
{
    using Type = float;
};

template <ElementType kTYPE>
NRD_HD float widen(typename ElementOf<kTYPE>::Type x)
{
    if constexpr (kTYPE == ElementType::kFLOAT)
    {
        return x;
    }
    else
    {
        return kTYPE == ElementType::kHALF ? widenHalf(x) : widenBfloat16(x);
    }
}

//! Where things lie in shared memory, in bytes from its start; every part begins at a multiple of 16.
struct TileLayout
{
    int32_t slotBytes; //!< of theta of one slot, an odd multiple of 16: slots begin in different banks
    int32_t guidance;  //!< [position][channel]
    int32_t places;    //!< [position][x, y]
    int32_t logits;    //!< [class][row][column]
    int32_t cells;     //!< the mask's bookkeeping
    int32_t survey;    //!< the candidates, and what they are found from
    int32_t total;

    //! `rows`: classes whose logits are held at a time; 0 for the op that writes them out. `parts`: 16-bit numbers that
    //! make an activation; 0 where a block does not share activations.
    NRD_HD TileLayout(int32_t numClasses, int32_t elementBytes, int32_t slots, int32_t rows, int32_t parts = 0)
    {
        int32_t const bytes = (kW2 + numClasses * (kHIDDEN + 1)) * elementBytes;
        slotBytes = ((bytes + 15) / 16 | 1) * 16;
        guidance = slots * slotBytes;
        places = guidance + kPITCH * kGUIDANCE * elementBytes;
        logits = places + kPITCH * 8;
        // Tensor cores write eight classes at a time.
        cells = logits + (rows + 7) / 8 * 8 * kPITCH * 4;
        survey = cells + (rows == 0 ? 0 : 2 * 2 * kPITCH + 16);
        total = survey + (parts == 0 ? 0 : kPOSITIONS * kHIDDEN * 2 * parts + 32 + (numClasses + 15) / 16 * 16);
    }
};

//! Copy `count` elements as thread `lane` of `lanes` that share the work. They are there after `waitCopies` and a
//! barrier.
template <class Element>
NRD_DEVICE void stageRun(
    Element* target, Element const* source, int32_t count, int64_t stride, int32_t lane, int32_t lanes)
{
    constexpr int32_t kVECTOR = 16 / static_cast<int32_t>(sizeof(Element));
    if (stride == 1 && reinterpret_cast<uintptr_t>(source) % 16 == 0)
    {
        int32_t const whole = count / kVECTOR * kVECTOR;
#pragma unroll 4
        for (int32_t i = lane * kVECTOR; i < whole; i += lanes * kVECTOR)
        {
            device::copyAsync(target + i, source + i);
        }
        if (lane < count - whole) // the padding of a pitch, which follows, is not read
        {
            target[whole + lane] = source[whole + lane];
        }
        return;
    }
#pragma unroll 4
    for (int32_t i = lane; i < count; i += lanes)
    {
        target[i] = source[i * stride];
    }
}

struct alignas(16) Words4
{
    uint32_t x[4];
};

struct alignas(8) Words2
{
    uint32_t x[2];
};

//! One patch of the logits and the ring around it, as a block shares them. `kCLASSES` 0: any number.
template <ElementType kTYPE, int32_t kCLASSES>
struct PatchTile
{
    using Element = typename ElementOf<kTYPE>::Type;

    DecodeProblem const& problem;
    TileLayout layout;
    int32_t slots; //!< patches to decode: 1 for logits, 4 for the mask
    int32_t image;
    int32_t row; //!< of the patch's first pixel in the logits
    int32_t column;
    char* shared;

    NRD_DEVICE PatchTile(DecodeProblem const& p, int32_t numSlots, int32_t rows, int32_t parts = 0)
        : problem(p)
        , layout(kCLASSES != 0 ? kCLASSES : p.shape.numClasses, sizeof(Element), numSlots, rows, parts)
        , slots(numSlots)
        , shared(reinterpret_cast<char*>(device::sharedMemory()))
    {
        uint32_t const across = static_cast<uint32_t>(problem.columns);
        uint32_t const down = static_cast<uint32_t>(problem.rows);
        uint32_t const line = device::blockIndex() / across;
        image = static_cast<int32_t>(line / down);
        row = static_cast<int32_t>(line % down) * kTILE;
        column = static_cast<int32_t>(device::blockIndex() % across) * kTILE;
    }

    NRD_DEVICE int32_t numClasses() const
    {
        return kCLASSES != 0 ? kCLASSES : problem.shape.numClasses;
    }
    NRD_DEVICE int32_t numPositions() const
    {
        return slots == 1 ? kTILE * kTILE : kPOSITIONS;
    }
    NRD_DEVICE Element* theta(int32_t slot) const
    {
        return reinterpret_cast<Element*>(shared + slot * layout.slotBytes);
    }
    NRD_DEVICE Element* guidance(int32_t position) const
    {
        return reinterpret_cast<Element*>(shared + layout.guidance) + position * kGUIDANCE;
    }
    NRD_DEVICE float* place(int32_t position) const
    {
        return reinterpret_cast<float*>(shared + layout.places) + position * 2;
    }
    NRD_DEVICE float* logits() const
    {
        return reinterpret_cast<float*>(shared + layout.logits);
    }
    NRD_DEVICE char* cells() const
    {
        return shared + layout.cells;
    }

    //! Bring everything that the perceptrons read into shared memory. Ends with a barrier.
    NRD_DEVICE void stage() const
    {
        int32_t const thread = device::threadIndex();
        stageTheta();
        constexpr int32_t kOWN = kTILE * kTILE;
#pragma unroll
        for (int32_t item = thread; item < kOWN * kLANES; item += kTHREADS)
        {
            int32_t const position = item / kLANES;
            stagePosition(position, row + position / kTILE, column + position % kTILE);
        }
        if (slots > 1 && thread < (kPOSITIONS - kOWN) * kLANES)
        {
            int32_t const position = kOWN + thread / kLANES;
            Place const inTile = findPlace(position);
            stagePosition(position, atMost(row + inTile.row, problem.rows * kTILE - 1),
                atMost(column + inTile.column, problem.columns * kTILE - 1));
        }
        device::waitCopies();
        device::syncBlock();
    }

private:
    static constexpr int32_t kLANES
        = kGUIDANCE * static_cast<int32_t>(sizeof(Element)) / 16; //!< threads that stage a position

    //! A warp stages a slot, or all threads the only one. Beyond the image's border it is the last patch's.
    NRD_DEVICE void stageTheta() const
    {
        int32_t const thread = device::threadIndex();
        int32_t const slot = slots == 1 ? 0 : thread / kWARP_SIZE;
        int32_t const lanes = slots == 1 ? kTHREADS : kWARP_SIZE;
        int32_t const patchRow = atMost(row / kTILE + slot / 2, problem.rows - 1);
        int32_t const patchColumn = atMost(column / kTILE + slot % 2, problem.columns - 1);
        TensorView const& view = problem.theta;
        int64_t const offset = image * view.batchStride
            + (static_cast<int64_t>(patchRow) * problem.columns + patchColumn) * view.pixelStride;
        stageRun(theta(slot), static_cast<Element const*>(view.data) + offset, kW2 + numClasses() * (kHIDDEN + 1),
            view.channelStride, thread % lanes, lanes);
    }

    //! Stage guidance and coordinates of the position at pixel (y, x) of the logits; kLANES threads share the work.
    NRD_DEVICE void stagePosition(int32_t position, int32_t y, int32_t x) const
    {
        constexpr int32_t kCOUNT = kGUIDANCE / kLANES;
        int32_t const lane = device::threadIndex() % kLANES;
        TensorView const& view = problem.guidance;
        Element const* const source = static_cast<Element const*>(view.data) + image * view.batchStride
            + (static_cast<int64_t>(y) * (problem.columns * kTILE) + x) * view.pixelStride
            + lane * kCOUNT * view.channelStride;
        Element* const target = guidance(position) + lane * kCOUNT;
        if (view.channelStride == 1 && reinterpret_cast<uintptr_t>(source) % 16 == 0)
        {
            device::copyAsync(target, source);
        }
        else
        {
#pragma unroll
            for (int32_t i = 0; i < kCOUNT; ++i)
            {
                target[i] = source[i * view.channelStride];
            }
        }
        if (lane == 0)
        {
            place(position)[0] = problem.shape.xTable[static_cast<uint32_t>(x) % kTILE];
            place(position)[1] = problem.shape.yTable[static_cast<uint32_t>(y) % kTILE];
        }
    }
};

} // namespace nrd
