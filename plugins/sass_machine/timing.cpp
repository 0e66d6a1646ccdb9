/*
 * Four schedulers issue one instruction a cycle each: the warp that issued last, else the oldest that can. A warp can when
 * the operands of its next instruction are there and the pipe is free. Shared memory and the cache are one pipe for all.
 */
#include "timing.h"

#include <algorithm>
#include <memory>

namespace nrd::sass
{
namespace
{

constexpr int kSCHEDULERS = 4;
constexpr int kQUARTERS = 4; // of a cycle, in which intervals are given
constexpr int64_t kBARRIER = 20;
constexpr int64_t kQUEUE = 24; // cycles of shared memory that may be pending before a memory instruction waits
constexpr int kPIPES = 16;
constexpr size_t kREADY = 336;

// As pipes.py numbers them.
constexpr int kFMA = 2;
constexpr int kIMAD = 3;
constexpr int kHALF = 4;
constexpr int kLSU = 7;

enum class Role : uint8_t
{
    kPLAIN,
    kBARRIER,
    kCOPY,
    kCOMMIT,
    kAWAIT,
};

Role roleOf(std::string const& name)
{
    auto const begins = [&](char const* text)
    {
        return name.rfind(text, 0) == 0;
    };
    return begins("BAR.")     ? Role::kBARRIER
        : begins("LDGSTS")    ? Role::kCOPY
        : begins("LDGDEPBAR") ? Role::kCOMMIT
        : begins("DEPBAR")    ? Role::kAWAIT
                              : Role::kPLAIN;
}

struct ResidentBlock;

struct Runner
{
    ResidentBlock* block;
    std::vector<Step> const* trace;
    size_t at = 0;
    int64_t earliest = 0; //!< that its next instruction has its operands
    bool waits = false;   //!< at the block's barrier
    std::array<int64_t, kREADY> ready{};
    std::vector<int64_t> copies{0}; //!< arrival of each group, the open one last
};

struct ResidentBlock
{
    std::vector<std::unique_ptr<Runner>> warps;
    size_t waiting = 0;
    size_t done = 0;
};

class Multiprocessor
{
public:
    Multiprocessor(Kernel const& kernel, std::vector<uint32_t> const& stream)
        : mKernel(kernel)
        , mStream(stream)
    {
        for (Encoded const& instruction : kernel.code)
        {
            mRoles.push_back(roleOf(instruction.name));
        }
    }

    std::vector<int64_t> run(int32_t resident)
    {
        for (int32_t i = 0; i < resident; ++i)
        {
            admit();
        }
        while (!mResident.empty())
        {
            bool issued = false;
            for (auto& scheduler : mSchedulers)
            {
                issued |= issueOne(scheduler);
            }
            mNow = issued ? mNow + 1 : std::max(mNow + 1, nextEvent());
        }
        return mFinished;
    }

private:
    struct Scheduler
    {
        std::vector<Runner*> warps; //!< the oldest first
        Runner* last = nullptr;
        std::array<int64_t, kPIPES> free{}; //!< in quarters
    };

    void admit()
    {
        if (mNext == mStream.size())
        {
            return;
        }
        BlockTrace const& trace = mKernel.traces.at(mStream[mNext++]);
        auto& block = mResident.emplace_back(std::make_unique<ResidentBlock>());
        for (size_t w = 0; w < trace.size(); ++w)
        {
            auto runner = std::make_unique<Runner>();
            runner->block = block.get();
            runner->trace = &trace[w];
            runner->earliest = mNow;
            mSchedulers[w % kSCHEDULERS].warps.push_back(runner.get());
            prepare(*runner);
            block->warps.push_back(std::move(runner));
        }
    }

    Encoded const& next(Runner const& warp) const
    {
        return mKernel.code[(*warp.trace)[warp.at].pc];
    }

    //! Find out when the operands of a warp's next instruction are there.
    void prepare(Runner& warp)
    {
        Encoded const& instruction = next(warp);
        for (int i = 0; instruction.reads[i] >= 0; ++i)
        {
            warp.earliest = std::max(warp.earliest, warp.ready[static_cast<size_t>(instruction.reads[i])]);
        }
        if (mRoles[(*warp.trace)[warp.at].pc] == Role::kAWAIT)
        {
            size_t const open = instruction.operands[1].value + 1; // groups that need not have arrived
            for (size_t group = 0; group + open < warp.copies.size(); ++group)
            {
                warp.earliest = std::max(warp.earliest, warp.copies[group]);
            }
        }
    }

    //! When the pipes let an instruction pass.
    int64_t pipesFree(Scheduler const& scheduler, Encoded const& instruction) const
    {
        int64_t quarters = scheduler.free[static_cast<size_t>(instruction.pipe)];
        if (instruction.pipe == kIMAD || instruction.pipe == kHALF)
        {
            quarters = std::max(quarters, scheduler.free[kFMA]);
        }
        int64_t const cycle = quarters / kQUARTERS;
        return instruction.pipe == kLSU ? std::max(cycle, mSharedFree - kQUEUE) : cycle;
    }

