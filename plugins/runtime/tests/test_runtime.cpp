// The runtime library on a GPU and a TensorRT that note calls: test_runtime FOLDER, with bundles and plugin libraries.
#include <nrd_trt/runtime.h>

#include "../../nrd_decode/tests/check.h"
#include "fake_gpu.h"

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

namespace
{

using nrd::Engine;
using nrd::Fault;
using nrd::Settings;

std::string gFolder;

std::string path(char const* name)
{
    return gFolder + "/" + name;
}

Settings quiet(std::vector<std::string>* said = nullptr)
{
    Settings settings;
    settings.plugin = path("libnrd_trt_plugin.so");
    settings.warn = [said](std::string const& text)
    {
        if (said != nullptr)
        {
            said->push_back(text);
        }
    };
    return settings;
}

//! The fault of a call and what it says; nothing where it throws none.
template <typename Call>
std::optional<Fault> faultOf(Call&& call, std::string& text)
{
    try
    {
        call();
    }
    catch (nrd::Error const& error)
    {
        text = error.what();
        return error.fault;
    }
    return std::nullopt;
}

//! An image in memory whose rows have some bytes between them, and its mask as the fake engines draw it.
struct Frame
{
    Frame(int32_t height, int32_t width, size_t gap, int32_t seed)
        : height(height)
        , width(width)
        , stride(3 * static_cast<size_t>(width) + gap)
        , maskStride(static_cast<size_t>(width) + gap)
        , image(stride * static_cast<size_t>(height))
        , mask(maskStride * static_cast<size_t>(height), 77)
        , expected(mask)
    {
        for (size_t i = 0; i < image.size(); ++i)
        {
            image[i] = static_cast<uint8_t>((i * i + i / 7 + static_cast<size_t>(seed) * 31) % 251);
        }
        for (size_t y = 0; y < static_cast<size_t>(height); ++y)
        {
            for (size_t x = 0; x < static_cast<size_t>(width); ++x)
            {
                uint8_t const* const pixel = &image[y * stride + 3 * x];
                expected[y * maskStride + x] = static_cast<uint8_t>((pixel[0] + 2 * pixel[1] + 4 * pixel[2]) % 3);
            }
        }
    }

    //! Whether an engine draws the mask, and nothing between its rows.
    bool isDrawnBy(Engine& engine)
    {
        std::fill(mask.begin(), mask.end(), uint8_t{77});
        bool const gaps = stride > 3 * static_cast<size_t>(width);
        engine.segment(
            {image.data(), height, width, gaps ? stride : 0}, {mask.data(), height, width, gaps ? maskStride : 0});
        return mask == expected;
    }

