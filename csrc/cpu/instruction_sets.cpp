#include "instruction_sets.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace fastgan::cpu {

namespace {

InstructionSet widest_of_this_processor() {
#if defined(__x86_64__)
    // These also ask whether the operating system saves the wide registers.
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                          __builtin_cpu_supports("f16c");
    const bool has_avx512 =
        __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (has_avx2 && has_avx512) {
        return __builtin_cpu_supports("avx512vnni") ? InstructionSet::avx512_vnni
                                                    : InstructionSet::avx512;
    }
    if (has_avx2) {
        return InstructionSet::avx2;
    }
#endif
    return InstructionSet::baseline;
}

InstructionSet chosen() {
    const InstructionSet widest = widest_of_this_processor();
    const char* setting = std::getenv("FASTGAN_CPU_INSTRUCTION_SET");
    if (setting == nullptr || *setting == '\0') {
        return widest;
    }
    for (const auto set : {InstructionSet::baseline, InstructionSet::avx2, InstructionSet::avx512,
                           InstructionSet::avx512_vnni}) {
        if (std::string(setting) == name(set)) {
            return std::min(set, widest);
        }
    }
    throw std::runtime_error("FASTGAN_CPU_INSTRUCTION_SET is '" + std::string(setting) +
                             "'; expected baseline, avx2, avx512 or avx512_vnni");
}

}  // namespace

InstructionSet instruction_set() {
    static const InstructionSet set = chosen();
    return set;
}

const char* name(InstructionSet set) {
    switch (set) {
        case InstructionSet::avx512_vnni:
            return "avx512_vnni";
        case InstructionSet::avx512:
            return "avx512";
        case InstructionSet::avx2:
            return "avx2";
        case InstructionSet::baseline:
            break;
    }
    return "baseline";
}

}  // namespace fastgan::cpu
