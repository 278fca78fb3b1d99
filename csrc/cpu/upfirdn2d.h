// upfirdn2d and filtered_lrelu on a CPU: math/upfirdn2d.h says what they compute.
#pragma once

#include "../upfirdn2d.h"

namespace fastgan::cpu {

void upfirdn2d(const FirMaps& maps, const Filter& filter);

void filtered_lrelu(const FirMaps& maps, const Filter& first, const FirBetween& between,
                    const Filter& second);

}  // namespace fastgan::cpu
