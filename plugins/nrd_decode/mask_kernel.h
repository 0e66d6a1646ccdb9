/*
 * NrdPatchDecodeMask for the released networks (d = m = 16, f = 8, s = 4): theta to mask, top to bottom. The reference
 * that it is held against is host_reference.cpp, which has decodePixel, rank, isUniform and interpolate in this order; any
 * other shape has generic_kernel.h.
 *
 * A block draws the enlargement of one patch. Enlarged pixels lie in cells between four pixels of the logits, so it
 * decodes the patch's 8 x 8 pixels and a ring of one row and one column, which belong to up to three other patches:
 *
 *               column 0 1 2 3 4 5 6 7   8
 *         row 0        o o o o o o o o | r      o  own patch     slot 0   positions  0 to 63, row by row
 *             1        o o o o o o o o | r      r  right         slot 1             64 to 71
 *             :        : : : : : : : : | :      b  below         slot 2             72 to 79
 *             7        o o o o o o o o | r      c  below right   slot 3             80
 *                      ----------------+--
 *             8        b b b b b b b b | c      At the image's border the ring repeats the last column and row.
 *
 * Cell (r, c) has pixel (r, c) as its upper left corner and is 4 x 4 enlarged pixels. Cells of row or column -1 are the
 * half cells before the image's first pixels, which PyTorch draws from row (column) 0 with weight 1.
 *
 *     stage    theta of the four slots and the guidance into shared memory, as they are
 *     decode   the logits: each thread one position (Exact), or each warp 16 positions on tensor cores (Fragments)
 *     survey   where classes are many: those that can win somewhere in the patch; the others are decoded no further
 *     rank     the leading class of each position
 *     fill     the cells that one class clearly leads at all four corners; list the others, the mixed ones
 *     draw     interpolate the mixed cells and take the largest class of every pixel
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

// --- constants, places, memory: what is staged

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
constexpr int32_t kPITCH = 84; //!< from class to class of the logits: 2 * 84 % 32 == 8 spreads fragments over the banks
constexpr int32_t kCHUNK = 24; //!< classes at a time where not all fit
constexpr int32_t kMANY = 32;  //!< candidates at a time, and the classes from which on to look for them pays

// Places in theta, all multiples of 16 bytes but for W0's rows.
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

//! What an element of theta is in memory.
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
    int32_t slotBytes; //!< theta of one slot, an odd number of 16 bytes: slots begin in different banks
    int32_t guidance;  //!< [position][channel]
    int32_t places;    //!< [position][x, y]
    int32_t logits;    //!< [class][row][column]
    int32_t cells;     //!< the mask's bookkeeping
    int32_t survey;    //!< the candidates, and what they are found from
    int32_t total;

    //! `rows` classes of logits are held at a time; none by the op that writes them out. Of activations, if they are
    //! shared at all, there are `parts` 16-bit parts.
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

//! Copy `count` elements; `lane` of `lanes` threads share the work. A copy is there after `waitCopies` and a barrier.
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
        if (lane < count - whole) // what follows in a padded pitch is not ours
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

    //! Bring everything that the perceptrons read into shared memory, in one burst. Ends with a barrier.
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
    static constexpr int32_t kLANES = kGUIDANCE * static_cast<int32_t>(sizeof(Element)) / 16; //!< for a position

    //! One warp per slot, or all threads for the only one. Behind the border it is the last patch.
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

    //! Guidance and coordinates of the position at pixel (y, x) of the logits. Neighbouring threads share the work.
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

// --- decode: plain threads

/*!
 * A thread decodes a whole position in registers, in the order of the host reference and bit for bit as it does. The
 * threads of a warp read the same weights, but for the ring's, so that a load serves all of them.
 */
template <ElementType kTYPE, int32_t kCLASSES>
class Exact
{
public:
    using Tile = PatchTile<kTYPE, kCLASSES>;
    using Element = typename Tile::Element;

    NRD_DEVICE void decodeHidden(Tile const& tile, int32_t position)
    {
        Element const* const theta = tile.theta(tile.slots == 1 ? 0 : findSlot(position));
        float inputs[kINPUTS];
        inputs[0] = tile.place(position)[0];
        inputs[1] = tile.place(position)[1];
        load<kGUIDANCE>(inputs + 2, tile.guidance(position));
        float first[kHIDDEN];
        runLayer<kINPUTS>(first, theta, theta + kB0, inputs);
        runLayer<kHIDDEN>(mHidden, theta + kW1, theta + kB1, first);
    }

    //! Give `sink(class, logit)` the logits of `count` classes.
    template <class Sink>
    NRD_DEVICE void decodeClasses(
        Tile const& tile, int32_t position, int32_t firstClass, int32_t count, Sink const& sink) const
    {
        Element const* const theta = tile.theta(tile.slots == 1 ? 0 : findSlot(position));
        Element const* const bias = theta + kW2 + tile.numClasses() * kHIDDEN;
#pragma unroll kCLASSES_AT_ONCE
        for (int32_t k = firstClass; k < firstClass + count; ++k)
        {
            float weights[kHIDDEN];
            load<kHIDDEN>(weights, theta + kW2 + k * kHIDDEN);
            float sum = widen<kTYPE>(bias[k]);
#pragma unroll
            for (int32_t i = 0; i < kHIDDEN; ++i)
            {
                sum = multiplyAdd(weights[i], mHidden[i], sum);
            }
            sink(k, sum);
        }
    }

private:
    static constexpr int32_t kVECTOR = 16 / static_cast<int32_t>(sizeof(Element));
    static constexpr int32_t kCLASSES_AT_ONCE = sizeof(Element) == 4 ? 2 : 4; // more would spill

