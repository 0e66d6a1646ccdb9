/*
 * NrdPatchDecodeMask for the released networks: theta to mask. Any other shape has generic_kernel.h. Every step is
 * compared with host_reference.cpp, which has decodePixel, rank, isUniform and interpolate in this order.
 *
 * A block draws the enlargement of the patch that patch_tile.h describes. Cell (r, c) has pixel (r, c) as its upper
 * left corner and is 4 x 4 enlarged pixels. Cells of row or column -1 are the half cells before the image's first
 * pixels, which PyTorch draws from row (column) 0 with weight 1.
 *
 *     stage    theta of the four slots and the guidance into shared memory, as they are (patch_tile.h)
 *     decode   the logits: each thread one position (exact_decode.h), or each warp 16 on tensor cores (tensor_decode.h)
 *     survey   where classes are many: those that can win somewhere in the patch; the others are decoded no further
 *     rank     the leading class of each position
 *     fill     the cells that one class clearly leads at all four corners; list the others, the mixed ones
 *     draw     interpolate the mixed cells and take the largest class of every pixel
 */
#pragma once

#include "exact_decode.h"
#include "tensor_decode.h"

namespace nrd
{

//! The range of the logits of one class.
struct Extent
{
    float largest = -infinity();
    float smallest = infinity(); //!< NaN if one of them is

    NRD_DEVICE void update(float logit)
    {
        largest = larger(largest, logit);
        smallest = smallerOrNan(smallest, logit);
    }

    //! Extend it by what the other lanes of the same g have seen.
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

struct MaskArguments
{
    DecodeProblem problem;
    void* mask;
    MaskType maskType;
    bool prune;   //!< fill cells of one class without interpolating
    int32_t rows; //!< classes whose logits shared memory holds at a time: all, kCHUNK or kMANY
};

constexpr uint16_t kUNCLEAR = 0x8000U; //!< flag of a position whose leader another class might overtake by rounding

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

//! Masks of 16 bits are halves.
template <>
NRD_DEVICE uint16_t toMask<uint16_t>(int32_t classIndex)
{
    return narrowHalf(static_cast<float>(classIndex));
}

//! The leading class of a position, and whether its lead is clear enough to fill a cell. Plain threads, whose masks
//! equal the reference's, need a lead that no rounding overtakes. On tensor cores any class that leads at all four
//! corners may win: rounding keeps the order of interpolated values, so that another class can at most tie with it.
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

//! The logits in shared memory as tensor cores write them, [class][row][column].
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
    static constexpr int32_t kFEW = kTHREADS / kUPSAMPLE; //!< cells, if each thread draws one line of one
    static constexpr bool kSURVEYS = kTENSOR_CORES && (kCLASSES == 0 || kCLASSES >= kMANY);
    static constexpr int32_t kRANKED_AT_ONCE = kSURVEYS ? 4 : kCLASSES != 0 ? kCLASSES : 8;
    static constexpr int32_t kROWS = kSURVEYS ? kMANY : kCLASSES; //!< 0: known at run time

    NRD_DEVICE int32_t numClasses() const
    {
        return mTile.numClasses();
    }

    //! Number of classes that the mask may show: the candidates, or all. A row of logits belongs to one of them.
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

    // The survey stores no logits. Interpolated values lie between the smallest and the largest logit of their class,
    // so a class whose largest in the patch and its ring is clearly below another one's smallest wins nowhere.

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
        mFloors[device::threadIndex() / kWARP_SIZE] = highest; // every lane writes the same
        device::syncBlock();
        if (device::threadIndex() < kWARP_SIZE)
        {
            listCandidates();
        }
        device::syncBlock();
        mNumRows = *mNumCandidates;
    }

    //! Write the largest logit of every class to where logits will be, 16 classes in a warp. Returns a value that some
    //! class of this lane reaches everywhere.
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
                mLogits[first + 8 * i + group] = extents[i].largest; // every lane of a g writes the same
                // Between infinite corners a NaN may be interpolated, so that such a class reaches nothing.
                floor = extents[i].largest < infinity() ? larger(floor, extents[i].smallest) : floor;
            }
        }
        return floor;
    }

    NRD_DEVICE Activations<kTYPE> const& activationsOf(int32_t position) const
    {
        return mActivations[position * 4 + device::threadIndex() % 4];
    }

    //! List the candidates, as one warp whose lanes are classes.
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
        *mNumCandidates = count; // every lane writes the same
    }

    //! Decode the logits of the chunk's candidates at all positions, 16 candidates at a time.
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

    //! Store the logits of two positions that are `step` apart, of one class and, with `hasHigh`, of that eight rows
    //! further.
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

    //! Decode a chunk of rows at this thread's position.
    NRD_DEVICE void decodeOwn(int32_t firstRow)
    {
        float* const logits = mLogits + findPlace(device::threadIndex()).index();
        mExact.decodeClasses(mTile, device::threadIndex(), firstRow, countRows(firstRow),
            [&](int32_t k, float value)
            {
                logits[(k - firstRow) * kPITCH] = value;
            });
    }

    //! Decode the logits and note the leader of every position.
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

    //! Return the class that leads at this thread's position, with kUNCLEAR where its lead is not clear.
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

    //! A cell; its other corners are 1, kGRID and kGRID + 1 after the first one.
    struct Cell
    {
        int32_t row;    //!< -1 to 7
        int32_t column; //!< -1 to 7
        int32_t corner; //!< place of its upper left corner among the logits of a class

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

    //! Fill this thread's cell, or list it. The order of the list depends on the threads, the mask does not.
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

    //! Write those rows of a cell from `firstLine` on that lie in the mask. A row begins at an even column, so a pair
    //! lies inside or outside.
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

    //! Draw the mixed cells, `kLINES` lines of one in a thread. Where not all rows fit, they are decoded again in
    //! chunks.
    template <int32_t kLINES>
    NRD_DEVICE void drawMixed()
    {
        constexpr int32_t kPARTS = kUPSAMPLE / kLINES;
        // Where a survey's rows do not all fit, every cell is mixed, which makes more than kFEW.
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

    //! Interpolate the `count` rows that are in shared memory, and update the best classes.
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

    // What the survey uses.
    Activations<kTYPE>* mActivations; //!< [position][t]
    uint32_t* mFloors;                //!< [warp] in the order of toOrdered
    int32_t* mNumCandidates;
    uint8_t* mCandidates; //!< classes, ascending
    int32_t mNumRows = 0;
    bool mIsHeld = false;
};

} // namespace nrd
