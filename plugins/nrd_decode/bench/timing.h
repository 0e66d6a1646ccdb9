/*
 * Time of one launch: a CUDA graph holds at least kLAUNCHES of them, graphs run back to back between events.
 */
#pragma once

#include "objects.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace nrd::bench
{

constexpr int32_t kLAUNCHES = 50;

struct Timing
{
    double p50{0}; //!< microseconds per launch, over the replays
    double p90{0};
    int32_t launches{0}; //!< in one graph
    int32_t replays{0};
};

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
        int32_t const launches = (kLAUNCHES + inputs - 1) / inputs * inputs;
        Graph const graph(mStream,
            [&]
            {
                for (int32_t i = 0; i < launches; ++i)
                {
                    launch(i % inputs);
                }
            });
        replay(graph, 1); // uploads the graph
        double const estimate = replay(graph, 2).back();
        auto const wanted = static_cast<int32_t>(std::min(mBudget / std::max(estimate, 1.0), 1e3));
        std::vector<double> times = replay(graph, std::clamp(wanted, 5, mMostReplays));
        for (double& time : times)
        {
            time /= launches;
        }
        double const middle = median(times);
        std::sort(times.begin(), times.end());
        return {middle, percentile(times, 0.9), launches, static_cast<int32_t>(times.size())};
    }

private:
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
