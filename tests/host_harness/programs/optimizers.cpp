// csrc/cuda/optimizers.cu, for the host harness: an entry for each optimiser, with its settings as
// the case's numbers setting0, setting1, ...
#include <string>
#include <utility>

#include "multi_tensor_request.h"

template <typename Optimizer, typename... Settings, std::size_t... kIndices>
Optimizer settings_of(const fastgan_host::Request& request, fastgan::TypeList<Settings...>,
                      std::index_sequence<kIndices...>) {
    return {static_cast<Settings>(request.number("setting" + std::to_string(kIndices)))...};
}

template <typename Optimizer, typename... Settings>
Optimizer settings_of(const fastgan_host::Request& request, fastgan::TypeList<Settings...> types) {
    return settings_of<Optimizer>(request, types, std::index_sequence_for<Settings...>{});
}

template <typename Optimizer, typename Step>
void run(const fastgan_host::Request& request, const Step& step) {
    const auto optimizer = settings_of<Optimizer>(request, typename Optimizer::Types{});
    fastgan::StepSettings settings = fastgan_host::step_settings(request);
    settings.weight_decay = optimizer.decay();
    step(fastgan_host::multi_tensor(request), optimizer, settings, request.stream());
}

#define FASTGAN_ENTRY(name, Optimizer)                                \
    FASTGAN_HOST_ENTRY(name) {                                        \
        run<fastgan::Optimizer>(request, fastgan::cuda::name##_step); \
    }
FASTGAN_OPTIMIZERS(FASTGAN_ENTRY)
