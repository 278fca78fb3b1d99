#include "clip.h"

#include <algorithm>

#include "clip_loops.h"
#include "parallel.h"

namespace fastgan::cpu {

void clip(const TensorView& view, ClipBounds bounds) {
    const Layout& layout = view.layout;
    const auto clip_row = FASTGAN_SELECT(clip_row);
    const std::int64_t element_bytes = bytes_of(view.type);
    char* const data = static_cast<char*>(view.data);
    // A 0-d tensor has no dimension to walk: it is one row of one element.
    const std::int64_t row_size = layout.dimensions == 0 ? 1 : layout.sizes[0];
    const std::int64_t row_stride = layout.dimensions == 0 ? 1 : layout.strides[0];
    // Ranges of elements, not of rows, so that one long row is shared out like many short ones.
    parallel_for(0, layout.numel, kGrain, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t index = begin; index < end;) {
            const std::int64_t left_in_row = row_size - index % row_size;
            const std::int64_t count = std::min(end - index, left_in_row);
            clip_row(view.type, data + layout.offset(index) * element_bytes, count, row_stride,
                     bounds);
            index += count;
        }
    });
}

}  // namespace fastgan::cpu