    //! `kCOUNT` elements at a multiple of 16 bytes.
    template <int32_t kCOUNT>
    static NRD_DEVICE void load(float* target, Element const* source)
    {
#pragma unroll
        for (int32_t v = 0; v < kCOUNT / kVECTOR; ++v)
        {
            Words4 const words = *reinterpret_cast<Words4 const*>(source + v * kVECTOR);
#pragma unroll
            for (int32_t i = 0; i < kVECTOR; ++i)
            {
                if constexpr (kTYPE == ElementType::kFLOAT)
                {
                    target[v * kVECTOR + i] = floatOf(words.x[i]);
                }
                else
                {
                    target[v * kVECTOR + i] = widen<kTYPE>(static_cast<Element>(words.x[i / 2] >> i % 2 * 16));
                }
            }
        }
    }

    //! outputs = relu(bias + weights * inputs): the weights one vector after the other, whatever row they belong to.
    template <int32_t kCOUNT>
    static NRD_DEVICE void runLayer(
        float (&outputs)[kHIDDEN], Element const* weights, Element const* bias, float const (&inputs)[kCOUNT])
    {
        load<kHIDDEN>(outputs, bias);
#pragma unroll
        for (int32_t v = 0; v < kCOUNT * kHIDDEN; v += kVECTOR)
        {
            float row[kVECTOR];
            load<kVECTOR>(row, weights + v);
#pragma unroll
            for (int32_t i = 0; i < kVECTOR; ++i)
            {
                float& sum = outputs[(v + i) / kCOUNT];
                sum = multiplyAdd(row[i], inputs[(v + i) % kCOUNT], sum);
            }
        }
#pragma unroll
        for (float& output : outputs)
        {
            output = relu(output);
        }
    }

    float mHidden[kHIDDEN];
};

// --- decode: tensor cores

/*!
 * Tensor cores. A warp takes 16 positions of one slot as the rows of m16n8k16 and carries them through all layers in its
 * registers. Lane 4 g + t holds of the rows g and g + 8 the columns 2 t and 2 t + 1 of a result; as operand it gives
 * the elements 2 t, 2 t + 1, 2 t + 8 and 2 t + 9 of a sum. The order in a sum is free, so those four are always the
 * channels 4 t to 4 t + 3, which lie together in memory, and column j of result m is unit 4 (j / 2) + 2 m + j % 2: a
 * result is the next operand as it stands.
 *
 * Weights and guidance are 16-bit and exact. An activation is the sum of two halves, or of three bfloat16 numbers, which
 * keeps it to 22 or 24 bits inside the range that `isHeld` checks.
 */
template <ElementType kTYPE>
constexpr int32_t kPARTS = kTYPE == ElementType::kHALF ? 2 : 3;

//! Units 2 t, 2 t + 1, 2 t + 8 and 2 t + 9 of one position, every part of them.
template <ElementType kTYPE>
struct alignas(kTYPE == ElementType::kHALF ? 16 : 8) Activations
{
    Words2 part[kPARTS<kTYPE>];
};

template <ElementType kTYPE, int32_t kHALVES>
struct Fragments
{
    uint32_t part[kPARTS<kTYPE>][4];
    uint32_t magnitude; //!< bits of the sum of this lane's activations, none of which is negative

    //! Take the two results of a hidden layer through ReLU into operands.
    NRD_DEVICE explicit Fragments(float (&sums)[2][4])
        : part{}
    {
        float total = relu(sums[0][0]);
        sums[0][0] = total;
#pragma unroll
        for (int32_t i = 1; i < 4 * kHALVES; ++i)
        {
            float& x = sums[i % 2][i / 2];
            x = relu(x);
            total += x;
        }
        magnitude = bitsOf(total);
#pragma unroll
        for (int32_t p = 0; p < kPARTS<kTYPE>; ++p)
        {
#pragma unroll
            for (int32_t i = 0; i < 2 * kHALVES; ++i) // result i % 2 of row half i / 2
            {
                float& x = sums[i % 2][i / 2 * 2];
                float& y = sums[i % 2][i / 2 * 2 + 1];
                uint32_t const pair = narrowPair<kTYPE>(x, y);
                part[p][i % 2 * 2 + i / 2] = pair;
                x -= widenLower<kTYPE>(pair);
                y -= widenUpper<kTYPE>(pair);
            }
        }
    }

    //! Write those of row g, or of row g + 8, to `target[t]`.
    NRD_DEVICE void store(Activations<kTYPE>* target, int32_t half) const
    {
        int32_t const pair = device::threadIndex() % 4 * 2; // units 4 t, 4 t + 1; the others are the next pair
#pragma unroll
        for (int32_t p = 0; p < kPARTS<kTYPE>; ++p)
        {
            target[pair % 4].part[p].x[pair / 4] = part[p][half];
            target[pair % 4 + 1].part[p].x[pair / 4] = part[p][2 + half];
        }
    }
};

//! `Fragments::magnitude` after each hidden layer.
struct Magnitudes
{
    uint32_t first;
    uint32_t second;
};

