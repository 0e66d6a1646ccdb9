/*
 * Which kernel a variant means and how much it takes: one table for the launcher and for the emulation.
 */
#pragma once

#include "generic_kernel.h"

#include <algorithm>
#include <iterator>
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

inline bool usesTensorCores(Variant variant)
{
    return variant == Variant::kTENSOR_CORE;
}

constexpr int64_t kDEFAULT_SHARED_BYTES = 48 * 1024; //!< a launch may have them without asking

//! Numbers of classes of the released networks, which have masks on tensor cores of their own; as in decode_kernel.cu.
constexpr int32_t kRELEASED_CLASSES[] = {11, 19, 59, 60, 150};

inline bool isReleased(int32_t numClasses)
{
    return std::find(std::begin(kRELEASED_CLASSES), std::end(kRELEASED_CLASSES), numClasses)
        != std::end(kRELEASED_CLASSES);
}

//! Whether a mask on tensor cores surveys the classes first; as MaskBlock does.
inline bool surveys(int32_t numClasses, Variant variant)
{
    return usesTensorCores(variant) && (numClasses >= kMANY || !isReleased(numClasses));
}

//! Classes whose logits a mask's block holds at a time. A survey leaves few on most blocks; plain threads decode them
//! again for the mixed cells where not all fit into the memory that every GPU gives.
inline int32_t residentRows(DecodeShape const& shape, ElementType type, Variant variant)
{
    if (usesTensorCores(variant))
    {
        return surveys(shape.numClasses, variant) ? kMANY : shape.numClasses;
    }
    bool const fits
        = TileLayout(shape.numClasses, elementSize(type), kSLOTS, shape.numClasses).total <= kDEFAULT_SHARED_BYTES;
    return fits ? shape.numClasses : kCHUNK;
}

//! Dynamic shared memory of a launch.
inline int64_t sharedBytes(DecodeOp op, DecodeShape const& shape, ElementType type, Variant variant)
{
    int32_t const slots = op == DecodeOp::kMASK ? kSLOTS : 1;
    if (variant == Variant::kGENERIC)
    {
        return GenericLayout(shape, slots).total * static_cast<int64_t>(sizeof(float));
    }
    if (op == DecodeOp::kLOGITS)
    {
        return TileLayout(shape.numClasses, elementSize(type), slots, 0).total;
    }
    int32_t const parts = !surveys(shape.numClasses, variant) ? 0 : type == ElementType::kHALF ? 2 : 3;
    return TileLayout(shape.numClasses, elementSize(type), slots, residentRows(shape, type, variant), parts).total;
}

//! Whether the sizes and the type allow the variant; the device is another question.
inline bool fits(DecodeOp op, DecodeShape const& shape, ElementType type, Variant variant)
{
    bool const isReleased = shape.hidden == 16 && shape.guidanceChannels == 16 && shape.patch == 8
        && (op == DecodeOp::kLOGITS || shape.upsample == 4);
    bool const fitsShape = variant == Variant::kAUTO || variant == Variant::kGENERIC || isReleased;
    return findFault(shape) == nullptr && fitsShape && (!usesTensorCores(variant) || type != ElementType::kFLOAT);
}

//! What kAUTO stands for: the variant of plain threads that every GPU has the memory for. Tensor cores round otherwise
//! than the host reference, so they are asked for by name.
inline Variant resolve(DecodeOp op, DecodeShape const& shape, ElementType type, Variant variant)
{
    if (variant != Variant::kAUTO)
    {
        return variant;
    }
    bool const isSimt = fits(op, shape, type, Variant::kSIMT)
        && sharedBytes(op, shape, type, Variant::kSIMT) <= kDEFAULT_SHARED_BYTES;
    return isSimt ? Variant::kSIMT : Variant::kGENERIC;
}

//! Name of a kernel in decode_kernel.cu, such as "nrd_mask_simt_fp16" or "nrd_mask_tensor_core_fp16_19".
inline std::string kernelName(DecodeOp op, Variant variant, ElementType type, int32_t numClasses)
{
    char const* const kind = usesTensorCores(variant) ? "tensor_core"
        : variant == Variant::kGENERIC                ? "generic"
                                                      : "simt";
    char const* const element = type == ElementType::kFLOAT ? "fp32" : type == ElementType::kHALF ? "fp16" : "bf16";
    bool const isOwn = op == DecodeOp::kMASK && usesTensorCores(variant) && isReleased(numClasses);
    return std::string(op == DecodeOp::kMASK ? "nrd_mask_" : "nrd_logits_") + kind + "_" + element
        + (isOwn ? "_" + std::to_string(numClasses) : "");
}

//! All of them.
inline std::vector<std::string> kernelNames()
{
    std::vector<std::string> names;
    auto const add = [&](DecodeOp op, Variant variant, int32_t numClasses)
    {
        for (ElementType const type : {ElementType::kFLOAT, ElementType::kHALF, ElementType::kBFLOAT16})
        {
            if (!usesTensorCores(variant) || type != ElementType::kFLOAT)
            {
                names.push_back(kernelName(op, variant, type, numClasses));
            }
        }
    };
    for (Variant const variant : {Variant::kGENERIC, Variant::kSIMT, Variant::kTENSOR_CORE})
    {
        add(DecodeOp::kLOGITS, variant, 0);
        add(DecodeOp::kMASK, variant, 0);
    }
    for (int32_t const numClasses : kRELEASED_CLASSES)
    {
        add(DecodeOp::kMASK, Variant::kTENSOR_CORE, numClasses);
    }
    return names;
}

} // namespace nrd
