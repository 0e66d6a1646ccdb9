/*
 * What was found: one row per launch, and the cost models drawn from the rows.
 */
#pragma once

#include "checker.h"
#include "device.h"
#include "plan.h"

namespace nrd::bench
{

constexpr double kTARGET = 1.6; //!< times the larger floor, for random theta

struct Row
{
    std::string group;
    Setting setting;
    Job job;
    Verdict verdict;
    double mixedShare{0};
    int32_t sets{0};
    Timing cold; //!< no replays: not timed
    Timing warm; //!< on one set of inputs, which the cache may hold
    double emptyUs{0};
    double byteUs{0};
    double instructionUs{0}; //!< 0 for logits

    bool isTimed() const
    {
        return cold.replays > 0;
    }
    double targetUs() const
    {
        return kTARGET * std::max(byteUs, instructionUs) + emptyUs;
    }
    //! What pruned masks of natural values aim at.
    double byteTargetUs() const
    {
        return 2 * byteUs + emptyUs;
    }
};

//! time = constant + slope * x, fitted to the smallest relative errors.
struct Model
{
    std::string variable; //!< "pixels" (x in millions) or "classes"
    Variant variant{Variant::kAUTO};
    double constantUs{0};
    double slopeUs{0};
    double largestResidual{0}; //!< relative
    int32_t points{0};
};

struct Point
{
    double x;
    double time;
};

//! Least squares of relative errors; the points differ in x.
inline Model fitLine(std::vector<Point> const& points)
{
    double sums[5] = {}; // of w, wx, wxx, wt, wxt with w = 1/t^2
    for (Point const& p : points)
    {
        double const w = 1 / (p.time * p.time);
        double const terms[5] = {w, w * p.x, w * p.x * p.x, w * p.time, w * p.x * p.time};
        for (int32_t i = 0; i < 5; ++i)
        {
            sums[i] += terms[i];
        }
    }
    Model model;
    double const determinant = sums[0] * sums[2] - sums[1] * sums[1];
    model.slopeUs = (sums[0] * sums[4] - sums[1] * sums[3]) / determinant;
    model.constantUs = (sums[3] - model.slopeUs * sums[1]) / sums[0];
    model.points = static_cast<int32_t>(points.size());
    for (Point const& p : points)
    {
        double const residual = std::fabs(model.constantUs + model.slopeUs * p.x - p.time) / p.time;
        model.largestResidual = std::max(model.largestResidual, residual);
    }
    return model;
}

//! A model for each variant that was timed at three points of a sweep or more.
inline std::vector<Model> fitModels(std::vector<Row> const& rows)
{
    std::vector<Model> models;
    for (char const* const variable : {"pixels", "classes"})
    {
        bool const perPixel = std::string(variable) == "pixels";
        for (Variant const variant : kGENERIC_AND_FIXED)
        {
            std::vector<Point> points;
            for (Row const& row : rows)
            {
                if (row.group == variable && row.job.variant == variant && row.isTimed())
                {
                    Case const& size = row.setting.size;
                    double const x = perPixel ? static_cast<double>(size.pixels()) * 1e-6 : size.classes;
                    points.push_back({x, row.cold.p50});
                }
            }
            if (points.size() >= 3)
            {
                Model model = fitLine(points);
                model.variable = variable;
                model.variant = variant;
                models.push_back(model);
            }
        }
    }
    return models;
}

struct Results
{
    DeviceFacts device;
    bool quick{false};
    double copyBytesPerSecond{0};
    double clockBefore{0}; //!< MHz, measured
    double clockAfter{0};
    double seconds{0};
    int32_t planned{0}; //!< settings
    int32_t leftOut{0}; //!< of them, so far
    std::vector<Row> rows;
    std::vector<Model> models;

    int64_t failures() const
    {
        return std::count_if(rows.begin(), rows.end(),
            [](Row const& row)
            {
                return !row.verdict.fault.empty();
            });
    }
};

} // namespace nrd::bench
