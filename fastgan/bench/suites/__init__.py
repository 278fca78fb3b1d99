"""What is measured: cases by suite, on each kind of device, in full or in a few minutes.

================  =================================================================================
room              cases
================  =================================================================================
``optimizers``    a step and the clip of the weights, the clip alone
``convolutions``  each pass of a DCGAN's convolutions alone; on a CPU those of our kernels
``fused_layers``  a DCGAN's layers one by one, forward and backward
``penalties``     the gradient penalty and whole losses with one, value and gradients, of our critic
                  and of others'
``networks``      a DCGAN's networks, forward and backward
``iterations``    a whole iteration of training
``layers``        their layers' shapes, from which their work is counted
================  =================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from fastgan.bench.cases import Case
from fastgan.bench.suites import (
    convolutions,
    fused_layers,
    iterations,
    networks,
    optimizers,
    penalties,
)
from fastgan.errors import ConfigError

__all__ = ["SUITES", "suite_cases"]

Maker = Callable[[torch.device, bool], list[Case]]

SUITES: Mapping[str, tuple[Maker, ...]] = {
    "ops": (optimizers.cases, convolutions.cases, fused_layers.cases, penalties.cases),
    "models": (networks.cases,),
    "training": (iterations.cases,),
}


def suite_cases(suite: str, device: torch.device, *, quick: bool = False) -> list[Case]:
    """The cases of a suite.

    Args:
        suite: a name of :data:`SUITES`, or "all".
        device: where they are to run; on a GPU batches are larger.
        quick: only what a person with two cores has the patience for.

    Raises:
        ConfigError: there is no such suite.

    Example:
        >>> cases = suite_cases("models", torch.device("cpu"), quick=True)
        >>> {case.suite for case in cases}
        {'models'}
    """
    if suite != "all" and suite not in SUITES:
        raise ConfigError(f"suite: expected one of {', '.join([*SUITES, 'all'])}, got {suite!r}")
    names = list(SUITES) if suite == "all" else [suite]
    return [case for name in names for make in SUITES[name] for case in make(device, quick)]
