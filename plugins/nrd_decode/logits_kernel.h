/*
 * NrdPatchDecode for the released networks: the logits, one patch per block, no ring.
 */
#pragma once

#include "mask_kernel.h"

namespace nrd
{

struct LogitsArguments
{
    DecodeProblem problem;
    void* logits;
};

//! Where the logits of one tile go, [image][class][row][column].
template <ElementType kTYPE>
class LogitsTarget
{
public:
    using Element = typename ElementOf<kTYPE>::Type;

    NRD_DEVICE LogitsTarget(LogitsArguments const& arguments, int32_t f, int32_t image, int32_t row, int32_t column)
        : mNumClasses(arguments.problem.shape.numClasses)
        , mWidth(static_cast<int64_t>(arguments.problem.columns) * f)
        , mPlane(mWidth * arguments.problem.rows * f)
        , mFirst(static_cast<Element*>(arguments.logits) + image * mPlane * arguments.problem.shape.numClasses
              + row * mWidth + column)
    {
    }

    NRD_DEVICE void store(int32_t k, Place const& inTile, float value) const
    {
        put(mFirst + inTile.row * mWidth + inTile.column, k, value);
    }

    // As tensor cores ask for it.
    NRD_DEVICE Element* locate(int32_t position) const
    {
        Place const inTile = findPlace(position);
        return mFirst + inTile.row * mWidth + inTile.column;
    }
    NRD_DEVICE void put(Element* target, int32_t k, float value) const
    {
        if (k >= mNumClasses)
        {
            return;
        }
        if constexpr (kTYPE == ElementType::kFLOAT)
        {
            target[k * mPlane] = value;
        }
        else
        {
            target[k * mPlane] = narrow(value, kTYPE);
        }
    }

private:
    int32_t mNumClasses;
    int64_t mWidth;
    int64_t mPlane;
    Element* mFirst; //!< of class 0 at the tile's first pixel
};

template <ElementType kTYPE, bool kTENSOR_CORES>
NRD_DEVICE void drawLogits(LogitsArguments const& arguments)
{
    PatchTile<kTYPE, 0> const tile(arguments.problem, 1, 0);
    LogitsTarget<kTYPE> const target(arguments, kTILE, tile.image, tile.row, tile.column);
    tile.stage();
    if constexpr (kTENSOR_CORES)
    {
        bool const isHeld = decodeOnTensorCores(tile,
            [&](auto const& part)
            {
                return part.decode(target);
            });
        if (!device::syncBlockAny(!isHeld))
        {
            return;
        }
    }
    int32_t const position = device::threadIndex();
    if (position < tile.numPositions())
    {
        Exact<kTYPE, 0> exact;
        exact.decodeHidden(tile, position);
        exact.decodeClasses(tile, position, 0, tile.numClasses(),
            [&](int32_t k, float value)
            {
                target.store(k, findPlace(position), value);
            });
    }
}

} // namespace nrd
