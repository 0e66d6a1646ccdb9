#include "emulated_kernels.h"

#include "launch_plan.h"

#include <stdexcept>
#include <type_traits>

namespace nrd
{
namespace
{

//! Call `launch(kernel)` with the kernel's types: a Shape, a Dense and an ElementType, as tags.
template <class Shape, class Dense, ElementType kTYPE>
struct Kernel
{
    using ShapeType = Shape;
    using DenseType = Dense;
    static constexpr ElementType kELEMENT = kTYPE;
};

template <class Shape, class Dense, class Launch>
auto withElement(ElementType type, Launch const& launch)
{
    switch (type)
    {
    case ElementType::kHALF:
        return launch(Kernel<Shape, Dense, ElementType::kHALF>{});
    case ElementType::kBFLOAT16:
        return launch(Kernel<Shape, Dense, ElementType::kBFLOAT16>{});
    default:
        break;
    }
    if constexpr (std::is_same_v<Dense, TensorCore>)
    {
        return launch(Kernel<Shape, Dense, ElementType::kHALF>{}); // excluded by fitsLogits and fitsMask
    }
    else
    {
        return launch(Kernel<Shape, Dense, ElementType::kFLOAT>{});
    }
}

template <class Launch>
auto withKernel(ElementType type, Variant variant, Launch const& launch)
{
    if (variant == Variant::kGENERIC)
    {
        return withElement<AnyShape, Simt>(type, launch);
    }
    return usesTensorCores(variant) ? withElement<ReleasedShape, TensorCore>(type, launch)
                                    : withElement<ReleasedShape, Simt>(type, launch);
}

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
