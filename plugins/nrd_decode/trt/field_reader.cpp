#include "field_reader.h"
#include "report.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;

namespace nrd
{
namespace
{

constexpr int32_t kMAX_FIELDS = 1024;

std::string typeName(PluginFieldType type)
{
    switch (type)
    {
    case PluginFieldType::kFLOAT16:
        return "FLOAT16";
    case PluginFieldType::kFLOAT32:
        return "FLOAT32";
    case PluginFieldType::kFLOAT64:
        return "FLOAT64";
    case PluginFieldType::kINT8:
        return "INT8";
    case PluginFieldType::kINT16:
        return "INT16";
    case PluginFieldType::kINT32:
        return "INT32";
    case PluginFieldType::kINT64:
        return "INT64";
    case PluginFieldType::kCHAR:
        return "CHAR";
    case PluginFieldType::kDIMS:
        return "DIMS";
    default:
        return "number " + std::to_string(static_cast<int32_t>(type));
    }
}

[[noreturn]] void refuseType(PluginField const& field, char const* expected)
{
    refuse(std::string(field.name) + ": got type " + typeName(field.type) + ", expected " + expected);
}

void checkLength(PluginField const& field, int32_t expected)
{
    if (field.length != expected)
    {
        refuse(std::string(field.name) + ": got " + std::to_string(field.length) + " values, expected "
            + std::to_string(expected));
    }
}

//! Value at `index`. The data of a field read from an engine file need not be aligned.
template <typename T>
T valueAt(PluginField const& field, int32_t index)
{
    T value;
    std::memcpy(&value, static_cast<unsigned char const*>(field.data) + index * sizeof(T), sizeof(T));
    return value;
}

bool isBookkeeping(std::string const& name)
{
    return name == "plugin_version" || name == "plugin_namespace";
}

void checkNames(PluginFieldCollection const& fields, std::vector<PluginField> const& declared)
{
    std::vector<std::string> seen;
    for (int32_t i = 0; i < fields.nbFields; ++i)
    {
        if (fields.fields[i].name == nullptr)
        {
            refuse("attributes: got one without a name, expected names");
        }
        std::string const name = fields.fields[i].name;
        bool const known = std::any_of(declared.begin(), declared.end(),
            [&name](PluginField const& field)
            {
                return name == field.name;
            });
        if (!known && !isBookkeeping(name))
        {
            std::string names;
            for (PluginField const& field : declared)
            {
                names += std::string(names.empty() ? "" : ", ") + field.name;
            }
            refuse(name + ": got an unknown attribute, expected only " + names);
        }
        if (std::find(seen.begin(), seen.end(), name) != seen.end())
        {
            refuse(name + ": got it twice, expected it once");
        }
        seen.push_back(name);
    }
}

} // namespace

FieldReader::FieldReader(PluginFieldCollection const& fields, std::vector<PluginField> const& declared)
    : mFields(fields)
{
    if (fields.nbFields < 0 || fields.nbFields > kMAX_FIELDS || (fields.nbFields > 0 && fields.fields == nullptr))
    {
        refuse("attributes: got a broken list of " + std::to_string(fields.nbFields) + " fields, expected a whole one");
    }
    checkNames(fields, declared);
}

PluginField const& FieldReader::find(char const* name, char const* expected) const
{
    for (int32_t i = 0; i < mFields.nbFields; ++i)
    {
        PluginField const& field = mFields.fields[i];
        if (std::strcmp(field.name, name) == 0)
        {
            if (field.data == nullptr)
            {
                refuse(std::string(name) + ": got no data, expected " + expected);
            }
            return field;
        }
    }
    refuse(std::string(name) + ": got nothing, expected " + expected);
}

int32_t FieldReader::integer(char const* name) const
{
    constexpr char const* kEXPECTED = "one INT32 or INT64";
    PluginField const& field = find(name, kEXPECTED);
    bool const isLong = field.type == PluginFieldType::kINT64;
    if (!isLong && field.type != PluginFieldType::kINT32)
    {
        refuseType(field, kEXPECTED);
    }
    checkLength(field, 1);
    int64_t const value = isLong ? valueAt<int64_t>(field, 0) : valueAt<int32_t>(field, 0);
    if (value < std::numeric_limits<int32_t>::min() || value > std::numeric_limits<int32_t>::max())
    {
        refuse(std::string(name) + ": got " + std::to_string(value) + ", expected a number of 32 bits");
    }
    return static_cast<int32_t>(value);
}

void FieldReader::numbers(char const* name, int32_t count, float* values) const
{
    constexpr char const* kEXPECTED = "FLOAT32 or FLOAT64, as many as patch says";
    PluginField const& field = find(name, kEXPECTED);
    bool const isDouble = field.type == PluginFieldType::kFLOAT64;
    if (!isDouble && field.type != PluginFieldType::kFLOAT32)
    {
        refuseType(field, kEXPECTED);
    }
    checkLength(field, count);
    for (int32_t i = 0; i < count; ++i)
    {
        values[i] = isDouble ? static_cast<float>(valueAt<double>(field, i)) : valueAt<float>(field, i);
        if (!std::isfinite(values[i]))
        {
            refuse(std::string(name) + "[" + std::to_string(i) + "]: got " + std::to_string(values[i])
                + ", expected a finite number of 32 bits");
        }
    }
}

std::string FieldReader::text(char const* name) const
{
    constexpr char const* kEXPECTED = "a CHAR string";
    PluginField const& field = find(name, kEXPECTED);
    if (field.type != PluginFieldType::kCHAR)
    {
        refuseType(field, kEXPECTED);
    }
    if (field.length < 0)
    {
        checkLength(field, 1);
    }
    std::string const whole(static_cast<char const*>(field.data), static_cast<size_t>(field.length));
    return whole.substr(0, whole.find_last_not_of('\0') + 1);
}

} // namespace nrd