//! Whether the activations of a warp's positions are zero or so large that their parts hold them. For whole warps.
template <ElementType kTYPE>
NRD_DEVICE bool isHeld(uint32_t magnitude)
{
    uint32_t const smallest = bitsOf(kTYPE == ElementType::kHALF ? 0x1p-6F : 0x1p-96F);
    uint32_t const range = bitsOf(kTYPE == ElementType::kHALF ? 65504.F : 0x1p126F) - smallest;
    uint32_t const largest = device::warpMaximum(magnitude); // a NaN is above all numbers
    return (largest == 0U) | (largest - smallest <= range);
}

//! The layers of 16 positions of one slot on tensor cores, or of the up to 8 of a ring's part, whose other rows are 0.
template <ElementType kTYPE, int32_t kCLASSES, bool kRING>
class TensorTile
{
public:
    using Tile = PatchTile<kTYPE, kCLASSES>;
    static constexpr int32_t kHALVES = kRING ? 1 : 2; //!< halves of the rows that have positions
    using Inputs = Fragments<kTYPE, kHALVES>;

    //! `number`: of the 16 among the patch's own, or the slot of the ring's part.
    NRD_DEVICE TensorTile(Tile const& tile, int32_t number)
        : mTile(tile)
        , mTheta(tile.theta(kRING ? number : 0))
        , mGroup(device::threadIndex() % kWARP_SIZE / 4)
        , mThread(device::threadIndex() % 4)
        , mExists(!kRING || number < 3 || mGroup == 0)
        , mFirst(kRING ? kTILE * kTILE + (number - 1) * kTILE + (number < 3 ? mGroup : 0) : number * 16 + mGroup)
    {
    }

    //! Give `sink.put(sink.locate(position), class, logit)` every logit; classes run to a multiple of 8. Returns how large
    //! this lane's activations are.
    template <class Sink>
    NRD_DEVICE Magnitudes decode(Sink const& sink) const
    {
        auto* const low = sink.locate(mFirst);
        auto* const high = sink.locate(mFirst + (kRING ? 0 : kTILE));
        Magnitudes magnitudes;
        Inputs const hidden = runHidden(magnitudes);
        uint16_t const* const bias = mTheta + kW2 + mTile.numClasses() * kHIDDEN;
#pragma unroll 4
        for (int32_t k = 0; k < mTile.numClasses(); k += 8)
        {
            float logits[4];
            start(logits, *reinterpret_cast<uint32_t const*>(bias + k + 2 * mThread));
            multiplyParts(logits, hidden, load(kW2 + (k + mGroup) * kHIDDEN + 4 * mThread));
            if (mExists)
            {
                sink.put(low, k + 2 * mThread, logits[0]);
                sink.put(low, k + 2 * mThread + 1, logits[1]);
            }
            if constexpr (!kRING)
            {
                sink.put(high, k + 2 * mThread, logits[2]);
                sink.put(high, k + 2 * mThread + 1, logits[3]);
            }
        }
        return magnitudes;
    }

    //! Write the activations of the second hidden layer, [position][t], and return how large they are.
    NRD_DEVICE Magnitudes publish(Activations<kTYPE>* activations) const
    {
        Magnitudes magnitudes;
        Inputs const hidden = runHidden(magnitudes);
#pragma unroll
        for (int32_t half = 0; half < kHALVES; ++half)
        {
            if (mExists)
            {
                hidden.store(activations + (mFirst + half * kTILE) * 4, half);
            }
        }
        return magnitudes;
    }

private:
    NRD_DEVICE Inputs runHidden(Magnitudes& magnitudes) const
    {
        float sums[2][4];
        first(sums);
        Inputs const one(sums);
        second(sums, one);
        Inputs const two(sums);
        magnitudes = {one.magnitude, two.magnitude};
        return two;
    }

    //! Four elements of theta from a multiple of four on.
    NRD_DEVICE Words2 load(int32_t offset) const
    {
        return *reinterpret_cast<Words2 const*>(mTheta + offset);
    }

    //! Row of the weights that this lane gives for result m.
    NRD_DEVICE int32_t unitOf(int32_t m) const
    {
        return 4 * (mGroup / 2) + 2 * m + mGroup % 2;
    }

    //! The biases of this lane's two columns.
    static NRD_DEVICE void start(float (&sums)[4], uint32_t bias)
    {
        sums[0] = widenLower<kTYPE>(bias);
        sums[1] = widenUpper<kTYPE>(bias);
        sums[2] = kRING ? 0.F : sums[0];
        sums[3] = kRING ? 0.F : sums[1];
    }

    static NRD_DEVICE void multiplyParts(float (&sums)[4], Inputs const& inputs, Words2 const& weights)
    {
#pragma unroll
        for (int32_t p = 0; p < kPARTS<kTYPE>; ++p)
        {
            device::multiplyTiles<kTYPE>(sums, inputs.part[p], weights.x);
        }
    }

