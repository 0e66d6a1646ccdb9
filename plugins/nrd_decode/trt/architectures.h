/*
 * The GPU code in this library, as CMake passed it to nvcc.
 */
#pragma once

#if !defined(NRD_TRT_ARCHITECTURES) || !defined(NRD_TRT_PTX) || !defined(NRD_TRT_VERSION)
#error "plugins/CMakeLists.txt defines these"
#endif

namespace nrd
{

constexpr char const* kARCHITECTURES = NRD_TRT_ARCHITECTURES; //!< compute capabilities with machine code: "75,80"
constexpr char const* kPTX = NRD_TRT_PTX;                     //!< those with PTX, which newer GPUs compile on loading
constexpr char const* kLIBRARY_VERSION = NRD_TRT_VERSION;

} // namespace nrd
