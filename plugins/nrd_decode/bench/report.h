/*
 * Results for people and as JSON.
 */
#pragma once

#include "results.h"

#include <cstdarg>
#include <cstdio>

namespace nrd::bench
{

//! printf into a string.
__attribute__((format(printf, 1, 2))) inline std::string format(char const* pattern, ...)
{
    char text[512];
    va_list arguments;
    va_start(arguments, pattern);
    std::vsnprintf(text, sizeof(text), pattern, arguments);
    va_end(arguments);
    return text;
}

// --- for people

inline std::string describe(Setting const& s)
{
    return format("%s K=%d, batch %d, %s, %s theta (%s, guidance %s)", s.size.image().c_str(), s.size.classes, s.batch,
        nameOf(s.type), nameOf(s.origin), nameOf(s.theta), nameOf(s.guidance));
}

inline std::string describe(DeviceFacts const& d)
{
    return format("%s, compute capability %d.%d, %d multiprocessors, up to %.0f MHz (memory %.0f MHz), %.1f MiB of L2, "
                  "CUDA %d.%d, driver for CUDA %d.%d, kernel revision %d",
        d.name.c_str(), d.major, d.minor, d.multiprocessors, d.clockMegahertz, d.memoryMegahertz,
        static_cast<double>(d.l2Bytes) / 1048576.0, d.runtimeVersion / 1000, d.runtimeVersion % 1000 / 10,
        d.driverVersion / 1000, d.driverVersion % 1000 / 10, kKERNEL_REVISION);
}

inline std::string describe(Row const& row)
{
    Job const& job = row.job;
    std::string const what = job.op == Op::kLOGITS
        ? std::string("logits")
        : format("%-5s %s", nameOf(job.maskType), job.prune ? "pruned" : "whole");
    std::string line = format("  %-21s %-12s", nameOf(job.variant), what.c_str());
    if (!row.verdict.fault.empty())
    {
        return line + " WRONG: " + row.verdict.fault;
    }
    if (!row.isTimed())
    {
        return line + " right";
    }
    line += format(" %8.2f %8.2f %8.2f", row.cold.p50, row.cold.p90, row.warm.p50);
    line += format(" %7.2f %7.2f %7.2f", row.byteUs, row.instructionUs, row.emptyUs);
    line += format(" %8.2f %5.2f", row.targetUs(), row.cold.p50 / row.targetUs());
    line += format(" %8.2f %5.2f", row.byteTargetUs(), row.cold.p50 / row.byteTargetUs());
    return row.verdict.different > 0 ? line + format("  %.1e of the pixels not SIMT's", row.verdict.different) : line;
}

//! Heading of the rows of one setting; `row` is one of them.
inline std::string headingOf(Row const& row)
{
    std::string text = "\n" + row.group + ": " + describe(row.setting);
    text += format("; %.1f %% of cells mixed\n", 100 * row.mixedShare);
    if (row.isTimed())
    {
        text += format("  us per launch, %4d sets of inputs   ", row.sets);
        text += format("%8s %8s %8s %7s %7s %7s", "p50", "p90", "warm L2", "T_byte", "T_instr", "t_empty");
        text += format(" %8s %5s %8s %5s\n", "limit", "ratio", "2 T_byte", "ratio");
    }
    return text;
}

inline std::string describe(Model const& m)
{
    bool const perPixel = m.variable == "pixels";
    return format("  %-21s t = %.2f us + %.3f us * %s, largest residual %.1f %% of %d points", nameOf(m.variant),
        m.constantUs, m.slopeUs, perPixel ? "megapixels" : "classes", 100 * m.largestResidual, m.points);
}

inline std::string summarise(Results const& results)
{
    std::string text = "\ncost models, fp16, batch 1, random theta\n";
    for (Model const& model : results.models)
    {
        text += describe(model) + "\n";
    }
    if (results.models.empty())
    {
        text = "";
    }
    text += format("\n%zu launches checked, %lld wrong; SM clock measured %.0f MHz before, %.0f MHz after; %.1f s\n",
        results.rows.size(), static_cast<long long>(results.failures()), results.clockBefore, results.clockAfter,
        results.seconds);
    if (results.leftOut > 0)
    {
        text += format(
            "%d of %d settings were left out: the time of --limit was used up\n", results.leftOut, results.planned);
    }
    return text;
}

// --- JSON

//! Members in the order in which they are added.
class JsonObject
{
public:
    JsonObject& add(char const* name, std::string const& value)
    {
        return addRaw(name, quote(value));
    }
    JsonObject& add(char const* name, char const* value)
    {
        return addRaw(name, quote(value));
    }
    JsonObject& add(char const* name, bool value)
    {
        return addRaw(name, value ? "true" : "false");
    }
    JsonObject& add(char const* name, int64_t value)
    {
        return addRaw(name, std::to_string(value));
    }
    JsonObject& add(char const* name, int32_t value)
    {
        return add(name, int64_t{value});
    }
    JsonObject& add(char const* name, double value)
    {
        return addRaw(name, std::isfinite(value) ? format("%.9g", value) : "null");
    }
    JsonObject& addRaw(char const* name, std::string const& value)
    {
        mText += (mText.empty() ? "" : ", ") + quote(name) + ": " + value;
        return *this;
    }
    std::string text() const
    {
        return "{" + mText + "}";
    }

private:
    static std::string quote(std::string const& value)
    {
        std::string result = "\"";
        for (char const c : value)
        {
            if (c == '"' || c == '\\')
            {
                result += '\\';
            }
            result += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
        }
        return result + "\"";
    }

