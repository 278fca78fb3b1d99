// What the optimisers' kernels take, made of a case's tensors: lists "params", "grads", "state0" to
// "state2", "shadows" and "steps", and tensors of one element "lr_tensor", "grad_scale" and
// "found_inf".
#pragma once

#include <limits>

#include "optimizers.h"
#include "program.h"

namespace fastgan_host {

inline fastgan::ScalarReference scalar_reference(const Tensor& tensor) {
    return {tensor.data, tensor.type == fastgan::FloatType::float64};
}

inline fastgan::ScalarReference optional_scalar(const Request& request, const char* name) {
    return request.has_tensor(name) ? scalar_reference(request.tensor(name))
                                    : fastgan::ScalarReference{};
}

inline fastgan::MultiTensor multi_tensor(const Request& request) {
    const char* const names[fastgan::kPlaces] = {"params", "grads",  "state0",
                                                 "state1", "state2", "shadows"};
    const std::vector<Tensor> params = request.tensors("params");
    fastgan::MultiTensor result;
    result.type = params.front().type;
    result.items.resize(params.size());
    for (std::size_t i = 0; i < params.size(); ++i) {
        const Tensor& param = params[i];
        fastgan::MultiTensorItem& item = result.items[i];
        item.numel = param.numel;
        if (request.has_tensor("steps")) {
            item.step = scalar_reference(request.tensors("steps")[i]);
        }
        std::vector<Tensor> tensors(fastgan::kPlaces);
        const std::int64_t* strides[fastgan::kPlaces] = {};
        for (int place = 0; place < fastgan::kPlaces; ++place) {
            if (request.has_tensor(names[place])) {
                tensors[place] = request.tensors(names[place])[i];
                item.data[place] = tensors[place].data;
                strides[place] = tensors[place].strides.data();
            }
        }
        const fastgan::JointLayout layout = fastgan::make_joint_layout(
            param.sizes.data(), strides, static_cast<int>(param.sizes.size()));
        if (item.numel > 0 && !layout.is_dense()) {
            item.layout = static_cast<int>(result.layouts.size());
            result.layouts.push_back(layout);
        }
    }
    return result;
}

inline fastgan::FloatType shadow_type(const Request& request) {
    return request.has_tensor("shadows") ? request.tensors("shadows").front().type
                                         : fastgan::FloatType::bfloat16;
}

inline fastgan::StepSettings step_settings(const Request& request) {
    fastgan::StepSettings settings;
    settings.lr = request.number("lr");
    settings.lr_tensor = optional_scalar(request, "lr_tensor");
    settings.grad_scale = optional_scalar(request, "grad_scale");
    settings.found_inf = optional_scalar(request, "found_inf");
    settings.maximize = request.integer("maximize") != 0;
    constexpr double infinity = std::numeric_limits<double>::infinity();
    settings.clip_before = {-infinity, infinity};
    settings.clip_after = {request.number("lower"), request.number("upper")};
    settings.shadow_type = shadow_type(request);
    return settings;
}

}  // namespace fastgan_host
