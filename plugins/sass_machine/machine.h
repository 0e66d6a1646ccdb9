/*
 * A multiprocessor that executes machine code (SASS) as NVIDIA's disassembler prints it: what an instruction does to the
 * 32 lanes of a warp, what it costs, and nothing that is not known. An instruction that has no handler stops the run.
 */
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace nrd::sass
{

constexpr int kLANES = 32;
constexpr int kZERO = 255;        //!< RZ
constexpr int kUNIFORM_ZERO = 63; //!< URZ
constexpr int kTRUE = 7;          //!< PT and UPT
constexpr int kOPERANDS = 9;
constexpr int kRESOURCES = 24;
constexpr uint32_t kFULL = 0xffffffffU;
constexpr uint32_t kPOISON = 0x7fbadbadU; //!< a NaN: what nobody wrote

using Lanes = std::array<uint32_t, kLANES>;
using Lanes64 = std::array<uint64_t, kLANES>;

enum Kind : uint8_t
{
    kNONE,
    kREGISTER,
    kUNIFORM,
    kPREDICATE,
    kUNIFORM_PREDICATE,
    kIMMEDIATE,
    kCONSTANT, //!< value: offset; index: bank; second: register that is added, or -1
    kBARRIER,
    kMEMORY, //!< index: register or -1; second: uniform register or -1; value: offset
    kTARGET, //!< value: number of an instruction
    kSPECIAL //!< value: `Special`
};

enum Flag : uint16_t
{
    kNEGATIVE = 1,
    kABSOLUTE = 2,
    kNOT = 4,
    kHALF_LOW = 8,
    kHALF_HIGH = 16,
    kWIDE = 32, //!< a 64-bit register pair in an address
    kTIMES_4 = 64,
    kTIMES_8 = 128,
    kTIMES_16 = 256,
};

enum Special : uint32_t
{
    kTHREAD_X,
    kBLOCK_X,
    kLANE_ID,
    kLESS_MASK,
    kCLUSTER_RANK,
    kWARP_ID,
    kZERO_SPECIAL,
};

//! As listing.py packs them.
struct Operand
{
    uint8_t kind;
    uint8_t unused;
    uint16_t flags;
    int16_t index;
    int16_t second;
    uint32_t value;
};

struct Encoded
{
    char name[48];
    Operand guard;
    Operand operands[kOPERANDS];
    int16_t reads[kRESOURCES];  //!< registers it waits for, ended by -1
    int16_t writes[kRESOURCES]; //!< registers that it makes wait
    int16_t count;              //!< of operands
    int16_t pipe;
    int16_t interval; //!< cycles between two on one pipe, in quarters
    int16_t latency;
};
static_assert(sizeof(Encoded) == 272, "packing.py has this size");

class Block;
class Warp;
using Handler = std::function<void(Warp&, Encoded const&, uint32_t)>;
using Handlers = std::map<std::string, Handler>;

//! By full name, all modifiers included. A uniform instruction is the same with a U before it.
Handlers const& handlers();
void addIntegers(Handlers& all);
void addBits(Handlers& all);
void addComparisons(Handlers& all);
void addFloats(Handlers& all);
void addConversions(Handlers& all);
void addMemory(Handlers& all);
void addTensor(Handlers& all);
void addWarpWide(Handlers& all);
void addControl(Handlers& all);

struct Counts
{
    uint64_t lanes = 0;
    uint64_t wavefronts = 0;
    uint64_t fewestWavefronts = 0;
    uint64_t sectors = 0;
    uint64_t fewestSectors = 0;
    uint64_t lines = 0;   //!< of 128 bytes, that an access to global memory touches
    uint64_t issues[4]{}; //!< by the scheduler that the warp belongs to
};

//! One issue of an instruction, for timing.cpp.
struct Step
{
    uint32_t pc;
    uint16_t wavefronts; //!< of shared memory
    uint16_t lines;      //!< of global memory
};

using BlockTrace = std::vector<std::vector<Step>>; //!< by warp

struct Kernel
{
    std::string name;
    std::vector<Encoded> code;
    std::vector<Handler const*> handlers; //!< nullptr: not known
    std::vector<Counts> counts;
    std::vector<uint8_t> constants; //!< bank 2
    int32_t parameterOffset = 0;
    int32_t parameterBytes = 0;
    int32_t keptShared = 0;         //!< bytes before the first that is the kernel's
    int32_t staticShared = 0;       //!< where dynamic shared memory begins
    std::vector<BlockTrace> traces; //!< of the blocks that were executed
};

struct Range
{
    uint64_t begin;
    uint64_t end;
    bool writable;
};

struct Launch
{
    Kernel* kernel = nullptr;
    uint32_t threads = 0;
    uint32_t blocks = 0;
    uint32_t dynamicShared = 0;
    std::vector<uint8_t> bank; //!< constant bank 0
    std::vector<Range> memory;
    bool lastWarpFirst = false; //!< the order in which the warps of a block run between barriers
};

enum class State
{
    kRUNNING,
    kAT_CONVERGENCE,
    kAT_WARPSYNC,
    kAT_BLOCK_BARRIER,
};

enum class Reduction
{
    kNONE,
    kANY,
    kALL,
    kCOUNT,
};

//! Threads of a warp that are at one place.
struct Path
{
    uint32_t pc = 0;
    uint32_t mask = 0;
    State state = State::kRUNNING;
    uint32_t awaited = 0; //!< threads that go on together
};

//! A copy that `LDGSTS` began and nobody waited for.
struct Copy
{
    uint32_t target;
    std::vector<uint8_t> data;
    int group;
};

class Warp
{
public:
    Warp(Block& block, int number, uint32_t threads);

    //! Run until every path waits or is done.
    void run();
    bool isDone() const
    {
        return paths.empty();
    }

    Lanes bits(Operand const& operand) const;     //!< no sign, no complement
    Lanes integers(Operand const& operand) const; //!< with - and ~
    Lanes floats(Operand const& operand) const;   //!< with - and ||
    Lanes64 wide(Operand const& operand) const;
    uint32_t predicate(Operand const& operand) const;
    void write(Operand const& target, Lanes const& values, uint32_t mask);
    void write64(Operand const& target, Lanes64 const& values, uint32_t mask);
    void writeRegister(int index, Lanes const& values, uint32_t mask);
    void writePredicate(Operand const& target, uint32_t values, uint32_t mask);
    Lanes64 addresses(Operand const& memory) const;

    void branch(uint32_t target, uint32_t mask);
    void leave(uint32_t mask);
    void wait(State state, uint32_t awaited);
    Path& path()
    {
        return paths[current];
    }
    Counts& counts();

    Block& block;
    int number;
    std::array<Lanes, 256> registers;
    std::array<uint32_t, 64> uniform{};
    std::array<uint32_t, 8> predicates{};
    std::array<uint32_t, 8> uniformPredicates{};
    std::array<Lanes, 16> barriers{}; //!< participants, by barrier and lane
    std::array<Lanes, 1024> local;    //!< by word
    std::vector<Path> paths;
    std::vector<Copy> copies;
    int copyGroup = 0;
    std::vector<Step> trace;

private:
    Lanes fetch(Operand const& operand) const;
    void execute();
    void converge();

    size_t current = 0;
    uint32_t active = 0;    //!< lanes of the instruction
    uint32_t executing = 0; //!< number of the instruction
};

class Block
{
public:
    Block(Launch const& launch, uint32_t index);
    void run();

    Launch const& launch;
    uint32_t index;
    std::vector<uint8_t> shared;
    std::vector<Warp> warps;
    Reduction reduction = Reduction::kNONE; //!< of the barrier that is being reached
    uint32_t votes = 0;                     //!< threads whose predicate is true there
    uint32_t reduced = 0;                   //!< what the last one found

private:
    void releaseBarrier();
};

//! Run the given blocks; the kernel's counts grow.
void run(Launch const& launch, std::vector<uint32_t> const& blocks);

template <class F>
void forLanes(uint32_t mask, F const& f)
{
    for (int lane = 0; lane < kLANES; ++lane)
    {
        if ((mask >> lane & 1U) != 0)
        {
            f(lane);
        }
    }
}

[[noreturn]] inline void fail(std::string const& what)
{
    throw std::runtime_error(what);
}

} // namespace nrd::sass
