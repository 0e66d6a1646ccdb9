/*
 * Theta and guidance to logits on plain threads, bit for bit as host_reference.cpp (decodePixel).
 */
#pragma once

#include "patch_tile.h"

namespace nrd
{

/*!
 * A thread decodes a whole position in its registers. The threads of a warp read the same weights, but for the ring's,
 * so that a load serves all of them.
 */
template <ElementType kTYPE, int32_t kCLASSES>
class Exact
{
public:
    using Tile = PatchTile<kTYPE, kCLASSES>;
    using Element = typename Tile::Element;

    NRD_DEVICE void decodeHidden(Tile const& tile, int32_t position)
    {
        Element const* const theta = tile.theta(tile.slots == 1 ? 0 : findSlot(position));
        float inputs[kINPUTS];
        inputs[0] = tile.place(position)[0];
        inputs[1] = tile.place(position)[1];
        load<kGUIDANCE>(inputs + 2, tile.guidance(position));
        float first[kHIDDEN];
        runLayer<kINPUTS>(first, theta, theta + kB0, inputs);
        runLayer<kHIDDEN>(mHidden, theta + kW1, theta + kB1, first);
    }

    //! Give `sink(class, logit)` the logits of `count` classes.
    template <class Sink>
    NRD_DEVICE void decodeClasses(
        Tile const& tile, int32_t position, int32_t firstClass, int32_t count, Sink const& sink) const
    {
        Element const* const theta = tile.theta(tile.slots == 1 ? 0 : findSlot(position));
        Element const* const bias = theta + kW2 + tile.numClasses() * kHIDDEN;
#pragma unroll kCLASSES_AT_ONCE
        for (int32_t k = firstClass; k < firstClass + count; ++k)
        {
            float weights[kHIDDEN];
            load<kHIDDEN>(weights, theta + kW2 + k * kHIDDEN);
            float sum = widen<kTYPE>(bias[k]);
#pragma unroll
            for (int32_t i = 0; i < kHIDDEN; ++i)
            {
                sum = multiplyAdd(weights[i], mHidden[i], sum);
            }
            sink(k, sum);
        }
    }

private:
    static constexpr int32_t kVECTOR = 16 / static_cast<int32_t>(sizeof(Element));
    static constexpr int32_t kCLASSES_AT_ONCE = sizeof(Element) == 4 ? 2 : 4; // more would spill

    //! Widen `kCOUNT` elements that begin at a multiple of 16 bytes.
    template <int32_t kCOUNT>
    static NRD_DEVICE void load(float* target, Element const* source)
    {
#pragma unroll
        for (int32_t v = 0; v < kCOUNT / kVECTOR; ++v)
        {
            Words4 const words = *reinterpret_cast<Words4 const*>(source + v * kVECTOR);
#pragma unroll
            for (int32_t i = 0; i < kVECTOR; ++i)
            {
                if constexpr (kTYPE == ElementType::kFLOAT)
                {
                    target[v * kVECTOR + i] = floatOf(words.x[i]);
                }
                else
                {
                    target[v * kVECTOR + i] = widen<kTYPE>(static_cast<Element>(words.x[i / 2] >> i % 2 * 16));
                }
            }
        }
    }

    //! outputs = relu(bias + weights * inputs). Weights are loaded one vector after the other, whatever row they are
    //! of.
    template <int32_t kCOUNT>
    static NRD_DEVICE void runLayer(
        float (&outputs)[kHIDDEN], Element const* weights, Element const* bias, float const (&inputs)[kCOUNT])
    {
        load<kHIDDEN>(outputs, bias);
#pragma unroll
        for (int32_t v = 0; v < kCOUNT * kHIDDEN; v += kVECTOR)
        {
            float row[kVECTOR];
            load<kVECTOR>(row, weights + v);
#pragma unroll
            for (int32_t i = 0; i < kVECTOR; ++i)
            {
                float& sum = outputs[(v + i) / kCOUNT];
                sum = multiplyAdd(row[i], inputs[(v + i) % kCOUNT], sum);
            }
        }
#pragma unroll
        for (float& output : outputs)
        {
            output = relu(output);
        }
    }

    float mHidden[kHIDDEN];
};

} // namespace nrd
