/*
 * The kernels, free of TensorRT and of the standard library: compiled by nvcc, by NVRTC and, over emulation.h, by g++.
 *
 * One block draws one tile: e x e pixels of the logits (e = 8, or 4 where f = 4) and, for the mask, the row and the
 * column after them, because an enlarged pixel lies in a cell between four pixels. A tile and its ring touch at most
 * four patches, the slots 0 to 3: own, right, below, below right. The pixels lie in shared memory slot by slot:
 *
 *     [ own: e*e | right: e | below: e | below right: 1 + 3 unused ]   = `pitch` positions
 *
 * so that four neighbouring positions, a quad, always belong to one slot. At the image's right and lower border the ring
 * repeats the last column and row, as PyTorch's clamped index does. Activations are [channel][position] in fp32, weights
 * are copied in theta's own order. Classes pass in chunks of kCHUNK, so that any K fits into 48 KB.
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
constexpr int32_t kCHUNK = 24; // 21 quads times 6 groups of 4 classes keep 126 of 128 threads busy
constexpr int32_t kMAX_PITCH = 84;
constexpr int32_t kMAX_CELLS = 81;

//! Sizes of the released networks, known to the compiler.
struct ReleasedShape
{
    static constexpr bool kHIDDEN_AT_ONCE = true;
    NRD_HD explicit ReleasedShape(DecodeShape const&) { }
    static constexpr NRD_HD int32_t inputs()
    {
        return 18;
    }
    static constexpr NRD_HD int32_t hidden()
    {
        return 16;
    }
    static constexpr NRD_HD int32_t patch()
    {
        return 8;
    }
    static constexpr NRD_HD int32_t upsample()
    {
        return 4;
    }
    static constexpr NRD_HD int32_t tile()
    {
        return 8;
    }
};

//! Any sizes; the weights of the layers take turns in shared memory.
struct AnyShape
{
    static constexpr bool kHIDDEN_AT_ONCE = false;
    DecodeShape const& shape;
    NRD_HD explicit AnyShape(DecodeShape const& s)
        : shape(s)
    {
    }
    NRD_HD int32_t inputs() const
    {
        return 2 + shape.guidanceChannels;
    }
    NRD_HD int32_t hidden() const
    {
        return shape.hidden;
    }
    NRD_HD int32_t patch() const
    {
        return shape.patch;
    }
    NRD_HD int32_t upsample() const
    {
        return shape.upsample;
    }
    NRD_HD int32_t tile() const
    {
        return shape.patch < 8 ? 4 : 8;
    }
};

NRD_HD int32_t atMost(int32_t value, int32_t limit)
{
    return value < limit ? value : limit;
}

NRD_HD int32_t atLeast(int32_t value, int32_t limit)
{
    return value > limit ? value : limit;
}

//! Where things lie in shared memory, in floats from its start; every part begins at a multiple of 16 bytes.
template <class Shape>
struct SharedLayout
{
    int32_t inputs;
    int32_t hidden;
    int32_t pitch;
    int32_t slotFloats;  //!< weights of one slot
    int32_t classOffset; //!< of the classes' weights inside a slot
    int32_t first;       //!< activations: inputs, later the second hidden layer
    int32_t second;      //!< the first hidden layer, later the logits
    int32_t cells;       //!< winners, cells and the list of mixed ones
    int32_t total;

    NRD_HD SharedLayout(Shape const& shape, int32_t logitsRows)
    {
        inputs = shape.inputs();
        hidden = shape.hidden();
        pitch = shape.tile() * shape.tile() + 2 * shape.tile() + 4;
        int32_t const layer0 = (inputs + 1) * hidden;
        int32_t const layer1 = (hidden + 1) * hidden;
        int32_t const chunk = kCHUNK * (hidden + 1);
        classOffset = Shape::kHIDDEN_AT_ONCE ? layer0 + layer1 : 0;
        slotFloats = Shape::kHIDDEN_AT_ONCE ? layer0 + layer1 + chunk : atLeast(atLeast(layer0, layer1), chunk);
        first = kSLOTS * slotFloats;
        second = first + atLeast(inputs, hidden) * pitch;
        cells = second + atLeast(hidden, logitsRows) * pitch;
        total = cells + 1 + (kMAX_PITCH + kMAX_CELLS + 1) / 2; // a counter, 16-bit winners and mixed cells
    }
};

//! Rows of logits that are held at a time.
NRD_HD int32_t logitsRows(int32_t numClasses, bool retained)
{
    return retained ? atLeast(numClasses, kCHUNK) : kCHUNK;
}

//! The tile of this block: image, and its first row and column in the logits.
struct Tile
{
    int32_t image;
    int32_t row;
    int32_t column;
};

template <class Shape>
NRD_DEVICE Tile findTile(Shape const& shape, DecodeProblem const& problem)
{
    int32_t const perPatch = shape.patch() / shape.tile();
    uint32_t const across = static_cast<uint32_t>(problem.columns * perPatch);
    uint32_t const down = static_cast<uint32_t>(problem.rows * perPatch);
    uint32_t const block = device::blockIndex();
    uint32_t const line = block / across;
    return {static_cast<int32_t>(line / down), static_cast<int32_t>(line % down) * shape.tile(),
        static_cast<int32_t>(block % across) * shape.tile()};
}

//! Row (0 to e) and column of a position inside its tile.
struct Place
{
    int32_t row;
    int32_t column;
};

template <class Shape>
NRD_DEVICE Place findPlace(Shape const& shape, int32_t position)
{
    int32_t const e = shape.tile();
    if (position < e * e)
    {
        return {position / e, position % e};
    }
    position -= e * e;
    if (position < e)
    {
        return {position, e};
    }
    return position < 2 * e ? Place{e, position - e} : Place{e, e};
}

template <class Shape>
NRD_DEVICE int32_t findPosition(Shape const& shape, int32_t row, int32_t column)
{
    int32_t const e = shape.tile();
    if (row < e)
    {
        return column < e ? row * e + column : e * e + row;
    }
    return e * e + e + (column < e ? column : e);
}

//! Slot of a quad of positions.
template <class Shape>
NRD_DEVICE int32_t findSlot(Shape const& shape, int32_t quad)
{
    int32_t const e = shape.tile();
    return quad < e * e / 4 ? 0 : quad < (e * e + e) / 4 ? 1 : quad < (e * e + 2 * e) / 4 ? 2 : 3;
}

struct alignas(16) Float4
{
    float x[4];
};

struct alignas(8) Float2
{
    float x[2];
};

struct alignas(16) Packed
{
    uint32_t word[4];
};

//! Widen the 16 bytes at `source` to floats at `target`.
template <ElementType kTYPE>
NRD_DEVICE void widenPacked(float* target, void const* source)
{
    Packed const packed = *static_cast<Packed const*>(source);
    if constexpr (kTYPE == ElementType::kFLOAT)
    {
        *reinterpret_cast<Packed*>(target) = packed;
    }
    else
    {
        Float4 out[2];
#pragma unroll
        for (int32_t i = 0; i < 8; ++i)
        {
            uint16_t const bits = static_cast<uint16_t>(packed.word[i / 2] >> (i % 2 * 16));
            out[i / 4].x[i % 4] = kTYPE == ElementType::kHALF ? widenHalf(bits) : widenBfloat16(bits);
        }
        reinterpret_cast<Float4*>(target)[0] = out[0];
        reinterpret_cast<Float4*>(target)[1] = out[1];
    }
}

/*!
 * Copy `count` channels of one patch from channel `firstChannel` on, widened. `lane` of `lanes` threads share the work.
 * Contiguous channels go 16 bytes at a time where the addresses allow it, and never past the last one: what follows in
 * a padded pitch is not ours.
 */
