/*
 * Where messages go: the logger of a runtime of our major; stderr, and no call through its objects, for another major.
 */
#include "check.h"
#include "fake_runtime.h"
#include "plugins.h"

#include <cstdlib>

#include <unistd.h>

using namespace nrd::test;

namespace
{

//! What `action` writes to stderr.
template <typename TAction>
std::string captureStderr(TAction const& action)
{
    std::FILE* const file = std::tmpfile();
    std::fflush(stderr);
    int const saved = dup(STDERR_FILENO);
    dup2(fileno(file), STDERR_FILENO);
    action();
    std::fflush(stderr);
    dup2(saved, STDERR_FILENO);
    close(saved);
    std::string text(65536, '\0');
    std::rewind(file);
    text.resize(std::fread(text.data(), 1, text.size(), file));
    std::fclose(file);
    return text;
}

void makeWrong()
{
    CHECK(!create(makeFields(releasedShape()).integer("nonsense", 1), false));
}

bool contains(std::string const& text, std::string const& part)
{
    return text.find(part) != std::string::npos;
}

constexpr char const* kMESSAGE = "NrdPatchDecode: nonsense: got an unknown attribute";

void testNoRuntime()
{
    std::string const text = captureStderr(makeWrong);
    CHECK_IN(contains(text, std::string("[nrd_trt] error: ") + kMESSAGE), text);
}

void testSameMajor()
{
    setFakeVersion(NV_TENSORRT_MAJOR * 10000 + 9999);
    CHECK(captureStderr(
        []
        {
            setLoggerFinder(fakeFinder());
        }).empty());
    CHECK(captureStderr(makeWrong).empty());
    CHECK(contains(takeFakeLog(), kMESSAGE));
}

//! After a runtime of our major was there, so that its logger must be forgotten.
void testOtherMajor()
{
    for (int32_t const major : {NV_TENSORRT_MAJOR - 1, NV_TENSORRT_MAJOR + 1, 1})
    {
        setFakeVersion(major * 10000 + 701);
        std::string const warning = captureStderr(
            []
            {
                setLoggerFinder(fakeFinder());
            });
        CHECK_IN(contains(warning, "loaded by TensorRT " + std::to_string(major) + ","), warning);
        CHECK(contains(captureStderr(makeWrong), kMESSAGE));
        CHECK_IN(std::string(takeFakeLog()).empty(), "the logger was called");
    }
}

//! A finder that lies in no library with a version, as one in this program.
void testUnknownRuntime()
{
    class Finder final : public nvinfer1::ILoggerFinder
    {
    public:
        nvinfer1::ILogger* findLogger() override
        {
            ++calls;
            return nullptr;
        }

        int calls{0};
    };
    Finder finder;
    std::string const warning = captureStderr(
        [&]
        {
            setLoggerFinder(&finder);
        });
    CHECK_IN(contains(warning, "loaded by an unknown runtime"), warning);
    CHECK(contains(captureStderr(makeWrong), kMESSAGE));
    CHECK(finder.calls == 0);
}

void testForgetting()
{
    testSameMajor();
    setLoggerFinder(nullptr);
    CHECK(contains(captureStderr(makeWrong), kMESSAGE));
    CHECK(std::string(takeFakeLog()).empty());
}

} // namespace

int main()
{
    testNoRuntime();
    testSameMajor();
    testOtherMajor();
    testUnknownRuntime();
    testForgetting();
    return result();
}
