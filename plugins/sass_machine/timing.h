/*
 * When the blocks of a multiprocessor end, from what their warps issued.
 */
#pragma once

#include "machine.h"

namespace nrd::sass
{

//! Run recorded blocks on one multiprocessor, at most `resident` at a time, the next as soon as one ends.
//! \return the cycle in which each ends, in the order of ending.
std::vector<int64_t> simulate(Kernel const& kernel, std::vector<uint32_t> const& stream, int32_t resident);

} // namespace nrd::sass
