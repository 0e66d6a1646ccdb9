#include "machine.h"
#include "numbers.h"

#include <algorithm>

namespace nrd::sass
{
namespace
{

//! How two values stand to each other.
enum Order
{
    kLESS = 1,
    kEQUAL = 2,
    kGREATER = 4,
    kUNORDERED = 8,
};

struct Relation
{
    char const* name;
    int holds; //!< for which `Order`
};

constexpr Relation kRELATIONS[] = {{"F", 0}, {"LT", kLESS}, {"EQ", kEQUAL}, {"LE", kLESS | kEQUAL}, {"GT", kGREATER},
    {"NE", kLESS | kGREATER}, {"GE", kGREATER | kEQUAL}, {"T", kLESS | kEQUAL | kGREATER | kUNORDERED}};

constexpr char const* kJOINS[] = {"AND", "OR", "XOR"};

uint32_t join(int how, uint32_t a, uint32_t b)
{
    return how == 0 ? a & b : how == 1 ? a | b : a ^ b;
}

template <class T>
int compare(T a, T b)
{
    return a < b ? kLESS : a == b ? kEQUAL : a > b ? kGREATER : kUNORDERED;
}

//! p = relation JOIN c, q = not relation JOIN c
void store(Warp& w, Encoded const& i, uint32_t mask, uint32_t holds, int how)
{
    uint32_t const c = w.predicate(i.operands[4]);
    w.writePredicate(i.operands[0], join(how, holds, c), mask);
    w.writePredicate(i.operands[1], join(how, ~holds, c), mask);
}

template <bool kSIGNED>
Handler integerSetter(int relation, int how, bool isExtended)
{
    return [=](Warp& w, Encoded const& i, uint32_t mask)
    {
        Lanes const a = w.integers(i.operands[2]);
        Lanes const b = w.integers(i.operands[3]);
        uint32_t const low = isExtended ? w.predicate(i.operands[5]) : 0; // what the lower words decided
        uint32_t holds = 0;
        for (size_t lane = 0; lane < kLANES; ++lane)
        {
            int const order = kSIGNED ? compare(static_cast<int32_t>(a[lane]), static_cast<int32_t>(b[lane]))
                                      : compare(a[lane], b[lane]);
            bool const isLow = isExtended && order == kEQUAL;
            holds |= (isLow ? low >> lane & 1U : static_cast<uint32_t>((order & relation) != 0)) << lane;
        }
        store(w, i, mask, holds, how);
    };
}

Handler floatSetter(int relation, int how, bool flushes)
{
    return [=](Warp& w, Encoded const& i, uint32_t mask)
    {
        Lanes const a = w.floats(i.operands[2]);
        Lanes const b = w.floats(i.operands[3]);
        uint32_t holds = 0;
        for (size_t lane = 0; lane < kLANES; ++lane)
        {
            float const x = toFloat(a[lane]);
            float const y = toFloat(b[lane]);
            int const order = flushes ? compare(flushed(x), flushed(y)) : compare(x, y);
            holds |= static_cast<uint32_t>((order & relation) != 0) << lane;
        }
        store(w, i, mask, holds, how);
    };
}

void addSetters(Handlers& all)
{
    for (Relation const& relation : kRELATIONS)
    {
        for (int how = 0; how < 3; ++how)
        {
            std::string const end = std::string(".") + kJOINS[how];
            std::string const name = std::string("ISETP.") + relation.name;
            for (bool const isExtended : {false, true})
            {
                std::string const last = end + (isExtended ? ".EX" : "");
                all[name + last] = integerSetter<true>(relation.holds, how, isExtended);
                all[name + ".U32" + last] = integerSetter<false>(relation.holds, how, isExtended);
            }
            for (bool const flushes : {false, true})
            {
                std::string const last = (flushes ? ".FTZ" : "") + end;
                std::string const floats = std::string("FSETP.") + relation.name;
                all[floats + last] = floatSetter(relation.holds, how, flushes);
                all[floats + "U" + last] = floatSetter(relation.holds | kUNORDERED, how, flushes);
            }
        }
    }
    for (int how = 0; how < 3; ++how)
    {
        std::string const end = std::string(".") + kJOINS[how];
        all["FSETP.NUM" + end] = floatSetter(kLESS | kEQUAL | kGREATER, how, false);
        all["FSETP.NAN" + end] = floatSetter(kUNORDERED, how, false);
    }
}

//! d = p ? a : b
template <bool kFLOATS>
void select(Warp& w, Encoded const& i, uint32_t mask)
{
    Lanes a = kFLOATS ? w.floats(i.operands[1]) : w.integers(i.operands[1]);
    Lanes const b = kFLOATS ? w.floats(i.operands[2]) : w.integers(i.operands[2]);
    uint32_t const chosen = w.predicate(i.operands[3]);
    for (size_t lane = 0; lane < kLANES; ++lane)
    {
        a[lane] = (chosen >> lane & 1U) != 0 ? a[lane] : b[lane];
    }
    w.write(i.operands[0], a, mask);
}

//! The smaller where the last operand is true, else the larger, of the sum of the first `kTERMS` and the next.
template <class T, int kTERMS, int kVALUES>
void extreme(Warp& w, Encoded const& i, uint32_t mask)
{
    Lanes out = w.integers(i.operands[1]);
    uint32_t const smaller = w.predicate(i.operands[kVALUES + 1]);
    for (int k = 2; k <= kVALUES; ++k)
    {
        Lanes const next = w.integers(i.operands[k]);
        for (size_t lane = 0; lane < kLANES; ++lane)
        {
            T const a = static_cast<T>(out[lane]);
            T const b = static_cast<T>(next[lane]);
            T const best = (smaller >> lane & 1U) != 0 ? std::min(a, b) : std::max(a, b);
            out[lane] = k <= kTERMS ? out[lane] + next[lane] : static_cast<uint32_t>(best);
        }
    }
    w.write(i.operands[0], out, mask);
}

//! FMNMX: NaN loses unless the form is .NAN; -0 is below +0.
Handler floatExtreme(bool keepsNan, int values)
{
    return [=](Warp& w, Encoded const& i, uint32_t mask)
    {
        Lanes out = w.floats(i.operands[1]);
        uint32_t const smaller = w.predicate(i.operands[values + 1]);
        for (int k = 2; k <= values; ++k)
        {
            Lanes const next = w.floats(i.operands[k]);
            for (size_t lane = 0; lane < kLANES; ++lane)
            {
                float const a = toFloat(out[lane]);
                float const b = toFloat(next[lane]);
                bool const isSmaller = (smaller >> lane & 1U) != 0;
                bool const aIsLess = a < b || (a == b && std::signbit(a));
                uint32_t const best = aIsLess == isSmaller ? out[lane] : next[lane];
                bool const unordered = std::isnan(a) || std::isnan(b);
                bool const canonical = unordered && (keepsNan || (std::isnan(a) && std::isnan(b)));
                out[lane] = canonical ? 0x7fffffffU : !unordered ? best : std::isnan(a) ? next[lane] : out[lane];
            }
        }
        w.write(i.operands[0], out, mask);
    };
}

} // namespace

void addComparisons(Handlers& all)
{
    addSetters(all);
    all["SEL"] = select<false>;
    all["FSEL"] = select<true>;
    all["FMNMX"] = floatExtreme(false, 2);
    all["FMNMX.NAN"] = floatExtreme(true, 2);
    all["FMNMX3"] = floatExtreme(false, 3);
    all["FMNMX3.NAN"] = floatExtreme(true, 3);
    for (char const* const name : {"IMNMX", "VIMNMX"})
    {
        all[name] = extreme<int32_t, 1, 2>;
        all[std::string(name) + ".U32"] = extreme<uint32_t, 1, 2>;
    }
    all["VIMNMX3"] = extreme<int32_t, 1, 3>;
    all["VIMNMX3.U32"] = extreme<uint32_t, 1, 3>;
    all["VIADDMNMX"] = extreme<int32_t, 2, 3>;
    all["VIADDMNMX.U32"] = extreme<uint32_t, 2, 3>;
}

} // namespace nrd::sass
