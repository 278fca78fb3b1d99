// Loops on torch's own thread pool: torch.set_num_threads applies, and no second pool competes for
// the cores.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>

namespace fastgan::cpu {

namespace detail {
using RangeFunction = void (*)(std::int64_t begin, std::int64_t end, void* context);
void parallel_for(std::int64_t begin, std::int64_t end, std::int64_t grain, RangeFunction function,
                  void* context);
}  // namespace detail

// The number of threads for a loop.
std::int64_t thread_count();

// Below this many elements a second thread costs more than it saves.
inline constexpr std::int64_t kGrain = 32768;

// Calls body(begin, end) for disjoint ranges that cover [begin, end), each of at least `grain`
// indices except the last. One of the bodies' exceptions, such as for missing scratch memory, is
// rethrown after the loop; torch's pool would lose its type.
template <typename Body>
void parallel_for(std::int64_t begin, std::int64_t end, std::int64_t grain, const Body& body) {
    struct Loop {
        const Body& body;
        std::atomic_flag failed;
        std::exception_ptr error;
    };
    Loop loop{body, {}, nullptr};
    detail::parallel_for(
        begin, end, grain,
        [](std::int64_t range_begin, std::int64_t range_end, void* context) {
            Loop& loop = *static_cast<Loop*>(context);
            try {
                loop.body(range_begin, range_end);
            } catch (...) {
                if (!loop.failed.test_and_set()) {
                    loop.error = std::current_exception();
                }
            }
        },
        &loop);
    if (loop.error != nullptr) {
        std::rethrow_exception(loop.error);
    }
}

}  // namespace fastgan::cpu
