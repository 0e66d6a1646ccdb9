#include "fake_driver.h"

#include "cuda_driver.h"
#include "emulated_kernels.h"
#include "launch_plan.h"

#include <algorithm>
#include <utility>

using namespace nrd;

namespace
{

constexpr uint64_t kSEED = 1; // of the order in which a block's threads run

test::FakeDriver gDriver;

std::vector<std::string> const& names()
{
    static std::vector<std::string> const all = kernelNames();
    return all;
}

//! The variant whose kernel this is.
Variant variantOf(std::string const& kernel)
{
    return kernel.find("_generic_") != std::string::npos ? Variant::kGENERIC
        : kernel.find("_simt_") != std::string::npos     ? Variant::kSIMT
                                                         : Variant::kTENSOR_CORE;
}

//! Whether a launch is the one that this problem and variant need.
bool isPlanned(DecodeProblem const& problem, Variant variant, std::string const& kernel, DecodeOp op, uint32_t blocks,
    uint32_t threads)
{
    return kernel == kernelName(op, variant, problem.type, problem.shape.numClasses) && blocks == countBlocks(problem)
        && threads == kTHREADS && gDriver.dynamicBytes == sharedBytes(op, problem.shape, problem.type, variant)
        && (gDriver.dynamicBytes <= 48 * 1024 || static_cast<int32_t>(gDriver.dynamicBytes) <= gDriver.shared);
}

} // namespace

test::FakeDriver& test::fakeDriver()
{
    return gDriver;
}

CUresult cuInit(unsigned)
{
    return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult status, char const** name)
{
    *name = status == CUDA_ERROR_INVALID_VALUE ? "CUDA_ERROR_INVALID_VALUE" : "CUDA_ERROR_OF_THE_FAKE";
    return CUDA_SUCCESS;
}

CUresult cuCtxGetDevice(CUdevice* device)
{
    *device = gDriver.device;
    return gDriver.context == 0 ? CUDA_ERROR_INVALID_CONTEXT : CUDA_SUCCESS;
}

CUresult cuCtxGetId(CUcontext context, unsigned long long* id)
{
    *id = gDriver.context;
    return context == nullptr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device)
{
    *context = reinterpret_cast<CUcontext>(&gDriver);
    return device == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUresult cuCtxSetCurrent(CUcontext context)
{
    gDriver.context = 1;
    return context == reinterpret_cast<CUcontext>(&gDriver) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice)
{
    *value = attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR ? gDriver.architecture / 10
        : attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR    ? gDriver.architecture % 10
                                                                       : gDriver.sharedBytes;
    return CUDA_SUCCESS;
}

CUresult cuLibraryLoadData(
    CUlibrary* library, void const* code, CUjit_option*, void**, unsigned, CUlibraryOption*, void**, unsigned)
{
    ++gDriver.loadedImages;
    gDriver.image = static_cast<char const*>(code);
    *library = reinterpret_cast<CUlibrary>(&gDriver);
    return CUDA_SUCCESS;
}

CUresult cuLibraryGetKernel(CUkernel* kernel, CUlibrary, char const* name)
{
    auto const found = std::find(names().begin(), names().end(), name);
    *kernel = reinterpret_cast<CUkernel>(const_cast<std::string*>(found == names().end() ? nullptr : &*found));
    return found == names().end() ? CUDA_ERROR_NOT_FOUND : CUDA_SUCCESS;
}

CUresult cuKernelGetFunction(CUfunction* function, CUkernel kernel)
{
    ++gDriver.functions;
    *function = reinterpret_cast<CUfunction>(kernel);
    return CUDA_SUCCESS;
}

CUresult cuKernelGetAttribute(int* value, CUfunction_attribute, CUkernel, CUdevice)
{
    *value = 1024;
    return CUDA_SUCCESS;
}

CUresult cuKernelSetAttribute(CUfunction_attribute attribute, int value, CUkernel, CUdevice device)
{
    if (attribute == CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT)
    {
        gDriver.carveouts += value == CU_SHAREDMEM_CARVEOUT_MAX_SHARED ? 1 : 0;
    }
    else if (attribute == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES)
    {
        gDriver.shared = value;
    }
    else
    {
        return CUDA_ERROR_INVALID_VALUE;
    }
    return device == gDriver.device ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUresult cuLaunchKernel(CUfunction function, unsigned blocks, unsigned, unsigned, unsigned threads, unsigned, unsigned,
    unsigned sharedBytes, CUstream stream, void** arguments, void**)
{
    if (gDriver.failure != CUDA_SUCCESS)
    {
        return std::exchange(gDriver.failure, CUDA_SUCCESS);
    }
    gDriver.kernel = *reinterpret_cast<std::string const*>(function);
    gDriver.dynamicBytes = sharedBytes;
    gDriver.stream = stream;
    if (gDriver.kernel.find("nrd_logits_") == 0)
    {
        auto const& given = *static_cast<LogitsArguments const*>(arguments[0]);
        Variant const variant = variantOf(gDriver.kernel);
        if (!isPlanned(given.problem, variant, gDriver.kernel, DecodeOp::kLOGITS, blocks, threads))
        {
            return CUDA_ERROR_LAUNCH_FAILED;
        }
        emulatePatchDecode(given.problem, given.logits, variant, kSEED);
        return CUDA_SUCCESS;
    }
    auto const& given = *static_cast<MaskArguments const*>(arguments[0]);
    Variant const variant = variantOf(gDriver.kernel);
    if (!isPlanned(given.problem, variant, gDriver.kernel, DecodeOp::kMASK, blocks, threads)
        || given.rows != residentRows(given.problem.shape, given.problem.type, variant))
    {
        return CUDA_ERROR_LAUNCH_FAILED;
    }
    emulatePatchDecodeMask(given.problem, given.mask, given.maskType, variant, given.prune, kSEED);
    return CUDA_SUCCESS;
}
