/*
 * Theta and guidance to logits on tensor cores, of 16-bit weights.
 *
 * A warp takes 16 positions of one slot as the rows of m16n8k16 and carries them through all layers in its registers.
 * Of a result lane 4 g + t holds the columns 2 t and 2 t + 1 of the rows g and g + 8; of an operand it gives the
 * elements 2 t, 2 t + 1, 2 t + 8 and 2 t + 9 of a sum. The order in a sum is free, so those four are always the
 * channels 4 t to 4 t + 3, which lie together in memory, and column j of result m is unit 4 (j / 2) + 2 m + j % 2: a
 * result is the next operand as it stands.
 *
 * Weights and guidance are exact in 16 bits. An activation is the sum of two halves, or of three bfloat16 numbers,
 * which keeps 22 or 24 bits of it inside the range that `isHeld` checks.
 */
#pragma once

#include "patch_tile.h"

namespace nrd
{

//! 16-bit numbers that an activation is the sum of.
template <ElementType kTYPE>
constexpr int32_t kPARTS = kTYPE == ElementType::kHALF ? 2 : 3;

//! Units 2 t, 2 t + 1, 2 t + 8 and 2 t + 9 of one position, every part of them.
template <ElementType kTYPE>
struct alignas(kTYPE == ElementType::kHALF ? 16 : 8) Activations
{
    Words2 part[kPARTS<kTYPE>];
};

template <ElementType kTYPE, int32_t kHALVES>
struct Fragments
{
    uint32_t part[kPARTS<kTYPE>][4];
    uint32_t magnitude; //!< bits of the sum of this lane's activations, none of which is negative

    //! Take the two results of a hidden layer through ReLU into operands.
    NRD_DEVICE explicit Fragments(float (&sums)[2][4])
        : part{}
    {
        float total = relu(sums[0][0]);
        sums[0][0] = total;
#pragma unroll
        for (int32_t i = 1; i < 4 * kHALVES; ++i)
        {
            float& x = sums[i % 2][i / 2];
            x = relu(x);
            total += x;
        }
        magnitude = bitsOf(total);
#pragma unroll
        for (int32_t p = 0; p < kPARTS<kTYPE>; ++p)
        {
#pragma unroll
            for (int32_t i = 0; i < 2 * kHALVES; ++i) // result i % 2 of row half i / 2
            {
                float& x = sums[i % 2][i / 2 * 2];
                float& y = sums[i % 2][i / 2 * 2 + 1];
                uint32_t const pair = narrowPair<kTYPE>(x, y);
                part[p][i % 2 * 2 + i / 2] = pair;
                x -= widenLower<kTYPE>(pair);
                y -= widenUpper<kTYPE>(pair);
            }
        }
    }

    //! Write the activations of row g (`half` 0) or g + 8 (`half` 1) to that position's `target`.
    NRD_DEVICE void store(Activations<kTYPE>* target, int32_t half) const
    {
        int32_t const pair = device::threadIndex() % 4 * 2; // units 4 t, 4 t + 1; the others are the next pair
#pragma unroll
        for (int32_t p = 0; p < kPARTS<kTYPE>; ++p)
        {
            target[pair % 4].part[p].x[pair / 4] = part[p][half];
            target[pair % 4 + 1].part[p].x[pair / 4] = part[p][2 + half];
        }
    }
};

//! `Fragments::magnitude` after each hidden layer.
struct Magnitudes
{
    uint32_t first;
    uint32_t second;
};

//! Whether the activations of a warp's positions are zero or so large that their parts hold them. For whole warps.
template <ElementType kTYPE>
NRD_DEVICE bool isHeld(uint32_t magnitude)
{
    uint32_t const smallest = bitsOf(kTYPE == ElementType::kHALF ? 0x1p-6F : 0x1p-96F);
    uint32_t const range = bitsOf(kTYPE == ElementType::kHALF ? 65504.F : 0x1p126F) - smallest;
    uint32_t const largest = device::warpMaximum(magnitude); // a NaN is above all numbers
    return (largest == 0U) | (largest - smallest <= range);
}

//! The layers of 16 positions of the patch, or of the up to 8 of one part of the ring, where the other rows are 0.
template <ElementType kTYPE, int32_t kCLASSES, bool kRING>
class TensorTile
{
public:
    using Tile = PatchTile<kTYPE, kCLASSES>;
    static constexpr int32_t kHALVES = kRING ? 1 : 2; //!< halves of the rows that have positions
    using Inputs = Fragments<kTYPE, kHALVES>;

