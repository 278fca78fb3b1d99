#include "../penalty_points.h"

#include <algorithm>
#include <cmath>

#include "parallel.h"
#include "penalty_points_loops.h"

namespace fastgan::cpu {

namespace {

std::int64_t samples_at_once(std::int64_t elements) {
    return std::max<std::int64_t>(1, kGrain / std::max<std::int64_t>(1, elements));
}

// Norms and P in double, written as A.
template <typename A>
void tangent_in(const PenaltySettings& settings, std::int64_t samples, std::int64_t elements,
                FloatType from, FloatType to, const void* gradient, void* tangent, A* norms,
                A* value) {
    const auto squares = FASTGAN_SELECT(sum_of_squares);
    const auto scale = FASTGAN_SELECT(scale_row);
    parallel_for(0, samples, samples_at_once(elements), [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t n = begin; n < end; ++n) {
            const void* input =
                static_cast<const char*>(gradient) + n * elements * bytes_of(from);
            const double norm = std::sqrt(squares(from, input, elements));
            norms[n] = static_cast<A>(norm);
            scale(from, to, input, penalty_factor(settings, norm),
                  static_cast<char*>(tangent) + n * elements * bytes_of(to), elements);
        }
    });
    double sum = 0;
    for (std::int64_t n = 0; n < samples; ++n) {
        const double excess = penalty_excess(settings, static_cast<double>(norms[n]));
        sum += excess * excess;
    }
    *value = static_cast<A>(settings.weight * sum / static_cast<double>(samples));
}

}  // namespace

void mix(const MixShape& shape, FloatType from, FloatType to, const void* real, const void* fake,
         const void* eps, void* batch) {
    const auto mix_one_row = FASTGAN_SELECT(mix_row);
    const std::int64_t row_size = shape.dimensions == 0 ? 1 : shape.sizes[0];
    const MixRow row{from, to, row_size, shape.dimensions == 0 ? 1 : shape.real_strides[0],
                     shape.dimensions == 0 ? 1 : shape.fake_strides[0]};
    const std::int64_t third = shape.samples * shape.elements * bytes_of(to);
    parallel_for(
        0, shape.samples, samples_at_once(shape.elements),
        [&](std::int64_t begin, std::int64_t end) {
            for (std::int64_t n = begin; n < end; ++n) {
                const double share = from == FloatType::float64
                                         ? static_cast<const double*>(eps)[n]
                                         : static_cast<const float*>(eps)[n];
                for (std::int64_t first = 0; first < shape.elements; first += row_size) {
                    const MixShape::Offsets at = shape.offsets(n, first);
                    char* const out =
                        static_cast<char*>(batch) + (n * shape.elements + first) * bytes_of(to);
                    mix_one_row(row, static_cast<const char*>(real) + at.real * bytes_of(from),
                                static_cast<const char*>(fake) + at.fake * bytes_of(from), share,
                                out, out + third, out + 2 * third);
                }
            }
        });
}

void penalty_tangent(const PenaltySettings& settings, std::int64_t samples, std::int64_t elements,
                     FloatType from, FloatType to, const void* gradient, void* tangent,
                     void* norms, void* value) {
    if (from == FloatType::float64) {
        tangent_in(settings, samples, elements, from, to, gradient, tangent,
                   static_cast<double*>(norms), static_cast<double*>(value));
    } else {
        tangent_in(settings, samples, elements, from, to, gradient, tangent,
                   static_cast<float*>(norms), static_cast<float*>(value));
    }
}

}  // namespace fastgan::cpu