    int32_t height;
    int32_t width;
    size_t stride;
    size_t maskStride;
    std::vector<uint8_t> image;
    std::vector<uint8_t> mask;
    std::vector<uint8_t> expected;
};

char const* const kQUEUED = "upload enqueueV3 download";

void testOrderOfCalls()
{
    takeCalls();
    {
        Engine engine(path("packed.nrd"), quiet());
        std::string const opened = takeCalls();
        CHECK_IN(opened
                == "cudaDeviceGetAttribute cudaDeviceGetAttribute loadLibrary cudaSetDevice createInferRuntime "
                   "deserializeCudaEngine createExecutionContext setInputShape cudaStreamCreateWithFlags "
                   "cudaDeviceGetAttribute cudaHostAlloc cudaMalloc cudaHostAlloc cudaMalloc setTensorAddress "
                   "setTensorAddress cudaSetDevice "
                    + std::string(kQUEUED) + " cudaStreamSynchronize cudaStreamBeginCapture " + kQUEUED
                    + " cudaStreamEndCapture cudaGraphInstantiate cudaGraphDestroy",
            opened);
        CHECK(engine.info().cudaGraph);
        CHECK(engine.info().height == 32 && engine.info().width == 64);
        CHECK(engine.info().classNames == (std::vector<std::string>{"Straße", "sky", "car"}));
        CHECK(engine.info().palette.at(1) == (std::array<uint8_t, 3>{0, 128, 0}));
        for (int32_t seed = 0; seed < 3; ++seed)
        {
            CHECK(Frame(32, 64, 0, seed).isDrawnBy(engine));
            CHECK(takeCalls() == std::string("cudaSetDevice cudaGraphLaunch cudaStreamSynchronize"));
        }
    }
    std::string const closed = takeCalls();
    CHECK_IN(closed
            == "cudaSetDevice cudaGraphExecDestroy ~context ~engine ~runtime cudaFree cudaFree cudaFreeHost "
               "cudaFreeHost "
               "cudaStreamDestroy",
        closed);
    CHECK(liveThings() == 0);
}

void testStridesAndPinnedMemory()
{
    Engine engine(path("plain.nrd"), quiet());
    CHECK(Frame(32, 64, 13, 1).isDrawnBy(engine));
    CHECK(Frame(32, 64, 1, 2).isDrawnBy(engine));
    Frame const frame(32, 64, 0, 3);
    std::copy(frame.image.begin(), frame.image.end(), engine.input());
    uint8_t const* const mask = engine.run();
    CHECK(std::equal(frame.expected.begin(), frame.expected.end(), mask));
}

void testWithoutAGraph()
{
    Settings settings = quiet();
    settings.cudaGraph = false;
    Engine plain(path("plain.nrd"), settings);
    takeCalls();
    CHECK(!plain.info().cudaGraph && Frame(32, 64, 0, 1).isDrawnBy(plain));
    CHECK(takeCalls() == "cudaSetDevice " + std::string(kQUEUED) + " cudaStreamSynchronize");
    for (char const* name : {"cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate"})
    {
        std::vector<std::string> said;
        failAll(name);
        Engine engine(path("plain.nrd"), quiet(&said));
        failAll(nullptr);
        CHECK_IN(!engine.info().cudaGraph && Frame(32, 64, 0, 1).isDrawnBy(engine), name);
        CHECK_IN(said.size() == 1 && said[0].find("runs go on without a CUDA graph, with the same masks") == 0, name);
    }
    CHECK(liveThings() == 8); // the first engine's
}

void testOneMemoryIsNotCopied()
{
    setIntegrated(true);
    takeCalls();
    Engine engine(path("plain.nrd"), quiet());
    std::string const opened = takeCalls();
    CHECK_IN(opened.find("cudaHostAlloc(mapped) cudaHostGetDevicePointer") != std::string::npos, opened);
    CHECK_IN(opened.find("load") == std::string::npos && opened.find("cudaMalloc") == std::string::npos, opened);
    CHECK(Frame(32, 64, 0, 1).isDrawnBy(engine));
    setIntegrated(false);
}

void testOtherOutputsStayOnTheGpu()
{
    Engine engine(path("logits.nrd"), quiet());
    CHECK(Frame(32, 64, 0, 1).isDrawnBy(engine));
}

void testWrongImages()
{
    Engine engine(path("plain.nrd"), quiet());
    Frame frame(32, 64, 0, 1);
    nrd::Image const image{frame.image.data(), 32, 64};
    nrd::Mask const mask{frame.mask.data(), 32, 64};
    takeCalls();
    std::string text;
    CHECK(faultOf(
              [&]
              {
                  engine.segment({image.data, 64, 32}, mask);
              },
              text)
        == Fault::kARGUMENT);
    CHECK_IN(text
            == "rgb: expected 32x64 in rows of 192 bytes or more, got 64x32 in rows of 192 bytes; bring the image to "
               "the "
               "engine's size, or build for this one.",
        text);
    CHECK(faultOf(
              [&]
              {
                  engine.segment({nullptr, 32, 64}, mask);
              },
              text)
        == Fault::kARGUMENT);
    CHECK_IN(text.find("rgb: expected 32x64 in rows of 192 bytes or more, got a null pointer;") == 0, text);
    CHECK(faultOf(
              [&]
              {
                  engine.segment({image.data, 32, 64, 191}, mask);
              },
              text)
        == Fault::kARGUMENT);
    CHECK(faultOf(
              [&]
              {
                  engine.segment(image, {mask.data, 32, 32});
              },
              text)
        == Fault::kARGUMENT);
    CHECK(faultOf(
              [&]
              {
                  engine.segment(image, {mask.data, 32, 64, 63});
              },
              text)
        == Fault::kARGUMENT);
    CHECK_IN(text.find("mask: expected 32x64 in rows of 64 bytes or more, got 32x64 in rows of 63 bytes;") == 0, text);
    CHECK(std::string(takeCalls()).empty());
    CHECK(frame.isDrawnBy(engine));
    Settings settings = quiet();
    settings.device = 1;
    CHECK(faultOf(
              [&]
              {
                  Engine other(path("plain.nrd"), settings);
              },
              text)
        == Fault::kARGUMENT);
}

void testTwoEnginesAndOnePlugin()
{
    takeCalls();
    Engine first(path("packed.nrd"), quiet());
    Engine second(path("larger.nrd"), quiet());
    CHECK(std::string(takeCalls()).find("loadLibrary") == std::string::npos); // an earlier engine has loaded it
    for (int32_t seed = 0; seed < 2; ++seed)
    {
        CHECK(Frame(32, 64, 5, seed).isDrawnBy(first));
        CHECK(Frame(64, 96, 0, seed).isDrawnBy(second));
    }
    Settings settings = quiet();
    settings.plugin = path("other.so");
    std::string text;
    CHECK(faultOf(
              [&]
              {
                  Engine other(path("other.nrd"), settings);
              },
              text)
        == Fault::kPLUGIN);
    CHECK_IN(text.find("expected no other plugin library in this process, got SHA-256 ") != std::string::npos, text);
}

//! Let the first call fail, then the second, and so on until none is left: all is released, whichever it is.
void testEveryFailure()
{
    int32_t number = 0;
    int32_t refusedGraphs = 0;
    for (bool opened = false; !opened && number < 99; CHECK_IN(liveThings() == 0, std::to_string(number)))
    {
        failCall(++number);
        std::string text;
        auto const fault = faultOf(
            [&]
            {
                Engine engine(path("logits.nrd"), quiet());
                opened = engine.info().cudaGraph;
                refusedGraphs += opened ? 0 : 1;
            },
            text);
        failCall(0);
        CHECK_IN(!fault || (*fault == Fault::kBUNDLE) == (text.find("tensors") != std::string::npos), text);
        CHECK_IN(!fault || text.find("expected ") < text.find(", got "), text);
    }
    CHECK(number == 29 && refusedGraphs == 6); // the last of them finds no call left to fail

    Engine engine(path("plain.nrd"), quiet());
    Settings settings = quiet();
    settings.cudaGraph = false;
    Engine plain(path("plain.nrd"), settings);
    Frame frame(32, 64, 0, 1);
    for (int32_t call = 1; call <= 5; ++call)
    {
        for (Engine* one : {&engine, &plain})
        {
            failCall(call);
            std::string text;
            auto const fault = faultOf(
                [&]
                {
                    CHECK(frame.isDrawnBy(*one));
                },
                text);
            failCall(0);
            CHECK(fault.value_or(Fault::kRUNTIME) == Fault::kRUNTIME);
            CHECK(fault.has_value() == (call <= (one == &engine ? 3 : 5)));
            CHECK(frame.isDrawnBy(*one));
        }
    }
}

} // namespace

int main(int, char** arguments)
{
    gFolder = arguments[1];
    testOrderOfCalls();
    testStridesAndPinnedMemory();
    testWithoutAGraph();
    testOneMemoryIsNotCopied();
    testOtherOutputsStayOnTheGpu();
    testWrongImages();
    testTwoEnginesAndOnePlugin();
    testEveryFailure();
    CHECK(liveThings() == 0);
    return nrd::test::result();
}
