"""Independent streams of random numbers from one seed.

Weights, noise, data order and the noise of sample grids all come from the run's one seed, but must
not share numbers: a generator seeded with the same number as another draws the same.
"""

from __future__ import annotations

import numpy as np
import torch

__all__ = ["seeded_generator"]


def seeded_generator(seed: int, stream: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose numbers depend on the seed and on the stream, well mixed.

    Args:
        seed: the user's.
        stream: which of the streams of that seed, from 0.
        device: where its numbers are drawn.

    Example:
        >>> a, b = seeded_generator(0, stream=0), seeded_generator(0, stream=1)
        >>> bool(torch.rand((), generator=a) == torch.rand((), generator=b))
        False
    """
    # numpy promises that SeedSequence's mixing never changes; torch alone has no such thing.
    mixed = np.random.SeedSequence([seed % 2**64, stream]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(mixed >> np.uint64(1)))
