#include "decode_plugin.h"
#include "../decode_images.h"
#include "report.h"
#include "tensors.h"

#include <algorithm>
#include <memory>

using nvinfer1::AsciiChar;
using nvinfer1::DataType;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::ErrorCode;
using nvinfer1::IErrorRecorder;
using nvinfer1::IExprBuilder;
using nvinfer1::IPluginCapability;
using nvinfer1::IPluginResourceContext;
using nvinfer1::IPluginV3;
using nvinfer1::PluginCapabilityType;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginTensorDesc;

namespace nrd
{
namespace
{

void checkCuda(CUresult status, char const* action)
{
    if (status == CUDA_SUCCESS)
    {
        return;
    }
    std::string text = std::string(action) + ": got " + errorName(status) + ", expected success";
    if (status == CUDA_ERROR_NO_BINARY_FOR_GPU || status == CUDA_ERROR_UNSUPPORTED_PTX_VERSION)
    {
        text += "; the library has code for sm " + listArchitectures(false) + " and PTX for " + listArchitectures(true)
            + ": rebuild it with -DCMAKE_CUDA_ARCHITECTURES for this GPU";
    }
    if (status == CUDA_ERROR_SHARED_OBJECT_INIT_FAILED || status == CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND)
    {
        text += "; there is no driver (libcuda.so.1), or it is older than that of CUDA 12.0";
    }
    throw Fault(ErrorCode::kFAILED_EXECUTION, text);
}

//! The kernel of a tactic. Engines built before revision 2 may name 4 or 5, which kept more logits than 2 and 3 then did.
Variant variantOf(int32_t tactic)
{
    constexpr int32_t kLAST = kNB_VARIANTS + 1;
    if (tactic < 0 || tactic > kLAST)
    {
        refuse("tactic: got " + std::to_string(tactic) + ", expected 0 to " + std::to_string(kLAST));
    }
    return static_cast<Variant>(tactic < kNB_VARIANTS ? tactic : tactic - 2);
}

} // namespace

RecorderReference::~RecorderReference()
{
    reset(nullptr);
}

void RecorderReference::reset(IErrorRecorder* recorder) noexcept
{
    if (recorder != nullptr)
    {
        recorder->incRefCount();
    }
    if (mRecorder != nullptr)
    {
        mRecorder->decRefCount();
    }
    mRecorder = recorder;
}

DecodePlugin::DecodePlugin(DecodeAttributes const& attributes)
    : mAttributes(attributes)
    , mMetadata(describe(attributes))
    , mTimingCacheID(mMetadata + " kernel_revision=" + std::to_string(kKERNEL_REVISION))
    , mFields(writeFields(mAttributes))
    , mFieldCollection{static_cast<int32_t>(mFields.size()), mFields.data()}
{
}

//! Run what may throw; a failure goes to the recorder of the context.
template <typename TAction>
int32_t DecodePlugin::run(TAction const& action) const noexcept
{
    return guarded(getPluginName(), mRecorder.get(), action);
}

DecodePlugin* DecodePlugin::copy() const
{
    auto plugin = std::make_unique<DecodePlugin>(mAttributes);
    plugin->mTactic = mTactic;
    plugin->mConfiguredType = mConfiguredType;
    return plugin.release();
}

IPluginCapability* DecodePlugin::getCapabilityInterface(PluginCapabilityType type) noexcept
{
    switch (type)
    {
    case PluginCapabilityType::kCORE:
        return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case PluginCapabilityType::kBUILD:
        return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case PluginCapabilityType::kRUNTIME:
        return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

IPluginV3* DecodePlugin::clone() noexcept
{
    DecodePlugin* plugin = nullptr;
    run(
        [&]
        {
            plugin = copy();
        });
    return plugin;
}

AsciiChar const* DecodePlugin::getPluginName() const noexcept
{
    return opName(mAttributes.op);
}

AsciiChar const* DecodePlugin::getPluginVersion() const noexcept
{
    return kPLUGIN_VERSION;
}

AsciiChar const* DecodePlugin::getPluginNamespace() const noexcept
{
    return kPLUGIN_NAMESPACE;
}

int32_t DecodePlugin::configurePlugin(
    DynamicPluginTensorDesc const* in, int32_t nbInputs, DynamicPluginTensorDesc const*, int32_t nbOutputs) noexcept
{
    return run(
        [&]
        {
            checkCounts(nbInputs, nbOutputs);
            checkProfile(mAttributes, in);
            mConfiguredType = elementType(in[0].desc.type);
        });
}

int32_t DecodePlugin::getOutputDataTypes(
    DataType* outputTypes, int32_t nbOutputs, DataType const* inputTypes, int32_t nbInputs) const noexcept
{
    return run(
        [&]
        {
            checkCounts(nbInputs, nbOutputs);
            if (inputTypes[0] != inputTypes[1])
            {
                refuse("guidance: got another type than theta, expected the same");
            }
            elementType(inputTypes[0]);
            outputTypes[0] = outputType(mAttributes, inputTypes[0]);
        });
}

int32_t DecodePlugin::getOutputShapes(DimsExprs const* inputs, int32_t nbInputs, DimsExprs const*, int32_t,
    DimsExprs* outputs, int32_t nbOutputs, IExprBuilder& exprBuilder) noexcept
{
    return run(
        [&]
        {
            checkCounts(nbInputs, nbOutputs);
            outputs[0] = outputShape(mAttributes, inputs, exprBuilder);
        });
}

bool DecodePlugin::supportsFormatCombination(
    int32_t pos, DynamicPluginTensorDesc const* inOut, int32_t nbInputs, int32_t nbOutputs) noexcept
{
    return nbInputs == kNB_INPUTS && nbOutputs == kNB_OUTPUTS && pos >= 0 && pos < kNB_INPUTS + kNB_OUTPUTS
        && isSupported(mAttributes, pos, inOut);
}

int32_t DecodePlugin::getNbOutputs() const noexcept
{
    return kNB_OUTPUTS;
}

size_t DecodePlugin::getWorkspaceSize(
    DynamicPluginTensorDesc const*, int32_t, DynamicPluginTensorDesc const*, int32_t) const noexcept
{
    return 0;
}

bool DecodePlugin::supports(ElementType type, Variant variant) const
{
    return mAttributes.op == DecodeOp::kMASK ? supportsMask(mAttributes.shape, type, variant)
                                             : supportsLogits(mAttributes.shape, type, variant);
}

//! Empty where the default is all there is. kAUTO is not listed: it is TensorRT's tactic 0, and one of the others.
std::vector<int32_t> DecodePlugin::validTactics() const
{
    std::vector<int32_t> tactics;
    if (!mConfiguredType || !deviceAnswers())
    {
        return tactics;
    }
    for (int32_t variant = 1; variant < kNB_VARIANTS; ++variant)
    {
        if (supports(*mConfiguredType, static_cast<Variant>(variant)))
        {
            tactics.push_back(variant);
        }
    }
    return tactics;
}

int32_t DecodePlugin::getNbTactics() noexcept
{
    int32_t count = 0;
    run(
        [&]
        {
            count = static_cast<int32_t>(validTactics().size());
        });
    return count;
}

int32_t DecodePlugin::getValidTactics(int32_t* tactics, int32_t nbTactics) noexcept
{
    return run(
        [&]
        {
            std::vector<int32_t> const valid = validTactics();
            if (nbTactics != static_cast<int32_t>(valid.size()))
            {
                refuse("tactics: got room for " + std::to_string(nbTactics) + ", expected "
                    + std::to_string(valid.size()));
            }
            std::copy(valid.begin(), valid.end(), tactics);
        });
}

char const* DecodePlugin::getTimingCacheID() noexcept
{
    return mTimingCacheID.c_str();
}

char const* DecodePlugin::getMetadataString() noexcept
{
    return mMetadata.c_str();
}

int32_t DecodePlugin::setTactic(int32_t tactic) noexcept
{
    return run(
        [&]
        {
            Variant const variant = variantOf(tactic);
            checkCuda(prepare(), "loading the kernels");
            mTactic = variant;
            mChosenType.reset();
        });
}

//! An engine for several GPU models keeps the tactic of the one it was built on. kAUTO runs on every GPU and equals the
//! reference bit by bit, so taking it instead costs time and no accuracy.
void DecodePlugin::chooseVariant(ElementType type)
{
    if (mChosenType == type)
    {
        return;
    }
    mVariant = mTactic;
    if (!supports(type, mTactic))
    {
        mVariant = Variant::kAUTO;
        std::string const text = "tactic " + std::to_string(static_cast<int32_t>(mTactic))
            + " of this engine is not for this GPU: the default one runs; an engine built here may be faster";
        reportWarning(getPluginName(), text.c_str());
    }
    mChosenType = type;
}

int32_t DecodePlugin::onShapeChange(
    PluginTensorDesc const* in, int32_t nbInputs, PluginTensorDesc const* out, int32_t nbOutputs) noexcept
{
    return run(
        [&]
        {
            checkCounts(nbInputs, nbOutputs);
            chooseVariant(describeProblem(mAttributes, in, out).type);
        });
}

int32_t DecodePlugin::enqueue(PluginTensorDesc const* inputDesc, PluginTensorDesc const* outputDesc,
    void const* const* inputs, void* const* outputs, void*, cudaStream_t stream) noexcept
{
    return run(
        [&]
        {
            DecodeProblem problem = describeProblem(mAttributes, inputDesc, outputDesc);
            if (problem.batch == 0 || problem.rows == 0 || problem.columns == 0)
            {
                return; // nothing to write, and a grid may not be empty
            }
            chooseVariant(problem.type);
            problem.theta.data = inputs[0];
            problem.guidance.data = inputs[1];
            bool const isMask = mAttributes.op == DecodeOp::kMASK;
            checkCuda(isMask ? patchDecodeMask(problem, outputs[0], mAttributes.maskType, mVariant, true, stream)
                             : patchDecode(problem, outputs[0], mVariant, stream),
                "launching the kernel");
        });
}

IPluginV3* DecodePlugin::attachToContext(IPluginResourceContext* context) noexcept
{
    IErrorRecorder* const recorder = context == nullptr ? nullptr : context->getErrorRecorder();
    DecodePlugin* attached = nullptr;
    guarded(getPluginName(), recorder,
        [&]
        {
            // Now rather than at the first launch, which may be part of a graph capture.
            checkCuda(prepare(), "loading the kernels");
            attached = copy();
            attached->mRecorder.reset(recorder);
        });
    return attached;
}

PluginFieldCollection const* DecodePlugin::getFieldsToSerialize() noexcept
{
    return &mFieldCollection;
}

} // namespace nrd
