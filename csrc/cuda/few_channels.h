// Convolutions with few channels on one side on CUDA devices, on `stream`: math/few_channels.h.
#pragma once

#include "../math/few_channels.h"

namespace fastgan::cuda {

// Why the kernel can't run these sizes; null if it can.
const char* few_channels_obstacle(const FewChannels& problem);

// output = z(conv + bias), or conv * z' from `kept`, which lies as the output does. bias, kept: or
// null. All of the problem's type.
void few_channels_gather(const FewChannels& problem, const void* input, const void* weight,
                         const void* bias, const void* kept, void* output, void* stream);

}  // namespace fastgan::cuda