    //! The coordinates are added in fp32, so that the product has the 16 channels of the guidance.
    NRD_DEVICE void first(float (&sums)[2][4]) const
    {
        uint32_t guidance[4] = {};
#pragma unroll
        for (int32_t half = 0; half < kHALVES; ++half)
        {
            Words2 const words = *reinterpret_cast<Words2 const*>(mTile.guidance(mFirst + half * kTILE) + 4 * mThread);
            guidance[half] = words.x[0];
            guidance[2 + half] = words.x[1];
        }
        Words2 const bias = load(kB0 + 4 * mThread);
#pragma unroll
        for (int32_t m = 0; m < 2; ++m)
        {
            start(sums[m], bias.x[m]);
#pragma unroll
            for (int32_t i = 0; i < 2 * kHALVES; ++i)
            {
                int32_t const unit = 4 * mThread + 2 * m + i % 2;
                uint32_t const pair = *reinterpret_cast<uint32_t const*>(mTheta + unit * kINPUTS); // for x and y
                float const* const place = mTile.place(mFirst + i / 2 * kTILE);
                sums[m][i] = multiplyAdd(
                    widenUpper<kTYPE>(pair), place[1], multiplyAdd(widenLower<kTYPE>(pair), place[0], sums[m][i]));
            }
            auto const* const row = reinterpret_cast<uint32_t const*>(mTheta + unitOf(m) * kINPUTS + 2 + 4 * mThread);
            uint32_t const weights[2] = {row[0], row[1]};
            device::multiplyTiles<kTYPE>(sums[m], guidance, weights);
        }
    }

    NRD_DEVICE void second(float (&sums)[2][4], Inputs const& inputs) const
    {
        Words2 const bias = load(kB1 + 4 * mThread);
#pragma unroll
        for (int32_t m = 0; m < 2; ++m)
        {
            start(sums[m], bias.x[m]);
            multiplyParts(sums[m], inputs, load(kW1 + unitOf(m) * kHIDDEN + 4 * mThread));
        }
    }

    Tile const& mTile;
    uint16_t const* mTheta;
    int32_t mGroup;  //!< g
    int32_t mThread; //!< t
    bool mExists;    //!< of a corner only row 0 does
    int32_t mFirst;  //!< position of row g
};

//! Let `action(TensorTile)` decode all positions. Whether all of them that this warp had are within the bound.
template <ElementType kTYPE, int32_t kCLASSES, class Action>
NRD_DEVICE bool decodeOnTensorCores(PatchTile<kTYPE, kCLASSES> const& tile, Action const& action)
{
    static_assert(kTHREADS / kWARP_SIZE == kTILE * kTILE / 16, "a warp has 16 of the patch's own positions");
    int32_t const warp = device::threadIndex() / kWARP_SIZE;
    Magnitudes const own = action(TensorTile<kTYPE, kCLASSES, false>(tile, warp));
    Magnitudes ring = {0U, 0U};
    if (warp + 1 < tile.slots)
    {
        ring = action(TensorTile<kTYPE, kCLASSES, true>(tile, warp + 1));
    }
    return isHeld<kTYPE>(own.first) & isHeld<kTYPE>(own.second) & isHeld<kTYPE>(ring.first)
        & isHeld<kTYPE>(ring.second);
}

/*!
 * 16 classes of one slot as the rows of m16n8k16, and 8 positions as its columns. Of a result lane 4 g + t holds the
 * columns 2 t and 2 t + 1, first of row g, then of row g + 8.
 */
template <ElementType kTYPE, int32_t kCLASSES>
class ClassTile
{
public:
    //! `classOf(row)`: the class in a row.
    template <class ClassOf>
    NRD_DEVICE ClassTile(PatchTile<kTYPE, kCLASSES> const& tile, int32_t slot, ClassOf const& classOf)
    {
        uint16_t const* const theta = tile.theta(slot) + kW2;
        uint16_t const* const bias = theta + tile.numClasses() * kHIDDEN;
        int32_t const lane = device::threadIndex() % kWARP_SIZE;
        device::loadMatrices(mWeights, theta + classOf(lane % 16) * kHIDDEN + lane / 16 * 8);
        mLow = widen<kTYPE>(bias[classOf(lane / 4)]);
        mHigh = widen<kTYPE>(bias[classOf(lane / 4 + 8)]);
    }

    //! `activations`: of the position in column g.
    NRD_DEVICE void decode(float (&logits)[4], Activations<kTYPE> const& activations) const
    {
        logits[0] = mLow;
        logits[1] = mLow;
        logits[2] = mHigh;
        logits[3] = mHigh;
#pragma unroll
        for (int32_t p = 0; p < kPARTS<kTYPE>; ++p)
        {
            device::multiplyTiles<kTYPE>(logits, mWeights, activations.part[p].x);
        }
    }

private:
    uint32_t mWeights[4];
    float mLow; //!< biases
    float mHigh;
};

//! The logits of one class.
struct Extent
{
    float largest = -infinity();
    float smallest = infinity(); //!< NaN if one of them is

    NRD_DEVICE void update(float logit)
    {
        largest = larger(largest, logit);
        smallest = smallerOrNan(smallest, logit);
    }

    //! Take in what the other lanes of the same g have.
    NRD_DEVICE void gather()
    {
#pragma unroll
        for (int32_t lanes = 1; lanes < 4; lanes *= 2)
        {
            largest = larger(largest, device::warpExchange(largest, lanes));
            smallest = smallerOrNan(smallest, device::warpExchange(smallest, lanes));
        }
    }
};

// --- the mask: rank, fill, draw

struct MaskArguments
{
    DecodeProblem problem;
    void* mask;
    MaskType maskType;
    bool prune;   //!< fill cells of one class without interpolating
    int32_t rows; //!< classes whose logits shared memory holds at a time: all, kCHUNK or kMANY
};

