/*
 * Launches of the decode kernels, by way of the CUDA driver alone. They allocate nothing, do not synchronise and may be
 * captured into a CUDA graph, also on their first use in a context when `prepare` ran in it before.
 *
 * Everything happens in the context that is current; where none is, the primary one of the first device becomes so, as
 * with the CUDA runtime.
 */
#pragma once

#include "decode_problem.h"

#include <cuda.h>

namespace nrd
{

//! Whether a device answers.
bool deviceAnswers();

//! Whether `variant` exists for this op: shape, element type, the current device's compute capability and shared
//! memory. kAUTO is always supported.
bool supportsLogits(DecodeShape const& shape, ElementType type, Variant variant);
bool supportsMask(DecodeShape const& shape, ElementType type, Variant variant);

//! Load every kernel into the current context and allow it the shared memory it wants. Thread-safe; does its work once
//! per context. CUDA_ERROR_NO_BINARY_FOR_GPU: this library has no code for that GPU.
//! CUDA_ERROR_SHARED_OBJECT_INIT_FAILED: there is no driver. CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND: it is older than
//! that of CUDA 12.0.
CUresult prepare();

//! Logits (B, K, f*h, f*w) in NCHW order, of the problem's element type, not overlapping the inputs.
//! CUDA_ERROR_INVALID_VALUE: the shape is not one of those in DecodeShape, a size is not positive or there are more than
//! 2^31 - 1 patches (a quarter of that for f = 16), or the variant does not support it.
CUresult patchDecode(DecodeProblem const& problem, void* logits, Variant variant, CUstream stream);

//! Class index (B, s*f*h, s*f*w) of the largest of the bilinearly enlarged logits (align_corners=False); ties go to the
//! lowest index, NaN never wins. `prune` skips cells whose four corners agree; the result is the same without it.
CUresult patchDecodeMask(
    DecodeProblem const& problem, void* mask, MaskType maskType, Variant variant, bool prune, CUstream stream);

//! Name of a status, such as "CUDA_ERROR_NO_BINARY_FOR_GPU".
char const* errorName(CUresult status);

} // namespace nrd
