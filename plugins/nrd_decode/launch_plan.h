/*
 * Which kernel a variant means and how much it takes: one table for the launchers and for the emulation.
 */
#pragma once

#include "logits_kernel.h"
#include "mask_kernel.h"

#include <type_traits>

namespace nrd
{

//! Blocks of a launch: one per tile.
inline int64_t countBlocks(DecodeProblem const& problem)
{
    int64_t const perPatch = problem.shape.patch == 16 ? 4 : 1;
    return int64_t{problem.batch} * problem.rows * problem.columns * perPatch;
}

inline bool isRetained(Variant variant)
{
    return variant == Variant::kSIMT_RETAINED || variant == Variant::kTENSOR_CORE_RETAINED;
}

inline bool usesTensorCores(Variant variant)
{
    return variant == Variant::kTENSOR_CORE || variant == Variant::kTENSOR_CORE_RETAINED;
}

//! What kAUTO stands for. Tensor cores round otherwise than the host reference, so they are asked for by name.
inline Variant resolve(Variant variant, bool released)
{
    return variant != Variant::kAUTO ? variant : released ? Variant::kSIMT : Variant::kGENERIC;
}

//! Whether the sizes and the type allow the variant; the device is another question.
inline bool fitsLogits(DecodeShape const& shape, ElementType type, Variant variant)
{
    bool const released = shape.hidden == 16 && shape.guidanceChannels == 16 && shape.patch == 8;
    return findFault(shape) == nullptr && !isRetained(variant)
        && (variant == Variant::kAUTO || variant == Variant::kGENERIC
            || (released && (variant == Variant::kSIMT || (usesTensorCores(variant) && type != ElementType::kFLOAT))));
}

inline bool fitsMask(DecodeShape const& shape, ElementType type, Variant variant)
{
    if (findFault(shape) != nullptr)
    {
        return false;
    }
    if (variant == Variant::kAUTO || variant == Variant::kGENERIC)
    {
        return true;
    }
    return isReleased(shape) && (!isRetained(variant) || shape.numClasses > kCHUNK)
        && (!usesTensorCores(variant) || type != ElementType::kFLOAT);
}

//! Dynamic shared memory of a launch. At most 48 KB unless the variant retains.
inline int64_t sharedBytes(DecodeShape const& shape, Variant variant)
{
    int32_t const rows = logitsRows(shape.numClasses, isRetained(variant));
    int64_t const floats = variant == Variant::kGENERIC ? SharedLayout<AnyShape>(AnyShape(shape), rows).total
                                                        : SharedLayout<ReleasedShape>(ReleasedShape(shape), rows).total;
    return floats * static_cast<int64_t>(sizeof(float));
}

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

} // namespace nrd
