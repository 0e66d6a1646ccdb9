/*
 * Every way in which the fields of an op can be wrong, and the message that each gets; and the forms that are right.
 */
#include "check.h"
#include "fake_runtime.h"
#include "plugins.h"

#include <functional>
#include <limits>

using namespace nrd::test;
using nvinfer1::PluginFieldType;

namespace
{

using Spoil = std::function<void(Fields&)>;

//! The creator refuses and says `message`, to the logger and with the op's name.
void expectRefusal(bool isMask, Spoil const& spoil, std::string const& message)
{
    Fields fields = makeFields(releasedShape(), isMask ? "half" : nullptr);
    spoil(fields);
    takeFakeLog();
    Plugin const plugin = create(fields, isMask);
    std::string const log = takeFakeLog();
    CHECK_IN(!plugin, "a plugin was made despite: " + message);
    std::string const expected = std::string(isMask ? "NrdPatchDecodeMask: " : "NrdPatchDecode: ") + message + "\n";
    CHECK_IN(log == expected, "got '" + log + "', expected '" + expected + "'");
}

void expectRefusals(Spoil const& spoil, std::string const& message)
{
    expectRefusal(false, spoil, message);
    expectRefusal(true, spoil, message);
}

//! An integer of a value that the op cannot have.
Spoil value(char const* name, int32_t wrong)
{
    return [=](Fields& fields)
    {
        fields.remove(name).integer(name, wrong);
    };
}

template <typename T>
Spoil typed(char const* name, PluginFieldType type, std::vector<T> const& values)
{
    return [=](Fields& fields)
    {
        fields.remove(name).template add<T>(name, type, values);
    };
}

void testValues()
{
    expectRefusals(value("num_classes", 1), "num_classes: got 1, expected 2 to 256");
    expectRefusals(value("num_classes", 257), "num_classes: got 257, expected 2 to 256");
    expectRefusals(value("hidden", 24), "hidden: got 24, expected 8, 16 or 32");
    expectRefusals(value("guidance_channels", 0), "guidance_channels: got 0, expected 8, 16 or 32");
    expectRefusals(value("patch", 2), "patch: got 2, expected 4, 8 or 16");
    expectRefusals(value("patch", -8), "patch: got -8, expected 4, 8 or 16");
    expectRefusal(true, value("upsample", 3), "upsample: got 3, expected 1, 2, 4 or 8");
    expectRefusals(typed<int64_t>("hidden", PluginFieldType::kINT64, {4294967312}), // 16 in its lower half
        "hidden: got 4294967312, expected a number of 32 bits");
    for (std::string const word : {"uint8", "", "int3", "int32x"})
    {
        expectRefusal(
            true,
            [&](Fields& fields)
            {
                fields.remove("mask_type").text("mask_type", word);
            },
            "mask_type: got '" + word + "', expected int32, half or u8x4");
    }
}

void testTables()
{
    float const nan = std::numeric_limits<float>::quiet_NaN();
    std::string const expected = ", expected a finite number of 32 bits";
    expectRefusals(typed<float>("x_table", PluginFieldType::kFLOAT32, {0, 1, 2, nan, 4, 5, 6, 7}),
        "x_table[3]: got nan" + expected);
    expectRefusals(typed<double>("y_table", PluginFieldType::kFLOAT64, {0, 1, 2, 3, 4, 5, 6, -1e39}),
        "y_table[7]: got -inf" + expected);
    expectRefusals(
        typed<float>("x_table", PluginFieldType::kFLOAT32, {0, 1, 2, 3, 4, 5, 6}), "x_table: got 7 values, expected 8");
    expectRefusals(value("patch", 4), "x_table: got 8 values, expected 4");
}

void testTypes()
{
    expectRefusals(typed<float>("num_classes", PluginFieldType::kFLOAT32, {19}),
        "num_classes: got type FLOAT32, expected one INT32 or INT64");
    expectRefusals(
        typed<int16_t>("patch", PluginFieldType::kINT16, {8}), "patch: got type INT16, expected one INT32 or INT64");
    expectRefusals(typed<int32_t>("y_table", PluginFieldType::kINT32, {0, 1, 2, 3, 4, 5, 6, 7}),
        "y_table: got type INT32, expected FLOAT32 or FLOAT64, as many as patch says");
    expectRefusal(true, typed<int32_t>("mask_type", PluginFieldType::kINT32, {1}),
        "mask_type: got type INT32, expected a CHAR string");
    expectRefusals(typed<int32_t>("hidden", PluginFieldType::kINT32, {16, 16}), "hidden: got 2 values, expected 1");
    expectRefusals(typed<int32_t>("hidden", PluginFieldType::kINT32, {}), "hidden: got 0 values, expected 1");
    expectRefusals(
        [](Fields& fields)
        {
            fields.at("hidden").length = -1;
        },
        "hidden: got -1 values, expected 1");
    expectRefusal(
        true,
        [](Fields& fields)
        {
            fields.at("mask_type").length = -1;
        },
        "mask_type: got -1 values, expected 1");
}

void testNames()
{
    for (char const* const name : {"num_classes", "hidden", "guidance_channels", "patch"})
    {
        expectRefusals(
            [&](Fields& fields)
            {
                fields.remove(name);
            },
            std::string(name) + ": got nothing, expected one INT32 or INT64");
        expectRefusals(
            [&](Fields& fields)
            {
                fields.at(name).data = nullptr;
            },
            std::string(name) + ": got no data, expected one INT32 or INT64");
        expectRefusals(
            [&](Fields& fields)
            {
                fields.integer(name, 8);
            },
            std::string(name) + ": got it twice, expected it once");
    }
    for (char const* const name : {"x_table", "y_table"})
    {
        expectRefusals(
            [&](Fields& fields)
            {
                fields.remove(name);
            },
            std::string(name) + ": got nothing, expected FLOAT32 or FLOAT64, as many as patch says");
    }
    expectRefusal(
        true,
        [](Fields& fields)
        {
            fields.remove("upsample");
        },
        "upsample: got nothing, expected one INT32 or INT64");
    expectRefusal(
        true,
        [](Fields& fields)
        {
            fields.remove("mask_type");
        },
        "mask_type: got nothing, expected a CHAR string");
    expectRefusal(
        false,
        [](Fields& fields)
        {
            fields.integer("upsample", 4);
        },
        "upsample: got an unknown attribute, expected only num_classes, hidden, guidance_channels, patch, x_table, "
        "y_table");
    expectRefusal(
        true,
        [](Fields& fields)
        {
            fields.integer("upsamle", 4);
        },
        "upsamle: got an unknown attribute, expected only num_classes, hidden, guidance_channels, patch, upsample, "
        "x_table, y_table, mask_type");
    expectRefusals(
        [](Fields& fields)
        {
            fields.at("hidden").name = nullptr;
        },
        "attributes: got one without a name, expected names");
}

void testCollections()
{
    auto* const creator = creatorOf("NrdPatchDecode");
    nvinfer1::PluginFieldCollection const broken{3, nullptr};
    nvinfer1::PluginFieldCollection const negative{-1, nullptr};
    for (auto const* const collection : {&broken, &negative})
    {
        takeFakeLog();
        CHECK(creator->createPlugin("test", collection, nvinfer1::TensorRTPhase::kBUILD) == nullptr);
        CHECK(std::string(takeFakeLog()).find("attributes: got a broken list") != std::string::npos);
    }
    CHECK(creator->createPlugin("test", nullptr, nvinfer1::TensorRTPhase::kBUILD) == nullptr);
    CHECK(std::string(takeFakeLog()) == "NrdPatchDecode: attributes: got no fields, expected some\n");
}

//! Other types with the same values, NUL characters at the end and the parser's bookkeeping change nothing.
void testAcceptedForms()
{
    nrd::DecodeShape const shape = releasedShape();
    Plugin const plain = create(makeFields(shape, "u8x4"), true);
    Fields wide;
    wide.text("plugin_namespace", "nrd").text("plugin_version", "1").text("mask_type", std::string("u8x4\0\0", 6));
    wide.add<double>("y_table", PluginFieldType::kFLOAT64, {shape.yTable, shape.yTable + shape.patch});
    wide.add<double>("x_table", PluginFieldType::kFLOAT64, {shape.xTable, shape.xTable + shape.patch});
    wide.add<int64_t>("upsample", PluginFieldType::kINT64, {4});
    wide.add<int64_t>("patch", PluginFieldType::kINT64, {8});
    wide.add<int64_t>("guidance_channels", PluginFieldType::kINT64, {16});
    wide.add<int64_t>("hidden", PluginFieldType::kINT64, {16});
    wide.add<int64_t>("num_classes", PluginFieldType::kINT64, {19});
    Plugin const other = create(wide, true);
    REQUIRE(plain && other);
    CHECK(fingerprint(*plain.runtime->getFieldsToSerialize()) == fingerprint(*other.runtime->getFieldsToSerialize()));
    CHECK(std::string(plain.build->getTimingCacheID()) == other.build->getTimingCacheID());
}

//! Valid constants make plugins, and different ones have different timing-cache ids.
void testRange()
{
    std::vector<std::string> ids;
    for (int32_t const k : {2, 3, 19, 150, 256})
    {
        for (int32_t const d : {8, 16, 32})
        {
            for (int32_t const f : {4, 8, 16})
            {
                for (char const* const maskType : {"int32", "half", "u8x4"})
                {
                    Plugin const plugin = create(makeFields(makeShape(k, d, 16, f, 2), maskType), true);
                    REQUIRE(plugin);
                    ids.emplace_back(plugin.build->getTimingCacheID());
                }
            }
        }
    }
    for (int32_t const m : {8, 32})
    {
        for (int32_t const s : {1, 4, 8})
        {
            Plugin const plugin = create(makeFields(makeShape(19, 16, m, 8, s), "half"), true);
            REQUIRE(plugin);
            ids.emplace_back(plugin.build->getTimingCacheID());
        }
    }
    nrd::DecodeShape shape = releasedShape();
    shape.yTable[7] = -shape.yTable[7];
    ids.emplace_back(create(makeFields(shape, "half"), true).build->getTimingCacheID());
    ids.emplace_back(create(makeFields(shape), false).build->getTimingCacheID());
    ids.emplace_back(create(makeFields(releasedShape(), "half"), true).build->getTimingCacheID());
    std::sort(ids.begin(), ids.end());
    CHECK(std::adjacent_find(ids.begin(), ids.end()) == ids.end());
}

} // namespace

int main()
{
    setFakeVersion(NV_TENSORRT_MAJOR * 10000 + 300);
    setLoggerFinder(fakeFinder());
    testValues();
    testTables();
    testTypes();
    testNames();
    testCollections();
    testAcceptedForms();
    testRange();
    return result();
}
