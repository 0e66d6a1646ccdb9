#include "emulation.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <stdexcept>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>
#include <vector>

namespace nrd::emulation
{
namespace
{

constexpr int32_t kWARP = 32;
constexpr size_t kSTACK_BYTES = 128 * 1024;

enum class State
{
    kREADY,
    kAT_BLOCK_BARRIER,
    kAT_WARP_BARRIER,
    kDONE,
};

struct Fiber
{
    ucontext_t context{};
    std::unique_ptr<char[]> stack{new char[kSTACK_BYTES]};
    State state = State::kREADY;
};

//! What the lanes of one warp hand over to multiply two tiles.
struct WarpTiles
{
    float a[16][8];
    float b[8][8];
};

//! Memory that ends at a page nobody may touch.
class GuardedMemory
{
public:
    explicit GuardedMemory(size_t bytes)
        : mPage(static_cast<size_t>(sysconf(_SC_PAGESIZE)))
        , mMapped((bytes + mPage - 1) / mPage * mPage + mPage)
        , mBase(static_cast<char*>(
              mmap(nullptr, mMapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)))
    {
        if (mBase == MAP_FAILED)
        {
            throw std::bad_alloc();
        }
        mprotect(mBase + mMapped - mPage, mPage, PROT_NONE);
        mData = mBase + mMapped - mPage - (bytes + 15) / 16 * 16;
    }
    GuardedMemory(GuardedMemory const&) = delete;
    GuardedMemory& operator=(GuardedMemory const&) = delete;
    ~GuardedMemory()
    {
        munmap(mBase, mMapped);
    }
    char* data() const
    {
        return mData;
    }

private:
    size_t mPage;
    size_t mMapped;
    char* mBase;
    char* mData = nullptr;
};

class Block
{
public:
    Block(Launch const& launch, std::function<void()> const& kernel)
        : mKernel(kernel)
        , mFibers(static_cast<size_t>(launch.threads))
        , mTiles((mFibers.size() + kWARP - 1) / kWARP)
        , mShared(static_cast<size_t>(launch.sharedBytes))
        , mSharedBytes(static_cast<size_t>(launch.sharedBytes))
        , mRandom(launch.seed)
    {
    }

    void run(uint32_t index);
    void wait(State barrier);
    void finish();

    int32_t thread() const
    {
        return static_cast<int32_t>(mCurrent);
    }
    uint32_t index() const
    {
        return mIndex;
    }
    float* shared() const
    {
        return reinterpret_cast<float*>(mShared.data());
    }
    WarpTiles& tiles()
    {
        return mTiles[mCurrent / kWARP];
    }

    static Block* sCurrent;

private:
    void poisonShared();
    void release();
    bool releaseGroup(size_t first, size_t end, State barrier);

