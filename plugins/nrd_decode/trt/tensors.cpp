#include "tensors.h"
#include "report.h"

#include <limits>

using nvinfer1::DataType;
using nvinfer1::DimensionOperation;
using nvinfer1::Dims;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::IDimensionExpr;
using nvinfer1::IExprBuilder;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;

namespace nrd
{
namespace
{

constexpr int64_t kMAX_PATCHES = std::numeric_limits<int32_t>::max();
constexpr int64_t kHWC8_CHANNELS = 8; // TensorRT pads a pixel's channels to a multiple of this

char const* const kTENSOR_NAMES[kNB_INPUTS + kNB_OUTPUTS] = {"theta", "guidance", "output"};

int64_t channelsOf(DecodeShape const& shape, int32_t input)
{
    return input == 0 ? thetaChannels(shape.numClasses, shape.hidden, shape.guidanceChannels) : shape.guidanceChannels;
}

//! Pixels of the output for one location of theta, down and across.
struct Scale
{
    int64_t rows;
    int64_t columns;
};

Scale outputScale(DecodeAttributes const& attributes)
{
    int64_t const patch = attributes.shape.patch;
    if (attributes.op == DecodeOp::kLOGITS)
    {
        return {patch, patch};
    }
    int64_t const pixels = patch * attributes.shape.upsample;
    // u8x4 puts four pixels of a row into one int32; a patch is a multiple of four wide.
    return {pixels, attributes.maskType == MaskType::kUINT8 ? pixels / 4 : pixels};
}

[[noreturn]] void refuseSize(char const* tensor, char const* axis, int64_t got, int64_t expected, char const* reason)
{
    refuse(std::string(tensor) + ": got " + std::to_string(got) + " " + axis + ", expected " + std::to_string(expected)
        + reason);
}

void checkSize(char const* tensor, char const* axis, int64_t got, int64_t expected, char const* reason)
{
    if (got != expected)
    {
        refuseSize(tensor, axis, got, expected, reason);
    }
}

constexpr char const* kTHETA_REASON = " = (2+m)*d+d+d*d+d+d*K+K for these attributes";
constexpr char const* kGUIDANCE_REASON = " (guidance_channels)";
constexpr char const* kBATCH_REASON = " as in theta";
constexpr char const* kPATCH_REASON = " (patch times those of theta)";

void checkRank(char const* tensor, int32_t got, int32_t expected)
{
    checkSize(tensor, "dimensions", got, expected, "");
}

//! Fails where both are constant and `whole` is not `factor` times `part`.
void checkConstants(
    char const* axis, IDimensionExpr const& whole, IDimensionExpr const& part, int64_t factor, char const* reason)
{
    if (whole.isConstant() && part.isConstant())
    {
        checkSize("guidance", axis, whole.getConstantValue(), factor * part.getConstantValue(), reason);
    }
}

void checkChannels(DecodeShape const& shape, int32_t input, int64_t got)
{
    checkSize(
        kTENSOR_NAMES[input], "channels", got, channelsOf(shape, input), input == 0 ? kTHETA_REASON : kGUIDANCE_REASON);
}

bool isInputFormat(DataType type, TensorFormat format)
{
    switch (type)
    {
    // An unpadded kHWC exists for 32 bits only, a padded kHWC8 for 16 bits only.
    case DataType::kFLOAT:
        return format == TensorFormat::kLINEAR || format == TensorFormat::kHWC;
    case DataType::kHALF:
    case DataType::kBF16:
        return format == TensorFormat::kLINEAR || format == TensorFormat::kHWC8;
    default:
        return false;
    }
}

TensorView viewOf(PluginTensorDesc const& tensor)
{
    Dims const& dims = tensor.dims;
    if (tensor.format == TensorFormat::kLINEAR)
    {
        return planar(nullptr, dims.d[1], dims.d[2], dims.d[3]);
    }
    int64_t const padding = tensor.format == TensorFormat::kHWC8 ? kHWC8_CHANNELS : 1;
    return channelsLast(nullptr, dims.d[2], dims.d[3], (dims.d[1] + padding - 1) / padding * padding);
}

void checkTypes(DecodeAttributes const& attributes, PluginTensorDesc const* inputs, PluginTensorDesc const& output)
{
    for (int32_t i = 0; i < kNB_INPUTS; ++i)
    {
        elementType(inputs[i].type);
        if (!isInputFormat(inputs[i].type, inputs[i].format))
        {
            refuse(std::string(kTENSOR_NAMES[i]) + ": got memory format "
                + std::to_string(static_cast<int32_t>(inputs[i].format))
                + ", expected LINEAR, or HWC for 32 bits and HWC8 for 16 bits");
        }
    }
    if (inputs[1].type != inputs[0].type)
    {
        refuse("guidance: got another type than theta, expected the same");
    }
    if (output.type != outputType(attributes, inputs[0].type) || output.format != TensorFormat::kLINEAR)
    {
        refuse("output: got another type or memory format than the op has, expected its own and LINEAR");
    }
}

void checkInputSizes(DecodeShape const& shape, Dims const& theta, Dims const& guidance)
{
    checkRank("theta", theta.nbDims, 4);
    checkRank("guidance", guidance.nbDims, 4);
    checkChannels(shape, 0, theta.d[1]);
    checkChannels(shape, 1, guidance.d[1]);
    checkSize("guidance", "images", guidance.d[0], theta.d[0], kBATCH_REASON);
    checkSize("guidance", "rows", guidance.d[2], shape.patch * theta.d[2], kPATCH_REASON);
    checkSize("guidance", "columns", guidance.d[3], shape.patch * theta.d[3], kPATCH_REASON);
}

void checkOutputSize(DecodeAttributes const& attributes, Dims const& theta, Dims const& output)
{
    bool const hasClasses = attributes.op == DecodeOp::kLOGITS;
    Scale const scale = outputScale(attributes);
    int32_t const rowAxis = hasClasses ? 2 : 1;
    checkRank("output", output.nbDims, rowAxis + 2);
    checkSize("output", "images", output.d[0], theta.d[0], kBATCH_REASON);
    if (hasClasses)
    {
        checkSize("output", "channels", output.d[1], attributes.shape.numClasses, " (num_classes)");
    }
    checkSize("output", "rows", output.d[rowAxis], scale.rows * theta.d[2], "");
    checkSize("output", "columns", output.d[rowAxis + 1], scale.columns * theta.d[3], "");
}

//! The kernels number the patches, and so the sizes, with 32 bits.
void checkNumberOfPatches(Dims const& theta)
{
    int64_t patches = 1;
    for (int32_t const axis : {0, 2, 3})
    {
        int64_t const size = theta.d[axis];
        if (size < 0)
        {
            refuse("theta: got a size of " + std::to_string(size) + ", expected 0 or more");
        }
        if (size > 0 && patches > kMAX_PATCHES / size) // the product itself could overflow
        {
            refuse("theta: got more than 2^31-1 locations, expected fewer");
        }
        patches *= size;
    }
}

} // namespace

void checkCounts(int32_t nbInputs, int32_t nbOutputs)
{
    if (nbInputs != kNB_INPUTS || nbOutputs != kNB_OUTPUTS)
    {
        refuse("tensors: got " + std::to_string(nbInputs) + " inputs and " + std::to_string(nbOutputs)
            + " outputs, expected theta and guidance, and one output");
    }
}

DataType outputType(DecodeAttributes const& attributes, DataType inputType)
{
    if (attributes.op == DecodeOp::kLOGITS)
    {
        return inputType;
    }
    // TensorRT lets no plugin return UINT8: u8x4 travels as INT32.
    return attributes.maskType == MaskType::kHALF ? DataType::kHALF : DataType::kINT32;
}

bool isSupported(DecodeAttributes const& attributes, int32_t position, DynamicPluginTensorDesc const* tensors) noexcept
{
    PluginTensorDesc const& tensor = tensors[position].desc;
    DataType const type = tensors[0].desc.type;
    if (position < kNB_INPUTS)
    {
        return tensor.type == type && isInputFormat(tensor.type, tensor.format);
    }
    return tensor.type == outputType(attributes, type) && tensor.format == TensorFormat::kLINEAR;
}

ElementType elementType(DataType type)
{
    switch (type)
    {
    case DataType::kFLOAT:
        return ElementType::kFLOAT;
    case DataType::kHALF:
        return ElementType::kHALF;
    case DataType::kBF16:
        return ElementType::kBFLOAT16;
    default:
        break;
    }
    refuse("theta, guidance: got data type " + std::to_string(static_cast<int32_t>(type))
        + ", expected FLOAT, HALF or BF16 for both");
}

DimsExprs outputShape(DecodeAttributes const& attributes, DimsExprs const* inputs, IExprBuilder& builder)
{
    DimsExprs const& theta = inputs[0];
    DimsExprs const& guidance = inputs[1];
    DecodeShape const& shape = attributes.shape;
    for (int32_t i = 0; i < kNB_INPUTS; ++i)
    {
        checkRank(kTENSOR_NAMES[i], inputs[i].nbDims, 4);
        if (inputs[i].d[1]->isConstant())
        {
            checkChannels(shape, i, inputs[i].d[1]->getConstantValue());
        }
    }
    checkConstants("images", *guidance.d[0], *theta.d[0], 1, kBATCH_REASON);
    checkConstants("rows", *guidance.d[2], *theta.d[2], shape.patch, kPATCH_REASON);
    checkConstants("columns", *guidance.d[3], *theta.d[3], shape.patch, kPATCH_REASON);

    Scale const scale = outputScale(attributes);
    DimsExprs output{};
    output.d[output.nbDims++] = theta.d[0];
    if (attributes.op == DecodeOp::kLOGITS)
    {
        output.d[output.nbDims++] = builder.constant(shape.numClasses);
    }
    auto const times = [&builder](IDimensionExpr const& size, int64_t factor)
    {
        return builder.operation(DimensionOperation::kPROD, size, *builder.constant(factor));
    };
    output.d[output.nbDims++] = times(*theta.d[2], scale.rows);
    output.d[output.nbDims++] = times(*theta.d[3], scale.columns);
    return output;
}

void checkProfile(DecodeAttributes const& attributes, DynamicPluginTensorDesc const* inputs)
{
    for (int32_t i = 0; i < kNB_INPUTS; ++i)
    {
        Dims const& dims = inputs[i].desc.dims;
        elementType(inputs[i].desc.type);
        checkRank(kTENSOR_NAMES[i], dims.nbDims, 4);
        if (dims.d[1] != -1) // not known when the network is made
        {
            checkChannels(attributes.shape, i, dims.d[1]);
        }
    }
    checkNumberOfPatches(inputs[0].max);
}

DecodeProblem describeProblem(
    DecodeAttributes const& attributes, PluginTensorDesc const* inputs, PluginTensorDesc const* outputs)
{
    Dims const& theta = inputs[0].dims;
    checkTypes(attributes, inputs, outputs[0]);
    checkInputSizes(attributes.shape, theta, inputs[1].dims);
    checkNumberOfPatches(theta);
    checkOutputSize(attributes, theta, outputs[0].dims);
    DecodeProblem problem{};
    problem.shape = attributes.shape;
    problem.type = elementType(inputs[0].type);
    problem.batch = static_cast<int32_t>(theta.d[0]);
    problem.rows = static_cast<int32_t>(theta.d[2]);
    problem.columns = static_cast<int32_t>(theta.d[3]);
    problem.theta = viewOf(inputs[0]);
    problem.guidance = viewOf(inputs[1]);
    return problem;
}

} // namespace nrd
