/*
 * NrdPatchDecode and NrdPatchDecodeMask as TensorRT plugins: the kernels of decode_kernel.h behind `IPluginV3`.
 *
 * An object belongs to one context and one thread at a time, as TensorRT promises; objects share nothing but what
 * `prepare()` keeps for each device and context.
 */
#pragma once

#include "../decode_kernel.h"
#include "attributes.h"

#include <NvInferRuntime.h>

#include <optional>
#include <string>
#include <vector>

namespace nrd
{

//! Holds a reference to a recorder for as long as a plugin may report to it.
class RecorderReference
{
public:
    RecorderReference() = default;
    RecorderReference(RecorderReference const&) = delete;
    RecorderReference& operator=(RecorderReference const&) = delete;
    ~RecorderReference();

    void reset(nvinfer1::IErrorRecorder* recorder) noexcept;

    nvinfer1::IErrorRecorder* get() const noexcept
    {
        return mRecorder;
    }

private:
    nvinfer1::IErrorRecorder* mRecorder{nullptr};
};

class DecodePlugin final : public nvinfer1::IPluginV3,
                           public nvinfer1::IPluginV3OneCore,
                           public nvinfer1::IPluginV3OneBuild,
                           public nvinfer1::IPluginV3OneRuntime
{
public:
    explicit DecodePlugin(DecodeAttributes const& attributes);

    // The serialised fields point into the object.
    DecodePlugin(DecodePlugin const&) = delete;
    DecodePlugin& operator=(DecodePlugin const&) = delete;
    ~DecodePlugin() override = default;

    // IPluginV3
    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
    nvinfer1::IPluginV3* clone() noexcept override;

    // IPluginV3OneCore
    nvinfer1::AsciiChar const* getPluginName() const noexcept override;
    nvinfer1::AsciiChar const* getPluginVersion() const noexcept override;
    nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override;

    // IPluginV3OneBuild
    int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t nbInputs,
        nvinfer1::DynamicPluginTensorDesc const* out, int32_t nbOutputs) noexcept override;
    int32_t getOutputDataTypes(nvinfer1::DataType* outputTypes, int32_t nbOutputs, nvinfer1::DataType const* inputTypes,
        int32_t nbInputs) const noexcept override;
    int32_t getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t nbInputs, nvinfer1::DimsExprs const* shapeInputs,
        int32_t nbShapeInputs, nvinfer1::DimsExprs* outputs, int32_t nbOutputs,
        nvinfer1::IExprBuilder& exprBuilder) noexcept override;
    bool supportsFormatCombination(int32_t pos, nvinfer1::DynamicPluginTensorDesc const* inOut, int32_t nbInputs,
        int32_t nbOutputs) noexcept override;
    int32_t getNbOutputs() const noexcept override;
    size_t getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t nbInputs,
        nvinfer1::DynamicPluginTensorDesc const* outputs, int32_t nbOutputs) const noexcept override;
    int32_t getValidTactics(int32_t* tactics, int32_t nbTactics) noexcept override;
    int32_t getNbTactics() noexcept override;
    char const* getTimingCacheID() noexcept override;
    char const* getMetadataString() noexcept override;

    // IPluginV3OneRuntime
    int32_t setTactic(int32_t tactic) noexcept override;
    int32_t onShapeChange(nvinfer1::PluginTensorDesc const* in, int32_t nbInputs, nvinfer1::PluginTensorDesc const* out,
        int32_t nbOutputs) noexcept override;
    int32_t enqueue(nvinfer1::PluginTensorDesc const* inputDesc, nvinfer1::PluginTensorDesc const* outputDesc,
        void const* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;
    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override;

private:
    template <typename TAction>
    int32_t run(TAction const& action) const noexcept;
    std::vector<int32_t> validTactics() const;
    bool supports(ElementType type, Variant variant) const;
    void chooseVariant(ElementType type);
    DecodePlugin* copy() const;

    DecodeAttributes const mAttributes;
    std::string const mMetadata;
    std::string const mTimingCacheID;
    std::vector<nvinfer1::PluginField> const mFields;
    nvinfer1::PluginFieldCollection const mFieldCollection;
    RecorderReference mRecorder;
    Variant mTactic{Variant::kAUTO};
    std::optional<ElementType> mConfiguredType; //!< of the format combination being timed
    std::optional<ElementType> mChosenType;     //!< for which mVariant was chosen
    Variant mVariant{Variant::kAUTO};           //!< the tactic where this device has it, else kAUTO
};

} // namespace nrd
