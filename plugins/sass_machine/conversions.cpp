#include "machine.h"
#include "numbers.h"

#include <cfenv>
#include <limits>

namespace nrd::sass
{
namespace
{

//! Round an integer to fp32 in a direction.
template <class T>
float convert(T x, int direction)
{
    std::fesetround(direction);
    T volatile const given = x;
    float volatile const out = static_cast<float>(given);
    std::fesetround(FE_TONEAREST);
    return out;
}

template <class T>
Handler fromInteger(int direction)
{
    return [=](Warp& w, Encoded const& i, uint32_t mask)
    {
        Lanes out = w.bits(i.operands[1]);
        for (uint32_t& x : out)
        {
            x = bitsOf(direction == FE_TONEAREST ? static_cast<float>(static_cast<T>(x))
                                                 : convert(static_cast<T>(x), direction));
        }
        w.write(i.operands[0], out, mask);
    };
}

//! Towards zero, clamped; NaN gives 0.
template <class T>
void toInteger(Warp& w, Encoded const& i, uint32_t mask)
{
    Lanes out = w.floats(i.operands[1]);
    for (uint32_t& x : out)
    {
        double const value = std::trunc(static_cast<double>(toFloat(x)));
        double const low = static_cast<double>(std::numeric_limits<T>::min());
        double const high = static_cast<double>(std::numeric_limits<T>::max());
        x = static_cast<uint32_t>(static_cast<T>(std::isnan(value) ? 0. : std::fmin(std::fmax(value, low), high)));
    }
    w.write(i.operands[0], out, mask);
}

//! F2FP d, a, b: a becomes the upper half
template <bool kBFLOAT16, bool kRELU>
void pack(Warp& w, Encoded const& i, uint32_t mask)
{
    Lanes const a = w.floats(i.operands[1]);
    Lanes out = w.floats(i.operands[2]);
    auto const shorten = [](uint32_t bits)
    {
        float const x = toFloat(bits);
        float const positive = kRELU && !(x > 0.F) && !std::isnan(x) ? 0.F : x;
        return kBFLOAT16 ? narrowBfloat16(positive) : narrowHalf(positive);
    };
    for (size_t lane = 0; lane < kLANES; ++lane)
    {
        out[lane] = uint32_t{shorten(a[lane])} << 16 | shorten(out[lane]);
    }
    w.write(i.operands[0], out, mask);
}

template <class T>
void addFromInteger(Handlers& all, std::string const& name)
{
    all[name] = fromInteger<T>(FE_TONEAREST);
    all[name + ".RP"] = fromInteger<T>(FE_UPWARD);
    all[name + ".RZ"] = fromInteger<T>(FE_TOWARDZERO);
}

} // namespace

void addConversions(Handlers& all)
{
    addFromInteger<int32_t>(all, "I2F");
    addFromInteger<uint32_t>(all, "I2F.U32");
    addFromInteger<uint16_t>(all, "I2F.U16");
    addFromInteger<uint8_t>(all, "I2F.U8");
    all["I2FP.F32.S32"] = fromInteger<int32_t>(FE_TONEAREST);
    all["I2FP.F32.U32"] = fromInteger<uint32_t>(FE_TONEAREST);
    all["F2I.TRUNC.NTZ"] = toInteger<int32_t>;
    for (char const* const name : {"F2I.U32.TRUNC.NTZ", "F2I.FTZ.U32.TRUNC.NTZ"})
    {
        all[name] = toInteger<uint32_t>;
    }
    for (char const* const name : {"F2FP.PACK_AB", "F2FP.F16.F32.PACK_AB"})
    {
        all[name] = pack<false, false>;
    }
    for (char const* const name : {"F2FP.RELU.PACK_AB", "F2FP.RELU.F16.F32.PACK_AB"})
    {
        all[name] = pack<false, true>;
    }
    for (char const* const name : {"F2FP.BF16.PACK_AB", "F2FP.BF16.F32.PACK_AB"})
    {
        all[name] = pack<true, false>;
    }
    for (char const* const name : {"F2FP.RELU.BF16.PACK_AB", "F2FP.RELU.BF16.F32.PACK_AB"})
    {
        all[name] = pack<true, true>;
    }
}

} // namespace nrd::sass
