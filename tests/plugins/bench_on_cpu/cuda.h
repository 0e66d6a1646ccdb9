// What plugins/nrd_decode/decode_kernel.h needs of CUDA, for a build without it.
#pragma once

enum CUresult
{
    CUDA_SUCCESS = 0,
    CUDA_ERROR_INVALID_VALUE = 1,
    CUDA_ERROR_NO_BINARY_FOR_GPU = 209,
};

using CUstream = void*;
