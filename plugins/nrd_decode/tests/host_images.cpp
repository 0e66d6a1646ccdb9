/*
 * Images for the fake driver, which runs the emulation in place of what they hold.
 */
#include "decode_images.h"

namespace nrd
{

Images images()
{
    static constexpr Image kIMAGES[] = {{75, false, "sm_75"}, {80, false, "sm_80"}, {87, false, "sm_87"},
        {90, false, "sm_90"}, {80, true, "compute_80"}, {90, true, "compute_90"}};
    return {kIMAGES, sizeof(kIMAGES) / sizeof(kIMAGES[0])};
}

} // namespace nrd
