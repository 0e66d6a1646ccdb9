/*
 * NrdPatchDecodeMask: decode, bilinear enlargement by s and argmax, one tile per block. The enlarged logits never exist.
 *
 * An enlarged pixel lies in the cell between four pixels of the logits. Cell (r, c) of a tile has its upper left corner
 * at the tile's pixel (r, c); row -1 and column -1 are the half cells before the image's first pixels, which PyTorch
 * draws from row 0 with weight 1. Where one class clearly leads at all four corners it fills the cell (TopTwo::isClear);
 * only the other cells, the mixed ones, are interpolated.
 */
#pragma once

#include "dense_layers.h"

namespace nrd
{

struct MaskArguments
{
    DecodeProblem problem;
    void* mask;
    MaskType maskType;
    bool prune;    //!< fill cells of one class without interpolating
    bool retained; //!< the logits of all classes stay in shared memory
};

constexpr int32_t kRUN = 4;  //!< neighbours in a row that one thread draws
constexpr int32_t kROWS = 2; //!< rows of a cell that one thread interpolates
constexpr uint16_t kUNCLEAR = 0x8000U;
constexpr uint16_t kCLASS_BITS = 0x00ffU;

//! Cells of a tile, as the block shares them.
struct Cells
{
    int32_t* numMixed;
    uint16_t* winners; //!< [position] class, with kUNCLEAR
    uint16_t* mixed;   //!< the first numMixed entries: indices of cells

    template <class Shape, ElementType kTYPE>
    explicit NRD_DEVICE Cells(Block<Shape, kTYPE> const& block)
        : numMixed(reinterpret_cast<int32_t*>(block.shared + block.layout.cells))
        , winners(reinterpret_cast<uint16_t*>(numMixed + 1))
        , mixed(winners + kMAX_PITCH)
    {
    }
};

//! Part of one row of a cell: up to kRUN neighbours of the mask.
struct Run
{
    int32_t row;        //!< of the mask
    int32_t column;     //!< of the first; may lie before the first or behind the last column of the mask
    int32_t corners[4]; //!< positions of the cell's upper left, upper right, lower left and lower right pixel
};

template <class Shape, ElementType kTYPE>
class MaskBlock
{
public:
    explicit NRD_DEVICE MaskBlock(MaskArguments const& arguments)
        : mBlock(arguments.problem, kSLOTS, logitsRows(arguments.problem.shape.numClasses, arguments.retained))
        , mCells(mBlock)
        , mArguments(arguments)
        , mNumClasses(arguments.problem.shape.numClasses)
        , mResident(arguments.retained || mNumClasses <= kCHUNK)
    {
    }

    template <class Dense>
    NRD_DEVICE void draw() const
    {
        if (device::threadIndex() == 0)
        {
            *mCells.numMixed = 0;
        }
        decodeHidden<Dense>(mBlock);
        bool const ranks = mArguments.prune || upsample() == 1;
        if (ranks || mResident)
        {
            rankClasses<Dense>(ranks);
        }
        sortCells();
        device::syncBlock();
        fillCells();
        drawMixed<Dense>();
    }

private:
    NRD_DEVICE int32_t upsample() const
    {
        return mBlock.shape.upsample();
    }
    NRD_DEVICE int32_t cellsPerRow() const
    {
        return mBlock.shape.tile() + 1;
    }
    NRD_DEVICE int32_t runsPerRow() const
    {
        return upsample() > kRUN ? upsample() / kRUN : 1;
    }
    NRD_DEVICE float* logitsOf(int32_t firstClass) const
    {
        return mBlock.logits() + (mArguments.retained ? firstClass * mBlock.layout.pitch : 0);
    }

    //! Whether a cell belongs to this tile: half cells only at the image's first row and column, and not for s = 1.
    NRD_DEVICE bool exists(int32_t cellRow, int32_t cellColumn) const
    {
        return (cellRow >= 0 || (mBlock.tile.row == 0 && upsample() > 1))
            && (cellColumn >= 0 || (mBlock.tile.column == 0 && upsample() > 1));
    }

    //! Decode all classes once and note each position's leader.
    template <class Dense>
    NRD_DEVICE void rankClasses(bool ranks) const
    {
        int32_t const position = device::threadIndex();
        bool const mine = ranks && position < mBlock.layout.pitch;
        TopTwo top;
        for (int32_t firstClass = 0; firstClass < mNumClasses; firstClass += kCHUNK)
        {
            int32_t const count = atMost(mNumClasses - firstClass, kCHUNK);
            float* const logits = logitsOf(firstClass); // [class][position]
            decodeClasses<Dense>(mBlock, logits, firstClass, count, Shape::kHIDDEN_AT_ONCE && firstClass == 0);
            for (int32_t k = 0; mine && k < count; ++k)
            {
                top.update(logits[k * mBlock.layout.pitch + position], firstClass + k);
            }
        }
        if (mine)
        {
            mCells.winners[position]
                = static_cast<uint16_t>(static_cast<uint32_t>(top.best.index) | (top.isClear() ? 0U : kUNCLEAR));
        }
        device::syncBlock();
    }

