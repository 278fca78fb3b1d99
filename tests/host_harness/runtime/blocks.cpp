// The blocks of a grid run one after another. Within a block a thread runs until it has to wait, at
// a barrier or for other lanes of its warp, or until it ends; then another one runs. Threads that
// never wait share one fiber, one after the other; a thread that waits keeps the fiber it is on.
#include "blocks.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <string>

#include "fibers.h"
#include "memory.h"
#include "report.h"

uint3 threadIdx;
uint3 blockIdx;
dim3 blockDim;
dim3 gridDim;

namespace fastgan_host {

Schedule schedule;

namespace {

// SplitMix64 (Steele, Lea and Flood, 2014): small, and the same everywhere.
struct RandomNumbers {
    std::uint64_t state;
    std::uint64_t next() {
        std::uint64_t z = (state += 0x9e3779b97f4a7c15u);
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return z ^ (z >> 31);
    }
} random_numbers{0};

template <typename Numbers>
void arrange(Numbers& numbers) {
    switch (schedule.order) {
        case Schedule::Order::ascending:
            std::sort(numbers.begin(), numbers.end());
            break;
        case Schedule::Order::descending:
            std::sort(numbers.begin(), numbers.end(), std::greater<>());
            break;
        case Schedule::Order::shuffled:
            for (std::size_t i = numbers.size(); i > 1; --i) {
                std::swap(numbers[i - 1], numbers[random_numbers.next() % i]);
            }
            break;
    }
}

class Block {
  public:
    void run(dim3 shape, Invocation& invocation);

    Votes wait_at_barrier(const char* name, bool vote, Site site);
    Exchange meet_lanes(WarpFunction function, const char* name, unsigned mask, std::uint64_t value,
                        Site site);
    unsigned running_lanes() const;
    int count() const { return count_; }

  private:
    static void fiber_body(Fiber& fiber);
    Fiber& idle_fiber();
    Thread* take_fresh();
    void let_run(Thread& thread);
    void wait(Thread& thread);
    void make_ready(Thread& thread);
    bool open_barrier();
    unsigned existing_lanes(int warp) const;
    bool complete_exchange(Thread& last);
    [[noreturn]] void report_stuck_lane(const Thread& thread) const;
    [[noreturn]] void report_stuck_barrier() const;

    std::vector<Thread> threads_;  // as many as the largest block so far
    int count_ = 0;
    Invocation* invocation_ = nullptr;

    std::vector<int> turn_;  // threads that can run, in the order chosen for them
    std::size_t turn_position_ = 0;
    std::vector<int> next_turn_;

