#include "fake_gpu.h"

#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include "refusing.h" // made of TensorRT's headers: classes whose every method ends the program

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

using nvinfer1::DataType;
using nvinfer1::Dims;
using Work = std::vector<std::function<void()>>;

struct CUstream_st
{
    Work queued;
    Work* recorded{nullptr};
};

struct CUgraph_st
{
    Work work;
};

struct CUgraphExec_st
{
    Work work;
};

namespace
{

std::string gCalls;
std::string gFailing;
std::set<void const*> gLive;
int32_t gFailAt = 0;
bool gIntegrated = false;
bool gCapturing = false;
std::string gPlugin;

//! Note a call; whether it has to fail. Memory is not to be had while a stream records.
bool fails(char const* name)
{
    gCalls += (gCalls.empty() ? "" : " ") + std::string(name);
    return gFailing == name || (gFailAt > 0 && --gFailAt == 0);
}

void note(char const* name)
{
    gCalls += (gCalls.empty() ? "" : " ") + std::string(name);
}

template <typename T>
T* made(T* thing)
{
    gLive.insert(thing);
    return thing;
}

void gone(void const* thing)
{
    if (gLive.erase(thing) != 1)
    {
        std::fprintf(stderr, "released twice, or never made\n");
        std::abort();
    }
}

cudaError_t allocate(char const* name, void** address, size_t bytes)
{
    if (fails(name))
    {
        return cudaErrorMemoryAllocation;
    }
    if (gCapturing)
    {
        return cudaErrorStreamCaptureUnsupported;
    }
    *address = made(std::malloc(bytes));
    return cudaSuccess;
}

cudaError_t release(char const* name, void* address)
{
    note(name);
    gone(address);
    std::free(address);
    return cudaSuccess;
}

void queue(cudaStream_t stream, std::function<void()> work)
{
    (stream->recorded == nullptr ? stream->queued : *stream->recorded).push_back(std::move(work));
}

int32_t setting(char const* name, int32_t usual)
{
    char const* const given = std::getenv(name);
    return given == nullptr ? usual : std::atoi(given);
}

} // namespace

char const* takeCalls()
{
    static std::string taken;
    taken = std::exchange(gCalls, {});
    return taken.c_str();
}

int32_t liveThings()
{
    return static_cast<int32_t>(gLive.size());
}

void failCall(int32_t number)
{
    gFailAt = number;
}

void failAll(char const* name)
{
    gFailing = name == nullptr ? "" : name;
}

void setIntegrated(bool integrated)
{
    gIntegrated = integrated;
}

// --- CUDA -------------------------------------------------------------------------------------------------------------

