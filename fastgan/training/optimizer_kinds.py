"""The optimisers of ``--optimizer``, a row each; imports no torch until one is built."""

from __future__ import annotations

import inspect
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fastgan.training.config import TrainConfig


@dataclass(frozen=True)
class OptimizerKind:
    """An optimiser's row.

    Attributes:
        name: the class in ``fastgan.optim``, or else in ``torch.optim``.
        settings: the class's arguments, and the options (or tuples of them) that they come from.
        state: keys of a parameter's state: step counts, and tensors like the parameter.
    """

    name: str
    settings: Mapping[str, str | tuple[str, ...]]
    state: tuple[str, ...]

    def arguments(self, config: TrainConfig) -> dict[str, Any]:
        """The class's arguments from the configuration."""
        return {
            argument: getattr(config, options)
            if isinstance(options, str)
            else tuple(getattr(config, option) for option in options)
            for argument, options in self.settings.items()
        }

    @property
    def reads(self) -> frozenset[str]:
        """The options that its arguments come from."""
        options = self.settings.values()
        return frozenset().union(*((o,) if isinstance(o, str) else o for o in options))


OPTIMIZER_KINDS: Mapping[str, OptimizerKind] = types.MappingProxyType(
    {
        "adam": OptimizerKind(
            "Adam", {"betas": ("beta1", "beta2")}, ("step", "exp_avg", "exp_avg_sq")
        ),
        "adamw": OptimizerKind(
            "AdamW",
            {"betas": ("beta1", "beta2"), "weight_decay": "weight_decay"},
            ("step", "exp_avg", "exp_avg_sq"),
        ),
        "rmsprop": OptimizerKind("RMSprop", {}, ("step", "square_avg")),
        "sgd": OptimizerKind("SGD", {"momentum": "beta1"}, ("momentum_buffer",)),
    }
)


def build_optimizer(config: TrainConfig, module: nn.Module, lr: float) -> torch.optim.Optimizer:
    """The optimiser of ``config.optimizer``: fastgan's, or else torch's.

    Of all of the network's parameters.
    """
    import fastgan.optim

    kind = OPTIMIZER_KINDS[config.optimizer or ""]
    own = getattr(fastgan.optim, kind.name, None)
    if own is None:
        return build_torch_optimizer(config, module, lr, fused=True)
    built: torch.optim.Optimizer = own(module.parameters(), lr=lr, **kind.arguments(config))
    return built


def build_torch_optimizer(
    config: TrainConfig, module: nn.Module, lr: float | None, *, fused: bool = False
) -> torch.optim.Optimizer:
    """``torch.optim``'s optimiser of that kind, fused if asked for and if torch has it fused."""
    import torch

    kind = OPTIMIZER_KINDS[config.optimizer or ""]
    torchs = getattr(torch.optim, kind.name)
    arguments = kind.arguments(config)
    if fused and "fused" in inspect.signature(torchs).parameters:
        arguments["fused"] = True
    built: torch.optim.Optimizer = torchs(module.parameters(), lr=lr, **arguments)
    return built
