/*
 * Instructions that kernels use beside plain arithmetic, one row of 32 results each, for test_kernel_budget.py. One block of
 * two warps; warp 0 stores, warp 1 only takes part in the block's barriers.
 */
#include <cstdint>
#include <cuda_fp16.h>

namespace
{

__device__ uint32_t sharedAddress(void const* pointer)
{
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

//! Rows of results; each thread writes its own column.
struct Rows
{
    uint32_t* out;
    __device__ void put(uint32_t x)
    {
        *out = x;
        out += 32;
    }
    __device__ void put(float x)
    {
        put(__float_as_uint(x));
    }
};

__device__ void copies(Rows& rows, uint4* shared, uint32_t const* in, int lane)
{
    uint32_t const target = sharedAddress(shared + lane);
    uint32_t const* const source = in + 4 * lane;
    uint32_t const kept = lane % 5 * 4; // bytes; 0 to 16
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(target), "l"(source));
    asm volatile("cp.async.commit_group;");
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target + 512), "l"(source), "r"(kept));
    asm volatile("cp.async.commit_group;");
    asm volatile("cp.async.wait_group 1;");
    rows.put(shared[lane].x + shared[lane].y * 3 + shared[lane].z * 5 + shared[lane].w * 7);
    uint32_t const early = reinterpret_cast<uint32_t volatile*>(shared + 32 + lane)[3];
    rows.put(early); // of the second group, for which nobody has waited
    asm volatile("cp.async.wait_all;");
    uint4 const late = shared[32 + lane];
    rows.put(late.x + late.y * 3 + late.z * 5 + late.w * 7);
}

template <bool kBFLOAT16>
__device__ void products(Rows& rows, uint4* shared, int lane)
{
    uint32_t const address = sharedAddress(shared + lane);
    uint32_t a[4];
    uint32_t b[2];
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
        : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
        : "r"(address));
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
        : "=r"(b[0]), "=r"(b[1])
        : "r"(address));
    for (uint32_t const word : {a[0], a[1], a[2], a[3], b[0], b[1]})
    {
        rows.put(word);
    }
    float c[4] = {1.F, 2.F, 3.F, static_cast<float>(lane)};
    if (kBFLOAT16)
    {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
    else
    {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                     "{%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
    for (float const x : c)
    {
        rows.put(x);
    }
}

__device__ void exchanges(Rows& rows, uint32_t x, int lane)
{
    rows.put(__shfl_xor_sync(~0U, x, 5));
    rows.put(__shfl_up_sync(~0U, x, 3));
    rows.put(__shfl_down_sync(~0U, x, 3, 16));
    rows.put(__shfl_sync(~0U, x, lane * 7 & 31));
    rows.put(__ballot_sync(~0U, x % 3 == 0));
    rows.put(static_cast<uint32_t>(__any_sync(~0U, x == 77) + 2 * __all_sync(~0U, x != 77)));
    rows.put(__reduce_max_sync(~0U, x));
    rows.put(static_cast<uint32_t>(__reduce_min_sync(~0U, static_cast<int>(x))));
    rows.put(__match_any_sync(~0U, x % 4));
}

__device__ void numbers(Rows& rows, float x, float y, int n)
{
    float larger;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(x), "f"(y));
    rows.put(larger);
    rows.put(fmaxf(x, y));
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(x), "f"(y));
    rows.put(pair);
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(x), "f"(y));
    rows.put(pair);
    asm("cvt.rn.relu.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(x), "f"(y));
    rows.put(pair);
    rows.put(__half2float(__float2half(y)));
    rows.put(static_cast<float>(n));
    rows.put(static_cast<uint32_t>(static_cast<int>(y)));
    rows.put(static_cast<uint32_t>(n / 7) + 1000U * static_cast<uint32_t>(n % 7));
    rows.put(static_cast<uint32_t>(__popc(n) + 100 * __ffs(n) + 10000 * __clz(n)));
    rows.put(__byte_perm(static_cast<uint32_t>(n) * 0x01234567U, 0x89abcdefU, 0x7520));
    rows.put(y / 3.F);
    rows.put(static_cast<uint32_t>(static_cast<uint64_t>(n) * 0x123456789ULL >> 20));
}

} // namespace

extern "C" __global__ void operations(uint32_t const* in, uint32_t* out)
{
    extern __shared__ uint4 shared[];
    __shared__ uint32_t counter;
    int const lane = static_cast<int>(threadIdx.x % 32);
    counter = 0;
    int const any = __syncthreads_or(threadIdx.x == 40);
    int const all = __syncthreads_and(threadIdx.x < 40);
    int const count = __syncthreads_count(threadIdx.x % 5 == 0);
    atomicAdd(&counter, 3U);
    __syncthreads();
    if (threadIdx.x >= 32)
    {
        return;
    }
    Rows rows{out + lane};
    rows.put(
        static_cast<uint32_t>(any != 0) + 2U * static_cast<uint32_t>(all != 0) + 4U * static_cast<uint32_t>(count));
    rows.put(counter);
    copies(rows, shared, in, lane);
    products<false>(rows, shared, lane);
    products<true>(rows, shared, lane);
    exchanges(rows, in[lane], lane);
    numbers(rows, lane == 9 ? __int_as_float(0x7fc00000) : -2.F + 0.37F * static_cast<float>(lane),
        1.5F - 0.21F * static_cast<float>(lane), lane * 1237 + 5);
}
