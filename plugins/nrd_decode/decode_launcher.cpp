#include "cuda_driver.h"
#include "decode_images.h"
#include "decode_kernel.h"
#include "launch_plan.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <set>

namespace nrd
{
namespace
{

// A kernel is of no context: the driver loads it into each that launches it.
using Kernels = std::map<std::string, CUkernel>; //!< by name

struct Device
{
    CUdevice handle;
    int32_t architecture; //!< 87 for compute capability 8.7
    int32_t sharedBytes;  //!< of a block that asks for more than 48 KB
    Kernels kernels;
};

std::mutex gMutex;
std::map<CUdevice, Device> gDevices;    //!< entries stay where they are
std::set<unsigned long long> gPrepared; //!< contexts, by an id that no later one gets

//! The device of the current context.
CUresult findDevice(CUdevice& device)
{
    Driver const& cuda = driver();
    if (cuda.status != CUDA_SUCCESS)
    {
        return cuda.status;
    }
    CUresult status = cuda.cuCtxGetDevice(&device);
    if (status != CUDA_ERROR_INVALID_CONTEXT && status != CUDA_ERROR_NOT_INITIALIZED)
    {
        return status;
    }
    CUcontext context = nullptr;
    status = cuda.cuInit(0);
    if (status == CUDA_SUCCESS)
    {
        status = cuda.cuDevicePrimaryCtxRetain(&context, 0);
    }
    if (status == CUDA_SUCCESS)
    {
        status = cuda.cuCtxSetCurrent(context);
    }
    return status == CUDA_SUCCESS ? cuda.cuCtxGetDevice(&device) : status;
}

//! Integrated GPUs run machine code of their own architecture only, and no other GPU runs theirs.
bool isTegra(int32_t architecture)
{
    constexpr int32_t kTEGRA[] = {53, 62, 72, 87, 101, 110};
    return std::find(std::begin(kTEGRA), std::end(kTEGRA), architecture) != std::end(kTEGRA);
}

bool runsOn(Image const& image, int32_t architecture)
{
    if (image.architecture == architecture)
    {
        return true;
    }
    bool const isOlder = image.architecture < architecture && !isTegra(architecture);
    bool const isOfFamily = image.architecture / 10 == architecture / 10 && !isTegra(image.architecture);
    return isOlder && (image.isPtx || isOfFamily);
}

//! Machine code before PTX, the newest of each; nullptr where there is none.
Image const* chooseImage(int32_t architecture)
{
    Image const* chosen = nullptr;
    for (Image const& image : images())
    {
        if (runsOn(image, architecture) && (chosen == nullptr || chosen->isPtx || !image.isPtx))
        {
            chosen = &image;
        }
    }
    return chosen;
}

CUresult loadKernels(Image const& image, Kernels& kernels)
{
    CUlibrary library = nullptr; // stays loaded: at the end of a process the driver may be gone first
    CUresult status = driver().cuLibraryLoadData(&library, image.data, nullptr, nullptr, 0, nullptr, nullptr, 0);
    for (std::string const& name : kernelNames())
    {
        if (status == CUDA_SUCCESS)
        {
            status = driver().cuLibraryGetKernel(&kernels[name], library, name.c_str());
        }
    }
    return status;
}

CUresult describeDevice(Device& device)
{
    int major = 0;
    int minor = 0;
    Driver const& cuda = driver();
    CUresult status = cuda.cuDeviceGetAttribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device.handle);
    if (status == CUDA_SUCCESS)
    {
        status = cuda.cuDeviceGetAttribute(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device.handle);
    }
    if (status == CUDA_SUCCESS)
    {
        status = cuda.cuDeviceGetAttribute(
            &device.sharedBytes, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, device.handle);
    }
    device.architecture = 10 * major + minor;
    return status;
}

//! The current device with its kernels, which are loaded on its first use.
CUresult openDevice(Device const*& device)
{
    CUdevice handle = 0;
    CUresult status = findDevice(handle);
    if (status != CUDA_SUCCESS)
    {
        return status;
    }
    std::lock_guard<std::mutex> const lock(gMutex);
    auto const known = gDevices.find(handle);
    if (known != gDevices.end())
    {
        device = &known->second;
        return CUDA_SUCCESS;
    }
    Device opened{handle, 0, 0, {}};
    status = describeDevice(opened);
    if (status == CUDA_SUCCESS)
    {
        Image const* const image = chooseImage(opened.architecture);
        status = image == nullptr ? CUDA_ERROR_NO_BINARY_FOR_GPU : loadKernels(*image, opened.kernels);
    }
    if (status == CUDA_SUCCESS)
    {
        device = &gDevices.emplace(handle, std::move(opened)).first->second;
    }
    return status;
}

//! Load one kernel into the current context and let it ask for all the shared memory a block can have. The multiprocessor
//! is to give as much of its memory to that as it can: left alone, the driver may leave room for fewer blocks than fit.
CUresult prepareKernel(CUkernel kernel, Device const& device)
{
    Driver const& cuda = driver();
    int shared = 0;
    CUresult status = cuda.cuKernelGetAttribute(&shared, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, kernel, device.handle);
    if (status == CUDA_SUCCESS)
    {
        status = cuda.cuKernelSetAttribute(
            CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, device.sharedBytes - shared, kernel, device.handle);
    }
    if (status == CUDA_SUCCESS)
    {
        status = cuda.cuKernelSetAttribute(CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT,
            CU_SHAREDMEM_CARVEOUT_MAX_SHARED, kernel, device.handle);
    }
    CUfunction function = nullptr;
    return status == CUDA_SUCCESS ? cuda.cuKernelGetFunction(&function, kernel) : status;
}

bool fitsDevice(DecodeOp op, DecodeShape const& shape, ElementType type, Variant variant)
{
    int64_t const wanted = sharedBytes(op, shape, type, resolve(op, shape, type, variant));
    if (!usesTensorCores(variant) && wanted <= kDEFAULT_SHARED_BYTES)
    {
        return true;
    }
    Device const* device = nullptr;
    return openDevice(device) == CUDA_SUCCESS && (!usesTensorCores(variant) || device->architecture >= 80)
        && wanted <= device->sharedBytes;
}

bool isValid(DecodeProblem const& problem)
{
    return findFault(problem.shape) == nullptr && problem.batch > 0 && problem.rows > 0 && problem.columns > 0
        && countBlocks(problem) <= INT32_MAX;
}

CUresult launch(DecodeOp op, DecodeProblem const& problem, Variant variant, void* arguments, CUstream stream)
{
    Device const* device = nullptr;
    if (CUresult const status = openDevice(device); status != CUDA_SUCCESS)
    {
        return status;
    }
    CUkernel const kernel = device->kernels.at(kernelName(op, variant, problem.type, problem.shape.numClasses));
    return driver().cuLaunchKernel(reinterpret_cast<CUfunction>(kernel), static_cast<uint32_t>(countBlocks(problem)), 1,
        1, kTHREADS, 1, 1, static_cast<uint32_t>(sharedBytes(op, problem.shape, problem.type, variant)), stream,
        &arguments, nullptr);
}

} // namespace

