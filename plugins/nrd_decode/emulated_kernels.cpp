#include "emulated_kernels.h"

#include "launch_plan.h"

#include <stdexcept>

namespace nrd
{
namespace
{

emulation::Launch plan(DecodeProblem const& problem, Variant variant, uint64_t seed, BlockRange blocks)
{
    int64_t const end = blocks.end < 0 ? countBlocks(problem) : blocks.end;
    return {static_cast<uint32_t>(blocks.first), static_cast<uint32_t>(end), kTHREADS,
        sharedBytes(problem.shape, variant), seed};
}

void require(bool fits)
{
    if (!fits)
    {
        throw std::invalid_argument("emulation: this variant does not fit the shape or the element type");
    }
}

} // namespace

void emulatePatchDecode(DecodeProblem const& problem, void* logits, Variant variant, uint64_t seed, BlockRange blocks)
{
    require(variant != Variant::kAUTO && fitsLogits(problem.shape, problem.type, variant));
    LogitsArguments const arguments{problem, logits};
    withKernel(problem.type, variant,
        [&](auto kernel)
        {
            using K = decltype(kernel);
            emulation::run(plan(problem, variant, seed, blocks),
                [&]
                {
                    decodeLogits<typename K::ShapeType, K::kELEMENT, typename K::DenseType>(arguments);
                });
        });
}

void emulatePatchDecodeMask(DecodeProblem const& problem, void* mask, MaskType maskType, Variant variant, bool prune,
    uint64_t seed, BlockRange blocks)
{
    require(variant != Variant::kAUTO && fitsMask(problem.shape, problem.type, variant));
    MaskArguments const arguments{problem, mask, maskType, prune, isRetained(variant)};
    withKernel(problem.type, variant,
        [&](auto kernel)
        {
            using K = decltype(kernel);
            emulation::run(plan(problem, variant, seed, blocks),
                [&]
                {
                    MaskBlock<typename K::ShapeType, K::kELEMENT>(arguments).template draw<typename K::DenseType>();
                });
        });
}

} // namespace nrd
