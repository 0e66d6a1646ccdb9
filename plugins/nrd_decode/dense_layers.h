/*
 * The layers of the perceptrons over a block's positions, by plain threads and by tensor cores.
 */
#pragma once

#include "decode_block.h"

namespace nrd
{

//! One layer: outputs[o][position] = b[o] + sum over i of W[o][i] * inputs[i][position].
struct Layer
{
    float const* weights; //!< of slot 0, row-major [out][in], rows aligned to 8 bytes, to 16 where `inputs` % 4 == 0
    float const* bias;
    int32_t slotFloats; //!< from one slot's weights to the next
    float const* inputs;
    float* outputs;
    int32_t numInputs;
    int32_t numOutputs;
    int32_t pitch;
};

//! Threads compute 4 outputs of 4 positions each. The order of operations is that of the host reference.
struct Simt
{
    template <int32_t kSTEP>
    struct alignas(4 * kSTEP) Weights
    {
        float x[kSTEP];
    };

    template <int32_t kSTEP, bool kRELU, class Shape>
    static NRD_DEVICE void run(Shape const& shape, Layer const& layer, int32_t quads)
    {
        int32_t const groups = (layer.numOutputs + 3) / 4;
        for (int32_t item = device::threadIndex(); item < groups * quads; item += kTHREADS)
        {
            int32_t const group = item / quads;
            int32_t const quad = item - group * quads;
            runQuad<kSTEP, kRELU>(layer, group * 4, quad * 4, findSlot(shape, quad) * layer.slotFloats);
        }
    }

    template <int32_t kSTEP, bool kRELU>
    static NRD_DEVICE void runQuad(Layer const& layer, int32_t firstOutput, int32_t position, int32_t slotOffset)
    {
        float const* rows[4]; // of the four outputs' weights; past the last output the last row, not stored
        Float4 sums[4];
#pragma unroll
        for (int32_t o = 0; o < 4; ++o)
        {
            int32_t const output = atMost(firstOutput + o, layer.numOutputs - 1);
            rows[o] = layer.weights + slotOffset + output * layer.numInputs;
            float const bias = layer.bias[slotOffset + output];
            sums[o] = {{bias, bias, bias, bias}};
        }
#pragma unroll 1 // more would spill
        for (int32_t i = 0; i < layer.numInputs; i += kSTEP)
        {
            accumulate<kSTEP>(sums, rows, i, layer.inputs + i * layer.pitch + position, layer.pitch);
        }
#pragma unroll
        for (int32_t o = 0; o < 4; ++o)
        {
            if (firstOutput + o < layer.numOutputs)
            {
                store<kRELU>(layer.outputs + (firstOutput + o) * layer.pitch + position, sums[o]);
            }
        }
    }

    template <int32_t kSTEP>
    static NRD_DEVICE void accumulate(
        Float4 (&sums)[4], float const* const (&rows)[4], int32_t i, float const* inputs, int32_t pitch)
    {
        Weights<kSTEP> weights[4];
#pragma unroll
        for (int32_t o = 0; o < 4; ++o)
        {
            weights[o] = *reinterpret_cast<Weights<kSTEP> const*>(rows[o] + i);
        }
#pragma unroll
        for (int32_t k = 0; k < kSTEP; ++k)
        {
            Float4 const values = *reinterpret_cast<Float4 const*>(inputs + k * pitch);
#pragma unroll
            for (int32_t o = 0; o < 4; ++o)
            {
#pragma unroll
                for (int32_t j = 0; j < 4; ++j)
                {
                    sums[o].x[j] = multiplyAdd(weights[o].x[k], values.x[j], sums[o].x[j]);
                }
            }
        }
    }

    template <bool kRELU>
    static NRD_DEVICE void store(float* target, Float4 values)
    {
        if constexpr (kRELU)
        {
#pragma unroll
            for (int32_t j = 0; j < 4; ++j)
            {
                values.x[j] = relu(values.x[j]);
            }
        }
        *reinterpret_cast<Float4*>(target) = values;
    }

