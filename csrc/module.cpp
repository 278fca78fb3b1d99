// fastgan._build: what this build contains, for fastgan.build_info() and `fastgan doctor`.
//
// A module of its own because torch's pybind casters and TORCH_TARGET_VERSION exclude each other.
// It touches no tensor, needs no torch, and so can say what was built even where ops.cpp's library
// does not load.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <vector>

#include "build_description.h"  // written by native_build.py

PYBIND11_MODULE(_build, module) {
    namespace description = fastgan::build_description;
    module.doc() = "What the compiled part of this fastgan build contains.";
    module.def(
        "description",
        [] {
            pybind11::dict result;
            result["version"] = std::string(description::version);
            result["torch_target"] = std::string(description::torch_target);
            result["built_with_torch"] = std::string(description::built_with_torch);
            result["cxx_compiler"] = std::string(description::cxx_compiler);
            result["cxx_flags"] = description::cxx_flags;
            result["cpu_instruction_sets"] = description::cpu_instruction_sets;
            result["cuda"] = description::cuda;
            result["cuda_toolkit"] = description::cuda_toolkit;
            result["cuda_architectures"] = description::cuda_architectures;
            result["cuda_flags"] = description::cuda_flags;
            result["cuda_left_out_because"] = description::cuda_left_out_because;
            return result;
        },
        "The description as a dictionary.");
}
