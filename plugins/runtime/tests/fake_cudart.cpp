#include "fake_gpu.h"

#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>
#include <string>
#include <utility>
#include <vector>

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

} // namespace

namespace nrd::test
{

void note(char const* name)
{
    gCalls += (gCalls.empty() ? "" : " ") + std::string(name);
}

bool fails(char const* name)
{
    note(name);
    return gFailing == name || (gFailAt > 0 && --gFailAt == 0);
}

void made(void const* thing)
{
    gLive.insert(thing);
}

void gone(void const* thing)
{
    if (gLive.erase(thing) != 1)
    {
        std::fprintf(stderr, "released twice, or never made\n");
        std::abort();
    }
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

} // namespace nrd::test

using namespace nrd::test;

namespace
{

//! Memory is not to be had while a stream records.
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
    *address = std::malloc(bytes);
    made(*address);
    return cudaSuccess;
}

cudaError_t release(char const* name, void* address)
{
    note(name);
    gone(address);
    std::free(address);
    return cudaSuccess;
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
        *stream = new CUstream_st;
        made(*stream);
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
        if (!failed)
        {
            *graph = new CUgraph_st{*stream->recorded};
            made(*graph);
        }
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
        *replay = new CUgraphExec_st{graph->work};
        made(*replay);
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
