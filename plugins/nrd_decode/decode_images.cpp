/*
 * Takes the compiled kernels into the library. The build writes images.inc, which has one line for each:
 *
 *     NRD_IMAGE(sm_87, 87, false, "/path/sm_87.cubin")
 */
#include "decode_images.h"

#define NRD_IMAGE(name, architecture, isPtx, path)                                                                     \
    __asm__(".pushsection .rodata\n.balign 64\nnrd_" #name ":\n.incbin \"" path "\"\n.byte 0\n.popsection");           \
    extern "C" __attribute__((visibility("hidden"))) unsigned char const nrd_##name[];
#include <images.inc>
#undef NRD_IMAGE

namespace nrd
{
namespace
{

constexpr Image kIMAGES[] = {
#define NRD_IMAGE(name, architecture, isPtx, path) {architecture, isPtx, nrd_##name},
#include <images.inc>
#undef NRD_IMAGE
};

} // namespace

Images images()
{
    return {kIMAGES, sizeof(kIMAGES) / sizeof(kIMAGES[0])};
}

} // namespace nrd