constexpr uint16_t kUNCLEAR = 0x8000U; //!< flag of a position whose leader rounding might overtake

//! Call `action` with a value of the type that holds a class, so that all of its stores need one decision.
template <class Action>
NRD_DEVICE void withMaskType(MaskType type, Action const& action)
{
    if (type == MaskType::kUINT8)
    {
        action(uint8_t{});
    }
    else if (type == MaskType::kINT32)
    {
        action(int32_t{});
    }
    else
    {
        action(uint16_t{});
    }
}

template <class T>
struct alignas(2 * sizeof(T)) Pair
{
    T x[2];
};

template <class T>
NRD_DEVICE T toMask(int32_t classIndex)
{
    return static_cast<T>(classIndex);
}

//! Two bytes are a half.
template <>
NRD_DEVICE uint16_t toMask<uint16_t>(int32_t classIndex)
{
    return narrowHalf(static_cast<float>(classIndex));
}

//! What decides whether a cell is filled. Plain threads need the lead that no rounding can overtake. Where logits are
//! only near the reference's, a class that leads at all four corners may win: rounding keeps the order of interpolated
//! values, so another one can at most tie with it.
template <bool kTENSOR_CORES>
struct Leader : TopTwo
{
};

template <>
struct Leader<true>
{
    Maximum best;

    NRD_DEVICE void update(float candidate, int32_t index)
    {
        best.update(candidate, index);
    }
    NRD_DEVICE bool isClear() const
    {
        return best.value < infinity() && best.value > -infinity();
    }
};

//! Where tensor cores write, [class][row][column].
struct SharedLogits
{
    float* first;

    NRD_DEVICE float* locate(int32_t position) const
    {
        return first + findPlace(position).index();
    }
    NRD_DEVICE void put(float* target, int32_t k, float value) const
    {
        target[k * kPITCH] = value;
    }
};

template <ElementType kTYPE, int32_t kCLASSES, bool kTENSOR_CORES>
class MaskBlock
{
public:
    explicit NRD_DEVICE MaskBlock(MaskArguments const& arguments)
        : mTile(arguments.problem, kSLOTS, kROWS != 0 ? kROWS : arguments.rows, kSURVEYS ? kPARTS<kTYPE> : 0)
        , mArguments(arguments)
        , mLogits(mTile.logits())
        , mWinners(reinterpret_cast<uint16_t*>(mTile.cells()))
        , mMixed(mWinners + kPITCH)
        , mNumMixed(reinterpret_cast<int32_t*>(mMixed + kPITCH))
        , mActivations(reinterpret_cast<Activations<kTYPE>*>(mTile.shared + mTile.layout.survey))
        , mFloors(reinterpret_cast<uint32_t*>(mActivations + 4 * kPOSITIONS))
        , mNumCandidates(reinterpret_cast<int32_t*>(mFloors + kTHREADS / kWARP_SIZE))
        , mCandidates(reinterpret_cast<uint8_t*>(mFloors + 8))
    {
    }

    NRD_DEVICE void draw()
    {
        if (device::threadIndex() == 0)
        {
            *mNumMixed = 0;
        }
        mTile.stage();
        if constexpr (kSURVEYS)
        {
            survey();
        }
        rank();
        device::syncBlock();
        fill();
        device::syncBlock();
        if (*mNumMixed > kFEW)
        {
            drawMixed<2>();
        }
        else
        {
            drawMixed<1>();
        }
    }

private:
    static constexpr int32_t kFEW = kTHREADS / kUPSAMPLE; //!< cells of which each thread has one row
    static constexpr bool kSURVEYS = kTENSOR_CORES && (kCLASSES == 0 || kCLASSES >= kMANY);
    static constexpr int32_t kRANKED_AT_ONCE = kSURVEYS ? 4 : kCLASSES != 0 ? kCLASSES : 8;
    static constexpr int32_t kROWS = kSURVEYS ? kMANY : kCLASSES; //!< 0: at run time

    NRD_DEVICE int32_t numClasses() const
    {
        return mTile.numClasses();
    }

    //! Classes that the mask may show: the candidates, or all. A row of logits is one of them, by its number here.
    NRD_DEVICE int32_t numRows() const
    {
        return kSURVEYS ? mNumRows : numClasses();
    }

    //! Rows that are in shared memory at a time.
    NRD_DEVICE int32_t rowsAtOnce() const
    {
        return kROWS != 0 ? kROWS : mArguments.rows;
    }

    //! Rows in the chunk that begins at `firstRow`.
    NRD_DEVICE int32_t countRows(int32_t firstRow) const
    {
        return atMost(numRows() - firstRow, rowsAtOnce());
    }

    NRD_DEVICE int32_t classOf(int32_t row) const
    {
        return kSURVEYS ? mCandidates[row] : row;
    }

    // Survey: interpolated values lie between the smallest and the largest logit of their class, so a class whose largest
    // in the patch and its ring is clearly below another one's smallest wins nowhere. No logit is stored for that.

    //! Find the candidates, in ascending order. Where tensor cores cannot hold the activations, all classes are.
    NRD_DEVICE void survey()
    {
        mIsHeld = !device::syncBlockAny(!decodeOnTensorCores(mTile,
            [&](auto const& part)
            {
                return part.publish(mActivations);
            }));
        float floor = -infinity();
        if (mIsHeld)
        {
            floor = measureClasses();
        }
        else if (device::threadIndex() < kPOSITIONS)
        {
            mExact.decodeHidden(mTile, device::threadIndex());
        }
        uint32_t const highest = device::warpMaximum(toOrdered(bitsOf(floor)));
        mFloors[device::threadIndex() / kWARP_SIZE] = highest; // by every lane
        device::syncBlock();
        if (device::threadIndex() < kWARP_SIZE)
        {
            listCandidates();
        }
        device::syncBlock();
        mNumRows = *mNumCandidates;
    }

