/*
 * The decode in plain C++, with the arithmetic of the kernels: what their results are held against, bit by bit.
 */
#pragma once

#include "decode_problem.h"

namespace nrd
{

//! Logits (B, K, f*h, f*w), NCHW, of the problem's type.
//! \throws std::invalid_argument when the shape is not one of those in DecodeShape.
void hostPatchDecode(DecodeProblem const& problem, void* logits);

//! Class index (B, s*f*h, s*f*w). `prune` fills cells that one class clearly wins, as the kernels do.
//! \throws std::invalid_argument as above.
void hostPatchDecodeMask(DecodeProblem const& problem, void* mask, MaskType maskType, bool prune);

} // namespace nrd
