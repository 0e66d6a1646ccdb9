/*
 * Tensors of one decode as TensorRT describes them.
 */
#pragma once

#include "decode_problem.h"
#include "fields.h"

#include <NvInferRuntime.h>

#include <array>
#include <string>
#include <vector>

namespace nrd::test
{

using nvinfer1::DataType;
using nvinfer1::TensorFormat;

//! One op with its constants and the sizes of one call.
struct Case
{
    DecodeShape shape;
    char const* maskType; //!< nullptr: the logits op
    DataType type{DataType::kFLOAT};
    TensorFormat thetaFormat{TensorFormat::kLINEAR};
    TensorFormat guidanceFormat{TensorFormat::kLINEAR};
    int64_t batch{2};
    int64_t rows{3};
    int64_t columns{5};

    bool isMask() const
    {
        return maskType != nullptr;
    }

    bool isPacked() const
    {
        return isMask() && std::string(maskType) == "u8x4";
    }

    int64_t channels() const
    {
        return thetaChannels(shape.numClasses, shape.hidden, shape.guidanceChannels);
    }

    //! Pixels of the output per location of theta.
    int64_t scale() const
    {
        return isMask() ? shape.patch * shape.upsample : shape.patch;
    }

    DataType outputType() const
    {
        return !isMask() ? type : std::string(maskType) == "half" ? DataType::kHALF : DataType::kINT32;
    }

    std::string name() const
    {
        std::string text = isMask() ? maskType : "logits";
        for (int64_t const value : {static_cast<int64_t>(shape.numClasses), static_cast<int64_t>(shape.hidden),
                 static_cast<int64_t>(shape.guidanceChannels), static_cast<int64_t>(shape.patch),
                 static_cast<int64_t>(shape.upsample), static_cast<int64_t>(type), static_cast<int64_t>(thetaFormat),
                 static_cast<int64_t>(guidanceFormat), batch, rows, columns})
        {
            text += " " + std::to_string(value);
        }
        return text;
    }
};

inline nvinfer1::Dims dims(std::vector<int64_t> const& sizes)
{
    nvinfer1::Dims result{};
    for (int64_t const size : sizes)
    {
        result.d[result.nbDims++] = size;
    }
    return result;
}

inline nvinfer1::PluginTensorDesc describe(std::vector<int64_t> const& sizes, DataType type, TensorFormat format)
{
    return {dims(sizes), type, format, 1.0F};
}

//! theta, guidance, output.
inline std::array<nvinfer1::PluginTensorDesc, 3> describe(Case const& c)
{
    int64_t const f = c.shape.patch;
    int64_t const height = c.scale() * c.rows;
    int64_t const width = c.scale() * c.columns / (c.isPacked() ? 4 : 1);
    std::vector<int64_t> const output = c.isMask() ? std::vector<int64_t>{c.batch, height, width}
                                                   : std::vector<int64_t>{c.batch, c.shape.numClasses, height, width};
    return {describe({c.batch, c.channels(), c.rows, c.columns}, c.type, c.thetaFormat),
        describe({c.batch, c.shape.guidanceChannels, f * c.rows, f * c.columns}, c.type, c.guidanceFormat),
        describe(output, c.outputType(), TensorFormat::kLINEAR)};
}

//! The same as a builder sees them: bounds, and -1 for what is known at run time only.
inline std::array<nvinfer1::DynamicPluginTensorDesc, 3> describeForBuild(Case const& c)
{
    std::array<nvinfer1::DynamicPluginTensorDesc, 3> result{};
    auto const tensors = describe(c);
    for (size_t i = 0; i < tensors.size(); ++i)
    {
        auto const& sizes = tensors[i].dims;
        result[i] = {tensors[i], sizes, sizes, sizes};
        bool const hasChannels = sizes.nbDims == 4;
        for (int32_t axis = 0; axis < sizes.nbDims; ++axis)
        {
            if (!(hasChannels && axis == 1))
            {
                result[i].desc.dims.d[axis] = -1;
            }
        }
    }
    return result;
}

} // namespace nrd::test
