/*
 * A plugin's life as TensorRT leads it, up to the first launch: creator, sizes, clone, serialised fields, recreation and
 * attachment. It needs no GPU; where there is none, attaching must say so.
 */
#include "ops.h"

#include <set>

using namespace nrd::test;

namespace
{

void testCreators()
{
    int32_t count = 0;
    auto const* const creators = getCreators(count);
    REQUIRE(count == 2 && creators != nullptr);
    CHECK(creatorOf("NrdPatchDecode") != nullptr && creatorOf("NrdPatchDecodeMask") != nullptr);
    CHECK(getCreators(count) == creators);
    for (char const* const name : {"NrdPatchDecode", "NrdPatchDecodeMask"})
    {
        auto* const creator = creatorOf(name);
        CHECK(std::string(creator->getPluginNamespace()) == "nrd");
        CHECK(std::string(creator->getPluginVersion()) == "1");
        CHECK(std::string(creator->getInterfaceInfo().kind) == "PLUGIN CREATOR_V3ONE");
        auto const* const fields = creator->getFieldNames();
        std::set<std::string> names;
        for (int32_t i = 0; i < fields->nbFields; ++i)
        {
            names.insert(fields->fields[i].name);
        }
        std::set<std::string> expected{"num_classes", "hidden", "guidance_channels", "patch", "x_table", "y_table"};
        if (std::string(name) == "NrdPatchDecodeMask")
        {
            expected.insert({"upsample", "mask_type"});
        }
        CHECK(names == expected);
    }
}

void testIdentity()
{
    for (Case const& c : allOps())
    {
        Plugin const plugin = make(c);
        REQUIRE(plugin && plugin.core != nullptr && plugin.build != nullptr && plugin.runtime != nullptr);
        CHECK(std::string(plugin.core->getPluginName()) == (c.isMask() ? "NrdPatchDecodeMask" : "NrdPatchDecode"));
        CHECK(std::string(plugin.core->getPluginNamespace()) == "nrd");
        CHECK(std::string(plugin.core->getPluginVersion()) == "1");
        CHECK(plugin.build->getNbOutputs() == 1);
        CHECK(plugin.build->getWorkspaceSize(nullptr, 2, nullptr, 1) == 0);
        CHECK(contains(plugin.build->getMetadataString(), "num_classes=" + std::to_string(c.shape.numClasses)));
        CHECK(contains(plugin.build->getTimingCacheID(), "kernel_revision=" + std::to_string(nrd::kKERNEL_REVISION)));
    }
}

void testShapeChange()
{
    struct Wrong
    {
        size_t tensor;
        int32_t axis;
        char const* message;
    };
    for (Case const& c : allOps())
    {
        Plugin const plugin = make(c);
        auto const change = [&](auto const& tensors)
        {
            return plugin.runtime->onShapeChange(tensors.data(), 2, &tensors[2], 1);
        };
        auto const good = describe(c);
        CHECK(change(good) == 0);
        for (Wrong const& wrong : {Wrong{0, 1, "theta: got"}, Wrong{1, 0, "guidance: got 3 images"},
                 Wrong{1, 1, "guidance: got"}, Wrong{1, 2, "guidance: got"}, Wrong{1, 3, "guidance: got"},
                 Wrong{2, 0, "output: got 3 images"}, Wrong{2, 1, "output: got"}, Wrong{2, 2, "output: got"}})
        {
            auto bad = good;
            bad[wrong.tensor].dims.d[wrong.axis] += 1;
            expectFailure(change(bad), wrong.message);
        }
        auto bad = good;
        bad[1].type = DataType::kHALF;
        expectFailure(change(bad), "guidance: got another type than theta");
        bad = good;
        bad[0].format = TensorFormat::kCHW32;
        expectFailure(change(bad), "theta: got memory format 5");
        bad = good;
        bad[2].format = TensorFormat::kHWC;
        expectFailure(change(bad), "output: got another type or memory format");
        Case empty = c;
        empty.batch = 0;
        CHECK(change(describe(empty)) == 0);
        CHECK(std::string(takeFakeLog()).empty());
    }
}

//! Clones and recreated plugins are the same plugin, also after the original is gone.
void testCopies()
{
    for (Case const& c : allOps())
    {
        std::string fields;
        std::string id;
        Plugin copy(nullptr);
        Plugin recreated(nullptr);
        {
            Plugin const original = make(c);
            fields = fingerprint(*original.runtime->getFieldsToSerialize());
            id = original.build->getTimingCacheID();
            copy = Plugin(original.object->clone());
            auto* const creator = creatorOf(original.core->getPluginName());
            auto const* const stored = original.runtime->getFieldsToSerialize();
            recreated = Plugin(creator->createPlugin("engine", stored, nvinfer1::TensorRTPhase::kRUNTIME));
        }
        REQUIRE(copy && recreated);
        for (Plugin const* const plugin : {&copy, &recreated})
        {
            CHECK(fingerprint(*plugin->runtime->getFieldsToSerialize()) == fields);
            CHECK(plugin->build->getTimingCacheID() == id);
            auto const tensors = describe(c);
            CHECK(plugin->runtime->onShapeChange(tensors.data(), 2, &tensors[2], 1) == 0);
        }
    }
}

//! With a GPU a plugin for the context; without one nullptr, and the context's recorder knows why.
void testAttaching()
{
    for (Case const& c : allOps())
    {
        Recorder recorder;
        ResourceContext context(&recorder);
        {
            Plugin const plugin = make(c);
            Plugin const attached(plugin.runtime->attachToContext(&context));
            std::string const log = takeFakeLog();
            if (!hasDevice())
            {
                CHECK(!attached);
                CHECK_IN(contains(recorder.take(), "loading the kernels: got CUDA_ERROR_SHARED_OBJECT"), log);
                continue;
            }
            REQUIRE(attached);
            CHECK(recorder.references() == 1);
            auto tensors = describe(c);
            tensors[1].dims.d[0] += 1;
            CHECK(attached.runtime->onShapeChange(tensors.data(), 2, &tensors[2], 1) != 0);
            CHECK(contains(recorder.take(), "guidance: got 3 images"));
            takeFakeLog();
        }
        CHECK(recorder.references() == 0);
    }
}

} // namespace

int main()
{
    listen();
    testCreators();
    testIdentity();
    testShapeChange();
    testCopies();
    testAttaching();
    return result();
}
