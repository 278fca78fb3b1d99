// csrc/cuda/optimizers.cu, for the host harness: an entry for each optimiser, with its settings as
// the case's numbers.
#include <iterator>
#include <utility>

#include "multi_tensor_request.h"

template <typename Optimizer, std::size_t... kIndices, typename... Settings>
Optimizer settings_of(const fastgan_host::Request& request, std::index_sequence<kIndices...>,
                      fastgan::TypeList<Settings...>) {
    return {static_cast<Settings>(request.number(Optimizer::kSettings[kIndices]))...};
}

template <typename Optimizer>
void run(const fastgan_host::Request& request) {
    const auto optimizer =
        settings_of<Optimizer>(request, std::make_index_sequence<std::size(Optimizer::kSettings)>{},
                               typename Optimizer::Types{});
    fastgan::StepSettings settings = fastgan_host::step_settings(request);
    settings.weight_decay = optimizer.decay();
    fastgan::cuda::optimizer_step(fastgan_host::multi_tensor(request), optimizer, settings,
                                  request.stream());
}

#define FASTGAN_ENTRY(name, Optimizer)    \
    FASTGAN_HOST_ENTRY(name) {            \
        run<fastgan::Optimizer>(request); \
    }
FASTGAN_OPTIMIZERS(FASTGAN_ENTRY)