    //! Write the largest logit of every class to where logits will be, 16 classes in a warp. Returns what some class of
    //! this lane reaches everywhere.
    NRD_DEVICE float measureClasses() const
    {
        int32_t const group = device::threadIndex() % kWARP_SIZE / 4;
        float floor = -infinity();
        for (int32_t first = device::threadIndex() / kWARP_SIZE * 16; first < numClasses();
            first += kTHREADS / kWARP_SIZE * 16)
        {
            Extent extents[2];
#pragma unroll
            for (int32_t slot = 0; slot < kSLOTS; ++slot)
            {
                ClassTile<kTYPE, kCLASSES> const classes(mTile, slot,
                    [&](int32_t row)
                    {
                        return atMost(first + row, numClasses() - 1);
                    });
                int32_t const positions = slot == 0 ? kTILE * kTILE : kTILE;
                int32_t const begin = slot == 0 ? 0 : kTILE * kTILE + (slot - 1) * kTILE;
#pragma unroll
                for (int32_t position = begin; position < begin + positions; position += kTILE)
                {
                    float logits[4];
                    classes.decode(logits, activationsOf(position + (slot == 3 ? 0 : group)));
#pragma unroll
                    for (int32_t i = 0; i < 4; ++i)
                    {
                        extents[i / 2].update(logits[i]);
                    }
                }
            }
#pragma unroll
            for (int32_t i = 0; i < 2; ++i)
            {
                extents[i].gather();
                mLogits[first + 8 * i + group] = extents[i].largest; // by every t
                // An infinite corner may make a NaN.
                floor = extents[i].largest < infinity() ? larger(floor, extents[i].smallest) : floor;
            }
        }
        return floor;
    }

    NRD_DEVICE Activations<kTYPE> const& activationsOf(int32_t position) const
    {
        return mActivations[position * 4 + device::threadIndex() % 4];
    }

    //! For one warp, whose lanes are classes.
    NRD_DEVICE void listCandidates() const
    {
        int32_t const lane = device::threadIndex();
        uint32_t const highest = device::warpMaximum(mFloors[lane % (kTHREADS / kWARP_SIZE)]);
        float const limit = clearlyBelow(floatOf(fromOrdered(highest)));
        int32_t count = 0;
        for (int32_t first = 0; first < numClasses(); first += kWARP_SIZE)
        {
            int32_t const k = first + lane;
            bool const isCandidate = k < numClasses() && !(mLogits[k] < limit);
            uint32_t const lanes = device::warpBallot(isCandidate);
            if (isCandidate)
            {
                mCandidates[count + countBits(lanes & ((1U << lane) - 1U))] = static_cast<uint8_t>(k);
            }
            count += countBits(lanes);
        }
        *mNumCandidates = count; // by every lane
    }

    //! Logits of the chunk's candidates at all positions, 16 of them at a time.
    NRD_DEVICE void decodeCandidates(int32_t firstRow) const
    {
        int32_t const lane = device::threadIndex() % kWARP_SIZE;
        int32_t const group = lane / 4;
        int32_t const warp = device::threadIndex() / kWARP_SIZE;
        int32_t const count = countRows(firstRow);
        for (int32_t row = 0; row < count; row += 16)
        {
            auto const classOf = [&](int32_t i)
            {
                return mCandidates[firstRow + atMost(row + i, count - 1)];
            };
            bool const hasHigh = row + 8 < count;
            float* const target = mLogits + (row + group) * kPITCH;
            ClassTile<kTYPE, kCLASSES> const own(mTile, 0, classOf);
#pragma unroll
            for (int32_t line = 2 * warp; line < 2 * warp + 2; ++line)
            {
                float logits[4];
                own.decode(logits, activationsOf(line * kTILE + group));
                putPair(target + line * kGRID + lane % 4 * 2, 1, hasHigh, logits);
            }
            if (warp + 1 < kSLOTS)
            {
                int32_t const begin = kTILE * kTILE + warp * kTILE;
                bool const isCorner = warp + 2 == kSLOTS;
                ClassTile<kTYPE, kCLASSES> const ring(mTile, warp + 1, classOf);
                float logits[4];
                ring.decode(logits, activationsOf(begin + (isCorner ? 0 : group)));
                Place const place = findPlace(begin + (isCorner ? 0 : lane % 4 * 2));
                putPair(target + place.index(), isCorner ? 0 : warp == 0 ? kGRID : 1, hasHigh, logits);
            }
        }
    }

    //! Store the logits of two positions, `step` apart, and of one class or of one eight rows further, too.
    static NRD_DEVICE void putPair(float* target, int32_t step, bool hasHigh, float const (&logits)[4])
    {
        target[0] = logits[0];
        target[step] = logits[1];
        if (hasHigh)
        {
            target[8 * kPITCH] = logits[2];
            target[8 * kPITCH + step] = logits[3];
        }
    }

