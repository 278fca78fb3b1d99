// One binary for every processor of an architecture: hot loops are compiled once per instruction
// set and chosen when they run.
//
// A file `*_loops.cpp` holds loops and nothing else. The build compiles it once for each
// instruction set below, each time with that set's compiler flags and
// -DFASTGAN_INSTRUCTION_SET=<name>, and the file puts its functions in namespace
// fastgan::cpu::<name>. native_build.py lists sets and flags. A loop file includes math/ and plain
// C headers alone: an inline function of the C++ library, compiled for AVX-512 there, could become
// the copy that the whole program uses.
#pragma once

#if defined(__x86_64__)
#define FASTGAN_FOR_EACH_INSTRUCTION_SET(declare) \
    namespace baseline {                          \
    declare;                                      \
    }                                             \
    namespace avx2 {                              \
    declare;                                      \
    }                                             \
    namespace avx512 {                            \
    declare;                                      \
    }
// The same, and AVX-512 with VNNI, for the files that native_build.py compiles for it.
#define FASTGAN_FOR_EACH_INSTRUCTION_SET_AND_VNNI(declare) \
    FASTGAN_FOR_EACH_INSTRUCTION_SET(declare)              \
    namespace avx512_vnni {                                \
    declare;                                               \
    }
// Of a function's versions, the one for this processor.
#define FASTGAN_SELECT(function)                                                     \
    ::fastgan::cpu::select(&baseline::function, &avx2::function, &avx512::function, \
                           &avx512::function)
#define FASTGAN_SELECT_VNNI(function)                                                \
    ::fastgan::cpu::select(&baseline::function, &avx2::function, &avx512::function, \
                           &avx512_vnni::function)
#else
#define FASTGAN_FOR_EACH_INSTRUCTION_SET(declare) \
    namespace baseline {                          \
    declare;                                      \
    }
#define FASTGAN_FOR_EACH_INSTRUCTION_SET_AND_VNNI(declare) FASTGAN_FOR_EACH_INSTRUCTION_SET(declare)
#define FASTGAN_SELECT(function) (&baseline::function)
#define FASTGAN_SELECT_VNNI(function) (&baseline::function)
#endif

namespace fastgan::cpu {

enum class InstructionSet { baseline, avx2, avx512, avx512_vnni };

// The widest set that both the build and this processor have. The environment variable
// FASTGAN_CPU_INSTRUCTION_SET (their names) lowers it, never raises it; it is read once.
InstructionSet instruction_set();

const char* name(InstructionSet set);

template <typename Function>
Function select(Function baseline, Function avx2, Function avx512, Function avx512_vnni) {
    switch (instruction_set()) {
        case InstructionSet::avx512_vnni:
            return avx512_vnni;
        case InstructionSet::avx512:
            return avx512;
        case InstructionSet::avx2:
            return avx2;
        case InstructionSet::baseline:
            break;
    }
    return baseline;
}

}  // namespace fastgan::cpu
