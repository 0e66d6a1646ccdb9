/*
 * The kernels of logits_kernel.h and mask_kernel.h on a CPU (emulation.h). Host only; for tests.
 */
#pragma once

#include "decode_problem.h"

namespace nrd
{

//! Blocks [first, end) of a launch; end < 0 means all.
struct BlockRange
{
    int64_t first = 0;
    int64_t end = -1;
};

//! Run a kernel as its launcher would. Any variant but kAUTO; compute capability and shared memory are not limits here.
//! `truncates`: see emulation::Launch.
//! \throws std::invalid_argument the shape or the variant does not fit; std::logic_error a barrier is misused.
void emulatePatchDecode(DecodeProblem const& problem, void* logits, Variant variant, uint64_t seed,
    BlockRange blocks = {}, bool truncates = false);
void emulatePatchDecodeMask(DecodeProblem const& problem, void* mask, MaskType maskType, Variant variant, bool prune,
    uint64_t seed, BlockRange blocks = {}, bool truncates = false);

} // namespace nrd
