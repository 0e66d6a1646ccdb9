#include "lanewise.h"

#include <algorithm>

namespace nrd::sass
{
namespace
{

//! An addend of a sum with carries: -x is ~x + 1, which carries for x = 0.
Lanes64 addend(Warp const& w, Operand const& operand)
{
    Operand plain = operand;
    plain.flags = 0;
    Lanes const x = w.bits(plain);
    Lanes64 out;
    for (size_t lane = 0; lane < kLANES; ++lane)
    {
        out[lane] = (operand.flags & kNEGATIVE) != 0 ? uint64_t{static_cast<uint32_t>(~x[lane])} + 1
            : (operand.flags & kNOT) != 0            ? uint64_t{static_cast<uint32_t>(~x[lane])}
                                                     : uint64_t{x[lane]};
    }
    return out;
}

//! IADD3 d, [carry, [carry,]] a, b, c [, carry in, carry in]
void add3(Warp& w, Encoded const& i, uint32_t mask)
{
    int const carries = countPredicates(i, 1);
    Operand const* const terms = i.operands + 1 + carries;
    Lanes64 sum = addend(w, terms[0]);
    Lanes64 const b = addend(w, terms[1]);
    Lanes64 const c = addend(w, terms[2]);
    for (size_t lane = 0; lane < kLANES; ++lane)
    {
        sum[lane] += b[lane] + c[lane];
    }
    for (int k = 4 + carries; k < i.count; ++k)
    {
        uint32_t const in = w.predicate(i.operands[k]);
        for (size_t lane = 0; lane < kLANES; ++lane)
        {
            sum[lane] += in >> lane & 1U;
        }
    }
    for (int k = 0; k < carries; ++k)
    {
        uint32_t out = 0;
        for (size_t lane = 0; lane < kLANES; ++lane)
        {
            out |= static_cast<uint32_t>(high(sum[lane]) > static_cast<uint32_t>(k)) << lane;
        }
        w.writePredicate(i.operands[1 + k], out, mask);
    }
    Lanes low;
    std::transform(sum.begin(), sum.end(), low.begin(),
        [](uint64_t x)
        {
            return static_cast<uint32_t>(x);
        });
    w.write(i.operands[0], low, mask);
}

//! IMAD.X d, a, b, c, carry
void multiplyAddCarry(Warp& w, Encoded const& i, uint32_t mask)
{
    Lanes const a = w.integers(i.operands[1]);
    Lanes const b = w.integers(i.operands[2]);
    Lanes out = w.integers(i.operands[3]);
    uint32_t const carry = w.predicate(i.operands[4]);
    for (size_t lane = 0; lane < kLANES; ++lane)
    {
        out[lane] += a[lane] * b[lane] + (carry >> lane & 1U);
    }
    w.write(i.operands[0], out, mask);
}

//! IMAD.WIDE d, [carry,] a, b, c: 64 bits of sum
template <bool kSIGNED>
void multiplyWide(Warp& w, Encoded const& i, uint32_t mask)
{
    int const carries = countPredicates(i, 1);
    Operand const* const terms = i.operands + 1 + carries;
    Lanes const a = w.integers(terms[0]);
    Lanes const b = w.integers(terms[1]);
    Lanes64 out = w.wide(terms[2]);
    uint32_t carry = 0;
    for (size_t lane = 0; lane < kLANES; ++lane)
    {
        uint64_t const product
            = kSIGNED ? static_cast<uint64_t>(extend(a[lane]) * extend(b[lane])) : uint64_t{a[lane]} * b[lane];
        out[lane] += product;
        carry |= static_cast<uint32_t>(out[lane] < product) << lane;
    }
    if (carries == 1)
    {
        w.writePredicate(i.operands[1], carry, mask);
    }
    w.write64(i.operands[0], out, mask);
}

//! IMAD.HI d, a, b, c: the upper half of a*b + the pair c
template <bool kSIGNED>
void multiplyHigh(Warp& w, Encoded const& i, uint32_t mask)
{
    Lanes const a = w.integers(i.operands[1]);
    Lanes const b = w.integers(i.operands[2]);
    Lanes64 const c = w.wide(i.operands[3]);
    Lanes out;
    for (size_t lane = 0; lane < kLANES; ++lane)
    {
        uint64_t const product
            = kSIGNED ? static_cast<uint64_t>(extend(a[lane]) * extend(b[lane])) : uint64_t{a[lane]} * b[lane];
        out[lane] = high(product + c[lane]);
    }
    w.write(i.operands[0], out, mask);
}

//! LEA d, [carry,] a, b, shift: (a << shift) + b
void shiftAdd(Warp& w, Encoded const& i, uint32_t mask)
{
    int const carries = countPredicates(i, 1);
    Operand const* const terms = i.operands + 1 + carries;
    Lanes const a = w.integers(terms[0]);
    Lanes const b = w.integers(terms[1]);
    uint32_t const shift = terms[2].value;
    Lanes out;
    uint32_t carry = 0;
    for (size_t lane = 0; lane < kLANES; ++lane)
    {
        uint64_t const sum = uint64_t{a[lane] << shift} + b[lane];
        out[lane] = static_cast<uint32_t>(sum);
        carry |= static_cast<uint32_t>(high(sum) != 0) << lane;
    }
    if (carries == 1)
    {
        w.writePredicate(i.operands[1], carry, mask);
    }
    w.write(i.operands[0], out, mask);
}

//! LEA.HI d, a, b, c, shift [, carry]: the upper half of {c, a} << shift, plus b. With SX32 c is the sign of a.
template <bool kSIGNED>
void shiftAddHigh(Warp& w, Encoded const& i, uint32_t mask)
{
    Lanes const a = w.integers(i.operands[1]);
    Lanes out = w.integers(i.operands[2]);
    Lanes c{};
    if (!kSIGNED)
    {
        c = w.integers(i.operands[3]);
    }
    int const at = kSIGNED ? 3 : 4;
    uint32_t const shift = i.operands[at].value;
    uint32_t const carry = at + 1 < i.count ? w.predicate(i.operands[at + 1]) : 0;
    for (size_t lane = 0; lane < kLANES; ++lane)
    {
        uint64_t const pair = kSIGNED ? static_cast<uint64_t>(extend(a[lane])) : uint64_t{c[lane]} << 32 | a[lane];
        out[lane] += high(pair << shift) + (carry >> lane & 1U);
    }
    w.write(i.operands[0], out, mask);
}

} // namespace

void addIntegers(Handlers& all)
{
    auto const multiplyAdd = ternary(
        [](uint32_t a, uint32_t b, uint32_t c)
        {
            return a * b + c;
        });
    for (char const* const form : {"", ".U32", ".MOV", ".MOV.U32", ".IADD", ".SHL", ".SHL.U32"})
    {
        all[std::string("IMAD") + form] = multiplyAdd;
    }
    all["IMAD.X"] = multiplyAddCarry;
    all["IMAD.WIDE"] = multiplyWide<true>;
    all["IMAD.WIDE.U32"] = multiplyWide<false>;
    all["IMAD.HI"] = multiplyHigh<true>;
    all["IMAD.HI.U32"] = multiplyHigh<false>;
    all["IADD3"] = add3;
    all["IADD3.X"] = add3;
    all["VIADD"] = binary(
        [](uint32_t a, uint32_t b)
        {
            return a + b;
        });
    all["LEA"] = shiftAdd;
    all["LEA.HI"] = shiftAddHigh<false>;
    all["LEA.HI.X"] = shiftAddHigh<false>;
    all["LEA.HI.SX32"] = shiftAddHigh<true>;
    all["LEA.HI.X.SX32"] = shiftAddHigh<true>;
    all["MOV"] = unary(
        [](uint32_t x)
        {
            return x;
        });
    all["R2UR"] = all["MOV"];
    all["IABS"] = unary(
        [](uint32_t x)
        {
            return static_cast<int32_t>(x) < 0 ? 0U - x : x;
        });
}

} // namespace nrd::sass
