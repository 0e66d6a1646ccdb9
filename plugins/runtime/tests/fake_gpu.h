/*
 * A shared library that stands for libcudart and for libnvinfer of the version of its headers: host memory, streams
 * whose work is done when they are waited for, graphs, and engines whose plans are lines of text. It notes every call.
 */
#pragma once

#include <cstdint>
#include <functional>

struct CUstream_st;

extern "C"
{
    //! The calls since this was last asked, with blanks between them; valid until it is asked again.
    char const* takeCalls();

    //! How much is there that was made and has not been released.
    int32_t liveThings();

    //! Let the call fail that is the `number`-th from now of those that can; 0 lets none fail.
    void failCall(int32_t number);

    //! Let all calls of a function fail; null lets none.
    void failAll(char const* name);

    //! Whether GPU and host share their memory.
    void setIntegrated(bool integrated);
}

namespace nrd::test
{

//! Note a call; return whether it has to fail.
bool fails(char const* name);

//! Note a call that cannot fail.
void note(char const* name);

//! Note that something is there, or is there no longer; ends the program where it was not.
void made(void const* thing);
void gone(void const* thing);

//! Do some work when the stream is waited for, or record it.
void queue(CUstream_st* stream, std::function<void()> work);

//! The number that a variable of the environment has.
int32_t setting(char const* name, int32_t usual);

} // namespace nrd::test
