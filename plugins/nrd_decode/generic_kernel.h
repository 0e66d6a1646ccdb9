/*
 * Both ops for any shape. A block draws one tile, e x e pixels of the logits (e = 8, or 4 where f = 4); the mask's tile
 * has a ring and cells as mask_kernel.h draws them. A thread decodes one position: its activations are a column in shared
 * memory. The weights of a layer, or of kCHUNK classes, are widened there, so that everything fits into 48 KB.
 */
#pragma once

#include "logits_kernel.h"

namespace nrd
{

//! Where things lie in shared memory, in floats from its start.
struct GenericLayout
{
    int32_t slotFloats;
    int32_t first;  //!< activations [channel][position]: inputs, later the second hidden layer
    int32_t second; //!< the first hidden layer
    int32_t logits;
    int32_t winners; //!< 16-bit
    int32_t total;

    NRD_HD GenericLayout(DecodeShape const& shape, int32_t slots)
    {
        int32_t const d = shape.hidden;
        int32_t const inputs = 2 + shape.guidanceChannels;
        slotFloats = atLeast((inputs + 1) * d, atLeast((d + 1) * d, kCHUNK * (d + 1)));
        first = slots * slotFloats;
        second = first + atLeast(inputs, d) * kPITCH;
        logits = second + d * kPITCH;
        winners = logits + kCHUNK * kPITCH;
        total = winners + kPITCH / 2;
    }
};

struct alignas(8) Float2
{
    float x[2];
};

template <ElementType kTYPE>
struct GenericTile
{
    DecodeProblem const& problem;
    DecodeShape const& shape;
    GenericLayout layout;
    int32_t slots;
    int32_t side; //!< e
    int32_t grid; //!< positions in a row: with the ring, if there is one
    int32_t image;
    int32_t row; //!< of the tile's first pixel in the logits
    int32_t column;
    float* shared;

    NRD_DEVICE GenericTile(DecodeProblem const& p, int32_t numSlots)
        : problem(p)
        , shape(p.shape)
        , layout(p.shape, numSlots)
        , slots(numSlots)
        , side(p.shape.patch < 8 ? 4 : 8)
        , grid(numSlots == 1 ? side : side + 1)
        , shared(device::sharedMemory())
    {
        uint32_t const across = static_cast<uint32_t>(problem.columns * (shape.patch / side));
        uint32_t const down = static_cast<uint32_t>(problem.rows * (shape.patch / side));
        uint32_t const line = device::blockIndex() / across;
        image = static_cast<int32_t>(line / down);
        row = static_cast<int32_t>(line % down) * side;
        column = static_cast<int32_t>(device::blockIndex() % across) * side;
    }

    //! Activations and logits of this thread's position.
    NRD_DEVICE float* own(int32_t offset) const
    {
        return shared + offset + device::threadIndex();
    }
    NRD_DEVICE bool hasPosition() const
    {
        return device::threadIndex() < grid * grid;
    }
    NRD_DEVICE int32_t clampRow(int32_t inTile) const
    {
        return atMost(row + inTile, problem.rows * shape.patch - 1);
    }
    NRD_DEVICE int32_t clampColumn(int32_t inTile) const
    {
        return atMost(column + inTile, problem.columns * shape.patch - 1);
    }

    //! Widen channels of theta to `target` of every slot; one warp per slot, or all threads for the only one.
    NRD_DEVICE void stage(int32_t target, int32_t firstChannel, int32_t count) const
    {
        int32_t const slot = slots == 1 ? 0 : device::threadIndex() / kWARP_SIZE;
        int32_t const lanes = slots == 1 ? kTHREADS : kWARP_SIZE;
        int32_t const patchRow = clampRow(slot / 2 * side) / shape.patch;
        int32_t const patchColumn = clampColumn(slot % 2 * side) / shape.patch;
        TensorView const& view = problem.theta;
        int64_t const offset = image * view.batchStride
            + (static_cast<int64_t>(patchRow) * problem.columns + patchColumn) * view.pixelStride;
#pragma unroll 4
        for (int32_t i = device::threadIndex() % lanes; i < count; i += lanes)
        {
            shared[slot * layout.slotFloats + target + i]
                = loadElement(view.data, offset + (firstChannel + i) * view.channelStride, kTYPE);
        }
    }