    NRD_DEVICE Run findRun(int32_t cell, int32_t rowInCell, int32_t runInRow) const
    {
        int32_t const cellRow = cell / cellsPerRow() - 1;
        int32_t const cellColumn = cell % cellsPerRow() - 1;
        int32_t const row = atLeast(cellRow, 0);
        int32_t const column = atLeast(cellColumn, 0);
        int32_t const s = upsample();
        auto const& shape = mBlock.shape;
        return {s * (mBlock.tile.row + cellRow) + s / 2 + rowInCell,
            s * (mBlock.tile.column + cellColumn) + s / 2 + runInRow * kRUN,
            {findPosition(shape, row, column), findPosition(shape, row, column + 1),
                findPosition(shape, row + 1, column), findPosition(shape, row + 1, column + 1)}};
    }

    //! Whether every pixel of the cell is of the class that leads at its upper left corner.
    NRD_DEVICE bool isUniform(int32_t const (&corners)[4]) const
    {
        uint16_t const winner = mCells.winners[corners[0]];
        return winner < kUNCLEAR && winner == mCells.winners[corners[1]] && winner == mCells.winners[corners[2]]
            && winner == mCells.winners[corners[3]];
    }

    NRD_DEVICE bool isFilled(int32_t const (&corners)[4]) const
    {
        return upsample() == 1 || (mArguments.prune && isUniform(corners));
    }

    //! List the mixed cells. Their order depends on the threads, the mask does not.
    NRD_DEVICE void sortCells() const
    {
        int32_t const cells = cellsPerRow() * cellsPerRow();
        for (int32_t cell = device::threadIndex(); cell < cells; cell += kTHREADS)
        {
            bool const wanted = exists(cell / cellsPerRow() - 1, cell % cellsPerRow() - 1);
            if (wanted && !isFilled(findRun(cell, 0, 0).corners))
            {
                mCells.mixed[device::fetchAdd(mCells.numMixed, 1)] = static_cast<uint16_t>(cell);
            }
        }
    }

    //! Write the cells that one class fills; neighbouring threads write neighbouring runs.
    NRD_DEVICE void fillCells() const
    {
        int32_t const perRow = cellsPerRow() * runsPerRow();
        int32_t const items = cellsPerRow() * upsample() * perRow;
        for (int32_t item = device::threadIndex(); item < items; item += kTHREADS)
        {
            int32_t const line = item / perRow; // of the tile's part of the mask, half cells included
            int32_t const inLine = item - line * perRow;
            int32_t const cell = line / upsample() * cellsPerRow() + inLine / runsPerRow();
            Run const run = findRun(cell, line % upsample(), inLine % runsPerRow());
            if (exists(cell / cellsPerRow() - 1, cell % cellsPerRow() - 1) && isFilled(run.corners))
            {
                int32_t const winner = mCells.winners[run.corners[0]] & kCLASS_BITS;
                store(run.row, run.column, {winner, winner, winner, winner});
            }
        }
    }

    //! Interpolate the mixed cells: a thread draws runs in two rows.
    template <class Dense>
    NRD_DEVICE void drawMixed() const
    {
        int32_t const numMixed = *mCells.numMixed;
        int32_t const items = numMixed * (upsample() / kROWS) * runsPerRow();
        for (int32_t base = 0; base < items; base += kTHREADS)
        {
            int32_t const item = base + device::threadIndex();
            Maximum best[kROWS][kRUN];
            for (int32_t firstClass = 0; firstClass < mNumClasses; firstClass += kCHUNK)
            {
                int32_t const count = atMost(mNumClasses - firstClass, kCHUNK);
                if (!mResident)
                {
                    decodeClasses<Dense>(mBlock, logitsOf(firstClass), firstClass, count, false);
                }
                if (item < items)
                {
                    scan(best, findMixedRun(item, numMixed), firstClass, count);
                }
            }
            for (int32_t i = 0; item < items && i < kROWS; ++i)
            {
                Run const run = findMixedRun(item, numMixed);
                store(
                    run.row + i, run.column, {best[i][0].index, best[i][1].index, best[i][2].index, best[i][3].index});
            }
        }
    }

    //! Neighbouring items are the same lines of neighbouring cells. Cheap enough to be found again for every chunk, which
    //! leaves the registers to the layers.
    NRD_DEVICE Run findMixedRun(int32_t item, int32_t numMixed) const
    {
        int32_t const line = item / numMixed;
        int32_t const lines = upsample() / kROWS;
        return findRun(mCells.mixed[item - line * numMixed], line % lines * kROWS, line / lines);
    }