template <ElementType kTYPE>
NRD_DEVICE void copyChannels(float* target, TensorView const& theta, int64_t patchOffset, int32_t firstChannel,
    int32_t count, int32_t lane, int32_t lanes)
{
    constexpr int32_t kBYTES = kTYPE == ElementType::kFLOAT ? 4 : 2;
    constexpr int32_t kVECTOR = 16 / kBYTES;
    int64_t const offset = patchOffset + firstChannel * theta.channelStride; // of the first element to copy
    char const* const source = static_cast<char const*>(theta.data) + offset * kBYTES;
    int32_t copied = 0;
    if (theta.channelStride == 1 && reinterpret_cast<uintptr_t>(source) % 16 == 0)
    {
        copied = count / kVECTOR * kVECTOR;
        for (int32_t i = lane * kVECTOR; i < copied; i += lanes * kVECTOR)
        {
            widenPacked<kTYPE>(target + i, source + i * kBYTES);
        }
    }
#pragma unroll 2
    for (int32_t i = copied + lane; i < count; i += lanes)
    {
        target[i] = loadElement(source, i * theta.channelStride, kTYPE);
    }
}

//! What all steps of one block need.
template <class Shape, ElementType kTYPE>
struct Block
{
    Shape shape;
    DecodeProblem const& problem;
    SharedLayout<Shape> layout;
    Tile tile;
    int32_t slots; //!< patches to decode: 1 for logits, 4 for the mask
    float* shared;