    //! One layer of this thread's position from the weights in shared memory, [out][in], and the biases after them.
    NRD_DEVICE void runLayer(
        int32_t inputs, int32_t numInputs, int32_t bias, int32_t numOutputs, int32_t outputs, bool rectify) const
    {
        int32_t const slot = slots == 1
            ? 0
            : (device::threadIndex() / grid == side ? 2 : 0) + (device::threadIndex() % grid == side ? 1 : 0);
        float const* const weights = shared + slot * layout.slotFloats;
        for (int32_t o = 0; o < numOutputs; o += 4) // past the last output the last row, not stored
        {
            float sums[4];
            Float2 const* rows[4];
#pragma unroll
            for (int32_t j = 0; j < 4; ++j)
            {
                int32_t const output = atMost(o + j, numOutputs - 1);
                sums[j] = weights[bias + output];
                rows[j] = reinterpret_cast<Float2 const*>(weights + output * numInputs);
            }
            float const* x = own(inputs);
#pragma unroll 4
            for (int32_t i = 0; i < numInputs / 2; ++i, x += 2 * kPITCH)
            {
#pragma unroll
                for (int32_t j = 0; j < 4; ++j)
                {
                    Float2 const pair = rows[j][i];
                    sums[j] = multiplyAdd(pair.x[1], x[kPITCH], multiplyAdd(pair.x[0], x[0], sums[j]));
                }
            }
#pragma unroll
            for (int32_t j = 0; j < 4; ++j)
            {
                if (o + j < numOutputs)
                {
                    own(outputs)[(o + j) * kPITCH] = rectify ? relu(sums[j]) : sums[j];
                }
            }
        }
    }

    NRD_DEVICE void loadInputs() const
    {
        int32_t const y = clampRow(device::threadIndex() / grid);
        int32_t const x = clampColumn(device::threadIndex() % grid);
        TensorView const& view = problem.guidance;
        int64_t const offset = image * view.batchStride
            + (static_cast<int64_t>(y) * problem.columns * shape.patch + x) * view.pixelStride;
        float* const target = own(layout.first);
        target[0] = shape.xTable[x % shape.patch];
        target[kPITCH] = shape.yTable[y % shape.patch];
#pragma unroll 4
        for (int32_t channel = 0; channel < shape.guidanceChannels; ++channel)
        {
            target[(2 + channel) * kPITCH] = loadElement(view.data, offset + channel * view.channelStride, kTYPE);
        }
    }

    //! Both hidden layers of every position.
    NRD_DEVICE void decodeHidden() const
    {
        int32_t const d = shape.hidden;
        int32_t const inputs = 2 + shape.guidanceChannels;
        stage(0, 0, (inputs + 1) * d);
        device::syncBlock();
        if (hasPosition())
        {
            loadInputs();
            runLayer(layout.first, inputs, inputs * d, d, layout.second, true);
        }
        device::syncBlock();
        stage(0, (inputs + 1) * d, (d + 1) * d);
        device::syncBlock();
        if (hasPosition())
        {
            runLayer(layout.second, d, d * d, d, layout.first, true);
        }
    }

    //! Logits of a chunk of classes, for all threads after the next barrier. Returns how many classes it has.
    NRD_DEVICE int32_t decodeClasses(int32_t firstClass) const
    {
        int32_t const d = shape.hidden;
        int32_t const count = atMost(shape.numClasses - firstClass, kCHUNK);
        int32_t const w2 = (3 + shape.guidanceChannels) * d + (d + 1) * d;
        device::syncBlock(); // the weights and the logits before these are no longer read
        stage(0, w2 + firstClass * d, count * d);
        stage(kCHUNK * d, w2 + shape.numClasses * d + firstClass, count);
        device::syncBlock();
        if (hasPosition())
        {
            runLayer(layout.first, d, kCHUNK * d, count, layout.logits, false);
        }
        return count;
    }
};

template <ElementType kTYPE>
class GenericMask
{
public:
    explicit NRD_DEVICE GenericMask(MaskArguments const& arguments)
        : mTile(arguments.problem, kSLOTS)
        , mArguments(arguments)
        , mWinners(reinterpret_cast<uint16_t*>(mTile.shared + mTile.layout.winners))
        , mFactor(arguments.problem.shape.upsample)
        , mNumClasses(arguments.problem.shape.numClasses)
    {
    }

