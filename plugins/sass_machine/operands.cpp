#include "machine.h"

#include <cstring>

namespace nrd::sass
{
namespace
{

Lanes broadcast(uint32_t value)
{
    Lanes lanes;
    lanes.fill(value);
    return lanes;
}

uint32_t fromBank(std::vector<uint8_t> const& bank, uint32_t offset)
{
    if (offset + 4 > bank.size())
    {
        fail("constant " + std::to_string(offset) + " lies outside its bank");
    }
    uint32_t value;
    std::memcpy(&value, bank.data() + offset, sizeof(value));
    return value;
}

} // namespace

Lanes Warp::fetch(Operand const& operand) const
{
    switch (operand.kind)
    {
    case kREGISTER:
        return registers[static_cast<size_t>(operand.index)];
    case kUNIFORM:
        return broadcast(operand.index == kUNIFORM_ZERO ? 0 : uniform[static_cast<size_t>(operand.index)]);
    case kIMMEDIATE:
        return broadcast(operand.value);
    case kCONSTANT:
        break;
    default:
        fail("an operand of another kind than the instruction takes");
    }
    auto const& bank = operand.index == 0 ? block.launch.bank : block.launch.kernel->constants;
    if (operand.second < 0)
    {
        return broadcast(fromBank(bank, operand.value));
    }
    Lanes lanes{};
    forLanes(active,
        [&](int lane)
        {
            auto const at = static_cast<size_t>(lane);
            uint32_t const offset = operand.value + registers[static_cast<size_t>(operand.second)][at];
            // the bytes of a wider bank may end before a word does
            lanes[at] = fromBank(bank, offset & ~3U) >> (offset & 3U) * 8;
        });
    return lanes;
}

Lanes Warp::bits(Operand const& operand) const
{
    if (operand.flags != 0)
    {
        fail("a sign where the instruction takes none");
    }
    return fetch(operand);
}

Lanes Warp::integers(Operand const& operand) const
{
    Lanes lanes = fetch(operand);
    if ((operand.flags & ~(kNEGATIVE | kNOT)) != 0)
    {
        fail("a modifier that integers do not have");
    }
    for (uint32_t& x : lanes)
    {
        x = (operand.flags & kNOT) != 0 ? ~x : (operand.flags & kNEGATIVE) != 0 ? 0U - x : x;
    }
    return lanes;
}

Lanes Warp::floats(Operand const& operand) const
{
    Lanes lanes = fetch(operand);
    if ((operand.flags & ~(kNEGATIVE | kABSOLUTE)) != 0)
    {
        fail("a modifier that floats do not have");
    }
    uint32_t const keep = (operand.flags & kABSOLUTE) != 0 ? 0x7fffffffU : kFULL;
    uint32_t const flip = (operand.flags & kNEGATIVE) != 0 ? 0x80000000U : 0U;
    for (uint32_t& x : lanes)
    {
        x = (x & keep) ^ flip;
    }
    return lanes;
}

Lanes64 Warp::wide(Operand const& operand) const
{
    if (operand.flags != 0)
    {
        fail("a sign where the instruction takes none");
    }
    Operand upper = operand;
    bool const isZero = (operand.kind == kREGISTER && operand.index == kZERO)
        || (operand.kind == kUNIFORM && operand.index == kUNIFORM_ZERO);
    if (operand.kind == kCONSTANT)
    {
        upper.value += 4;
    }
    else if (operand.kind == kIMMEDIATE)
    {
        upper.value = 0;
    }
    else if (!isZero)
    {
        ++upper.index;
    }
    Lanes const low = fetch(operand);
    Lanes const high = fetch(upper);
    Lanes64 lanes;
    for (size_t i = 0; i < kLANES; ++i)
    {
        lanes[i] = static_cast<uint64_t>(high[i]) << 32 | low[i];
    }
    return lanes;
}

uint32_t Warp::predicate(Operand const& operand) const
{
    if (operand.kind != kPREDICATE && operand.kind != kUNIFORM_PREDICATE)
    {
        fail("expected a predicate");
    }
    auto const& all = operand.kind == kPREDICATE ? predicates : uniformPredicates;
    uint32_t const value = all[static_cast<size_t>(operand.index)];
    return (operand.flags & kNOT) != 0 ? ~value : value;
}

void Warp::writeRegister(int index, Lanes const& values, uint32_t mask)
{
    if (index == kZERO)
    {
        return;
    }
    Lanes& target = registers[static_cast<size_t>(index)];
    if (mask == kFULL)
    {
        target = values;
        return;
    }
    for (size_t i = 0; i < kLANES; ++i)
    {
        target[i] = (mask >> i & 1U) != 0 ? values[i] : target[i];
    }
}

void Warp::write(Operand const& target, Lanes const& values, uint32_t mask)
{
    if (target.kind == kREGISTER)
    {
        writeRegister(target.index, values, mask);
    }
    else if (target.kind == kUNIFORM)
    {
        if (target.index != kUNIFORM_ZERO && mask != 0)
        {
            uniform[static_cast<size_t>(target.index)] = values[static_cast<size_t>(__builtin_ctz(mask))];
        }
    }
    else
    {
        fail("a result that is no register");
    }
}

void Warp::write64(Operand const& target, Lanes64 const& values, uint32_t mask)
{
    Lanes low;
    Lanes high;
    for (size_t i = 0; i < kLANES; ++i)
    {
        low[i] = static_cast<uint32_t>(values[i]);
        high[i] = static_cast<uint32_t>(values[i] >> 32);
    }
    write(target, low, mask);
    Operand upper = target;
    upper.index = static_cast<int16_t>(
        target.index == kZERO || (target.kind == kUNIFORM && target.index == kUNIFORM_ZERO) ? target.index
                                                                                            : target.index + 1);
    write(upper, high, mask);
}

void Warp::writePredicate(Operand const& target, uint32_t values, uint32_t mask)
{
    if (target.index == kTRUE)
    {
        return;
    }
    if (target.kind == kUNIFORM_PREDICATE)
    {
        bool const isTrue = mask != 0 && (values >> __builtin_ctz(mask) & 1U) != 0;
        uniformPredicates[static_cast<size_t>(target.index)] = isTrue ? kFULL : 0;
        return;
    }
    if (target.kind != kPREDICATE)
    {
        fail("a result that is no predicate");
    }
    uint32_t& predicate = predicates[static_cast<size_t>(target.index)];
    predicate = (predicate & ~mask) | (values & mask);
}

Lanes64 Warp::addresses(Operand const& memory) const
{
    if (memory.kind != kMEMORY)
    {
        fail("expected an address");
    }
    bool const isWide = (memory.flags & kWIDE) != 0;
    uint64_t const scale = (memory.flags & kTIMES_4) != 0 ? 4
        : (memory.flags & kTIMES_8) != 0                  ? 8
        : (memory.flags & kTIMES_16) != 0                 ? 16
                                                          : 1;
    auto const base = static_cast<size_t>(memory.index < 0 ? kZERO : memory.index);
    size_t const next = base == kZERO ? base : base + 1;
    uint64_t constant = static_cast<uint64_t>(static_cast<int64_t>(static_cast<int32_t>(memory.value)));
    if (memory.second >= 0 && memory.second != kUNIFORM_ZERO)
    {
        auto const at = static_cast<size_t>(memory.second);
        constant += isWide ? static_cast<uint64_t>(uniform[at + 1]) << 32 | uniform[at] : uniform[at];
    }
    Lanes64 lanes;
    for (size_t i = 0; i < kLANES; ++i)
    {
        uint64_t const upper = isWide ? static_cast<uint64_t>(registers[next][i]) << 32 : 0;
        uint64_t const address = (upper | registers[base][i]) * scale + constant;
        lanes[i] = isWide ? address : address & 0xffffffffU;
    }
    return lanes;
}

} // namespace nrd::sass
