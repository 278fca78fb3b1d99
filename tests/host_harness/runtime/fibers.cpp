#include "fibers.h"

#if !defined(__x86_64__) || defined(FASTGAN_HOST_UCONTEXT)
#define FASTGAN_HOST_USES_UCONTEXT
#include <ucontext.h>
#endif
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

// AddressSanitizer must be told of a change of stacks. Weak, since only one of the two builds has
// it.
extern "C" {
__attribute__((weak)) void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom,
                                                          std::size_t size);
__attribute__((weak)) void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom,
                                                           std::size_t* size);
}

#if !defined(FASTGAN_HOST_USES_UCONTEXT)
// void change_stack(void** from (rdi), void* to (rsi)): keeps what the calling convention makes the
// callee keep. swapcontext does the same with a system call each time: measured 240 ns against 5.
asm(R"(
    .text
    .p2align 4
    .type fastgan_host_change_stack, @function
fastgan_host_change_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size fastgan_host_change_stack, .-fastgan_host_change_stack
)");
extern "C" void fastgan_host_change_stack(void** from, void* to);
#endif

namespace fastgan_host {

struct Fiber::Context {
#if defined(FASTGAN_HOST_USES_UCONTEXT)
    ucontext_t context;
#else
    void* stack_pointer = nullptr;
#endif
};

namespace {

Fiber* entered = nullptr;
// The process's own stack, as AddressSanitizer knows it; learned when a fiber is first entered.
const void* outside_bottom = nullptr;
std::size_t outside_size = 0;
void* outside_fake_stack = nullptr;

void announce_change(void** fake_stack, const void* bottom, std::size_t size) {
    if (__sanitizer_start_switch_fiber != nullptr) {
        __sanitizer_start_switch_fiber(fake_stack, bottom, size);
    }
}

void confirm_change(void* fake_stack, const void** bottom, std::size_t* size) {
    if (__sanitizer_finish_switch_fiber != nullptr) {
        __sanitizer_finish_switch_fiber(fake_stack, bottom, size);
    }
}

}  // namespace

void Fiber::change(Context& from, Context& to) {
#if defined(FASTGAN_HOST_USES_UCONTEXT)
    swapcontext(&from.context, &to.context);
#else
    fastgan_host_change_stack(&from.stack_pointer, to.stack_pointer);
#endif
}

Fiber::Fiber(void (*body)(Fiber&)) : body_(body), own_(new Context), outside_(new Context) {
    constexpr std::size_t page = 4096;
    // The page below the stack is never mapped in: to overflow the stack is to crash.
    void* const memory = mmap(nullptr, kStackBytes + page, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE) != 0) {
        std::perror("host harness: no memory for a thread's stack");
        std::abort();
    }
    stack_ = static_cast<char*>(memory) + page;
#if defined(FASTGAN_HOST_USES_UCONTEXT)
    getcontext(&own_->context);
    own_->context.uc_stack.ss_sp = stack_;
    own_->context.uc_stack.ss_size = kStackBytes;
    own_->context.uc_link = nullptr;
    makecontext(&own_->context, &Fiber::start, 0);
#else
    // As if change_stack had been called from a function about to return into start(): six
    // registers, the address to return to, and above it where start()'s caller would be.
    void* words[8] = {};
    words[6] = reinterpret_cast<void*>(&Fiber::start);
    own_->stack_pointer = stack_ + kStackBytes - sizeof(words);
    std::memcpy(own_->stack_pointer, words, sizeof(words));
#endif
}

void Fiber::start() {
    confirm_change(nullptr, &outside_bottom, &outside_size);
    entered->body_(*entered);
    std::abort();
}

void Fiber::enter() {
    entered = this;
    announce_change(&outside_fake_stack, stack_, kStackBytes);
    change(*outside_, *own_);
    confirm_change(outside_fake_stack, nullptr, nullptr);
}

void Fiber::leave() {
    announce_change(&fake_stack_, outside_bottom, outside_size);
    change(*own_, *outside_);
    confirm_change(fake_stack_, nullptr, nullptr);
}

}  // namespace fastgan_host
