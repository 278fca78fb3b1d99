#include "../adversarial_loss.h"

#include <algorithm>
#include <vector>

#include "adversarial_loss_loops.h"
#include "parallel.h"

namespace fastgan::cpu {

namespace {

// Scores of one task: the same however many threads there are, and so is each sum.
constexpr std::int64_t kTile = kGrain;

struct Sums {
    double terms = 0;
    double shown = 0;
};

// body(the tile's scores, its number), in parallel.
template <typename Body>
void for_each_tile(FloatType type, const ScoreBatch& batch, const Body& body) {
    const std::int64_t tiles = (batch.count + kTile - 1) / kTile;
    parallel_for(0, tiles, 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t tile = begin; tile < end; ++tile) {
            const std::int64_t first = tile * kTile;
            const char* const scores =
                static_cast<const char*>(batch.scores) + first * bytes_of(type);
            body(ScoreBatch{scores, std::min(kTile, batch.count - first), batch.as_real}, tile);
        }
    });
}

// The means.
Sums means_of(FloatType type, AdversarialLoss loss, const ScoreBatch& batch, bool squash) {
    if (batch.count < 0) {
        return {};
    }
    const auto add = FASTGAN_SELECT(add_score_terms);
    std::vector<Sums> parts(static_cast<std::size_t>((batch.count + kTile - 1) / kTile));
    for_each_tile(type, batch, [&](const ScoreBatch& scores, std::int64_t tile) {
        double sums[2] = {};
        add(type, loss, scores, squash, sums);
        parts[static_cast<std::size_t>(tile)] = {sums[0], sums[1]};
    });
    Sums total;
    for (const Sums& part : parts) {
        total.terms += part.terms;
        total.shown += part.shown;
    }
    const double count = static_cast<double>(batch.count);
    return {total.terms / count, total.shown / count};
}

template <typename A>
void write(const Sums& real, const Sums& fake, void* shown, void* value) {
    *static_cast<A*>(value) = static_cast<A>(real.terms + fake.terms);
    A* const means = static_cast<A*>(shown);
    means[0] = static_cast<A>(real.shown);
    means[1] = static_cast<A>(fake.shown);
    means[2] = static_cast<A>(real.shown - fake.shown);
}

// One batch's.
void gradients_of(FloatType type, AdversarialLoss loss, const ScoreBatch& batch,
                  const void* grad_output, double scale, void* gradient) {
    double grad = 1;
    if (grad_output != nullptr) {
        grad = type == FloatType::float64 ? *static_cast<const double*>(grad_output)
                                          : *static_cast<const float*>(grad_output);
    }
    const double factor = grad * scale / static_cast<double>(batch.count);
    const auto write_gradients = FASTGAN_SELECT(write_score_gradients);
    for_each_tile(type, batch, [&](const ScoreBatch& scores, std::int64_t tile) {
        write_gradients(type, loss, scores, factor,
                        static_cast<char*>(gradient) + tile * kTile * bytes_of(type));
    });
}

}  // namespace

void adversarial_loss(FloatType type, AdversarialLoss loss, const ScoreBatch& real,
                      const ScoreBatch& fake, bool squash, void* shown, void* value) {
    const Sums of_real = means_of(type, loss, real, squash);
    const Sums of_fake = means_of(type, loss, fake, squash);
    const auto store = type == FloatType::float64 ? write<double> : write<float>;
    store(of_real, of_fake, shown, value);
}

void adversarial_gradients(FloatType type, AdversarialLoss loss, const ScoreBatch& real,
                           const ScoreBatch& fake, const void* grad_output, double scale,
                           void* grad_real, void* grad_fake) {
    gradients_of(type, loss, real, grad_output, scale, grad_real);
    if (fake.count >= 0) {
        gradients_of(type, loss, fake, grad_output, scale, grad_fake);
    }
}

}  // namespace fastgan::cpu
