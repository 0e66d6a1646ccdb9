/*
 * `enqueue` on every type, memory format, mask type and tactic against the host reference. Built twice: for a GPU, and
 * with NRD_TEST_ON_HOST for a driver that runs the emulation.
 */
#include "bounds.h"
#include "check.h"
#include "descriptions.h"
#include "fake_runtime.h"
#include "launches.h"
#include "memory.h"

#ifdef NRD_TEST_ON_HOST
#include "decode_kernel.h"
#include "fake_driver.h"
#include "launch_plan.h"
#endif

using namespace nrd::test;

namespace
{

constexpr char const* kMASK_TYPES[] = {nullptr, "int32", "half", "u8x4"};

//! The default and all that the plugin offers. Without a device it offers none, but the emulation has them.
std::vector<int32_t> tacticsOf(Plugin const& plugin, Case const& c)
{
    if (kON_HOST)
    {
        return c.shape.hidden == 16 && c.shape.patch == 8 ? std::vector<int32_t>{0, 3, 4, 5} : std::vector<int32_t>{0};
    }
    auto const tensors = describeForBuild(c);
    CHECK(plugin.build->configurePlugin(tensors.data(), 2, &tensors[2], 1) == 0);
    std::vector<int32_t> tactics(static_cast<size_t>(plugin.build->getNbTactics()));
    CHECK(plugin.build->getValidTactics(tactics.data(), static_cast<int32_t>(tactics.size())) == 0);
    tactics.push_back(0);
    return tactics;
}

//! The kernel of a tactic, of which old engines have more.
nrd::Variant variantOf(int32_t tactic)
{
    return static_cast<nrd::Variant>(tactic < nrd::kNB_VARIANTS ? tactic : tactic - 2);
}

bool isExact(int32_t tactic)
{
    return variantOf(tactic) != nrd::Variant::kTENSOR_CORE;
}

void checkResult(Case const& c, Data const& data, Bytes const& result, Bytes const& reference, int32_t tactic)
{
    std::string const name = c.name() + ", tactic " + std::to_string(tactic);
    if (isExact(tactic))
    {
        int64_t const at = firstDifference(result, reference, !c.isMask() && c.type == DataType::kFLOAT);
        CHECK_IN(at < 0, name + ": first difference at byte " + std::to_string(at));
        return;
    }
    ReferenceLogits const logits(data);
    if (c.isMask())
    {
        int64_t const wrong = countWrongPixels(data, logits, result, reference, maskTypeOf(c));
        CHECK_IN(wrong == 0, name + ": " + std::to_string(wrong) + " pixels are wrong by more than the bound");
    }
    else
    {
        float const excess = logits.excess(result, data.type);
        CHECK_IN(excess <= 0, name + ": a logit is wrong by " + std::to_string(excess));
    }
}

//! The kernel that the tactic names was launched, where there is one to ask.
void checkVariant(
    [[maybe_unused]] Case const& c, [[maybe_unused]] nrd::ElementType type, [[maybe_unused]] int32_t tactic)
{
#ifdef NRD_TEST_ON_HOST
    nrd::DecodeOp const op = c.isMask() ? nrd::DecodeOp::kMASK : nrd::DecodeOp::kLOGITS;
    nrd::Variant const asked = variantOf(tactic);
    bool const exists
        = c.isMask() ? nrd::supportsMask(c.shape, type, asked) : nrd::supportsLogits(c.shape, type, asked);
    nrd::Variant const expected = nrd::resolve(op, c.shape, type, exists ? asked : nrd::Variant::kAUTO);
    CHECK_IN(fakeDriver().kernel == nrd::kernelName(op, expected, type, c.shape.numClasses), c.name());
    CHECK_IN(fakeDriver().dynamicBytes == nrd::sharedBytes(op, c.shape, type, expected), c.name());
#endif
}

//! One op on one type, in all memory formats and tactics. Each runs twice into differently poisoned memory.
void testType(Case c)
{
    Data const data = dataOf(c);
    Bytes const reference = c.isMask() ? data.referenceMask(maskTypeOf(c)) : data.referenceLogits();
    TensorFormat const last = c.type == DataType::kFLOAT ? TensorFormat::kHWC : TensorFormat::kHWC8;
    for (TensorFormat const theta : {TensorFormat::kLINEAR, last})
    {
        for (TensorFormat const guidance : {TensorFormat::kLINEAR, last})
        {
            c.thetaFormat = theta;
            c.guidanceFormat = guidance;
            Plugin const plugin = attach(c);
            REQUIRE(plugin);
            Inputs const inputs(c, data);
            for (int32_t const tactic : tacticsOf(plugin, c))
            {
                CHECK_IN(plugin.runtime->setTactic(tactic) == 0, c.name());
                Bytes const first = runOnce(plugin, c, inputs, 0xA5);
                checkResult(c, data, first, reference, tactic);
                checkVariant(c, data.type, tactic);
                if (!kON_HOST) // which is slow, and the same each time by design
                {
                    CHECK_IN(first == runOnce(plugin, c, inputs, 0x5A), c.name() + ": two runs differ");
                }
            }
        }
    }
}

//! An op with sizes for a GPU, or fewer for the host.
Case sized(nrd::DecodeShape const& shape, int64_t batch, int64_t rows, int64_t columns)
{
    Case c{shape, nullptr};
    c.batch = batch;
    c.rows = kON_HOST ? 1 : rows;
    c.columns = kON_HOST ? std::min<int64_t>(columns, 2) : columns;
    return c;
}

void testAll()
{
    std::vector<Case> const shapes{
        sized(releasedShape(19), 2, 2, 3),
        sized(releasedShape(40), 1, 2, 2), // so many classes that the retaining variants exist
        sized(makeShape(5, 8, 8, 4, 2), 3, 3, 5),
        sized(makeShape(3, 32, 32, 16, 1), 1, 1, 2),
        sized(makeShape(256, 8, 16, 4, 8), 1, 1, 1),
    };
    for (Case c : shapes)
    {
        for (char const* const maskType : kMASK_TYPES)
        {
            for (DataType const type : {DataType::kFLOAT, DataType::kHALF, DataType::kBF16})
            {
                c.maskType = maskType;
                c.type = type;
                testType(c);
            }
        }
    }
}

//! An engine may come from another GPU: a tactic that this one has not, here for want of 16-bit inputs, gives way to the
//! default, whose result is the reference's.
void testForeignTactic()
{
    Case const c{releasedShape(19), "half", DataType::kFLOAT, TensorFormat::kHWC, TensorFormat::kLINEAR, 1, 1, 2};
    Plugin const plugin = attach(c);
    REQUIRE(plugin);
    Data const data = dataOf(c);
    runOnce(plugin, c, Inputs(c, data), 0xA5); // so that a variant was chosen before
    CHECK(plugin.runtime->setTactic(static_cast<int32_t>(nrd::Variant::kTENSOR_CORE)) == 0);
    Plugin const copy(plugin.object->clone()); // keeps the tactic
    for (Plugin const* const asked : {&plugin, &copy})
    {
        takeFakeLog();
        Bytes const result = runOnce(*asked, c, Inputs(c, data), 0xA5);
        CHECK(firstDifference(result, data.referenceMask(nrd::MaskType::kHALF), false) < 0);
        std::string const log = takeFakeLog();
        CHECK_IN(log
                == "NrdPatchDecodeMask: tactic 3 of this engine is not for this GPU: the default one runs; an "
                   "engine built here may be faster\n",
            log);
    }
}

//! Failures reach the recorder of the context, which the plugin keeps for as long as it lives.
void testRecorder()
{
    Case c{releasedShape(19), "half", DataType::kFLOAT, TensorFormat::kLINEAR, TensorFormat::kLINEAR, 1, 1, 1};
    Recorder recorder;
    {
        Plugin const plugin = attach(c, &recorder);
        REQUIRE(plugin);
        CHECK(recorder.references() == 1);
        auto tensors = describe(c);
        tensors[1].dims.d[0] += 1;
        CHECK(plugin.runtime->enqueue(tensors.data(), &tensors[2], nullptr, nullptr, nullptr, nullptr) != 0);
        CHECK(recorder.take() == "NrdPatchDecodeMask: guidance: got 2 images, expected 1 as in theta\n");
        Plugin const copy(plugin.object->clone());
        CHECK(recorder.references() == 1); // a clone has no context
    }
    CHECK(recorder.references() == 0);
}

//! The sizes of one plugin change from call to call, an empty batch writes nothing, and wrong sizes launch nothing.
void testChangingSizes()
{
    Case c{releasedShape(19), "u8x4", DataType::kHALF, TensorFormat::kHWC8, TensorFormat::kLINEAR, 1, 1, 1};
    Plugin const plugin = attach(c);
    REQUIRE(plugin);
    for (int64_t const rows : {2, 1, 3})
    {
        c.rows = rows;
        c.batch = 4 - rows;
        Data const data = dataOf(c);
        Bytes const result = runOnce(plugin, c, Inputs(c, data), 0xA5);
        CHECK(firstDifference(result, data.referenceMask(nrd::MaskType::kUINT8), false) < 0);
    }
    auto tensors = describe(c);
    tensors[2].dims.d[2] += 1;
    CHECK(plugin.runtime->enqueue(tensors.data(), &tensors[2], nullptr, nullptr, nullptr, nullptr) != 0);
    c.batch = 0;
    tensors = describe(c);
    CHECK(plugin.runtime->enqueue(tensors.data(), &tensors[2], nullptr, nullptr, nullptr, nullptr) == 0);
}

} // namespace

int main()
{
    if (!kON_HOST && !hasDevice())
    {
        return skip("no CUDA device");
    }
    setFakeVersion(NV_TENSORRT_MAJOR * 10000 + 300);
    setLoggerFinder(fakeFinder());
    testAll();
    testForeignTactic();
    testRecorder();
    testChangingSizes();
    return result();
}