    NRD_DEVICE Block(DecodeProblem const& p, int32_t numSlots, int32_t rows)
        : shape(p.shape)
        , problem(p)
        , layout(shape, rows)
        , tile(findTile(shape, p))
        , slots(numSlots)
        , shared(device::sharedMemory())
    {
    }

    NRD_DEVICE float* inputs() const
    {
        return shared + layout.first;
    }
    NRD_DEVICE float* logits() const
    {
        return shared + layout.second;
    }
    NRD_DEVICE int32_t quads() const
    {
        return slots == 1 ? shape.tile() * shape.tile() / 4 : layout.pitch / 4;
    }

    //! Offset of a slot's patch in theta; behind the border it is the last patch.
    NRD_DEVICE int64_t patchOffset(int32_t slot) const
    {
        int32_t const f = shape.patch();
        int32_t const row = atMost(tile.row + (slot >= 2 ? shape.tile() : 0), problem.rows * f - 1) / f;
        int32_t const column = atMost(tile.column + (slot % 2 != 0 ? shape.tile() : 0), problem.columns * f - 1) / f;
        return tile.image * problem.theta.batchStride
            + (static_cast<int64_t>(row) * problem.columns + column) * problem.theta.pixelStride;
    }

    //! Copy channels of theta to the same place of every slot; one warp per slot, or all threads for the only one.
    NRD_DEVICE void stageWeights(int32_t offset, int32_t firstChannel, int32_t count) const
    {
        int32_t const thread = device::threadIndex();
        int32_t const slot = slots == 1 ? 0 : thread / kWARP_SIZE;
        int32_t const lanes = slots == 1 ? kTHREADS : kWARP_SIZE;
        copyChannels<kTYPE>(shared + slot * layout.slotFloats + offset, problem.theta, patchOffset(slot), firstChannel,
            count, thread % lanes, lanes);
    }

    //! W2 and b2 of the classes from `firstClass` on, b2 right after kCHUNK rows of W2.
    NRD_DEVICE void stageClasses(int32_t firstClass, int32_t count) const
    {
        int32_t const d = shape.hidden();
        int32_t const w2 = (shape.inputs() + 1) * d + (d + 1) * d;
        stageWeights(layout.classOffset, w2 + firstClass * d, count * d);
        stageWeights(layout.classOffset + kCHUNK * d, w2 + problem.shape.numClasses * d + firstClass, count);
    }

    //! Coordinates and guidance of every position, [channel][position].
    NRD_DEVICE void stageInputs() const
    {
        int32_t const f = shape.patch();
        int32_t const width = problem.columns * f;
        TensorView const& view = problem.guidance;
        for (int32_t position = device::threadIndex(); position < quads() * 4; position += kTHREADS)
        {
            Place const place = findPlace(shape, position);
            int32_t const row = atMost(tile.row + place.row, problem.rows * f - 1);
            int32_t const column = atMost(tile.column + place.column, width - 1);
            int64_t offset
                = tile.image * view.batchStride + (static_cast<int64_t>(row) * width + column) * view.pixelStride;
            float* target = inputs() + position; // [channel][position]
            target[0] = problem.shape.xTable[column % f];
            target[layout.pitch] = problem.shape.yTable[row % f];
#pragma unroll 16
            for (int32_t channel = 2; channel < shape.inputs(); ++channel, offset += view.channelStride)
            {
                target[channel * layout.pitch] = loadElement(view.data, offset, kTYPE);
            }
        }
    }
};

} // namespace nrd
