/*
 * Plugin fields with their data, as a parser or an engine file would hand them over, and ways to spoil them.
 */
#pragma once

#include "shapes.h"

#include <NvInferRuntime.h>

#include <algorithm>
#include <cstring>
#include <list>
#include <string>
#include <vector>

namespace nrd::test
{

class Fields
{
public:
    template <typename T>
    Fields& add(char const* name, nvinfer1::PluginFieldType type, std::vector<T> const& values)
    {
        auto const* const bytes = reinterpret_cast<unsigned char const*>(values.data());
        auto& data = mData.emplace_back(bytes, bytes + values.size() * sizeof(T));
        data.push_back(0xA5); // not a terminator, and data() is never null
        mFields.emplace_back(name, data.data(), type, static_cast<int32_t>(values.size()));
        return *this;
    }

    Fields& integer(char const* name, int32_t value)
    {
        return add<int32_t>(name, nvinfer1::PluginFieldType::kINT32, {value});
    }

    Fields& text(char const* name, std::string const& value)
    {
        return add<char>(name, nvinfer1::PluginFieldType::kCHAR, {value.begin(), value.end()});
    }

    Fields& remove(std::string const& name)
    {
        auto const isIt = [&name](nvinfer1::PluginField const& field)
        {
            return name == field.name;
        };
        mFields.erase(std::remove_if(mFields.begin(), mFields.end(), isIt), mFields.end());
        return *this;
    }

    nvinfer1::PluginField& at(std::string const& name)
    {
        auto const isIt = [&name](nvinfer1::PluginField const& field)
        {
            return name == field.name;
        };
        return *std::find_if(mFields.begin(), mFields.end(), isIt);
    }

    nvinfer1::PluginFieldCollection collection() const
    {
        return {static_cast<int32_t>(mFields.size()), mFields.data()};
    }

private:
    std::vector<nvinfer1::PluginField> mFields;
    std::list<std::vector<unsigned char>> mData;
};

//! Fields of the logits op, or with `maskType` those of the mask op.
inline Fields makeFields(DecodeShape const& shape, char const* maskType = nullptr)
{
    Fields fields;
    fields.integer("num_classes", shape.numClasses)
        .integer("hidden", shape.hidden)
        .integer("guidance_channels", shape.guidanceChannels)
        .integer("patch", shape.patch)
        .add<float>("x_table", nvinfer1::PluginFieldType::kFLOAT32, {shape.xTable, shape.xTable + shape.patch})
        .add<float>("y_table", nvinfer1::PluginFieldType::kFLOAT32, {shape.yTable, shape.yTable + shape.patch});
    if (maskType != nullptr)
    {
        fields.integer("upsample", shape.upsample).text("mask_type", maskType);
    }
    return fields;
}

//! Type, name, length and bytes of every field, to compare two lists.
inline std::string fingerprint(nvinfer1::PluginFieldCollection const& fields)
{
    std::string text;
    for (int32_t i = 0; i < fields.nbFields; ++i)
    {
        nvinfer1::PluginField const& field = fields.fields[i];
        size_t const size = field.type == nvinfer1::PluginFieldType::kCHAR ? 1 : 4;
        text += std::string(field.name) + "/" + std::to_string(static_cast<int32_t>(field.type)) + "/"
            + std::to_string(field.length) + "/"
            + std::string(static_cast<char const*>(field.data), static_cast<size_t>(field.length) * size) + "\n";
    }
    return text;
}

} // namespace nrd::test
