#include "emulation.h"

#include "decode_arithmetic.h"

#include <algorithm>
#include <array>
#include <cmath>
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

//! A copy to shared memory that its thread has not waited for.
struct Copy
{
    void* target;
    std::array<char, 16> bytes;
};

struct Fiber
{
    ucontext_t context{};
    std::unique_ptr<char[]> stack{new char[kSTACK_BYTES]};
    State state = State::kREADY;
    std::vector<Copy> copies;
    bool vote = false;
};

//! What the lanes of one warp hand over to each other.
struct Warp
{
    float a[16][16];
    float b[16][8];
    std::array<uint32_t, kWARP> values;
    std::array<void const*, kWARP> rows;
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
        , mWarps((mFibers.size() + kWARP - 1) / kWARP)
        , mShared(static_cast<size_t>(launch.sharedBytes))
        , mSharedBytes(static_cast<size_t>(launch.sharedBytes))
        , mRandom(launch.seed)
        , mTruncates(launch.truncates)
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
    Warp& warp()
    {
        return mWarps[mCurrent / kWARP];
    }
    std::vector<Copy>& copies()
    {
        return mFibers[mCurrent].copies;
    }
    bool truncates() const
    {
        return mTruncates;
    }
    //! What every lane of the warp gives.
    std::array<uint32_t, kWARP> exchange(uint32_t value);
    //! Whether a thread of the block gives true.
    bool vote(bool value);

    static Block* sCurrent;

private:
    void poisonShared();
    void release();
    bool releaseGroup(size_t first, size_t end, State barrier);

