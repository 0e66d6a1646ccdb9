/*
 * The launchers of decode_kernel.h with the emulated kernels and in host memory, so that the programs for a GPU run
 * without one. Every variant is there: the emulation has no compute capability.
 */
#include "host_launchers.h"

#include "decode_kernel.h"
#include "emulated_kernels.h"
#include "launch_plan.h"

namespace nrd
{
namespace
{

constexpr uint64_t kSEED = 1; // of the order in which a block's threads run

Variant gLaunched = Variant::kAUTO;

bool isValid(DecodeProblem const& problem)
{
    return problem.batch > 0 && problem.rows > 0 && problem.columns > 0 && countBlocks(problem) <= INT32_MAX;
}

} // namespace

bool supportsLogits(DecodeShape const& shape, ElementType type, Variant variant)
{
    return fitsLogits(shape, type, variant);
}

bool supportsMask(DecodeShape const& shape, ElementType type, Variant variant)
{
    return fitsMask(shape, type, variant);
}

Variant test::launchedVariant()
{
    return gLaunched;
}

cudaError_t prepare()
{
    return cudaSuccess;
}

cudaError_t patchDecode(DecodeProblem const& problem, void* logits, Variant variant, cudaStream_t)
{
    if (!fitsLogits(problem.shape, problem.type, variant) || !isValid(problem))
    {
        return cudaErrorInvalidValue;
    }
    gLaunched = variant;
    DecodeShape shape = problem.shape;
    shape.upsample = 4; // of no meaning for logits
    emulatePatchDecode(problem, logits, resolve(variant, isReleased(shape)), kSEED);
    return cudaSuccess;
}

cudaError_t patchDecodeMask(
    DecodeProblem const& problem, void* mask, MaskType maskType, Variant variant, bool prune, cudaStream_t)
{
    if (!fitsMask(problem.shape, problem.type, variant) || !isValid(problem))
    {
        return cudaErrorInvalidValue;
    }
    gLaunched = variant;
    emulatePatchDecodeMask(problem, mask, maskType, resolve(variant, isReleased(problem.shape)), prune, kSEED);
    return cudaSuccess;
}

} // namespace nrd
