#include "machine.h"

#include <algorithm>

namespace nrd::sass
{
namespace
{

std::string placeOf(Kernel const& kernel, uint32_t pc)
{
    return kernel.name + ", instruction " + std::to_string(pc) + ": " + kernel.code[pc].name;
}

} // namespace

Warp::Warp(Block& owner, int warpNumber, uint32_t threads)
    : block(owner)
    , number(warpNumber)
{
    for (auto& lanes : registers)
    {
        lanes.fill(kPOISON);
    }
    for (auto& lanes : local)
    {
        lanes.fill(kPOISON);
    }
    registers[kZERO].fill(0);
    predicates[kTRUE] = kFULL;
    uniformPredicates[kTRUE] = kFULL;
    uint32_t const mask = threads >= kLANES ? kFULL : (1U << threads) - 1U;
    paths.push_back({0, mask, State::kRUNNING, 0});
}

Counts& Warp::counts()
{
    return block.launch.kernel->counts[executing];
}

void Warp::branch(uint32_t target, uint32_t mask)
{
    Path& now = path();
    uint32_t const rest = now.mask & ~mask;
    if (mask != 0 && rest == 0)
    {
        now.pc = target;
    }
    else if (mask != 0)
    {
        now.mask = rest;
        paths.push_back({target, mask, State::kRUNNING, 0}); // invalidates `now`
    }
}

void Warp::leave(uint32_t mask)
{
    Path& now = path();
    now.mask &= ~mask;
    if (now.mask == 0)
    {
        paths.erase(paths.begin() + static_cast<std::ptrdiff_t>(current));
    }
}

void Warp::wait(State state, uint32_t awaited)
{
    path().state = state;
    path().awaited = awaited;
}

//! Let the paths go on together whose threads have all arrived.
void Warp::converge()
{
    uint32_t alive = 0;
    for (Path const& each : paths)
    {
        alive |= each.mask;
    }
    for (size_t i = 0; i < paths.size(); ++i)
    {
        Path const first = paths[i];
        if (first.state != State::kAT_CONVERGENCE && first.state != State::kAT_WARPSYNC)
        {
            continue;
        }
        auto const isSame = [&](Path const& other)
        {
            return other.state == first.state && other.pc == first.pc && (other.mask & first.awaited) != 0;
        };
        uint32_t arrived = 0;
        for (Path const& other : paths)
        {
            arrived |= isSame(other) ? other.mask : 0U;
        }
        if ((first.awaited & alive & ~arrived) == 0)
        {
            paths.erase(std::remove_if(paths.begin(), paths.end(), isSame), paths.end());
            paths.push_back({first.pc, arrived, State::kRUNNING, 0});
            return;
        }
    }
}

void Warp::run()
{
    while (true)
    {
        converge();
        auto const found = std::find_if(paths.rbegin(), paths.rend(),
            [](Path const& each)
            {
                return each.state == State::kRUNNING;
            });
        if (found == paths.rend())
        {
            return;
        }
        current = static_cast<size_t>(paths.rend() - found) - 1;
        execute();
    }
}

//! Run the current path until it splits, waits or ends.
void Warp::execute()
{
    size_t const before = paths.size();
    Kernel& kernel = *block.launch.kernel;
    while (paths.size() == before && path().state == State::kRUNNING)
    {
        uint32_t const pc = path().pc;
        if (pc >= kernel.code.size())
        {
            fail("execution ran past the end of " + kernel.name);
        }
        executing = pc;
        path().pc = pc + 1;
        Encoded const& instruction = kernel.code[pc];
        uint32_t const mask = path().mask & predicate(instruction.guard);
        Handler const* const handler = kernel.handlers[pc];
        if (handler == nullptr)
        {
            fail(placeOf(kernel, pc) + " is not known to scripts/dev/sass");
        }
        Counts& counted = kernel.counts[pc];
        uint64_t const wavefronts = counted.wavefronts;
        uint64_t const lines = counted.lines;
        ++counted.issues[number % 4];
        counted.lanes += static_cast<uint64_t>(__builtin_popcount(mask));
        active = mask;
        try
        {
            (*handler)(*this, instruction, mask);
        }
        catch (std::runtime_error const& error)
        {
            fail(placeOf(kernel, pc) + ": " + error.what());
        }
        trace.push_back(
            {pc, static_cast<uint16_t>(counted.wavefronts - wavefronts), static_cast<uint16_t>(counted.lines - lines)});
    }
}

} // namespace nrd::sass
