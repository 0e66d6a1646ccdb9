/*
 * Random tensors, their memory formats, and what the host reference makes of them. No TensorRT, no CUDA.
 */
#pragma once

#include "decode_arithmetic.h"
#include "host_reference.h"
#include "shapes.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

namespace nrd::test
{

using Bytes = std::vector<unsigned char>;

//! Sizes of one call.
struct Sizes
{
    int32_t batch;
    int32_t rows;
    int32_t columns;

    int64_t locations() const
    {
        return int64_t{batch} * rows * columns;
    }
};

enum class Values
{
    kMODERATE,    //!< both signs, magnitudes around 0.2
    kADVERSARIAL, //!< among them ties, zeros of both signs, tiny and huge numbers, infinities and NaN
};

//! `count` elements. Bit patterns are drawn, so that nothing rounds.
inline Bytes randomElements(ElementType type, int64_t count, Values values, uint32_t seed)
{
    std::mt19937 random(seed);
    Bytes bytes(static_cast<size_t>(count * elementSize(type)));
    uint32_t const mantissa = type == ElementType::kFLOAT ? 23 : type == ElementType::kHALF ? 10 : 7;
    uint32_t const sign = 1U << (elementSize(type) * 8 - 1);
    uint32_t const bias = (type == ElementType::kHALF ? 15U : 127U);
    uint32_t const infinite = (2 * bias + 1) << mantissa;
    uint32_t const special[] = {0, sign, 1, infinite - 1, infinite, sign | infinite, infinite + 1, bias << mantissa};
    for (int64_t i = 0; i < count; ++i)
    {
        uint32_t const exponent = bias - 6 + random() % 5;
        uint32_t bits = (random() % 2 == 0 ? sign : 0) | exponent << mantissa | (random() & ((1U << mantissa) - 1));
        if (values == Values::kADVERSARIAL && random() % 200 == 0)
        {
            bits = special[random() % 8];
        }
        std::memcpy(&bytes[static_cast<size_t>(i * elementSize(type))], &bits, static_cast<size_t>(elementSize(type)));
    }
    return bytes;
}

//! A planar (B, C, pixels) tensor with a pixel's channels together and padded to `pitch`; the padding is NaN, so that
//! reading it shows.
inline Bytes toChannelsLast(
    Bytes const& planarBytes, ElementType type, int64_t batch, int64_t channels, int64_t pixels, int64_t pitch)
{
    auto const size = static_cast<size_t>(elementSize(type));
    Bytes result(static_cast<size_t>(batch * pixels * pitch) * size, 0xFF);
    for (int64_t b = 0; b < batch; ++b)
    {
        for (int64_t c = 0; c < channels; ++c)
        {
            for (int64_t p = 0; p < pixels; ++p)
            {
                auto const from = static_cast<size_t>((b * channels + c) * pixels + p) * size;
                auto const to = static_cast<size_t>((b * pixels + p) * pitch + c) * size;
                std::copy_n(&planarBytes[from], size, &result[to]);
            }
        }
    }
    return result;
}

//! The inputs of one call, planar, and the results of the host reference.
struct Data
{
    DecodeShape shape;
    ElementType type;
    Sizes sizes;
    Bytes theta;
    Bytes guidance;

    Data(DecodeShape const& s, ElementType t, Sizes const& n, Values values = Values::kMODERATE, uint32_t seed = 1)
        : shape(s)
        , type(t)
        , sizes(n)
        , theta(randomElements(t, n.locations() * channels(), values, seed))
        , guidance(randomElements(t, n.locations() * s.patch * s.patch * s.guidanceChannels, values, seed + 1))
    {
    }

    int64_t channels() const
    {
        return thetaChannels(shape.numClasses, shape.hidden, shape.guidanceChannels);
    }

    int64_t nbLogits() const
    {
        return sizes.locations() * shape.patch * shape.patch * shape.numClasses;
    }

    int64_t nbPixels() const
    {
        int64_t const side = int64_t{shape.patch} * shape.upsample;
        return sizes.locations() * side * side;
    }

    DecodeProblem problem(void const* thetaData, void const* guidanceData) const
    {
        int64_t const f = shape.patch;
        return {shape, type, sizes.batch, sizes.rows, sizes.columns,
            planar(thetaData, channels(), sizes.rows, sizes.columns),
            planar(guidanceData, shape.guidanceChannels, f * sizes.rows, f * sizes.columns)};
    }

    Bytes referenceLogits() const
    {
        Bytes result(static_cast<size_t>(nbLogits() * elementSize(type)));
        hostPatchDecode(problem(theta.data(), guidance.data()), result.data());
        return result;
    }

    Bytes referenceMask(MaskType maskType) const
    {
        Bytes result(static_cast<size_t>(nbPixels() * bytesOf(maskType)));
        hostPatchDecodeMask(problem(theta.data(), guidance.data()), result.data(), maskType, false);
        return result;
    }

    static int64_t bytesOf(MaskType maskType)
    {
        return maskType == MaskType::kINT32 ? 4 : maskType == MaskType::kHALF ? 2 : 1;
    }

    //! The same values in 32 bits, for logits that no type rounds.
    Data widened() const
    {
        Data wide(shape, ElementType::kFLOAT, sizes);
        wide.theta = widen(theta);
        wide.guidance = widen(guidance);
        return wide;
    }

private:
    Bytes widen(Bytes const& bytes) const
    {
        size_t const count = bytes.size() / static_cast<size_t>(elementSize(type));
        Bytes result(count * sizeof(float));
        for (size_t i = 0; i < count; ++i)
        {
            float const value = loadElement(bytes.data(), static_cast<int64_t>(i), type);
            std::memcpy(&result[i * sizeof(float)], &value, sizeof(float));
        }
        return result;
    }
};

//! First byte that differs, or -1. Every NaN of 32 bits counts as the same: hosts and GPUs write different ones.
inline int64_t firstDifference(Bytes const& a, Bytes const& b, bool isFloat)
{
    for (size_t i = 0; i < std::max(a.size(), b.size()); ++i)
    {
        if (i >= a.size() || i >= b.size())
        {
            return static_cast<int64_t>(i);
        }
        auto const index = static_cast<int64_t>(i / sizeof(float));
        if (a[i] != b[i]
            && !(isFloat && std::isnan(loadElement(a.data(), index, ElementType::kFLOAT))
                && std::isnan(loadElement(b.data(), index, ElementType::kFLOAT))))
        {
            return static_cast<int64_t>(i);
        }
    }
    return -1;
}

} // namespace nrd::test
