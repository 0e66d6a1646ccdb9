/*
 * The emulated kernels against the host reference where their design is at risk: borders, cells of one class and mixed
 * ones, few and many; many classes; activations outside of what the parts of a fragment hold; tensor cores that truncate.
 * Needs g++ only. tests/plugins/test_planted_faults.py runs it on sources with a mistake in them. An argument chooses the
 * cases whose names hold it.
 */
#include "bounds.h"
#include "check.h"
#include "emulated_kernels.h"

using namespace nrd;
using namespace nrd::test;

namespace
{

constexpr Sizes kSIZES{1, 2, 2}; // every block is at two borders

//! A part of the names of the cases to run; empty for all.
std::string& chosen()
{
    static std::string part;
    return part;
}

bool isChosen(std::string const& name)
{
    return name.find(chosen()) != std::string::npos;
}

void setElement(Bytes& bytes, ElementType type, int64_t index, float value)
{
    uint16_t const bits = narrow(value, type);
    std::memcpy(&bytes[static_cast<size_t>(index) * sizeof(bits)], &bits, sizeof(bits));
}

//! Multiply channels [first, end) of theta.
void scale(Data& data, int64_t first, int64_t end, float factor)
{
    for (int64_t i = first * data.sizes.locations(); i < end * data.sizes.locations(); ++i)
    {
        setElement(data.theta, data.type, i, factor * loadElement(data.theta.data(), i, data.type));
    }
}

//! Logits that change slowly, as those of images: patches resemble each other, and so do their pixels.
Data smooth(int32_t numClasses, ElementType type)
{
    Data data(makeShape(numClasses, 16, 16, 8, 4), type, kSIZES);
    int64_t const locations = kSIZES.locations();
    for (int64_t i = 0; i < data.channels() * locations; ++i)
    {
        float const first = loadElement(data.theta.data(), i / locations * locations, type);
        setElement(data.theta, type, i, first + 0.02F * loadElement(data.theta.data(), i, type));
    }
    for (int64_t i = 0; i < 64 * locations * 16; ++i)
    {
        setElement(data.guidance, type, i, 0.1F * loadElement(data.guidance.data(), i, type));
    }
    return data;
}

//! The same with a pixel here and there that is of another class than those around it.
Data speckled(int32_t numClasses, ElementType type)
{
    Data data = smooth(numClasses, type);
    int64_t const pixels = 64 * kSIZES.locations();
    for (int64_t i = 0; i < 16 * pixels; ++i)
    {
        float const factor = i % pixels % 23 == 5 ? 80.F : 1.F;
        setElement(data.guidance, type, i, factor * loadElement(data.guidance.data(), i, type));
    }
    return data;
}

//! The pitch of TensorRT's kHWC8, which kernels copy 16 bytes at a time.
struct Pitched
{
    Bytes theta;
    Bytes guidance;
    DecodeProblem problem;

    explicit Pitched(Data const& data)
        : theta(toChannelsLast(data.theta, data.type, 1, data.channels(), data.sizes.locations(), pitchOf(data)))
        , guidance(toChannelsLast(data.guidance, data.type, 1, 16, 64 * data.sizes.locations(), 16))
        , problem(data.problem(nullptr, nullptr))
    {
        problem.theta = channelsLast(theta.data(), data.sizes.rows, data.sizes.columns, pitchOf(data));
        problem.guidance = channelsLast(guidance.data(), 8 * data.sizes.rows, 8 * data.sizes.columns, 16);
    }

    static int64_t pitchOf(Data const& data)
    {
        return (data.channels() + 7) / 8 * 8;
    }
};

void testMask(Data const& data, std::string const& name, bool truncates)
{
    if (!isChosen(name))
    {
        return;
    }
    Pitched const pitched(data);
    Bytes const reference = data.referenceMask(MaskType::kUINT8);
    ReferenceLogits const logits(data);
    for (Variant const variant : {Variant::kSIMT, Variant::kTENSOR_CORE})
    {
        for (uint64_t seed = 0; seed < 2; ++seed)
        {
            Bytes mask(reference.size(), 0xA5);
            emulatePatchDecodeMask(pitched.problem, mask.data(), MaskType::kUINT8, variant, true, seed, {}, truncates);
            int64_t const wrong = variant == Variant::kSIMT
                ? firstDifference(mask, reference, false) + 1
                : countWrongPixels(data, logits, mask, reference, MaskType::kUINT8);
            CHECK_IN(wrong == 0,
                name + ": " + std::to_string(wrong) + ", variant " + std::to_string(static_cast<int32_t>(variant)));
        }
    }
}

//! fp32 cannot be the logits' type on tensor cores, so the bound has room for half a step of theirs.
void testLogits(Data const& data, std::string const& name, bool truncates)
{
    if (!isChosen(name))
    {
        return;
    }
    Pitched const pitched(data);
    Bytes logits(data.referenceLogits().size());
    emulatePatchDecode(pitched.problem, logits.data(), Variant::kTENSOR_CORE, 1, {}, truncates);
    float const excess = ReferenceLogits(data).excess(logits, data.type);
    CHECK_IN(excess <= 0, name + ": a logit is wrong by " + std::to_string(excess));
}

} // namespace

int main(int argc, char** argv)
{
    chosen() = argc > 1 ? argv[1] : "";
    constexpr int64_t kB0 = 18 * 16;
    constexpr int64_t kW1 = kB0 + 16;
    constexpr int64_t kB1 = kW1 + 16 * 16;
    constexpr int64_t kW2 = kB1 + 16;
    for (ElementType const type : {ElementType::kHALF, ElementType::kBFLOAT16})
    {
        std::string const suffix = type == ElementType::kHALF ? ", fp16" : ", bf16";
        Data const random(makeShape(19, 16, 16, 8, 4), type, kSIZES);
        Data huge = random; // up to 2^21, in fp16 32 times what a half holds
        scale(huge, 0, kB0, 0x1p14F);
        scale(huge, kW1, kB1, 0x1p6F);
        Data tiny = random; // around 2^-14, where halves are coarse, and nothing else in the logits
        scale(tiny, 0, kW1, 0x1p-13F);
        scale(tiny, kB1, kW2, 0.F);
        scale(tiny, kW2 + 19 * 16, tiny.channels(), 0.F);
        for (bool const truncates : {false, true})
        {
            testMask(random, "mixed cells" + suffix, truncates);
            testLogits(random, "random" + suffix, truncates);
            testMask(smooth(19, type), "areas" + suffix, truncates);
            testMask(huge, "huge activations" + suffix, truncates);
            testMask(tiny, "tiny activations" + suffix, truncates);
            testMask(smooth(150, type), "areas of many classes" + suffix, truncates);
            testMask(speckled(150, type), "speckles of many classes" + suffix, truncates);
        }
        Data many(makeShape(60, 16, 16, 8, 4), type, kSIZES);
        scale(many, many.channels() - 1, many.channels(), 8.F); // the last class wins here and there, too
        testMask(many, "many classes" + suffix, false);
    }
    return result();
}
