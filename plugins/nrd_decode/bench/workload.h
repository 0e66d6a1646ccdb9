/*
 * The tensors of one setting on the device, in so many sets that the cache cannot hold them, and launches on them.
 */
#pragma once

#include "decode_kernel.h"
#include "timing.h"
#include "values.h"

namespace nrd::bench
{

constexpr int64_t kALIGNMENT = 256; // of cudaMalloc; also the guard around an output
constexpr int32_t kFILL_THREADS = 256;

//! A tensor to fill: (batch, channels, rows, columns).
struct Target
{
    void* data;
    TensorView view;
    ElementType type;
    int32_t batch;
    int32_t channels;
    int32_t rows;
    int32_t columns;

    int64_t count() const
    {
        return static_cast<int64_t>(batch) * channels * rows * columns;
    }
};

//! One thread per element, in NCHW order.
template <bool kTHETA>
__global__ void fillKernel(Draw draw, Target target)
{
    int64_t index = static_cast<int64_t>(blockIdx.x) * kFILL_THREADS + threadIdx.x;
    int32_t const column = static_cast<int32_t>(index % target.columns);
    index /= target.columns;
    int32_t const row = static_cast<int32_t>(index % target.rows);
    index /= target.rows;
    int32_t const channel = static_cast<int32_t>(index % target.channels);
    int32_t const image = static_cast<int32_t>(index / target.channels);
    if (image >= target.batch)
    {
        return;
    }
    float const value = kTHETA ? draw.theta(image, channel, row, column) : draw.guidance(image, channel, row, column);
    TensorView const& view = target.view;
    int64_t const offset = image * view.batchStride + channel * view.channelStride
        + (static_cast<int64_t>(row) * target.columns + column) * view.pixelStride;
    if (target.type == ElementType::kFLOAT)
    {
        static_cast<float*>(target.data)[offset] = value;
    }
    else
    {
        static_cast<uint16_t*>(target.data)[offset] = narrow(value, target.type);
    }
}

class Workload
{
public:
    //! `cacheBytes`: the inputs of all sets take more than four times as much.
    //! `outputBytes`: the most that a launch writes.
    Workload(
        Setting const& setting, Values const& values, int64_t cacheBytes, int64_t outputBytes, Stream const& stream)
        : mSetting(setting)
        , mValues(values)
        , mStream(stream)
        , mThetaBytes(align(setting.patches() * pitchOf(setting.theta, setting.channels()) * elementSize(setting.type)))
        , mSetBytes(mThetaBytes + align(setting.cells() * kWIDTH * elementSize(setting.type)))
        , mOutputBytes(align(outputBytes) + 2 * kALIGNMENT)
        , mSets(static_cast<int32_t>(std::max<int64_t>(2, 4 * cacheBytes / setting.inputBytes() + 1)))
        , mOutputSets(static_cast<int32_t>(std::min<int64_t>(mSets, 4 * cacheBytes / outputBytes + 1)))
        , mInputs(static_cast<size_t>(mSets * mSetBytes))
        , mOutputs(static_cast<size_t>(mOutputSets * mOutputBytes))
    {
        // Padding is NaN: a kernel that reads it shows.
        check(cudaMemsetAsync(mInputs.at(), 0xFF, static_cast<size_t>(mSets * mSetBytes), stream), "cudaMemsetAsync");
        for (int32_t set = 0; set < mSets; ++set)
        {
            fill<true>(set, setting.channels(), setting.rows(), setting.columns());
            fill<false>(set, kWIDTH, setting.rows() * kPATCH, setting.columns() * kPATCH);
        }
        stream.synchronize();
    }

    Setting const& setting() const
    {
        return mSetting;
    }
    int32_t sets() const
    {
        return mSets;
    }
    //! Of the decode's grid.
    int64_t blocks() const
    {
        return countBlocks(makeProblem(0, kUPSAMPLE));
    }
    Stream const& stream() const
    {
        return mStream;
    }

    //! Whether a kernel of that variant exists for the job on this device.
    bool supports(Job const& job) const
    {
        DecodeShape const shape = mValues.shape(mSetting);
        return job.op == Op::kMASK ? supportsMask(shape, mSetting.type, job.variant)
                                   : supportsLogits(shape, mSetting.type, job.variant);
    }

    void launch(Job const& job, int32_t set) const
    {
        DecodeProblem const problem = makeProblem(set, kUPSAMPLE);
        CUresult const status = job.op == Op::kMASK
            ? patchDecodeMask(problem, output(set), job.maskType, job.variant, job.prune, mStream)
            : patchDecode(problem, output(set), job.variant, mStream);
        check(status, std::string(nameOf(job.op)) + " by " + nameOf(job.variant));
    }

