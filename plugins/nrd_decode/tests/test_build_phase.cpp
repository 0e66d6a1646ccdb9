/*
 * What a builder asks a plugin: types, shapes, formats, configuration and tactics. It needs no GPU.
 */
#include "ops.h"

#include <functional>
#include <set>

using namespace nrd::test;

namespace
{

void testOutputTypes()
{
    for (Case c : allOps())
    {
        Plugin const plugin = make(c);
        for (DataType const type : {DataType::kFLOAT, DataType::kHALF, DataType::kBF16})
        {
            c.type = type;
            DataType const inputs[2] = {type, type};
            DataType output{DataType::kBOOL};
            CHECK(plugin.build->getOutputDataTypes(&output, 1, inputs, 2) == 0);
            CHECK(output == c.outputType());
        }
        DataType output{};
        DataType const mixed[2] = {DataType::kHALF, DataType::kFLOAT};
        expectFailure(plugin.build->getOutputDataTypes(&output, 1, mixed, 2), "guidance: got another type than theta");
        DataType const integers[2] = {DataType::kINT8, DataType::kINT8};
        expectFailure(plugin.build->getOutputDataTypes(&output, 1, integers, 2), "got data type 2, expected FLOAT");
        expectFailure(plugin.build->getOutputDataTypes(&output, 1, mixed, 3), "got 3 inputs and 1 outputs");
    }
}

//! Sizes of theta and guidance; those in `known` are constants, as bits of axis and of axis + 4.
struct ShapeQuestion
{
    std::array<int64_t, 4> theta;
    std::array<int64_t, 4> guidance;
    uint32_t known;

