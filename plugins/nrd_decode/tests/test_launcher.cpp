/*
 * The launcher of the kernels over a driver that runs the emulation: which image a device gets, what is loaded into which
 * context, what a launch is made of.
 */
#include "bounds.h"
#include "check.h"
#include "decode_data.h"
#include "decode_kernel.h"
#include "fake_driver.h"
#include "launch_plan.h"

using namespace nrd;
using namespace nrd::test;

namespace
{

//! Another device than those before, in a context of its own.
FakeDriver& connect(int32_t architecture)
{
    static CUdevice device = 1;
    FakeDriver& driver = fakeDriver();
    unsigned long long const context = driver.context + 1;
    driver = FakeDriver{};
    driver.architecture = architecture;
    driver.device = device++;
    driver.context = context;
    return driver;
}

void testImages()
{
    struct
    {
        int32_t architecture;
        char const* image;
    } const cases[] = {{75, "sm_75"}, {80, "sm_80"}, {86, "sm_80"}, {87, "sm_87"}, {89, "sm_80"}, {90, "sm_90"},
        {100, "compute_90"}, {120, "compute_90"}};
    for (auto const& c : cases)
    {
        FakeDriver const& driver = connect(c.architecture);
        CHECK_IN(prepare() == CUDA_SUCCESS, c.image);
        CHECK_IN(driver.image == c.image, driver.image);
    }
    for (int32_t const architecture : {70, 72, 101, 110}) // older than all, and integrated
    {
        FakeDriver const& driver = connect(architecture);
        CHECK(prepare() == CUDA_ERROR_NO_BINARY_FOR_GPU);
        CHECK(driver.loadedImages == 0);
    }
}

//! An image is loaded once for a device, its kernels into each context once.
void testContexts()
{
    FakeDriver& driver = connect(87);
    auto const kernels = static_cast<int32_t>(kernelNames().size());
    CHECK(kernels == 26);
    CHECK(prepare() == CUDA_SUCCESS && prepare() == CUDA_SUCCESS);
    CHECK(driver.functions == kernels);
    CHECK(driver.shared == driver.sharedBytes - 1024);
    CHECK(driver.carveouts == kernels);
    ++driver.context;
    CHECK(prepare() == CUDA_SUCCESS);
    CHECK(driver.functions == 2 * kernels);
    CHECK(driver.loadedImages == 1);
}

//! The runtime's way: the primary context of the first device.
void testNoContext()
{
    FakeDriver& driver = fakeDriver();
    driver = FakeDriver{};
    driver.context = 0;
    CHECK(deviceAnswers());
    CHECK(driver.context == 1);
}

void testDevices()
{
    DecodeShape const shape = makeShape(150, 16, 16, 8, 4);
    connect(75).sharedBytes = 65536;
    CHECK(supportsMask(shape, ElementType::kHALF, Variant::kSIMT));
    CHECK(!supportsMask(shape, ElementType::kHALF, Variant::kTENSOR_CORE));
    DecodeShape const largest = makeShape(256, 16, 16, 8, 4);
    CHECK(!supportsMask(largest, ElementType::kFLOAT, Variant::kSIMT)); // theta of four patches is too large
    CHECK(supportsMask(largest, ElementType::kFLOAT, Variant::kAUTO));
    connect(80).sharedBytes = 166912;
    CHECK(supportsMask(shape, ElementType::kHALF, Variant::kTENSOR_CORE));
    CHECK(supportsMask(shape, ElementType::kFLOAT, Variant::kSIMT));
    connect(86).sharedBytes = 101376;
    CHECK(supportsMask(largest, ElementType::kHALF, Variant::kTENSOR_CORE));
    connect(86).sharedBytes = 49152;
    CHECK(supportsMask(shape, ElementType::kHALF, Variant::kTENSOR_CORE));
    CHECK(!supportsMask(largest, ElementType::kHALF, Variant::kTENSOR_CORE));
    connect(70);
    CHECK(!supportsMask(shape, ElementType::kHALF, Variant::kTENSOR_CORE)); // there is no code for it
    CHECK(supportsMask(shape, ElementType::kHALF, Variant::kAUTO));
}

//! The driver checks kernel, grid and memory of each launch against the plan before it runs the emulation.
void testLaunches()
{
    FakeDriver& driver = connect(90);
    Data const data(makeShape(200, 16, 16, 8, 4), ElementType::kHALF, {1, 1, 2}, Values::kMODERATE, 1);
    DecodeProblem problem = data.problem(data.theta.data(), data.guidance.data());
    Bytes const reference = data.referenceMask(MaskType::kINT32);
    Bytes mask(reference.size());
    auto* const stream = reinterpret_cast<CUstream>(&mask);
    auto const draw = [&](Variant variant)
    {
        return patchDecodeMask(problem, mask.data(), MaskType::kINT32, variant, true, stream);
    };
    CHECK(draw(Variant::kAUTO) == CUDA_SUCCESS); // without `prepare`, which only makes it ready for a capture
    CHECK(mask == reference);
    CHECK(driver.kernel == "nrd_mask_simt_fp16");
    CHECK(driver.stream == stream);
    CHECK(draw(Variant::kTENSOR_CORE) == CUDA_ERROR_LAUNCH_FAILED); // more memory than a kernel has unasked
    CHECK(prepare() == CUDA_SUCCESS);
    mask.assign(mask.size(), 0);
    CHECK(draw(Variant::kTENSOR_CORE) == CUDA_SUCCESS);
    CHECK(countWrongPixels(data, ReferenceLogits(data), mask, reference, MaskType::kINT32) == 0);
    Bytes const logits = data.referenceLogits();
    Bytes drawn(logits.size());
    CHECK(patchDecode(problem, drawn.data(), Variant::kGENERIC, nullptr) == CUDA_SUCCESS);
    CHECK(drawn == logits);
    CHECK(driver.kernel == "nrd_logits_generic_fp16");
    driver.failure = CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES;
    CHECK(draw(Variant::kAUTO) == CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES);
    CHECK(draw(Variant::kAUTO) == CUDA_SUCCESS); // a failure is of its launch alone
    problem.type = ElementType::kFLOAT;
    CHECK(patchDecode(problem, nullptr, Variant::kTENSOR_CORE, nullptr) == CUDA_ERROR_INVALID_VALUE);
}

} // namespace

int main()
{
    testNoContext(); // device 0, whose context nobody has made
    testImages();
    testContexts();
    testDevices();
    testLaunches();
    return result();
}
