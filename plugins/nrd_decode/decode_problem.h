/*
 * What one decode is: sizes, tensors and options. Plain data for host and device code, no CUDA and no TensorRT.
 *
 * Every location of theta holds a three-layer perceptron in the order W0 b0 W1 b1 W2 b2, each W row-major [out][in].
 * It draws its own f x f patch of the logits from the pixel's coordinates (x first, then y) and the guidance map.
 */
#pragma once

#ifndef __CUDACC_RTC__
#include <cstdint>
#else
using int32_t = int;
using int64_t = long long;
using uint32_t = unsigned int;
using uint16_t = unsigned short;
using uint8_t = unsigned char;
using uintptr_t = unsigned long long;
#endif

namespace nrd
{

//! Counts changes of the kernels' results or speed; it is part of the timing-cache id and of nrd_plugin_info().
constexpr int32_t kKERNEL_REVISION = 2;

constexpr int32_t kMAX_CLASSES = 256;
constexpr int32_t kMAX_PATCH = 16;

enum class ElementType : int32_t
{
    kFLOAT = 0,
    kHALF = 1,
    kBFLOAT16 = 2,
};

//! How a class index is stored. kUINT8 is TensorRT's `u8x4`: four neighbours in one int32, which in memory are bytes.
enum class MaskType : int32_t
{
    kINT32 = 0,
    kHALF = 1,
    kUINT8 = 2,
};

enum class DecodeOp : int32_t
{
    kLOGITS = 0,
    kMASK = 1,
};

//! The kernels.
enum class Variant : int32_t
{
    kAUTO = 0,        //!< kSIMT where the shape is the released one and 48 KB are enough, else kGENERIC
    kGENERIC = 1,     //!< any shape
    kSIMT = 2,        //!< d = m = 16, f = 8, s = 4
    kTENSOR_CORE = 3, //!< the same shape, 16-bit tensors, compute capability 8.0 and newer
};
constexpr int32_t kNB_VARIANTS = 4;

//! Build-time constants of the op.
struct DecodeShape
{
    int32_t numClasses;       //!< K, 2 to 256
    int32_t hidden;           //!< d: 8, 16 or 32
    int32_t guidanceChannels; //!< m: 8, 16 or 32
    int32_t patch;            //!< f: 4, 8 or 16
    int32_t upsample;         //!< s: 1, 2, 4 or 8; not used for logits
    float xTable[kMAX_PATCH]; //!< first input of the perceptron for each column of a patch; the first f are read
    float yTable[kMAX_PATCH]; //!< second input for each row
};

//! A (B, C, rows, columns) tensor. Element (b, c, y, x) is at b*batchStride + c*channelStride + (y*columns + x)*pixelStride.
struct TensorView
{
    void const* data;
    int64_t batchStride;
    int64_t channelStride;
    int64_t pixelStride;
};

struct DecodeProblem
{
    DecodeShape shape;
    ElementType type;    //!< of theta, guidance and logits
    int32_t batch;       //!< B
    int32_t rows;        //!< h, rows of theta
    int32_t columns;     //!< w
    TensorView theta;    //!< (B, P, h, w)
    TensorView guidance; //!< (B, m, f*h, f*w)
};

#ifndef __CUDACC_RTC__ // what follows is for the host

//! P, the channels of theta.
constexpr int32_t thetaChannels(int32_t k, int32_t d, int32_t m)
{
    return (2 + m) * d + d + d * d + d + d * k + k;
}

constexpr int32_t elementSize(ElementType type)
{
    return type == ElementType::kFLOAT ? 4 : 2;
}

//! View of an (B, C, rows, columns) tensor that lies in NCHW order.
inline TensorView planar(void const* data, int64_t channels, int64_t rows, int64_t columns)
{
    return {data, channels * rows * columns, rows * columns, 1};
}

//! View of the same tensor with a pixel's channels contiguous and pixels `pitch` elements apart (pitch >= C).
inline TensorView channelsLast(void const* data, int64_t rows, int64_t columns, int64_t pitch)
{
    return {data, rows * columns * pitch, 1, pitch};
}

//! What is wrong with the constants, or nullptr. The text names the attribute, what is expected and nothing else.
inline char const* findFault(DecodeShape const& shape)
{
    auto const oneOf = [](int32_t value, int32_t a, int32_t b, int32_t c)
    {
        return value == a || value == b || value == c;
    };
    if (shape.numClasses < 2 || shape.numClasses > kMAX_CLASSES)
    {
        return "num_classes: expected 2 to 256";
    }
    if (!oneOf(shape.hidden, 8, 16, 32))
    {
        return "hidden: expected 8, 16 or 32";
    }
    if (!oneOf(shape.guidanceChannels, 8, 16, 32))
    {
        return "guidance_channels: expected 8, 16 or 32";
    }
    if (!oneOf(shape.patch, 4, 8, 16))
    {
        return "patch: expected 4, 8 or 16";
    }
    if (!oneOf(shape.upsample, 1, 2, 4) && shape.upsample != 8)
    {
        return "upsample: expected 1, 2, 4 or 8";
    }
    return nullptr;
}

#endif

} // namespace nrd
