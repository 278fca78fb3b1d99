#include "parallel.h"

#include <torch/csrc/stable/c/shim.h>

#include <stdexcept>

namespace fastgan::cpu::detail {

void parallel_for(std::int64_t begin, std::int64_t end, std::int64_t grain, RangeFunction function,
                  void* context) {
    if (torch_parallel_for(begin, end, grain, function, context) != 0) {
        throw std::runtime_error("fastgan: torch's thread pool refused a parallel loop");
    }
}

}  // namespace fastgan::cpu::detail
