"""The cases by suite, for each kind of device, in full or for a few minutes.

================  =================================================================================
module            cases
================  =================================================================================
``optimizers``    a step and the clip of the weights, the clip alone
``convolutions``  each pass of a DCGAN's convolutions; on a CPU only those of our kernels
``fused_layers``  a DCGAN's layers one by one, forward and backward
``penalties`` the gradient penalty and whole losses, value and gradients, for our critic and
                  third-party ones
``networks``      a DCGAN's networks, forward and backward
``iterations``    a whole iteration of training
``style``         StyleGAN's operations and a small StyleGAN2 generator
``layers``        their layers' shapes, for counting work
================  =================================================================================
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from fastgan.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from fastgan.bench.cases import Case

__all__ = ["SUITES", "suite_cases"]

#: The modules of each suite, imported when their cases are made, as they need torch.
SUITES: Mapping[str, tuple[str, ...]] = {
    "ops": ("optimizers", "convolutions", "fused_layers", "penalties"),
    "models": ("networks",),
    "training": ("iterations",),
    "style": ("style",),
}


def suite_cases(suite: str, device: torch.device, *, quick: bool = False) -> list[Case]:
    """The cases of a suite.

    Args:
        suite: a name of :data:`SUITES`, or "all".
        device: their device; on a GPU batches are larger.
        quick: only cases for a few minutes on two cores.

    Raises:
        ConfigError: there is no such suite.

    Example:
        >>> import torch
        >>> cases = suite_cases("models", torch.device("cpu"), quick=True)
        >>> {case.suite for case in cases}
        {'models'}
    """
    if suite != "all" and suite not in SUITES:
        raise ConfigError(f"suite: expected one of {', '.join([*SUITES, 'all'])}, got {suite!r}")
    names = list(SUITES) if suite == "all" else [suite]
    modules = [
        importlib.import_module(f"fastgan.bench.suites.{module}")
        for name in names
        for module in SUITES[name]
    ]
    return [case for module in modules for case in module.cases(device, quick)]
