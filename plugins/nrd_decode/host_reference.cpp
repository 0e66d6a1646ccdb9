#include "host_reference.h"

#include "decode_arithmetic.h"

#include <algorithm>
#include <iterator>
#include <stdexcept>
#include <vector>

namespace nrd
{
namespace
{

void check(DecodeProblem const& problem)
{
    if (char const* const fault = findFault(problem.shape))
    {
        throw std::invalid_argument(fault);
    }
}

//! The weights of one patch, widened, in theta's order.
std::vector<float> loadWeights(DecodeProblem const& problem, int64_t image, int64_t row, int64_t column)
{
    DecodeShape const& shape = problem.shape;
    TensorView const& theta = problem.theta;
    int64_t const offset
        = image * theta.batchStride + (row * problem.columns + column) * theta.pixelStride; // of channel 0
    std::vector<float> weights(
        static_cast<size_t>(thetaChannels(shape.numClasses, shape.hidden, shape.guidanceChannels)));
    for (size_t i = 0; i < weights.size(); ++i)
    {
        weights[i] = loadElement(theta.data, offset + static_cast<int64_t>(i) * theta.channelStride, problem.type);
    }
    return weights;
}

//! outputs[o] = bias[o] + sum of weights[o][i] * inputs[i], in the order of i.
std::vector<float> dense(float const* weights, float const* bias, std::vector<float> const& inputs, int32_t outputs)
{
    std::vector<float> sums(bias, bias + outputs);
    for (size_t o = 0; o < sums.size(); ++o)
    {
        for (size_t i = 0; i < inputs.size(); ++i)
        {
            sums[o] = multiplyAdd(weights[o * inputs.size() + i], inputs[i], sums[o]);
        }
    }
    return sums;
}

void rectify(std::vector<float>& values)
{
    for (float& value : values)
    {
        value = relu(value);
    }
}

//! Logits of one pixel.
std::vector<float> decodePixel(DecodeShape const& shape, float const* weights, std::vector<float> const& inputs)
{
    int32_t const d = shape.hidden;
    int32_t const layer0 = d * (2 + shape.guidanceChannels);
    std::vector<float> hidden = dense(weights, weights + layer0, inputs, d);
    rectify(hidden);
    weights += layer0 + d;
    hidden = dense(weights, weights + d * d, hidden, d);
    rectify(hidden);
    weights += d * d + d;
    return dense(weights, weights + shape.numClasses * d, hidden, shape.numClasses);
}

//! Coordinates and guidance of pixel (y, x) of the logits.
std::vector<float> loadInputs(DecodeProblem const& problem, int64_t image, int64_t y, int64_t x)
{
    DecodeShape const& shape = problem.shape;
    TensorView const& view = problem.guidance;
    std::vector<float> inputs{shape.xTable[x % shape.patch], shape.yTable[y % shape.patch]};
    int64_t const offset
        = image * view.batchStride + (y * problem.columns * shape.patch + x) * view.pixelStride; // of channel 0
    for (int32_t channel = 0; channel < shape.guidanceChannels; ++channel)
    {
        inputs.push_back(loadElement(view.data, offset + channel * view.channelStride, problem.type));
    }
    return inputs;
}

//! fp32 logits of one image, [class][row][column].
std::vector<float> decodeImage(DecodeProblem const& problem, int64_t image)
{
    DecodeShape const& shape = problem.shape;
    int64_t const f = shape.patch;
    int64_t const height = problem.rows * f;
    int64_t const width = problem.columns * f;
    std::vector<float> logits(static_cast<size_t>(shape.numClasses * height * width));
    for (int64_t patch = 0; patch < int64_t{problem.rows} * problem.columns; ++patch)
    {
        int64_t const patchRow = patch / problem.columns;
        int64_t const patchColumn = patch % problem.columns;
        std::vector<float> const weights = loadWeights(problem, image, patchRow, patchColumn);
        for (int64_t pixel = 0; pixel < f * f; ++pixel)
        {
            int64_t const y = patchRow * f + pixel / f;
            int64_t const x = patchColumn * f + pixel % f;
            std::vector<float> const drawn = decodePixel(shape, weights.data(), loadInputs(problem, image, y, x));
            for (int64_t k = 0; k < shape.numClasses; ++k)
            {
                logits[static_cast<size_t>((k * height + y) * width + x)] = drawn[static_cast<size_t>(k)];
            }
        }
    }
    return logits;
}

//! The logits of one image and its enlargement.
class MaskDrawer
{
public:
    MaskDrawer(DecodeProblem const& problem, int64_t image, bool prune)
        : mShape(problem.shape)
        , mHeight(problem.rows * mShape.patch)
        , mWidth(problem.columns * mShape.patch)
        , mPrune(prune)
        , mLogits(decodeImage(problem, image))
    {
        for (int64_t pixel = 0; pixel < int64_t{mHeight} * mWidth; ++pixel)
        {
            mTop.push_back(rank(pixel));
        }
    }

