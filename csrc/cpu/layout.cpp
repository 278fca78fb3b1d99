#include "layout.h"

#include <algorithm>

#include "layout_loops.h"
#include "parallel.h"

namespace fastgan::cpu {

void transpose(std::int64_t count, std::int64_t rows, std::int64_t columns, std::int64_t bytes,
               const void* from, void* to) {
    const std::int64_t length = std::max(rows, columns);
    const std::int64_t strips = (std::min(rows, columns) + kLayoutSide - 1) / kLayoutSide;
    const std::int64_t grain = std::max<std::int64_t>(kGrain / (kLayoutSide * length), 1);
    const auto transpose_strip = FASTGAN_SELECT(transpose_strip);
    parallel_for(0, count * strips, grain, [=](std::int64_t begin, std::int64_t end) {
        for (std::int64_t index = begin; index < end; ++index) {
            const std::int64_t matrix = index / strips * rows * columns * bytes;
            transpose_strip(rows, columns, index % strips * kLayoutSide, bytes,
                            static_cast<const char*>(from) + matrix,
                            static_cast<char*>(to) + matrix);
        }
    });
}

}  // namespace fastgan::cpu
