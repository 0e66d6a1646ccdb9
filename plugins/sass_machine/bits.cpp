#include "lanewise.h"

#include <algorithm>

namespace nrd::sass
{
namespace
{

//! Bit by bit, the truth table's entry for those of a, b and c.
uint32_t lookUp(uint32_t table, uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t out = 0;
    for (uint32_t row = 0; row < 8; ++row)
    {
        if ((table >> row & 1U) != 0)
        {
            out |= ((row & 4U) != 0 ? a : ~a) & ((row & 2U) != 0 ? b : ~b) & ((row & 1U) != 0 ? c : ~c);
        }
    }
    return out;
}

//! LOP3.LUT [nonzero,] d, a, b, c, table, p
void logic3(Warp& w, Encoded const& i, uint32_t mask)
{
    int const results = countPredicates(i, 0);
    Operand const* const terms = i.operands + results + 1;
    Lanes const a = w.integers(terms[0]);
    Lanes const b = w.integers(terms[1]);
    Lanes const c = w.integers(terms[2]);
    Lanes out;
    uint32_t nonzero = w.predicate(terms[4]);
    for (size_t lane = 0; lane < kLANES; ++lane)
    {
        out[lane] = lookUp(terms[3].value, a[lane], b[lane], c[lane]);
        nonzero |= static_cast<uint32_t>(out[lane] != 0) << lane;
    }
    if (results == 1)
    {
        w.writePredicate(i.operands[0], nonzero, mask);
    }
    w.write(i.operands[results], out, mask);
}

//! PLOP3.LUT p, q, a, b, c, table of p, table of q
void logicOfPredicates(Warp& w, Encoded const& i, uint32_t mask)
{
    uint32_t const a = w.predicate(i.operands[2]);
    uint32_t const b = w.predicate(i.operands[3]);
    uint32_t const c = w.predicate(i.operands[4]);
    w.writePredicate(i.operands[0], lookUp(i.operands[5].value, a, b, c), mask);
    w.writePredicate(i.operands[1], lookUp(i.operands[6].value, a, b, c), mask);
}

//! PRMT d, a, selector, b: four bytes of {b, a}, or their signs
uint32_t permute(uint32_t a, uint32_t selector, uint32_t b)
{
    uint64_t const pair = uint64_t{b} << 32 | a;
    uint32_t out = 0;
    for (uint32_t byte = 0; byte < 4; ++byte)
    {
        uint32_t const nibble = selector >> 4 * byte & 15U;
        uint32_t const value = static_cast<uint32_t>(pair >> 8 * (nibble & 7U)) & 0xffU;
        uint32_t const sign = (value & 0x80U) != 0 ? 0xffU : 0U;
        out |= ((nibble & 8U) != 0 ? sign : value) << 8 * byte;
    }
    return out;
}

void addShifts(Handlers& all)
{
    auto const left = [](uint32_t a, uint32_t n, uint32_t)
    {
        return n < 32 ? a << n : 0U;
    };
    auto const leftHigh = [](uint32_t a, uint32_t n, uint32_t c)
    {
        uint64_t const pair = uint64_t{c} << 32 | a;
        return high(n < 64 ? pair << n : 0);
    };
    all["SHF.L.U32"] = ternary(left);
    all["SHF.L.U32.HI"] = ternary(leftHigh);
    all["SHF.L.U64.HI"] = ternary(leftHigh);
    auto const right = [](uint32_t a, uint32_t n, uint32_t c)
    {
        uint64_t const pair = uint64_t{c} << 32 | a;
        return static_cast<uint32_t>(n < 64 ? pair >> n : 0);
    };
    all["SHF.R.U32"] = ternary(right);
    all["SHF.R.U64"] = ternary(right);
    all["SHF.R.U32.HI"] = ternary(
        [](uint32_t, uint32_t n, uint32_t c)
        {
            return n < 32 ? c >> n : 0U;
        });
    all["SHF.R.S32.HI"] = ternary(
        [](uint32_t, uint32_t n, uint32_t c)
        {
            return static_cast<uint32_t>(extend(c) >> std::min(n, 31U));
        });
}

uint32_t findLeadingOne(uint32_t x)
{
    return x == 0 ? kFULL : 31U - static_cast<uint32_t>(__builtin_clz(x));
}

uint32_t reverse(uint32_t x)
{
    uint32_t out = 0;
    for (uint32_t bit = 0; bit < 32; ++bit)
    {
        out |= (x >> bit & 1U) << (31 - bit);
    }
    return out;
}

//! P2R d, PR, c, which: predicates into the bits of c that `which` names
void predicatesToRegister(Warp& w, Encoded const& i, uint32_t mask)
{
    Lanes out = w.bits(i.operands[2]);
    uint32_t const which = i.operands[3].value;
    for (size_t lane = 0; lane < kLANES; ++lane)
    {
        uint32_t all = 0;
        for (size_t p = 0; p < 7; ++p)
        {
            all |= (w.predicates[p] >> lane & 1U) << p;
        }
        out[lane] = (out[lane] & ~which) | (all & which);
    }
    w.write(i.operands[0], out, mask);
}

//! R2P PR, a, which
void registerToPredicates(Warp& w, Encoded const& i, uint32_t mask)
{
    Lanes const a = w.bits(i.operands[1]);
    for (size_t p = 0; p < 7; ++p)
    {
        uint32_t bits = 0;
        for (size_t lane = 0; lane < kLANES; ++lane)
        {
            bits |= (a[lane] >> p & 1U) << lane;
        }
        if ((i.operands[2].value >> p & 1U) != 0)
        {
            w.predicates[p] = (w.predicates[p] & ~mask) | (bits & mask);
        }
    }
}

void addLogic(Handlers& all)
{
    all["LOP3.LUT"] = logic3;
    all["PLOP3.LUT"] = logicOfPredicates;
    all["PRMT"] = ternary(permute);
    all["P2R"] = predicatesToRegister;
    all["R2P"] = registerToPredicates;
    all["POPC"] = unary(
        [](uint32_t x)
        {
            return static_cast<uint32_t>(__builtin_popcount(x));
        });
    all["FLO.U32"] = unary(findLeadingOne);
    all["FLO.U32.SH"] = unary(
        [](uint32_t x)
        {
            return x == 0 ? kFULL : static_cast<uint32_t>(__builtin_clz(x));
        });
    all["BREV"] = unary(reverse);
    all["SGXT.U32"] = binary(
        [](uint32_t x, uint32_t n)
        {
            return n < 32 ? x & ((1U << n) - 1U) : x;
        });
    all["SGXT"] = binary(
        [](uint32_t x, uint32_t n)
        {
            return n < 32 && n > 0 ? static_cast<uint32_t>(static_cast<int32_t>(x << (32 - n)) >> (32 - n)) : x;
        });
}

} // namespace

void addBits(Handlers& all)
{
    addShifts(all);
    addLogic(all);
}

} // namespace nrd::sass
