/*
 * The kernels under the names that the launcher asks for: nvcc or NVRTC compiles this file into one cubin for each
 * architecture. Device code only.
 */
#include "logits_kernel.h"
#include "mask_kernel.h"

namespace nrd
{

//! `blocks` shall share a multiprocessor; the compiler keeps to the registers that this leaves to each thread (80 or
//! 96), the most without spills. Six blocks take 31 KB of shared memory each. The names: launch_plan.h, `kernelName`.
#define NRD_KERNELS(name, Shape, Dense, type, blocks)                                                                  \
    extern "C" __global__ void __launch_bounds__(kTHREADS, blocks)                                                     \
        nrd_logits_##name(__grid_constant__ LogitsArguments const arguments)                                           \
    {                                                                                                                  \
        decodeLogits<Shape, ElementType::type, Dense>(arguments);                                                      \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(kTHREADS, blocks)                                                     \
        nrd_mask_##name(__grid_constant__ MaskArguments const arguments)                                               \
    {                                                                                                                  \
        MaskBlock<Shape, ElementType::type>(arguments).draw<Dense>();                                                  \
    }

NRD_KERNELS(generic_fp32, AnyShape, Simt, kFLOAT, 5)
NRD_KERNELS(generic_fp16, AnyShape, Simt, kHALF, 5)
NRD_KERNELS(generic_bf16, AnyShape, Simt, kBFLOAT16, 5)
NRD_KERNELS(simt_fp32, ReleasedShape, Simt, kFLOAT, 6)
NRD_KERNELS(simt_fp16, ReleasedShape, Simt, kHALF, 6)
NRD_KERNELS(simt_bf16, ReleasedShape, Simt, kBFLOAT16, 6)
NRD_KERNELS(tensor_core_fp16, ReleasedShape, TensorCore, kHALF, 5)
NRD_KERNELS(tensor_core_bf16, ReleasedShape, TensorCore, kBFLOAT16, 5)

} // namespace nrd
