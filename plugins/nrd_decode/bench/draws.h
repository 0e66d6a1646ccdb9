/*
 * Theta and guidance of the benchmark, computed element by element and alike on host and device, so that the host
 * reference needs no download.
 *
 * random:  theta normal with spread 0.5, guidance normal: class borders are everywhere, the worst case for pruning.
 * natural: like a trained network's, where about a tenth of the cells is mixed. All patches have the same weights up to
 *          3 %, and those of the coordinates are small; guidance is smooth, a lattice of normal numbers 64 pixels apart,
 *          interpolated bilinearly, with a noise of 0.01. So areas of one class are larger than a patch.
 * file:    given values, the same for every image.
 */
#pragma once

#include "decode_arithmetic.h"

namespace nrd::bench
{

constexpr int32_t kPATCH = 8;
constexpr int32_t kWIDTH = 16; // d and m of the released networks
constexpr int32_t kUPSAMPLE = 4;
constexpr int32_t kSTRIDE = kPATCH * kUPSAMPLE; // image pixels per patch

enum class Origin
{
    kRANDOM,
    kNATURAL,
    kFILE,
};

//! Thirty-two well mixed bits: two rounds of multiplication and shifts.
NRD_HD uint32_t mixBits(uint32_t x)
{
    x ^= x >> 16;
    x *= 0x7feb352dU;
    x ^= x >> 15;
    x *= 0x846ca68bU;
    return x ^ (x >> 16);
}

//! Normal up to 3.4 times its spread of 1: the sum of four 16-bit numbers.
NRD_HD float drawNormal(uint32_t seed, int64_t index)
{
    uint32_t const low = static_cast<uint32_t>(index);
    uint32_t const key = mixBits(static_cast<uint32_t>(index >> 32) + mixBits(seed));
    uint32_t const first = mixBits(low + key);
    uint32_t const second = mixBits(first + 0x9e3779b9U);
    uint32_t const sum = (first & 0xffffU) + (first >> 16) + (second & 0xffffU) + (second >> 16);
    return multiply(static_cast<float>(static_cast<int32_t>(sum) - 131070), 1.F / 37837.F);
}

class Draw
{
public:
    Origin origin;
    uint32_t seed;
    int32_t rows; //!< of patches in an image
    int32_t columns;
    int32_t channels;             //!< P
    uint16_t const* thetaFile;    //!< fp16 (P, rows, columns), for kFILE
    uint16_t const* guidanceFile; //!< fp16 (m, f*rows, f*columns), for kFILE; nullptr: smooth as for kNATURAL

    NRD_HD float theta(int32_t image, int32_t channel, int32_t row, int32_t column) const
    {
        int64_t const place = (static_cast<int64_t>(channel) * rows + row) * columns + column;
        int64_t const index = static_cast<int64_t>(image) * channels * rows * columns + place;
        switch (origin)
        {
        case Origin::kFILE:
            return widenHalf(thetaFile[place]);
        case Origin::kNATURAL:
        {
            float const own = multiplyAdd(kTHETA_NOISE, drawNormal(seed + kOWN, index), drawNormal(kSHARED, channel));
            return multiply(isCoordinateWeight(channel) ? kCOORDINATES : kTHETA_SPREAD, own);
        }
        default:
            return multiply(kTHETA_SPREAD, drawNormal(seed + kOWN, index));
        }
    }

    NRD_HD float guidance(int32_t image, int32_t channel, int32_t y, int32_t x) const
    {
        int64_t const height = static_cast<int64_t>(rows) * kPATCH;
        int64_t const width = static_cast<int64_t>(columns) * kPATCH;
        int64_t const place = (channel * height + y) * width + x;
        if (origin == Origin::kFILE && guidanceFile != nullptr)
        {
            return widenHalf(guidanceFile[place]);
        }
        float const own = drawNormal(seed + kGUIDANCE, image * kWIDTH * height * width + place);
        return origin == Origin::kRANDOM ? own
                                         : multiplyAdd(kGUIDANCE_NOISE, own, smooth(image * kWIDTH + channel, y, x));
    }

private:
    static constexpr int32_t kLATTICE = 64;
    static constexpr float kTHETA_SPREAD = 0.5F;
    static constexpr float kCOORDINATES = 0.05F;
    static constexpr float kTHETA_NOISE = 0.03F;
    static constexpr float kGUIDANCE_NOISE = 0.01F;
    static constexpr uint32_t kSHARED = 1; // seeds of the parts, 16 apart from set to set
    static constexpr uint32_t kOWN = 2;
    static constexpr uint32_t kGUIDANCE = 3;
    static constexpr uint32_t kSMOOTH = 4;

    NRD_HD static bool isCoordinateWeight(int32_t channel)
    {
        return channel < (2 + kWIDTH) * kWIDTH && channel % (2 + kWIDTH) < 2;
    }

    NRD_HD float smooth(int32_t plane, int32_t y, int32_t x) const
    {
        float const down = static_cast<float>(y % kLATTICE) * (1.F / kLATTICE); // exact, as is 1 minus it
        float const right = static_cast<float>(x % kLATTICE) * (1.F / kLATTICE);
        float corners[4];
        for (int32_t i = 0; i < 4; ++i)
        {
            int64_t const knot = (plane * 65536LL + y / kLATTICE + i / 2) * 65536LL + x / kLATTICE + i % 2;
            corners[i] = drawNormal(seed + kSMOOTH, knot);
        }
        return blend(1.F - down, blend(1.F - right, corners[0], right, corners[1]), down,
            blend(1.F - right, corners[2], right, corners[3]));
    }
};

} // namespace nrd::bench