    NRD_DEVICE void draw() const
    {
        mTile.decodeHidden();
        TopTwo top;
        for (int32_t firstClass = 0; firstClass < mNumClasses; firstClass += kCHUNK)
        {
            int32_t const count = mTile.decodeClasses(firstClass);
            for (int32_t k = 0; mTile.hasPosition() && k < count; ++k)
            {
                top.update(mTile.own(mTile.layout.logits)[k * kPITCH], firstClass + k);
            }
        }
        if (mFactor == 1)
        {
            drawPosition(top.best.index);
            return;
        }
        if (mTile.hasPosition())
        {
            mWinners[device::threadIndex()]
                = static_cast<uint16_t>(static_cast<uint32_t>(top.best.index) | (top.isClear() ? 0U : kUNCLEAR));
        }
        device::syncBlock();
        drawCells();
    }

private:
    static constexpr int32_t kROWS = 2; //!< of a cell that one thread draws
    static constexpr int32_t kRUN = 4;  //!< neighbours in a row, or all of a cell's where it has fewer

    //! Two rows of up to kRUN pixels of one cell.
    struct Run
    {
        int32_t cellRow;
        int32_t cellColumn;
        int32_t row; //!< of the mask; may lie outside of it
        int32_t column;
        int32_t corner; //!< [position] of the upper left pixel
    };

    //! Neighbouring items are the same lines of neighbouring cells.
    NRD_DEVICE Run findRun(int32_t item) const
    {
        int32_t const cells = mTile.grid * mTile.grid;
        int32_t const part = item / cells;
        int32_t const cell = item - part * cells;
        int32_t const cellRow = cell / mTile.grid - 1;
        int32_t const cellColumn = cell % mTile.grid - 1;
        int32_t const lines = mFactor / kROWS;
        return {cellRow, cellColumn, mFactor * (mTile.row + cellRow) + mFactor / 2 + part % lines * kROWS,
            mFactor * (mTile.column + cellColumn) + mFactor / 2 + part / lines * kRUN,
            atLeast(cellRow, 0) * mTile.grid + atLeast(cellColumn, 0)};
    }

    //! Half cells belong to the tiles at the image's first row and column.
    NRD_DEVICE bool exists(Run const& run) const
    {
        return (run.cellRow >= 0 || mTile.row == 0) && (run.cellColumn >= 0 || mTile.column == 0);
    }

    NRD_DEVICE bool isUniform(Run const& run) const
    {
        uint16_t const* const winners = mWinners + run.corner;
        return mArguments.prune && winners[0] < kUNCLEAR && winners[0] == winners[1]
            && winners[0] == winners[mTile.grid] && winners[0] == winners[mTile.grid + 1];
    }

    //! Draw every cell: from its leader, or interpolated. Where only some classes fit, they are decoded again.
    NRD_DEVICE void drawCells() const
    {
        bool const isResident = mNumClasses <= kCHUNK;
        int32_t const runsPerRow = mFactor > kRUN ? mFactor / kRUN : 1;
        int32_t const items = mTile.grid * mTile.grid * (mFactor / kROWS) * runsPerRow;
        for (int32_t base = 0; base < items; base += kTHREADS)
        {
            int32_t const item = base + device::threadIndex();
            Run const run = findRun(atMost(item, items - 1));
            bool const isWanted = item < items && exists(run);
            bool const isMixed = isWanted && !isUniform(run);
            Maximum best[kROWS][kRUN];
            if (isResident && isMixed)
            {
                scan(best, run, 0, mNumClasses);
            }
            else if (!isResident && device::syncBlockAny(isMixed))
            {
                for (int32_t firstClass = 0; firstClass < mNumClasses; firstClass += kCHUNK)
                {
                    int32_t const count = mTile.decodeClasses(firstClass);
                    device::syncBlock();
                    if (isMixed)
                    {
                        scan(best, run, firstClass, count);
                    }
                }
            }
            if (isWanted)
            {
                store(run, best, isMixed);
            }
        }
    }