    std::string mText;
};

inline std::string toJson(DeviceFacts const& d)
{
    JsonObject o;
    o.add("name", d.name).add("compute_capability", format("%d.%d", d.major, d.minor));
    o.add("multiprocessors", d.multiprocessors).add("l2_bytes", d.l2Bytes).add("memory_bytes", d.memoryBytes);
    o.add("shared_bytes_per_block", d.sharedBytes).add("clock_mhz", d.clockMegahertz);
    o.add("memory_clock_mhz", d.memoryMegahertz);
    o.add("cuda_driver", d.driverVersion).add("cuda_runtime", d.runtimeVersion);
    return o.text();
}

inline std::string toJson(Row const& row)
{
    Setting const& s = row.setting;
    JsonObject o;
    o.add("group", row.group).add("op", nameOf(row.job.op)).add("size", s.size.image()).add("classes", s.size.classes);
    o.add("batch", s.batch).add("type", nameOf(s.type)).add("values", nameOf(s.origin));
    o.add("theta_layout", nameOf(s.theta)).add("guidance_layout", nameOf(s.guidance));
    o.add("variant", nameOf(row.job.variant));
    if (row.job.op == Op::kMASK)
    {
        o.add("mask_type", nameOf(row.job.maskType)).add("prune", row.job.prune);
        o.add("different_from_simt", row.verdict.different);
    }
    o.add("mixed_share", row.mixedShare).add("passed", row.verdict.fault.empty()).add("fault", row.verdict.fault);
    if (!row.isTimed())
    {
        return o.text();
    }
    o.add("p50_us", row.cold.p50).add("p90_us", row.cold.p90).add("warm_p50_us", row.warm.p50);
    o.add("warm_p90_us", row.warm.p90).add("empty_us", row.emptyUs).add("byte_floor_us", row.byteUs);
    if (row.job.op == Op::kMASK)
    {
        o.add("instruction_floor_us", row.instructionUs);
    }
    o.add("target_us", row.targetUs()).add("ratio", row.cold.p50 / row.targetUs());
    o.add("byte_target_us", row.byteTargetUs()).add("byte_ratio", row.cold.p50 / row.byteTargetUs());
    o.add("sets", row.sets).add("launches", row.cold.launches).add("replays", row.cold.replays);
    return o.text();
}

inline std::string toJson(Model const& m)
{
    JsonObject o;
    o.add("variable", m.variable).add("variant", nameOf(m.variant)).add("constant_us", m.constantUs);
    o.add("slope_us", m.slopeUs).add("largest_residual", m.largestResidual).add("points", m.points);
    return o.text();
}

template <class T>
std::string toJson(std::vector<T> const& items)
{
    std::string text;
    for (T const& item : items)
    {
        text += (text.empty() ? "\n  " : ",\n  ") + toJson(item);
    }
    return "[" + text + "]";
}

inline std::string toJson(Results const& results)
{
    JsonObject o;
    o.add("version", 1).add("kernel_revision", kKERNEL_REVISION).add("quick", results.quick);
    o.addRaw("device", toJson(results.device)).add("copy_bytes_per_s", results.copyBytesPerSecond);
    o.add("sm_clock_before_mhz", results.clockBefore).add("sm_clock_after_mhz", results.clockAfter);
    o.add("seconds", results.seconds).add("settings", results.planned).add("left_out", results.leftOut);
    o.add("checked", static_cast<int64_t>(results.rows.size()));
    o.add("failures", results.failures());
    o.addRaw("rows", toJson(results.rows)).addRaw("models", toJson(results.models));
    return o.text() + "\n";
}

//! A file that is whole whenever it is there. A path that cannot be written is told before anything runs.
class ResultFile
{
public:
    explicit ResultFile(std::string path)
        : mPath(std::move(path))
    {
        std::FILE* const file = std::fopen(temporary().c_str(), "wb");
        if (file == nullptr)
        {
            throw UsageError("--json: cannot write " + temporary());
        }
        std::fclose(file);
        std::remove(temporary().c_str());
    }

    //! Replace what it holds.
    void write(std::string const& text) const
    {
        std::FILE* const file = std::fopen(temporary().c_str(), "wb");
        bool const written = file != nullptr && std::fwrite(text.data(), 1, text.size(), file) == text.size();
        bool const closed = file != nullptr && std::fclose(file) == 0;
        if (!written || !closed || std::rename(temporary().c_str(), mPath.c_str()) != 0)
        {
            std::remove(temporary().c_str());
            throw std::runtime_error("--json: cannot write " + mPath);
        }
    }

private:
    std::string temporary() const
    {
        return mPath + ".part";
    }

    std::string mPath;
};

} // namespace nrd::bench
