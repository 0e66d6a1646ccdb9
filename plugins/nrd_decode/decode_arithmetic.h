/*
 * The arithmetic of the decode, one definition for the kernels and for the host reference, so that both give the same
 * bits: every product and every fused multiply-add is spelled out. Compile with -fmad=false and -ffp-contract=off.
 */
#pragma once

#include "decode_problem.h"

#ifdef __CUDACC__
#define NRD_HD __host__ __device__ __forceinline__
#else
#define NRD_HD inline
#endif

#ifndef __CUDACC_RTC__
#include <cstring>
#endif

namespace nrd
{

constexpr float kLOWEST = -3.402823466e38F;

NRD_HD uint32_t bitsOf(float x)
{
#ifdef __CUDA_ARCH__
    return __float_as_uint(x);
#else
    uint32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    return bits;
#endif
}

NRD_HD float floatOf(uint32_t bits)
{
#ifdef __CUDA_ARCH__
    return __uint_as_float(bits);
#else
    float x;
    memcpy(&x, &bits, sizeof(x));
    return x;
#endif
}

NRD_HD float infinity()
{
    return floatOf(0x7f800000U);
}

NRD_HD float multiply(float a, float b)
{
#ifdef __CUDA_ARCH__
    return __fmul_rn(a, b);
#else
    return a * b;
#endif
}

NRD_HD float multiplyAdd(float a, float b, float c)
{
#ifdef __CUDA_ARCH__
    return __fmaf_rn(a, b, c);
#else
    return __builtin_fmaf(a, b, c);
#endif
}

//! NaN passes, as in PyTorch; fmaxf would hide it. -0 becomes 0.
NRD_HD float relu(float x)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    float y;
    asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(y) : "f"(x));
    return y;
#else
    return (x < 0.F ? 0.F : x) + 0.F;
#endif
}

//! In this form an infinite neighbour of weight above zero gives infinity; a + w*(b - a) would give NaN for two of them.
NRD_HD float blend(float weightA, float a, float weightB, float b)
{
    return multiplyAdd(weightB, b, multiply(weightA, a));
}

//! Where an enlarged row (or column) comes from: two neighbours and their weights.
struct Source
{
    int32_t first; //!< the second is first + 1, or first at the last row
    float weightFirst;
    float weightSecond;
};

//! PyTorch's bilinear source, max(0, (out + 0.5)/s - 0.5). All of it is exact: s is a power of two.
NRD_HD Source findSource(int32_t out, int32_t s)
{
    int32_t const centred = 2 * out + 1 - s; // 2s times the source
    if (centred <= 0)
    {
        return {0, 1.F, 0.F};
    }
    float const second = static_cast<float>(centred % (2 * s)) / static_cast<float>(2 * s);
    return {centred / (2 * s), 1.F - second, second};
}

//! First strict maximum from (-infinity, 0): the lowest index of a tie, never NaN.
struct Maximum
{
    float value = -infinity();
    int32_t index = 0;

    NRD_HD void update(float candidate, int32_t candidateIndex)
    {
        if (candidate > value)
        {
            value = candidate;
            index = candidateIndex;
        }
    }
};

//! The smaller, or that which is a number.
NRD_HD float smaller(float a, float b)
{
#ifdef __CUDA_ARCH__
    return fminf(a, b);
#else
    return b < a || a != a ? b : a;
#endif
}

NRD_HD float larger(float a, float b)
{
#ifdef __CUDA_ARCH__
    return fmaxf(a, b);
#else
    return b > a || a != a ? b : a;
#endif
}

//! The smaller, or NaN if one of them is.
NRD_HD float smallerOrNan(float a, float b)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    float y;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
    return y;
#else
    return a < b || a != a ? a : b;
#endif
}

//! Whether a value that lies between corners that are at least `high` is above one between corners that are at most
//! `low`, however both are rounded; see TopTwo::isClear.
NRD_HD bool isClearlyAbove(float high, float low)
{
    float const magnitude = (high < 0.F ? -high : high) + (low < 0.F ? -low : low);
    return high - low > multiplyAdd(magnitude, 0x1p-20F, 0x1p-120F);
}

//! A limit: `isClearlyAbove(high, low)` for every number `low` below it.
NRD_HD float clearlyBelow(float high)
{
    return high - multiplyAdd(high < 0.F ? -high : high, 0x1p-18F, 0x1p-118F);
}

//! Bits of a float as an integer of the same order, and back; a NaN of either sign is at an end.
NRD_HD uint32_t toOrdered(uint32_t bits)
{
    return bits ^ (bits >> 31 != 0U ? 0xffffffffU : 0x80000000U);
}

NRD_HD uint32_t fromOrdered(uint32_t ordered)
{
    return ordered ^ (ordered >> 31 != 0U ? 0x80000000U : 0xffffffffU);
}