extern "C"
{

    cudaError_t cudaGetLastError()
    {
        return cudaSuccess;
    }

    char const* cudaGetErrorName(cudaError_t status)
    {
        return status == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "cudaErrorOfTheFake";
    }

    char const* cudaGetErrorString(cudaError_t status)
    {
        return status == cudaErrorNoDevice ? "no CUDA-capable device is detected" : "a planted failure";
    }

    cudaError_t cudaGetDeviceCount(int* count)
    {
        *count = setting("FAKE_GPUS", 1);
        return *count == 0 ? cudaErrorNoDevice : cudaSuccess;
    }

    cudaError_t cudaSetDevice(int)
    {
        return fails("cudaSetDevice") ? cudaErrorInvalidDevice : cudaSuccess;
    }

    cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int)
    {
        *value = attribute == cudaDevAttrComputeCapabilityMajor ? setting("FAKE_MAJOR", 8)
            : attribute == cudaDevAttrComputeCapabilityMinor    ? setting("FAKE_MINOR", 6)
                                                                : gIntegrated;
        return fails("cudaDeviceGetAttribute") ? cudaErrorInvalidValue : cudaSuccess;
    }

    cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int)
    {
        if (fails("cudaStreamCreateWithFlags"))
        {
            return cudaErrorMemoryAllocation;
        }
        *stream = made(new CUstream_st);
        return cudaSuccess;
    }

    cudaError_t cudaStreamDestroy(cudaStream_t stream)
    {
        note("cudaStreamDestroy");
        gone(stream);
        delete stream;
        return cudaSuccess;
    }

    cudaError_t cudaStreamSynchronize(cudaStream_t stream)
    {
        bool const failed = fails("cudaStreamSynchronize");
        for (auto const& work : std::exchange(stream->queued, {}))
        {
            work();
        }
        return failed ? cudaErrorIllegalAddress : cudaSuccess;
    }

    cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode)
    {
        if (fails("cudaStreamBeginCapture"))
        {
            return cudaErrorStreamCaptureUnsupported;
        }
        stream->recorded = new Work;
        gCapturing = true;
        return cudaSuccess;
    }

    cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph)
    {
        bool const failed = fails("cudaStreamEndCapture");
        *graph = failed ? nullptr : made(new CUgraph_st{*stream->recorded});
        delete std::exchange(stream->recorded, nullptr);
        gCapturing = false;
        return failed ? cudaErrorStreamCaptureInvalidated : cudaSuccess;
    }

    cudaError_t cudaGraphInstantiate(cudaGraphExec_t* replay, cudaGraph_t graph, unsigned long long)
    {
        if (fails("cudaGraphInstantiate"))
        {
            return cudaErrorMemoryAllocation;
        }
        *replay = made(new CUgraphExec_st{graph->work});
        return cudaSuccess;
    }

    cudaError_t cudaGraphDestroy(cudaGraph_t graph)
    {
        if (graph == nullptr)
        {
            return cudaErrorInvalidValue;
        }
        note("cudaGraphDestroy");
        gone(graph);
        delete graph;
        return cudaSuccess;
    }

    cudaError_t cudaGraphLaunch(cudaGraphExec_t replay, cudaStream_t stream)
    {
        if (fails("cudaGraphLaunch"))
        {
            return cudaErrorLaunchFailure;
        }
        stream->queued.insert(stream->queued.end(), replay->work.begin(), replay->work.end());
        return cudaSuccess;
    }

    cudaError_t cudaGraphExecDestroy(cudaGraphExec_t replay)
    {
        note("cudaGraphExecDestroy");
        gone(replay);
        delete replay;
        return cudaSuccess;
    }

    cudaError_t cudaHostAlloc(void** address, size_t bytes, unsigned int flags)
    {
        return allocate(flags == cudaHostAllocMapped ? "cudaHostAlloc(mapped)" : "cudaHostAlloc", address, bytes);
    }

    cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned int)
    {
        *device = host;
        return fails("cudaHostGetDevicePointer") ? cudaErrorInvalidValue : cudaSuccess;
    }

    cudaError_t cudaFreeHost(void* address)
    {
        return release("cudaFreeHost", address);
    }

    cudaError_t cudaMalloc(void** address, size_t bytes)
    {
        return allocate("cudaMalloc", address, bytes);
    }

    cudaError_t cudaFree(void* address)
    {
        return release("cudaFree", address);
    }

    cudaError_t cudaMemcpyAsync(void* to, void const* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream)
    {
        if (fails(kind == cudaMemcpyHostToDevice ? "upload" : "download"))
        {
            return cudaErrorInvalidValue;
        }
        queue(stream,
            [=]
            {
                std::memcpy(to, from, bytes);
            });
        return cudaSuccess;
    }

} // extern "C"

// --- TensorRT ---------------------------------------------------------------------------------------------------------

namespace
{

nvinfer1::ILogger* gLogger = nullptr;

//! A plan is a line such as `32x64 u8x4 logits plugin`: size, kind of the mask, whether there are logits and a plugin.
struct Plan
{
    int32_t height{0};
    int32_t width{0};
    bool packed{false};
    bool logits{false};
    bool plugin{false};
};

void refuse(char const* text)
{
    gLogger->log(nvinfer1::ILogger::Severity::kERROR, text);
}

class FakeContext final : public nvinfer1::IExecutionContext, private refusing::VExecutionContext
{
public:
    explicit FakeContext(Plan const& plan)
        : mPlan(plan)
    {
        mImpl = made(this);
    }

    ~FakeContext() override
    {
        note("~context");
        gone(this);
    }

private:
    bool setInputShape(char const* name, Dims const& dims) noexcept override
    {
        return !fails("setInputShape") && std::string(name) == "image" && dims.nbDims == 4 && dims.d[0] == 1
            && dims.d[1] == mPlan.height && dims.d[2] == mPlan.width && dims.d[3] == 3;
    }

    Dims getTensorShape(char const*) const noexcept override
    {
        return nvinfer1::Dims3{1, mPlan.height, mPlan.packed ? mPlan.width / 4 : mPlan.width};
    }

    int64_t getMaxOutputSize(char const* name) const noexcept override
    {
        return std::string(name) == "image" ? -1 : int64_t{4} * mPlan.height * mPlan.width;
    }

    bool setTensorAddress(char const* name, void* address) noexcept override
    {
        mAddresses[name] = static_cast<uint8_t*>(address);
        return !fails("setTensorAddress");
    }

