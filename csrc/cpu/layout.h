// Copies of maps between contiguous and channels-last memory.
#pragma once

#include <cstdint>

namespace fastgan::cpu {

// to[k][j][i] = from[k][i][j] for `count` matrices of `rows` by `columns` values of 2 or 4 bytes,
// without gaps. A contiguous map has (channels, pixels) for each sample, a channels-last one
// (pixels, channels).
void transpose(std::int64_t count, std::int64_t rows, std::int64_t columns, std::int64_t bytes,
               const void* from, void* to);

}  // namespace fastgan::cpu
