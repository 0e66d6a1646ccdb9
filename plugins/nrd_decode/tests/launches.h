/*
 * Running an attached plugin on the data of a case.
 */
#pragma once

#include "check.h"
#include "descriptions.h"
#include "memory.h"
#include "plugins.h"
#include "tensorrt_doubles.h"

namespace nrd::test
{

inline ElementType elementTypeOf(DataType type)
{
    return type == DataType::kFLOAT ? ElementType::kFLOAT
        : type == DataType::kHALF   ? ElementType::kHALF
                                    : ElementType::kBFLOAT16;
}

inline MaskType maskTypeOf(Case const& c)
{
    return c.isPacked() ? MaskType::kUINT8 : c.outputType() == DataType::kHALF ? MaskType::kHALF : MaskType::kINT32;
}

inline Data dataOf(Case const& c, uint32_t seed = 1)
{
    Sizes const sizes{static_cast<int32_t>(c.batch), static_cast<int32_t>(c.rows), static_cast<int32_t>(c.columns)};
    return Data(c.shape, elementTypeOf(c.type), sizes, Values::kMODERATE, seed);
}

//! Planar bytes in a memory format as TensorRT documents it: kHWC without padding, kHWC8 padded to eight channels.
inline Bytes inFormat(
    Bytes const& bytes, TensorFormat format, ElementType type, int64_t batch, int64_t channels, int64_t pixels)
{
    switch (format)
    {
    case TensorFormat::kHWC:
        return toChannelsLast(bytes, type, batch, channels, pixels, channels);
    case TensorFormat::kHWC8:
        return toChannelsLast(bytes, type, batch, channels, pixels, (channels + 7) / 8 * 8);
    default:
        return bytes;
    }
}

//! theta and guidance on the device, in the formats of the case.
struct Inputs
{
    Buffer theta;
    Buffer guidance;
    size_t outputBytes; //!< that a launch on them writes

    Inputs(Case const& c, Data const& data)
        : theta(thetaBytes(c, data))
        , guidance(guidanceBytes(c, data))
        , outputBytes(static_cast<size_t>(
              c.isMask() ? data.nbPixels() * Data::bytesOf(maskTypeOf(c)) : data.nbLogits() * elementSize(data.type)))
    {
    }

    //! Other values into the same memory.
    void write(Case const& c, Data const& data)
    {
        theta.upload(thetaBytes(c, data));
        guidance.upload(guidanceBytes(c, data));
    }

private:
    static Bytes thetaBytes(Case const& c, Data const& data)
    {
        return inFormat(data.theta, c.thetaFormat, data.type, c.batch, data.channels(), c.rows * c.columns);
    }

    static Bytes guidanceBytes(Case const& c, Data const& data)
    {
        int64_t const pixels = c.rows * c.columns * c.shape.patch * c.shape.patch;
        return inFormat(data.guidance, c.guidanceFormat, data.type, c.batch, c.shape.guidanceChannels, pixels);
    }
};

//! A plugin that went through the phases up to a context, which may have a recorder.
inline Plugin attach(Case const& c, nvinfer1::IErrorRecorder* recorder = nullptr)
{
    Plugin const built = create(makeFields(c.shape, c.maskType), c.isMask());
    if (!CHECK(built))
    {
        return Plugin(nullptr);
    }
    auto* const creator = creatorOf(built.core->getPluginName());
    Plugin const read(
        creator->createPlugin("engine", built.runtime->getFieldsToSerialize(), nvinfer1::TensorRTPhase::kRUNTIME));
    ResourceContext context(recorder);
    return Plugin(read.runtime->attachToContext(&context));
}

inline int32_t enqueue(
    Plugin const& plugin, Case const& c, Inputs const& inputs, Output const& output, cudaStream_t stream)
{
    auto const tensors = describe(c);
    void const* const in[] = {inputs.theta.data(), inputs.guidance.data()};
    void* const out[] = {output.data()};
    return plugin.runtime->enqueue(tensors.data(), &tensors[2], in, out, nullptr, stream);
}

//! Sizes, launch, result.
inline Bytes runOnce(Plugin const& plugin, Case const& c, Inputs const& inputs, unsigned char poison)
{
    Output const output(inputs.outputBytes, poison);
    auto const tensors = describe(c);
    CHECK_IN(plugin.runtime->onShapeChange(tensors.data(), 2, &tensors[2], 1) == 0, c.name());
    CHECK_IN(enqueue(plugin, c, inputs, output, nullptr) == 0, c.name());
    synchronize();
    bool intact = false;
    Bytes const result = output.download(intact);
    CHECK_IN(intact, c.name() + ": wrote outside of the output");
    return result;
}

} // namespace nrd::test