    bool enqueueV3(cudaStream_t stream) noexcept override
    {
        if (fails("enqueueV3"))
        {
            refuse("no kernel for this day");
            return false;
        }
        auto const pixels = static_cast<size_t>(mPlan.height) * static_cast<size_t>(mPlan.width);
        queue(stream,
            [pixels, image = mAddresses["image"], mask = mAddresses["mask"]]
            {
                for (size_t i = 0; i < pixels; ++i)
                {
                    mask[i] = static_cast<uint8_t>((image[3 * i] + 2 * image[3 * i + 1] + 4 * image[3 * i + 2]) % 3);
                }
            });
        return true;
    }

    Plan mPlan;
    std::map<std::string, uint8_t*> mAddresses;
};

class FakeEngine final : public nvinfer1::ICudaEngine, private refusing::VCudaEngine
{
public:
    explicit FakeEngine(Plan const& plan)
        : mPlan(plan)
    {
        mImpl = made(this);
    }

    ~FakeEngine() override
    {
        note("~engine");
        gone(this);
    }

private:
    nvinfer1::IExecutionContext* createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy) noexcept override
    {
        return fails("createExecutionContext") ? nullptr : new FakeContext(mPlan);
    }

    int32_t getNbIOTensors() const noexcept override
    {
        return mPlan.logits ? 3 : 2;
    }

    char const* getIOTensorName(int32_t index) const noexcept override
    {
        static char const* const names[] = {"image", "mask", "logits"};
        return names[index];
    }

    DataType getTensorDataType(char const* name) const noexcept override
    {
        return std::string(name) == "mask" && mPlan.packed ? DataType::kINT32 : DataType::kUINT8;
    }

    Plan mPlan;
};

class FakeRegistry final : public refusing::IPluginRegistry
{
private:
    PluginLibraryHandle loadLibrary(nvinfer1::AsciiChar const* path) noexcept override
    {
        gPlugin = fails("loadLibrary") ? "" : path;
        return gPlugin.empty() ? nullptr : &gPlugin;
    }

    nvinfer1::IPluginCreatorInterface* getCreator(
        nvinfer1::AsciiChar const*, nvinfer1::AsciiChar const*, nvinfer1::AsciiChar const*) noexcept override
    {
        return gPlugin.empty() ? nullptr : reinterpret_cast<nvinfer1::IPluginCreatorInterface*>(&gPlugin);
    }
};

class FakeRuntime final : public nvinfer1::IRuntime, private refusing::VRuntime
{
public:
    FakeRuntime()
    {
        mImpl = made(this);
    }

    ~FakeRuntime() override
    {
        note("~runtime");
        gone(this);
    }

private:
    void setEngineHostCodeAllowed(bool allowed) noexcept override
    {
        if (allowed)
        {
            note("allowHostCode");
        }
    }

    nvinfer1::ICudaEngine* deserializeCudaEngine(void const* data, size_t size) noexcept override
    {
        std::string const text(static_cast<char const*>(data), size);
        Plan plan;
        if (fails("deserializeCudaEngine") || std::sscanf(text.c_str(), "%dx%d", &plan.height, &plan.width) != 2)
        {
            refuse("Serialization assertion stdVersionRead == kSERIALIZATION_VERSION failed");
            return nullptr;
        }
        plan.packed = text.find("u8x4") != std::string::npos;
        plan.logits = text.find("logits") != std::string::npos;
        plan.plugin = text.find("plugin") != std::string::npos;
        if (plan.plugin && gPlugin.empty())
        {
            refuse("Cannot find plugin: NrdPatchDecodeMask");
            return nullptr;
        }
        return new FakeEngine(plan);
    }
};

} // namespace

extern "C"
{

    void* createInferRuntime_INTERNAL(void* logger, int32_t) noexcept
    {
        gLogger = static_cast<nvinfer1::ILogger*>(logger);
        return fails("createInferRuntime") ? nullptr : static_cast<nvinfer1::IRuntime*>(new FakeRuntime);
    }

    nvinfer1::IPluginRegistry* getPluginRegistry() noexcept
    {
        static FakeRegistry registry;
        return &registry;
    }

    int32_t getInferLibMajorVersion() noexcept
    {
        return setting("FAKE_TENSORRT", NV_TENSORRT_MAJOR);
    }

    int32_t getInferLibMinorVersion() noexcept
    {
        return NV_TENSORRT_MINOR;
    }

    int32_t getInferLibPatchVersion() noexcept
    {
        return NV_TENSORRT_PATCH;
    }

    int32_t getInferLibBuildVersion() noexcept
    {
        return NV_TENSORRT_BUILD;
    }

} // extern "C"