    template <class Shape>
    static NRD_DEVICE void first(Shape const& shape, Layer const& layer, int32_t quads)
    {
        run<2, true>(shape, layer, quads);
    }
    template <class Shape>
    static NRD_DEVICE void second(Shape const& shape, Layer const& layer, int32_t quads)
    {
        run<4, true>(shape, layer, quads);
    }
    template <class Shape>
    static NRD_DEVICE void last(Shape const& shape, Layer const& layer, int32_t quads)
    {
        run<4, false>(shape, layer, quads);
    }
};

/*!
 * Tensor cores, for d = m = 16 and e = 8: a warp takes 16 positions of one slot as the rows of a tile and 8 outputs as
 * its columns. A lane holds the columns 2t and 2t + 1 of its result, so it takes those two channels as its share of the
 * next product: which channel stands where in a sum does not matter as long as the weights follow.
 * 16-bit weights and guidance are exact in tf32. Activations are not: each is the sum of two tf32 numbers.
 */
struct TensorCore
{
    //! 16 positions of one slot; the last tiles hold 8 and 1.
    struct Rows
    {
        int32_t position;
        int32_t count;
        int32_t slot;
    };

    static NRD_DEVICE Rows findRows(int32_t tile)
    {
        if (tile < 4)
        {
            return {tile * 16, 16, 0};
        }
        return tile < 6 ? Rows{64 + (tile - 4) * 8, 8, tile - 3} : Rows{80, 1, 3};
    }

    //! Split into two tf32 numbers whose sum keeps 21 bits; infinity and NaN stay in the upper one.
    static NRD_DEVICE void split(float x, uint32_t& upper, uint32_t& lower)
    {
        upper = bitsOf(x) & 0xffffe000U;
        float const rest = x - floatOf(upper);
        lower = (upper & 0x7f800000U) == 0x7f800000U ? 0U : (bitsOf(rest) + 0x1000U) & 0xffffe000U;
    }

    template <bool kSPLIT>
    struct Activations
    {
        uint32_t upper[2][4]; //!< [channels 0-7 or 8-15][fragment]
        uint32_t lower[2][4];
    };

    template <bool kSPLIT>
    static NRD_DEVICE Activations<kSPLIT> load(float const* inputs, int32_t pitch, int32_t low, int32_t high, int32_t t)
    {
        Activations<kSPLIT> a;
#pragma unroll
        for (int32_t k = 0; k < 2; ++k)
        {
#pragma unroll
            for (int32_t i = 0; i < 4; ++i)
            {
                float const x = inputs[(8 * k + 2 * t + i / 2) * pitch + (i % 2 == 0 ? low : high)];
                if constexpr (kSPLIT)
                {
                    split(x, a.upper[k][i], a.lower[k][i]);
                }
                else
                {
                    a.upper[k][i] = bitsOf(x);
                }
            }
        }
        return a;
    }

    //! kCOORDINATES: the first two inputs are added in fp32 and come before the 16 channels of the product.
    template <bool kCOORDINATES, bool kRELU>
    static NRD_DEVICE void run(Layer const& layer, int32_t quads)
    {
        constexpr int32_t kSKIP = kCOORDINATES ? 2 : 0;
        int32_t const lane = device::threadIndex() % kWARP_SIZE;
        int32_t const g = lane / 4;
        int32_t const t = lane % 4;
        int32_t const tiles = quads == 16 ? 4 : 7;
        for (int32_t tile = device::threadIndex() / kWARP_SIZE; tile < tiles; tile += kTHREADS / kWARP_SIZE)
        {
            Rows const rows = findRows(tile);
            int32_t const low = atMost(rows.position + g, quads * 4 - 1);
            int32_t const high = atMost(rows.position + g + 8, quads * 4 - 1);
            auto const a = load<!kCOORDINATES>(layer.inputs + kSKIP * layer.pitch, layer.pitch, low, high, t);
            for (int32_t output = 0; output < layer.numOutputs; output += 8)
            {
                float sums[4];
                start<kCOORDINATES>(sums, layer, rows.slot, output + 2 * t, low, high);
                int32_t const row = atMost(output + g, layer.numOutputs - 1);
                float const* const weights
                    = layer.weights + rows.slot * layer.slotFloats + row * layer.numInputs + kSKIP;
                accumulate(sums, a, weights, t);
                store<kRELU>(layer, sums, rows, output + 2 * t, g);
            }
        }
    }

    template <bool kCOORDINATES>
    static NRD_DEVICE void start(
        float (&sums)[4], Layer const& layer, int32_t slot, int32_t output, int32_t low, int32_t high)
    {
#pragma unroll
        for (int32_t i = 0; i < 4; ++i)
        {
            int32_t const o = atMost(output + i % 2, layer.numOutputs - 1);
            sums[i] = layer.bias[slot * layer.slotFloats + o];
            if constexpr (kCOORDINATES)
            {
                float const* const weights = layer.weights + slot * layer.slotFloats + o * layer.numInputs;
                int32_t const position = i < 2 ? low : high;
                sums[i] = multiplyAdd(weights[0], layer.inputs[position], sums[i]);
                sums[i] = multiplyAdd(weights[1], layer.inputs[layer.pitch + position], sums[i]);
            }
        }
    }

