#include "runtime.h"

#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>
#include <nlohmann/json.hpp>
#include <openssl/evp.h>

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <mutex>

#include <sys/utsname.h>

namespace nrd
{
namespace
{

using nlohmann::json;
using nvinfer1::DataType;
using std::string;
using std::to_string;

constexpr int kSCHEMA = 1;
constexpr int kDEEPEST = 32;                // levels of JSON
constexpr uintmax_t kMOST_RECORD = 1 << 24; // bytes of bundle.json
constexpr uintmax_t kMOST_BINARY = uintmax_t{1} << 32;

void require(
    bool holds, Fault fault, string const& what, string const& expected, string const& got, string const& remedy)
{
    if (!holds)
    {
        string text = what + ": expected " + expected + ", got " + got + "; " + remedy + ".";
        std::replace_if(text.begin(), text.end(), ::iscntrl, '?'); // what a file says may be for a terminal
        throw Error(fault, text);
    }
}

string textOf(cudaError_t status)
{
    return string(cudaGetErrorName(status)) + " (" + cudaGetErrorString(status) + ")";
}

void check(cudaError_t status, char const* call)
{
    if (status != cudaSuccess)
    {
        cudaGetLastError(); // so that no later call is blamed for it
        require(false, Fault::kRUNTIME, call, "success", textOf(status),
            status == cudaErrorMemoryAllocation ? "free memory, or build for a smaller size"
                                                : "open the engine again, in a new process if need be");
    }
}

string readFile(Fault fault, string const& path, uintmax_t most, string const& remedy)
{
    std::error_code error;
    bool const found = std::filesystem::is_regular_file(path, error);
    uintmax_t const size = found ? std::filesystem::file_size(path, error) : 0;
    require(found && size <= most, fault, path, found ? "at most " + to_string(most) + " bytes" : "a file",
        found ? to_string(size) : "none", remedy);
    string content(size, '\0');
    std::ifstream file(path, std::ios::binary);
    file.read(content.data(), static_cast<std::streamsize>(size));
    require(file.good(), fault, path, "a file that can be read", "a failure", "check its permissions");
    return content;
}

string sha256(string const& content)
{
    std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
    unsigned int size = 0;
    int const done = EVP_Digest(content.data(), content.size(), digest.data(), &size, EVP_sha256(), nullptr);
    require(done == 1, Fault::kRUNTIME, "SHA-256", "a digest", "a failure of OpenSSL", "check its installation");
    string text;
    for (unsigned int i = 0; i < size; ++i)
    {
        constexpr char kDIGITS[] = "0123456789abcdef";
        text += {kDIGITS[digest[i] >> 4], kDIGITS[digest[i] & 15]};
    }
    return text;
}

string shortened(string const& digest)
{
    return "SHA-256 " + digest.substr(0, 12) + "…";
}

string readVerified(Fault fault, string const& path, string const& expected, string const& remedy)
{
    string content = readFile(fault, path, kMOST_BINARY, remedy);
    string const digest = sha256(content);
    require(digest == expected, fault, path, shortened(expected), shortened(digest), remedy);
    return content;
}

string rebuild(string const& bundle)
{
    return "rebuild it on this machine: `nrd-trt build " + bundle + " -o " + bundle + " --builder tensorrt --force`";
}

//! The SHA-256 that a record tells of itself is that of its JSON without blanks and without the line that tells it.
string digestOfRecord(string text, string const& claimed)
{
    string const line = "\n \"sha256\": \"" + claimed + "\",";
    text.erase(std::min(text.find(line), text.size()), line.size());
    string compact;
    bool quoted = false;
    bool escaped = false;
    for (char const c : text)
    {
        quoted ^= c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        if (quoted || (c != ' ' && c != '\n'))
        {
            compact += c;
        }
    }
    return sha256(compact);
}

//! Parse `bundle.json`, bounded in size and depth, and compare it with its own SHA-256.
json readRecord(string const& bundle)
{
    string const path = bundle + "/bundle.json";
    string const text = readFile(Fault::kBUNDLE, path, kMOST_RECORD, "check the path, or restore the bundle");
    auto const shallow = [](int depth, json::parse_event_t, json const&)
    {
        return depth <= kDEEPEST; // nothing that is used lies deeper
    };
    auto record = json::parse(text, shallow);
    require(record.at("format") == kSCHEMA, Fault::kBUNDLE, path, "schema " + to_string(kSCHEMA),
        record.at("format").dump(), "use the library of the nrd_trt that wrote it");
    string const claimed = record.at("sha256");
    require(digestOfRecord(text, claimed) == claimed, Fault::kBUNDLE, path, "content of its own " + shortened(claimed),
        "another one: it was edited", "restore or rebuild the bundle");
    return record;
}

Info readInfo(string const& bundle, json const& model)
{
    auto const& shape = model.at("shape");
    Info info{shape.at("/height/opt"_json_pointer), shape.at("/width/opt"_json_pointer),
        model.at("/info/class_names"_json_pointer), model.at("/info/palette"_json_pointer), false};
    string const form = model.at("input_form");
    string const outputs = model.at("output");
    string const batch = shape.at("/batch/min"_json_pointer).dump();
    require(form == "uint8" && outputs != "logits" && batch == "1", Fault::kHOST, bundle,
        "an engine that takes one image as uint8 and draws its mask",
        "the input form " + form + ", the outputs " + outputs + " and batches from " + batch,
        "export and build it with the defaults of these");
    return info;
}

//! No other version of TensorRT loads a plan, unless it is made for that, and this file was compiled for one major.
void checkSoftware(string const& bundle, json const& builder)
{
    string const here = to_string(getInferLibMajorVersion()) + "." + to_string(getInferLibMinorVersion()) + "."
        + to_string(getInferLibPatchVersion()) + "." + to_string(getInferLibBuildVersion());
    require(getInferLibMajorVersion() == NV_TENSORRT_MAJOR, Fault::kHOST, "libnvinfer",
        "TensorRT " + to_string(NV_TENSORRT_MAJOR) + " of the headers", here,
        "compile the runtime library with the headers of this TensorRT");
    string const name = builder.at("name");
    string const machine = builder.at("machine");
    string const version = name == "onnxruntime" ? "" : builder.at("version").get<string>(); // there is no plan
    utsname system{};
    uname(&system);
    bool const same = (here + ".").rfind(version + ".", 0) == 0; // the build's number may be left out
    bool const newer = builder.value("version_compatible", false);
    require(name == "tensorrt" && machine == system.machine && (same || newer), Fault::kHOST, bundle,
        "what it was built for, " + name + " " + version + " on " + machine,
        "tensorrt " + here + " on " + system.machine, rebuild(bundle));
}

int32_t attributeOf(int32_t device, cudaDeviceAttr attribute)
{
    int32_t value = 0;
    check(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
    return value;
}

void checkGpu(string const& bundle, json const& builder, int32_t device)
{
    int32_t count = 0;
    cudaError_t const status = cudaGetDeviceCount(&count);
    require(status == cudaSuccess && count > 0, Fault::kHOST, "CUDA", "an NVIDIA GPU and its driver", textOf(status),
        "`nrd-trt doctor` says what this machine lacks");
    require(device >= 0 && device < count, Fault::kARGUMENT, "Settings::device", "a number below " + to_string(count),
        to_string(device), "number the GPUs from 0, as CUDA does");
    string const here = to_string(attributeOf(device, cudaDevAttrComputeCapabilityMajor)) + "."
        + to_string(attributeOf(device, cudaDevAttrComputeCapabilityMinor));
    bool fits = false;
    for (string const one : builder.at("compute_capabilities"))
    {
        bool const earlier = std::strtod(one.c_str(), nullptr) < std::strtod(here.c_str(), nullptr);
        fits = fits || one == here || (earlier && builder.value("hardware_compatible", false));
    }
    require(fits, Fault::kHOST, bundle, "a GPU of compute capability " + builder.at("compute_capabilities").dump(),
        here, rebuild(bundle));
}

//! Register the plugin's ops, which stay until the process ends: a process has one registry and takes one library.
void loadPlugin(string const& bundle, string const& expected, string const& given)
{
    static std::mutex mutex;
    static string loaded;
    std::lock_guard<std::mutex> const lock(mutex);
    auto& registry = *getPluginRegistry();
    if (registry.getCreator("NrdPatchDecodeMask", "1", "nrd") != nullptr)
    {
        require(loaded == expected, Fault::kPLUGIN, bundle, "no other plugin library in this process",
            loaded.empty() ? "the ops of one that was not loaded here" : shortened(loaded),
            "preload none, and use one process for each plugin library");
        return;
    }
    char const* const named = std::getenv("NRD_TRT_PLUGIN");
    string const path = !given.empty() ? given : named != nullptr && *named != '\0' ? named : NRD_PLUGIN_FILE;
    readVerified(Fault::kPLUGIN, path, expected,
        "name the library that the plan was built with in Settings::plugin or NRD_TRT_PLUGIN, or " + rebuild(bundle));
    require(registry.loadLibrary(std::filesystem::absolute(path).c_str()) != nullptr, Fault::kPLUGIN, path,
        "TensorRT to take its ops", "a refusal", "compile it with the headers of this TensorRT");
    loaded = expected;
}

//! Hands on warnings and errors, and keeps the last error for the text of an exception.
class Logger final : public nvinfer1::ILogger
{
public:
    std::function<void(string const&)> mWarn;

    void log(Severity severity, nvinfer1::AsciiChar const* text) noexcept override
    {
        if (severity <= Severity::kWARNING)
        {
            std::lock_guard<std::mutex> const lock(mMutex);
            mLast = severity < Severity::kWARNING ? text : mLast;
            mWarn ? mWarn(text) : static_cast<void>(std::fprintf(stderr, "[nrd_trt] %s\n", text));
        }
    }

    string lastError()
    {
        std::lock_guard<std::mutex> const lock(mMutex);
        return mLast.empty() ? "a refusal without a reason" : mLast;
    }

private:
    std::mutex mMutex;
    string mLast;
};

string textOf(int32_t height, int32_t width, size_t stride)
{
    return to_string(height) + "x" + to_string(width) + " in rows of " + to_string(stride) + " bytes";
}

//! Return the bytes from row to row of an image or a mask, whose size is checked.
template <typename T>
size_t strideOf(char const* name, View<T> const& view, Info const& info, size_t row)
{
    size_t const stride = view.stride == 0 ? row : view.stride;
    bool const fits = view.data != nullptr && view.height == info.height && view.width == info.width && stride >= row;
    require(fits, Fault::kARGUMENT, name, textOf(info.height, info.width, row) + " or more",
        view.data == nullptr ? "a null pointer" : textOf(view.height, view.width, stride),
        "bring the image to the engine's size, or build for this one");
    return stride;
}

} // namespace

struct Engine::Impl
{
    Impl(string const& bundle, json const& record, Settings const& settings)
        : mInfo(readInfo(bundle, record.at("model")))
        , mPixels(static_cast<size_t>(mInfo.height) * static_cast<size_t>(mInfo.width))
        , mDevice(settings.device)
        , mPacked(record.at("/model/mask_encoding"_json_pointer) == "u8x4")
    {
        mLogger.mWarn = settings.warn;
        string const plan
            = readVerified(Fault::kBUNDLE, bundle + "/model.plan", record.at("/files/model.plan"_json_pointer),
                "it was changed after the bundle was made: restore it, or " + rebuild(bundle));
        if (record.at("decode") == "plugin")
        {
            loadPlugin(bundle, record.at("/plugin/sha256"_json_pointer), settings.plugin);
        }
        check(cudaSetDevice(mDevice), "cudaSetDevice");
        load(bundle, plan, record.at("builder").value("version_compatible", false));
        allocate(bundle);
        run(); // the first run may allocate, which a capture must not
        if (settings.cudaGraph)
        {
            capture();
        }
        mInfo.cudaGraph = mReplay != nullptr;
    }

