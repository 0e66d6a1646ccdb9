/*
 * What is measured: a setting is one set of tensors, a job one launch on it.
 */
#pragma once

#include "draws.h"
#include "launch_plan.h"

#include <string>
#include <vector>

namespace nrd::bench
{

enum class Op
{
    kMASK,
    kLOGITS,
};

enum class Layout
{
    kPLANAR,
    kCHANNELS_LAST, //!< 16-bit elements with the pitch rounded up to 8, as TensorRT's kHWC8
};

//! Size of an image and number of classes.
struct Case
{
    int32_t height;
    int32_t width;
    int32_t classes;

    int64_t pixels() const
    {
        return static_cast<int64_t>(height) * width;
    }
    std::string image() const
    {
        return std::to_string(height) + "x" + std::to_string(width);
    }
};

struct Setting
{
    Case size;
    int32_t batch = 1;
    ElementType type = ElementType::kHALF;
    Origin origin = Origin::kRANDOM;
    Layout theta = Layout::kCHANNELS_LAST;
    Layout guidance = Layout::kCHANNELS_LAST;

    int32_t rows() const
    {
        return size.height / kSTRIDE;
    }
    int32_t columns() const
    {
        return size.width / kSTRIDE;
    }
    int32_t channels() const
    {
        return thetaChannels(size.classes, kWIDTH, kWIDTH);
    }
    int64_t patches() const
    {
        return static_cast<int64_t>(batch) * rows() * columns();
    }
    //! Pixels of the logits.
    int64_t cells() const
    {
        return patches() * kPATCH * kPATCH;
    }
    int64_t maskPixels() const
    {
        return cells() * kUPSAMPLE * kUPSAMPLE;
    }

    //! Theta and guidance without padding.
    int64_t inputBytes() const
    {
        return (patches() * channels() + cells() * kWIDTH) * elementSize(type);
    }

    //! Whether both draw the same numbers; how they lie in memory is another question.
    bool hasValuesOf(Setting const& other) const
    {
        return size.height == other.size.height && size.width == other.size.width && size.classes == other.size.classes
            && batch == other.batch && type == other.type && origin == other.origin;
    }
};

struct Job
{
    Op op = Op::kMASK;
    MaskType maskType = MaskType::kUINT8;
    Variant variant = Variant::kSIMT;
    bool prune = true;
    bool timed = true;

    int64_t outputBytes(Setting const& setting) const
    {
        if (op == Op::kLOGITS)
        {
            return setting.cells() * setting.size.classes * elementSize(setting.type);
        }
        return setting.maskPixels() * (maskType == MaskType::kINT32 ? 4 : maskType == MaskType::kHALF ? 2 : 1);
    }
};

inline char const* nameOf(Op op)
{
    return op == Op::kMASK ? "mask" : "logits";
}
inline char const* nameOf(Layout layout)
{
    return layout == Layout::kPLANAR ? "nchw" : "nhwc";
}
inline char const* nameOf(Origin origin)
{
    return origin == Origin::kRANDOM ? "random" : origin == Origin::kNATURAL ? "natural" : "file";
}
inline char const* nameOf(ElementType type)
{
    return type == ElementType::kFLOAT ? "fp32" : type == ElementType::kHALF ? "fp16" : "bf16";
}
inline char const* nameOf(MaskType type)
{
    return type == MaskType::kINT32 ? "int32" : type == MaskType::kHALF ? "half" : "uint8";
}
inline char const* nameOf(Variant variant)
{
    constexpr char const* kNAMES[] = {"auto", "generic", "simt", "tensor_core"};
    static_assert(std::extent_v<decltype(kNAMES)> == kNB_VARIANTS, "a variant has no name");
    return kNAMES[static_cast<int32_t>(variant)];
}

//! Any sizes of the released networks; the tables are the pixels' coordinates in their patch.
inline DecodeShape makeShape(int32_t classes, int32_t upsample = kUPSAMPLE)
{
    DecodeShape shape{classes, kWIDTH, kWIDTH, kPATCH, upsample, {}, {}};
    for (int32_t i = 0; i < kPATCH; ++i)
    {
        shape.xTable[i] = static_cast<float>(i) / kPATCH;
        shape.yTable[i] = static_cast<float>(i) / kPATCH;
    }
    return shape;
}

} // namespace nrd::bench