    //! `number`: which 16 of the patch's own positions, or the slot of the ring's part.
    NRD_DEVICE TensorTile(Tile const& tile, int32_t number)
        : mTile(tile)
        , mTheta(tile.theta(kRING ? number : 0))
        , mGroup(device::threadIndex() % kWARP_SIZE / 4)
        , mThread(device::threadIndex() % 4)
        , mExists(!kRING || number < 3 || mGroup == 0)
        , mFirst(kRING ? kTILE * kTILE + (number - 1) * kTILE + (number < 3 ? mGroup : 0) : number * 16 + mGroup)
    {
    }

    //! Give `sink.put(sink.locate(position), class, logit)` every logit, and more up to a multiple of 8 classes.
    //! Returns how large this lane's activations are.
    template <class Sink>
    NRD_DEVICE Magnitudes decode(Sink const& sink) const
    {
        auto* const low = sink.locate(mFirst);
        auto* const high = sink.locate(mFirst + (kRING ? 0 : kTILE));
        Magnitudes magnitudes;
        Inputs const hidden = runHidden(magnitudes);
        uint16_t const* const bias = mTheta + kW2 + mTile.numClasses() * kHIDDEN;
#pragma unroll 4
        for (int32_t k = 0; k < mTile.numClasses(); k += 8)
        {
            float logits[4];
            start(logits, *reinterpret_cast<uint32_t const*>(bias + k + 2 * mThread));
            multiplyParts(logits, hidden, load(kW2 + (k + mGroup) * kHIDDEN + 4 * mThread));
            if (mExists)
            {
                sink.put(low, k + 2 * mThread, logits[0]);
                sink.put(low, k + 2 * mThread + 1, logits[1]);
            }
            if constexpr (!kRING)
            {
                sink.put(high, k + 2 * mThread, logits[2]);
                sink.put(high, k + 2 * mThread + 1, logits[3]);
            }
        }
        return magnitudes;
    }

    //! Write the activations of the second hidden layer, [position][t]; return how large this lane's are.
    NRD_DEVICE Magnitudes publish(Activations<kTYPE>* activations) const
    {
        Magnitudes magnitudes;
        Inputs const hidden = runHidden(magnitudes);
#pragma unroll
        for (int32_t half = 0; half < kHALVES; ++half)
        {
            if (mExists)
            {
                hidden.store(activations + (mFirst + half * kTILE) * 4, half);
            }
        }
        return magnitudes;
    }

private:
    NRD_DEVICE Inputs runHidden(Magnitudes& magnitudes) const
    {
        float sums[2][4];
        first(sums);
        Inputs const one(sums);
        second(sums, one);
        Inputs const two(sums);
        magnitudes = {one.magnitude, two.magnitude};
        return two;
    }

    //! Four elements of theta, which begin at a multiple of four.
    NRD_DEVICE Words2 load(int32_t offset) const
    {
        return *reinterpret_cast<Words2 const*>(mTheta + offset);
    }

    //! The row of the weights that this lane gives as operand for result m.
    NRD_DEVICE int32_t unitOf(int32_t m) const
    {
        return 4 * (mGroup / 2) + 2 * m + mGroup % 2;
    }

    //! Begin the sums of this lane's two columns with their biases.
    static NRD_DEVICE void start(float (&sums)[4], uint32_t bias)
    {
        sums[0] = widenLower<kTYPE>(bias);
        sums[1] = widenUpper<kTYPE>(bias);
        sums[2] = kRING ? 0.F : sums[0];
        sums[3] = kRING ? 0.F : sums[1];
    }

    static NRD_DEVICE void multiplyParts(float (&sums)[4], Inputs const& inputs, Words2 const& weights)
    {
#pragma unroll
        for (int32_t p = 0; p < kPARTS<kTYPE>; ++p)
        {
            device::multiplyTiles<kTYPE>(sums, inputs.part[p], weights.x);
        }
    }

