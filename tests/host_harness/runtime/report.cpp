#include "report.h"

#include <unistd.h>

#include <cstdio>

namespace fastgan_host {

Running running;

std::string describe(uint3 index) {
    return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " +
           std::to_string(index.z) + ")";
}

std::string describe(Site site) {
    const std::string path = site.file;
    return path.substr(path.rfind('/') + 1) + ":" + std::to_string(site.line);
}

namespace {

std::string place(const Thread* thread) {
    if (running.kernel.empty()) {
        return "";
    }
    std::string text = "in kernel " + running.kernel + ", block " + describe(running.block);
    if (thread != nullptr) {
        text += ", thread " + describe(thread->index);
    }
    return text;
}

void print(const std::string& text) {
    std::fflush(nullptr);
    std::fprintf(stderr, "%s\n", text.c_str());
    if (!running.label.empty()) {
        std::fprintf(stderr, "host harness: the case was %s\n", running.label.c_str());
    }
    std::fflush(nullptr);
}

}  // namespace

void fail(const std::string& kind, const std::string& what, const Thread* thread) {
    const std::string where = place(thread);
    print("host harness: " + kind + (where.empty() ? "" : " " + where) + ": " + what);
    _exit(kExitCodeOfFailure);
}

}  // namespace fastgan_host

// The sanitizers' own reports say which line, but not which thread of which block: this adds it.
// They call the one or the other hook before they end the process, depending on which reports.
extern "C" {

void __asan_on_error() {
    const std::string where = fastgan_host::place(fastgan_host::running.thread);
    fastgan_host::print("host harness: AddressSanitizer found an error " +
                        (where.empty() ? std::string("outside of any kernel") : where));
}

void __ubsan_on_report() {
    const std::string where = fastgan_host::place(fastgan_host::running.thread);
    fastgan_host::print("host harness: UndefinedBehaviorSanitizer found an error " +
                        (where.empty() ? std::string("outside of any kernel") : where));
}
}
