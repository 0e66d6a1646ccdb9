/*
 * The emulation of what a GPU gives the kernels: each operation against its definition, with values that tell a wrong
 * lane, word or half apart.
 */
#include "check.h"
#include "decode_arithmetic.h"
#include "emulation.h"

#include <cmath>
#include <random>
#include <stdexcept>
#include <vector>

using namespace nrd;

namespace
{

constexpr int32_t kTHREADS = 64;
constexpr int64_t kSHARED = 1024;

emulation::Launch launchOf(uint64_t seed, bool truncates = false)
{
    return {0, 1, kTHREADS, kSHARED, seed, truncates};
}

//! Row-major A (16 x 16), B (16 x 8) and D (16 x 8), and what every warp made of them.
struct Product
{
    float a[16][16];
    float b[16][8];
    float start[16][8];
    float results[kTHREADS / 32][16][8];
};

//! Small integers, whose products and sums no type rounds.
Product drawProduct(uint32_t seed)
{
    std::mt19937 random(seed);
    Product product{};
    auto const draw = [&](auto& matrix)
    {
        for (auto& row : matrix)
        {
            for (float& x : row)
            {
                x = static_cast<float>(static_cast<int32_t>(random() % 31) - 15);
            }
        }
    };
    draw(product.a);
    draw(product.b);
    draw(product.start);
    return product;
}

//! A thread's part, by the tables of the PTX manual for mma.m16n8k16: groupID = lane >> 2, threadID = lane % 4.
template <ElementType kTYPE>
void multiply(Product& product)
{
    int32_t const lane = device::threadIndex() % 32;
    int32_t const group = lane >> 2;
    int32_t const thread = lane % 4;
    auto const rowOfA = [&](int32_t i)
    {
        return (i < 2 || (i >= 4 && i < 6)) ? group : group + 8;
    };
    auto const columnOfA = [&](int32_t i)
    {
        return thread * 2 + (i & 1) + (i >= 4 ? 8 : 0);
    };
    auto const rowOfB = [&](int32_t i)
    {
        return thread * 2 + (i & 1) + (i >= 2 ? 8 : 0);
    };
    uint32_t a[4];
    uint32_t b[2];
    for (int32_t i = 0; i < 8; i += 2)
    {
        a[i / 2] = narrowPair<kTYPE>(product.a[rowOfA(i)][columnOfA(i)], product.a[rowOfA(i + 1)][columnOfA(i + 1)]);
    }
    for (int32_t i = 0; i < 4; i += 2)
    {
        b[i / 2] = narrowPair<kTYPE>(product.b[rowOfB(i)][group], product.b[rowOfB(i + 1)][group]);
    }
    float sums[4];
    for (int32_t i = 0; i < 4; ++i)
    {
        sums[i] = product.start[i < 2 ? group : group + 8][thread * 2 + (i & 1)];
    }
    device::multiplyTiles<kTYPE>(sums, a, b);
    for (int32_t i = 0; i < 4; ++i)
    {
        product.results[device::threadIndex() / 32][i < 2 ? group : group + 8][thread * 2 + (i & 1)] = sums[i];
    }
}

template <ElementType kTYPE>
void testProduct(bool truncates)
{
    Product product = drawProduct(7);
    emulation::run(launchOf(3, truncates),
        [&]
        {
            multiply<kTYPE>(product);
        });
    for (int32_t row = 0; row < 16; ++row)
    {
        for (int32_t column = 0; column < 8; ++column)
        {
            float sum = product.start[row][column];
            for (int32_t k = 0; k < 16; ++k)
            {
                sum += product.a[row][k] * product.b[k][column];
            }
            CHECK(product.results[0][row][column] == sum && product.results[1][row][column] == sum);
        }
    }
}

//! 1 + 2^-10 * 2^-13 + ...: a GPU that truncates drops a term below 2^-23 of the largest one, and rounds towards zero.
void testTruncation()
{
    struct
    {
        float a; // times 2^-13
        bool truncates;
        float result;
    } const cases[] = {{0x1p-10F, true, 1.F + 0x1p-23F}, {0x1.8p-10F, true, 1.F + 0x1p-23F},
        {0x1.8p-10F, false, 1.F + 0x1p-22F}, {-0x1p-12F, true, 1.F}, {-0x1p-11F, false, 1.F - 0x1p-24F}};
    for (auto const& c : cases)
    {
        Product product{};
        product.start[0][0] = 1.F;
        product.a[0][0] = c.a;
        product.b[0][0] = 0x1p-13F;
        emulation::run(launchOf(1, c.truncates),
            [&]
            {
                multiply<ElementType::kHALF>(product);
            });
        CHECK_IN(product.results[0][0][0] == c.result, std::to_string(c.a));
    }
}

//! The target is NaN until its thread waits, and another thread sees the copy after a barrier.
void testCopies()
{
    alignas(16) uint32_t source[4 * kTHREADS];
    for (uint32_t i = 0; i < 4 * kTHREADS; ++i)
    {
        source[i] = i + 1;
    }
    emulation::run(launchOf(5),
        [&]
        {
            auto* const words = reinterpret_cast<uint32_t*>(device::sharedMemory());
            int32_t const thread = device::threadIndex();
            words[4 * thread] = 0;
            device::copyAsync(words + 4 * thread, source + 4 * thread);
            CHECK(std::isnan(floatOf(words[4 * thread])) && std::isnan(floatOf(words[4 * thread + 3])));
            device::waitCopies();
            device::syncBlock();
            int32_t const other = 4 * ((thread + 33) % kTHREADS);
            CHECK(words[other] == source[other] && words[other + 3] == source[other + 3]);
        });
    bool isRefused = false;
    emulation::run(launchOf(5),
        [&]
        {
            try
            {
                device::copyAsync(device::sharedMemory() + 1, source);
            }
            catch (std::logic_error const&)
            {
                isRefused = true;
            }
        });
    CHECK(isRefused);
}

//! Every lane gets its own warp's largest value, and a bit of each; one thread's vote reaches the block, and is not there the next time.
void testVotes()
{
    emulation::run(launchOf(9),
        [&]
        {
            auto const thread = static_cast<uint32_t>(device::threadIndex());
            uint32_t const value = thread == 17 || thread == 45 ? 0xffffff00U + thread : thread;
            CHECK(device::warpMaximum(value) == 0xffffff00U + (thread < 32 ? 17U : 45U));
            CHECK(device::warpMaximum(thread) == (thread < 32 ? 31U : 63U));
            CHECK(
                device::warpBallot(thread % 32 % 3 == 0 || thread == 40) == (thread < 32 ? 0x49249249U : 0x49249349U));
            CHECK(device::warpExchange(static_cast<float>(thread), 2) == static_cast<float>(thread ^ 2U));
            CHECK(device::syncBlockAny(thread == 50));
            CHECK(!device::syncBlockAny(false));
            CHECK(device::syncBlockAny(thread == 1));
        });
}

//! Lane l gives row l % 8 of matrix l / 8 by the PTX manual's table for ldmatrix, and gets two neighbours of each.
void testMatrices()
{
    alignas(16) uint16_t matrices[kTHREADS / 32][4][8][8];
    auto* const elements = &matrices[0][0][0][0];
    for (int32_t i = 0; i < kTHREADS * 8; ++i)
    {
        elements[i] = static_cast<uint16_t>(i);
    }
    emulation::run(launchOf(11),
        [&]
        {
            auto& own = matrices[device::threadIndex() / 32];
            int32_t const lane = device::threadIndex() % 32;
            uint32_t pairs[4];
            device::loadMatrices(pairs, own[lane >> 3][lane & 7]);
            for (int32_t i = 0; i < 4; ++i)
            {
                uint16_t const* const row = own[i][lane >> 2];
                CHECK(pairs[i] == (row[lane % 4 * 2] | static_cast<uint32_t>(row[lane % 4 * 2 + 1]) << 16));
            }
            bool isRefused = false;
            try
            {
                device::loadMatrices(pairs, own[0][0] + 4);
            }
            catch (std::logic_error const&)
            {
                isRefused = true;
            }
            CHECK(isRefused);
        });
}

//! Without a barrier some order of threads reads what is not there yet, with one none does.
void testOrders()
{
    auto const countUnwritten = [](bool waits, uint64_t seed)
    {
        int32_t unwritten = 0;
        emulation::run(launchOf(seed),
            [&]
            {
                int32_t const thread = device::threadIndex();
                device::sharedMemory()[thread] = 1.F;
                if (waits)
                {
                    device::syncBlock();
                }
                unwritten += std::isnan(device::sharedMemory()[(thread + 1) % kTHREADS]) ? 1 : 0;
            });
        return unwritten;
    };
    for (uint64_t seed = 0; seed < 4; ++seed)
    {
        CHECK(countUnwritten(false, seed) > 0);
        CHECK(countUnwritten(true, seed) == 0);
    }
}

void testMisusedBarrier()
{
    bool isRefused = false;
    try
    {
        emulation::run(launchOf(1),
            []
            {
                if (device::threadIndex() != 0)
                {
                    device::syncBlock();
                }
            });
    }
    catch (std::logic_error const&)
    {
        isRefused = true;
    }
    CHECK(isRefused);
}

} // namespace

int main()
{
    for (bool const truncates : {false, true})
    {
        testProduct<ElementType::kHALF>(truncates);
        testProduct<ElementType::kBFLOAT16>(truncates);
    }
    testTruncation();
    testCopies();
    testVotes();
    testMatrices();
    testOrders();
    testMisusedBarrier();
    return nrd::test::result();
}