NRD_HD int32_t countBits(uint32_t bits)
{
#ifdef __CUDA_ARCH__
    return __popc(bits);
#else
    return __builtin_popcount(bits);
#endif
}

//! The largest and the second largest logit of one pixel; -infinity does not count. After a NaN nothing is clear.
struct TopTwo
{
    Maximum best;
    float second = kLOWEST;

    NRD_HD void update(float candidate, int32_t index)
    {
        second = larger(second, smaller(best.value, candidate));
        best.update(candidate, index);
    }

    /*!
     * Whether the best class beats every other one by more than any interpolation can lose to rounding. Where it does so
     * at all four corners of a cell it wins everywhere inside: an enlarged value is a sum of corners with weights that
     * are not negative, each term rounded at most four times, so its error is below 2^-21 of the sum of the terms'
     * magnitudes, and 2^-20 covers both classes. The constant covers underflow. Infinite or absent best: not clear.
     */
    NRD_HD bool isClear() const
    {
        return isClearlyAbove(best.value, second);
    }
};

//! Widen a bfloat16; exact.
NRD_HD float widenBfloat16(uint16_t bits)
{
    return floatOf(static_cast<uint32_t>(bits) << 16);
}

//! Round to the nearest bfloat16, ties to even; every NaN becomes 0x7fff.
NRD_HD uint16_t narrowBfloat16(float x)
{
    uint32_t const bits = bitsOf(x);
    if ((bits & 0x7fffffffU) > 0x7f800000U)
    {
        return 0x7fffU;
    }
    return static_cast<uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}

//! Widen a half; exact.
NRD_HD float widenHalf(uint16_t bits)
{
#ifdef __CUDA_ARCH__
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
#else
    uint32_t const sign = static_cast<uint32_t>(bits & 0x8000U) << 16;
    uint32_t const magnitude = bits & 0x7fffU;
    if (magnitude >= 0x7c00U)
    {
        return floatOf(sign | 0x7f800000U | (magnitude & 0x3ffU) << 13);
    }
    // 2^112 moves the exponent, denormals included.
    return floatOf(sign | bitsOf(floatOf(magnitude << 13) * 0x1p112F));
#endif
}

//! Round to the nearest half, ties to even; every NaN becomes 0x7fff.
NRD_HD uint16_t narrowHalf(float x)
{
#ifdef __CUDA_ARCH__
    uint16_t bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
#else
    uint32_t const bits = bitsOf(x);
    uint32_t const sign = (bits >> 16) & 0x8000U;
    uint32_t const magnitude = bits & 0x7fffffffU;
    if (magnitude > 0x7f800000U)
    {
        return 0x7fffU;
    }
    if (magnitude >= 0x477ff000U) // 65520 and more
    {
        return static_cast<uint16_t>(sign | 0x7c00U);
    }
    if (magnitude < 0x38800000U) // below 2^-14: the float adder rounds to the denormals' step of 2^-24
    {
        return static_cast<uint16_t>(sign | (bitsOf(floatOf(magnitude) + 0.5F) - 0x3f000000U));
    }
    uint32_t const rounded = magnitude + 0xfffU + ((magnitude >> 13) & 1U);
    return static_cast<uint16_t>(sign | ((rounded - 0x38000000U) >> 13));
#endif
}

//! Element number `index` of an array of the given type, widened.
NRD_HD float loadElement(void const* data, int64_t index, ElementType type)
{
    switch (type)
    {
    case ElementType::kFLOAT:
        return static_cast<float const*>(data)[index];
    case ElementType::kHALF:
        return widenHalf(static_cast<uint16_t const*>(data)[index]);
    default:
        return widenBfloat16(static_cast<uint16_t const*>(data)[index]);
    }
}

NRD_HD uint16_t narrow(float x, ElementType type)
{
    return type == ElementType::kHALF ? narrowHalf(x) : narrowBfloat16(x);
}

//! Two 16-bit elements in one word, the first in its lower half.
template <ElementType kTYPE>
NRD_HD uint32_t narrowPair(float first, float second)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    uint32_t pair;
    if constexpr (kTYPE == ElementType::kHALF)
    {
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    }
    else
    {
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    }
    return pair;
#else
    return narrow(first, kTYPE) | static_cast<uint32_t>(narrow(second, kTYPE)) << 16;
#endif
}

template <ElementType kTYPE>
NRD_HD float widenLower(uint32_t pair)
{
    return kTYPE == ElementType::kHALF ? widenHalf(static_cast<uint16_t>(pair)) : floatOf(pair << 16);
}

template <ElementType kTYPE>
NRD_HD float widenUpper(uint32_t pair)
{
    return kTYPE == ElementType::kHALF ? widenHalf(static_cast<uint16_t>(pair >> 16)) : floatOf(pair & 0xffff0000U);
}

} // namespace nrd
