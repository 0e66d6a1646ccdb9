/*
 * Makes the plugins from fields, when a network is built and when an engine is read.
 */
#pragma once

#include "attributes.h"

#include <NvInferRuntime.h>

#include <array>

namespace nrd
{

class DecodeCreator final : public nvinfer1::IPluginCreatorV3One
{
public:
    explicit DecodeCreator(DecodeOp op);

    nvinfer1::IPluginV3* createPlugin(nvinfer1::AsciiChar const* name, nvinfer1::PluginFieldCollection const* fc,
        nvinfer1::TensorRTPhase phase) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override;
    nvinfer1::AsciiChar const* getPluginName() const noexcept override;
    nvinfer1::AsciiChar const* getPluginVersion() const noexcept override;
    nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override;

private:
    DecodeOp const mOp;
    std::array<nvinfer1::PluginField, kMAX_ATTRIBUTES> mFields; // no heap: creators are never destroyed
    nvinfer1::PluginFieldCollection mFieldCollection;
};

constexpr int32_t kNB_CREATORS = 2;

//! The creators of both ops. They stay until the library is unloaded or the process is gone: registries keep pointers to
//! them and may follow those while static objects are destroyed.
nvinfer1::IPluginCreatorInterface* const* creators();

} // namespace nrd