    //! A plan that other versions of TensorRT load, too, holds the runtime of its own, which is code.
    void load(string const& bundle, string const& plan, bool holdsCode)
    {
        auto const have = [&](bool holds, char const* expected)
        {
            require(holds, Fault::kRUNTIME, bundle + "/model.plan", expected, holds ? "" : mLogger.lastError(),
                "free memory, see `nrd-trt doctor`, or " + rebuild(bundle));
        };
        mRuntime.reset(nvinfer1::createInferRuntime(mLogger));
        have(mRuntime != nullptr, "TensorRT to start");
        mRuntime->setEngineHostCodeAllowed(holdsCode);
        mEngine.reset(mRuntime->deserializeCudaEngine(plan.data(), plan.size()));
        have(mEngine != nullptr, "a plan that TensorRT loads");
        mContext.reset(mEngine->createExecutionContext());
        have(mContext != nullptr, "memory to run it");
        have(mContext->setInputShape("image", nvinfer1::Dims4{1, mInfo.height, mInfo.width, 3}), "its recorded size");
    }

    //! Give every tensor memory: image and mask on both sides, what else the plan draws on the GPU alone.
    void allocate(string const& bundle)
    {
        cudaStream_t stream = nullptr;
        check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
        mStream.reset(stream, cudaStreamDestroy);
        mShared = attributeOf(mDevice, cudaDevAttrIntegrated) != 0;
        mImageOnDevice = pinned(mImage, 3 * mPixels);
        mMaskOnDevice = pinned(mMask, mPixels);
        auto const shape = mContext->getTensorShape("mask");
        bool fits = shape.nbDims == 3 && shape.d[1] == mInfo.height && shape.d[2] * (mPacked ? 4 : 1) == mInfo.width
            && mEngine->getTensorDataType("image") == DataType::kUINT8
            && mEngine->getTensorDataType("mask") == (mPacked ? DataType::kINT32 : DataType::kUINT8);
        for (int32_t i = 0; fits && i < mEngine->getNbIOTensors(); ++i)
        {
            char const* const name = mEngine->getIOTensorName(i);
            int64_t const most = mContext->getMaxOutputSize(name); // -1 for inputs
            void* const address = name == string("image") ? mImageOnDevice
                : name == string("mask")                  ? mMaskOnDevice
                : most > 0                                ? onDevice(static_cast<size_t>(most))
                                                          : nullptr;
            fits = address != nullptr && mContext->setTensorAddress(name, address);
        }
        require(fits, Fault::kBUNDLE, bundle + "/model.plan",
            string("the tensors image and mask (") + (mPacked ? "u8x4" : "uint8") + ") of its record",
            "others, or of another type or size", rebuild(bundle));
    }

