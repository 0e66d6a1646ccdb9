/*
 * How far a tensor-core variant may be from the reference: 1e-5 of the largest logit. A mask may differ only where the
 * reference's classes are closer than that.
 */
#pragma once

#include "decode_data.h"

namespace nrd::test
{

constexpr float kTENSOR_CORE_BOUND = 1e-5F;

//! fp32 logits of the reference, and questions about them.
class ReferenceLogits
{
public:
    explicit ReferenceLogits(Data const& data)
        : mData(data.widened())
        , mBytes(mData.referenceLogits())
    {
        for (int64_t i = 0; i < mData.nbLogits(); ++i)
        {
            mLargest = std::max(mLargest, std::fabs(at(i)));
        }
    }

    float bound() const
    {
        return kTENSOR_CORE_BOUND * mLargest;
    }

    //! Largest excess of a result over the bound and half a step of its type; in order when not positive.
    float excess(Bytes const& logits, ElementType type) const
    {
        float const step = type == ElementType::kFLOAT ? 0x1p-24F : type == ElementType::kHALF ? 0x1p-11F : 0x1p-8F;
        float worst = -1.0F;
        for (int64_t i = 0; i < mData.nbLogits(); ++i)
        {
            float const error = std::fabs(loadElement(logits.data(), i, type) - at(i));
            // A NaN compares false and must count as wrong.
            bool const fits = error <= bound() + step * (std::fabs(at(i)) + bound());
            worst = fits ? worst : std::max(worst, std::isnan(error) ? 1e30F : error);
        }
        return worst;
    }

    //! How much the reference's class is ahead of `other` at an enlarged pixel.
    float lead(int64_t image, int64_t row, int64_t column, int32_t best, int32_t other) const
    {
        return enlarged(image, row, column, best) - enlarged(image, row, column, other);
    }

private:
    float at(int64_t index) const
    {
        return loadElement(mBytes.data(), index, ElementType::kFLOAT);
    }

    //! PyTorch's bilinear interpolation with align_corners=False, in double.
    float enlarged(int64_t image, int64_t row, int64_t column, int32_t k) const
    {
        int64_t const height = int64_t{mData.sizes.rows} * mData.shape.patch;
        int64_t const width = int64_t{mData.sizes.columns} * mData.shape.patch;
        auto const source = [&](int64_t out)
        {
            return std::max(0.0, (static_cast<double>(out) + 0.5) / mData.shape.upsample - 0.5);
        };
        double const y = source(row);
        double const x = source(column);
        auto const y0 = static_cast<int64_t>(y);
        auto const x0 = static_cast<int64_t>(x);
        int64_t const y1 = std::min(y0 + 1, height - 1);
        int64_t const x1 = std::min(x0 + 1, width - 1);
        int64_t const plane = (image * mData.shape.numClasses + k) * height * width;
        auto const logit = [&](int64_t r, int64_t c)
        {
            return static_cast<double>(at(plane + r * width + c));
        };
        double const wy = y - static_cast<double>(y0);
        double const wx = x - static_cast<double>(x0);
        double const upper = logit(y0, x0) * (1 - wx) + logit(y0, x1) * wx;
        double const lower = logit(y1, x0) * (1 - wx) + logit(y1, x1) * wx;
        return static_cast<float>(upper * (1 - wy) + lower * wy);
    }

    Data mData;
    Bytes mBytes;
    float mLargest{0};
};

//! Class at `pixel` of a mask.
inline int32_t classAt(Bytes const& mask, MaskType type, int64_t pixel)
{
    switch (type)
    {
    case MaskType::kINT32:
    {
        int32_t value;
        std::memcpy(&value, &mask[static_cast<size_t>(pixel) * sizeof(value)], sizeof(value));
        return value;
    }
    case MaskType::kHALF:
        return static_cast<int32_t>(loadElement(mask.data(), pixel, ElementType::kHALF));
    default:
        return mask[static_cast<size_t>(pixel)];
    }
}

//! Pixels whose class differs although the reference's lead is above the bound, or that are no class at all.
inline int64_t countWrongPixels(
    Data const& data, ReferenceLogits const& logits, Bytes const& mask, Bytes const& reference, MaskType type)
{
    int64_t const side = int64_t{data.shape.patch} * data.shape.upsample;
    int64_t const width = side * data.sizes.columns;
    int64_t const height = side * data.sizes.rows;
    int64_t wrong = 0;
    for (int64_t pixel = 0; pixel < data.nbPixels(); ++pixel)
    {
        int32_t const got = classAt(mask, type, pixel);
        int32_t const best = classAt(reference, type, pixel);
        if (got == best)
        {
            continue;
        }
        bool const isClass = got >= 0 && got < data.shape.numClasses;
        int64_t const row = pixel / width % height;
        bool const isClose
            = isClass && logits.lead(pixel / (width * height), row, pixel % width, best, got) <= logits.bound();
        wrong += isClose ? 0 : 1;
    }
    return wrong;
}

} // namespace nrd::test
