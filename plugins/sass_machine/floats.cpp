#include "machine.h"
#include "numbers.h"

#include <cfenv>
#include <cmath>

namespace nrd::sass
{
namespace
{

//! Compute in another direction of rounding. The functions are opaque, so that nothing moves across the switch.
template <class F>
float rounded(int direction, F const& f)
{
    std::fesetround(direction);
    float volatile const out = f();
    std::fesetround(FE_TONEAREST);
    return out;
}

float add(float a, float b)
{
    return a + b;
}

float multiply(float a, float b)
{
    return a * b;
}

template <class F>
Handler binary(F f, bool flushes, int direction)
{
    return [=](Warp& w, Encoded const& i, uint32_t mask)
    {
        Lanes const a = w.floats(i.operands[1]);
        Lanes const b = w.floats(i.operands[2]);
        Lanes out;
        for (size_t lane = 0; lane < kLANES; ++lane)
        {
            float const x = flushes ? flushed(toFloat(a[lane])) : toFloat(a[lane]);
            float const y = flushes ? flushed(toFloat(b[lane])) : toFloat(b[lane]);
            float const z = direction == FE_TONEAREST ? f(x, y)
                                                      : rounded(direction,
                                                            [&]
                                                            {
                                                                float volatile const u = x;
                                                                float volatile const v = y;
                                                                return f(u, v);
                                                            });
            out[lane] = canonical(flushes ? flushed(z) : z);
        }
        w.write(i.operands[0], out, mask);
    };
}

void fuse(Warp& w, Encoded const& i, uint32_t mask)
{
    Lanes const a = w.floats(i.operands[1]);
    Lanes const b = w.floats(i.operands[2]);
    Lanes const c = w.floats(i.operands[3]);
    Lanes out;
    for (size_t lane = 0; lane < kLANES; ++lane)
    {
        out[lane] = canonical(__builtin_fmaf(toFloat(a[lane]), toFloat(b[lane]), toFloat(c[lane])));
    }
    w.write(i.operands[0], out, mask);
}

Handler fuseRounded(int direction)
{
    return [=](Warp& w, Encoded const& i, uint32_t mask)
    {
        Lanes const a = w.floats(i.operands[1]);
        Lanes const b = w.floats(i.operands[2]);
        Lanes out = w.floats(i.operands[3]);
        for (size_t lane = 0; lane < kLANES; ++lane)
        {
            out[lane] = canonical(rounded(direction,
                [&]
                {
                    float volatile const x = toFloat(a[lane]);
                    return __builtin_fmaf(x, toFloat(b[lane]), toFloat(out[lane]));
                }));
        }
        w.write(i.operands[0], out, mask);
    };
}

template <class F>
Handler special(F f)
{
    return [f](Warp& w, Encoded const& i, uint32_t mask)
    {
        Lanes out = w.floats(i.operands[1]);
        for (uint32_t& x : out)
        {
            x = canonical(f(toFloat(x)));
        }
        w.write(i.operands[0], out, mask);
    };
}

//! FCHK p, a, b: whether the short division of a by b could round wrongly
void checkDivision(Warp& w, Encoded const& i, uint32_t mask)
{
    Lanes const a = w.floats(i.operands[1]);
    Lanes const b = w.floats(i.operands[2]);
    uint32_t isHard = 0;
    for (size_t lane = 0; lane < kLANES; ++lane)
    {
        int const x = static_cast<int>(a[lane] >> 23 & 0xffU);
        int const y = static_cast<int>(b[lane] >> 23 & 0xffU);
        bool const isPlain = y > 2 && y < 252 && x < 255 && x > 24 && std::abs(x - y) < 126;
        isHard |= static_cast<uint32_t>(!isPlain) << lane;
    }
    w.writePredicate(i.operands[0], isHard, mask);
}

//! Two halves of an operand. H0_H0 and H1_H1 take one twice; an immediate is given as two operands.
struct Halves
{
    std::array<float, kLANES> low;
    std::array<float, kLANES> high;
};

Halves halves(Warp const& w, Operand const& operand)
{
    Operand plain = operand;
    plain.flags = 0;
    Lanes const bits = w.bits(plain);
    Halves out;
    for (size_t lane = 0; lane < kLANES; ++lane)
    {
        float const low = widen(static_cast<uint16_t>(bits[lane]));
        float const high = widen(static_cast<uint16_t>(bits[lane] >> 16));
        float const sign = (operand.flags & kNEGATIVE) != 0 ? -1.F : 1.F;
        out.low[lane] = sign * ((operand.flags & kHALF_HIGH) != 0 ? high : low);
        out.high[lane] = sign * ((operand.flags & kHALF_LOW) != 0 ? low : high);
    }
    return out;
}

Lanes packed(Halves const& values)
{
    Lanes out;
    for (size_t lane = 0; lane < kLANES; ++lane)
    {
        out[lane] = uint32_t{narrow(values.high[lane])} << 16 | narrow(values.low[lane]);
    }
    return out;
}

//! An immediate pair, upper half first, as one operand
Operand pairOf(Encoded const& i, int at)
{
    Operand pair = i.operands[at];
    if (pair.kind == kIMMEDIATE)
    {
        pair.value = i.operands[at].value << 16 | (i.operands[at + 1].value & 0xffffU);
    }
    return pair;
}

//! HFMA2 d, a, b, c, with an immediate pair for b or c
void fuseHalves(Warp& w, Encoded const& i, uint32_t mask)
{
    Halves const a = halves(w, i.operands[1]);
    int const third = i.operands[2].kind == kIMMEDIATE ? 4 : 3;
    Halves const b = halves(w, pairOf(i, 2));
    Halves c = halves(w, pairOf(i, third));
    for (size_t lane = 0; lane < kLANES; ++lane)
    {
        c.low[lane] = __builtin_fmaf(a.low[lane], b.low[lane], c.low[lane]);
        c.high[lane] = __builtin_fmaf(a.high[lane], b.high[lane], c.high[lane]);
    }
    w.write(i.operands[0], packed(c), mask);
}

//! HADD2.F32 d, a, b: one half of each, in fp32
void addHalvesToFloat(Warp& w, Encoded const& i, uint32_t mask)
{
    Halves const a = halves(w, i.operands[1]);
    Halves const b = halves(w, i.operands[2]);
    Lanes out;
    for (size_t lane = 0; lane < kLANES; ++lane)
    {
        out[lane] = canonical(a.low[lane] + b.low[lane]);
    }
    w.write(i.operands[0], out, mask);
}

//! HMNMX2.NAN d, a, b, p
void extremeOfHalves(Warp& w, Encoded const& i, uint32_t mask)
{
    Halves a = halves(w, i.operands[1]);
    Halves const b = halves(w, i.operands[2]);
    uint32_t const smaller = w.predicate(i.operands[3]);
    auto const pick = [](float x, float y, bool isSmaller)
    {
        bool const isLess = x < y || (x == y && std::signbit(x));
        return std::isnan(x) || std::isnan(y) ? NAN : isLess == isSmaller ? x : y;
    };
    for (size_t lane = 0; lane < kLANES; ++lane)
    {
        bool const isSmaller = (smaller >> lane & 1U) != 0;
        a.low[lane] = pick(a.low[lane], b.low[lane], isSmaller);
        a.high[lane] = pick(a.high[lane], b.high[lane], isSmaller);
    }
    w.write(i.operands[0], packed(a), mask);
}

} // namespace

void addFloats(Handlers& all)
{
    for (bool const flushes : {false, true})
    {
        std::string const end = flushes ? ".FTZ" : "";
        all["FADD" + end] = binary(add, flushes, FE_TONEAREST);
        all["FMUL" + end] = binary(multiply, flushes, FE_TONEAREST);
    }
    all["FMUL.RZ"] = binary(multiply, false, FE_TOWARDZERO);
    all["FFMA"] = fuse;
    all["FFMA.RZ"] = fuseRounded(FE_TOWARDZERO);
    all["FFMA.RM"] = fuseRounded(FE_DOWNWARD);
    all["FFMA.RP"] = fuseRounded(FE_UPWARD);
    // The unit's own result may differ in the last bit; what the compiler derives from it does not depend on that.
    all["MUFU.RCP"] = special(
        [](float x)
        {
            return 1.F / x;
        });
    all["MUFU.RSQ"] = special(
        [](float x)
        {
            return 1.F / std::sqrt(x);
        });
    all["FCHK"] = checkDivision;
    all["HFMA2"] = fuseHalves;
    all["HFMA2.MMA"] = fuseHalves;
    all["HADD2.F32"] = addHalvesToFloat;
    all["HMNMX2.NAN"] = extremeOfHalves;
}

} // namespace nrd::sass
