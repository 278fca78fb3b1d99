#include "../optimizers.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "multi_tensor_loops.h"
#include "parallel.h"

namespace fastgan::cpu {

namespace {

// Elements per block of a thread: few enough that the shadow's loop finds the step's results in the
// L1 cache, and that a copy fits on the stack.
constexpr std::int64_t kBlock = 1024;
constexpr std::int64_t kMaxElementBytes = 8;

// Iterates over the rows of several tensors with one layout.
class JointCursor {
  public:
    JointCursor(const JointLayout& layout, std::int64_t index) : layout_(layout) {
        for (int d = 0; d < layout.dimensions; ++d) {
            const std::int64_t remaining = index / layout.sizes[d];
            position_[d] = index - remaining * layout.sizes[d];
            index = remaining;
        }
        for (int place = 0; place < kPlaces; ++place) {
            for (int d = 0; d < layout.dimensions; ++d) {
                offset_[place] += position_[d] * layout.strides[place][d];
            }
        }
    }

    std::int64_t left_in_row() const { return layout_.sizes[0] - position_[0]; }
    std::int64_t offset(int place) const { return offset_[place]; }

    // By at most left_in_row() elements.
    void advance(std::int64_t count) {
        move(0, count);
        for (int d = 0; d + 1 < layout_.dimensions && position_[d] == layout_.sizes[d]; ++d) {
            move(d, -layout_.sizes[d]);
            move(d + 1, 1);
        }
    }

  private:
    void move(int dimension, std::int64_t count) {
        position_[dimension] += count;
        for (int place = 0; place < kPlaces; ++place) {
            offset_[place] += count * layout_.strides[place][dimension];
        }
    }

