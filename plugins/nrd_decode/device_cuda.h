/*
 * What the kernels need from CUDA, under the names that the emulation (emulation.h) gives on the host.
 */
#pragma once

#include "decode_problem.h"

#define NRD_DEVICE __device__ __forceinline__

namespace nrd::device
{

NRD_DEVICE int32_t threadIndex()
{
    return static_cast<int32_t>(threadIdx.x);
}

NRD_DEVICE uint32_t blockIndex()
{
    return blockIdx.x;
}

//! Dynamic shared memory, aligned to 16 bytes.
NRD_DEVICE float* sharedMemory()
{
    extern __shared__ uint4 nrdSharedMemory[];
    return reinterpret_cast<float*>(nrdSharedMemory);
}

NRD_DEVICE void syncBlock()
{
    __syncthreads();
}

//! Add to a counter in shared memory; return what it was.
NRD_DEVICE int32_t fetchAdd(int32_t* counter, int32_t value)
{
    return atomicAdd(counter, value);
}

//! accumulator += a * b for a 16x8 and an 8x8 tile in tf32; the warp's lanes hold the fragments as PTX lays them out.
NRD_DEVICE void multiplyTiles(float (&accumulator)[4], uint32_t const (&a)[4], uint32_t const (&b)[2])
{
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(accumulator[0]), "+f"(accumulator[1]), "+f"(accumulator[2]), "+f"(accumulator[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    __trap(); // never launched there: see fitsDevice()
#endif
}

} // namespace nrd::device