    //! The coordinates are added in fp32, so that the product has the 16 channels of the guidance.
    NRD_DEVICE void first(float (&sums)[2][4]) const
    {
        uint32_t guidance[4] = {};
#pragma unroll
        for (int32_t half = 0; half < kHALVES; ++half)
        {
            Words2 const words = *reinterpret_cast<Words2 const*>(mTile.guidance(mFirst + half * kTILE) + 4 * mThread);
            guidance[half] = words.x[0];
            guidance[2 + half] = words.x[1];
        }
        Words2 const bias = load(kB0 + 4 * mThread);
#pragma unroll
        for (int32_t m = 0; m < 2; ++m)
        {
            start(sums[m], bias.x[m]);
#pragma unroll
            for (int32_t i = 0; i < 2 * kHALVES; ++i)
            {
                int32_t const unit = 4 * mThread + 2 * m + i % 2;
                uint32_t const pair = *reinterpret_cast<uint32_t const*>(mTheta + unit * kINPUTS); // for x and y
                float const* const place = mTile.place(mFirst + i / 2 * kTILE);
                sums[m][i] = multiplyAdd(
                    widenUpper<kTYPE>(pair), place[1], multiplyAdd(widenLower<kTYPE>(pair), place[0], sums[m][i]));
            }
            auto const* const row = reinterpret_cast<uint32_t const*>(mTheta + unitOf(m) * kINPUTS + 2 + 4 * mThread);
            uint32_t const weights[2] = {row[0], row[1]};
            device::multiplyTiles<kTYPE>(sums[m], guidance, weights);
        }
    }

    NRD_DEVICE void second(float (&sums)[2][4], Inputs const& inputs) const
    {
        Words2 const bias = load(kB1 + 4 * mThread);
#pragma unroll
        for (int32_t m = 0; m < 2; ++m)
        {
            start(sums[m], bias.x[m]);
            multiplyParts(sums[m], inputs, load(kW1 + unitOf(m) * kHIDDEN + 4 * mThread));
        }
    }

    Tile const& mTile;
    uint16_t const* mTheta;
    int32_t mGroup;  //!< g
    int32_t mThread; //!< t
    bool mExists;    //!< whether row g is a position; of the ring's corner only row 0 is
    int32_t mFirst;  //!< position of row g
};

//! Let `action(TensorTile)` decode all positions; return whether the activations of this warp's positions are held.
template <ElementType kTYPE, int32_t kCLASSES, class Action>
NRD_DEVICE bool decodeOnTensorCores(PatchTile<kTYPE, kCLASSES> const& tile, Action const& action)
{
    static_assert(kTHREADS / kWARP_SIZE == kTILE * kTILE / 16, "a warp has 16 of the patch's own positions");
    int32_t const warp = device::threadIndex() / kWARP_SIZE;
    Magnitudes const own = action(TensorTile<kTYPE, kCLASSES, false>(tile, warp));
    Magnitudes ring = {0U, 0U};
    if (warp + 1 < tile.slots)
    {
        ring = action(TensorTile<kTYPE, kCLASSES, true>(tile, warp + 1));
    }
    return isHeld<kTYPE>(own.first) & isHeld<kTYPE>(own.second) & isHeld<kTYPE>(ring.first)
        & isHeld<kTYPE>(ring.second);
}

/*!
 * 16 classes of one slot as the rows of m16n8k16, and 8 positions as its columns. Of a result lane 4 g + t holds the
 * columns 2 t and 2 t + 1, first of row g, then of row g + 8.
 */
template <ElementType kTYPE, int32_t kCLASSES>
class ClassTile
{
public:
    //! `classOf(row)` returns the class in a row.
    template <class ClassOf>
    NRD_DEVICE ClassTile(PatchTile<kTYPE, kCLASSES> const& tile, int32_t slot, ClassOf const& classOf)
    {
        uint16_t const* const theta = tile.theta(slot) + kW2;
        uint16_t const* const bias = theta + tile.numClasses() * kHIDDEN;
        int32_t const lane = device::threadIndex() % kWARP_SIZE;
        device::loadMatrices(mWeights, theta + classOf(lane % 16) * kHIDDEN + lane / 16 * 8);
        mLow = widen<kTYPE>(bias[classOf(lane / 4)]);
        mHigh = widen<kTYPE>(bias[classOf(lane / 4 + 8)]);
    }

    //! `activations` are those of the position in column g.
    NRD_DEVICE void decode(float (&logits)[4], Activations<kTYPE> const& activations) const
    {
        logits[0] = mLow;
        logits[1] = mLow;
        logits[2] = mHigh;
        logits[3] = mHigh;
#pragma unroll
        for (int32_t p = 0; p < kPARTS<kTYPE>; ++p)
        {
            device::multiplyTiles<kTYPE>(logits, mWeights, activations.part[p].x);
        }
    }

private:
    uint32_t mWeights[4];
    float mLow; //!< biases
    float mHigh;
};

} // namespace nrd
