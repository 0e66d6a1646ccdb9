// The PyTorch binding of the kernels on CPU tensors: its checks and its reading of strides need no GPU. Launches go to
// the host reference, or to the emulated kernel where a variant is asked for by name.
#include <ATen/MemoryOverlap.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#define CUDA CPU
#define is_cuda is_cpu
#include "torch/binding.cpp"
#undef CUDA
#undef is_cuda

#include "emulated_kernels.h"
#include "host_reference.h"
#include "launch_plan.h"

namespace nrd
{

bool supportsLogits(DecodeShape const& shape, ElementType type, Variant variant)
{
    return fitsLogits(shape, type, variant);
}

bool supportsMask(DecodeShape const& shape, ElementType type, Variant variant)
{
    return fitsMask(shape, type, variant);
}

cudaError_t prepare()
{
    return cudaSuccess;
}

cudaError_t patchDecode(DecodeProblem const& problem, void* logits, Variant variant, cudaStream_t)
{
    if (variant == Variant::kAUTO)
    {
        hostPatchDecode(problem, logits);
    }
    else
    {
        emulatePatchDecode(problem, logits, variant, 1);
    }
    return cudaSuccess;
}

cudaError_t patchDecodeMask(
    DecodeProblem const& problem, void* mask, MaskType maskType, Variant variant, bool prune, cudaStream_t)
{
    if (variant == Variant::kAUTO)
    {
        hostPatchDecodeMask(problem, mask, maskType, prune);
    }
    else
    {
        emulatePatchDecodeMask(problem, mask, maskType, variant, prune, 1);
    }
    return cudaSuccess;
}

} // namespace nrd
