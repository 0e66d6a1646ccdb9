/*
 * NrdPatchDecode: the logits, one tile per block.
 */
#pragma once

#include "dense_layers.h"

namespace nrd
{

struct LogitsArguments
{
    DecodeProblem problem;
    void* logits;
};

//! Four neighbours of the logits; `index` is a multiple of 4 and the tensor aligned to 16 bytes.
template <ElementType kTYPE>
NRD_DEVICE void storeQuad(void* logits, int64_t index, Float4 const& values)
{
    if constexpr (kTYPE == ElementType::kFLOAT)
    {
        *reinterpret_cast<Float4*>(static_cast<float*>(logits) + index) = values;
    }
    else
    {
        struct alignas(8) Quad
        {
            uint16_t x[4];
        } quad;
#pragma unroll
        for (int32_t i = 0; i < 4; ++i)
        {
            quad.x[i] = narrow(values.x[i], kTYPE);
        }
        *reinterpret_cast<Quad*>(static_cast<uint16_t*>(logits) + index) = quad;
    }
}

//! Write the chunk of classes that lies in shared memory.
template <class Shape, ElementType kTYPE>
NRD_DEVICE void storeLogits(Block<Shape, kTYPE> const& block, void* logits, int32_t firstClass, int32_t count)
{
    DecodeProblem const& problem = block.problem;
    int64_t const height = static_cast<int64_t>(problem.rows) * block.shape.patch();
    int64_t const width = static_cast<int64_t>(problem.columns) * block.shape.patch();
    int64_t const plane = static_cast<int64_t>(block.tile.image) * problem.shape.numClasses + firstClass;
    int32_t const quads = block.quads();
    for (int32_t item = device::threadIndex(); item < count * quads; item += kTHREADS)
    {
        int32_t const row = item / quads; // of the chunk
        int32_t const position = (item - row * quads) * 4;
        Place const place = findPlace(block.shape, position);
        int64_t const line = (plane + row) * height + block.tile.row + place.row; // [image][class][row]
        storeQuad<kTYPE>(logits, line * width + block.tile.column + place.column,
            *reinterpret_cast<Float4 const*>(block.logits() + row * block.layout.pitch + position));
    }
}

template <class Shape, ElementType kTYPE, class Dense>
NRD_DEVICE void decodeLogits(LogitsArguments const& arguments)
{
    Block<Shape, kTYPE> const block(arguments.problem, 1, kCHUNK);
    int32_t const k = arguments.problem.shape.numClasses;
    decodeHidden<Dense>(block);
    for (int32_t firstClass = 0; firstClass < k; firstClass += kCHUNK)
    {
        int32_t const count = atMost(k - firstClass, kCHUNK);
        decodeClasses<Dense>(block, block.logits(), firstClass, count, Shape::kHIDDEN_AT_ONCE && firstClass == 0);
        storeLogits(block, arguments.logits, firstClass, count);
    }
}

} // namespace nrd