    void* onDevice(size_t bytes)
    {
        void* device = nullptr;
        check(cudaMalloc(&device, bytes), "cudaMalloc");
        mBlocks.emplace_back(device, cudaFree);
        return device;
    }

    //! Allocate page-locked memory; return where the GPU has these bytes: there, if the two share memory, or in a copy.
    void* pinned(std::shared_ptr<void>& host, size_t bytes)
    {
        void* address = nullptr;
        check(cudaHostAlloc(&address, bytes, mShared ? cudaHostAllocMapped : cudaHostAllocDefault), "cudaHostAlloc");
        host.reset(address, cudaFreeHost);
        std::memset(address, 0, bytes);
        if (!mShared)
        {
            return onDevice(bytes);
        }
        check(cudaHostGetDevicePointer(&address, host.get(), 0), "cudaHostGetDevicePointer");
        return address;
    }

    //! Queue a run with its copies on the stream, which may be recording a graph.
    cudaError_t queue()
    {
        cudaError_t status = mShared
            ? cudaSuccess
            : cudaMemcpyAsync(mImageOnDevice, mImage.get(), 3 * mPixels, cudaMemcpyHostToDevice, mStream.get());
        if (status == cudaSuccess && !mContext->enqueueV3(mStream.get()))
        {
            status = cudaErrorUnknown; // which one, TensorRT has told the logger
        }
        return mShared || status != cudaSuccess
            ? status
            : cudaMemcpyAsync(mMask.get(), mMaskOnDevice, mPixels, cudaMemcpyDeviceToHost, mStream.get());
    }

