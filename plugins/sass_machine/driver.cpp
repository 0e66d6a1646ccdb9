/*
 * A CUDA driver whose device executes machine code, beside what Python asks of it. The launcher of the kernels is linked in,
 * and what it opens as libcuda.so.1 is this library, so that a launch has the grid, the memory and the arguments that a GPU
 * would get. Others in the process do not see it.
 */
#include "machine.h"
#include "timing.h"

#include "decode_images.h"
#include "decode_kernel.h"
#include "host_reference.h"

#include <cuda.h>

#include <cstring>
#include <dlfcn.h>

using namespace nrd;

namespace
{

struct Device
{
    int32_t architecture = 90;
    int32_t sharedBytes = 0;
    std::map<std::string, sass::Kernel> kernels; //!< by architecture and name
    std::vector<uint32_t> blocks;                //!< to execute
    std::vector<sass::Range> memory;
    bool plansOnly = false;
    bool lastWarpFirst = false;
    std::string error;
};

Device gDevice;

//! The launch that came last.
struct Launched
{
    char kernel[64];
    uint32_t blocks;
    uint32_t threads;
    uint32_t sharedBytes;
};

Launched gLaunched;

std::string keyOf(char const* name)
{
    return std::to_string(gDevice.architecture) + " " + name;
}

void put(std::vector<uint8_t>& bank, size_t offset, uint32_t value)
{
    std::memcpy(bank.data() + offset, &value, sizeof(value));
}

//! Constant bank 0: sizes of block and grid, the top of the stack, the parameters.
std::vector<uint8_t> makeBank(sass::Kernel const& kernel, uint32_t threads, uint32_t blocks, void const* parameters)
{
    std::vector<uint8_t> bank(static_cast<size_t>(kernel.parameterOffset + kernel.parameterBytes + 8));
    uint32_t const sizes[] = {threads, 1, 1, blocks, 1, 1};
    for (size_t i = 0; i < 6; ++i)
    {
        put(bank, 4 * i, sizes[i]);
    }
    put(bank, 0x28, 4096); // as many bytes of stack as Warp::local has
    std::memcpy(bank.data() + kernel.parameterOffset, parameters, static_cast<size_t>(kernel.parameterBytes));
    return bank;
}

} // namespace

//! One for each architecture; its text is its number.
Images nrd::images()
{
    static constexpr Image kIMAGES[] = {{80, false, "80"}, {86, false, "86"}, {87, false, "87"}, {89, false, "89"},
        {90, false, "90"}, {100, false, "100"}, {110, false, "110"}, {120, false, "120"}};
    return {kIMAGES, sizeof(kIMAGES) / sizeof(kIMAGES[0])};
}

