/*
 * The launchers of decode_kernel.h on a GPU against the host reference, without TensorRT: every variant, type, mask
 * type and layout, on moderate and on adversarial values, with and without pruning.
 */
#include "bounds.h"
#include "check.h"
#include "decode_kernel.h"
#include "memory.h"

using namespace nrd;
using namespace nrd::test;

namespace
{

bool usesTensorCores(Variant variant)
{
    return variant == Variant::kTENSOR_CORE;
}

//! Channels of a pixel together, at the pitch of TensorRT or of PyTorch; 0: planar.
struct Layout
{
    int64_t thetaPitch;
    int64_t guidancePitch;
};

std::vector<Layout> layoutsOf(Data const& data)
{
    int64_t const channels = data.channels();
    int64_t const m = data.shape.guidanceChannels;
    return {{0, 0}, {(channels + 7) / 8 * 8, m}, {channels, 0}, {channels + 1, m + 3}};
}

class Launch
{
public:
    Launch(Data const& data, Layout const& layout)
        : mTheta(arrange(data, data.theta, data.channels(), 1, layout.thetaPitch))
        , mGuidance(arrange(data, data.guidance, data.shape.guidanceChannels, data.shape.patch, layout.guidancePitch))
        , mProblem(data.problem(mTheta.data(), mGuidance.data()))
    {
        if (layout.thetaPitch != 0)
        {
            mProblem.theta = channelsLast(mTheta.data(), data.sizes.rows, data.sizes.columns, layout.thetaPitch);
        }
        if (layout.guidancePitch != 0)
        {
            int64_t const f = data.shape.patch;
            mProblem.guidance
                = channelsLast(mGuidance.data(), f * data.sizes.rows, f * data.sizes.columns, layout.guidancePitch);
        }
    }

    Bytes logits(size_t size, Variant variant) const
    {
        Output const output(size);
        return finish(output, patchDecode(mProblem, output.data(), variant, nullptr));
    }

    Bytes mask(size_t size, MaskType type, Variant variant, bool prune) const
    {
        Output const output(size);
        return finish(output, patchDecodeMask(mProblem, output.data(), type, variant, prune, nullptr));
    }

private:
    static Bytes arrange(Data const& data, Bytes const& bytes, int64_t channels, int64_t side, int64_t pitch)
    {
        int64_t const pixels = int64_t{data.sizes.rows} * data.sizes.columns * side * side;
        return pitch == 0 ? bytes : toChannelsLast(bytes, data.type, data.sizes.batch, channels, pixels, pitch);
    }

    static Bytes finish(Output const& output, CUresult status)
    {
        CHECK_IN(status == CUDA_SUCCESS, errorName(status));
        synchronize();
        bool intact = false;
        Bytes const result = output.download(intact);
        CHECK_IN(intact, "wrote outside of the output");
        return result;
    }

    Buffer mTheta;
    Buffer mGuidance;
    DecodeProblem mProblem;
};

std::string nameOf(Data const& data, Variant variant, char const* what)
{
    DecodeShape const& s = data.shape;
    std::string text = what;
    for (int32_t const value : {s.numClasses, s.hidden, s.guidanceChannels, s.patch, s.upsample,
             static_cast<int32_t>(data.type), static_cast<int32_t>(variant)})
    {
        text += " " + std::to_string(value);
    }
    return text;
}

//! Fewer combinations: emulated or watched, a launch takes its time.
bool isSmall = kON_HOST;

constexpr MaskType kMASK_TYPES[] = {MaskType::kINT32, MaskType::kHALF, MaskType::kUINT8}; // in their numbers' order

//! What every variant and layout of one problem is held against.
struct References
{
    Bytes logits;
    std::vector<Bytes> masks; //!< by mask type
    ReferenceLogits exactLogits;

