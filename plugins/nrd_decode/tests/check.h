/*
 * Checks that count their failures, for tests that are plain programs: 0 passed, 1 failed, 77 skipped.
 */
#pragma once

#include <atomic>
#include <cstdio>
#include <string>

namespace nrd::test
{

constexpr int kSKIPPED = 77;

inline std::atomic<int>& failures()
{
    static std::atomic<int> count{0};
    return count;
}

inline bool check(bool holds, char const* text, std::string const& detail, char const* file, int line)
{
    if (!holds)
    {
        ++failures();
        std::fprintf(stderr, "%s:%d: failed: %s%s%s\n", file, line, text, detail.empty() ? "" : ": ", detail.c_str());
    }
    return holds;
}

//! What main returns.
inline int result()
{
    std::printf("%d failures\n", failures().load());
    return failures() == 0 ? 0 : 1;
}

inline int skip(char const* reason)
{
    std::printf("skipped: %s\n", reason);
    return kSKIPPED;
}

} // namespace nrd::test

//! Go on after a failure, so that one run shows all.
#define CHECK(condition) nrd::test::check(static_cast<bool>(condition), #condition, "", __FILE__, __LINE__)
//! The same with a text that says which case failed.
#define CHECK_IN(condition, detail)                                                                                    \
    nrd::test::check(static_cast<bool>(condition), #condition, detail, __FILE__, __LINE__)
//! End the function where going on makes no sense.
#define REQUIRE(condition)                                                                                             \
    if (!CHECK(condition))                                                                                             \
    return
