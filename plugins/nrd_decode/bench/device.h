/*
 * The GPU: what it says of itself, what a copy reaches, how fast its clock runs, and the floors that follow.
 */
#pragma once

#include "setting.h"
#include "timing.h"

namespace nrd::bench
{

__global__ void emptyKernel() { }

//! Keep one thread busy for a number of clock cycles.
__global__ void spinKernel(long long cycles, long long* elapsed)
{
    long long const start = clock64();
    while (clock64() - start < cycles)
    {
    }
    *elapsed = clock64() - start;
}

struct DeviceFacts
{
    std::string name;
    int32_t major{0};
    int32_t minor{0};
    int32_t multiprocessors{0};
    int64_t l2Bytes{0};
    int64_t memoryBytes{0};
    int32_t sharedBytes{0};    //!< that a block may ask for
    double clockMegahertz{0};  //!< the highest, as the driver gives it
    double memoryMegahertz{0}; //!< likewise
    int32_t driverVersion{0};  //!< of CUDA, 1000 * major + 10 * minor
    int32_t runtimeVersion{0};
};

inline int32_t attributeOf(cudaDeviceAttr attribute, int32_t device)
{
    int32_t value = 0;
    check(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
    return value;
}

inline DeviceFacts readDevice()
{
    int32_t device = 0;
    check(cudaGetDevice(&device), "cudaGetDevice");
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
    DeviceFacts facts;
    facts.name = properties.name;
    facts.major = properties.major;
    facts.minor = properties.minor;
    facts.multiprocessors = properties.multiProcessorCount;
    facts.l2Bytes = properties.l2CacheSize;
    facts.memoryBytes = static_cast<int64_t>(properties.totalGlobalMem);
    facts.sharedBytes = attributeOf(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    facts.clockMegahertz = attributeOf(cudaDevAttrClockRate, device) / 1e3;
    facts.memoryMegahertz = attributeOf(cudaDevAttrMemoryClockRate, device) / 1e3;
    check(cudaDriverGetVersion(&facts.driverVersion), "cudaDriverGetVersion");
    check(cudaRuntimeGetVersion(&facts.runtimeVersion), "cudaRuntimeGetVersion");
    return facts;
}

//! Median bytes per second, read and written, of device-to-device copies far larger than the cache.
inline double measureCopy(DeviceFacts const& facts, Stream const& stream)
{
    constexpr int32_t kCOPIES = 20;
    size_t const bytes = static_cast<size_t>(std::min<int64_t>(1LL << 30, facts.memoryBytes / 16));
    Memory const source(bytes);
    Memory const target(bytes);
    check(cudaMemsetAsync(source.at(), 0x5A, bytes, stream), "cudaMemsetAsync");
    std::vector<Event> marks(kCOPIES + 1);
    marks[0].record(stream);
    for (int32_t i = 1; i <= kCOPIES; ++i)
    {
        check(cudaMemcpyAsync(target.at(), source.at(), bytes, cudaMemcpyDeviceToDevice, stream), "cudaMemcpyAsync");
        marks[static_cast<size_t>(i)].record(stream);
    }
    stream.synchronize();
    std::vector<double> times;
    for (size_t i = 1; i < marks.size(); ++i)
    {
        times.push_back(marks[i].since(marks[i - 1]));
    }
    return 2.0 * static_cast<double>(bytes) / (median(times) * 1e-6);
}

//! Clock of the multiprocessors now, in MHz: cycles that a thread counts against events.
inline double measureClock(DeviceFacts const& facts, Stream const& stream)
{
    auto const wanted = static_cast<long long>(std::max(facts.clockMegahertz, 500.0) * 1e4); // about 10 ms
    Memory const counted(sizeof(long long));
    auto* const cycles = reinterpret_cast<long long*>(counted.at());
    launchKernel(spinKernel, 1, 1, stream, 1LL, cycles); // loads the kernel
    Event const start;
    Event const end;
    start.record(stream);
    launchKernel(spinKernel, 1, 1, stream, wanted, cycles);
    end.record(stream);
    long long result = 0;
    check(cudaMemcpyAsync(&result, cycles, sizeof(result), cudaMemcpyDeviceToHost, stream), "cudaMemcpyAsync");
    stream.synchronize();
    return static_cast<double>(result) / end.since(start);
}

//! Bytes that a launch reads and writes at least: theta and guidance without padding, and its output.
inline int64_t movedBytes(Setting const& setting, Job const& job)
{
    return setting.inputBytes() + job.outputBytes(setting);
}

//! Microseconds in which the multiprocessors can issue the instructions of the mask kernel.
inline double instructionFloor(Setting const& setting, DeviceFacts const& facts)
{
    double const k = setting.size.classes;
    double const perCell = 1.27 * (544 + 16 * k) + 96 * k; // decode with its ring, enlargement and argmax
    return static_cast<double>(setting.cells()) * perCell / (128.0 * facts.multiprocessors * facts.clockMegahertz);
}

} // namespace nrd::bench
