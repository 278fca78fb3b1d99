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

// The sums that few_channels_sums needs memory for, in the type's arithmetic.
std::int64_t few_channels_workspace(const FewChannelsSums& problem);

// gradient = dw of math/few_channels.h. Sums are over at most 512 places in a row, and compensated
// beyond: their error does not grow with the batch.
void few_channels_sums(const FewChannelsSums& problem, const void* many, const void* few,
                       void* workspace, void* gradient, void* stream);

}  // namespace fastgan::cuda
