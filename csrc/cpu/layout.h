// Copies of maps between contiguous and channels-last memory.
#pragma once

#include <cstdint>

namespace fastgan::cpu {

// to[k][j][i] = from[k][i][j] for `count` dense matrices of `rows` by `columns` values of 2 or 4
// bytes. A sample of a contiguous map is a (channels, pixels) matrix, of a channels-last one a
// (pixels, channels) matrix.
void transpose(std::int64_t count, std::int64_t rows, std::int64_t columns, std::int64_t bytes,
               const void* from, void* to);

}  // namespace fastgan::cpu
