/*
 * Handlers that compute each lane alone.
 */
#pragma once

#include "machine.h"

#include <algorithm>

namespace nrd::sass
{

inline uint32_t high(uint64_t x)
{
    return static_cast<uint32_t>(x >> 32);
}

inline int64_t extend(uint32_t x)
{
    return static_cast<int32_t>(x);
}

//! Number of leading operands that are predicates, from `first` on.
inline int countPredicates(Encoded const& i, int first)
{
    int n = 0;
    while (first + n < i.count
        && (i.operands[first + n].kind == kPREDICATE || i.operands[first + n].kind == kUNIFORM_PREDICATE))
    {
        ++n;
    }
    return n;
}

//! d = f(a, b, c) in each lane; a, b and c with their signs.
template <class F>
Handler ternary(F f)
{
    return [f](Warp& w, Encoded const& i, uint32_t mask)
    {
        Lanes const a = w.integers(i.operands[1]);
        Lanes const b = w.integers(i.operands[2]);
        Lanes const c = w.integers(i.operands[3]);
        Lanes out;
        for (size_t lane = 0; lane < kLANES; ++lane)
        {
            out[lane] = f(a[lane], b[lane], c[lane]);
        }
        w.write(i.operands[0], out, mask);
    };
}

template <class F>
Handler binary(F f)
{
    return [f](Warp& w, Encoded const& i, uint32_t mask)
    {
        Lanes const a = w.integers(i.operands[1]);
        Lanes const b = w.integers(i.operands[2]);
        Lanes out;
        for (size_t lane = 0; lane < kLANES; ++lane)
        {
            out[lane] = f(a[lane], b[lane]);
        }
        w.write(i.operands[0], out, mask);
    };
}

template <class F>
Handler unary(F f)
{
    return [f](Warp& w, Encoded const& i, uint32_t mask)
    {
        Lanes out = w.integers(i.operands[1]);
        std::transform(out.begin(), out.end(), out.begin(), f);
        w.write(i.operands[0], out, mask);
    };
}

} // namespace nrd::sass