    template <bool kSPLIT>
    static NRD_DEVICE void accumulate(float (&sums)[4], Activations<kSPLIT> const& a, float const* weights, int32_t t)
    {
#pragma unroll
        for (int32_t k = 0; k < 2; ++k)
        {
            Float2 const pair = *reinterpret_cast<Float2 const*>(weights + 8 * k + 2 * t);
            uint32_t const b[2] = {bitsOf(pair.x[0]), bitsOf(pair.x[1])};
            device::multiplyTiles(sums, a.upper[k], b);
            if constexpr (kSPLIT)
            {
                device::multiplyTiles(sums, a.lower[k], b);
            }
        }
    }

    template <bool kRELU>
    static NRD_DEVICE void store(
        Layer const& layer, float const (&sums)[4], Rows const& rows, int32_t output, int32_t g)
    {
#pragma unroll
        for (int32_t i = 0; i < 4; ++i)
        {
            int32_t const o = output + i % 2;
            int32_t const row = i < 2 ? g : g + 8;
            if (o < layer.numOutputs && row < rows.count)
            {
                layer.outputs[o * layer.pitch + rows.position + row] = kRELU ? relu(sums[i]) : sums[i];
            }
        }
    }

    template <class Shape>
    static NRD_DEVICE void first(Shape const&, Layer const& layer, int32_t quads)
    {
        run<true, true>(layer, quads);
    }
    template <class Shape>
    static NRD_DEVICE void second(Shape const&, Layer const& layer, int32_t quads)
    {
        run<false, true>(layer, quads);
    }
    template <class Shape>
    static NRD_DEVICE void last(Shape const&, Layer const& layer, int32_t quads)
    {
        run<false, false>(layer, quads);
    }
};

//! Fill the activations with the second hidden layer of every position; with it the first classes where there is room.
template <class Dense, class Shape, ElementType kTYPE>
NRD_DEVICE void decodeHidden(Block<Shape, kTYPE> const& block)
{
    auto const& layout = block.layout;
    int32_t const d = layout.hidden;
    int32_t const layer0 = (layout.inputs + 1) * d; // floats of W0 and b0
    int32_t const layer1 = (d + 1) * d;
    int32_t const offset1 = Shape::kHIDDEN_AT_ONCE ? layer0 : 0;
    block.stageInputs();
    block.stageWeights(0, 0, Shape::kHIDDEN_AT_ONCE ? layer0 + layer1 : layer0);
    if constexpr (Shape::kHIDDEN_AT_ONCE)
    {
        block.stageClasses(0, atMost(block.problem.shape.numClasses, kCHUNK));
    }
    device::syncBlock();
    Dense::first(block.shape,
        Layer{block.shared, block.shared + layout.inputs * d, layout.slotFloats, block.inputs(), block.logits(),
            layout.inputs, d, layout.pitch},
        block.quads());
    device::syncBlock();
    if constexpr (!Shape::kHIDDEN_AT_ONCE)
    {
        block.stageWeights(0, layer0, layer1);
        device::syncBlock();
    }
    Dense::second(block.shape,
        Layer{block.shared + offset1, block.shared + offset1 + d * d, layout.slotFloats, block.logits(), block.inputs(),
            d, d, layout.pitch},
        block.quads());
    device::syncBlock();
}

/*!
 * Logits of `count` classes into the rows at `target`. Ends with a barrier. Where weights are loaded it also has one
 * before the first logit is written, so that every thread is done with those which lay there before.
 */
template <class Dense, class Shape, ElementType kTYPE>
NRD_DEVICE void decodeClasses(
    Block<Shape, kTYPE> const& block, float* target, int32_t firstClass, int32_t count, bool staged)
{
    auto const& layout = block.layout;
    if (!staged)
    {
        block.stageClasses(firstClass, count);
        device::syncBlock();
    }
    float const* const weights = block.shared + layout.classOffset;
    Dense::last(block.shape,
        Layer{weights, weights + kCHUNK * layout.hidden, layout.slotFloats, block.inputs(), target, layout.hidden,
            count, layout.pitch},
        block.quads());
    device::syncBlock();
}

} // namespace nrd
