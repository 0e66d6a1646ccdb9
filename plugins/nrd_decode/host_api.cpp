/*
 * The host reference and the emulated kernels as C functions, for tests in other languages.
 */
#include "emulated_kernels.h"
#include "host_reference.h"
#include "launch_plan.h"

#include <exception>
#include <string>

#define NRD_EXPORT extern "C" __attribute__((visibility("default")))

namespace
{

thread_local std::string lastError;

//! Run `body`; return 0, or 1 with the reason in lastError.
template <class Body>
int32_t guard(Body const& body)
{
    try
    {
        body();
        return 0;
    }
    catch (std::exception const& error)
    {
        lastError = error.what();
        return 1;
    }
}

} // namespace

//! Why the last call on this thread returned 1.
NRD_EXPORT char const* nrd_host_last_error()
{
    return lastError.c_str();
}

NRD_EXPORT int32_t nrd_host_patch_decode(nrd::DecodeProblem const* problem, void* logits)
{
    return guard(
        [&]
        {
            nrd::hostPatchDecode(*problem, logits);
        });
}

NRD_EXPORT int32_t nrd_host_patch_decode_mask(
    nrd::DecodeProblem const* problem, void* mask, int32_t maskType, int32_t prune)
{
    return guard(
        [&]
        {
            nrd::hostPatchDecodeMask(*problem, mask, static_cast<nrd::MaskType>(maskType), prune != 0);
        });
}

//! endBlock < 0: all blocks from firstBlock on.
NRD_EXPORT int32_t nrd_emulate_patch_decode(nrd::DecodeProblem const* problem, void* logits, int32_t variant,
    uint64_t seed, int64_t firstBlock, int64_t endBlock)
{
    return guard(
        [&]
        {
            nrd::emulatePatchDecode(*problem, logits, static_cast<nrd::Variant>(variant), seed, {firstBlock, endBlock});
        });
}

NRD_EXPORT int32_t nrd_emulate_patch_decode_mask(nrd::DecodeProblem const* problem, void* mask, int32_t maskType,
    int32_t variant, int32_t prune, uint64_t seed, int64_t firstBlock, int64_t endBlock)
{
    return guard(
        [&]
        {
            nrd::emulatePatchDecodeMask(*problem, mask, static_cast<nrd::MaskType>(maskType),
                static_cast<nrd::Variant>(variant), prune != 0, seed, {firstBlock, endBlock});
        });
}

//! Dynamic shared memory in bytes of a launch of `variant`; the logits kernels take as much as those that do not retain.
NRD_EXPORT int64_t nrd_shared_bytes(nrd::DecodeShape const* shape, int32_t variant)
{
    return nrd::sharedBytes(*shape, static_cast<nrd::Variant>(variant));
}
