/*
 * CUDA graphs, contexts and threads: the first launch of a process is captured, a context that is not the device's
 * primary one has kernels of its own, and two contexts of TensorRT work at the same time.
 */
#include "check.h"
#include "launches.h"

#include <cuda.h>

#include <thread>

#include <dlfcn.h>

using namespace nrd::test;

namespace
{

class Stream
{
public:
    Stream()
    {
        checkCuda(cudaStreamCreateWithFlags(&mStream, cudaStreamNonBlocking), "cudaStreamCreate");
    }

    Stream(Stream const&) = delete;
    Stream& operator=(Stream const&) = delete;

    ~Stream()
    {
        cudaStreamDestroy(mStream);
    }

    cudaStream_t get() const
    {
        return mStream;
    }

private:
    cudaStream_t mStream{nullptr};
};

Case maskCase()
{
    return {releasedShape(19), "u8x4", DataType::kHALF, TensorFormat::kHWC8, TensorFormat::kLINEAR, 2, 2, 3};
}

Bytes referenceOf(Case const& c, Data const& data)
{
    return c.isMask() ? data.referenceMask(maskTypeOf(c)) : data.referenceLogits();
}

//! `enqueue` under capture in the mode in which CUDA refuses whatever would allocate, load or wait.
cudaGraphExec_t capture(Plugin const& plugin, Case const& c, Inputs const& inputs, Output const& output)
{
    Stream const stream;
    auto const tensors = describe(c);
    CHECK(plugin.runtime->onShapeChange(tensors.data(), 2, &tensors[2], 1) == 0);
    checkCuda(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeGlobal), "begin capture");
    CHECK(enqueue(plugin, c, inputs, output, stream.get()) == 0);
    cudaGraph_t graph{};
    checkCuda(cudaStreamEndCapture(stream.get(), &graph), "end capture");
    cudaGraphExec_t executable{};
    checkCuda(cudaGraphInstantiateWithFlags(&executable, graph, 0), "instantiate");
    checkCuda(cudaGraphDestroy(graph), "destroy graph");
    return executable;
}

//! The graph draws what lies in the inputs when it is launched, not when it was captured.
void testCapture(Case const& c)
{
    Plugin const plugin = attach(c);
    REQUIRE(plugin);
    Data const first = dataOf(c, 1);
    Data const second = dataOf(c, 7);
    Inputs inputs(c, first);
    Output const output(inputs.outputBytes);
    cudaGraphExec_t const graph = capture(plugin, c, inputs, output);
    Stream const stream;
    for (Data const* const data : {&first, &second, &second, &first})
    {
        inputs.write(c, *data);
        checkCuda(cudaDeviceSynchronize(), "upload");
        checkCuda(cudaGraphLaunch(graph, stream.get()), "replay");
        checkCuda(cudaStreamSynchronize(stream.get()), "replay");
        bool intact = false;
        CHECK_IN(firstDifference(output.download(intact), referenceOf(c, *data), false) < 0, c.name());
        CHECK(intact);
    }
    checkCuda(cudaGraphExecDestroy(graph), "destroy");
}

//! A function of the driver, which these programs are not linked with.
template <class Function>
Function findInDriver(char const* name)
{
    void* const library = dlopen("libcuda.so.1", RTLD_NOW);
    return library == nullptr ? nullptr : reinterpret_cast<Function>(dlsym(library, name));
}

//! In a new context of the first device, such as PyCUDA's autoinit makes, after launches in the primary one.
void testOtherContext(Case const& c)
{
    auto const create = findInDriver<CUresult (*)(CUcontext*, unsigned, CUdevice)>("cuCtxCreate_v2");
    auto const destroy = findInDriver<CUresult (*)(CUcontext)>("cuCtxDestroy_v2");
    REQUIRE(create != nullptr && destroy != nullptr);
    CUcontext context{};
    REQUIRE(create(&context, 0, 0) == CUDA_SUCCESS); // it is current from now on
    {
        Plugin const plugin = attach(c);
        Data const data = dataOf(c, 5);
        Inputs const inputs(c, data);
        CHECK(plugin);
        CHECK(plugin && firstDifference(runOnce(plugin, c, inputs, 0xA5), referenceOf(c, data), false) < 0);
    }
    CHECK(destroy(context) == CUDA_SUCCESS); // the primary one is current again
}

//! What one thread does with its own context, stream and sizes.
void work(Case const& c, uint32_t seed, int& wrong)
{
    Data const data = dataOf(c, seed);
    Bytes const reference = referenceOf(c, data);
    Plugin const plugin = attach(c);
    if (!plugin)
    {
        ++wrong;
        return;
    }
    Inputs const inputs(c, data);
    auto const tensors = describe(c);
    Stream const stream;
    for (int i = 0; i < 50; ++i)
    {
        Output const output(inputs.outputBytes);
        checkCuda(cudaDeviceSynchronize(), "poison");
        bool intact = false;
        wrong += plugin.runtime->onShapeChange(tensors.data(), 2, &tensors[2], 1) == 0 ? 0 : 1;
        wrong += enqueue(plugin, c, inputs, output, stream.get()) == 0 ? 0 : 1;
        checkCuda(cudaStreamSynchronize(stream.get()), "kernel");
        wrong += firstDifference(output.download(intact), reference, false) < 0 && intact ? 0 : 1;
    }
}

void testThreads()
{
    Case other{makeShape(5, 8, 8, 4, 2), nullptr, DataType::kBF16, TensorFormat::kLINEAR, TensorFormat::kHWC8, 3, 3, 5};
    int wrong[2] = {0, 0};
    std::thread first(
        [&]
        {
            work(maskCase(), 3, wrong[0]);
        });
    std::thread second(
        [&]
        {
            work(other, 4, wrong[1]);
        });
    first.join();
    second.join();
    CHECK(wrong[0] == 0);
    CHECK(wrong[1] == 0);
}

} // namespace

int main()
{
    if (!hasDevice())
    {
        return skip("no CUDA device");
    }
    testCapture(maskCase()); // the first launch of this process
    testCapture(
        {makeShape(5, 8, 8, 4, 2), nullptr, DataType::kHALF, TensorFormat::kHWC8, TensorFormat::kHWC8, 1, 2, 3});
    testOtherContext(maskCase());
    testThreads();
    return result();
}
