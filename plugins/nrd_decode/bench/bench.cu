/*
 * Correctness, then time of the decode kernels on the current GPU: no TensorRT, no PyTorch. docs/benchmarks.md says how
 * to read it.
 */
#include "report.h"

#include <limits>

using namespace nrd;
using namespace nrd::bench;

namespace
{

constexpr int kWRONG = 1;
constexpr int kCANNOT_RUN = 2;

class Bench
{
public:
    Bench(Options const& options, Values const& values)
        : mValues(values)
        , mTimer(options.quick)
        , mStart(clockSeconds())
        , mLimit(options.limitSeconds > 0 ? options.limitSeconds : std::numeric_limits<double>::infinity())
    {
        mResults.device = readDevice();
        mResults.quick = options.quick;
        mResults.copyBytesPerSecond = measureCopy(mResults.device, mTimer.stream());
        mResults.clockBefore = measureClock(mResults.device, mTimer.stream());
        if (mResults.device.clockMegahertz <= 0) // not every driver tells
        {
            mResults.device.clockMegahertz = mResults.clockBefore;
        }
        std::printf("%s\n", describe(mResults.device).c_str());
        std::printf("copy on the device: %.1f GB/s read and written\n", mResults.copyBytesPerSecond * 1e-9);
    }

    //! `report` gets the results so far after every subject, and in the end all of them.
    template <class Report>
    Results const& run(std::vector<Subject> const& plan, Report const& report)
    {
        mResults.planned = mResults.leftOut = static_cast<int32_t>(plan.size());
        for (Subject const& subject : plan)
        {
            if (seconds() >= mLimit)
            {
                break;
            }
            measure(subject);
            --mResults.leftOut;
            mResults.seconds = seconds();
            report(mResults);
        }
        mResults.models = fitModels(mResults.rows);
        mResults.clockAfter = measureClock(mResults.device, mTimer.stream());
        mResults.seconds = seconds();
        report(mResults);
        return mResults;
    }

private:
    double seconds() const
    {
        return clockSeconds() - mStart;
    }

    void measure(Subject const& subject)
    {
        if (mStrips.empty() || !mStripsOf.hasValuesOf(subject.setting))
        {
            mStrips = makeStrips(subject.setting, mValues);
            mStripsOf = subject.setting;
        }
        int64_t outputBytes = subject.setting.cells(); // of mixedShare
        for (Job const& job : subject.jobs)
        {
            outputBytes = std::max(outputBytes, job.outputBytes(subject.setting));
        }
        bool const timed = subject.jobs[0].timed;
        Workload const workload(
            subject.setting, mValues, timed ? mResults.device.l2Bytes : 0, outputBytes, mTimer.stream());
        measureJobs(subject, workload, timed ? measureEmpty(workload) : 0);
    }

    void measureJobs(Subject const& subject, Workload const& workload, double emptyUs)
    {
        Checker checker(workload, mStrips);
        double const mixedShare = workload.mixedShare();
        bool isFirst = true;
        for (Job const& job : subject.jobs)
        {
            if (!workload.supports(job))
            {
                continue;
            }
            Row row{
                subject.group, subject.setting, job, checker.check(job), mixedShare, workload.sets(), {}, {}, emptyUs};
            if (row.verdict.fault.empty() && job.timed)
            {
                time(row, workload);
            }
            std::printf("%s%s\n", isFirst ? headingOf(row).c_str() : "", describe(row).c_str());
            std::fflush(stdout);
            isFirst = false;
            mResults.rows.push_back(row);
        }
    }

    void time(Row& row, Workload const& workload) const
    {
        Job const& job = row.job;
        row.byteUs = static_cast<double>(movedBytes(row.setting, job)) / mResults.copyBytesPerSecond * 1e6;
        row.instructionUs = job.op == Op::kMASK ? instructionFloor(row.setting, mResults.device) : 0;
        row.cold = mTimer.time(workload.sets(),
            [&](int32_t set)
            {
                workload.launch(job, set);
            });
        row.warm = mTimer.time(1,
            [&](int32_t)
            {
                workload.launch(job, 0);
            });
    }

    //! Microseconds of a launch that does nothing, on the grid and in blocks of the decode's size.
    double measureEmpty(Workload const& workload) const
    {
        auto const launch = [&](int32_t)
        {
            launchKernel(emptyKernel, workload.blocks(), kTHREADS, mTimer.stream());
        };
        launch(0); // the first launch loads the kernel, which a capture does not allow
        return mTimer.time(1, launch).p50;
    }

    Values const& mValues;
    Timer mTimer;
    double mStart;
    double mLimit; //!< seconds
    Results mResults;
    std::vector<Strip> mStrips; //!< of mStripsOf, kept while subjects share their values
    Setting mStripsOf;
};

//! What keeps the benchmark from running on this machine, or nothing.
std::string findObstacle()
{
    int count = 0;
    cudaError_t const found = cudaGetDeviceCount(&count);
    if (found != cudaSuccess || count == 0)
    {
        return std::string("no CUDA device: ") + (found != cudaSuccess ? cudaGetErrorString(found) : "none is visible");
    }
    CUresult const status = prepare();
    if (status == CUDA_ERROR_NO_BINARY_FOR_GPU)
    {
        DeviceFacts const facts = readDevice();
        return format("no code for compute capability %d.%d in this program: build it with "
                      "-DCMAKE_CUDA_ARCHITECTURES=%d%d",
            facts.major, facts.minor, facts.major, facts.minor);
    }
    return status == CUDA_SUCCESS ? "" : std::string("the kernels cannot be loaded: ") + errorName(status);
}

int runBench(std::vector<std::string> const& arguments)
{
    Options const options = parseOptions(arguments);
    if (options.help)
    {
        std::fputs(kUSAGE, stdout);
        return 0;
    }
    FileValues file = readValues(options);
    if (std::string const obstacle = findObstacle(); !obstacle.empty())
    {
        throw UsageError(obstacle);
    }
    std::optional<ResultFile> json;
    if (!options.json.empty())
    {
        json.emplace(options.json);
    }
    Values const values(std::move(file));
    Bench bench(options, values);
    Results const& results = bench.run(Plan(options).make(),
        [&](Results const& found)
        {
            if (json)
            {
                json->write(toJson(found));
            }
        });
    std::fputs(summarise(results).c_str(), stdout);
    return results.failures() == 0 ? 0 : kWRONG;
}

} // namespace

int main(int argc, char** argv)
{
    try
    {
        return runBench({argv + 1, argv + argc});
    }
    catch (UsageError const& error)
    {
        std::fprintf(stderr, "nrd_decode_bench: %s\n", error.what());
        return kCANNOT_RUN;
    }
    catch (std::exception const& error)
    {
        std::fprintf(stderr, "nrd_decode_bench: %s\n", error.what());
        return kWRONG;
    }
}
