#include "fake_gpu.h"

#include <NvInferRuntime.h>

#include "refusing.h" // made of TensorRT's headers: classes whose every method ends the program

#include <cstdio>
#include <map>
#include <string>

using namespace nrd::test;
using nvinfer1::DataType;
using nvinfer1::Dims;

namespace
{

nvinfer1::ILogger* gLogger = nullptr;
std::string gPlugin; //!< path of the library that was loaded

//! A plan is a line such as `32x64 u8x4 logits plugin`: size, kind of the mask, whether there are logits and a plugin.
struct Plan
{
    int32_t height{0};
    int32_t width{0};
    bool packed{false};
    bool logits{false};
    bool plugin{false};
};

void refuse(char const* text)
{
    gLogger->log(nvinfer1::ILogger::Severity::kERROR, text);
}

class FakeContext final : public nvinfer1::IExecutionContext, private refusing::VExecutionContext
{
public:
    explicit FakeContext(Plan const& plan)
        : mPlan(plan)
    {
        mImpl = this;
        made(this);
    }

    ~FakeContext() override
    {
        note("~context");
        gone(this);
    }

private:
    bool setInputShape(char const* name, Dims const& dims) noexcept override
    {
        return !fails("setInputShape") && std::string(name) == "image" && dims.nbDims == 4 && dims.d[0] == 1
            && dims.d[1] == mPlan.height && dims.d[2] == mPlan.width && dims.d[3] == 3;
    }

    Dims getTensorShape(char const*) const noexcept override
    {
        return nvinfer1::Dims3{1, mPlan.height, mPlan.packed ? mPlan.width / 4 : mPlan.width};
    }

    int64_t getMaxOutputSize(char const* name) const noexcept override
    {
        return std::string(name) == "image" ? -1 : int64_t{4} * mPlan.height * mPlan.width;
    }

    bool setTensorAddress(char const* name, void* address) noexcept override
    {
        mAddresses[name] = static_cast<uint8_t*>(address);
        return !fails("setTensorAddress");
    }

    bool enqueueV3(cudaStream_t stream) noexcept override
    {
        if (fails("enqueueV3"))
        {
            refuse("no kernel for this day");
            return false;
        }
        auto const pixels = static_cast<size_t>(mPlan.height) * static_cast<size_t>(mPlan.width);
        queue(stream,
            [pixels, image = mAddresses["image"], mask = mAddresses["mask"]]
            {
                for (size_t i = 0; i < pixels; ++i)
                {
                    mask[i] = static_cast<uint8_t>((image[3 * i] + 2 * image[3 * i + 1] + 4 * image[3 * i + 2]) % 3);
                }
            });
        return true;
    }

    Plan mPlan;
    std::map<std::string, uint8_t*> mAddresses;
};

class FakeEngine final : public nvinfer1::ICudaEngine, private refusing::VCudaEngine
{
public:
    explicit FakeEngine(Plan const& plan)
        : mPlan(plan)
    {
        mImpl = this;
        made(this);
    }

    ~FakeEngine() override
    {
        note("~engine");
        gone(this);
    }

private:
    nvinfer1::IExecutionContext* createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy) noexcept override
    {
        return fails("createExecutionContext") ? nullptr : new FakeContext(mPlan);
    }

    int32_t getNbIOTensors() const noexcept override
    {
        return mPlan.logits ? 3 : 2;
    }

    char const* getIOTensorName(int32_t index) const noexcept override
    {
        static char const* const names[] = {"image", "mask", "logits"};
        return names[index];
    }

    DataType getTensorDataType(char const* name) const noexcept override
    {
        return std::string(name) == "mask" && mPlan.packed ? DataType::kINT32 : DataType::kUINT8;
    }

    Plan mPlan;
};

class FakeRegistry final : public refusing::IPluginRegistry
{
private:
    PluginLibraryHandle loadLibrary(nvinfer1::AsciiChar const* path) noexcept override
    {
        gPlugin = fails("loadLibrary") ? "" : path;
        return gPlugin.empty() ? nullptr : &gPlugin;
    }

    nvinfer1::IPluginCreatorInterface* getCreator(
        nvinfer1::AsciiChar const*, nvinfer1::AsciiChar const*, nvinfer1::AsciiChar const*) noexcept override
    {
        return gPlugin.empty() ? nullptr : reinterpret_cast<nvinfer1::IPluginCreatorInterface*>(&gPlugin);
    }
};

class FakeRuntime final : public nvinfer1::IRuntime, private refusing::VRuntime
{
public:
    FakeRuntime()
    {
        mImpl = this;
        made(this);
    }

    ~FakeRuntime() override
    {
        note("~runtime");
        gone(this);
    }

private:
    void setEngineHostCodeAllowed(bool allowed) noexcept override
    {
        if (allowed)
        {
            note("allowHostCode");
        }
    }

    nvinfer1::ICudaEngine* deserializeCudaEngine(void const* data, size_t size) noexcept override
    {
        std::string const text(static_cast<char const*>(data), size);
        Plan plan;
        if (fails("deserializeCudaEngine") || std::sscanf(text.c_str(), "%dx%d", &plan.height, &plan.width) != 2)
        {
            refuse("Serialization assertion stdVersionRead == kSERIALIZATION_VERSION failed");
            return nullptr;
        }
        plan.packed = text.find("u8x4") != std::string::npos;
        plan.logits = text.find("logits") != std::string::npos;
        plan.plugin = text.find("plugin") != std::string::npos;
        if (plan.plugin && gPlugin.empty())
        {
            refuse("Cannot find plugin: NrdPatchDecodeMask");
            return nullptr;
        }
        return new FakeEngine(plan);
    }
};

} // namespace

extern "C"
{

    void* createInferRuntime_INTERNAL(void* logger, int32_t) noexcept
    {
        gLogger = static_cast<nvinfer1::ILogger*>(logger);
        return fails("createInferRuntime") ? nullptr : static_cast<nvinfer1::IRuntime*>(new FakeRuntime);
    }

    nvinfer1::IPluginRegistry* getPluginRegistry() noexcept
    {
        static FakeRegistry registry;
        return &registry;
    }

    int32_t getInferLibMajorVersion() noexcept
    {
        return setting("FAKE_TENSORRT", NV_TENSORRT_MAJOR);
    }

    int32_t getInferLibMinorVersion() noexcept
    {
        return NV_TENSORRT_MINOR;
    }

    int32_t getInferLibPatchVersion() noexcept
    {
        return NV_TENSORRT_PATCH;
    }

    int32_t getInferLibBuildVersion() noexcept
    {
        return NV_TENSORRT_BUILD;
    }

} // extern "C"
