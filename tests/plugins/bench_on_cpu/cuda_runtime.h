// What plugins/nrd_decode/bench needs of CUDA, for a build without it: memory is the host's, work is done when it is
// queued, and a clock of its own moves with it. Recorded launches only move the clock, so timings are known.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <utility>

#define __global__
#define NRD_BENCH_CLOCK_US fake::now

enum cudaError_t
{
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorNoDevice = 100,
};

enum cudaMemcpyKind
{
    cudaMemcpyHostToDevice = 1,
    cudaMemcpyDeviceToHost = 2,
    cudaMemcpyDeviceToDevice = 3,
};

enum cudaStreamCaptureMode
{
    cudaStreamCaptureModeThreadLocal = 1,
};

enum cudaDeviceAttr
{
    cudaDevAttrClockRate = 13,
    cudaDevAttrMemoryClockRate = 36,
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};

constexpr unsigned cudaStreamNonBlocking = 1;

struct cudaDeviceProp
{
    char name[256];
    int major;
    int minor;
    int multiProcessorCount;
    int l2CacheSize;
    size_t totalGlobalMem;
};

struct dim3
{
    unsigned x;
    explicit dim3(unsigned value = 1)
        : x(value)
    {
    }
};

using cudaStream_t = void*;
using cudaEvent_t = double*; // when it was recorded
using cudaGraph_t = double*; // how long it takes
using cudaGraphExec_t = double*;

namespace fake
{

inline double now = 0; // microseconds
inline bool recording = false;
inline double recorded = 0;
inline dim3 block;
inline dim3 thread;

//! Let `microseconds` pass, or be recorded; return whether the work itself is to be done.
inline bool queue(double microseconds)
{
    (recording ? recorded : now) += microseconds;
    return !recording;
}

} // namespace fake

inline dim3& blockIdx = fake::block;
inline dim3& threadIdx = fake::thread;

inline char const* cudaGetErrorString(cudaError_t status)
{
    return status == cudaErrorNoDevice ? "no CUDA-capable device is detected" : "fake error";
}

inline cudaError_t cudaGetDeviceCount(int* count)
{
    *count = std::getenv("FAKE_NO_DEVICE") == nullptr ? 1 : 0;
    return *count == 1 ? cudaSuccess : cudaErrorNoDevice;
}

inline cudaError_t cudaGetDevice(int* device)
{
    *device = 0;
    return cudaSuccess;
}

inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int)
{
    *properties = {"Fake \"GPU\"", 9, 0, 100, 1 << 16, size_t{1} << 24};
    return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int)
{
    *value = attribute == cudaDevAttrClockRate ? 1000000 : attribute == cudaDevAttrMemoryClockRate ? 2000000 : 101376;
    return cudaSuccess;
}

inline cudaError_t cudaDriverGetVersion(int* version)
{
    *version = 13010;
    return cudaSuccess;
}

inline cudaError_t cudaRuntimeGetVersion(int* version)
{
    *version = 13000;
    return cudaSuccess;
}

inline cudaError_t cudaMalloc(void** address, size_t bytes)
{
    *address = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
    return *address != nullptr ? cudaSuccess : cudaErrorMemoryAllocation;
}

inline cudaError_t cudaFree(void* address)
{
    std::free(address);
    return cudaSuccess;
}

inline cudaError_t cudaMemcpyAsync(void* target, void const* source, size_t bytes, cudaMemcpyKind, cudaStream_t)
{
    if (fake::queue(2e-6 * static_cast<double>(bytes))) // 1 TB/s read and written
    {
        std::memcpy(target, source, bytes);
    }
    return cudaSuccess;
}

inline cudaError_t cudaMemcpy(void* target, void const* source, size_t bytes, cudaMemcpyKind kind)
{
    return cudaMemcpyAsync(target, source, bytes, kind, nullptr);
}

inline cudaError_t cudaMemsetAsync(void* target, int value, size_t bytes, cudaStream_t)
{
    std::memset(target, value, bytes);
    return cudaSuccess;
}

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned)
{
    *stream = nullptr;
    return cudaSuccess;
}

inline cudaError_t cudaStreamDestroy(cudaStream_t)
{
    return cudaSuccess;
}

inline cudaError_t cudaStreamSynchronize(cudaStream_t)
{
    return fake::recording ? cudaErrorInvalidValue : cudaSuccess;
}

inline cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode)
{
    fake::recording = true;
    fake::recorded = 0;
    return cudaSuccess;
}

inline cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph)
{
    fake::recording = false;
    *graph = new double(fake::recorded);
    return cudaSuccess;
}

inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned)
{
    *executable = new double(*graph);
    return cudaSuccess;
}

inline cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    delete graph;
    return cudaSuccess;
}

inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable)
{
    delete executable;
    return cudaSuccess;
}

inline cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t)
{
    fake::now += *executable;
    return cudaSuccess;
}

inline cudaError_t cudaEventCreate(cudaEvent_t* event)
{
    *event = new double(0);
    return cudaSuccess;
}

inline cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    delete event;
    return cudaSuccess;
}

inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t)
{
    *event = fake::now;
    return cudaSuccess;
}

inline cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end)
{
    *milliseconds = static_cast<float>((*end - *start) * 1e-3);
    return cudaSuccess;
}

//! The clock runs at 900 MHz.
inline long long clock64()
{
    fake::now += 1000;
    return static_cast<long long>(fake::now * 900);
}

//! Threads one after the other.
template <class... T, size_t... kINDEX>
void fakeThreads(void (*kernel)(T...), dim3 grid, dim3 block, void** arguments, std::index_sequence<kINDEX...>)
{
    for (fake::block.x = 0; fake::block.x < grid.x; ++fake::block.x)
    {
        for (fake::thread.x = 0; fake::thread.x < block.x; ++fake::thread.x)
        {
            kernel(*static_cast<T*>(arguments[kINDEX])...);
        }
    }
}

template <class... T>
cudaError_t cudaLaunchKernel(void (*kernel)(T...), dim3 grid, dim3 block, void** arguments, size_t, cudaStream_t)
{
    if (fake::queue(1))
    {
        fakeThreads(kernel, grid, block, arguments, std::index_sequence_for<T...>{});
    }
    return cudaSuccess;
}
