"""Independent streams of random numbers from one seed.

Weights, noise, data order and sample grids derive from the run's seed but need different streams:
generators with equal seeds draw equal numbers.
"""

from __future__ import annotations

import numpy as np
import torch


def seeded_generator(seed: int, stream: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator seeded by a well-mixed combination of seed and stream.

    Args:
        seed: the user's.
        stream: number of the seed's stream, from 0.
        device: the generator's device.

    Example:
        >>> a, b = seeded_generator(0, stream=0), seeded_generator(0, stream=1)
        >>> bool(torch.rand((), generator=a) == torch.rand((), generator=b))
        False
    """
    # numpy guarantees that SeedSequence's mixing never changes; torch has no equivalent.
    mixed = np.random.SeedSequence([seed % 2**64, stream]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(mixed >> np.uint64(1)))
