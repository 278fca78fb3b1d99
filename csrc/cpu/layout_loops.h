// The loops of layout.h, declared once per instruction set.
#pragma once

#include <cstdint>

#include "instruction_sets.h"

namespace fastgan::cpu {

// Side of a block: whole cache lines are read and written. The rows of a map are often a power of
// two apart, so that partly used lines would evict each other from the cache.
inline constexpr std::int64_t kLayoutSide = 16;

// Transposes a strip of blocks of a matrix of `rows` by `columns` values of 2 or 4 bytes: rows (or
// columns) from `across` on, along the longer side, which touches the fewest rows at a time.
FASTGAN_FOR_EACH_INSTRUCTION_SET(void transpose_strip(std::int64_t rows, std::int64_t columns,
                                                      std::int64_t across, std::int64_t bytes,
                                                      const void* from, void* to))

}  // namespace fastgan::cpu
