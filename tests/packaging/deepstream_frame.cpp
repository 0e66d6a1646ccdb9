// Calls the parser as nvinfer does: with a frame of 2x3 pixels, and with what it must refuse.
#include <cstdint>
#include <cstdio>
#include <vector>

#include "nvdsinfer_custom_impl.h"

extern "C" bool NvDsInferParseNrdMask(
    std::vector<NvDsInferLayerInfo> const&, NvDsInferNetworkInfo const&, float, unsigned int, int*, float*&);

static void parse(char const* name, NvDsInferDataType type, std::vector<unsigned int> const& dims)
{
    static uint8_t mask[6] = {0, 1, 127, 128, 200, 255};
    NvDsInferLayerInfo logits{}, output{};
    logits.layerName = "logits";
    output.layerName = name;
    output.dataType = type;
    output.buffer = mask;
    output.inferDims.numDims = static_cast<unsigned int>(dims.size());
    for (size_t i = 0; i < dims.size(); ++i)
    {
        output.inferDims.d[i] = dims[i];
    }
    NvDsInferNetworkInfo const network{3, 2, 3}; // width, height, channels
    int classes[7] = {-1, -1, -1, -1, -1, -1, -1};
    float probability = 0.0F;
    float* probabilities = &probability;
    bool const parsed = NvDsInferParseNrdMask({logits, output}, network, 0.0F, 256U, classes, probabilities);
    std::printf("%d %d", parsed, probabilities == nullptr);
    for (int const one : classes)
    {
        std::printf(" %d", one);
    }
    std::printf("\n");
}

int main()
{
    parse("mask", UINT8, {2, 3});
    parse("mask", INT32, {2, 3});
    parse("mask", UINT8, {3, 2});
    parse("mask", UINT8, {1, 2, 3});
    parse("classes", UINT8, {2, 3});
}