    std::array<nvinfer1::DimsExprs, 2> build(ExpressionBuilder& builder) const
    {
        std::array<nvinfer1::DimsExprs, 2> inputs{};
        for (uint32_t i = 0; i < 8; ++i)
        {
            int64_t const value = i < 4 ? theta[i] : guidance[i - 4];
            auto& input = inputs[i / 4];
            input.d[input.nbDims++] = ((known >> i) & 1U) != 0 ? builder.known(value) : builder.runtime(value);
        }
        return inputs;
    }
};

ShapeQuestion question(Case const& c, uint32_t known)
{
    int64_t const f = c.shape.patch;
    return {{c.batch, c.channels(), c.rows, c.columns}, {c.batch, c.shape.guidanceChannels, f * c.rows, f * c.columns},
        known};
}

constexpr uint32_t kALL_KNOWN = 0xFF;

void testShapes()
{
    for (Case const& c : allOps())
    {
        Plugin const plugin = make(c);
        auto const expected = describe(c)[2].dims;
        for (uint32_t known = 0; known <= kALL_KNOWN; ++known)
        {
            ExpressionBuilder builder;
            auto const inputs = question(c, known).build(builder);
            nvinfer1::DimsExprs output{};
            REQUIRE(plugin.build->getOutputShapes(inputs.data(), 2, nullptr, 0, &output, 1, builder) == 0);
            REQUIRE(output.nbDims == expected.nbDims);
            for (int32_t i = 0; i < output.nbDims; ++i)
            {
                CHECK(ExpressionBuilder::valueOf(output.d[i]) == expected.d[i]);
            }
        }
    }
}

//! A wrong size is refused where it is constant, and left to onShapeChange where it is not.
void testWrongShapes()
{
    struct Wrong
    {
        size_t position;
        char const* message;
    };
    for (Case const& c : allOps())
    {
        Plugin const plugin = make(c);
        for (Wrong const& wrong : {Wrong{1, "theta: got "}, Wrong{4, "guidance: got 3 images, expected 2 as in theta"},
                 Wrong{5, " (guidance_channels)"}, Wrong{6, " rows, expected "}, Wrong{7, " columns, expected "}})
        {
            ShapeQuestion asked = question(c, kALL_KNOWN);
            (wrong.position < 4 ? asked.theta[wrong.position] : asked.guidance[wrong.position - 4]) += 1;
            ExpressionBuilder builder;
            nvinfer1::DimsExprs output{};
            auto const constant = asked.build(builder);
            expectFailure(
                plugin.build->getOutputShapes(constant.data(), 2, nullptr, 0, &output, 1, builder), wrong.message);
            asked.known = kALL_KNOWN & ~(1U << wrong.position);
            auto const open = asked.build(builder);
            CHECK(plugin.build->getOutputShapes(open.data(), 2, nullptr, 0, &output, 1, builder) == 0);
        }
        ExpressionBuilder builder;
        nvinfer1::DimsExprs output{};
        auto inputs = question(c, 0).build(builder);
        expectFailure(plugin.build->getOutputShapes(inputs.data(), 1, nullptr, 0, &output, 1, builder), "got 1 inputs");
        inputs[0].nbDims = 3;
        expectFailure(plugin.build->getOutputShapes(inputs.data(), 2, nullptr, 0, &output, 1, builder),
            "theta: got 3 dimensions, expected 4");
    }
}

//! Walk all types and formats as TensorRT does, position by position; the accepted combinations are exactly these.
void testFormats()
{
    using Combination = std::array<std::pair<DataType, TensorFormat>, 3>;
    for (Case c : allOps())
    {
        Plugin const plugin = make(c);
        std::set<Combination> expected;
        for (DataType const type : {DataType::kFLOAT, DataType::kHALF, DataType::kBF16})
        {
            TensorFormat const last = type == DataType::kFLOAT ? TensorFormat::kHWC : TensorFormat::kHWC8;
            c.type = type;
            for (TensorFormat const theta : {TensorFormat::kLINEAR, last})
            {
                for (TensorFormat const guidance : {TensorFormat::kLINEAR, last})
                {
                    expected.insert({{{type, theta}, {type, guidance}, {c.outputType(), TensorFormat::kLINEAR}}});
                }
            }
        }
        std::set<Combination> accepted;
        std::array<nvinfer1::DynamicPluginTensorDesc, 3> tensors{};
        std::function<void(size_t)> const walk = [&](size_t position)
        {
            for (int32_t type = 0; type <= 9; ++type)
            {
                for (int32_t format = 0; format <= 12; ++format)
                {
                    tensors[position].desc.type = static_cast<DataType>(type);
                    tensors[position].desc.format = static_cast<TensorFormat>(format);
                    if (!plugin.build->supportsFormatCombination(static_cast<int32_t>(position), tensors.data(), 2, 1))
                    {
                        continue;
                    }
                    if (position < 2)
                    {
                        walk(position + 1);
                        continue;
                    }
                    Combination found;
                    for (size_t i = 0; i < 3; ++i)
                    {
                        found[i] = {tensors[i].desc.type, tensors[i].desc.format};
                    }
                    accepted.insert(found);
                }
            }
        };
        walk(0);
        CHECK(accepted == expected);
        CHECK(!plugin.build->supportsFormatCombination(0, tensors.data(), 3, 1));
        CHECK(!plugin.build->supportsFormatCombination(3, tensors.data(), 2, 1));
        CHECK(static_cast<int32_t>(accepted.size()) <= plugin.build->getFormatCombinationLimit());
    }
}

void testConfigure()
{
    for (Case const& c : allOps())
    {
        Plugin const plugin = make(c);
        auto const tensors = describeForBuild(c);
        CHECK(plugin.build->configurePlugin(tensors.data(), 2, &tensors[2], 1) == 0);
        auto wrong = tensors;
        wrong[1].desc.dims.d[1] += 8;
        expectFailure(plugin.build->configurePlugin(wrong.data(), 2, &wrong[2], 1), " (guidance_channels)");
        wrong = tensors;
        wrong[0].max = dims({1 << 16, c.channels(), 1 << 15, 1}); // 2^31
        expectFailure(plugin.build->configurePlugin(wrong.data(), 2, &wrong[2], 1), "more than 2^31-1 locations");
        wrong[0].max.d[0] -= 1;
        CHECK(plugin.build->configurePlugin(wrong.data(), 2, &wrong[2], 1) == 0);
        wrong[0].max = dims({int64_t{1} << 30, c.channels(), int64_t{1} << 34, 1}); // 0 in 64 bits
        expectFailure(plugin.build->configurePlugin(wrong.data(), 2, &wrong[2], 1), "more than 2^31-1 locations");
        expectFailure(plugin.build->configurePlugin(tensors.data(), 3, &tensors[2], 1), "got 3 inputs");
    }
}

//! Without a GPU only TensorRT's default; with one, unique numbers that setTactic takes.
void testTactics()
{
    for (Case const& c : allOps())
    {
        Plugin const plugin = make(c);
        CHECK(plugin.build->getNbTactics() == 0); // the type is not known yet
        auto const tensors = describeForBuild(c);
        CHECK(plugin.build->configurePlugin(tensors.data(), 2, &tensors[2], 1) == 0);
        int32_t const count = plugin.build->getNbTactics();
        std::vector<int32_t> tactics(static_cast<size_t>(count), -1);
        CHECK(plugin.build->getValidTactics(tactics.data(), count) == 0);
        std::set<int32_t> const unique(tactics.begin(), tactics.end());
        CHECK(unique.size() == tactics.size() && unique.count(0) == 0);
        CHECK(hasDevice() ? count > 0 : count == 0);
        expectFailure(plugin.build->getValidTactics(tactics.data(), count + 1), "tactics: got room for");
        expectFailure(plugin.runtime->setTactic(-1), "tactic: got -1, expected 0 to 5");
        expectFailure(plugin.runtime->setTactic(6), "tactic: got 6, expected 0 to 5");
        for (int32_t const tactic : tactics)
        {
            CHECK(plugin.runtime->setTactic(tactic) == 0);
        }
        CHECK(std::string(takeFakeLog()).empty());
    }
}

} // namespace

int main()
{
    listen();
    testOutputTypes();
    testShapes();
    testWrongShapes();
    testFormats();
    testConfigure();
    testTactics();
    return result();
}
