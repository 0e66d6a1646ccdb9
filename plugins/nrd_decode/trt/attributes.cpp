#include "attributes.h"
#include "field_reader.h"
#include "report.h"

#include <array>
#include <cstdio>
#include <cstring>
#include <utility>

using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;

namespace nrd
{
namespace
{

using Integer = std::pair<char const*, int32_t DecodeShape::*>;

constexpr std::array<Integer, 5> kINTEGERS{{
    {"num_classes", &DecodeShape::numClasses},
    {"hidden", &DecodeShape::hidden},
    {"guidance_channels", &DecodeShape::guidanceChannels},
    {"patch", &DecodeShape::patch},
    {"upsample", &DecodeShape::upsample}, // last: the logits op has none
}};

constexpr std::array<MaskType, 3> kMASK_TYPES{MaskType::kINT32, MaskType::kHALF, MaskType::kUINT8};

size_t nbIntegers(DecodeOp op)
{
    return op == DecodeOp::kMASK ? kINTEGERS.size() : kINTEGERS.size() - 1;
}

//! `findFault` gives "<attribute>: expected ..."; put in what it got.
[[noreturn]] void refuseShape(DecodeShape const& shape, char const* fault)
{
    char const* const colon = std::strchr(fault, ':');
    std::string const name(fault, colon);
    for (Integer const& integer : kINTEGERS)
    {
        if (name == integer.first)
        {
            refuse(name + ": got " + std::to_string(shape.*integer.second) + "," + (colon + 1));
        }
    }
    refuse(fault);
}

MaskType readMaskType(FieldReader const& reader)
{
    std::string const text = reader.text("mask_type");
    for (MaskType const type : kMASK_TYPES)
    {
        if (text == maskTypeName(type))
        {
            return type;
        }
    }
    refuse("mask_type: got '" + text + "', expected int32, half or u8x4");
}

//! The bits of each value: exact, and the same in every locale.
std::string hexadecimal(float const* values, int32_t count)
{
    std::string text;
    for (int32_t i = 0; i < count; ++i)
    {
        uint32_t bits;
        std::memcpy(&bits, &values[i], sizeof(bits));
        char number[16];
        std::snprintf(number, sizeof(number), "%s%08x", i == 0 ? "" : ",", static_cast<unsigned int>(bits));
        text += number;
    }
    return text;
}

} // namespace

char const* opName(DecodeOp op) noexcept
{
    return op == DecodeOp::kMASK ? "NrdPatchDecodeMask" : "NrdPatchDecode";
}

char const* maskTypeName(MaskType type) noexcept
{
    switch (type)
    {
    case MaskType::kINT32:
        return "int32";
    case MaskType::kHALF:
        return "half";
    case MaskType::kUINT8:
        return "u8x4";
    }
    return "unknown";
}

std::vector<PluginField> declaredFields(DecodeOp op)
{
    std::vector<PluginField> fields;
    for (size_t i = 0; i < nbIntegers(op); ++i)
    {
        fields.emplace_back(kINTEGERS[i].first, nullptr, PluginFieldType::kINT32, 1);
    }
    fields.emplace_back("x_table", nullptr, PluginFieldType::kFLOAT32, kMAX_PATCH);
    fields.emplace_back("y_table", nullptr, PluginFieldType::kFLOAT32, kMAX_PATCH);
    if (op == DecodeOp::kMASK)
    {
        fields.emplace_back("mask_type", nullptr, PluginFieldType::kCHAR, 1);
    }
    return fields;
}

DecodeAttributes readAttributes(DecodeOp op, PluginFieldCollection const& fields)
{
    std::vector<PluginField> const declared = declaredFields(op);
    FieldReader const reader(fields, declared);
    DecodeAttributes attributes{op, {}, MaskType::kINT32};
    DecodeShape& shape = attributes.shape;
    shape.upsample = kRELEASED_UPSAMPLE;
    for (size_t i = 0; i < nbIntegers(op); ++i)
    {
        shape.*kINTEGERS[i].second = reader.integer(kINTEGERS[i].first);
    }
    // Before the tables, which have as many entries as a patch has columns.
    if (char const* const fault = findFault(shape))
    {
        refuseShape(shape, fault);
    }
    reader.numbers("x_table", shape.patch, shape.xTable);
    reader.numbers("y_table", shape.patch, shape.yTable);
    if (op == DecodeOp::kMASK)
    {
        attributes.maskType = readMaskType(reader);
    }
    return attributes;
}

std::vector<PluginField> writeFields(DecodeAttributes const& attributes)
{
    DecodeShape const& shape = attributes.shape;
    std::vector<PluginField> fields;
    for (size_t i = 0; i < nbIntegers(attributes.op); ++i)
    {
        fields.emplace_back(kINTEGERS[i].first, &(shape.*kINTEGERS[i].second), PluginFieldType::kINT32, 1);
    }
    fields.emplace_back("x_table", shape.xTable, PluginFieldType::kFLOAT32, shape.patch);
    fields.emplace_back("y_table", shape.yTable, PluginFieldType::kFLOAT32, shape.patch);
    if (attributes.op == DecodeOp::kMASK)
    {
        char const* const name = maskTypeName(attributes.maskType);
        fields.emplace_back("mask_type", name, PluginFieldType::kCHAR, static_cast<int32_t>(std::strlen(name)));
    }
    return fields;
}

std::string describe(DecodeAttributes const& attributes)
{
    DecodeShape const& shape = attributes.shape;
    std::string text = opName(attributes.op);
    for (size_t i = 0; i < nbIntegers(attributes.op); ++i)
    {
        text += std::string(" ") + kINTEGERS[i].first + "=" + std::to_string(shape.*kINTEGERS[i].second);
    }
    text += " x_table=" + hexadecimal(shape.xTable, shape.patch);
    text += " y_table=" + hexadecimal(shape.yTable, shape.patch);
    if (attributes.op == DecodeOp::kMASK)
    {
        text += std::string(" mask_type=") + maskTypeName(attributes.maskType);
    }
    return text;
}

} // namespace nrd
