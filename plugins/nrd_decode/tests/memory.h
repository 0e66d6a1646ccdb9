/*
 * Memory that launches work on: a GPU's, or with NRD_TEST_ON_HOST the host's, where the driver is that of
 * fake_driver.cpp.
 */
#pragma once

#include "decode_data.h"

#include <cuda_runtime_api.h>

#include <cstdlib>
#include <memory>

namespace nrd::test
{

#ifdef NRD_TEST_ON_HOST
constexpr bool kON_HOST = true;
#else
constexpr bool kON_HOST = false;
#endif

//! End the program: after a failed CUDA call no later result means anything.
inline void checkCuda(cudaError_t status, char const* action)
{
    if (status != cudaSuccess)
    {
        std::fprintf(stderr, "%s: %s\n", action, cudaGetErrorString(status));
        std::exit(1);
    }
}

inline bool hasDevice()
{
    int count = 0;
    bool const found = cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
    static_cast<void>(cudaGetLastError());
    return found;
}

inline void synchronize()
{
    if (!kON_HOST)
    {
        checkCuda(cudaDeviceSynchronize(), "kernel");
    }
}

class Buffer
{
public:
    explicit Buffer(size_t size)
        : mSize(size)
    {
        if (kON_HOST)
        {
            mData = std::malloc(size);
        }
        else
        {
            checkCuda(cudaMalloc(&mData, size), "cudaMalloc");
        }
    }

    explicit Buffer(Bytes const& bytes)
        : Buffer(bytes.size())
    {
        upload(bytes);
    }

    Buffer(Buffer const&) = delete;
    Buffer& operator=(Buffer const&) = delete;

    ~Buffer()
    {
        if (kON_HOST)
        {
            std::free(mData);
        }
        else
        {
            cudaFree(mData);
        }
    }

    void* data(size_t offset = 0) const
    {
        return static_cast<unsigned char*>(mData) + offset;
    }

    void upload(Bytes const& bytes)
    {
        if (kON_HOST)
        {
            std::memcpy(mData, bytes.data(), bytes.size());
        }
        else
        {
            checkCuda(cudaMemcpy(mData, bytes.data(), bytes.size(), cudaMemcpyHostToDevice), "upload");
        }
    }

    Bytes download() const
    {
        Bytes bytes(mSize);
        if (kON_HOST)
        {
            std::memcpy(bytes.data(), mData, mSize);
        }
        else
        {
            checkCuda(cudaMemcpy(bytes.data(), mData, mSize, cudaMemcpyDeviceToHost), "download");
        }
        return bytes;
    }

private:
    size_t mSize;
    void* mData{nullptr};
};

//! A poisoned output between guards.
class Output
{
public:
    explicit Output(size_t size, unsigned char poison = 0xA5)
        : mSize(size)
        , mPoison(poison)
        , mBuffer(size + 2 * kGUARD)
    {
        mBuffer.upload(Bytes(size + 2 * kGUARD, poison));
    }

    void* data() const
    {
        return mBuffer.data(kGUARD);
    }

    //! The result. `intact` is whether nothing was written around it.
    Bytes download(bool& intact) const
    {
        Bytes const all = mBuffer.download();
        auto const begin = all.begin() + kGUARD;
        auto const end = begin + static_cast<std::ptrdiff_t>(mSize);
        auto const isPoison = [this](unsigned char byte)
        {
            return byte == mPoison;
        };
        intact = std::all_of(all.begin(), begin, isPoison) && std::all_of(end, all.end(), isPoison);
        return {begin, end};
    }

private:
    static constexpr std::ptrdiff_t kGUARD = 256; // keeps the output's alignment

    size_t mSize;
    unsigned char mPoison;
    Buffer mBuffer;
};

} // namespace nrd::test
