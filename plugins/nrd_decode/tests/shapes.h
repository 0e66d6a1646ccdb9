/*
 * Constants of ops for tests.
 */
#pragma once

#include "decode_problem.h"

namespace nrd::test
{

inline DecodeShape makeShape(int32_t k, int32_t d, int32_t m, int32_t f, int32_t s)
{
    DecodeShape shape{k, d, m, f, s, {}, {}};
    for (int32_t i = 0; i < f; ++i) // any distinct positions do
    {
        shape.xTable[i] = -0.75F + 0.25F * static_cast<float>(i);
        shape.yTable[i] = 0.5F - 0.125F * static_cast<float>(i);
    }
    return shape;
}

inline DecodeShape releasedShape(int32_t k = 19)
{
    return makeShape(k, 16, 16, 8, 4);
}

} // namespace nrd::test