    NRD_DEVICE void scan(Maximum (&best)[kROWS][kRUN], Run const& run, int32_t firstClass, int32_t count) const
    {
        Source rows[kROWS];
        Source columns[kRUN];
#pragma unroll
        for (int32_t i = 0; i < kROWS; ++i)
        {
            rows[i] = findSource(run.row + i, mFactor);
        }
#pragma unroll
        for (int32_t j = 0; j < kRUN; ++j)
        {
            columns[j] = findSource(run.column + j, mFactor);
        }
        float const* logits = mTile.shared + mTile.layout.logits + run.corner;
#pragma unroll 1 // more would spill
        for (int32_t k = firstClass; k < firstClass + count; ++k, logits += kPITCH)
        {
#pragma unroll
            for (int32_t i = 0; i < kROWS; ++i)
            {
                float const left = blend(rows[i].weightFirst, logits[0], rows[i].weightSecond, logits[mTile.grid]);
                float const right = blend(rows[i].weightFirst, logits[1], rows[i].weightSecond, logits[mTile.grid + 1]);
#pragma unroll
                for (int32_t j = 0; j < kRUN; ++j)
                {
                    best[i][j].update(blend(columns[j].weightFirst, left, columns[j].weightSecond, right), k);
                }
            }
        }
    }

    NRD_DEVICE void store(Run const& run, Maximum const (&best)[kROWS][kRUN], bool isMixed) const
    {
        int32_t const winner = mWinners[run.corner];
#pragma unroll
        for (int32_t i = 0; i < kROWS; ++i)
        {
#pragma unroll
            for (int32_t j = 0; j < kRUN; ++j)
            {
                if (j < mFactor)
                {
                    storeOne(run.row + i, run.column + j, isMixed ? best[i][j].index : winner);
                }
            }
        }
    }

    //! Without enlargement a position is a pixel.
    NRD_DEVICE void drawPosition(int32_t winner) const
    {
        int32_t const row = device::threadIndex() / mTile.grid;
        int32_t const column = device::threadIndex() % mTile.grid;
        if (row < mTile.side && column < mTile.side)
        {
            storeOne(mTile.row + row, mTile.column + column, winner);
        }
    }

    NRD_DEVICE void storeOne(int32_t row, int32_t column, int32_t winner) const
    {
        int32_t const height = mTile.problem.rows * mTile.shape.patch * mFactor;
        int32_t const width = mTile.problem.columns * mTile.shape.patch * mFactor;
        if (row < 0 || row >= height || column < 0 || column >= width)
        {
            return;
        }
        int64_t const index = (static_cast<int64_t>(mTile.image) * height + row) * width + column;
        withMaskType(mArguments.maskType,
            [&](auto type)
            {
                using T = decltype(type);
                static_cast<T*>(mArguments.mask)[index] = toMask<T>(winner);
            });
    }

    GenericTile<kTYPE> mTile;
    MaskArguments const& mArguments;
    uint16_t* mWinners; //!< [position] class, with kUNCLEAR
    int32_t mFactor;    //!< s
    int32_t mNumClasses;
};

//! The logits, one tile per block.
template <ElementType kTYPE>
NRD_DEVICE void drawGenericLogits(LogitsArguments const& arguments)
{
    GenericTile<kTYPE> const tile(arguments.problem, 1);
    tile.decodeHidden();
    Place const place{device::threadIndex() / tile.grid, device::threadIndex() % tile.grid};
    LogitsTarget<kTYPE> const target(arguments, tile.shape.patch, tile.image, tile.row, tile.column);
    for (int32_t firstClass = 0; firstClass < tile.shape.numClasses; firstClass += kCHUNK)
    {
        int32_t const count = tile.decodeClasses(firstClass);
        for (int32_t k = 0; tile.hasPosition() && k < count; ++k)
        {
            target.store(firstClass + k, place, tile.own(tile.layout.logits)[k * kPITCH]);
        }
    }
}

} // namespace nrd
