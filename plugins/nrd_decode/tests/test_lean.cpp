/*
 * The plugin library in a real TensorRT: the registry of the lean runtime, which works without a GPU, loads it, lists
 * the creators, makes plugins and makes them again from their serialised fields.
 * NRD_TRT_LEAN_LIB names libnvinfer_lean.so.11.
 */
#include "check.h"
#include "fields.h"
#include "tensorrt_doubles.h"

#include <cstdlib>
#include <memory>

#include <dlfcn.h>

using namespace nrd::test;
using nvinfer1::IPluginCreatorV3One;
using nvinfer1::IPluginRegistry;
using nvinfer1::IPluginV3;
using nvinfer1::IPluginV3OneRuntime;
using nvinfer1::PluginCapabilityType;
using nvinfer1::TensorRTPhase;

namespace
{

nvinfer1::PluginFieldCollection const& storedFields(IPluginV3& plugin)
{
    auto* const runtime
        = static_cast<IPluginV3OneRuntime*>(plugin.getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    return *runtime->getFieldsToSerialize();
}

IPluginCreatorV3One* findCreator(IPluginRegistry& registry, char const* name)
{
    auto* const creator = static_cast<IPluginCreatorV3One*>(registry.getCreator(name, "1", "nrd"));
    return CHECK(creator != nullptr) ? creator : nullptr;
}

void testRoundTrip(IPluginRegistry& registry, char const* name, char const* maskType)
{
    auto* const creator = findCreator(registry, name);
    REQUIRE(creator != nullptr);
    Fields const fields = makeFields(releasedShape(), maskType);
    nvinfer1::PluginFieldCollection const collection = fields.collection();
    std::unique_ptr<IPluginV3> const first(creator->createPlugin("node", &collection, TensorRTPhase::kBUILD));
    REQUIRE(first != nullptr);
    std::string const stored = fingerprint(storedFields(*first));
    CHECK(storedFields(*first).nbFields == collection.nbFields);
    std::unique_ptr<IPluginV3> const second(
        creator->createPlugin("node", &storedFields(*first), TensorRTPhase::kRUNTIME));
    REQUIRE(second != nullptr);
    CHECK(fingerprint(storedFields(*second)) == stored);
}

//! The registry's own recorder is told, for there is no context yet.
void testRefusal(IPluginRegistry& registry)
{
    auto* const creator = findCreator(registry, "NrdPatchDecode");
    REQUIRE(creator != nullptr);
    Fields fields = makeFields(releasedShape());
    fields.at("num_classes").length = 2;
    nvinfer1::PluginFieldCollection const collection = fields.collection();
    CHECK(creator->createPlugin("node", &collection, TensorRTPhase::kBUILD) == nullptr);
    auto* const recorder = static_cast<Recorder*>(registry.getErrorRecorder());
    std::string const text = recorder->take();
    CHECK_IN(text.find("num_classes: got 2 values, expected 1") != std::string::npos, text);
}

void testLibrary(IPluginRegistry& registry, char const* path)
{
    auto const handle = registry.loadLibrary(path);
    REQUIRE(handle != nullptr);
    int32_t count = 0;
    registry.getAllCreators(&count);
    CHECK(count >= 2);
    testRoundTrip(registry, "NrdPatchDecode", nullptr);
    for (char const* const maskType : {"int32", "half", "u8x4"})
    {
        testRoundTrip(registry, "NrdPatchDecodeMask", maskType);
    }
    testRefusal(registry);
    registry.deregisterLibrary(handle);
    CHECK(registry.getCreator("NrdPatchDecode", "1", "nrd") == nullptr);
}

} // namespace

int main(int argc, char** argv)
{
    char const* const path = std::getenv("NRD_TRT_LEAN_LIB");
    if (path == nullptr)
    {
        return skip("NRD_TRT_LEAN_LIB does not name libnvinfer_lean.so.11");
    }
    if (NV_TENSORRT_MAJOR != 11)
    {
        return skip("built with headers of another major than 11, which cannot call that registry");
    }
    void* const library = dlopen(path, RTLD_NOW);
    using RegistryGetter = IPluginRegistry* (*)();
    auto const getRegistry
        = library == nullptr ? nullptr : reinterpret_cast<RegistryGetter>(dlsym(library, "getPluginRegistry"));
    if (!CHECK(argc == 2) || !CHECK_IN(getRegistry != nullptr, path))
    {
        return 1;
    }
    IPluginRegistry& registry = *getRegistry();
    Recorder recorder;
    registry.setErrorRecorder(&recorder);
    testLibrary(registry, argv[1]);
    testLibrary(registry, argv[1]); // once more after it was given back
    registry.setErrorRecorder(nullptr);
    return result();
}
