/*
 * Numbers and their bits. Halves are those of decode_arithmetic.h, so that both round alike.
 */
#pragma once

#include "decode_arithmetic.h"

#include <cmath>

namespace nrd::sass
{

inline float toFloat(uint32_t bits)
{
    return floatOf(bits);
}

//! A GPU gives one NaN.
inline uint32_t canonical(float x)
{
    return std::isnan(x) ? 0x7fffffffU : bitsOf(x);
}

inline float flushed(float x)
{
    return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.F, x) : x;
}

inline float widen(uint16_t half)
{
    return widenHalf(half);
}

inline uint16_t narrow(float x)
{
    return narrowHalf(x);
}

} // namespace nrd::sass