    //! Go over the logits of `count` classes at the cell's corners, [class][position].
    NRD_DEVICE void scan(Maximum (&best)[kROWS][kRUN], Run const& run, int32_t firstClass, int32_t count) const
    {
        Source rows[kROWS];
        Source columns[kRUN];
#pragma unroll
        for (int32_t i = 0; i < kROWS; ++i)
        {
            rows[i] = findSource(run.row + i, upsample());
        }
#pragma unroll
        for (int32_t j = 0; j < kRUN; ++j)
        {
            columns[j] = findSource(run.column + j, upsample());
        }
        float const* logits[4];
#pragma unroll
        for (int32_t corner = 0; corner < 4; ++corner)
        {
            logits[corner] = logitsOf(firstClass) + run.corners[corner];
        }
#pragma unroll 1 // more would spill
        for (int32_t k = 0; k < count; ++k)
        {
            int32_t const offset = k * mBlock.layout.pitch;
            float const corners[4] = {logits[0][offset], logits[1][offset], logits[2][offset], logits[3][offset]};
#pragma unroll
            for (int32_t i = 0; i < kROWS; ++i)
            {
                float const left = blend(rows[i].weightFirst, corners[0], rows[i].weightSecond, corners[2]);
                float const right = blend(rows[i].weightFirst, corners[1], rows[i].weightSecond, corners[3]);
#pragma unroll
                for (int32_t j = 0; j < kRUN; ++j)
                {
                    float const value = blend(columns[j].weightFirst, left, columns[j].weightSecond, right);
                    best[i][j].update(value, firstClass + k);
                }
            }
        }
    }

    struct Classes
    {
        int32_t x[kRUN];
    };

    //! Write the part of a run in one row that lies inside the mask.
    NRD_DEVICE void store(int32_t row, int32_t column, Classes const& classes) const
    {
        int32_t const s = upsample();
        int32_t const height = mBlock.problem.rows * mBlock.shape.patch() * s;
        int32_t const width = mBlock.problem.columns * mBlock.shape.patch() * s;
        if (row < 0 || row >= height)
        {
            return;
        }
        // [image][row][column]
        int64_t const line = (static_cast<int64_t>(mBlock.tile.image) * height + row) * width;
        if (s % kRUN == 0) // it begins at an even column and a pair lies inside the mask or outside
        {
#pragma unroll
            for (int32_t j = 0; j < kRUN; j += 2)
            {
                if (column + j >= 0 && column + j < width)
                {
                    storePair(line + column + j, classes.x[j], classes.x[j + 1]);
                }
            }
            return;
        }
        for (int32_t j = 0; j < s; ++j)
        {
            if (column + j >= 0 && column + j < width)
            {
                storeOne(line + column + j, classes.x[j]);
            }
        }
    }

    template <class T>
    struct alignas(2 * sizeof(T)) Pair
    {
        T x[2];
    };

    NRD_DEVICE void storePair(int64_t index, int32_t a, int32_t b) const
    {
        switch (mArguments.maskType)
        {
        case MaskType::kINT32:
            *reinterpret_cast<Pair<int32_t>*>(static_cast<int32_t*>(mArguments.mask) + index) = {{a, b}};
            break;
        case MaskType::kHALF:
            *reinterpret_cast<Pair<uint16_t>*>(static_cast<uint16_t*>(mArguments.mask) + index)
                = {{narrowHalf(static_cast<float>(a)), narrowHalf(static_cast<float>(b))}};
            break;
        case MaskType::kUINT8:
            *reinterpret_cast<Pair<uint8_t>*>(static_cast<uint8_t*>(mArguments.mask) + index)
                = {{static_cast<uint8_t>(a), static_cast<uint8_t>(b)}};
            break;
        }
    }

    NRD_DEVICE void storeOne(int64_t index, int32_t a) const
    {
        switch (mArguments.maskType)
        {
        case MaskType::kINT32:
            static_cast<int32_t*>(mArguments.mask)[index] = a;
            break;
        case MaskType::kHALF:
            static_cast<uint16_t*>(mArguments.mask)[index] = narrowHalf(static_cast<float>(a));
            break;
        case MaskType::kUINT8:
            static_cast<uint8_t*>(mArguments.mask)[index] = static_cast<uint8_t>(a);
            break;
        }
    }

    Block<Shape, kTYPE> mBlock;
    Cells mCells;
    MaskArguments const& mArguments;
    int32_t mNumClasses;
    bool mResident; //!< one decode of the classes serves both passes
};

} // namespace nrd
