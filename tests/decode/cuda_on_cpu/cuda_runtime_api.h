// What plugins/nrd_decode/torch/binding.cpp needs of CUDA, for a build without it.
#pragma once

enum cudaError_t
{
    cudaSuccess = 0,
};

enum cudaStreamCaptureMode
{
    cudaStreamCaptureModeGlobal = 0,
    cudaStreamCaptureModeRelaxed = 2,
};

using cudaStream_t = void*;

inline cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*)
{
    return cudaSuccess;
}
