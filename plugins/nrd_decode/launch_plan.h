/*
 * Which kernel a variant means and how much it takes: one table for the launcher and for the emulation.
 */
#pragma once

#include "logits_kernel.h"
#include "mask_kernel.h"

#include <string>
#include <vector>

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

//! Name of a kernel in decode_kernel.cu, such as "nrd_mask_simt_fp16"; `op` is "logits" or "mask". A retained variant is
//! the same kernel with more shared memory.
inline std::string kernelName(char const* op, Variant variant, ElementType type)
{
    char const* const kind = usesTensorCores(variant) ? "tensor_core"
        : variant == Variant::kGENERIC                ? "generic"
                                                      : "simt";
    char const* const element = type == ElementType::kFLOAT ? "fp32" : type == ElementType::kHALF ? "fp16" : "bf16";
    return std::string("nrd_") + op + "_" + kind + "_" + element;
}

//! All of them.
inline std::vector<std::string> kernelNames()
{
    std::vector<std::string> names;
    for (char const* const op : {"logits", "mask"})
    {
        for (Variant const variant : {Variant::kGENERIC, Variant::kSIMT, Variant::kTENSOR_CORE})
        {
            for (ElementType const type : {ElementType::kFLOAT, ElementType::kHALF, ElementType::kBFLOAT16})
            {
                if (!usesTensorCores(variant) || type != ElementType::kFLOAT)
                {
                    names.push_back(kernelName(op, variant, type));
                }
            }
        }
    }
    return names;
}

} // namespace nrd
