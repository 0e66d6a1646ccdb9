#include "fake_runtime.h"

#include <string>
#include <utility>

namespace
{

int32_t gVersion = 0;

class Logger final : public nvinfer1::ILogger
{
public:
    void log(Severity, nvinfer1::AsciiChar const* text) noexcept override
    {
        mText += std::string(text) + "\n";
    }

    std::string mText;
};

Logger gLogger;

class Finder final : public nvinfer1::ILoggerFinder
{
public:
    nvinfer1::ILogger* findLogger() override
    {
        return &gLogger;
    }
};

} // namespace

int32_t getInferLibVersion() noexcept
{
    return gVersion;
}

void setFakeVersion(int32_t version)
{
    gVersion = version;
}

nvinfer1::ILoggerFinder* fakeFinder()
{
    static Finder finder;
    return &finder;
}

char const* takeFakeLog()
{
    static std::string taken;
    taken = std::exchange(gLogger.mText, {});
    return taken.c_str();
}