    //! Record a run as a graph. Where that is refused, runs go on without one, with the same masks.
    void capture()
    {
        cudaGraph_t recorded = nullptr;
        cudaGraphExec_t replay = nullptr;
        cudaError_t status = cudaStreamBeginCapture(mStream.get(), cudaStreamCaptureModeThreadLocal);
        if (status == cudaSuccess)
        {
            cudaError_t const queued = queue();
            cudaError_t const ended = cudaStreamEndCapture(mStream.get(), &recorded); // in any case
            status = queued == cudaSuccess ? ended : queued;
        }
        std::shared_ptr<CUgraph_st> const graph(recorded, cudaGraphDestroy);
        status = status == cudaSuccess ? cudaGraphInstantiate(&replay, recorded, 0) : status;
        if (status == cudaSuccess)
        {
            mReplay.reset(replay, cudaGraphExecDestroy);
            return;
        }
        cudaGetLastError();
        mLogger.log(Logger::Severity::kWARNING,
            ("runs go on without a CUDA graph, with the same masks: " + textOf(status)).c_str());
    }

    uint8_t const* run()
    {
        check(cudaSetDevice(mDevice), "cudaSetDevice");
        cudaError_t const queued = mReplay ? cudaGraphLaunch(mReplay.get(), mStream.get()) : queue();
        cudaError_t const ended = cudaStreamSynchronize(mStream.get()); // in any case: what was queued uses the buffers
        check(queued == cudaSuccess ? ended : queued, "a run");
        return static_cast<uint8_t const*>(mMask.get());
    }

