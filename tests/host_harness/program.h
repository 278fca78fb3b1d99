// A program runs cases that a test sends it: each names an entry, gives it tensors and numbers, and
// gets the tensors back. To make a kernel's entry:
//
//     FASTGAN_HOST_ENTRY(sum) {
//         fastgan::cuda::sum(request.tensor("values"), request.number("scale"), request.stream());
//     }
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "math/float_types.h"

namespace fastgan_host {

struct Tensor {
    void* data = nullptr;
    fastgan::FloatType type = fastgan::FloatType::float32;
    std::int64_t numel = 1;
    std::vector<std::int64_t> sizes;
    std::vector<std::int64_t> strides;
};

class Request {
  public:
    // What the case calls by this name; ends the process if it has none.
    Tensor tensor(const std::string& name) const;
    // A case may give a list of tensors one name.
    std::vector<Tensor> tensors(const std::string& name) const;
    bool has_tensor(const std::string& name) const { return tensors_.count(name) != 0; }
    double number(const std::string& name) const;
    std::int64_t integer(const std::string& name) const;

    // The pretended GPU's stream to launch on. What is launched runs when the entry has returned.
    void* stream() const;

    std::map<std::string, std::vector<Tensor>> tensors_;
    std::map<std::string, double> numbers_;
    std::map<std::string, std::int64_t> integers_;
};

using Entry = void (*)(const Request& request);

struct EntryRegistration {
    EntryRegistration(const char* name, Entry entry);
};

}  // namespace fastgan_host

#define FASTGAN_HOST_ENTRY(name)                                                   \
    static void fastgan_host_entry_##name(const fastgan_host::Request& request);   \
    static const fastgan_host::EntryRegistration fastgan_host_registration_##name( \
        #name, &fastgan_host_entry_##name);                                        \
    static void fastgan_host_entry_##name([[maybe_unused]] const fastgan_host::Request& request)
