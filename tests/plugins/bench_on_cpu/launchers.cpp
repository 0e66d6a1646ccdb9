// The launchers of the decode on a CPU, for the benchmark: the emulated kernels, with errors on demand. FAKE_FAULT names
// one: value, line 80, unwritten, outside, unsteady; it befalls the variant whose number FAKE_VARIANT holds.
#include "cuda_runtime.h"
#include "decode_kernel.h"
#include "emulated_kernels.h"
#include "host_reference.h"
#include "launch_plan.h"

#include <string>

namespace nrd
{
namespace
{

//! The error that was asked for of launches of `variant`, or an empty text.
std::string faultOf(Variant variant)
{
    char const* const number = std::getenv("FAKE_VARIANT");
    char const* const name = std::getenv("FAKE_FAULT");
    bool const isMeant = name != nullptr && number != nullptr && std::atoi(number) == static_cast<int>(variant);
    return isMeant ? name : "";
}

//! Make a result wrong; `before` was its first byte before the launch, `width` is that of the mask.
void spoil(unsigned char* output, std::string const& fault, unsigned char before, int64_t width)
{
    static int launches = 0;
    if (fault == "line 80") // in the third row of patches
    {
        output += 80 * width;
    }
    if (fault == "outside")
    {
        output[-1] = 0;
    }
    else if (fault == "unwritten")
    {
        output[0] = before;
    }
    else if (fault == "value" || fault == "line 80" || (fault == "unsteady" && ++launches % 2 == 0))
    {
        output[0] = output[0] == 0 ? 1 : 0;
    }
}

//! The time a launch takes: linear in the patches and in the classes, so that a fit is exact; or FAKE_LAUNCH_US.
double microsecondsOf(DecodeProblem const& problem)
{
    if (char const* const given = std::getenv("FAKE_LAUNCH_US"); given != nullptr)
    {
        return std::atof(given);
    }
    return 3.0 + 0.01 * problem.batch * problem.rows * problem.columns + 0.25 * problem.shape.numClasses;
}

template <class Body>
CUresult perform(DecodeProblem const& problem, void* output, Variant variant, Body const& body)
{
    if (fake::queue(microsecondsOf(problem)))
    {
        auto* const bytes = static_cast<unsigned char*>(output);
        unsigned char const before = bytes[0];
        body();
        spoil(bytes, faultOf(variant), before, int64_t{32} * problem.columns);
    }
    return CUDA_SUCCESS;
}

} // namespace

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
    return std::getenv("FAKE_OTHER_DEVICE") == nullptr ? CUDA_SUCCESS : CUDA_ERROR_NO_BINARY_FOR_GPU;
}

CUresult patchDecode(DecodeProblem const& problem, void* logits, Variant variant, CUstream)
{
    return perform(problem, logits, variant,
        [&]
        {
            emulatePatchDecode(problem, logits, variant, 1);
        });
}

CUresult patchDecodeMask(
    DecodeProblem const& problem, void* mask, MaskType maskType, Variant variant, bool prune, CUstream)
{
    return perform(problem, mask, variant,
        [&]
        {
            if (variant == Variant::kAUTO)
            {
                hostPatchDecodeMask(problem, mask, maskType, prune);
                return;
            }
            emulatePatchDecodeMask(problem, mask, maskType, variant, prune, 1);
        });
}

char const* errorName(CUresult)
{
    return "fake error";
}

} // namespace nrd