    //! Bring a chunk of rows into shared memory; they are there after the next barrier.
    NRD_DEVICE void decodeRows(int32_t firstRow)
    {
        if constexpr (kSURVEYS)
        {
            if (mIsHeld)
            {
                decodeCandidates(firstRow);
                return;
            }
        }
        if (device::threadIndex() < kPOSITIONS)
        {
            decodeOwn(firstRow);
        }
    }

    //! The rows of this thread's position.
    NRD_DEVICE void decodeOwn(int32_t firstRow)
    {
        float* const logits = mLogits + findPlace(device::threadIndex()).index();
        mExact.decodeClasses(mTile, device::threadIndex(), firstRow, countRows(firstRow),
            [&](int32_t k, float value)
            {
                logits[(k - firstRow) * kPITCH] = value;
            });
    }

    //! Decode and note the leader of every position.
    NRD_DEVICE void rank()
    {
        bool isDecoded = false;
        if constexpr (kSURVEYS)
        {
            bool const isSole = mNumRows == 1 && mArguments.prune;
            if (isSole || mNumRows > rowsAtOnce()) // where not all fit every cell is taken for mixed
            {
                note(isSole ? static_cast<uint32_t>(classOf(0)) : kUNCLEAR);
                return;
            }
            decodeRows(0);
            device::syncBlock();
            isDecoded = true;
        }
        else if constexpr (kTENSOR_CORES)
        {
            isDecoded = !device::syncBlockAny(!decodeOnTensorCores(mTile,
                [&](auto const& part)
                {
                    return part.decode(SharedLogits{mLogits});
                }));
        }
        if (device::threadIndex() < kPOSITIONS)
        {
            note(findLeader(isDecoded));
        }
    }

    //! The class that leads at this thread's position, with kUNCLEAR.
    NRD_DEVICE uint32_t findLeader(bool isDecoded)
    {
        float const* const logits = mLogits + findPlace(device::threadIndex()).index();
        if (!isDecoded)
        {
            mExact.decodeHidden(mTile, device::threadIndex());
        }
        Leader<kTENSOR_CORES> top;
        for (int32_t firstRow = 0; firstRow < numRows(); firstRow += rowsAtOnce())
        {
            if (!isDecoded)
            {
                decodeOwn(firstRow);
            }
#pragma unroll kRANKED_AT_ONCE
            for (int32_t i = 0; i < countRows(firstRow); ++i)
            {
                top.update(logits[i * kPITCH], firstRow + i);
            }
        }
        return static_cast<uint32_t>(classOf(top.best.index)) | (top.isClear() ? 0U : kUNCLEAR);
    }

    NRD_DEVICE void note(uint32_t winner) const
    {
        if (device::threadIndex() < kPOSITIONS)
        {
            mWinners[findPlace(device::threadIndex()).index()] = static_cast<uint16_t>(winner);
        }
    }

    //! A cell and where it lies; its corners are at `corner` and 1, kGRID and kGRID + 1 further.
    struct Cell
    {
        int32_t row;    //!< -1 to 7
        int32_t column; //!< -1 to 7
        int32_t corner; //!< [class][corner] of the logits

        NRD_DEVICE Cell(int32_t r, int32_t c)
            : row(r)
            , column(c)
            , corner(atLeast(r, 0) * kGRID + atLeast(c, 0))
        {
        }
    };

    //! Whether every pixel of the cell is of the class that leads at its upper left corner.
    NRD_DEVICE bool isUniform(Cell const& cell) const
    {
        uint16_t const* const winners = mWinners + cell.corner;
        return mArguments.prune && winners[0] < kUNCLEAR && winners[0] == winners[1] && winners[0] == winners[kGRID]
            && winners[0] == winners[kGRID + 1];
    }

    //! A thread owns a cell: it fills it or lists it. The order of the list depends on the threads, the mask does not.
    NRD_DEVICE void fill() const
    {
        bool const isTop = mTile.row == 0;
        bool const isLeft = mTile.column == 0;
        int32_t const index = device::threadIndex();
        int32_t const line = isLeft ? index / (kTILE + 1) : index / kTILE;
        Cell const cell(line - (isTop ? 1 : 0), isLeft ? index - line * (kTILE + 1) - 1 : index % kTILE);
        if (cell.row >= kTILE)
        {
            return;
        }
        if (!isUniform(cell))
        {
            mMixed[device::fetchAdd(mNumMixed, 1)] = static_cast<uint16_t>((cell.row + 1) * 16 + cell.column + 1);
            return;
        }
        int32_t const winner = mWinners[cell.corner];
        withMaskType(mArguments.maskType,
            [&](auto type)
            {
                using T = decltype(type);
                T values[kUPSAMPLE][kUPSAMPLE];
#pragma unroll
                for (int32_t i = 0; i < kUPSAMPLE * kUPSAMPLE; ++i)
                {
                    values[i / kUPSAMPLE][i % kUPSAMPLE] = toMask<T>(winner);
                }
                store(cell, 0, values);
            });
    }

