// What the programs of the batch-norm kernels ask of a case.
#pragma once

#include "batch_norm.h"
#include "program.h"

namespace fastgan_host {

// Tensors come as memory without gaps; how it is cut into channels, as three integers.
inline fastgan::ChannelLayout layout_of(const Request& request) {
    return fastgan::ChannelLayout{request.integer("images"), request.integer("channels"),
                                  request.integer("image_size")};
}

inline void* data_of(const Request& request, const char* name) {
    return request.tensor(name).data;
}

inline fastgan::ChannelVector vector_of(const Request& request, const char* name) {
    if (!request.has_tensor(name)) {
        return {};
    }
    const Tensor tensor = request.tensor(name);
    return fastgan::ChannelVector{tensor.data, tensor.type};
}

inline fastgan::Activation activation_of(const Request& request) {
    return static_cast<fastgan::Activation>(request.integer("activation"));
}

inline fastgan::NormAct norm_of(const Request& request) {
    return fastgan::NormAct{request.tensor("input").type, layout_of(request),
                            data_of(request, "mean"),     data_of(request, "scale"),
                            vector_of(request, "weight"), vector_of(request, "bias"),
                            activation_of(request),       request.number("negative_slope")};
}

}  // namespace fastgan_host
