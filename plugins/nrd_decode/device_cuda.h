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
    auto const index = static_cast<int32_t>(threadIdx.x);
    __builtin_assume(index >= 0 && index < 1024); // spares the signs of quotients
    return index;
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

//! Whether any thread of the block gives true; a barrier.
NRD_DEVICE bool syncBlockAny(bool value)
{
    return __syncthreads_or(value) != 0;
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800

//! Copy 16 bytes to shared memory; both addresses are multiples of 16. They are there after `waitCopies` of the same
//! thread.
NRD_DEVICE void copyAsync(void* shared, void const* global)
{
    asm volatile(
        "cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
        "l"(global)
        : "memory");
}

NRD_DEVICE void waitCopies()
{
    asm volatile("cp.async.wait_all;" ::: "memory");
}

//! The largest value in a warp, for all of its lanes.
NRD_DEVICE uint32_t warpMaximum(uint32_t value)
{
    return __reduce_max_sync(0xffffffffU, value);
}

//! A bit for each lane of a warp that gives true.
NRD_DEVICE uint32_t warpBallot(bool value)
{
    return __ballot_sync(0xffffffffU, value);
}

//! What the lane has whose number differs from this one's by the bits of `lanes`.
NRD_DEVICE float warpExchange(float value, int32_t lanes)
{
    return __shfl_xor_sync(0xffffffffU, value, lanes);
}

//! Four 8x8 matrices of 16-bit numbers from shared memory. Lane l gives the row l % 8 of matrix l / 8, 16 bytes at a
//! multiple of 16; lane 4 g + t gets two neighbours of row g of each matrix, 2 t and 2 t + 1.
NRD_DEVICE void loadMatrices(uint32_t (&pairs)[4], void const* row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
        : "=r"(pairs[0]), "=r"(pairs[1]), "=r"(pairs[2]), "=r"(pairs[3])
        : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
        : "memory");
}

//! accumulator += a * b for a 16x16 and a 16x8 tile; the warp's lanes hold the fragments as PTX lays them out.
template <ElementType kTYPE>
NRD_DEVICE void multiplyTiles(float (&accumulator)[4], uint32_t const (&a)[4], uint32_t const (&b)[2])
{
    if constexpr (kTYPE == ElementType::kHALF)
    {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(accumulator[0]), "+f"(accumulator[1]), "+f"(accumulator[2]), "+f"(accumulator[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
    else
    {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(accumulator[0]), "+f"(accumulator[1]), "+f"(accumulator[2]), "+f"(accumulator[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
}

#else // compute capability 7.5

NRD_DEVICE void copyAsync(void* shared, void const* global)
{
    *static_cast<uint4*>(shared) = *static_cast<uint4 const*>(global);
}

NRD_DEVICE void waitCopies() { }

// Kernels on tensor cores are never launched there: see fitsDevice().

NRD_DEVICE uint32_t warpMaximum(uint32_t)
{
    __trap();
    return 0;
}

NRD_DEVICE uint32_t warpBallot(bool)
{
    __trap();
    return 0;
}

NRD_DEVICE float warpExchange(float, int32_t)
{
    __trap();
    return 0.F;
}

NRD_DEVICE void loadMatrices(uint32_t (&)[4], void const*)
{
    __trap();
}

template <ElementType kTYPE>
NRD_DEVICE void multiplyTiles(float (&)[4], uint32_t const (&)[4], uint32_t const (&)[2])
{
    __trap();
}

#endif

} // namespace nrd::device
