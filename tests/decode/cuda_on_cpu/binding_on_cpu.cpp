// The PyTorch binding of the kernels on CPU tensors: its checks and its reading of strides need no GPU. Launches go to
// the host reference, or to the emulated kernel where a variant is asked for by name. torch.ops.nrd_emulation.set chooses
// the order of its threads and its first block.
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

namespace
{

uint64_t seed = 1;
nrd::BlockRange blocks;

} // namespace

TORCH_LIBRARY(nrd_emulation, library)
{
    library.def("set",
        [](int64_t newSeed, int64_t firstBlock)
        {
            seed = static_cast<uint64_t>(newSeed);
            blocks.first = firstBlock;
        });
}

namespace nrd
{

bool supportsLogits(DecodeShape const& shape, ElementType type, Variant variant)
{
    return fits(DecodeOp::kLOGITS, shape, type, variant);
}

bool supportsMask(DecodeShape const& shape, ElementType type, Variant variant)
{
    return fits(DecodeOp::kMASK, shape, type, variant);
}

CUresult prepare()
{
    return CUDA_SUCCESS;
}

CUresult patchDecode(DecodeProblem const& problem, void* logits, Variant variant, CUstream)
{
    if (variant == Variant::kAUTO)
    {
        hostPatchDecode(problem, logits);
    }
    else
    {
        emulatePatchDecode(problem, logits, variant, seed, blocks);
    }
    return CUDA_SUCCESS;
}

CUresult patchDecodeMask(
    DecodeProblem const& problem, void* mask, MaskType maskType, Variant variant, bool prune, CUstream)
{
    if (variant == Variant::kAUTO)
    {
        hostPatchDecodeMask(problem, mask, maskType, prune);
    }
    else
    {
        emulatePatchDecodeMask(problem, mask, maskType, variant, prune, seed, blocks);
    }
    return CUDA_SUCCESS;
}

char const* errorName(CUresult status)
{
    return status == CUDA_ERROR_INVALID_VALUE ? "CUDA_ERROR_INVALID_VALUE" : "CUDA_ERROR_NO_BINARY_FOR_GPU";
}

} // namespace nrd
