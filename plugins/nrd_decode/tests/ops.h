/*
 * The ops that the lifecycle tests go through, and what these tests ask of a failure.
 */
#pragma once

#include "check.h"
#include "descriptions.h"
#include "fake_runtime.h"
#include "plugins.h"
#include "tensorrt_doubles.h"

#include <cuda_runtime_api.h>

namespace nrd::test
{

//! Let the plugins log to the fake runtime.
inline void listen()
{
    setFakeVersion(NV_TENSORRT_MAJOR * 10000 + 300);
    setLoggerFinder(fakeFinder());
}

inline bool contains(std::string const& text, std::string const& part)
{
    return text.find(part) != std::string::npos;
}

inline bool hasDevice()
{
    int count = 0;
    return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

//! The call failed and the logger was told `part`.
inline void expectFailure(int32_t status, std::string const& part)
{
    std::string const log = takeFakeLog();
    CHECK(status != 0);
    CHECK_IN(contains(log, part), "got '" + log + "', expected '" + part + "'");
}

inline std::vector<Case> allOps()
{
    std::vector<Case> cases;
    for (char const* const maskType : {static_cast<char const*>(nullptr), "int32", "half", "u8x4"})
    {
        cases.push_back({releasedShape(), maskType});
        cases.push_back({makeShape(5, 8, 32, 4, 1), maskType});
        cases.push_back({makeShape(256, 32, 8, 16, 8), maskType});
    }
    return cases;
}

inline Plugin make(Case const& c)
{
    return create(makeFields(c.shape, c.maskType), c.isMask());
}

} // namespace nrd::test
