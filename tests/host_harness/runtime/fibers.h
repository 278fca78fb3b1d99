// Fibers: functions with a stack each that take turns on one host thread.
#pragma once

#include <cstddef>

namespace fastgan_host {

class Fiber {
  public:
    // Calls body(*this), which must not return, when first entered. Never destroyed: the scheduler
    // uses fibers again.
    explicit Fiber(void (*body)(Fiber&));
    Fiber(const Fiber&) = delete;
    Fiber& operator=(const Fiber&) = delete;

    void enter();  // from the process's own stack; returns when the fiber leaves
    void leave();  // from within; returns when it is entered again

    bool on_stack(const void* address) const {
        return address >= stack_ && address < stack_ + kStackBytes;
    }

  private:
    struct Context;  // the processor's state of what does not run now

    static void start();
    static void change(Context& from, Context& to);

    // For kernels, whose local variables are few, and the sanitizers, which enlarge them.
    static constexpr std::size_t kStackBytes = 256 << 10;

    void (*body_)(Fiber&);
    char* stack_;
    Context* own_;
    Context* outside_;
    void* fake_stack_ = nullptr;  // AddressSanitizer's
};

}  // namespace fastgan_host
