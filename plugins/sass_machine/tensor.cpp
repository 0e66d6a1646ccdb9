#include "machine.h"
#include "numbers.h"

#include <algorithm>
#include <cstring>
#include <set>

namespace nrd::sass
{
namespace
{

enum class Element
{
    kTF32,
    kHALF,
    kBFLOAT16,
};

//! A 16 x k and a k x 8 tile, from the registers where PTX's fragments put them.
struct Tiles
{
    float a[16][16]{};
    float b[16][8]{};
};

float element(uint32_t word, int which, Element type)
{
    auto const half = static_cast<uint16_t>(word >> 16 * which);
    return type == Element::kTF32 ? toFloat(word & 0xffffe000U)
        : type == Element::kHALF  ? widenHalf(half)
                                  : widenBfloat16(half);
}

Lanes const& word(Warp const& w, Operand const& operand, int n)
{
    return w.registers[static_cast<size_t>(operand.index == kZERO ? kZERO : operand.index + n)];
}

//! `depth` is k; a register holds one tf32 or two halves.
Tiles gather(Warp const& w, Encoded const& i, int depth, Element type)
{
    Tiles tiles;
    int const per = type == Element::kTF32 ? 1 : 2;
    int const columns = 4 * per; // that one register of all lanes covers
    for (int lane = 0; lane < kLANES; ++lane)
    {
        int const g = lane / 4;
        int const t = lane % 4;
        for (int n = 0; n < depth / columns; ++n)
        {
            for (int which = 0; which < per; ++which)
            {
                int const k = n * columns + t * per + which;
                auto const at = static_cast<size_t>(lane);
                tiles.a[g][k] = element(word(w, i.operands[1], 2 * n)[at], which, type);
                tiles.a[g + 8][k] = element(word(w, i.operands[1], 2 * n + 1)[at], which, type);
                tiles.b[k][g] = element(word(w, i.operands[2], n)[at], which, type);
            }
        }
    }
    return tiles;
}

//! d = a*b + c. Products are exact and their sum is rounded once; hardware truncates some bits more.
Handler multiply(int depth, Element type)
{
    return [=](Warp& w, Encoded const& i, uint32_t mask)
    {
        if (mask != kFULL)
        {
            fail("a part of the warp is missing");
        }
        Tiles const tiles = gather(w, i, depth, type);
        for (int n = 0; n < 4; ++n)
        {
            Lanes out = word(w, i.operands[3], n);
            for (int lane = 0; lane < kLANES; ++lane)
            {
                int const row = lane / 4 + n / 2 * 8;
                int const column = lane % 4 * 2 + n % 2;
                double sum = toFloat(out[static_cast<size_t>(lane)]);
                for (int k = 0; k < depth; ++k)
                {
                    sum += static_cast<double>(tiles.a[row][k]) * static_cast<double>(tiles.b[k][column]);
                }
                out[static_cast<size_t>(lane)] = canonical(static_cast<float>(sum));
            }
            w.writeRegister(i.operands[0].index + n, out, mask);
        }
    };
}

//! LDSM d, [rows]: 8 x 8 matrices of halves; eight lanes hold the addresses of a matrix's rows
Handler loadMatrices(int matrices, bool transposed)
{
    return [=](Warp& w, Encoded const& i, uint32_t mask)
    {
        if (mask != kFULL)
        {
            fail("a part of the warp is missing");
        }
        Lanes64 const rows = w.addresses(i.operands[1]);
        auto const begin = static_cast<uint64_t>(w.block.launch.kernel->keptShared);
        for (int m = 0; m < matrices; ++m)
        {
            uint16_t values[8][8];
            std::array<std::set<uint64_t>, 32> banks;
            size_t worst = 0;
            for (int row = 0; row < 8; ++row)
            {
                uint64_t const address = rows[static_cast<size_t>(8 * m + row)];
                if (address % 16 != 0 || address < begin || address + 16 > w.block.shared.size())
                {
                    fail("row address " + std::to_string(address) + " is not aligned or lies outside");
                }
                std::memcpy(values[row], w.block.shared.data() + address, 16);
                for (uint64_t at = address / 4; at < address / 4 + 4; ++at)
                {
                    banks[at % 32].insert(at);
                    worst = std::max(worst, banks[at % 32].size());
                }
            }
            w.counts().wavefronts += worst;
            w.counts().fewestWavefronts += 1;
            Lanes out;
            for (int lane = 0; lane < kLANES; ++lane)
            {
                int const g = lane / 4;
                int const t = lane % 4 * 2;
                uint16_t const low = transposed ? values[t][g] : values[g][t];
                uint16_t const high = transposed ? values[t + 1][g] : values[g][t + 1];
                out[static_cast<size_t>(lane)] = uint32_t{high} << 16 | low;
            }
            w.writeRegister(i.operands[0].index + m, out, mask);
        }
    };
}

} // namespace

void addTensor(Handlers& all)
{
    all["HMMA.1688.F32.TF32"] = multiply(8, Element::kTF32);
    all["HMMA.1688.F32"] = multiply(8, Element::kHALF);
    all["HMMA.1688.F32.BF16"] = multiply(8, Element::kBFLOAT16);
    all["HMMA.16816.F32"] = multiply(16, Element::kHALF);
    all["HMMA.16816.F32.BF16"] = multiply(16, Element::kBFLOAT16);
    for (int const matrices : {1, 2, 4})
    {
        std::string const end = matrices == 1 ? "" : "." + std::to_string(matrices);
        all["LDSM.16.M88" + end] = loadMatrices(matrices, false);
        all["LDSM.16.MT88" + end] = loadMatrices(matrices, true);
    }
}

} // namespace nrd::sass
