// What the running program's own symbol table knows: names of kernels, and its shared variables.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace fastgan_host {

struct SharedVariable {
    std::string name;
    char* begin;
    std::size_t size;
};

// "clip_dense<float>" for the address of the kernel.
std::string kernel_name(const void* kernel);

// Every __shared__ variable of the program, by address. Ends the process if two of them have no gap
// between.
const std::vector<SharedVariable>& shared_variables();

// The segment that they and the gaps lie in.
struct SharedSegment {
    char* begin = nullptr;
    std::size_t size = 0;
};
SharedSegment shared_segment();

// Where the program's code and constants are in memory; what is in it, tools find at address -
// begin.
struct Image {
    const char* begin;
    const char* end;
};
Image image();

}  // namespace fastgan_host
