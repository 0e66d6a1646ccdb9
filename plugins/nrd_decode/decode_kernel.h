/*
 * Launches of the decode kernels. They allocate nothing, do not synchronise and may be captured into a CUDA graph,
 * also on their first use on a device when `prepare` ran there before.
 */
#pragma once

#include "decode_problem.h"

#include <cuda_runtime_api.h>

namespace nrd
{

//! Whether `variant` exists for this op: shape, element type, the current device's compute capability and shared
//! memory. kAUTO is always supported.
bool supportsLogits(DecodeShape const& shape, ElementType type, Variant variant);
bool supportsMask(DecodeShape const& shape, ElementType type, Variant variant);

//! Load every kernel onto the current device and allow it the shared memory it wants. Thread-safe; does its work once
//! per device. cudaErrorNoKernelImageForDevice: this library has no code for that GPU.
cudaError_t prepare();

//! Logits (B, K, f*h, f*w) in NCHW order, of the problem's element type, not overlapping the inputs.
//! cudaErrorInvalidValue: the shape is not one of those in DecodeShape, a size is not positive or there are more than
//! 2^31 - 1 patches (a quarter of that for f = 16), or the variant does not support it.
cudaError_t patchDecode(DecodeProblem const& problem, void* logits, Variant variant, cudaStream_t stream);

//! Class index (B, s*f*h, s*f*w) of the largest of the bilinearly enlarged logits (align_corners=False); ties go to the
//! lowest index, NaN never wins. `prune` skips cells whose four corners agree; the result is the same without it.
cudaError_t patchDecodeMask(
    DecodeProblem const& problem, void* mask, MaskType maskType, Variant variant, bool prune, cudaStream_t stream);

} // namespace nrd
