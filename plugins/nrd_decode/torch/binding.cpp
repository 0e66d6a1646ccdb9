/*
 * The kernels as PyTorch operators that write into a given output. nrd_trt/decode/extension.py builds this file,
 * nrd_trt/decode/cuda_op.py allocates the outputs and has the operators that users see.
 *
 * Everything runs on the tensors' device and on PyTorch's current stream there. A tensor keeps its strides where a
 * kernel can read them (NCHW or channels-last, dense or with a larger pitch); any other is copied first.
 */
#include "../decode_kernel.h"

#include <ATen/MemoryOverlap.h>
#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <limits>

namespace
{

using Floats = at::ArrayRef<double>;

int32_t narrowed(int64_t value, char const* what)
{
    TORCH_CHECK(
        value >= 0 && value <= std::numeric_limits<int32_t>::max(), what, ": expected 0 to 2^31 - 1, got ", value);
    return static_cast<int32_t>(value);
}

nrd::DecodeShape shapeOf(int64_t numClasses, int64_t hidden, int64_t guidanceChannels, int64_t patch, int64_t upsample,
    Floats xTable, Floats yTable)
{
    nrd::DecodeShape shape{narrowed(numClasses, "num_classes"), narrowed(hidden, "hidden"),
        narrowed(guidanceChannels, "guidance_channels"), narrowed(patch, "patch"), narrowed(upsample, "upsample"), {},
        {}};
    char const* const fault = nrd::findFault(shape);
    TORCH_CHECK(fault == nullptr, fault);
    auto const length = static_cast<size_t>(patch);
    TORCH_CHECK(xTable.size() == length && yTable.size() == length, "x_table and y_table: expected ", patch,
        " values each, got ", xTable.size(), " and ", yTable.size());
    for (size_t i = 0; i < length; ++i)
    {
        shape.xTable[i] = static_cast<float>(xTable[i]);
        shape.yTable[i] = static_cast<float>(yTable[i]);
    }
    return shape;
}

nrd::Variant variantOf(int64_t variant)
{
    TORCH_CHECK(variant >= 0 && variant < nrd::kNB_VARIANTS, "variant: expected 0 to ", nrd::kNB_VARIANTS - 1, ", got ",
        variant);
    return static_cast<nrd::Variant>(variant);
}

nrd::ElementType elementTypeOf(at::ScalarType type)
{
    switch (type)
    {
    case at::kFloat:
        return nrd::ElementType::kFLOAT;
    case at::kHalf:
        return nrd::ElementType::kHALF;
    case at::kBFloat16:
        return nrd::ElementType::kBFLOAT16;
    default:
        TORCH_CHECK(false, "theta: expected float32, float16 or bfloat16, got ", type);
    }
}

nrd::MaskType maskTypeOf(at::ScalarType type)
{
    switch (type)
    {
    case at::kInt:
        return nrd::MaskType::kINT32;
    case at::kHalf:
        return nrd::MaskType::kHALF;
    case at::kByte:
        return nrd::MaskType::kUINT8;
    default:
        TORCH_CHECK(false, "mask: expected uint8, int32 or float16, got ", type);
    }
}

//! Elements from one pixel to the next, or 0 where the pixels of a channel do not lie at one distance.
int64_t pixelStride(at::Tensor const& tensor)
{
    // The stride of a dimension of size 1 means nothing and may be anything.
    int64_t const rows = tensor.size(2), columns = tensor.size(3);
    if (columns == 1)
    {
        return rows == 1 ? 1 : tensor.stride(2);
    }
    bool const even = rows == 1 || tensor.stride(2) == columns * tensor.stride(3);
    return even ? tensor.stride(3) : 0;
}

bool isReadable(at::Tensor const& tensor)
{
    int64_t const pixel = pixelStride(tensor);
    return pixel == 1 || (pixel >= tensor.size(1) && tensor.stride(1) == 1);
}

nrd::TensorView viewOf(at::Tensor const& tensor)
{
    int64_t const batchStride = tensor.size(0) == 1 ? 0 : tensor.stride(0);
    bool const onePixel = tensor.size(2) == 1 && tensor.size(3) == 1;
    int64_t const pixel = onePixel && tensor.stride(1) == 1 ? tensor.size(1) : pixelStride(tensor);
    return {tensor.const_data_ptr(), batchStride, tensor.stride(1), pixel};
}

at::Tensor readable(at::Tensor const& tensor)
{
    return isReadable(tensor) ? tensor : tensor.contiguous();
}

void checkInput(at::Tensor const& tensor, char const* name, at::Tensor const& theta, at::IntArrayRef sizes)
{
    TORCH_CHECK(tensor.is_cuda() && tensor.device() == theta.device(), name,
        ": expected a CUDA tensor on theta's device ", theta.device(), ", got one on ", tensor.device());
    TORCH_CHECK(tensor.scalar_type() == theta.scalar_type(), name, ": expected theta's type ", theta.scalar_type(),
        ", got ", tensor.scalar_type());
    TORCH_CHECK(tensor.sizes() == sizes, name, ": expected ", sizes, ", got ", tensor.sizes());
}

void checkOutput(at::Tensor const& output, char const* name, at::Tensor const& theta, at::Tensor const& guidance,
    at::IntArrayRef sizes)
{
    TORCH_CHECK(output.device() == theta.device(), name, ": expected theta's device ", theta.device(), ", got ",
        output.device());
    TORCH_CHECK(output.sizes() == sizes && output.is_contiguous(), name, ": expected a contiguous tensor of ", sizes,
        ", got ", output.sizes(), " with strides ", output.strides());
    at::assert_no_overlap(output, theta);
    at::assert_no_overlap(output, guidance);
}

//! The inputs of one launch, with the copies that the launch reads.
struct Inputs
{
    at::Tensor theta;
    at::Tensor guidance;
    nrd::DecodeProblem problem;
};

Inputs checkedInputs(at::Tensor const& theta, at::Tensor const& guidance, nrd::DecodeShape const& shape)
{
    TORCH_CHECK(theta.dim() == 4, "theta: expected (B, P, h, w), got ", theta.sizes());
    int64_t const batch = theta.size(0), rows = theta.size(2), columns = theta.size(3), f = shape.patch;
    int64_t const channels = nrd::thetaChannels(shape.numClasses, shape.hidden, shape.guidanceChannels);
    checkInput(theta, "theta", theta, {batch, channels, rows, columns});
    checkInput(guidance, "guidance", theta, {batch, shape.guidanceChannels, f * rows, f * columns});
    Inputs inputs{readable(theta), readable(guidance), {}};
    inputs.problem = {shape, elementTypeOf(theta.scalar_type()), narrowed(batch, "batch"), narrowed(rows, "h"),
        narrowed(columns, "w"), {}, {}};
    if (theta.numel() > 0)
    {
        inputs.problem.theta = viewOf(inputs.theta);
        inputs.problem.guidance = viewOf(inputs.guidance);
    }
    return inputs;
}

//! Loading a kernel is not allowed in a capture, unless the capture looks away for so long.
class RelaxedCapture
{
public:
    RelaxedCapture()
    {
        cudaThreadExchangeStreamCaptureMode(&mMode);
    }
    ~RelaxedCapture()
    {
        cudaThreadExchangeStreamCaptureMode(&mMode);
    }
    RelaxedCapture(RelaxedCapture const&) = delete;
    RelaxedCapture& operator=(RelaxedCapture const&) = delete;

private:
    cudaStreamCaptureMode mMode = cudaStreamCaptureModeRelaxed;
};

void check(CUresult status, char const* what)
{
    TORCH_CHECK(status == CUDA_SUCCESS, what, ": ", nrd::errorName(status),
        status == CUDA_ERROR_NO_BINARY_FOR_GPU ? "; the kernels were built for another GPU" : "");
}

void prepareDevice()
{
    RelaxedCapture const relaxed;
    check(nrd::prepare(), "loading the decode kernels");
}

void launchDecode(at::Tensor const& theta, at::Tensor const& guidance, at::Tensor const& logits, Floats xTable,
    Floats yTable, int64_t numClasses, int64_t hidden, int64_t guidanceChannels, int64_t patch, int64_t variant)
{
    c10::cuda::CUDAGuard const guard(theta.device());
    nrd::DecodeShape const shape = shapeOf(numClasses, hidden, guidanceChannels, patch, 1, xTable, yTable);
    Inputs const inputs = checkedInputs(theta, guidance, shape);
    TORCH_CHECK(logits.scalar_type() == theta.scalar_type(), "logits: expected theta's type ", theta.scalar_type(),
        ", got ", logits.scalar_type());
    checkOutput(logits, "logits", theta, guidance, {theta.size(0), numClasses, guidance.size(2), guidance.size(3)});
    if (theta.numel() == 0)
    {
        return;
    }
    prepareDevice();
    TORCH_CHECK(nrd::supportsLogits(shape, inputs.problem.type, variantOf(variant)), "variant ", variant,
        " of patch_decode does not exist for these constants, ", theta.scalar_type(),
        " and this GPU; use variant 0 (auto)");
    check(nrd::patchDecode(inputs.problem, logits.mutable_data_ptr(), variantOf(variant),
              c10::cuda::getCurrentCUDAStream(theta.get_device())),
        "patch_decode");
}

void launchDecodeMask(at::Tensor const& theta, at::Tensor const& guidance, at::Tensor const& mask, Floats xTable,
    Floats yTable, int64_t numClasses, int64_t hidden, int64_t guidanceChannels, int64_t patch, int64_t upsample,
    int64_t variant, bool prune)
{
    c10::cuda::CUDAGuard const guard(theta.device());
    nrd::DecodeShape const shape = shapeOf(numClasses, hidden, guidanceChannels, patch, upsample, xTable, yTable);
    Inputs const inputs = checkedInputs(theta, guidance, shape);
    nrd::MaskType const type = maskTypeOf(mask.scalar_type());
    checkOutput(
        mask, "mask", theta, guidance, {theta.size(0), upsample * guidance.size(2), upsample * guidance.size(3)});
    if (theta.numel() == 0)
    {
        return;
    }
    prepareDevice();
    TORCH_CHECK(nrd::supportsMask(shape, inputs.problem.type, variantOf(variant)), "variant ", variant,
        " of patch_decode_mask does not exist for these constants, ", theta.scalar_type(),
        " and this GPU; use variant 0 (auto)");
    check(nrd::patchDecodeMask(inputs.problem, mask.mutable_data_ptr(), type, variantOf(variant), prune,
              c10::cuda::getCurrentCUDAStream(theta.get_device())),
        "patch_decode_mask");
}

//! Whether a variant exists for these constants on theta's device; of the mask where `mask` is true.
bool supportsVariant(at::Tensor const& theta, int64_t numClasses, int64_t hidden, int64_t guidanceChannels,
    int64_t patch, int64_t upsample, int64_t variant, bool mask)
{
    c10::cuda::CUDAGuard const guard(theta.device());
    std::vector<double> const table(static_cast<size_t>(patch));
    nrd::DecodeShape const shape = shapeOf(numClasses, hidden, guidanceChannels, patch, upsample, table, table);
    nrd::ElementType const type = elementTypeOf(theta.scalar_type());
    prepareDevice();
    return mask ? nrd::supportsMask(shape, type, variantOf(variant))
                : nrd::supportsLogits(shape, type, variantOf(variant));
}

} // namespace

// Their schemas are in nrd_trt/decode/extension.py.
TORCH_LIBRARY_IMPL(nrd, CUDA, library)
{
    library.impl("launch_decode", &launchDecode);
    library.impl("launch_decode_mask", &launchDecodeMask);
    library.impl("supports_variant", &supportsVariant);
}
