// Runs the blocks of one launch.
#pragma once

#include <cstdint>
#include <vector>

#include "fastgan_host_harness.h"

namespace fastgan_host {

// In which order what CUDA leaves open happens.
struct Schedule {
    enum class Order { ascending, descending, shuffled };

    Order order = Order::ascending;  // of blocks; and of a block's threads, anew after each barrier
    std::uint64_t seed = 0;
    unsigned char poison = 0xff;  // what shared memory is full of when a block starts
    // If not empty, only these blocks run: by number, x fastest; negative ones count from the end.
    std::vector<std::int64_t> only_blocks;
};

extern Schedule schedule;

void run_grid(dim3 grid, dim3 block, std::size_t shared_bytes, Invocation& invocation);

}  // namespace fastgan_host
