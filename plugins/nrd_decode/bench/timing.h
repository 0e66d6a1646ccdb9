/*
 * Time of one launch: a CUDA graph holds up to kLAUNCHES of them, graphs run back to back between events. However slow a
 * device is, a graph takes about kGRAPH_US and a timing about a dozen graphs, or five rounds of the inputs.
 */
#pragma once

#include "objects.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <vector>

namespace nrd::bench
{

constexpr int32_t kLAUNCHES = 50;
constexpr double kGRAPH_US = 2e4;
constexpr int32_t kFEWEST_REPLAYS = 3;

struct Timing
{
    double p50{0}; //!< microseconds per launch, over the replays
    double p90{0};
    int32_t launches{0}; //!< in one graph
    int32_t replays{0};
};

//! Seconds of a steady clock. A test puts its own in its place, which moves with the launches.
inline double clockSeconds()
{
#ifdef NRD_BENCH_CLOCK_US
    return 1e-6 * NRD_BENCH_CLOCK_US;
#else
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
#endif
}

//! Nearest rank; `sorted` is not empty.
inline double percentile(std::vector<double> const& sorted, double share)
{
    auto const rank = static_cast<size_t>(std::ceil(share * static_cast<double>(sorted.size())));
    return sorted[std::max<size_t>(rank, 1) - 1];
}

//! Median that halves the middle pair; `values` is not empty.
inline double median(std::vector<double> values)
{
    std::sort(values.begin(), values.end());
    size_t const middle = values.size() / 2;
    return values.size() % 2 != 0 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

class Timer
{
public:
    explicit Timer(bool quick)
        : mBudget(quick ? 4e4 : 3e5)
        , mMostReplays(quick ? 20 : 50)
    {
    }

    Stream const& stream() const
    {
        return mStream;
    }

    //! `launch(i)` queues one launch on the stream; i runs over 0 to `inputs` - 1 in turn, in whole rounds. Its kernel has
    //! run before: loading it is not allowed in a capture.
    template <class Launch>
    Timing time(int32_t inputs, Launch const& launch) const
    {
        double const round = estimate(record(inputs, inputs, launch));
        auto const fitting = static_cast<int32_t>(std::min(kGRAPH_US / round, double{kLAUNCHES}));
        int32_t const rounds = std::clamp((kLAUNCHES + inputs - 1) / inputs, 1, std::max(fitting, 1));
        int32_t const launches = rounds * inputs;
        Graph const graph = record(launches, inputs, launch);
        auto const wanted = static_cast<int32_t>(std::min(mBudget / estimate(graph), 1e3));
        std::vector<double> times = replay(graph, std::clamp(wanted, kFEWEST_REPLAYS, mMostReplays));
        for (double& time : times)
        {
            time /= launches;
        }
        double const middle = median(times);
        std::sort(times.begin(), times.end());
        return {middle, percentile(times, 0.9), launches, static_cast<int32_t>(times.size())};
    }

private:
    template <class Launch>
    Graph record(int32_t launches, int32_t inputs, Launch const& launch) const
    {
        return Graph(mStream,
            [&]
            {
                for (int32_t i = 0; i < launches; ++i)
                {
                    launch(i % inputs);
                }
            });
    }

    //! Microseconds of a replay, 1 or more; the first one uploads the graph.
    double estimate(Graph const& graph) const
    {
        return std::max(replay(graph, 2).back(), 1.0);
    }

    //! Microseconds of each replay.
    std::vector<double> replay(Graph const& graph, int32_t count) const
    {
        std::vector<Event> marks(static_cast<size_t>(count) + 1);
        marks[0].record(mStream);
        for (size_t i = 1; i < marks.size(); ++i)
        {
            graph.launch(mStream);
            marks[i].record(mStream);
        }
        mStream.synchronize();
        std::vector<double> times;
        for (size_t i = 1; i < marks.size(); ++i)
        {
            times.push_back(marks[i].since(marks[i - 1]));
        }
        return times;
    }

    Stream mStream;
    double mBudget; //!< microseconds of replays
    int32_t mMostReplays;
};

} // namespace nrd::bench
