/*
 * A libcuda.so.1 of host memory whose launches run the emulated kernels, and what tests ask of it.
 */
#pragma once

#include <cuda.h>

#include <cstdint>
#include <string>

namespace nrd::test
{

//! What the driver has, and what happened to it since it was last set.
struct FakeDriver
{
    int32_t architecture = 90;
    int32_t sharedBytes = 232448;
    CUdevice device = 0;
    unsigned long long context = 1;  //!< current in every thread; 0: none
    CUresult failure = CUDA_SUCCESS; //!< of the next launch

    int32_t loadedImages = 0;
    std::string image;       //!< the one loaded last
    int32_t functions = 0;   //!< kernels that were loaded into a context
    int32_t shared = 0;      //!< that a kernel was allowed last
    int32_t carveouts = 0;   //!< kernels for which a multiprocessor gives all the shared memory that it can
    std::string kernel;      //!< of the last launch
    uint32_t dynamicBytes{}; //!< of the last launch
    CUstream stream{};       //!< of the last launch
};

FakeDriver& fakeDriver();

} // namespace nrd::test