bool deviceAnswers()
{
    CUdevice device = 0;
    return findDevice(device) == CUDA_SUCCESS;
}

bool supportsLogits(DecodeShape const& shape, ElementType type, Variant variant)
{
    return fits(DecodeOp::kLOGITS, shape, type, variant) && fitsDevice(DecodeOp::kLOGITS, shape, type, variant);
}

bool supportsMask(DecodeShape const& shape, ElementType type, Variant variant)
{
    return fits(DecodeOp::kMASK, shape, type, variant) && fitsDevice(DecodeOp::kMASK, shape, type, variant);
}

CUresult prepare()
{
    Device const* device = nullptr;
    unsigned long long context = 0;
    CUresult status = openDevice(device);
    if (status == CUDA_SUCCESS)
    {
        status = driver().cuCtxGetId(nullptr, &context); // of the current one
    }
    if (status != CUDA_SUCCESS)
    {
        return status;
    }
    std::lock_guard<std::mutex> const lock(gMutex);
    if (gPrepared.count(context) != 0)
    {
        return CUDA_SUCCESS;
    }
    for (auto const& [name, kernel] : device->kernels)
    {
        status = prepareKernel(kernel, *device);
        if (status != CUDA_SUCCESS)
        {
            return status;
        }
    }
    gPrepared.insert(context);
    return CUDA_SUCCESS;
}

CUresult patchDecode(DecodeProblem const& problem, void* logits, Variant variant, CUstream stream)
{
    if (!isValid(problem) || !fits(DecodeOp::kLOGITS, problem.shape, problem.type, variant))
    {
        return CUDA_ERROR_INVALID_VALUE;
    }
    LogitsArguments arguments{problem, logits};
    Variant const chosen = resolve(DecodeOp::kLOGITS, problem.shape, problem.type, variant);
    return launch(DecodeOp::kLOGITS, problem, chosen, &arguments, stream);
}

CUresult patchDecodeMask(
    DecodeProblem const& problem, void* mask, MaskType maskType, Variant variant, bool prune, CUstream stream)
{
    if (!isValid(problem) || !fits(DecodeOp::kMASK, problem.shape, problem.type, variant))
    {
        return CUDA_ERROR_INVALID_VALUE;
    }
    Variant const chosen = resolve(DecodeOp::kMASK, problem.shape, problem.type, variant);
    MaskArguments arguments{problem, mask, maskType, prune, residentRows(problem.shape, problem.type, chosen)};
    return launch(DecodeOp::kMASK, problem, chosen, &arguments, stream);
}

char const* errorName(CUresult status)
{
    switch (status)
    {
    case CUDA_ERROR_SHARED_OBJECT_INIT_FAILED:
        return "CUDA_ERROR_SHARED_OBJECT_INIT_FAILED";
    case CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND:
        return "CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND";
    default:
        break;
    }
    char const* name = nullptr;
    bool const isKnown = driver().status == CUDA_SUCCESS && driver().cuGetErrorName(status, &name) == CUDA_SUCCESS;
    return isKnown ? name : "an unknown CUDA error";
}

} // namespace nrd
