/*
 * The kernels under the names that the launcher asks for: nvcc or NVRTC compiles this file into one cubin for each
 * architecture. Device code only.
 */
#include "generic_kernel.h"

namespace nrd
{

//! `blocks` shall share a multiprocessor; the compiler keeps to the registers that this leaves to each thread, 96 or 80.
//! The names: launch_plan.h, `kernelName`.
#define NRD_LOGITS(name, blocks, ...)                                                                                  \
    extern "C" __global__ void __launch_bounds__(kTHREADS, blocks)                                                     \
        nrd_logits_##name(__grid_constant__ LogitsArguments const arguments)                                           \
    {                                                                                                                  \
        __VA_ARGS__(arguments);                                                                                        \
    }
#define NRD_MASK(name, blocks, ...)                                                                                    \
    extern "C" __global__ void __launch_bounds__(kTHREADS, blocks)                                                     \
        nrd_mask_##name(__grid_constant__ MaskArguments const arguments)                                               \
    {                                                                                                                  \
        __VA_ARGS__(arguments).draw();                                                                                 \
    }
#define NRD_ANY_SHAPE(name, type)                                                                                      \
    NRD_LOGITS(generic_##name, 5, drawGenericLogits<ElementType::type>)                                                \
    NRD_MASK(generic_##name, 5, GenericMask<ElementType::type>)
#define NRD_CLASSES(classes, blocks)                                                                                   \
    NRD_MASK(tensor_core_fp16_##classes, blocks, MaskBlock<ElementType::kHALF, classes, true>)                         \
    NRD_MASK(tensor_core_bf16_##classes, blocks, MaskBlock<ElementType::kBFLOAT16, classes, true>)
#define NRD_RELEASED(kind, name, blocks, type, tensorCores)                                                            \
    NRD_LOGITS(kind##_##name, 5, drawLogits<ElementType::type, tensorCores>)                                           \
    NRD_MASK(kind##_##name, blocks, MaskBlock<ElementType::type, 0, tensorCores>)

NRD_ANY_SHAPE(fp32, kFLOAT)
NRD_ANY_SHAPE(fp16, kHALF)
NRD_ANY_SHAPE(bf16, kBFLOAT16)
NRD_RELEASED(simt, fp32, 4, kFLOAT, false)
NRD_RELEASED(simt, fp16, 6, kHALF, false)
NRD_RELEASED(simt, bf16, 6, kBFLOAT16, false)
NRD_RELEASED(tensor_core, fp16, 5, kHALF, true)
NRD_RELEASED(tensor_core, bf16, 5, kBFLOAT16, true)
NRD_CLASSES(11, 6)
NRD_CLASSES(19, 6)
NRD_CLASSES(59, 5)
NRD_CLASSES(60, 5)
NRD_CLASSES(150, 5)

} // namespace nrd
