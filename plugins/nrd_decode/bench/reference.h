/*
 * The host reference on rows of a setting: it is slow, so large settings are held against it on six rows of patches.
 */
#pragma once

#include "values.h"

#include "../tests/bounds.h"

#include <algorithm>

namespace nrd::bench
{

using test::Bytes;

//! Whole rows of patches of one image, decoded on the host. Where the rows above or below belong to the image too,
//! its first or last lines of the mask would depend on them and are left out.
class Strip
{
public:
    Strip(Setting const& setting, Values const& values, int32_t image, int32_t firstRow, int32_t rows)
        : mSetting(setting)
        , mImage(image)
        , mFirstRow(firstRow)
        , mRows(rows)
        , mData(values.shape(setting), setting.type, {1, rows, setting.columns()})
    {
        Draw const draw = values.onHost(setting, 0);
        fill(mData.theta, setting.channels(), rows, setting.columns(),
            [&](int32_t channel, int32_t row, int32_t column)
            {
                return draw.theta(image, channel, firstRow + row, column);
            });
        fill(mData.guidance, kWIDTH, rows * kPATCH, setting.columns() * kPATCH,
            [&](int32_t channel, int32_t y, int32_t x)
            {
                return draw.guidance(image, channel, firstRow * kPATCH + y, x);
            });
    }

    std::string name() const
    {
        return "image " + std::to_string(mImage) + ", rows of patches " + std::to_string(mFirstRow) + " to "
            + std::to_string(mFirstRow + mRows - 1);
    }

    //! Pixels of the whole mask `classes` that are wrong here; tensor cores may differ where two classes are close.
    int64_t countWrong(std::vector<int32_t> const& classes, bool exact)
    {
        if (mMask.empty())
        {
            mMask = mData.referenceMask(MaskType::kINT32);
        }
        Bytes const result = cutMask(classes);
        if (result == mMask)
        {
            return 0;
        }
        if (exact)
        {
            return countDifferent(result);
        }
        return test::countWrongPixels(mData, logits(), result, mMask, MaskType::kINT32);
    }

    //! Whether the strip's part of all logits is right: bit by bit, or within the bound of tensor cores.
    bool isRight(Bytes const& result, bool exact)
    {
        Bytes const part = cutLogits(result);
        if (exact)
        {
            if (mLogits.empty())
            {
                mLogits = mData.referenceLogits();
            }
            return test::firstDifference(part, mLogits, mSetting.type == ElementType::kFLOAT) < 0;
        }
        return logits().excess(part, mSetting.type) <= 0;
    }

private:
    template <class Value>
    void fill(Bytes& bytes, int32_t channels, int32_t rows, int32_t columns, Value const& value) const
    {
        size_t index = 0; // [channel][row][column]
        for (int32_t channel = 0; channel < channels; ++channel)
        {
            for (int32_t row = 0; row < rows; ++row)
            {
                for (int32_t column = 0; column < columns; ++column, ++index)
                {
                    store(bytes, index, value(channel, row, column));
                }
            }
        }
    }

    void store(Bytes& bytes, size_t index, float value) const
    {
        if (mSetting.type == ElementType::kFLOAT)
        {
            std::memcpy(&bytes[index * sizeof(value)], &value, sizeof(value));
            return;
        }
        uint16_t const bits = narrow(value, mSetting.type);
        std::memcpy(&bytes[index * sizeof(bits)], &bits, sizeof(bits));
    }

    test::ReferenceLogits const& logits()
    {
        if (!mExact)
        {
            mExact = std::make_unique<test::ReferenceLogits>(mData);
        }
        return *mExact;
    }

    //! The strip's lines of the mask as int32; those that are left out are the reference's.
    Bytes cutMask(std::vector<int32_t> const& classes) const
    {
        Bytes part = mMask;
        int64_t const lines = int64_t{mRows} * kSTRIDE;
        int64_t const top = mFirstRow == 0 ? 0 : kUPSAMPLE / 2;
        int64_t const bottom = lines - (mFirstRow + mRows == mSetting.rows() ? 0 : kUPSAMPLE / 2);
        int64_t const width = mSetting.size.width;
        int64_t const from = (int64_t{mImage} * mSetting.size.height + mFirstRow * kSTRIDE + top) * width;
        std::memcpy(&part[static_cast<size_t>(top * width) * sizeof(int32_t)], &classes[static_cast<size_t>(from)],
            static_cast<size_t>((bottom - top) * width) * sizeof(int32_t));
        return part;
    }

    Bytes cutLogits(Bytes const& all) const
    {
        auto const size = static_cast<size_t>(elementSize(mSetting.type));
        int64_t const width = int64_t{mSetting.columns()} * kPATCH;
        int64_t const height = int64_t{mSetting.rows()} * kPATCH;
        auto const count = static_cast<size_t>(mRows * kPATCH * width) * size;
        Bytes part;
        for (int64_t k = 0; k < mSetting.size.classes; ++k)
        {
            int64_t const line = (mImage * int64_t{mSetting.size.classes} + k) * height + mFirstRow * kPATCH;
            auto const begin = all.begin() + static_cast<std::ptrdiff_t>(static_cast<size_t>(line * width) * size);
            part.insert(part.end(), begin, begin + static_cast<std::ptrdiff_t>(count));
        }
        return part;
    }

    int64_t countDifferent(Bytes const& result) const
    {
        int64_t different = 0;
        for (int64_t pixel = 0; pixel < mData.nbPixels(); ++pixel)
        {
            different += test::classAt(result, MaskType::kINT32, pixel) == test::classAt(mMask, MaskType::kINT32, pixel)
                ? 0
                : 1;
        }
        return different;
    }

    Setting mSetting;
    int32_t mImage;
    int32_t mFirstRow;
    int32_t mRows;
    test::Data mData;
    Bytes mMask;   //!< int32, computed when it is needed, as what follows
    Bytes mLogits; //!< of the setting's type
    std::unique_ptr<test::ReferenceLogits> mExact;
};

//! Strips of a setting: all rows of the first and the last image where they are few, else two at the top, in the middle
//! and at the bottom of different images.
inline std::vector<Strip> makeStrips(Setting const& setting, Values const& values)
{
    int32_t const rows = setting.rows();
    int32_t const last = setting.batch - 1;
    std::vector<Strip> strips;
    if (rows <= 4)
    {
        strips.emplace_back(setting, values, 0, 0, rows);
        if (last > 0)
        {
            strips.emplace_back(setting, values, last, 0, rows);
        }
        return strips;
    }
    strips.emplace_back(setting, values, 0, 0, 2);
    strips.emplace_back(setting, values, last / 2, rows / 2 - 1, 2);
    strips.emplace_back(setting, values, last, rows - 2, 2);
    return strips;
}

} // namespace nrd::bench
