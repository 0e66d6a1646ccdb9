/*
 * The kernels' own source on a CPU: one block at a time, its threads as fibers that are resumed in a seeded random order
 * between barriers, so that a missing barrier shows as a wrong result. Host only; for tests.
 */
#pragma once

#include "decode_problem.h"

#include <functional>

#define NRD_DEVICE inline

namespace nrd::device
{

int32_t threadIndex();
uint32_t blockIndex();
float* sharedMemory();
void syncBlock();
bool syncBlockAny(bool value);
int32_t fetchAdd(int32_t* counter, int32_t value);
uint32_t warpMaximum(uint32_t value);
uint32_t warpBallot(bool value);
float warpExchange(float value, int32_t lanes);

//! The 16 bytes hold NaN until the thread waits. \throws std::logic_error an address is no multiple of 16.
void copyAsync(void* shared, void const* global);
void waitCopies();

//! \throws std::logic_error a row does not lie at a multiple of 16.
void loadMatrices(uint32_t (&pairs)[4], void const* row);

template <ElementType kTYPE>
void multiplyTiles(float (&accumulator)[4], uint32_t const (&a)[4], uint32_t const (&b)[2]);

} // namespace nrd::device

namespace nrd::emulation
{

struct Launch
{
    uint32_t firstBlock;
    uint32_t endBlock;
    int32_t threads;
    int64_t sharedBytes;    //!< an access beyond them stops the process
    uint64_t seed;          //!< of the order in which threads run
    bool truncates = false; //!< tensor cores add as a GPU may: each sum of 8 products to 24 bits, rounded towards zero
};

//! Run `kernel` for every thread of every block of the range.
//! \throws std::logic_error when threads of a block wait at different barriers, which on a GPU has no defined result.
void run(Launch const& launch, std::function<void()> const& kernel);

} // namespace nrd::emulation