    //! Write those rows of a cell from `firstLine` on that lie in the mask. A row begins at an even column, so a pair lies
    //! inside or outside.
    template <class T, int32_t kLINES>
    NRD_DEVICE void store(Cell const& cell, int32_t firstLine, T const (&values)[kLINES][kUPSAMPLE]) const
    {
        constexpr int32_t kSIDE = kTILE * kUPSAMPLE;
        int32_t const height = mTile.problem.rows * kSIDE;
        int32_t const width = mTile.problem.columns * kSIDE;
        int32_t const row = kUPSAMPLE * (mTile.row + cell.row) + kUPSAMPLE / 2 + firstLine;
        int32_t const column = kUPSAMPLE * (mTile.column + cell.column) + kUPSAMPLE / 2;
        // [image][row][column]
        int64_t const offset = (static_cast<int64_t>(mTile.image) * height + row) * width + column;
        T* target = static_cast<T*>(mArguments.mask) + offset;
#pragma unroll
        for (int32_t i = 0; i < kLINES; ++i, target += width)
        {
            bool const isInside = row + i >= 0 && row + i < height;
#pragma unroll
            for (int32_t j = 0; j < kUPSAMPLE; j += 2)
            {
                if (isInside && column + j >= 0 && column + j < width)
                {
                    *reinterpret_cast<Pair<T>*>(target + j) = {{values[i][j], values[i][j + 1]}};
                }
            }
        }
    }

    //! Interpolate the mixed cells, `kLINES` lines of one in a thread. Where only some rows fit, decode them again.
    template <int32_t kLINES>
    NRD_DEVICE void drawMixed()
    {
        constexpr int32_t kPARTS = kUPSAMPLE / kLINES;
        // Of a survey whose rows do not all fit every cell is mixed.
        bool const isResident = (kSURVEYS && kLINES == 1) || numRows() <= rowsAtOnce();
        int32_t const items = *mNumMixed * kPARTS;
        for (int32_t base = 0; base < items; base += kTHREADS)
        {
            int32_t const item = base + device::threadIndex();
            int32_t const code = item < items ? mMixed[item / kPARTS] : 0;
            Cell const cell(code / 16 - 1, code % 16 - 1);
            Maximum best[kLINES][kUPSAMPLE];
            for (int32_t firstRow = 0; firstRow < numRows(); firstRow += rowsAtOnce())
            {
                if (!isResident)
                {
                    device::syncBlock();
                    decodeRows(firstRow);
                    device::syncBlock();
                }
                if (item < items)
                {
                    scan(best, cell, item % kPARTS * kLINES, countRows(firstRow), firstRow);
                }
            }
            if (item < items)
            {
                storeBest(best, cell, item % kPARTS * kLINES);
            }
        }
    }

    //! Weight of the second neighbour in line `line` of a cell: PyTorch's (see findSource), and 0 in half cells.
    static NRD_DEVICE float weightOf(int32_t cellLine, int32_t line)
    {
        return cellLine < 0 ? 0.F : 0.125F + 0.25F * static_cast<float>(line);
    }

    //! Go over the `count` rows in shared memory.
    template <int32_t kLINES>
    NRD_DEVICE void scan(
        Maximum (&best)[kLINES][kUPSAMPLE], Cell const& cell, int32_t firstLine, int32_t count, int32_t firstRow) const
    {
        float down[kLINES];
        float across[kUPSAMPLE];
#pragma unroll
        for (int32_t i = 0; i < kLINES; ++i)
        {
            down[i] = weightOf(cell.row, firstLine + i);
        }
#pragma unroll
        for (int32_t j = 0; j < kUPSAMPLE; ++j)
        {
            across[j] = weightOf(cell.column, j);
        }
        float const* logits = mLogits + cell.corner;
#pragma unroll 4
        for (int32_t row = 0; row < count; ++row, logits += kPITCH)
        {
#pragma unroll
            for (int32_t i = 0; i < kLINES; ++i)
            {
                float const left = blend(1.F - down[i], logits[0], down[i], logits[kGRID]);
                float const right = blend(1.F - down[i], logits[1], down[i], logits[kGRID + 1]);
#pragma unroll
                for (int32_t j = 0; j < kUPSAMPLE; ++j)
                {
                    best[i][j].update(blend(1.F - across[j], left, across[j], right), firstRow + row);
                }
            }
        }
    }

    template <int32_t kLINES>
    NRD_DEVICE void storeBest(Maximum const (&best)[kLINES][kUPSAMPLE], Cell const& cell, int32_t firstLine) const
    {
        withMaskType(mArguments.maskType,
            [&](auto type)
            {
                using T = decltype(type);
                T values[kLINES][kUPSAMPLE];
#pragma unroll
                for (int32_t i = 0; i < kLINES * kUPSAMPLE; ++i)
                {
                    values[i / kUPSAMPLE][i % kUPSAMPLE] = toMask<T>(classOf(best[i / kUPSAMPLE][i % kUPSAMPLE].index));
                }
                store(cell, firstLine, values);
            });
    }

    PatchTile<kTYPE, kCLASSES> mTile;
    Exact<kTYPE, kCLASSES> mExact;
    MaskArguments const& mArguments;
    float* mLogits;     //!< [class][row][column], kPITCH floats for a class
    uint16_t* mWinners; //!< [row][column] class, with kUNCLEAR
    uint16_t* mMixed;   //!< mixed cells, 16 * (row + 1) + column + 1
    int32_t* mNumMixed;

    // The survey's.
    Activations<kTYPE>* mActivations; //!< [position][t]
    uint32_t* mFloors;                //!< [warp] in the order of toOrdered
    int32_t* mNumCandidates;
    uint8_t* mCandidates; //!< classes, ascending
    int32_t mNumRows = 0;
    bool mIsHeld = false;
};

} // namespace nrd
