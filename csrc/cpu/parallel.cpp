#include "parallel.h"

#include <torch/csrc/stable/c/shim.h>

#include <stdexcept>

namespace fastgan::cpu {

std::int64_t thread_count() {
    std::uint32_t threads = 1;
    if (torch_get_num_threads(&threads) != 0) {
        throw std::runtime_error("fastgan: torch does not say how many threads it has");
    }
    return threads;
}

namespace detail {

void parallel_for(std::int64_t begin, std::int64_t end, std::int64_t grain, RangeFunction function,
                  void* context) {
    if (torch_parallel_for(begin, end, grain, function, context) != 0) {
        throw std::runtime_error("fastgan: torch's thread pool refused a parallel loop");
    }
}

}  // namespace detail

}  // namespace fastgan::cpu
