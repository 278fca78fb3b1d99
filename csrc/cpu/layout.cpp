#include "layout.h"

#include <algorithm>
#include <cstring>

#include "parallel.h"

namespace fastgan::cpu {

namespace {

// Side of a block: whole cache lines are read and written. The rows of a map are often a power of
// two apart, so that partly used lines would evict each other from the cache.
constexpr std::int64_t kSide = 16;

// Transposes the block at (row, column).
template <typename T>
void transpose_block(const T* from, std::int64_t row, std::int64_t column, std::int64_t rows,
                     std::int64_t columns, T* to) {
    from += row * columns + column;
    to += column * rows + row;
    if (row + kSide <= rows && column + kSide <= columns) {
        T block[kSide][kSide];
        for (std::int64_t i = 0; i < kSide; ++i) {
            for (std::int64_t j = 0; j < kSide; ++j) {
                block[j][i] = from[i * columns + j];
            }
        }
        for (std::int64_t j = 0; j < kSide; ++j) {
            std::memcpy(to + j * rows, block[j], sizeof(block[j]));
        }
        return;
    }
    for (std::int64_t j = 0; j < std::min(kSide, columns - column); ++j) {
        for (std::int64_t i = 0; i < std::min(kSide, rows - row); ++i) {
            to[j * rows + i] = from[i * columns + j];
        }
    }
}

// Each task is a strip of blocks along the longer side, which touches the fewest rows at a time.
template <typename T>
void transpose_typed(std::int64_t count, std::int64_t rows, std::int64_t columns, const T* from,
                     T* to) {
    const bool along_columns = columns >= rows;
    const std::int64_t length = std::max(rows, columns);
    const std::int64_t strips = (std::min(rows, columns) + kSide - 1) / kSide;
    const std::int64_t grain = std::max<std::int64_t>(kGrain / (kSide * length), 1);
    parallel_for(0, count * strips, grain, [=](std::int64_t begin, std::int64_t end) {
        for (std::int64_t index = begin; index < end; ++index) {
            const std::int64_t matrix = index / strips * rows * columns;
            const std::int64_t across = index % strips * kSide;
            for (std::int64_t along = 0; along < length; along += kSide) {
                transpose_block(from + matrix, along_columns ? across : along,
                                along_columns ? along : across, rows, columns, to + matrix);
            }
        }
    });
}

}  // namespace

void transpose(std::int64_t count, std::int64_t rows, std::int64_t columns, std::int64_t bytes,
               const void* from, void* to) {
    if (bytes == 2) {
        transpose_typed(count, rows, columns, static_cast<const std::uint16_t*>(from),
                        static_cast<std::uint16_t*>(to));
    } else {
        transpose_typed(count, rows, columns, static_cast<const std::uint32_t*>(from),
                        static_cast<std::uint32_t*>(to));
    }
}

}  // namespace fastgan::cpu
