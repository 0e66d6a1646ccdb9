/*
 * Owners of CUDA objects. A failed call throws; destructors never do.
 */
#pragma once

#include "../decode_kernel.h"

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

namespace nrd::bench
{

class CudaError : public std::runtime_error
{
public:
    using std::runtime_error::runtime_error;
};

inline void check(cudaError_t status, std::string const& action)
{
    if (status != cudaSuccess)
    {
        throw CudaError(action + ": " + cudaGetErrorString(status));
    }
}

//! Of the decode's own launchers.
inline void check(CUresult status, std::string const& action)
{
    if (status != CUDA_SUCCESS)
    {
        throw CudaError(action + ": " + errorName(status));
    }
}

//! Device memory.
class Memory
{
public:
    explicit Memory(size_t bytes)
    {
        check(cudaMalloc(&mData, bytes), "cudaMalloc of " + std::to_string(bytes) + " bytes");
    }
    Memory(Memory&& other) noexcept
        : mData(std::exchange(other.mData, nullptr))
    {
    }
    Memory& operator=(Memory&&) = delete;
    ~Memory()
    {
        cudaFree(mData);
    }

    unsigned char* at(size_t offset = 0) const
    {
        return static_cast<unsigned char*>(mData) + offset;
    }

private:
    void* mData{nullptr};
};

class Stream
{
public:
    Stream()
    {
        check(cudaStreamCreateWithFlags(&mStream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    }
    Stream(Stream&&) = delete;
    ~Stream()
    {
        cudaStreamDestroy(mStream);
    }

    operator cudaStream_t() const
    {
        return mStream;
    }
    void synchronize() const
    {
        check(cudaStreamSynchronize(mStream), "cudaStreamSynchronize");
    }

private:
    cudaStream_t mStream{nullptr};
};

class Event
{
public:
    Event()
    {
        check(cudaEventCreate(&mEvent), "cudaEventCreate");
    }
    Event(Event&& other) noexcept
        : mEvent(std::exchange(other.mEvent, nullptr))
    {
    }
    Event& operator=(Event&&) = delete;
    ~Event()
    {
        if (mEvent != nullptr)
        {
            cudaEventDestroy(mEvent);
        }
    }

    void record(Stream const& stream) const
    {
        check(cudaEventRecord(mEvent, stream), "cudaEventRecord");
    }

    //! Microseconds from `start`; both must have passed.
    double since(Event const& start) const
    {
        float milliseconds = 0.F;
        check(cudaEventElapsedTime(&milliseconds, start.mEvent, mEvent), "cudaEventElapsedTime");
        return 1e3 * static_cast<double>(milliseconds);
    }

private:
    cudaEvent_t mEvent{nullptr};
};

//! What `body` queues on a stream, recorded to be replayed.
class Graph
{
public:
    template <class Body>
    Graph(Stream const& stream, Body const& body)
    {
        check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
        cudaGraph_t recorded = nullptr;
        try
        {
            body();
        }
        catch (...)
        {
            cudaStreamEndCapture(stream, &recorded); // a stream that still captures could not even be synchronised
            destroy(recorded);
            throw;
        }
        check(cudaStreamEndCapture(stream, &recorded), "cudaStreamEndCapture");
        cudaError_t const status = cudaGraphInstantiate(&mGraph, recorded, 0);
        destroy(recorded);
        check(status, "cudaGraphInstantiate");
    }
    Graph(Graph&&) = delete;
    ~Graph()
    {
        cudaGraphExecDestroy(mGraph);
    }

    void launch(Stream const& stream) const
    {
        check(cudaGraphLaunch(mGraph, stream), "cudaGraphLaunch");
    }

private:
    static void destroy(cudaGraph_t graph)
    {
        if (graph != nullptr)
        {
            cudaGraphDestroy(graph);
        }
    }

    cudaGraphExec_t mGraph{nullptr};
};

//! Queue a kernel of the benchmark's own.
template <class... T>
void launchKernel(
    void (*kernel)(T...), int64_t blocks, int32_t threads, Stream const& stream, std::common_type_t<T>... arguments)
{
    void* addresses[] = {static_cast<void*>(&arguments)..., nullptr};
    check(cudaLaunchKernel(
              kernel, dim3(static_cast<uint32_t>(blocks)), dim3(static_cast<uint32_t>(threads)), addresses, 0, stream),
        "cudaLaunchKernel");
}

} // namespace nrd::bench