    std::vector<std::unique_ptr<Fiber>> fibers_;
    std::vector<Fiber*> idle_fibers_;
    Thread* to_start_ = nullptr;
} block;

void Block::fiber_body(Fiber& fiber) {
    for (;;) {
        for (Thread* thread = block.to_start_; thread != nullptr; thread = block.take_fresh()) {
            thread->fiber = &fiber;
            block.let_run(*thread);
            block.invocation_->run_thread();
            running.thread = nullptr;
            thread->state = Thread::State::exited;
        }
        block.idle_fibers_.push_back(&fiber);
        fiber.leave();
    }
}

Fiber& Block::idle_fiber() {
    if (idle_fibers_.empty()) {
        fibers_.push_back(std::make_unique<Fiber>(&Block::fiber_body));
        idle_fibers_.push_back(fibers_.back().get());
    }
    Fiber& fiber = *idle_fibers_.back();
    idle_fibers_.pop_back();
    return fiber;
}

Thread* Block::take_fresh() {
    if (turn_position_ < turn_.size()) {
        Thread& thread = threads_[turn_[turn_position_]];
        if (thread.state == Thread::State::fresh) {
            ++turn_position_;
            return &thread;
        }
    }
    return nullptr;
}

void Block::let_run(Thread& thread) {
    threadIdx = thread.index;
    running.thread = &thread;
}

void Block::wait(Thread& thread) {
    running.thread = nullptr;
    thread.fiber->leave();
}

// When a thread that had to wait runs again: after all others that can, before them, or between.
void Block::make_ready(Thread& thread) {
    thread.state = Thread::State::ready;
    switch (schedule.order) {
        case Schedule::Order::ascending:
            next_turn_.push_back(thread.number);
            break;
        case Schedule::Order::descending:
            turn_.insert(turn_.begin() + static_cast<std::ptrdiff_t>(turn_position_),
                         thread.number);
            break;
        case Schedule::Order::shuffled:
            turn_.push_back(thread.number);
            std::swap(
                turn_.back(),
                turn_[turn_position_ + random_numbers.next() % (turn_.size() - turn_position_)]);
            break;
    }
}

void Block::run(dim3 shape, Invocation& invocation) {
    invocation_ = &invocation;
    count_ = static_cast<int>(shape.x * shape.y * shape.z);
    if (threads_.size() < static_cast<std::size_t>(count_)) {
        threads_.resize(count_);
    }
    turn_.clear();
    turn_position_ = 0;
    next_turn_.resize(count_);
    std::iota(next_turn_.begin(), next_turn_.end(), 0);
    uint3 index{0, 0, 0};
    for (int number = 0; number < count_; ++number) {
        Thread& thread = threads_[number];
        thread.number = number;
        thread.index = index;
        thread.state = Thread::State::fresh;
        // Clocks go on from block to block: only their order within a block counts.
        ++thread.clocks[thread.lane()];
        if (++index.x == shape.x) {
            index.x = 0;
            if (++index.y == shape.y) {
                index.y = 0;
                ++index.z;
            }
        }
    }
    for (;;) {
        if (turn_position_ == turn_.size()) {
            if (next_turn_.empty() && !open_barrier()) {
                return;
            }
            turn_.swap(next_turn_);
            next_turn_.clear();
            turn_position_ = 0;
            arrange(turn_);
        }
        Thread& thread = threads_[turn_[turn_position_++]];
        if (thread.state == Thread::State::fresh) {
            to_start_ = &thread;
            idle_fiber().enter();
        } else {
            let_run(thread);
            thread.fiber->enter();
        }
    }
}

// --- Barriers of the block -----------------------------------------------------------------------

Votes Block::wait_at_barrier(const char* name, bool vote, Site site) {
    Thread& thread = *running.thread;
    thread.state = Thread::State::at_block_barrier;
    thread.waits_at = name;
    thread.site = site;
    thread.vote = vote;
    wait(thread);
    return thread.votes;
}

// Compared a million times in a test: no string is made.
bool wait_at_one_place(const Thread& a, const Thread& b) {
    const auto same = [](const char* one, const char* other) {
        return one == other || std::strcmp(one, other) == 0;
    };
    return a.site.line == b.site.line && same(a.site.file, b.site.file) &&
           same(a.waits_at, b.waits_at);
}

// Called when no thread can run. False: all have ended.
bool Block::open_barrier() {
    Votes votes{static_cast<unsigned>(count_), 0};
    int waiting = 0;
    int exited = 0;
    for (int i = 0; i < count_; ++i) {
        const Thread& thread = threads_[i];
        if (thread.state == Thread::State::at_warp_function) {
            report_stuck_lane(thread);
        }
        waiting += thread.state == Thread::State::at_block_barrier;
        exited += thread.state == Thread::State::exited;
        votes.in_favour += thread.vote;
    }
    if (exited == count_) {
        return false;
    }
    const Thread& first = threads_[0];
    for (int i = 0; i < count_; ++i) {
        const Thread& thread = threads_[i];
        const bool together = thread.state == Thread::State::at_block_barrier &&
                              wait_at_one_place(thread, first);
        if (waiting != count_ || !together) {
            report_stuck_barrier();
        }
    }
    for (int i = 0; i < count_; ++i) {
        threads_[i].votes = votes;
        threads_[i].state = Thread::State::ready;
        next_turn_.push_back(i);
    }
    ++running.barriers_passed;
    return true;
}

std::string whereabouts(const Thread& thread) {
    if (thread.state == Thread::State::exited) {
        return "has left the kernel";
    }
    return std::string("waits at ") + thread.waits_at + " (" + describe(thread.site) + ")";
}

void Block::report_stuck_barrier() const {
    const auto end = threads_.begin() + count_;
    const Thread& waiting = *std::find_if(threads_.begin(), end, [](const Thread& thread) {
        return thread.state == Thread::State::at_block_barrier;
    });
    const Thread& other = *std::find_if(threads_.begin(), end, [&](const Thread& thread) {
        return whereabouts(thread) != whereabouts(waiting);
    });
    const auto absent = std::count_if(threads_.begin(), end, [&](const Thread& thread) {
        return whereabouts(thread) != whereabouts(waiting);
    });
    fail("divergent barrier",
         "this thread " + whereabouts(waiting) + ", which " + std::to_string(absent) + " of " +
             std::to_string(count_) + " threads don't reach: thread " + describe(other.index) +
             " " + whereabouts(other),
         &waiting);
}

// --- Warps ---------------------------------------------------------------------------------------

unsigned Block::existing_lanes(int warp) const {
    const int lanes = std::min(warpSize, count_ - warp * warpSize);
    return lanes == warpSize ? 0xffffffffu : (1u << lanes) - 1;
}

Exchange Block::meet_lanes(WarpFunction function, const char* name, unsigned mask,
                           std::uint64_t value, Site site) {
    Thread& thread = *running.thread;
    if ((mask >> thread.lane() & 1u) == 0) {
        fail("bad mask", std::string("lane ") + std::to_string(thread.lane()) + " calls " + name +
                             " (" + describe(site) + ") with a mask that leaves itself out");
    }
    thread.state = Thread::State::at_warp_function;
    thread.waits_at = name;
    thread.site = site;
    thread.function = function;
    thread.mask = mask;
    thread.value = value;
    if (complete_exchange(thread)) {
        // Others may run first, as they may on a GPU.
        make_ready(thread);
    }
    wait(thread);
    return thread.exchange;
}

bool same_call(const Thread& a, const Thread& b) {
    return b.state == Thread::State::at_warp_function && a.mask == b.mask &&
           wait_at_one_place(a, b);
}

// If every lane that the mask names has arrived, gives each what the others said. Lanes that the
// block does not have don't count; lanes that have left the kernel do.
bool Block::complete_exchange(Thread& last) {
    Thread* const warp = threads_.data() + last.warp() * warpSize;
    const unsigned lanes = last.mask & existing_lanes(last.warp());
    for (int lane = 0; lane < warpSize; ++lane) {
        if ((lanes >> lane & 1u) != 0 &&
            (warp[lane].state != Thread::State::at_warp_function || !same_call(last, warp[lane]))) {
            return false;
        }
    }
    Exchange exchange{lanes, 0, {}};
    std::uint32_t clocks[32] = {};
    for (int lane = 0; lane < warpSize; ++lane) {
        if ((lanes >> lane & 1u) != 0) {
            exchange.values[lane] = warp[lane].value;
            for (int other = 0; other < warpSize; ++other) {
                clocks[other] = std::max(clocks[other], warp[lane].clocks[other]);
            }
        }
    }
    for (int lane = 0; lane < warpSize; ++lane) {
        if ((lanes >> lane & 1u) != 0) {
            Thread& thread = warp[lane];
            thread.exchange = exchange;
            thread.exchange.own_lane = lane;
            std::copy(clocks, clocks + warpSize, thread.clocks);
            ++thread.clocks[lane];
            if (&thread != &last) {
                make_ready(thread);
            }
        }
    }
    return true;
}

void Block::report_stuck_lane(const Thread& thread) const {
    const Thread* const warp = threads_.data() + thread.warp() * warpSize;
    const unsigned lanes = thread.mask & existing_lanes(thread.warp());
    for (int lane = 0; lane < warpSize; ++lane) {
        if ((lanes >> lane & 1u) != 0 && !same_call(thread, warp[lane])) {
            const bool other_mask = warp[lane].state == Thread::State::at_warp_function &&
                                    warp[lane].mask != thread.mask;
            fail("divergent warp",
                 "this thread " + whereabouts(thread) + " for lane " + std::to_string(lane) +
                     ", which its mask names and which " + whereabouts(warp[lane]) +
                     (other_mask ? " with another mask" : ""),
                 &thread);
        }
    }
    fail("internal error", "all lanes have come and nobody noticed", &thread);
}

unsigned Block::running_lanes() const {
    const int warp = running.thread->warp();
    unsigned lanes = 0;
    for (int lane = 0; lane < warpSize && warp * warpSize + lane < count_; ++lane) {
        if (threads_[warp * warpSize + lane].state != Thread::State::exited) {
            lanes |= 1u << lane;
        }
    }
    return lanes;
}

std::vector<std::uint64_t> blocks_to_run(std::uint64_t count) {
    std::vector<std::uint64_t> numbers;
    if (schedule.only_blocks.empty()) {
        numbers.resize(count);
        std::iota(numbers.begin(), numbers.end(), std::uint64_t{0});
    } else {
        for (const std::int64_t number : schedule.only_blocks) {
            numbers.push_back(number < 0 ? count + number : number);
            if (numbers.back() >= count) {
                fail("no such block", "the case asks for block " + std::to_string(number) +
                                          " of a grid of " + std::to_string(count));
            }
        }
        // The first of a grid may be the last as well.
        std::sort(numbers.begin(), numbers.end());
        numbers.erase(std::unique(numbers.begin(), numbers.end()), numbers.end());
    }
    arrange(numbers);
    return numbers;
}

}  // namespace

void run_grid(dim3 grid, dim3 shape, std::size_t shared_bytes, Invocation& invocation) {
    random_numbers.state = schedule.seed;
    gridDim = grid;
    blockDim = shape;
    allocate_dynamic_shared_memory(shared_bytes);
    running.first_block_of_launch = running.block_serial + 1;
    for (const std::uint64_t number : blocks_to_run(std::uint64_t{grid.x} * grid.y * grid.z)) {
        blockIdx.x = static_cast<unsigned>(number % grid.x);
        blockIdx.y = static_cast<unsigned>(number / grid.x % grid.y);
        blockIdx.z = static_cast<unsigned>(number / grid.x / grid.y);
        running.block = blockIdx;
        ++running.block_serial;
        running.barriers_passed = 0;
        fill_shared_memory(schedule.poison);
        block.run(shape, invocation);
    }
    release_dynamic_shared_memory();
}

Votes block_barrier(const char* name, bool vote, Site site) {
    return block.wait_at_barrier(name, vote, site);
}

Exchange warp_exchange(WarpFunction function, const char* name, unsigned mask, std::uint64_t value,
                       Site site) {
    return block.meet_lanes(function, name, mask, value, site);
}

// Which lane's value a lane gets, as PTX defines shfl.sync for a segment of `width` lanes.
std::uint64_t shuffle(WarpFunction function, const char* name, unsigned mask, std::uint64_t value,
                      int argument, int width, Site site) {
    if (width < 1 || width > warpSize || (width & (width - 1)) != 0) {
        fail("bad width", std::string(name) + " (" + describe(site) + ") has width " +
                              std::to_string(width) + "; CUDA knows 1, 2, 4, 8, 16 and 32");
    }
    const Exchange all = block.meet_lanes(function, name, mask, value, site);
    const int own = all.own_lane;
    const int first = own & ~(width - 1);
    const int last = first + width - 1;
    int source = own;
    switch (function) {
        case WarpFunction::shfl:
            source = first + (argument & (width - 1));
            break;
        case WarpFunction::shfl_up:
            source = own - argument >= first && argument <= own ? own - argument : own;
            break;
        case WarpFunction::shfl_down:
            source = argument < warpSize && own + argument <= last ? own + argument : own;
            break;
        case WarpFunction::shfl_xor:
            source = (own ^ (argument & 31)) <= last ? own ^ (argument & 31) : own;
            break;
        default:
            break;
    }
    if ((all.lanes >> source & 1u) == 0) {
        fail("undefined shuffle", std::string(name) + " (" + describe(site) + ") reads lane " +
                                      std::to_string(source) + ", which does not take part");
    }
    return all.values[source];
}

unsigned running_lanes() {
    return block.running_lanes();
}

void atomic_access(void* address, std::size_t size) {
    trace_atomic(address, size);
}

void fence() {
    trace_fence();
}

void trap(Site site) {
    fail("trap", "the kernel called __trap (" + describe(site) + ")");
}

}  // namespace fastgan_host
