#include "machine.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <sstream>

namespace nrd::sass
{
namespace
{

constexpr uint32_t kBANKS = 32;
constexpr uint32_t kWORD = 4;
constexpr uint64_t kSECTOR = 32;
constexpr uint64_t kLINE = 128;

//! What an access moves: bytes of each lane, and how a narrow value is widened.
struct Access
{
    uint32_t bytes = 4;
    bool isSigned = false;
};

//! Wavefronts of shared memory: 32 banks of 4 bytes; 64 and 128 bits pass in halves and quarters of the warp.
void countWavefronts(Counts& counts, Lanes64 const& addresses, uint32_t mask, uint32_t bytes)
{
    int const part = bytes > 8 ? 8 : bytes > 4 ? 16 : 32;
    uint64_t passes = 0;
    for (int first = 0; first < kLANES; first += part)
    {
        std::array<std::vector<uint64_t>, kBANKS> words{};
        size_t worst = 0;
        for (int lane = first; lane < first + part; ++lane)
        {
            for (uint32_t at = 0; (mask >> lane & 1U) != 0 && at < std::max(bytes, kWORD); at += kWORD)
            {
                uint64_t const word = addresses[static_cast<size_t>(lane)] / kWORD + at / kWORD;
                auto& bank = words[word % kBANKS];
                if (std::find(bank.begin(), bank.end(), word) == bank.end())
                {
                    bank.push_back(word);
                }
                worst = std::max(worst, bank.size());
            }
        }
        passes += worst;
        counts.fewestWavefronts += worst > 0 ? 1 : 0;
    }
    counts.wavefronts += passes;
}

//! Sectors of 32 bytes of global memory, and the fewest that could hold as many bytes.
void countSectors(Counts& counts, Lanes64 const& addresses, uint32_t mask, uint32_t bytes)
{
    std::set<uint64_t> sectors;
    std::set<uint64_t> lines;
    std::set<uint64_t> units;
    forLanes(mask,
        [&](int lane)
        {
            uint64_t const first = addresses[static_cast<size_t>(lane)];
            units.insert(first);
            sectors.insert(first / kSECTOR); // an access is aligned to its size, so it lies in one
            lines.insert(first / kLINE);
        });
    counts.sectors += sectors.size();
    counts.lines += lines.size();
    counts.fewestSectors += (units.size() * bytes + kSECTOR - 1) / kSECTOR;
}

void requireAligned(uint64_t address, uint32_t bytes)
{
    if (address % bytes != 0)
    {
        fail("address " + std::to_string(address) + " is not aligned to " + std::to_string(bytes));
    }
}

uint8_t* globalAt(Warp const& w, uint64_t address, uint32_t bytes, uint32_t alignment, bool writes)
{
    requireAligned(address, alignment);
    for (Range const& range : w.block.launch.memory)
    {
        if (address >= range.begin && address + bytes <= range.end && (range.writable || !writes))
        {
            return reinterpret_cast<uint8_t*>(address);
        }
    }
    fail("global address " + std::to_string(address) + " lies outside the tensors");
}

uint8_t* sharedAt(Warp const& w, uint64_t address, uint32_t bytes)
{
    requireAligned(address, bytes);
    auto const begin = static_cast<uint64_t>(w.block.launch.kernel->keptShared);
    if (address < begin || address + bytes > w.block.shared.size())
    {
        fail("shared address " + std::to_string(address) + " lies outside the block's "
            + std::to_string(w.block.shared.size() - begin) + " bytes");
    }
    return w.block.shared.data() + address;
}

uint8_t* localAt(Warp& w, uint64_t address, uint32_t bytes, int lane)
{
    requireAligned(address, bytes);
    if (address + bytes > w.local.size() * kWORD)
    {
        fail("local address " + std::to_string(address) + " lies outside the stack");
    }
    return reinterpret_cast<uint8_t*>(&w.local[address / kWORD][static_cast<size_t>(lane)]) + address % kWORD;
}

uint32_t widen(uint8_t const* from, Access access)
{
    if (access.bytes == 1)
    {
        return access.isSigned ? static_cast<uint32_t>(static_cast<int8_t>(*from)) : *from;
    }
    uint16_t half;
    std::memcpy(&half, from, sizeof(half));
    return access.isSigned ? static_cast<uint32_t>(static_cast<int16_t>(half)) : half;
}

//! Words of a register group; those of RZ are zero and stay so.
int nthRegister(Operand const& operand, uint32_t n)
{
    return operand.index == kZERO ? kZERO : operand.index + static_cast<int>(n);
}

enum class Space
{
    kGLOBAL,
    kSHARED,
    kLOCAL,
};

uint8_t* at(Warp& w, Space space, uint64_t address, uint32_t bytes, int lane, bool writes)
{
    return space == Space::kGLOBAL ? globalAt(w, address, bytes, bytes, writes)
        : space == Space::kSHARED  ? sharedAt(w, address, bytes)
                                   : localAt(w, address, bytes, lane);
}

void count(Warp& w, Space space, Lanes64 const& addresses, uint32_t mask, uint32_t bytes)
{
    if (space == Space::kGLOBAL)
    {
        countSectors(w.counts(), addresses, mask, bytes);
    }
    else if (space == Space::kSHARED)
    {
        countWavefronts(w.counts(), addresses, mask, bytes);
    }
}

Handler load(Space space, Access access)
{
    return [=](Warp& w, Encoded const& i, uint32_t mask)
    {
        Lanes64 const addresses = w.addresses(i.operands[1]);
        count(w, space, addresses, mask, access.bytes);
        uint32_t const step = std::min(access.bytes, kWORD);
        for (uint32_t n = 0; n < std::max(access.bytes / kWORD, 1U); ++n)
        {
            Lanes out{};
            forLanes(mask,
                [&](int lane)
                {
                    auto const k = static_cast<size_t>(lane);
                    uint64_t const address = addresses[k] + n * kWORD;
                    requireAligned(addresses[k], access.bytes);
                    uint8_t const* const from = at(w, space, address, step, lane, false);
                    if (access.bytes < kWORD)
                    {
                        out[k] = widen(from, access);
                    }
                    else
                    {
                        std::memcpy(&out[k], from, kWORD);
                    }
                });
            w.writeRegister(nthRegister(i.operands[0], n), out, mask);
        }
    };
}

Handler store(Space space, Access access)
{
    return [=](Warp& w, Encoded const& i, uint32_t mask)
    {
        Lanes64 const addresses = w.addresses(i.operands[0]);
        count(w, space, addresses, mask, access.bytes);
        uint32_t const step = std::min(access.bytes, kWORD);
        for (uint32_t n = 0; n < std::max(access.bytes / kWORD, 1U); ++n)
        {
            Lanes const& values = w.registers[static_cast<size_t>(nthRegister(i.operands[1], n))];
            forLanes(mask,
                [&](int lane)
                {
                    auto const k = static_cast<size_t>(lane);
                    requireAligned(addresses[k], access.bytes);
                    uint64_t const address = addresses[k] + n * kWORD;
                    std::memcpy(at(w, space, address, step, lane, true), &values[k], step);
                });
        }
    };
}

/*!
 * LDGSTS [shared], [global] [, p]: a copy that has its bytes when it is waited for, and poison until then. With ZFILL the
 * offset of the address from an aligned one is how many bytes at the end are zeros, and all are where p is false.
 */
void copyLater(Warp& w, Encoded const& i, uint32_t mask, uint32_t bytes, bool fillsZeros)
{
    Lanes64 const targets = w.addresses(i.operands[0]);
    Lanes64 const sources = w.addresses(i.operands[1]);
    uint32_t const wanted = i.count > 2 ? w.predicate(i.operands[2]) : kFULL; // where not, zeros
    count(w, Space::kSHARED, targets, mask, bytes);
    count(w, Space::kGLOBAL, sources, mask & wanted, bytes);
    forLanes(mask,
        [&](int lane)
        {
            auto const k = static_cast<size_t>(lane);
            std::vector<uint8_t> data(bytes);
            if ((wanted >> lane & 1U) != 0)
            {
                auto const zeros = fillsZeros ? static_cast<uint32_t>(sources[k] % bytes) : 0U;
                std::memcpy(data.data(), globalAt(w, sources[k] - zeros, bytes - zeros, bytes, false), bytes - zeros);
            }
            uint8_t* const target = sharedAt(w, targets[k], bytes);
            for (uint32_t b = 0; b < bytes; b += kWORD)
            {
                std::memcpy(target + b, &kPOISON, kWORD);
            }
            w.copies.push_back({static_cast<uint32_t>(targets[k]), std::move(data), w.copyGroup});
        });
}

//! DEPBAR.LE SB0, n: all but the n newest groups have arrived
void awaitCopies(Warp& w, Encoded const& i, uint32_t)
{
    int const newest = w.copyGroup - static_cast<int>(i.operands[1].value);
    auto const arrives = [&](Copy const& copy)
    {
        return copy.group < newest;
    };
    for (Copy const& copy : w.copies)
    {
        if (arrives(copy))
        {
            std::memcpy(w.block.shared.data() + copy.target, copy.data.data(), copy.data.size());
        }
    }
    w.copies.erase(std::remove_if(w.copies.begin(), w.copies.end(), arrives), w.copies.end());
}

//! ATOMS.x d, [shared], value: lanes one after the other
template <class F>
Handler atomic(F f)
{
    return [f](Warp& w, Encoded const& i, uint32_t mask)
    {
        Lanes64 const addresses = w.addresses(i.operands[1]);
        bool const hasValue = i.count > 2;
        Lanes const values = hasValue ? w.bits(i.operands[2]) : Lanes{};
        Lanes before{};
        std::map<uint64_t, uint64_t> perWord;
        forLanes(mask,
            [&](int lane)
            {
                auto const k = static_cast<size_t>(lane);
                uint8_t* const where = sharedAt(w, addresses[k], kWORD);
                std::memcpy(&before[k], where, kWORD);
                uint32_t const after = f(before[k], values[k]);
                std::memcpy(where, &after, kWORD);
                ++perWord[addresses[k]];
            });
        uint64_t passes = 0;
        for (auto const& [word, lanes] : perWord)
        {
            passes = std::max(passes, lanes);
        }
        w.counts().wavefronts += passes;
        w.counts().fewestWavefronts += passes > 0 ? 1 : 0;
        w.write(i.operands[0], before, mask);
    };
}

//! LDC d, c[bank][register + offset]
Handler loadConstant(Access access)
{
    return [=](Warp& w, Encoded const& i, uint32_t mask)
    {
        if (access.bytes == 8)
        {
            w.write64(i.operands[0], w.wide(i.operands[1]), mask);
            return;
        }
        Operand whole = i.operands[1];
        uint32_t const shift = whole.second < 0 ? whole.value % kWORD * 8 : 0;
        whole.value -= shift / 8;
        Lanes out = w.bits(whole);
        uint32_t const keep = access.bytes == 4 ? kFULL : (1U << access.bytes * 8) - 1U;
        for (uint32_t& x : out)
        {
            x = x >> shift & keep;
        }
        w.write(i.operands[0], out, mask);
    };
}

struct Size
{
    char const* name;
    Access access;
};

constexpr Size kSIZES[] = {{"", {4, false}}, {".U8", {1, false}}, {".S8", {1, true}}, {".U16", {2, false}},
    {".S16", {2, true}}, {".64", {8, false}}, {".128", {16, false}}};

} // namespace

void addMemory(Handlers& all)
{
    for (Size const& size : kSIZES)
    {
        std::string const end = size.name;
        for (char const* const cached : {"", ".CONSTANT"})
        {
            all["LDG.E" + end + cached] = load(Space::kGLOBAL, size.access);
        }
        all["STG.E" + end] = store(Space::kGLOBAL, size.access);
        all["LDS" + end] = load(Space::kSHARED, size.access);
        all["STS" + end] = store(Space::kSHARED, size.access);
        all["LDL" + end] = load(Space::kLOCAL, size.access);
        all["STL" + end] = store(Space::kLOCAL, size.access);
        all["LDC" + end] = loadConstant(size.access);
        uint32_t const bytes = size.access.bytes;
        for (char const* const before : {"LDGSTS.E", "LDGSTS.E.BYPASS", "LDGSTS.E.LTC128B", "LDGSTS.E.BYPASS.LTC128B"})
        {
            for (bool const fillsZeros : {false, true})
            {
                all[before + end + (fillsZeros ? ".ZFILL" : "")] = [=](Warp& w, Encoded const& i, uint32_t mask)
                {
                    copyLater(w, i, mask, bytes, fillsZeros);
                };
            }
        }
    }
    all["LDGDEPBAR"] = [](Warp& w, Encoded const&, uint32_t)
    {
        ++w.copyGroup;
    };
    all["DEPBAR.LE"] = awaitCopies;
    all["ATOMS.ADD"] = atomic(
        [](uint32_t a, uint32_t b)
        {
            return a + b;
        });
    all["ATOMS.OR"] = atomic(
        [](uint32_t a, uint32_t b)
        {
            return a | b;
        });
    all["ATOMS.AND"] = atomic(
        [](uint32_t a, uint32_t b)
        {
            return a & b;
        });
    all["ATOMS.MAX"] = atomic(
        [](uint32_t a, uint32_t b)
        {
            return std::max(a, b);
        });
    all["ATOMS.MIN"] = atomic(
        [](uint32_t a, uint32_t b)
        {
            return std::min(a, b);
        });
    all["ATOMS.POPC.INC.32"] = atomic(
        [](uint32_t a, uint32_t)
        {
            return a + 1;
        });
}

} // namespace nrd::sass
