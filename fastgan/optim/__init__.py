"""RMSprop, Adam and AdamW that step and clip the weights in one pass over memory.

Drop-in for the classes of the same name in :mod:`torch.optim`: the same arguments, the same values,
the same state dicts. ``docs/optimisers.md`` has the details and the measurements.
"""

from __future__ import annotations

from fastgan.optim.adam import Adam
from fastgan.optim.adamw import AdamW
from fastgan.optim.rmsprop import RMSprop

__all__ = ["Adam", "AdamW", "RMSprop"]