    std::function<void()> const& mKernel;
    std::vector<Fiber> mFibers;
    std::vector<Warp> mWarps;
    GuardedMemory mShared;
    size_t mSharedBytes;
    std::mt19937_64 mRandom;
    bool mTruncates;
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

bool Block::vote(bool value)
{
    mFibers[mCurrent].vote = value;
    wait(State::kAT_BLOCK_BARRIER);
    bool const result = std::any_of(mFibers.begin(), mFibers.end(),
        [](Fiber const& fiber)
        {
            return fiber.vote;
        });
    wait(State::kAT_BLOCK_BARRIER); // nobody votes again before all have counted
    return result;
}

std::array<uint32_t, kWARP> Block::exchange(uint32_t value)
{
    warp().values[mCurrent % kWARP] = value;
    wait(State::kAT_WARP_BARRIER);
    std::array<uint32_t, kWARP> const values = warp().values;
    wait(State::kAT_WARP_BARRIER);
    return values;
}

//! Drop what lies below 2^-23 of the largest term, add, round towards zero.
float addTruncated(float const* terms, int32_t count)
{
    float largest = 0.F;
    for (int32_t i = 0; i < count; ++i)
    {
        largest = std::max(largest, std::fabs(terms[i]));
    }
    double const step = std::ldexp(1.0, std::max(std::ilogb(largest), -126) - 23);
    double sum = 0.0;
    for (int32_t i = 0; i < count; ++i)
    {
        sum += std::trunc(terms[i] / step) * step;
    }
    auto const rounded = static_cast<float>(sum);
    return std::fabs(static_cast<double>(rounded)) > std::fabs(sum) ? std::nextafter(rounded, 0.F) : rounded;
}

//! accumulator + the products of one row and one column.
float addProducts(Warp const& warp, int32_t row, int32_t column, float accumulator, bool truncates)
{
    for (int32_t k = 0; k < 16; k += 8)
    {
        float terms[9] = {};
        terms[8] = accumulator;
        for (int32_t i = 0; i < 8; ++i)
        {
            terms[i] = warp.a[row][k + i] * warp.b[k + i][column];
            accumulator += terms[i];
        }
        if (truncates && std::isfinite(accumulator) && accumulator != 0.F)
        {
            accumulator = addTruncated(terms, 9);
        }
    }
    return accumulator;
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

bool syncBlockAny(bool value)
{
    return Block::sCurrent->vote(value);
}

uint32_t warpMaximum(uint32_t value)
{
    auto const values = Block::sCurrent->exchange(value);
    return *std::max_element(values.begin(), values.end());
}

uint32_t warpBallot(bool value)
{
    auto const values = Block::sCurrent->exchange(value ? 1U : 0U);
    uint32_t bits = 0;
    for (size_t lane = 0; lane < values.size(); ++lane)
    {
        bits |= values[lane] << lane;
    }
    return bits;
}

float warpExchange(float value, int32_t lanes)
{
    auto const values = Block::sCurrent->exchange(bitsOf(value));
    return floatOf(values[static_cast<size_t>(threadIndex() % emulation::kWARP ^ lanes)]);
}

void copyAsync(void* shared, void const* global)
{
    if (reinterpret_cast<uintptr_t>(shared) % 16 != 0 || reinterpret_cast<uintptr_t>(global) % 16 != 0)
    {
        throw std::logic_error("emulation: an address of an asynchronous copy is no multiple of 16");
    }
    emulation::Copy copy{shared, {}};
    std::memcpy(copy.bytes.data(), global, copy.bytes.size());
    std::memset(shared, 0xff, copy.bytes.size()); // NaN in every type
    Block::sCurrent->copies().push_back(copy);
}

void waitCopies()
{
    for (emulation::Copy const& copy : Block::sCurrent->copies())
    {
        std::memcpy(copy.target, copy.bytes.data(), copy.bytes.size());
    }
    Block::sCurrent->copies().clear();
}

void loadMatrices(uint32_t (&pairs)[4], void const* row)
{
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0)
    {
        throw std::logic_error("emulation: a row of a matrix does not lie at a multiple of 16");
    }
    auto& rows = Block::sCurrent->warp().rows;
    auto const lane = static_cast<size_t>(threadIndex() % emulation::kWARP);
    rows[lane] = row;
    Block::sCurrent->wait(State::kAT_WARP_BARRIER);
    for (size_t i = 0; i < 4; ++i)
    {
        pairs[i] = static_cast<uint32_t const*>(rows[8 * i + lane / 4])[lane % 4];
    }
    Block::sCurrent->wait(State::kAT_WARP_BARRIER);
}

//! Fragments of mma.m16n8k16 as the PTX manual lays them out: row g = lane / 4, column t = lane % 4.
template <ElementType kTYPE>
void multiplyTiles(float (&accumulator)[4], uint32_t const (&a)[4], uint32_t const (&b)[2])
{
    emulation::Warp& warp = Block::sCurrent->warp();
    int32_t const lane = threadIndex() % emulation::kWARP;
    int32_t const g = lane / 4;
    int32_t const t = lane % 4;
    for (int32_t i = 0; i < 4; ++i) // rows g, g + 8, g, g + 8; columns from 2t, 2t, 2t + 8, 2t + 8
    {
        float* const pair = &warp.a[g + i % 2 * 8][2 * t + i / 2 * 8];
        pair[0] = widenLower<kTYPE>(a[i]);
        pair[1] = widenUpper<kTYPE>(a[i]);
    }
    for (int32_t i = 0; i < 2; ++i)
    {
        warp.b[2 * t + i * 8][g] = widenLower<kTYPE>(b[i]);
        warp.b[2 * t + i * 8 + 1][g] = widenUpper<kTYPE>(b[i]);
    }
    Block::sCurrent->wait(State::kAT_WARP_BARRIER);
    for (int32_t i = 0; i < 4; ++i)
    {
        accumulator[i] = emulation::addProducts(
            warp, i < 2 ? g : g + 8, 2 * t + i % 2, accumulator[i], Block::sCurrent->truncates());
    }
    Block::sCurrent->wait(State::kAT_WARP_BARRIER);
}

template void multiplyTiles<ElementType::kHALF>(float (&)[4], uint32_t const (&)[4], uint32_t const (&)[2]);
template void multiplyTiles<ElementType::kBFLOAT16>(float (&)[4], uint32_t const (&)[4], uint32_t const (&)[2]);

} // namespace nrd::device
