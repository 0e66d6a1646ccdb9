/*
 * Where a setting's values come from: drawn, or read from files.
 */
#pragma once

#include "objects.h"
#include "setting.h"

#include <cstdio>
#include <memory>
#include <optional>

namespace nrd::bench
{

//! A bad argument or file; its text is for the user.
class UsageError : public std::runtime_error
{
public:
    using std::runtime_error::runtime_error;
};

//! Whole file of `count` elements of type T.
template <class T>
std::vector<T> readFile(std::string const& path, int64_t count, std::string const& expected)
{
    std::unique_ptr<FILE, int (*)(FILE*)> const file(std::fopen(path.c_str(), "rb"), std::fclose);
    if (!file)
    {
        throw UsageError(path + ": cannot be opened");
    }
    std::vector<T> values(static_cast<size_t>(count) + 1);
    size_t const read = std::fread(values.data(), 1, values.size() * sizeof(T), file.get());
    if (read != static_cast<size_t>(count) * sizeof(T))
    {
        throw UsageError(path + ": expected " + std::to_string(count * static_cast<int64_t>(sizeof(T))) + " bytes, "
            + expected + "; got " + (read > static_cast<size_t>(count) * sizeof(T) ? "more" : std::to_string(read)));
    }
    values.pop_back();
    return values;
}

//! Values of one network, on the host.
struct FileValues
{
    std::vector<uint16_t> theta;
    std::vector<uint16_t> guidance; //!< may be empty
    std::vector<float> tables;      //!< x then y; may be empty
};

//! What the values of all settings hang on.
class Values
{
public:
    Values() = default;
    explicit Values(FileValues file)
        : mFile(std::move(file))
        , mTheta(upload(mFile.theta))
        , mGuidance(upload(mFile.guidance))
    {
    }

    Draw onHost(Setting const& setting, int32_t set) const
    {
        return {setting.origin, static_cast<uint32_t>(set) * 16U, setting.rows(), setting.columns(), setting.channels(),
            mFile.theta.data(), mFile.guidance.empty() ? nullptr : mFile.guidance.data()};
    }

    Draw onDevice(Setting const& setting, int32_t set) const
    {
        Draw draw = onHost(setting, set);
        draw.thetaFile = mTheta ? reinterpret_cast<uint16_t const*>(mTheta->at()) : nullptr;
        draw.guidanceFile = mGuidance ? reinterpret_cast<uint16_t const*>(mGuidance->at()) : nullptr;
        return draw;
    }

    DecodeShape shape(Setting const& setting, int32_t upsample = kUPSAMPLE) const
    {
        DecodeShape shape = makeShape(setting.size.classes, upsample);
        for (size_t i = 0; i < mFile.tables.size(); ++i)
        {
            (i < kPATCH ? shape.xTable : shape.yTable)[i % kPATCH] = mFile.tables[i];
        }
        return shape;
    }

private:
    static std::optional<Memory> upload(std::vector<uint16_t> const& values)
    {
        if (values.empty())
        {
            return std::nullopt;
        }
        size_t const bytes = values.size() * sizeof(values[0]);
        std::optional<Memory> memory(bytes);
        check(cudaMemcpy(memory->at(), values.data(), bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
        return memory;
    }

    FileValues mFile;
    std::optional<Memory> mTheta;
    std::optional<Memory> mGuidance;
};

} // namespace nrd::bench
