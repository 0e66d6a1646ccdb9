#include "emulated_kernels.h"

#include "launch_plan.h"

#include <stdexcept>
#include <type_traits>

namespace nrd
{
namespace
{

template <ElementType kTYPE>
using TypeTag = std::integral_constant<ElementType, kTYPE>;

//! Call `action` with the type as a constant.
template <class Action>
void withType(ElementType type, Action const& action)
{
    switch (type)
    {
    case ElementType::kFLOAT:
        return action(TypeTag<ElementType::kFLOAT>{});
    case ElementType::kHALF:
        return action(TypeTag<ElementType::kHALF>{});
    case ElementType::kBFLOAT16:
        return action(TypeTag<ElementType::kBFLOAT16>{});
    }
}

template <ElementType kTYPE>
void drawLogits(Variant variant, LogitsArguments const& arguments)
{
    if constexpr (kTYPE != ElementType::kFLOAT)
    {
        if (usesTensorCores(variant))
        {
            return drawLogits<kTYPE, true>(arguments);
        }
    }
    variant == Variant::kGENERIC ? drawGenericLogits<kTYPE>(arguments) : drawLogits<kTYPE, false>(arguments);
}

template <ElementType kTYPE>
void drawOnTensorCores(MaskArguments const& arguments)
{
    MaskBlock<kTYPE, 0, true>(arguments).draw();
}

//! By the kernel of this number of classes, if there is one.
template <ElementType kTYPE, int32_t kCLASSES, int32_t... kOTHERS>
void drawOnTensorCores(MaskArguments const& arguments)
{
    if (arguments.problem.shape.numClasses == kCLASSES)
    {
        return MaskBlock<kTYPE, kCLASSES, true>(arguments).draw();
    }
    drawOnTensorCores<kTYPE, kOTHERS...>(arguments);
}

template <ElementType kTYPE>
void drawMask(Variant variant, MaskArguments const& arguments)
{
    if constexpr (kTYPE != ElementType::kFLOAT)
    {
        if (usesTensorCores(variant))
        {
            return drawOnTensorCores<kTYPE, 11, 19, 59, 60, 150>(arguments);
        }
    }
    variant == Variant::kGENERIC ? GenericMask<kTYPE>(arguments).draw() : MaskBlock<kTYPE, 0, false>(arguments).draw();
}

emulation::Launch plan(
    DecodeOp op, DecodeProblem const& problem, Variant variant, uint64_t seed, BlockRange const& blocks)
{
    if (variant == Variant::kAUTO || !fits(op, problem.shape, problem.type, variant))
    {
        throw std::invalid_argument("emulation: this variant does not fit the shape or the element type");
    }
    int64_t const end = blocks.end < 0 ? countBlocks(problem) : blocks.end;
    return {static_cast<uint32_t>(blocks.first), static_cast<uint32_t>(end), kTHREADS,
        sharedBytes(op, problem.shape, problem.type, variant), seed};
}

} // namespace

void emulatePatchDecode(
    DecodeProblem const& problem, void* logits, Variant variant, uint64_t seed, BlockRange blocks, bool truncates)
{
    auto launch = plan(DecodeOp::kLOGITS, problem, variant, seed, blocks);
    launch.truncates = truncates;
    LogitsArguments const arguments{problem, logits};
    withType(problem.type,
        [&](auto type)
        {
            emulation::run(launch,
                [&]
                {
                    drawLogits<type()>(variant, arguments);
                });
        });
}

void emulatePatchDecodeMask(DecodeProblem const& problem, void* mask, MaskType maskType, Variant variant, bool prune,
    uint64_t seed, BlockRange blocks, bool truncates)
{
    auto launch = plan(DecodeOp::kMASK, problem, variant, seed, blocks);
    launch.truncates = truncates;
    MaskArguments const arguments{problem, mask, maskType, prune, residentRows(problem.shape, problem.type, variant)};
    withType(problem.type,
        [&](auto type)
        {
            emulation::run(launch,
                [&]
                {
                    drawMask<type()>(variant, arguments);
                });
        });
}

} // namespace nrd
