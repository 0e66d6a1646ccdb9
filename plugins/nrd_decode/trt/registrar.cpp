/*
 * Registers the ops when the library is loaded, for programs that open plugin libraries with dlopen and leave the rest
 * to them: Polygraphy, `trtexec --staticPlugins`, Triton, DeepStream. `registerCreator` moved in TensorRT 11, so there is
 * one such library for each major. It exports nothing.
 */
#include "decode_creator.h"
#include "report.h"

#include <cstdio>

#include <dlfcn.h>

namespace nrd
{
namespace
{

//! Library of a TensorRT of our major: in the global scope, else loaded already, else brought in by us. The programs
//! above load TensorRT out of the global scope, and Polygraphy may load plugins before TensorRT.
void* findRuntime()
{
    if (void* const getRegistry = dlsym(RTLD_DEFAULT, "getPluginRegistry"))
    {
        void* const library = libraryOf(getRegistry);
        if (library != nullptr && runtimeMajor(library) == NV_TENSORRT_MAJOR)
        {
            return library;
        }
    }
    std::string const suffix = "." + std::to_string(NV_TENSORRT_MAJOR);
    std::string const full = "libnvinfer.so" + suffix;
    std::string const lean = "libnvinfer_lean.so" + suffix;
    for (std::string const& name : {full, lean})
    {
        if (void* const library = dlopen(name.c_str(), RTLD_LAZY | RTLD_NOLOAD))
        {
            return library;
        }
    }
    return dlopen(full.c_str(), RTLD_LAZY);
}

void registerCreators()
{
    using RegistryGetter = nvinfer1::IPluginRegistry* (*)();
    void* const library = findRuntime();
    if (library == nullptr)
    {
        char const* const reason = dlerror();
        throw std::runtime_error("found no TensorRT " + std::to_string(NV_TENSORRT_MAJOR)
            + " to register the ops with (" + (reason == nullptr ? "no reason given" : reason) + ")");
    }
    auto const getRegistry = reinterpret_cast<RegistryGetter>(dlsym(library, "getPluginRegistry"));
    nvinfer1::IPluginRegistry* const registry = getRegistry == nullptr ? nullptr : getRegistry();
    if (registry == nullptr || runtimeMajor(library) != NV_TENSORRT_MAJOR)
    {
        throw std::runtime_error("the TensorRT library found has no plugin registry of the right version");
    }
    adoptLibrary(library);
    for (int32_t i = 0; i < kNB_CREATORS; ++i)
    {
        auto* const creator = creators()[i];
        auto const& named = *static_cast<DecodeCreator*>(creator);
        // Already there where libnrd_trt_plugin.so was loaded before; registering again would be an error.
        if (registry->getCreator(named.getPluginName(), kPLUGIN_VERSION, kPLUGIN_NAMESPACE) == nullptr
            && !registry->registerCreator(*creator, kPLUGIN_NAMESPACE))
        {
            throw std::runtime_error(std::string(named.getPluginName()) + " was refused by TensorRT's registry");
        }
    }
}

//! Runs in dlopen, where an exception would end the process.
[[gnu::constructor]] void registerOnLoad()
{
    guarded("registering the NRD plugins", nullptr,
        []
        {
            registerCreators();
        });
}

} // namespace
} // namespace nrd