    explicit References(Data const& data)
        : logits(data.referenceLogits())
        , exactLogits(data)
    {
        for (MaskType const type : kMASK_TYPES)
        {
            masks.push_back(data.referenceMask(type));
        }
    }
};

void testLogits(Data const& data, References const& references, Launch const& launch, Variant variant)
{
    Bytes const result = launch.logits(references.logits.size(), variant);
    if (usesTensorCores(variant))
    {
        float const excess = references.exactLogits.excess(result, data.type);
        CHECK_IN(excess <= 0, nameOf(data, variant, "logits") + ": wrong by " + std::to_string(excess));
        return;
    }
    int64_t const at = firstDifference(result, references.logits, data.type == ElementType::kFLOAT);
    CHECK_IN(at < 0, nameOf(data, variant, "logits") + ": first difference at byte " + std::to_string(at));
}

void testMask(Data const& data, References const& references, Launch const& launch, Variant variant, MaskType type)
{
    Bytes const& reference = references.masks[static_cast<size_t>(type)];
    for (bool const prune : {false, true})
    {
        Bytes const result = launch.mask(reference.size(), type, variant, prune);
        std::string const name = nameOf(data, variant, prune ? "pruned mask" : "mask");
        int64_t const wrong = usesTensorCores(variant)
            ? countWrongPixels(data, references.exactLogits, result, reference, type)
            : firstDifference(result, reference, false) + 1;
        CHECK_IN(wrong == 0, name + ": " + std::to_string(wrong));
    }
}

void testVariant(
    Data const& data, References const& references, Launch const& launch, Variant variant, bool isFirstLayout)
{
    if (supportsLogits(data.shape, data.type, variant))
    {
        testLogits(data, references, launch, variant);
    }
    for (MaskType const type : kMASK_TYPES)
    {
        // Other mask types in the first layout only where it takes its time.
        bool const isAsked = !isSmall || type == MaskType::kUINT8 || isFirstLayout;
        if (isAsked && supportsMask(data.shape, data.type, variant))
        {
            testMask(data, references, launch, variant, type);
        }
    }
}

void testData(Data const& data, bool isFinite)
{
    References const references(data);
    for (Layout const& layout : layoutsOf(data))
    {
        Launch const launch(data, layout);
        for (int32_t number = 0; number < kNB_VARIANTS; ++number)
        {
            auto const variant = static_cast<Variant>(number);
            if (isFinite || !usesTensorCores(variant)) // whose split of an activation knows no infinity
            {
                testVariant(data, references, launch, variant, layout.thetaPitch == 0);
            }
        }
    }
}

void testAll()
{
    Sizes const small{2, 1, 2};
    for (ElementType const type : {ElementType::kFLOAT, ElementType::kHALF, ElementType::kBFLOAT16})
    {
        for (Values const values : {Values::kMODERATE, Values::kADVERSARIAL})
        {
            bool const isFinite = values == Values::kMODERATE;
            testData(Data(releasedShape(19), type, isSmall ? small : Sizes{2, 2, 3}, values), isFinite);
            testData(Data(makeShape(5, 8, 8, 4, 2), type, isSmall ? small : Sizes{3, 3, 5}, values), isFinite);
            testData(Data(makeShape(7, 16, 32, 4, 8), type, {1, 2, 1}, values), isFinite);
            testData(Data(makeShape(33, 32, 16, 16, 1), type, {1, 1, 2}, values), isFinite);
            testData(Data(releasedShape(isSmall ? 40 : 150), type, {1, 1, 2}, values), isFinite);
            testData(Data(releasedShape(2), type, {1, 1, 1}, values), isFinite);
        }
    }
}

void testRefusals()
{
    Data const data(releasedShape(19), ElementType::kFLOAT, {1, 1, 1});
    DecodeProblem problem = data.problem(nullptr, nullptr);
    CHECK(patchDecode(problem, nullptr, Variant::kTENSOR_CORE, nullptr) == CUDA_ERROR_INVALID_VALUE);
    problem.batch = 0;
    CHECK(patchDecode(problem, nullptr, Variant::kAUTO, nullptr) == CUDA_ERROR_INVALID_VALUE);
    problem.batch = 1 << 16;
    problem.rows = 1 << 15;
    CHECK(patchDecode(problem, nullptr, Variant::kAUTO, nullptr) == CUDA_ERROR_INVALID_VALUE);
    problem = data.problem(nullptr, nullptr);
    problem.shape.hidden = 12;
    CHECK(
        patchDecodeMask(problem, nullptr, MaskType::kINT32, Variant::kAUTO, true, nullptr) == CUDA_ERROR_INVALID_VALUE);
}

} // namespace

//! --small: what a run under compute-sanitizer takes.
int main(int argc, char** argv)
{
    isSmall = isSmall || (argc > 1 && std::string(argv[1]) == "--small");
    if (!kON_HOST && !hasDevice())
    {
        return skip("no CUDA device");
    }
    if (!CHECK_IN(prepare() == CUDA_SUCCESS && prepare() == CUDA_SUCCESS, "prepare, twice"))
    {
        return result();
    }
    testRefusals();
    testAll();
    return result();
}
