/*
 * What the ops accept and return: types, memory formats and sizes of their tensors. No CUDA call is made here.
 */
#pragma once

#include "attributes.h"

#include <NvInferRuntime.h>

namespace nrd
{

constexpr int32_t kNB_INPUTS = 2; //!< theta, guidance
constexpr int32_t kNB_OUTPUTS = 1;

//! Refuses other numbers of tensors.
void checkCounts(int32_t nbInputs, int32_t nbOutputs);

nvinfer1::DataType outputType(DecodeAttributes const& attributes, nvinfer1::DataType inputType);

//! Whether the tensor at `position` fits those before it: theta, guidance, output.
bool isSupported(
    DecodeAttributes const& attributes, int32_t position, nvinfer1::DynamicPluginTensorDesc const* tensors) noexcept;

ElementType elementType(nvinfer1::DataType type);

//! Size of the output. Expressions cannot be asserted on, so only dimensions that are constant now are compared.
nvinfer1::DimsExprs outputShape(
    DecodeAttributes const& attributes, nvinfer1::DimsExprs const* inputs, nvinfer1::IExprBuilder& builder);

//! Check the range of sizes that an optimisation profile allows.
void checkProfile(DecodeAttributes const& attributes, nvinfer1::DynamicPluginTensorDesc const* inputs);

//! Check every type, format and size, and return the problem with pointers still missing. A batch, height or width of 0
//! is in order.
DecodeProblem describeProblem(DecodeAttributes const& attributes, nvinfer1::PluginTensorDesc const* inputs,
    nvinfer1::PluginTensorDesc const* outputs);

} // namespace nrd
