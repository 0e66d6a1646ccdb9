// Gives nvinfer's class map the mask of an nrd_trt engine: one byte per pixel there, an int per pixel here.
//
// nvinfer opens this library as `custom-lib-path` before it reads the plan, and calls
// `parse-segmentation-func-name` for every frame with the outputs of that frame on the host.
#include <cstdint>
#include <cstring>
#include <iostream>

#include "nvdsinfer_custom_impl.h"

#ifdef NRD_PLUGIN
#include <dlfcn.h>
#endif

namespace
{

bool refuse(char const* expected)
{
    std::cerr << "nrd_trt: expected " << expected << "; package the bundle again." << std::endl;
    return false;
}

} // namespace

extern "C" bool NvDsInferParseNrdMask(std::vector<NvDsInferLayerInfo> const& outputs,
    NvDsInferNetworkInfo const& network, float /* threshold */, unsigned int /* numClasses */, int* classMap,
    float*& classProbabilityMap)
{
    classProbabilityMap = nullptr;
    for (NvDsInferLayerInfo const& output : outputs)
    {
        if (output.layerName == nullptr || std::strcmp(output.layerName, "mask") != 0)
        {
            continue;
        }
        NvDsInferDims const& dims = output.inferDims; // without the batch
        if (output.dataType != UINT8 || output.buffer == nullptr)
        {
            return refuse("an output `mask` of uint8");
        }
        if (dims.numDims != 2 || dims.d[0] != network.height || dims.d[1] != network.width)
        {
            return refuse("an output `mask` of the network's height and width");
        }
        auto const* const mask = static_cast<uint8_t const*>(output.buffer);
        size_t const pixels = static_cast<size_t>(network.height) * network.width;
        for (size_t i = 0; i < pixels; ++i)
        {
            classMap[i] = mask[i];
        }
        return true;
    }
    return refuse("an output `mask`, got none");
}

CHECK_CUSTOM_SEM_SEGMENTATION_PARSE_FUNC_PROTOTYPE(NvDsInferParseNrdMask);

#ifdef NRD_PLUGIN
namespace
{

//! TensorRT finds the decode's plugin in its registry; the library lies beside this one.
bool loadPlugin()
{
    Dl_info self{};
    if (dladdr(reinterpret_cast<void*>(&NvDsInferParseNrdMask), &self) == 0 || self.dli_fname == nullptr)
    {
        return refuse("to be a library on a disk");
    }
    std::string const here(self.dli_fname);
    std::string const path = here.substr(0, here.find_last_of('/') + 1) + NRD_PLUGIN;
    return getPluginRegistry()->loadLibrary(path.c_str()) != nullptr || refuse(path.c_str());
}

bool const kPLUGIN_LOADED = loadPlugin();

} // namespace
#endif
