/*
 * Typed access to the fields of a plugin. TensorRT passes on what an ONNX node, a program or an engine file holds, so
 * nothing about them is taken for granted.
 */
#pragma once

#include <NvInferRuntime.h>

#include <string>
#include <vector>

namespace nrd
{

class FieldReader
{
public:
    //! Refuses a name that is not in `names` or appears twice. Both arguments must outlive the reader.
    FieldReader(nvinfer1::PluginFieldCollection const& fields, std::vector<nvinfer1::PluginField> const& declared);

    //! One integer of 32 or 64 bits.
    int32_t integer(char const* name) const;

    //! `count` finite numbers of 32 or 64 bits.
    void numbers(char const* name, int32_t count, float* values) const;

    //! A string, which may end in NUL characters.
    std::string text(char const* name) const;

private:
    nvinfer1::PluginField const& find(char const* name, char const* expected) const;

    nvinfer1::PluginFieldCollection const& mFields;
};

} // namespace nrd
