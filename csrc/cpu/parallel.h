// Loops over torch's own pool of threads. torch.set_num_threads holds here, and no second pool
// competes with the first for the cores.
#pragma once

#include <cstdint>

namespace fastgan::cpu {

namespace detail {
using RangeFunction = void (*)(std::int64_t begin, std::int64_t end, void* context);
void parallel_for(std::int64_t begin, std::int64_t end, std::int64_t grain, RangeFunction function,
                  void* context);
}  // namespace detail

// How many threads a loop may run on.
std::int64_t thread_count();

// Below this many elements a second thread costs more than it saves.
inline constexpr std::int64_t kGrain = 32768;

// body(begin, end) over disjoint ranges that cover [begin, end), each of at least `grain` indices
// except the last. body must not throw.
template <typename Body>
void parallel_for(std::int64_t begin, std::int64_t end, std::int64_t grain, const Body& body) {
    detail::parallel_for(
        begin, end, grain,
        [](std::int64_t range_begin, std::int64_t range_end, void* context) {
            (*static_cast<const Body*>(context))(range_begin, range_end);
        },
        const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace fastgan::cpu