    std::function<void()> const& mKernel;
    std::vector<Fiber> mFibers;
    std::vector<WarpTiles> mTiles;
    GuardedMemory mShared;
    size_t mSharedBytes;
    std::mt19937_64 mRandom;
    ucontext_t mScheduler{};
    size_t mCurrent = 0;
    uint32_t mIndex = 0;
};

Block* Block::sCurrent = nullptr;

void fiberMain()
{
    Block::sCurrent->finish();
}

void Block::finish()
{
    mKernel();
    mFibers[mCurrent].state = State::kDONE;
}

//! NaN everywhere: a value that is read before it is written spoils the result.
void Block::poisonShared()
{
    std::fill_n(shared(), mSharedBytes / sizeof(float), std::numeric_limits<float>::quiet_NaN());
}

void Block::run(uint32_t index)
{
    mIndex = index;
    poisonShared();
    for (Fiber& fiber : mFibers)
    {
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = kSTACK_BYTES;
        fiber.context.uc_link = &mScheduler;
        makecontext(&fiber.context, fiberMain, 0);
        fiber.state = State::kREADY;
    }
    std::vector<size_t> order(mFibers.size());
    for (size_t i = 0; i < order.size(); ++i)
    {
        order[i] = i;
    }
    auto const done = [](Fiber const& fiber)
    {
        return fiber.state == State::kDONE;
    };
    while (!std::all_of(mFibers.begin(), mFibers.end(), done))
    {
        std::shuffle(order.begin(), order.end(), mRandom);
        for (size_t const i : order)
        {
            if (mFibers[i].state == State::kREADY)
            {
                mCurrent = i;
                swapcontext(&mScheduler, &mFibers[i].context);
            }
        }
        release();
    }
}

void Block::wait(State barrier)
{
    Fiber& fiber = mFibers[mCurrent];
    fiber.state = barrier;
    swapcontext(&fiber.context, &mScheduler);
}

//! Every fiber has stopped: let those go on whose whole group arrived.
void Block::release()
{
    bool released = false;
    for (size_t first = 0; first < mFibers.size(); first += kWARP)
    {
        released |= releaseGroup(first, std::min(first + kWARP, mFibers.size()), State::kAT_WARP_BARRIER);
    }
    released |= releaseGroup(0, mFibers.size(), State::kAT_BLOCK_BARRIER);
    auto const done = [](Fiber const& fiber)
    {
        return fiber.state == State::kDONE;
    };
    if (!released && !std::all_of(mFibers.begin(), mFibers.end(), done))
    {
        throw std::logic_error("emulation: threads of one block wait at different barriers");
    }
}

bool Block::releaseGroup(size_t first, size_t end, State barrier)
{
    auto const begin = mFibers.begin();
    auto const waits = [barrier](Fiber const& fiber)
    {
        return fiber.state == barrier;
    };
    if (!std::all_of(begin + static_cast<std::ptrdiff_t>(first), begin + static_cast<std::ptrdiff_t>(end), waits))
    {
        return false;
    }
    for (size_t i = first; i < end; ++i)
    {
        mFibers[i].state = State::kREADY;
    }
    return true;
}

//! The hardware reads the upper 19 bits of a tf32 operand.
float truncateToTf32(uint32_t bits)
{
    bits &= 0xffffe000U;
    float x;
    std::memcpy(&x, &bits, sizeof(x));
    return x;
}

} // namespace

void run(Launch const& launch, std::function<void()> const& kernel)
{
    Block block(launch, kernel);
    Block::sCurrent = &block;
    for (uint32_t index = launch.firstBlock; index < launch.endBlock; ++index)
    {
        block.run(index);
    }
    Block::sCurrent = nullptr;
}

} // namespace nrd::emulation

namespace nrd::device
{

using emulation::Block;
using emulation::State;

int32_t threadIndex()
{
    return Block::sCurrent->thread();
}

uint32_t blockIndex()
{
    return Block::sCurrent->index();
}

float* sharedMemory()
{
    return Block::sCurrent->shared();
}

void syncBlock()
{
    Block::sCurrent->wait(State::kAT_BLOCK_BARRIER);
}

int32_t fetchAdd(int32_t* counter, int32_t value)
{
    int32_t const before = *counter;
    *counter += value;
    return before;
}

//! Fragments of mma.m16n8k8 (tf32) as the PTX manual lays them out: row g = lane / 4, column t = lane % 4.
void multiplyTiles(float (&accumulator)[4], uint32_t const (&a)[4], uint32_t const (&b)[2])
{
    emulation::WarpTiles& tiles = Block::sCurrent->tiles();
    int32_t const lane = threadIndex() % emulation::kWARP;
    int32_t const g = lane / 4;
    int32_t const t = lane % 4;
    tiles.a[g][t] = emulation::truncateToTf32(a[0]);
    tiles.a[g + 8][t] = emulation::truncateToTf32(a[1]);
    tiles.a[g][t + 4] = emulation::truncateToTf32(a[2]);
    tiles.a[g + 8][t + 4] = emulation::truncateToTf32(a[3]);
    tiles.b[t][g] = emulation::truncateToTf32(b[0]);
    tiles.b[t + 4][g] = emulation::truncateToTf32(b[1]);
    Block::sCurrent->wait(State::kAT_WARP_BARRIER);
    for (int32_t i = 0; i < 4; ++i)
    {
        int32_t const row = i < 2 ? g : g + 8;
        int32_t const column = 2 * t + i % 2;
        for (int32_t k = 0; k < 8; ++k)
        {
            accumulator[i] += tiles.a[row][k] * tiles.b[k][column];
        }
    }
    Block::sCurrent->wait(State::kAT_WARP_BARRIER);
}

} // namespace nrd::device
