#include "machine.h"

#include <algorithm>
#include <cstring>

namespace nrd::sass
{

Handlers const& handlers()
{
    static Handlers const all = []
    {
        Handlers made;
        addIntegers(made);
        addBits(made);
        addComparisons(made);
        addFloats(made);
        addConversions(made);
        Handlers const scalar = made;
        for (auto const& [name, handler] : scalar)
        {
            made["U" + name] = handler;
        }
        addMemory(made);
        made["ULDC"] = made["LDC"];
        made["ULDC.64"] = made["LDC.64"];
        made["ULDC.U8"] = made["LDC.U8"];
        made["ULDC.U16"] = made["LDC.U16"];
        addTensor(made);
        addWarpWide(made);
        made["S2UR"] = made["S2R"];
        made["VOTEU.ANY"] = made["VOTE.ANY"];
        made["VOTEU.ALL"] = made["VOTE.ALL"];
        addControl(made);
        return made;
    }();
    return all;
}

Block::Block(Launch const& given, uint32_t number)
    : launch(given)
    , index(number)
    , shared(static_cast<size_t>(given.kernel->staticShared) + given.dynamicShared)
{
    for (size_t at = 0; at + sizeof(kPOISON) <= shared.size(); at += sizeof(kPOISON))
    {
        std::memcpy(shared.data() + at, &kPOISON, sizeof(kPOISON));
    }
    for (uint32_t first = 0; first < launch.threads; first += kLANES)
    {
        warps.emplace_back(*this, static_cast<int>(first / kLANES), launch.threads - first);
    }
}

void Block::run()
{
    bool isDone = false;
    while (!isDone)
    {
        for (size_t i = 0; i < warps.size(); ++i)
        {
            warps[launch.lastWarpFirst ? warps.size() - 1 - i : i].run();
        }
        isDone = std::all_of(warps.begin(), warps.end(),
            [](Warp const& warp)
            {
                return warp.isDone();
            });
        if (!isDone)
        {
            releaseBarrier();
        }
    }
    BlockTrace& trace = launch.kernel->traces.emplace_back();
    for (Warp& warp : warps)
    {
        trace.push_back(std::move(warp.trace));
    }
}

//! All warps have come to the barrier.
void Block::releaseBarrier()
{
    uint32_t present = 0;
    for (Warp& warp : warps)
    {
        for (Path& path : warp.paths)
        {
            if (path.state != State::kAT_BLOCK_BARRIER)
            {
                fail(launch.kernel->name + ": threads wait for each other at different places");
            }
            path.state = State::kRUNNING;
            present += static_cast<uint32_t>(__builtin_popcount(path.mask));
        }
    }
    if (reduction != Reduction::kNONE)
    {
        reduced = reduction == Reduction::kCOUNT ? votes
            : reduction == Reduction::kANY       ? static_cast<uint32_t>(votes > 0)
                                                 : static_cast<uint32_t>(votes == present);
        votes = 0;
    }
}

void run(Launch const& launch, std::vector<uint32_t> const& blocks)
{
    for (uint32_t const index : blocks)
    {
        if (index >= launch.blocks)
        {
            fail("block " + std::to_string(index) + " of " + std::to_string(launch.blocks));
        }
        Block(launch, index).run();
    }
}

} // namespace nrd::sass
