#include "report.h"

#include <atomic>
#include <cstdio>

#include <dlfcn.h>

using nvinfer1::ErrorCode;
using nvinfer1::IErrorRecorder;
using nvinfer1::ILogger;
using nvinfer1::ILoggerFinder;
using nvinfer1::IPluginRegistry;

namespace nrd
{
namespace
{

// Long enough for the list of all attributes; a longer text is cut.
constexpr size_t kMAX_TEXT = 1024;

using RegistryGetter = IPluginRegistry* (*)();
using LoggerGetter = ILogger* (*)();

// Of the runtime adopted last; all null when its major is not ours. Never closed over a library's life: a runtime that
// is gone calls no plugin, and the next one replaces them.
std::atomic<ILoggerFinder*> gFinder{nullptr};
std::atomic<RegistryGetter> gRegistry{nullptr};
std::atomic<LoggerGetter> gLogger{nullptr};

void forget() noexcept
{
    gFinder = nullptr;
    gRegistry = nullptr;
    gLogger = nullptr;
}

//! TensorRT finds the logger of the engine or context that called us from the calling thread.
ILogger* findLogger() noexcept
{
    try
    {
        ILoggerFinder* const finder = gFinder;
        if (ILogger* const logger = finder == nullptr ? nullptr : finder->findLogger())
        {
            return logger;
        }
        LoggerGetter const getLogger = gLogger;
        return getLogger == nullptr ? nullptr : getLogger();
    }
    catch (...)
    {
        return nullptr;
    }
}

IErrorRecorder* registryRecorder() noexcept
{
    RegistryGetter const getRegistry = gRegistry;
    IPluginRegistry* const registry = getRegistry == nullptr ? nullptr : getRegistry();
    return registry == nullptr ? nullptr : registry->getErrorRecorder();
}

void tell(ILogger::Severity severity, char const* text) noexcept
{
    if (ILogger* const logger = findLogger())
    {
        logger->log(severity, text);
        return;
    }
    char const* const word = severity == ILogger::Severity::kWARNING ? "warning" : "error";
    std::fprintf(stderr, "[nrd_trt] %s: %s\n", word, text);
}

void warnOfOtherMajor(int32_t major) noexcept
{
    char runtime[32] = "an unknown runtime";
    if (major != 0)
    {
        std::snprintf(runtime, sizeof(runtime), "TensorRT %d", major);
    }
    std::fprintf(stderr,
        "[nrd_trt] warning: built with the headers of TensorRT %d.%d and loaded by %s, whose logger cannot be called: "
        "messages go to stderr; rebuild with its headers in TENSORRT_ROOT\n",
        NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR, runtime);
}

} // namespace

int32_t runtimeMajor(void* library) noexcept
{
    using VersionGetter = int32_t (*)();
    auto const getVersion = reinterpret_cast<VersionGetter>(dlsym(library, "getInferLibVersion"));
    return getVersion == nullptr ? 0 : getVersion() / 10000; // 100300 is 10.3.0, 10701 is TensorRT-RTX 1.7.1
}

void* libraryOf(void const* address) noexcept
{
    Dl_info info{};
    if (dladdr(address, &info) == 0 || info.dli_fname == nullptr)
    {
        return nullptr;
    }
    return dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
}

void adoptFinder(ILoggerFinder* finder) noexcept
{
    forget();
    if (finder == nullptr)
    {
        return;
    }
    // A process can hold several runtimes, none of them in the global scope. The finder's own runtime is the library
    // that holds its virtual table, and the first word of the object points there in every version.
    void* const library = libraryOf(*reinterpret_cast<void const* const*>(finder));
    int32_t const major = library == nullptr ? 0 : runtimeMajor(library);
    if (major == NV_TENSORRT_MAJOR)
    {
        adoptLibrary(library);
        gFinder = finder;
    }
    else
    {
        warnOfOtherMajor(major);
    }
    if (library != nullptr)
    {
        dlclose(library);
    }
}

void adoptLibrary(void* library) noexcept
{
    gRegistry = reinterpret_cast<RegistryGetter>(dlsym(library, "getPluginRegistry"));
    gLogger = reinterpret_cast<LoggerGetter>(dlsym(library, "getLogger"));
}

void reportError(ErrorCode code, char const* subject, char const* what, IErrorRecorder* recorder) noexcept
{
    char text[kMAX_TEXT];
    std::snprintf(text, sizeof(text), "%s: %s", subject, what);
    if (recorder == nullptr)
    {
        recorder = registryRecorder();
    }
    if (recorder != nullptr)
    {
        recorder->reportError(code, text);
    }
    tell(ILogger::Severity::kERROR, text);
}

void reportWarning(char const* subject, char const* what) noexcept
{
    char text[kMAX_TEXT];
    std::snprintf(text, sizeof(text), "%s: %s", subject, what);
    tell(ILogger::Severity::kWARNING, text);
}

} // namespace nrd
