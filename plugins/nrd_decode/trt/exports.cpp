/*
 * What libnrd_trt_plugin.so exports: two entry points of `IPluginRegistry::loadLibrary`, and one that tells what the
 * library was built for before it is handed to TensorRT.
 */
#include "../decode_images.h"
#include "../decode_problem.h"
#include "decode_creator.h"
#include "report.h"

#include <cstdio>

#include <cuda.h>

#ifndef NRD_TRT_VERSION
#error "plugins/CMakeLists.txt defines it"
#endif

#define NRD_EXPORT extern "C" __attribute__((visibility("default")))

NRD_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& nbCreators) noexcept
{
    nbCreators = 0;
    nvinfer1::IPluginCreatorInterface* const* first = nullptr;
    nrd::guarded("getCreators", nullptr,
        [&]
        {
            first = nrd::creators();
            nbCreators = nrd::kNB_CREATORS;
        });
    return first;
}

NRD_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) noexcept
{
    nrd::adoptFinder(finder);
}

//! A JSON object, valid while the library is loaded. It may be called before TensorRT or CUDA are there.
NRD_EXPORT char const* nrd_plugin_info() noexcept
{
    static char info[1024];
    static int const kLENGTH = std::snprintf(info, sizeof(info),
        R"({"version": "%s", "tensorrt": "%d.%d.%d", "tensorrt_major": %d, "cuda": "%d.%d", "architectures": [%s], )"
        R"("ptx": [%s], "kernel_revision": %d, "ops": ["%s", "%s"]})",
        NRD_TRT_VERSION, NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR, NV_TENSORRT_PATCH, NV_TENSORRT_MAJOR,
        CUDA_VERSION / 1000, CUDA_VERSION % 1000 / 10, nrd::listArchitectures(false).c_str(),
        nrd::listArchitectures(true).c_str(), nrd::kKERNEL_REVISION, nrd::opName(nrd::DecodeOp::kLOGITS),
        nrd::opName(nrd::DecodeOp::kMASK));
    return kLENGTH > 0 && static_cast<size_t>(kLENGTH) < sizeof(info) ? info : "{}";
}