    bool canIssue(Scheduler const& scheduler, Runner const& warp) const
    {
        return !warp.waits && warp.earliest <= mNow && pipesFree(scheduler, next(warp)) <= mNow;
    }

    bool issueOne(Scheduler& scheduler)
    {
        Runner* chosen = nullptr;
        if (scheduler.last != nullptr && canIssue(scheduler, *scheduler.last))
        {
            chosen = scheduler.last;
        }
        for (size_t i = 0; chosen == nullptr && i < scheduler.warps.size(); ++i)
        {
            chosen = canIssue(scheduler, *scheduler.warps[i]) ? scheduler.warps[i] : nullptr;
        }
        if (chosen != nullptr)
        {
            scheduler.last = chosen;
            issue(scheduler, *chosen);
        }
        return chosen != nullptr;
    }

    void issue(Scheduler& scheduler, Runner& warp)
    {
        Step const step = (*warp.trace)[warp.at];
        Encoded const& instruction = mKernel.code[step.pc];
        int64_t const begin = occupy(scheduler, instruction, step);
        for (int i = 0; instruction.writes[i] >= 0; ++i)
        {
            warp.ready[static_cast<size_t>(instruction.writes[i])] = begin + instruction.latency;
        }
        warp.earliest = mNow + 1;
        Role const role = mRoles[step.pc];
        if (role == Role::kCOPY)
        {
            warp.copies.back() = std::max(warp.copies.back(), begin + instruction.latency);
        }
        else if (role == Role::kCOMMIT)
        {
            warp.copies.push_back(0);
        }
        else if (role == Role::kBARRIER)
        {
            warp.waits = true;
            ++warp.block->waiting;
        }
        ++warp.at;
        if (warp.at < warp.trace->size())
        {
            prepare(warp);
        }
        else
        {
            finish(scheduler, warp);
        }
        release(*warp.block);
    }

    //! Take the pipes; return when the instruction begins there.
    int64_t occupy(Scheduler& scheduler, Encoded const& instruction, Step step)
    {
        int64_t const now = mNow * kQUARTERS;
        int64_t& pipe = scheduler.free[static_cast<size_t>(instruction.pipe)];
        pipe = std::max(pipe, now) + instruction.interval;
        if (instruction.pipe == kIMAD || instruction.pipe == kHALF)
        {
            scheduler.free[kFMA] = std::max(scheduler.free[kFMA], now) + kQUARTERS;
        }
        if (step.wavefronts + step.lines == 0)
        {
            return mNow;
        }
        mSharedFree = std::max(mSharedFree, mNow) + step.wavefronts + step.lines;
        return mSharedFree;
    }

    void release(ResidentBlock& block)
    {
        if (block.waiting == 0 || block.waiting + block.done < block.warps.size())
        {
            return;
        }
        block.waiting = 0;
        for (auto& warp : block.warps)
        {
            if (warp->waits)
            {
                warp->waits = false;
                warp->earliest = std::max(warp->earliest, mNow + kBARRIER);
            }
        }
    }

    //! A block that has ended makes room; its memory stays until its last instruction was looked at.
    void finish(Scheduler& scheduler, Runner& warp)
    {
        scheduler.last = nullptr;
        scheduler.warps.erase(std::find(scheduler.warps.begin(), scheduler.warps.end(), &warp));
        if (++warp.block->done < warp.block->warps.size())
        {
            return;
        }
        mFinished.push_back(mNow + 1);
        auto const is = [&](auto const& block)
        {
            return block.get() == warp.block;
        };
        auto const found = std::find_if(mResident.begin(), mResident.end(), is);
        mEnded = std::move(*found);
        mResident.erase(found);
        admit();
    }

    int64_t nextEvent() const
    {
        int64_t soonest = INT64_MAX;
        for (Scheduler const& scheduler : mSchedulers)
        {
            for (Runner const* const warp : scheduler.warps)
            {
                if (!warp->waits)
                {
                    soonest = std::min(soonest, std::max(warp->earliest, pipesFree(scheduler, next(*warp))));
                }
            }
        }
        return soonest == INT64_MAX ? mNow : soonest;
    }

    Kernel const& mKernel;
    std::vector<uint32_t> const& mStream;
    std::vector<Role> mRoles;
    std::array<Scheduler, kSCHEDULERS> mSchedulers;
    std::vector<std::unique_ptr<ResidentBlock>> mResident;
    std::unique_ptr<ResidentBlock> mEnded;
    std::vector<int64_t> mFinished;
    int64_t mNow = 0;
    int64_t mSharedFree = 0;
    size_t mNext = 0;
};

} // namespace

std::vector<int64_t> simulate(Kernel const& kernel, std::vector<uint32_t> const& stream, int32_t resident)
{
    return Multiprocessor(kernel, stream).run(resident);
}

} // namespace nrd::sass
