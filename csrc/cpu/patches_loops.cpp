// Compiled once per instruction set: see instruction_sets.h. The formulas: patches.h.
#include "patches_loops.h"

#include <string.h>

#include "matrix_product.h"

namespace fastgan::cpu::FASTGAN_INSTRUCTION_SET {

namespace {

static_assert(kPatchSize % kPanel == 0 && kPatchDepth % kPanel == 0);

FASTGAN_INLINE std::int64_t patch_size(const PatchShape& shape) {
    return shape.rows.taps * shape.columns.taps * shape.wide_channels;
}

// In whole panels.
FASTGAN_INLINE std::int64_t padded_patch_size(const PatchShape& shape) {
    return (patch_size(shape) + kPanel - 1) / kPanel * kPanel;
}

// Channels [channel, channel + width) of `count` places from `first` on, a row of kPatchDepth each.
template <typename T>
void copy_channels(const T* small, std::int64_t channels, std::int64_t channel, std::int64_t width,
                   std::int64_t first, std::int64_t count, float* out) {
    for (std::int64_t index = 0; index < count; ++index) {
        const T* const from = small + (first + index) * channels + channel;
        for (std::int64_t c = 0; c < width; c += kLanes) {
            store(out + index * kPatchDepth + c, load(from + c));
        }
    }
}

// Channels [channel, channel + width) of the weight, a row of a patch's size each, in panels.
template <typename T>
void copy_weight(const PatchShape& shape, const T* weight, std::int64_t channel, std::int64_t width,
                 float* panels) {
    const std::int64_t size = patch_size(shape);
    const std::int64_t padded_size = padded_patch_size(shape);
    for (std::int64_t o = 0; o < width; ++o) {
        for (std::int64_t i = 0; i < padded_size; ++i) {
            panels[(i / kPanel * kPatchDepth + o) * kPanel + i % kPanel] =
                i < size ? to_arithmetic(weight[(channel + o) * size + i]) : 0.0f;
        }
    }
}

// Places are added to along rows and columns that reach as far as the patches do.
FASTGAN_INLINE std::int64_t reach(const PatchDimension& dimension) {
    const std::int64_t patches = (dimension.small - 1) * dimension.stride + dimension.taps;
    const std::int64_t map = dimension.wide + dimension.padding;
    return patches > map ? patches : map;
}

FASTGAN_INLINE void start_sums(const float* bias, std::int64_t channels, std::int64_t count,
                               float* sums) {
    if (bias == nullptr) {
        memset(sums, 0, count * sizeof(float));
        return;
    }
    for (std::int64_t place = 0; place < count; place += channels) {
        for (std::int64_t c = 0; c < channels; ++c) {
            sums[place + c] = bias[c];
        }
    }
}

typedef float Four __attribute__((vector_size(16)));

// Adds `count` pieces, a row of kPatchSize apart, at places `step` apart, of which `overlapping`
// neighbours overlap. Those that don't come one after the other, so that no load waits for a store.
FASTGAN_INLINE void add_pieces(const float* pieces, std::int64_t count, std::int64_t piece,
                               std::int64_t overlapping, std::int64_t step, float* sums) {
    for (std::int64_t first = 0; first < overlapping; ++first) {
        for (std::int64_t place = first; place < count; place += overlapping) {
            const float* const from = pieces + place * kPatchSize;
            float* const to = sums + place * step;
            std::int64_t i = 0;
            for (; i + 4 <= piece; i += 4) {
                Four value;
                Four sum;
                memcpy(&value, from + i, sizeof(value));
                memcpy(&sum, to + i, sizeof(sum));
                sum += value;
                memcpy(to + i, &sum, sizeof(sum));
            }
            for (; i < piece; ++i) {
                to[i] += from[i];
            }
        }
    }
}

// Adds the patches of one image to its sums.
template <typename T>
void add_patches(const PatchShape& shape, const T* small, const T* weight, bool weights_are_there,
                 std::int64_t image, float* values, float* weights, float* products, float* sums) {
    const PatchDimension& rows = shape.rows;
    const PatchDimension& columns = shape.columns;
    const std::int64_t channels = shape.wide_channels;
    const std::int64_t line = reach(columns) * channels;
    const std::int64_t piece = columns.taps * channels;
    const std::int64_t per_image = rows.small * columns.small;
    for (std::int64_t done = 0; done < per_image; done += kPatchPlaces) {
        const std::int64_t places = least(kPatchPlaces, per_image - done);
        for (std::int64_t channel = 0; channel < shape.small_channels; channel += kPatchDepth) {
            const std::int64_t depth = least(kPatchDepth, shape.small_channels - channel);
            if (!weights_are_there) {
                copy_weight(shape, weight, channel, depth, weights);
            }
            copy_channels(small, shape.small_channels, channel, depth, image * per_image + done,
                          places, values);
            multiply<kPatchDepth, 1>(values, weights, kPatchDepth * kPanel, padded(places),
                                     padded_patch_size(shape), depth, channel > 0, products,
                                     kPatchSize);
        }
        std::int64_t index = 0;
        while (index < places) {
            const std::int64_t row = (done + index) / columns.small;
            const std::int64_t column = (done + index) % columns.small;
            const std::int64_t count = least(columns.small - column, places - index);
            for (std::int64_t k = 0; k < rows.taps; ++k) {
                add_pieces(products + index * kPatchSize + k * piece, count, piece,
                           (columns.taps + columns.stride - 1) / columns.stride,
                           columns.stride * channels,
                           sums + (row * rows.stride + k) * line +
                               column * columns.stride * channels);
            }
            index += count;
        }
    }
}

template <typename T>
void scatter(const PatchShape& shape, const T* small, const T* weight, const float* bias, T* wide,
             std::int64_t first_image, std::int64_t end_image, float* scratch) {
    float* const values = scratch;
    float* const weights = values + kPatchPlaces * kPatchDepth;
    float* const products = weights + kPatchDepth * kPatchSize;
    const PatchDimension& rows = shape.rows;
    const PatchDimension& columns = shape.columns;
    const std::int64_t channels = shape.wide_channels;
    const std::int64_t line = reach(columns) * channels;
    float* const sums = products + kPatchPlaces * kPatchSize;
    const bool at_once = shape.small_channels <= kPatchDepth;
    if (at_once) {
        copy_weight(shape, weight, 0, shape.small_channels, weights);
    }
    for (std::int64_t image = first_image; image < end_image; ++image) {
        start_sums(bias, channels, reach(rows) * line, sums);
        add_patches(shape, small, weight, at_once, image, values, weights, products, sums);
        for (std::int64_t row = 0; row < rows.wide; ++row) {
            const float* const from =
                sums + (row + rows.padding) * line + columns.padding * channels;
            if (shape.wide_contiguous) {
                for (std::int64_t c = 0; c < channels; ++c) {
                    T* const to =
                        wide + ((image * channels + c) * rows.wide + row) * columns.wide;
                    for (std::int64_t i = 0; i < columns.wide; ++i) {
                        to[i] = from_arithmetic<T>(from[i * channels + c]);
                    }
                }
                continue;
            }
            T* const to = wide + (image * rows.wide + row) * columns.wide * channels;
            for (std::int64_t i = 0; i < columns.wide * channels; ++i) {
                to[i] = from_arithmetic<T>(from[i]);
            }
        }
    }
}

}  // namespace

void patch_scatter_images(const PatchShape& shape, FloatType type, const void* small,
                          const void* weight, const float* bias, void* wide, std::int64_t first,
                          std::int64_t end, float* scratch) {
    const auto run = [&]<typename T>(T) {
        scatter(shape, static_cast<const T*>(small), static_cast<const T*>(weight), bias,
                static_cast<T*>(wide), first, end, scratch);
    };
    type == FloatType::float32 ? run(float{}) : run(BFloat16{});
}

}  // namespace fastgan::cpu::FASTGAN_INSTRUCTION_SET