    Info mInfo;
    size_t mPixels;
    int32_t mDevice;
    bool mPacked;        // four classes in each 32-bit number of the mask, which are its bytes all the same
    bool mShared{false}; // whether GPU and host have one memory
    Logger mLogger;      // goes after what logs
    std::shared_ptr<CUstream_st> mStream;
    std::shared_ptr<void> mImage;
    std::shared_ptr<void> mMask;
    void* mImageOnDevice{nullptr};
    void* mMaskOnDevice{nullptr};
    std::vector<std::shared_ptr<void>> mBlocks;
    std::unique_ptr<nvinfer1::IRuntime> mRuntime;
    std::unique_ptr<nvinfer1::ICudaEngine> mEngine;
    std::unique_ptr<nvinfer1::IExecutionContext> mContext;
    std::shared_ptr<CUgraphExec_st> mReplay;
};

Engine::Engine(string const& path, Settings const& settings)
{
    string const bundle = path.substr(0, path.find_last_not_of('/') + 1);
    try
    {
        json const record = readRecord(bundle);
        checkSoftware(bundle, record.at("builder"));
        checkGpu(bundle, record.at("builder"), settings.device);
        mImpl = std::make_unique<Impl>(bundle, record, settings);
    }
    catch (json::exception const& error)
    {
        require(false, Fault::kBUNDLE, bundle + "/bundle.json", "the record of a bundle", error.what(), "restore it");
    }
}

Engine::~Engine()
{
    cudaSetDevice(mImpl->mDevice); // what is released belongs to it
}

Info const& Engine::info() const noexcept
{
    return mImpl->mInfo;
}

void Engine::segment(Image const& rgb, Mask const& mask)
{
    auto const row = static_cast<size_t>(info().width);
    size_t const rgbStride = strideOf("rgb", rgb, info(), 3 * row);
    size_t const maskStride = strideOf("mask", mask, info(), row);
    auto const rows = static_cast<size_t>(info().height);
    for (size_t y = 0; y < rows; ++y)
    {
        std::memcpy(input() + y * 3 * row, rgb.data + y * rgbStride, 3 * row);
    }
    uint8_t const* const drawn = run();
    for (size_t y = 0; y < rows; ++y)
    {
        std::memcpy(mask.data + y * maskStride, drawn + y * row, row);
    }
}

uint8_t* Engine::input() noexcept
{
    return static_cast<uint8_t*>(mImpl->mImage.get());
}

uint8_t const* Engine::run()
{
    return mImpl->run();
}

} // namespace nrd
