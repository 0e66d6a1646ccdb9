/*
 * A kernel that does nothing, to measure what a launch of the decode's size costs.
 */
#pragma once

#include "../decode_problem.h"

#include <cuda_runtime_api.h>

namespace nrd
{

//! Launch it with the grid and the block that the decode of `problem` has.
cudaError_t launchEmpty(DecodeProblem const& problem, cudaStream_t stream);

} // namespace nrd
