#include "decode_kernel.h"

#include "launch_plan.h"

#include <array>
#include <mutex>

namespace nrd
{
namespace
{

//! Blocks that shall share a multiprocessor; the compiler keeps to the registers that this leaves to each thread (80 or
//! 96), the most without spills. Six blocks take 31 KB of shared memory each.
template <class Shape, class Dense>
constexpr int32_t kBLOCKS = std::is_same_v<Shape, ReleasedShape> && std::is_same_v<Dense, Simt> ? 6 : 5;

template <class Shape, ElementType kTYPE, class Dense>
__global__ void __launch_bounds__(kTHREADS, kBLOCKS<Shape, Dense>)
    logitsKernel(__grid_constant__ LogitsArguments const arguments)
{
    decodeLogits<Shape, kTYPE, Dense>(arguments);
}

template <class Shape, ElementType kTYPE, class Dense>
__global__ void __launch_bounds__(kTHREADS, kBLOCKS<Shape, Dense>)
    maskKernel(__grid_constant__ MaskArguments const arguments)
{
    MaskBlock<Shape, kTYPE>(arguments).template draw<Dense>();
}

constexpr int32_t kMAX_DEVICES = 64;
constexpr ElementType kTYPES[] = {ElementType::kFLOAT, ElementType::kHALF, ElementType::kBFLOAT16};
constexpr Variant kKERNELS[] = {Variant::kGENERIC, Variant::kSIMT, Variant::kTENSOR_CORE};

//! What a launch depends on of the current device; -1 where there is none.
struct Device
{
    int32_t index = -1;
    int32_t major = -1;
    int32_t sharedBytes = -1; //!< of a block that asks for more than 48 KB
};

cudaError_t findDevice(Device& device)
{
    cudaError_t status = cudaGetDevice(&device.index);
    if (status == cudaSuccess)
    {
        status = cudaDeviceGetAttribute(&device.major, cudaDevAttrComputeCapabilityMajor, device.index);
    }
    if (status == cudaSuccess)
    {
        status = cudaDeviceGetAttribute(&device.sharedBytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device.index);
    }
    return status;
}

bool fitsDevice(DecodeShape const& shape, Variant variant)
{
    Device device;
    if (!usesTensorCores(variant) && !isRetained(variant))
    {
        return true;
    }
    return findDevice(device) == cudaSuccess && (!usesTensorCores(variant) || device.major >= 8)
        && sharedBytes(shape, variant) <= device.sharedBytes;
}

//! Load one kernel and let it ask for all the shared memory a block can have.
cudaError_t prepareKernel(void const* kernel, Device const& device)
{
    cudaFuncAttributes attributes{};
    cudaError_t status = cudaFuncGetAttributes(&attributes, kernel);
    if (status == cudaSuccess)
    {
        status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
            device.sharedBytes - static_cast<int32_t>(attributes.sharedSizeBytes));
    }
    return status;
}

cudaError_t prepareAll(Device const& device)
{
    for (ElementType const type : kTYPES)
    {
        for (Variant const variant : kKERNELS)
        {
            if (usesTensorCores(variant) && (type == ElementType::kFLOAT || device.major < 8))
            {
                continue;
            }
            cudaError_t const status = withKernel(type, variant,
                [&](auto kernel)
                {
                    using K = decltype(kernel);
                    using Shape = typename K::ShapeType;
                    using Dense = typename K::DenseType;
                    cudaError_t const first
                        = prepareKernel(reinterpret_cast<void const*>(logitsKernel<Shape, K::kELEMENT, Dense>), device);
                    return first != cudaSuccess
                        ? first
                        : prepareKernel(reinterpret_cast<void const*>(maskKernel<Shape, K::kELEMENT, Dense>), device);
                });
            if (status != cudaSuccess)
            {
                return status;
            }
        }
    }
    return cudaSuccess;
}

cudaError_t launch(
    void const* kernel, DecodeProblem const& problem, Variant variant, void* arguments, cudaStream_t stream)
{
    return cudaLaunchKernel(kernel, dim3(static_cast<uint32_t>(countBlocks(problem))), dim3(kTHREADS), &arguments,
        static_cast<size_t>(sharedBytes(problem.shape, variant)), stream);
}

bool isValid(DecodeProblem const& problem)
{
    return findFault(problem.shape) == nullptr && problem.batch > 0 && problem.rows > 0 && problem.columns > 0
        && countBlocks(problem) <= INT32_MAX;
}

} // namespace

bool supportsLogits(DecodeShape const& shape, ElementType type, Variant variant)
{
    return fitsLogits(shape, type, variant) && fitsDevice(shape, variant);
}

bool supportsMask(DecodeShape const& shape, ElementType type, Variant variant)
{
    return fitsMask(shape, type, variant) && fitsDevice(shape, variant);
}

cudaError_t prepare()
{
    static std::mutex mutex;
    static std::array<bool, kMAX_DEVICES> done{};
    Device device;
    if (cudaError_t const status = findDevice(device); status != cudaSuccess)
    {
        return status;
    }
    std::lock_guard<std::mutex> const lock(mutex);
    if (device.index < kMAX_DEVICES && done[static_cast<size_t>(device.index)])
    {
        return cudaSuccess;
    }
    cudaError_t const status = prepareAll(device);
    if (status == cudaSuccess && device.index < kMAX_DEVICES)
    {
        done[static_cast<size_t>(device.index)] = true;
    }
    return status;
}

cudaError_t patchDecode(DecodeProblem const& problem, void* logits, Variant variant, cudaStream_t stream)
{
    if (!isValid(problem) || !fitsLogits(problem.shape, problem.type, variant))
    {
        return cudaErrorInvalidValue;
    }
    DecodeShape shape = problem.shape;
    shape.upsample = 4; // of no meaning for logits
    Variant const chosen = resolve(variant, isReleased(shape));
    LogitsArguments arguments{problem, logits};
    return withKernel(problem.type, chosen,
        [&](auto kernel)
        {
            using K = decltype(kernel);
            auto* const entry = logitsKernel<typename K::ShapeType, K::kELEMENT, typename K::DenseType>;
            return launch(reinterpret_cast<void const*>(entry), problem, chosen, &arguments, stream);
        });
}

cudaError_t patchDecodeMask(
    DecodeProblem const& problem, void* mask, MaskType maskType, Variant variant, bool prune, cudaStream_t stream)
{
    if (!isValid(problem) || !fitsMask(problem.shape, problem.type, variant))
    {
        return cudaErrorInvalidValue;
    }
    Variant const chosen = resolve(variant, isReleased(problem.shape));
    MaskArguments arguments{problem, mask, maskType, prune, isRetained(chosen)};
    return withKernel(problem.type, chosen,
        [&](auto kernel)
        {
            using K = decltype(kernel);
            auto* const entry = maskKernel<typename K::ShapeType, K::kELEMENT, typename K::DenseType>;
            return launch(reinterpret_cast<void const*>(entry), problem, chosen, &arguments, stream);
        });
}

} // namespace nrd
