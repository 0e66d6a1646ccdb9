/*
 * Branches and barriers. A convergence barrier (B0 to B15) holds the threads that go on together: BSSY notes those that
 * are there, BSYNC waits for them, BREAK takes some away. Each lane keeps its own copy, so that two paths of a warp do
 * not disturb each other's.
 */
#include "machine.h"

namespace nrd::sass
{
namespace
{

constexpr uint32_t kBYTES = 16; //!< of one instruction

//! BRA [p,] target
void jump(Warp& w, Encoded const& i, uint32_t mask)
{
    uint32_t const taken = i.count > 1 ? mask & w.predicate(i.operands[0]) : mask;
    w.branch(i.operands[i.count - 1].value, taken);
}

//! Each lane to its own address in bytes.
void jumpTo(Warp& w, Lanes const& addresses, uint32_t mask)
{
    std::map<uint32_t, uint32_t> lanes;
    forLanes(mask,
        [&](int lane)
        {
            lanes[addresses[static_cast<size_t>(lane)] / kBYTES] |= 1U << lane;
        });
    for (auto const& [target, who] : lanes)
    {
        w.branch(target, who);
    }
}

//! BRX a, offset: relative to the next instruction
void jumpIndirect(Warp& w, Encoded const& i, uint32_t mask)
{
    Lanes addresses = w.bits(i.operands[0]);
    uint32_t const next = w.path().pc * kBYTES;
    for (uint32_t& address : addresses)
    {
        address += next + i.operands[1].value;
    }
    jumpTo(w, addresses, mask);
}

//! RET.REL a: from the kernel's start
void comeBack(Warp& w, Encoded const& i, uint32_t mask)
{
    jumpTo(w, w.bits(i.operands[0]), mask);
}

Lanes& barrierOf(Warp& w, Operand const& operand)
{
    if (operand.kind != kBARRIER)
    {
        fail("expected a convergence barrier");
    }
    return w.barriers[static_cast<size_t>(operand.index)];
}

void beginRegion(Warp& w, Encoded const& i, uint32_t mask)
{
    Lanes& barrier = barrierOf(w, i.operands[0]);
    forLanes(mask,
        [&](int lane)
        {
            barrier[static_cast<size_t>(lane)] = mask;
        });
}

void requireWhole(Warp& w, uint32_t mask)
{
    if (mask != w.path().mask)
    {
        fail("a predicate splits what waits together");
    }
}

//! BRA.DIV mask, target: to code for a warp that is not whole. A part of a warp stops the machine there.
void stayTogether(Warp& w, Encoded const&, uint32_t mask)
{
    if (mask != 0)
    {
        requireWhole(w, mask);
    }
}

void endRegion(Warp& w, Encoded const& i, uint32_t mask)
{
    if (mask == 0)
    {
        return;
    }
    requireWhole(w, mask);
    w.wait(State::kAT_CONVERGENCE, barrierOf(w, i.operands[0])[static_cast<size_t>(__builtin_ctz(mask))]);
}

void leaveRegion(Warp& w, Encoded const& i, uint32_t mask)
{
    if (mask == 0)
    {
        return;
    }
    Lanes& barrier = barrierOf(w, i.operands[0]);
    uint32_t const group = barrier[static_cast<size_t>(__builtin_ctz(mask))];
    for (uint32_t& participants : barrier)
    {
        participants = participants == group ? participants & ~mask : participants;
    }
    for (Path& path : w.paths)
    {
        if (path.state == State::kAT_CONVERGENCE && path.awaited == group)
        {
            path.awaited &= ~mask;
        }
    }
}

//! BMOV.32 to, from: a barrier's threads to or from a register
Handler moveBarrier(bool clears)
{
    return [=](Warp& w, Encoded const& i, uint32_t mask)
    {
        bool const isFrom = i.operands[1].kind == kBARRIER;
        Lanes const values = isFrom ? barrierOf(w, i.operands[1]) : w.bits(i.operands[1]);
        if (clears && isFrom)
        {
            forLanes(mask,
                [&](int lane)
                {
                    barrierOf(w, i.operands[1])[static_cast<size_t>(lane)] = 0;
                });
        }
        if (i.operands[0].kind != kBARRIER)
        {
            w.write(i.operands[0], values, mask);
            return;
        }
        Lanes& target = barrierOf(w, i.operands[0]);
        forLanes(mask,
            [&](int lane)
            {
                target[static_cast<size_t>(lane)] = values[static_cast<size_t>(lane)];
            });
    };
}

//! WARPSYNC [mask]
void syncWarp(Warp& w, Encoded const& i, uint32_t mask)
{
    if (mask == 0)
    {
        return;
    }
    requireWhole(w, mask);
    w.wait(State::kAT_WARPSYNC, i.count > 0 ? w.bits(i.operands[0])[static_cast<size_t>(__builtin_ctz(mask))] : kFULL);
}

//! BAR.SYNC 0, and BAR.RED.x 0, p
Handler syncBlock(Reduction reduction)
{
    return [=](Warp& w, Encoded const& i, uint32_t mask)
    {
        if (mask == 0)
        {
            return;
        }
        requireWhole(w, mask);
        uint32_t alive = 0;
        for (Path const& path : w.paths)
        {
            alive |= path.mask;
        }
        if (mask != alive)
        {
            fail("a part of the warp comes to the block's barrier alone");
        }
        if (i.operands[0].kind != kIMMEDIATE || i.operands[0].value != 0)
        {
            fail("only the block's own barrier is known");
        }
        w.block.reduction = reduction;
        if (reduction != Reduction::kNONE)
        {
            w.block.votes += static_cast<uint32_t>(__builtin_popcount(w.predicate(i.operands[1]) & mask));
        }
        w.wait(State::kAT_BLOCK_BARRIER, 0);
    };
}

} // namespace

void addControl(Handlers& all)
{
    all["BRA"] = jump;
    all["BRA.DIV"] = stayTogether;
    all["CALL.REL.NOINC"] = jump;
    all["BRX"] = jumpIndirect;
    all["RET.REL.NODEC"] = comeBack;
    all["EXIT"] = [](Warp& w, Encoded const&, uint32_t mask)
    {
        w.leave(mask);
    };
    all["BSSY"] = beginRegion;
    all["BSYNC"] = endRegion;
    all["BREAK"] = leaveRegion;
    all["BMOV.32"] = moveBarrier(false);
    all["BMOV.32.CLEAR"] = moveBarrier(true);
    all["WARPSYNC"] = syncWarp;
    all["WARPSYNC.ALL"] = syncWarp;
    all["BAR.SYNC.DEFER_BLOCKING"] = syncBlock(Reduction::kNONE);
    all["BAR.RED.OR.DEFER_BLOCKING"] = syncBlock(Reduction::kANY);
    all["BAR.RED.AND.DEFER_BLOCKING"] = syncBlock(Reduction::kALL);
    all["BAR.RED.POPC.DEFER_BLOCKING"] = syncBlock(Reduction::kCOUNT);
    for (char const* const name : {"NOP", "YIELD", "NANOSLEEP"})
    {
        all[name] = [](Warp&, Encoded const&, uint32_t) { };
    }
}

} // namespace nrd::sass
