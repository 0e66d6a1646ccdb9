#include "machine.h"

#include <algorithm>

namespace nrd::sass
{
namespace
{

Lanes everywhere(uint32_t value)
{
    Lanes lanes;
    lanes.fill(value);
    return lanes;
}

//! VOTE.x [d,] p, q: d has the bits of the lanes where q is true, p whether any or all are
Handler vote(bool wantsAll)
{
    return [=](Warp& w, Encoded const& i, uint32_t mask)
    {
        uint32_t const voters = w.path().mask;
        uint32_t const ballot = w.predicate(i.operands[i.count - 1]) & voters;
        bool const holds = wantsAll ? ballot == voters : ballot != 0;
        if (i.count == 3)
        {
            w.write(i.operands[0], everywhere(ballot), mask);
        }
        w.writePredicate(i.operands[i.count - 2], holds ? kFULL : 0, mask);
    };
}

//! The lane that `lane` reads, as PTX defines shfl; -1: its own
int sourceOf(int lane, uint32_t b, uint32_t c, char direction)
{
    int const clamp = static_cast<int>(c & 31U);
    int const segment = static_cast<int>(c >> 8 & 31U);
    int const by = static_cast<int>(b & 31U);
    int const most = (lane & segment) | (clamp & ~segment);
    int const least = lane & segment;
    int const source = direction == 'U' ? lane - by
        : direction == 'D'              ? lane + by
        : direction == 'B'              ? (lane ^ by)
                                        : (least | (by & ~segment));
    bool const isInside = direction == 'U' ? source >= most : source <= most;
    return isInside ? source : -1;
}

//! SHFL.x p, d, a, b, c
Handler shuffle(char direction)
{
    return [=](Warp& w, Encoded const& i, uint32_t mask)
    {
        Lanes const a = w.bits(i.operands[2]);
        Lanes const b = w.bits(i.operands[3]);
        Lanes const c = w.bits(i.operands[4]);
        Lanes out{};
        uint32_t inside = 0;
        forLanes(mask,
            [&](int lane)
            {
                auto const at = static_cast<size_t>(lane);
                int const source = sourceOf(lane, b[at], c[at], direction);
                inside |= static_cast<uint32_t>(source >= 0) << lane;
                int const from = source < 0 ? lane : source;
                out[at] = (mask >> from & 1U) != 0 ? a[static_cast<size_t>(from)] : kPOISON; // a lane that is not there
            });
        w.writePredicate(i.operands[0], inside, mask);
        w.write(i.operands[1], out, mask);
        w.counts().wavefronts += 1;
        w.counts().fewestWavefronts += 1;
    };
}

//! REDUX.x d, a: over the lanes
template <class F>
Handler reduce(F f)
{
    return [f](Warp& w, Encoded const& i, uint32_t mask)
    {
        Lanes const a = w.bits(i.operands[1]);
        bool isFirst = true;
        uint32_t out = 0;
        forLanes(mask,
            [&](int lane)
            {
                uint32_t const next = a[static_cast<size_t>(lane)];
                out = isFirst ? next : f(out, next);
                isFirst = false;
            });
        w.write(i.operands[0], everywhere(out), mask);
    };
}

//! MATCH.ANY d, a: the lanes with the same value
void match(Warp& w, Encoded const& i, uint32_t mask)
{
    Lanes const a = w.bits(i.operands[1]);
    Lanes out{};
    forLanes(mask,
        [&](int lane)
        {
            forLanes(mask,
                [&](int other)
                {
                    bool const isSame = a[static_cast<size_t>(lane)] == a[static_cast<size_t>(other)];
                    out[static_cast<size_t>(lane)] |= static_cast<uint32_t>(isSame) << other;
                });
        });
    w.write(i.operands[0], out, mask);
}

//! S2R d, special
void readSpecial(Warp& w, Encoded const& i, uint32_t mask)
{
    Lanes out;
    for (uint32_t lane = 0; lane < kLANES; ++lane)
    {
        switch (i.operands[1].value)
        {
        case kTHREAD_X:
            out[lane] = static_cast<uint32_t>(w.number) * kLANES + lane;
            break;
        case kBLOCK_X:
            out[lane] = w.block.index;
            break;
        case kLANE_ID:
            out[lane] = lane;
            break;
        case kLESS_MASK:
            out[lane] = (1U << lane) - 1U;
            break;
        case kCLUSTER_RANK:
            out[lane] = 0;
            break;
        case kWARP_ID:
            out[lane] = static_cast<uint32_t>(w.number);
            break;
        default:
            fail("a special register that is not known");
        }
    }
    w.write(i.operands[0], out, mask);
}

//! B2R.RESULT d [, p]: what the block's last reduction found
void readReduction(Warp& w, Encoded const& i, uint32_t mask)
{
    w.write(i.operands[0], everywhere(w.block.reduced), mask);
    if (i.count > 1)
    {
        w.writePredicate(i.operands[1], w.block.reduced != 0 ? kFULL : 0, mask);
    }
}

} // namespace

void addWarpWide(Handlers& all)
{
    all["VOTE.ANY"] = vote(false);
    all["VOTE.ALL"] = vote(true);
    all["SHFL.IDX"] = shuffle('I');
    all["SHFL.BFLY"] = shuffle('B');
    all["SHFL.UP"] = shuffle('U');
    all["SHFL.DOWN"] = shuffle('D');
    all["MATCH.ANY"] = match;
    all["REDUX.OR"] = reduce(
        [](uint32_t a, uint32_t b)
        {
            return a | b;
        });
    all["REDUX.AND"] = reduce(
        [](uint32_t a, uint32_t b)
        {
            return a & b;
        });
    all["REDUX.XOR"] = reduce(
        [](uint32_t a, uint32_t b)
        {
            return a ^ b;
        });
    all["REDUX.SUM"] = reduce(
        [](uint32_t a, uint32_t b)
        {
            return a + b;
        });
    all["REDUX.MAX"] = reduce(
        [](uint32_t a, uint32_t b)
        {
            return std::max(a, b);
        });
    all["REDUX.MIN"] = reduce(
        [](uint32_t a, uint32_t b)
        {
            return std::min(a, b);
        });
    auto const isLess = [](uint32_t a, uint32_t b)
    {
        return static_cast<int32_t>(a) < static_cast<int32_t>(b);
    };
    all["REDUX.MAX.S32"] = reduce(
        [isLess](uint32_t a, uint32_t b)
        {
            return std::max(a, b, isLess);
        });
    all["REDUX.MIN.S32"] = reduce(
        [isLess](uint32_t a, uint32_t b)
        {
            return std::min(a, b, isLess);
        });
    all["S2R"] = readSpecial;
    all["CS2R"] = [](Warp& w, Encoded const& i, uint32_t mask)
    {
        w.write64(i.operands[0], Lanes64{}, mask); // of SRZ, which listing.py requires
    };
    all["CS2R.32"] = [](Warp& w, Encoded const& i, uint32_t mask)
    {
        w.write(i.operands[0], Lanes{}, mask);
    };
    all["B2R.RESULT"] = readReduction;
}

} // namespace nrd::sass
