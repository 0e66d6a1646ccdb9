/*
 * The functions of the CUDA driver that the launcher calls, found when they are first wanted: a library that needs
 * libcuda.so.1 could not even be read where there is no driver.
 */
#pragma once

#include <cuda.h>

#include <dlfcn.h>

namespace nrd
{

//! Those with the newest need are from CUDA 12.0. No one of them is a macro for a newer version of itself.
#define NRD_DRIVER_FUNCTIONS(FUNCTION)                                                                                 \
    FUNCTION(cuInit)                                                                                                   \
    FUNCTION(cuGetErrorName)                                                                                           \
    FUNCTION(cuCtxGetDevice)                                                                                           \
    FUNCTION(cuCtxGetId)                                                                                               \
    FUNCTION(cuCtxSetCurrent)                                                                                          \
    FUNCTION(cuDevicePrimaryCtxRetain)                                                                                 \
    FUNCTION(cuDeviceGetAttribute)                                                                                     \
    FUNCTION(cuLibraryLoadData)                                                                                        \
    FUNCTION(cuLibraryGetKernel)                                                                                       \
    FUNCTION(cuKernelGetFunction)                                                                                      \
    FUNCTION(cuKernelGetAttribute)                                                                                     \
    FUNCTION(cuKernelSetAttribute)                                                                                     \
    FUNCTION(cuLaunchKernel)

struct Driver
{
    CUresult status = CUDA_SUCCESS; //!< whether the functions are there
#define NRD_MEMBER(name) decltype(&::name) name = nullptr;
    NRD_DRIVER_FUNCTIONS(NRD_MEMBER)
#undef NRD_MEMBER

    Driver()
    {
        void* const library = dlopen("libcuda.so.1", RTLD_NOW); // stays open
        if (library == nullptr)
        {
            status = CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
            return;
        }
#define NRD_FIND(name)                                                                                                 \
    name = reinterpret_cast<decltype(name)>(dlsym(library, #name));                                                    \
    if (name == nullptr)                                                                                               \
    {                                                                                                                  \
        status = CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND;                                                            \
    }
        NRD_DRIVER_FUNCTIONS(NRD_FIND)
#undef NRD_FIND
    }
};

inline Driver const& driver()
{
    static Driver const instance;
    return instance;
}

} // namespace nrd