extern "C"
{

    void* __real_dlopen(char const* name, int flags);

    //! The linker sends the launcher's dlopen here.
    void* __wrap_dlopen(char const*, int flags)
    {
        Dl_info own{};
        dladdr(&gDevice, &own);
        return __real_dlopen(own.dli_fname, flags);
    }

    CUresult cuInit(unsigned)
    {
        return CUDA_SUCCESS;
    }

    CUresult cuGetErrorName(CUresult, char const** name)
    {
        *name = "an error of the machine";
        return CUDA_SUCCESS;
    }

    CUresult cuCtxGetDevice(CUdevice* device)
    {
        *device = gDevice.architecture; // one device for each, because the launcher keeps what it knows of them
        return CUDA_SUCCESS;
    }

    CUresult cuCtxGetId(CUcontext, unsigned long long* id)
    {
        *id = static_cast<unsigned long long>(gDevice.architecture);
        return CUDA_SUCCESS;
    }

    CUresult cuDevicePrimaryCtxRetain(CUcontext*, CUdevice)
    {
        return CUDA_SUCCESS;
    }

    CUresult cuCtxSetCurrent(CUcontext)
    {
        return CUDA_SUCCESS;
    }

    CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device)
    {
        *value = attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR ? device / 10
            : attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR    ? device % 10
                                                                           : gDevice.sharedBytes;
        return CUDA_SUCCESS;
    }

    CUresult cuLibraryLoadData(
        CUlibrary* library, void const* code, CUjit_option*, void**, unsigned, CUlibraryOption*, void**, unsigned)
    {
        bool const isIts = std::to_string(gDevice.architecture) == static_cast<char const*>(code);
        *library = reinterpret_cast<CUlibrary>(&gDevice);
        return isIts ? CUDA_SUCCESS : CUDA_ERROR_NO_BINARY_FOR_GPU;
    }

    CUresult cuLibraryGetKernel(CUkernel* kernel, CUlibrary, char const* name)
    {
        auto const found = gDevice.kernels.find(keyOf(name));
        if (found == gDevice.kernels.end())
        {
            return CUDA_ERROR_NOT_FOUND;
        }
        *kernel = reinterpret_cast<CUkernel>(&found->second);
        return CUDA_SUCCESS;
    }

    CUresult cuKernelGetFunction(CUfunction* function, CUkernel kernel)
    {
        *function = reinterpret_cast<CUfunction>(kernel);
        return CUDA_SUCCESS;
    }

    CUresult cuKernelGetAttribute(int* value, CUfunction_attribute, CUkernel, CUdevice)
    {
        *value = 0;
        return CUDA_SUCCESS;
    }

    CUresult cuKernelSetAttribute(CUfunction_attribute, int, CUkernel, CUdevice)
    {
        return CUDA_SUCCESS;
    }

    CUresult cuLaunchKernel(CUfunction function, unsigned blocks, unsigned, unsigned, unsigned threads, unsigned,
        unsigned, unsigned sharedBytes, CUstream, void** parameters, void**)
    {
        auto& kernel = *reinterpret_cast<sass::Kernel*>(function);
        gLaunched = {{}, blocks, threads, sharedBytes};
        kernel.name.copy(gLaunched.kernel, sizeof(gLaunched.kernel) - 1);
        if (gDevice.plansOnly)
        {
            return CUDA_SUCCESS;
        }
        if (kernel.code.empty())
        {
            gDevice.error = kernel.name + " has no code yet";
            return CUDA_ERROR_LAUNCH_FAILED;
        }
        try
        {
            sass::run({&kernel, threads, blocks, sharedBytes, makeBank(kernel, threads, blocks, parameters[0]),
                          gDevice.memory, gDevice.lastWarpFirst},
                gDevice.blocks);
            return CUDA_SUCCESS;
        }
        catch (std::runtime_error const& error)
        {
            gDevice.error = error.what();
            return CUDA_ERROR_LAUNCH_FAILED;
        }
    }

    //! What Python gives for one decode.
    struct Decode
    {
        int32_t classes;
        int32_t type;
        int32_t rows;
        int32_t columns;
        TensorView theta;
        TensorView guidance;
        float xTable[kMAX_PATCH];
        float yTable[kMAX_PATCH];
        void* mask;
        int32_t maskType;
        int32_t variant;
        bool prune;
    };

    void machineSelect(int32_t architecture, int32_t sharedBytes)
    {
        gDevice.architecture = architecture;
        gDevice.sharedBytes = sharedBytes;
    }

    //! A kernel by name; its code may come later (`machineLoadKernel`).
    void machineNameKernel(char const* name)
    {
        gDevice.kernels[keyOf(name)].name = name;
    }

    void machineLoadKernel(char const* name, sass::Encoded const* code, int32_t instructions, uint8_t const* constants,
        int32_t constantBytes, int32_t parameterOffset, int32_t parameterBytes, int32_t keptShared,
        int32_t staticShared)
    {
        sass::Kernel& kernel = gDevice.kernels[keyOf(name)];
        kernel = {name, {code, code + instructions}, {}, {}, {constants, constants + constantBytes}, parameterOffset,
            parameterBytes, keptShared, staticShared, {}};
        kernel.counts.resize(kernel.code.size());
        for (sass::Encoded const& instruction : kernel.code)
        {
            auto const found = sass::handlers().find(instruction.name);
            kernel.handlers.push_back(found == sass::handlers().end() ? nullptr : &found->second);
        }
    }

    //! Forget what a kernel did.
    void machineReset(char const* name)
    {
        sass::Kernel& kernel = gDevice.kernels[keyOf(name)];
        kernel.counts.assign(kernel.code.size(), {});
        kernel.traces.clear();
    }

    void machineGetCounts(char const* name, sass::Counts* counts)
    {
        sass::Kernel const& kernel = gDevice.kernels[keyOf(name)];
        std::memcpy(counts, kernel.counts.data(), kernel.counts.size() * sizeof(sass::Counts));
    }

    //! Time of `stream`, numbers of blocks in the order in which they were executed since the reset; see timing.h.
    void machineSimulate(char const* name, uint32_t const* stream, int32_t count, int32_t resident, int64_t* finished)
    {
        auto const ends = sass::simulate(gDevice.kernels[keyOf(name)], {stream, stream + count}, resident);
        std::memcpy(finished, ends.data(), ends.size() * sizeof(int64_t));
    }

    //! Blocks that launches execute; none: a launch is noted only.
    void machineSetBlocks(uint32_t const* blocks, int32_t count)
    {
        gDevice.blocks.assign(blocks, blocks + count);
        gDevice.plansOnly = count == 0;
    }

    //! In which order launches run the warps of a block: any is right where no barrier is missing.
    void machineSetOrder(bool lastWarpFirst)
    {
        gDevice.lastWarpFirst = lastWarpFirst;
    }

    void machineAllow(sass::Range const* ranges, int32_t count)
    {
        gDevice.memory.assign(ranges, ranges + count);
    }

    Launched machineLaunched()
    {
        return gLaunched;
    }

    char const* machineError()
    {
        return gDevice.error.c_str();
    }

    //! Launch a kernel that has one block of threads or more and these parameters. A status of CUDA.
    int32_t machineLaunch(char const* name, uint32_t blocks, uint32_t threads, uint32_t sharedBytes, void* parameters)
    {
        gDevice.error.clear();
        auto const function = reinterpret_cast<CUfunction>(&gDevice.kernels[keyOf(name)]);
        return cuLaunchKernel(function, blocks, 1, 1, threads, 1, 1, sharedBytes, nullptr, &parameters, nullptr);
    }

    static DecodeProblem problemOf(Decode const& decode)
    {
        DecodeProblem problem{{decode.classes, 16, 16, 8, 4, {}, {}}, static_cast<ElementType>(decode.type), 1,
            decode.rows, decode.columns, decode.theta, decode.guidance};
        std::memcpy(problem.shape.xTable, decode.xTable, sizeof(decode.xTable));
        std::memcpy(problem.shape.yTable, decode.yTable, sizeof(decode.yTable));
        return problem;
    }

    bool machineSupports(Decode const* decode)
    {
        DecodeProblem const problem = problemOf(*decode);
        return supportsMask(problem.shape, problem.type, static_cast<Variant>(decode->variant));
    }

    int32_t machineVariants()
    {
        return kNB_VARIANTS;
    }

    //! A status of CUDA.
    int32_t machineDecode(Decode const* decode)
    {
        gDevice.error.clear();
        return patchDecodeMask(problemOf(*decode), decode->mask, static_cast<MaskType>(decode->maskType),
            static_cast<Variant>(decode->variant), decode->prune, nullptr);
    }

    void machineReference(Decode const* decode)
    {
        hostPatchDecodeMask(problemOf(*decode), decode->mask, static_cast<MaskType>(decode->maskType), decode->prune);
    }

    //! fp32 logits of theta and guidance, which are fp32.
    void machineReferenceLogits(Decode const* decode, float* logits)
    {
        hostPatchDecode(problemOf(*decode), logits);
    }

} // extern "C"