    int32_t draw(int32_t row, int32_t column) const
    {
        Source const vertical = findSource(row, mShape.upsample);
        Source const horizontal = findSource(column, mShape.upsample);
        int64_t const upper = int64_t{vertical.first} * mWidth;
        int64_t const lower = int64_t{std::min(vertical.first + 1, mHeight - 1)} * mWidth;
        int32_t const left = horizontal.first;
        int32_t const right = std::min(left + 1, mWidth - 1);
        int64_t const corners[4] = {upper + left, upper + right, lower + left, lower + right};
        if (mShape.upsample == 1 || (mPrune && isUniform(corners)))
        {
            return mTop[static_cast<size_t>(corners[0])].best.index;
        }
        return interpolate(corners, vertical, horizontal);
    }

private:
    TopTwo rank(int64_t pixel) const
    {
        TopTwo top;
        for (int32_t k = 0; k < mShape.numClasses; ++k)
        {
            top.update(logit(k, pixel), k);
        }
        return top;
    }

    float logit(int32_t k, int64_t pixel) const
    {
        return mLogits[static_cast<size_t>(int64_t{k} * mHeight * mWidth + pixel)];
    }

    bool isUniform(int64_t const (&corners)[4]) const
    {
        int32_t const winner = mTop[static_cast<size_t>(corners[0])].best.index;
        return std::all_of(std::begin(corners), std::end(corners),
            [&](int64_t corner)
            {
                TopTwo const& top = mTop[static_cast<size_t>(corner)];
                return top.best.index == winner && top.isClear();
            });
    }

    int32_t interpolate(int64_t const (&corners)[4], Source const& vertical, Source const& horizontal) const
    {
        Maximum best;
        for (int32_t k = 0; k < mShape.numClasses; ++k)
        {
            float const left
                = blend(vertical.weightFirst, logit(k, corners[0]), vertical.weightSecond, logit(k, corners[2]));
            float const right
                = blend(vertical.weightFirst, logit(k, corners[1]), vertical.weightSecond, logit(k, corners[3]));
            best.update(blend(horizontal.weightFirst, left, horizontal.weightSecond, right), k);
        }
        return best.index;
    }

    DecodeShape const& mShape;
    int32_t mHeight;
    int32_t mWidth;
    bool mPrune;
    std::vector<float> mLogits; //!< [class][row][column]
    std::vector<TopTwo> mTop;   //!< [row][column]
};

void storeElement(void* data, int64_t index, float value, ElementType type)
{
    if (type == ElementType::kFLOAT)
    {
        static_cast<float*>(data)[index] = value;
    }
    else
    {
        static_cast<uint16_t*>(data)[index] = narrow(value, type);
    }
}

void storeClass(void* mask, int64_t index, int32_t value, MaskType type)
{
    switch (type)
    {
    case MaskType::kINT32:
        static_cast<int32_t*>(mask)[index] = value;
        break;
    case MaskType::kHALF:
        static_cast<uint16_t*>(mask)[index] = narrowHalf(static_cast<float>(value));
        break;
    case MaskType::kUINT8:
        static_cast<uint8_t*>(mask)[index] = static_cast<uint8_t>(value);
        break;
    }
}

} // namespace

void hostPatchDecode(DecodeProblem const& problem, void* logits)
{
    check(problem);
    int64_t index = 0; // [image][class][row][column]
    for (int64_t image = 0; image < problem.batch; ++image)
    {
        for (float const value : decodeImage(problem, image))
        {
            storeElement(logits, index++, value, problem.type);
        }
    }
}

void hostPatchDecodeMask(DecodeProblem const& problem, void* mask, MaskType maskType, bool prune)
{
    check(problem);
    int32_t const enlarged = problem.shape.upsample * problem.shape.patch;
    int64_t index = 0; // [image][row][column]
    for (int64_t image = 0; image < problem.batch; ++image)
    {
        MaskDrawer const drawer(problem, image, prune);
        for (int32_t row = 0; row < problem.rows * enlarged; ++row)
        {
            for (int32_t column = 0; column < problem.columns * enlarged; ++column)
            {
                storeClass(mask, index++, drawer.draw(row, column), maskType);
            }
        }
    }
}

} // namespace nrd
