// upfirdn2d and filtered_lrelu on CUDA devices, like cpu/upfirdn2d.h, on `stream`.
#pragma once

#include "../upfirdn2d.h"

namespace fastgan::cuda {

void upfirdn2d(const FirMaps& maps, const Filter& filter, void* stream);

void filtered_lrelu(const FirMaps& maps, const Filter& first, const FirBetween& between,
                    const Filter& second, void* stream);

}  // namespace fastgan::cuda
