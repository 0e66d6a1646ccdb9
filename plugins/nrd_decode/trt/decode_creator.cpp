#include "decode_creator.h"
#include "decode_plugin.h"
#include "report.h"

#include <algorithm>
#include <new>

using nvinfer1::AsciiChar;
using nvinfer1::IPluginCreatorInterface;
using nvinfer1::IPluginV3;
using nvinfer1::PluginFieldCollection;
using nvinfer1::TensorRTPhase;

namespace nrd
{

DecodeCreator::DecodeCreator(DecodeOp op)
    : mOp(op)
{
    auto const declared = declaredFields(op);
    std::copy(declared.begin(), declared.end(), mFields.begin());
    mFieldCollection = {static_cast<int32_t>(declared.size()), mFields.data()};
}

// Both phases get the same fields: nothing is derived at build time that an engine would have to keep.
IPluginV3* DecodeCreator::createPlugin(AsciiChar const*, PluginFieldCollection const* fc, TensorRTPhase) noexcept
{
    IPluginV3* plugin = nullptr;
    guarded(getPluginName(), nullptr,
        [&]
        {
            if (fc == nullptr)
            {
                refuse("attributes: got no fields, expected some");
            }
            plugin = new DecodePlugin(readAttributes(mOp, *fc));
        });
    return plugin;
}

PluginFieldCollection const* DecodeCreator::getFieldNames() noexcept
{
    return &mFieldCollection;
}

AsciiChar const* DecodeCreator::getPluginName() const noexcept
{
    return opName(mOp);
}

AsciiChar const* DecodeCreator::getPluginVersion() const noexcept
{
    return kPLUGIN_VERSION;
}

AsciiChar const* DecodeCreator::getPluginNamespace() const noexcept
{
    return kPLUGIN_NAMESPACE;
}

IPluginCreatorInterface* const* creators()
{
    // In static memory without a destructor: nothing leaks when a registry unloads the library and loads it again.
    alignas(DecodeCreator) static unsigned char memory[kNB_CREATORS][sizeof(DecodeCreator)];
    static IPluginCreatorInterface* const kCREATORS[kNB_CREATORS]
        = {new (memory[0]) DecodeCreator(DecodeOp::kLOGITS), new (memory[1]) DecodeCreator(DecodeOp::kMASK)};
    return kCREATORS;
}

} // namespace nrd
