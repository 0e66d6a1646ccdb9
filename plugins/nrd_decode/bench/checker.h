/*
 * Whether a launch is right, before anything is timed.
 */
#pragma once

#include "reference.h"
#include "workload.h"

namespace nrd::bench
{

struct Verdict
{
    std::string fault;   //!< empty where all is right
    double different{0}; //!< share of mask pixels that are not those of the SIMT kernels
};

//! Checks the jobs of one setting. Kernels without tensor cores must agree with each other on every pixel.
class Checker
{
public:
    Checker(Workload const& workload, std::vector<Strip>& strips)
        : mWorkload(workload)
        , mStrips(strips)
    {
    }

    Verdict check(Job const& job)
    {
        Verdict verdict;
        Bytes const first = mWorkload.run(job, kPOISONS[0]);
        Bytes const second = mWorkload.run(job, kPOISONS[1]);
        if (!isGuarded(first, kPOISONS[0]) || !isGuarded(second, kPOISONS[1]))
        {
            verdict.fault = "writes outside of the output";
            return verdict;
        }
        Bytes const result(first.begin() + kALIGNMENT, first.end() - kALIGNMENT);
        if (!std::equal(result.begin(), result.end(), second.begin() + kALIGNMENT))
        {
            verdict.fault = "two runs differ, or elements are not written";
            return verdict;
        }
        return job.op == Op::kMASK ? checkMask(result, job) : checkLogits(result, job);
    }

private:
    static constexpr int32_t kPOISONS[2] = {0xA5, 0x5A};

    static bool isGuarded(Bytes const& bytes, int32_t poison)
    {
        auto const isPoison = [poison](unsigned char byte)
        {
            return byte == poison;
        };
        return std::all_of(bytes.begin(), bytes.begin() + kALIGNMENT, isPoison)
            && std::all_of(bytes.end() - kALIGNMENT, bytes.end(), isPoison);
    }

    Verdict checkMask(Bytes const& result, Job const& job)
    {
        Verdict verdict;
        bool const exact = !usesTensorCores(job.variant);
        std::vector<int32_t> const classes = classesOf(result, job.maskType);
        int32_t const k = mWorkload.setting().size.classes;
        if (std::any_of(classes.begin(), classes.end(),
                [k](int32_t c)
                {
                    return c < 0 || c >= k;
                }))
        {
            verdict.fault = "a value is no class";
            return verdict;
        }
        for (Strip& strip : mStrips)
        {
            if (int64_t const wrong = strip.countWrong(classes, exact); wrong != 0)
            {
                verdict.fault = strip.name() + ": " + std::to_string(wrong) + " pixels are not the host reference's";
                return verdict;
            }
        }
        if (mClasses.empty() && exact)
        {
            mClasses = classes;
        }
        verdict.different = mClasses.empty() ? 0 : shareOfDifferent(classes);
        if (exact && verdict.different > 0)
        {
            verdict.fault = "the mask is not that of the other kernels";
        }
        return verdict;
    }

    Verdict checkLogits(Bytes const& result, Job const& job)
    {
        Verdict verdict;
        for (Strip& strip : mStrips)
        {
            if (!strip.isRight(result, !usesTensorCores(job.variant)))
            {
                verdict.fault = strip.name() + ": the logits are not the host reference's";
                break;
            }
        }
        return verdict;
    }

    std::vector<int32_t> classesOf(Bytes const& mask, MaskType type) const
    {
        std::vector<int32_t> classes(static_cast<size_t>(mWorkload.setting().maskPixels()));
        for (size_t pixel = 0; pixel < classes.size(); ++pixel)
        {
            classes[pixel] = test::classAt(mask, type, static_cast<int64_t>(pixel));
        }
        return classes;
    }

    double shareOfDifferent(std::vector<int32_t> const& classes) const
    {
        int64_t different = 0;
        for (size_t pixel = 0; pixel < classes.size(); ++pixel)
        {
            different += classes[pixel] == mClasses[pixel] ? 0 : 1;
        }
        return static_cast<double>(different) / static_cast<double>(classes.size());
    }

    Workload const& mWorkload;
    std::vector<Strip>& mStrips;
    std::vector<int32_t> mClasses; //!< the mask of the first kernel without tensor cores
};

} // namespace nrd::bench
