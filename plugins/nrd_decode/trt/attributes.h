/*
 * The attributes of the two ops: read from TensorRT's fields with every check, and written back to them.
 */
#pragma once

#include "../decode_problem.h"

#include <NvInferRuntime.h>

#include <string>
#include <vector>

namespace nrd
{

constexpr char const* kPLUGIN_NAMESPACE = "nrd";
constexpr char const* kPLUGIN_VERSION = "1";

struct DecodeAttributes
{
    DecodeOp op;
    DecodeShape shape; //!< of the logits op `upsample` is kRELEASED_UPSAMPLE, which no kernel reads
    MaskType maskType; //!< not used for logits
};

constexpr int32_t kRELEASED_UPSAMPLE = 4;
constexpr int32_t kMAX_ATTRIBUTES = 8; //!< of an op

char const* opName(DecodeOp op) noexcept;

//! Word of the attribute `mask_type`.
char const* maskTypeName(MaskType type) noexcept;

//! Name and type of every attribute, without data, as a creator lists them.
std::vector<nvinfer1::PluginField> declaredFields(DecodeOp op);

//! The attributes in `fields`, or a Fault that names the attribute, what it got and what is expected.
DecodeAttributes readAttributes(DecodeOp op, nvinfer1::PluginFieldCollection const& fields);

//! Fields from which `readAttributes` makes the same attributes. They point into `attributes`.
std::vector<nvinfer1::PluginField> writeFields(DecodeAttributes const& attributes);

//! One line with every attribute, different for different attributes: tables are written as their bits.
std::string describe(DecodeAttributes const& attributes);

} // namespace nrd
