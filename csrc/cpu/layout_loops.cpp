// Compiled once per instruction set: see instruction_sets.h.
#include "layout_loops.h"

#include <string.h>

#include "matrix_product.h"

namespace fastgan::cpu::FASTGAN_INSTRUCTION_SET {

namespace {

constexpr std::int64_t kSide = kLayoutSide;

// Of kSide by kSide values.
void transpose_whole(const std::uint16_t* from, std::int64_t rows, std::int64_t columns,
                     std::uint16_t* to) {
    std::uint16_t block[kSide][kSide];
    for (std::int64_t i = 0; i < kSide; ++i) {
        for (std::int64_t j = 0; j < kSide; ++j) {
            block[j][i] = from[i * columns + j];
        }
    }
    for (std::int64_t j = 0; j < kSide; ++j) {
        memcpy(to + j * rows, block[j], sizeof(block[j]));
    }
}

void transpose_whole(const float* from, std::int64_t rows, std::int64_t columns, float* to) {
    for (std::int64_t i = 0; i < kSide; i += kLanes) {
        for (std::int64_t j = 0; j < kSide; j += kLanes) {
            Vector lines[kLanes];
#pragma GCC unroll 16
            for (int l = 0; l < kLanes; ++l) {
                lines[l] = load(from + (i + l) * columns + j);
            }
            transpose(lines);
#pragma GCC unroll 16
            for (int l = 0; l < kLanes; ++l) {
                store(to + (j + l) * rows + i, lines[l]);
            }
        }
    }
}

template <typename T>
void transpose_block(const T* from, std::int64_t row, std::int64_t column, std::int64_t rows,
                     std::int64_t columns, T* to) {
    from += row * columns + column;
    to += column * rows + row;
    if (row + kSide <= rows && column + kSide <= columns) {
        transpose_whole(from, rows, columns, to);
        return;
    }
    for (std::int64_t j = 0; j < least(kSide, columns - column); ++j) {
        for (std::int64_t i = 0; i < least(kSide, rows - row); ++i) {
            to[j * rows + i] = from[i * columns + j];
        }
    }
}

template <typename T>
void transpose_typed(std::int64_t rows, std::int64_t columns, std::int64_t across, const void* from,
                     void* to) {
    const bool along_columns = columns >= rows;
    const std::int64_t length = along_columns ? columns : rows;
    for (std::int64_t along = 0; along < length; along += kSide) {
        transpose_block(static_cast<const T*>(from), along_columns ? across : along,
                        along_columns ? along : across, rows, columns, static_cast<T*>(to));
    }
}

}  // namespace

void transpose_strip(std::int64_t rows, std::int64_t columns, std::int64_t across,
                     std::int64_t bytes, const void* from, void* to) {
    if (bytes == 2) {
        transpose_typed<std::uint16_t>(rows, columns, across, from, to);
    } else {
        transpose_typed<float>(rows, columns, across, from, to);
    }
}

}  // namespace fastgan::cpu::FASTGAN_INSTRUCTION_SET
