// What is running now, and how a bug in it is reported.
#pragma once

#include <string>

#include "fastgan_host_harness.h"

namespace fastgan_host {

class Fiber;

// One thread of the running block.
struct Thread {
    enum class State { fresh, ready, at_block_barrier, at_warp_function, exited };

    int number = 0;  // within the block, x fastest
    uint3 index{};
    State state = State::fresh;
    Fiber* fiber = nullptr;

    // Where it waits, if it does.
    const char* waits_at = "";
    Site site{"", 0};
    bool vote = false;
    WarpFunction function = WarpFunction::syncwarp;
    unsigned mask = 0;
    std::uint64_t value = 0;

    Votes votes{};
    Exchange exchange{};

    // What this thread knows of its warp: all that lane l did before its clocks[l]-th meeting with
    // other lanes has happened for this thread too. clocks[own lane] counts its own meetings.
    std::uint32_t clocks[32] = {};

    int warp() const { return number / warpSize; }
    int lane() const { return number % warpSize; }
};

struct Running {
    std::string label;   // of the case, as the test calls it
    std::string kernel;  // empty: no kernel runs
    uint3 block{};
    // Counts the blocks that ever ran, from 1: names a block in what is remembered of accesses.
    std::uint32_t block_serial = 0;
    std::uint32_t first_block_of_launch = 1;
    // Counts the barriers that the running block has passed.
    std::uint32_t barriers_passed = 0;
    Thread* thread = nullptr;  // whose code runs; null while the runtime itself does
};

extern Running running;

std::string describe(uint3 index);
std::string describe(Site site);

// Prints "host harness: <kind> in kernel K, block B, thread T: <what>", and ends the process.
[[noreturn]] void fail(const std::string& kind, const std::string& what,
                       const Thread* thread = running.thread);

inline constexpr int kExitCodeOfFailure = 86;

}  // namespace fastgan_host