    const JointLayout& layout_;
    std::int64_t position_[kMaxDimensions] = {};
    std::int64_t offset_[kPlaces] = {};
};

template <typename Bits>
void copy_row(void* to, std::int64_t to_stride, const void* from, std::int64_t from_stride,
              std::int64_t count) {
    auto* const target = static_cast<Bits*>(to);
    const auto* const source = static_cast<const Bits*>(from);
    for (std::int64_t i = 0; i < count; ++i) {
        target[i * to_stride] = source[i * from_stride];
    }
}

void copy_row(std::int64_t element_bytes, void* to, std::int64_t to_stride, const void* from,
              std::int64_t from_stride, std::int64_t count) {
    switch (element_bytes) {
        case 8:
            return copy_row<std::uint64_t>(to, to_stride, from, from_stride, count);
        case 4:
            return copy_row<std::uint32_t>(to, to_stride, from, from_stride, count);
        default:
            return copy_row<std::uint16_t>(to, to_stride, from, from_stride, count);
    }
}

// The places that a pass reads and writes, if they exist.
struct Places {
    bool read[kPlaces];
    bool written[kPlaces];
};

// Calls pass(item number, data at each place, count) for all elements, distributed over torch's
// threads by elements, not tensors, to balance large tensors.
template <typename Pass>
void for_each_run(const MultiTensor& tensors, const Places& places, FloatType shadow_type,
                  const Pass& pass) {
    std::vector<std::int64_t> ends;  // of each tensor, counting elements over all
    ends.reserve(tensors.items.size());
    std::int64_t total = 0;
    for (const MultiTensorItem& item : tensors.items) {
        total += item.numel;
        ends.push_back(total);
    }
    std::int64_t bytes[kPlaces];
    std::fill(bytes, bytes + kPlaces, bytes_of(tensors.type));
    bytes[kShadow] = bytes_of(shadow_type);

    const auto dense_range = [&](std::size_t number, std::int64_t begin, std::int64_t end) {
        const MultiTensorItem& item = tensors.items[number];
        for (std::int64_t index = begin; index < end; index += kBlock) {
            void* data[kPlaces];
            for (int place = 0; place < kPlaces; ++place) {
                data[place] = item.data[place] == nullptr
                                  ? nullptr
                                  : static_cast<char*>(item.data[place]) + index * bytes[place];
            }
            pass(number, data, std::min(kBlock, end - index));
        }
    };

    // A block is gathered from its rows, passed, and scattered again.
    const auto strided_range = [&](std::size_t number, std::int64_t begin, std::int64_t end) {
        const MultiTensorItem& item = tensors.items[number];
        const JointLayout& layout = tensors.layouts[static_cast<std::size_t>(item.layout)];
        alignas(64) char buffers[kPlaces][kBlock * kMaxElementBytes];
        for (std::int64_t index = begin; index < end; index += kBlock) {
            const std::int64_t count = std::min(kBlock, end - index);
            const auto copy_rows = [&](const bool (&copied)[kPlaces], bool gather) {
                JointCursor cursor(layout, index);
                for (std::int64_t done = 0; done < count;) {
                    const std::int64_t row = std::min(count - done, cursor.left_in_row());
                    for (int place = 0; place < kPlaces; ++place) {
                        if (item.data[place] == nullptr || !copied[place]) {
                            continue;
                        }
                        char* const buffer = buffers[place] + done * bytes[place];
                        char* const row_data = static_cast<char*>(item.data[place]) +
                                               cursor.offset(place) * bytes[place];
                        const std::int64_t stride = layout.strides[place][0];
                        if (gather) {
                            copy_row(bytes[place], buffer, 1, row_data, stride, row);
                        } else {
                            copy_row(bytes[place], row_data, stride, buffer, 1, row);
                        }
                    }
                    done += row;
                    cursor.advance(row);
                }
            };
            void* data[kPlaces];
            for (int place = 0; place < kPlaces; ++place) {
                data[place] = item.data[place] == nullptr ? nullptr : buffers[place];
            }
            copy_rows(places.read, true);
            pass(number, data, count);
            copy_rows(places.written, false);
        }
    };

    parallel_for(0, total, kGrain, [&](std::int64_t begin, std::int64_t end) {
        auto number = static_cast<std::size_t>(std::upper_bound(ends.begin(), ends.end(), begin) -
                                               ends.begin());
        for (std::int64_t index = begin; index < end; ++number) {
            const std::int64_t start = ends[number] - tensors.items[number].numel;
            const std::int64_t stop = std::min(end, ends[number]);
            if (tensors.items[number].layout == MultiTensorItem::kDense) {
                dense_range(number, index - start, stop - start);
            } else {
                strided_range(number, index - start, stop - start);
            }
            index = stop;
        }
    });
}

template <typename Optimizer, typename Run>
void step(const MultiTensor& tensors, const Optimizer& optimizer, const StepSettings& settings,
          const Run& run) {
    if (settings.skipped()) {
        return;
    }
    const double lr = settings.current_lr();
    std::vector<decltype(optimizer.scalars(lr, 0.0))> scalars;
    scalars.reserve(tensors.items.size());
    for (const MultiTensorItem& item : tensors.items) {
        const double number = item.step.read() + 1;
        item.step.write(number);
        scalars.push_back(optimizer.scalars(lr, number));
    }
    const CommonScalars common = common_scalars(settings);
    const Places places = {{true, true, true, true, true, false},
                           {true, common.is_scaled, true, true, true, true}};
    const auto shadow_run = FASTGAN_SELECT(shadow_run);
    for_each_run(tensors, places, settings.shadow_type,
                 [&](std::size_t number, void* const* data, std::int64_t count) {
                     run(tensors.type, data, count, optimizer, scalars[number], common);
                     if (data[kShadow] != nullptr) {
                         shadow_run(tensors.type, data[kParam], settings.shadow_type, data[kShadow],
                                    count);
                     }
                 });
}

}  // namespace

#define FASTGAN_DEFINE_STEP(name, Optimizer)                                    \
    void name##_step(const MultiTensor& tensors, const Optimizer& optimizer,    \
                     const StepSettings& settings) {                            \
        step(tensors, optimizer, settings, FASTGAN_SELECT(name##_run));         \
    }
FASTGAN_OPTIMIZERS(FASTGAN_DEFINE_STEP)

void clip_tensors(const MultiTensor& tensors, ClipBounds bounds, FloatType shadow_type,
                  const ScalarReference& found_inf) {
    if (found_inf.present() && found_inf.read() != 0) {
        return;
    }
    const auto clip_run = FASTGAN_SELECT(clip_run);
    const auto shadow_run = FASTGAN_SELECT(shadow_run);
    const Places places = {{true, false, false, false, false, false},
                           {true, false, false, false, false, true}};
    for_each_run(tensors, places, shadow_type,
                 [&](std::size_t, void* const* data, std::int64_t count) {
                     clip_run(tensors.type, data, count, bounds);
                     if (data[kShadow] != nullptr) {
                         shadow_run(tensors.type, data[kParam], shadow_type, data[kShadow], count);
                     }
                 });
}

}  // namespace fastgan::cpu