    //! The first set's result, written over `poison`, with the guards before and behind it.
    std::vector<unsigned char> run(Job const& job, int32_t poison) const
    {
        std::vector<unsigned char> result(static_cast<size_t>(job.outputBytes(mSetting) + 2 * kALIGNMENT));
        check(cudaMemsetAsync(mOutputs.at(), poison, result.size(), mStream), "cudaMemsetAsync");
        launch(job, 0);
        check(cudaMemcpyAsync(result.data(), mOutputs.at(), result.size(), cudaMemcpyDeviceToHost, mStream),
            "cudaMemcpyAsync");
        mStream.synchronize();
        return result;
    }

    //! Share of cells, each between four neighbouring logits, whose corners' largest logits are of different classes.
    double mixedShare() const
    {
        std::vector<unsigned char> winners(static_cast<size_t>(mSetting.cells()));
        CUresult const status = patchDecodeMask(
            makeProblem(0, 1), output(0), MaskType::kUINT8, Variant::kAUTO, true, mStream); // s = 1: one pixel each
        check(status, "leading classes");
        check(cudaMemcpyAsync(winners.data(), output(0), winners.size(), cudaMemcpyDeviceToHost, mStream),
            "cudaMemcpyAsync");
        mStream.synchronize();
        return countMixed(winners);
    }

private:
    static int64_t align(int64_t bytes)
    {
        return (bytes + kALIGNMENT - 1) / kALIGNMENT * kALIGNMENT;
    }

    int64_t pitchOf(Layout layout, int64_t channels) const
    {
        bool const padded = layout == Layout::kCHANNELS_LAST && mSetting.type != ElementType::kFLOAT;
        return padded ? (channels + 7) / 8 * 8 : channels;
    }

    unsigned char* output(int32_t set) const
    {
        return mOutputs.at(static_cast<size_t>(set % mOutputSets * mOutputBytes + kALIGNMENT));
    }

    TensorView viewOf(Layout layout, void const* data, int64_t channels, int64_t rows, int64_t columns) const
    {
        return layout == Layout::kPLANAR ? planar(data, channels, rows, columns)
                                         : channelsLast(data, rows, columns, pitchOf(layout, channels));
    }

    DecodeProblem makeProblem(int32_t set, int32_t upsample) const
    {
        int64_t const rows = mSetting.rows();
        int64_t const columns = mSetting.columns();
        auto* const theta = mInputs.at(static_cast<size_t>(set * mSetBytes));
        return {mValues.shape(mSetting, upsample), mSetting.type, mSetting.batch, mSetting.rows(), mSetting.columns(),
            viewOf(mSetting.theta, theta, mSetting.channels(), rows, columns),
            viewOf(mSetting.guidance, theta + mThetaBytes, kWIDTH, rows * kPATCH, columns * kPATCH)};
    }

    template <bool kTHETA>
    void fill(int32_t set, int32_t channels, int32_t rows, int32_t columns) const
    {
        DecodeProblem const problem = makeProblem(set, kUPSAMPLE);
        TensorView const view = kTHETA ? problem.theta : problem.guidance;
        Target const target{const_cast<void*>(view.data), view, mSetting.type, mSetting.batch, channels, rows, columns};
        int64_t const blocks = (target.count() + kFILL_THREADS - 1) / kFILL_THREADS;
        launchKernel(fillKernel<kTHETA>, blocks, kFILL_THREADS, mStream, mValues.onDevice(mSetting, set), target);
    }

    double countMixed(std::vector<unsigned char> const& winners) const
    {
        int64_t const height = static_cast<int64_t>(mSetting.rows()) * kPATCH;
        int64_t const width = static_cast<int64_t>(mSetting.columns()) * kPATCH;
        int64_t mixed = 0;
        for (int64_t line = 0; line < mSetting.batch * height; ++line)
        {
            auto const* const upper = &winners[static_cast<size_t>(line * width)]; // [image][row][column]
            for (int64_t x = 0; x + 1 < width && (line + 1) % height != 0; ++x)
            {
                auto const* const lower = upper + width;
                bool const same = upper[x] == upper[x + 1] && upper[x] == lower[x] && upper[x] == lower[x + 1];
                mixed += same ? 0 : 1;
            }
        }
        return static_cast<double>(mixed) / static_cast<double>(mSetting.batch * (height - 1) * (width - 1));
    }

    Setting mSetting;
    Values const& mValues;
    Stream const& mStream;
    int64_t mThetaBytes;
    int64_t mSetBytes;
    int64_t mOutputBytes;
    int32_t mSets;
    int32_t mOutputSets;
    Memory mInputs;
    Memory mOutputs;
};

} // namespace nrd::bench
