/*
 * Handles to the library's creators and to a plugin's capabilities.
 */
#pragma once

#include "fields.h"

#include <NvInferRuntime.h>

#include <memory>
#include <string>

extern "C" nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& nbCreators) noexcept;
extern "C" void setLoggerFinder(nvinfer1::ILoggerFinder* finder) noexcept;

namespace nrd::test
{

inline nvinfer1::IPluginCreatorV3One* creatorOf(std::string const& name)
{
    int32_t count = 0;
    auto const* const creators = getCreators(count);
    for (int32_t i = 0; i < count; ++i)
    {
        auto* const creator = static_cast<nvinfer1::IPluginCreatorV3One*>(creators[i]);
        if (name == creator->getPluginName())
        {
            return creator;
        }
    }
    return nullptr;
}

//! A plugin and its three faces.
struct Plugin
{
    explicit Plugin(nvinfer1::IPluginV3* plugin)
        : object(plugin)
    {
        using nvinfer1::PluginCapabilityType;
        if (plugin != nullptr)
        {
            core = face<nvinfer1::IPluginV3OneCore>(PluginCapabilityType::kCORE);
            build = face<nvinfer1::IPluginV3OneBuild>(PluginCapabilityType::kBUILD);
            runtime = face<nvinfer1::IPluginV3OneRuntime>(PluginCapabilityType::kRUNTIME);
        }
    }

    template <typename TFace>
    TFace* face(nvinfer1::PluginCapabilityType type)
    {
        return static_cast<TFace*>(object->getCapabilityInterface(type));
    }

    explicit operator bool() const
    {
        return object != nullptr;
    }

    std::unique_ptr<nvinfer1::IPluginV3> object;
    nvinfer1::IPluginV3OneCore* core{nullptr};
    nvinfer1::IPluginV3OneBuild* build{nullptr};
    nvinfer1::IPluginV3OneRuntime* runtime{nullptr};
};

inline Plugin create(Fields const& fields, bool isMask, nvinfer1::TensorRTPhase phase = nvinfer1::TensorRTPhase::kBUILD)
{
    auto* const creator = creatorOf(isMask ? "NrdPatchDecodeMask" : "NrdPatchDecode");
    nvinfer1::PluginFieldCollection const collection = fields.collection();
    return Plugin(creator == nullptr ? nullptr : creator->createPlugin("test", &collection, phase));
}

} // namespace nrd::test
