"""What a fused pass needs to know of a critic: its steps in order, and where their parameters are.

A plan holds no parameter and no reference to the critic, so that the cache of plans keeps neither
alive; :meth:`Plan.parameters` reads the *effective* parameters at every call, after spectral norm,
weight norm or any other parametrisation, as tensors that carry the critic's own graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from fastgan.penalty.steps import Step

__all__ = ["REPARAMETRISING_HOOKS", "Attribute", "Constant", "Plan", "PlannedStep"]

#: Forward pre-hooks that compute a layer's weight, and nothing else.
REPARAMETRISING_HOOKS = (SpectralNorm, WeightNorm)


@dataclass(frozen=True)
class Attribute:
    """A tensor found at every call as attribute ``name`` of the submodule at ``path``."""

    path: str
    name: str


@dataclass(frozen=True)
class Constant:
    """A tensor computed at every call from parameters and labels, but not from the images."""

    node: fx.Node


@dataclass
class PlannedStep:
    """A step and its place in the graph. Value 0 is the images; value i + 1 is step i's output.

    Attributes:
        step: what it computes.
        layer: where in the critic it comes from, as in ``named_modules``.
        kind: the module's class or the function's name.
        inputs: values that depend on the images.
        parameters: slots of the plan, or None where the layer has no such parameter.
        shape: of its output, without the batch.
        overwrites: whether it may reuse its input's memory.
        covered: whether ``fastgan.kernels`` can run it, and do on the critic's device.
        applies: the step after it, an activation, that it does as well; or None.
        masks: the step before it, an activation, whose mask it applies to its signals; or None.
    """

    step: Step
    layer: str
    kind: str
    inputs: tuple[int, ...]
    parameters: tuple[int | None, ...]
    shape: tuple[int, ...]
    overwrites: bool = False
    covered: bool = False
    applies: int | None = None
    masks: int | None = None


@dataclass
class Plan:
    """A critic as a graph of steps.

    Attributes:
        input_shape: of the images, without the batch.
        steps: in an order in which they can run; the last one's output is the scores.
        slots: where each parameter comes from.
        constants: the graph's nodes that don't depend on the images, in order.
        moving: why one more forward pass changes the parameters (spectral norm's power
            iteration), or None: then fakes, reals and interpolates are three passes.
        channels_last: whether maps are laid out channels-last.
    """

    input_shape: tuple[int, ...]
    steps: list[PlannedStep]
    slots: list[Attribute | Constant]
    constants: list[fx.Node]
    moving: str | None
    channels_last: bool
    last_use: list[int] = field(init=False)
    bends_after: list[bool] = field(init=False)

    def __post_init__(self) -> None:
        users: list[list[int]] = [[] for _ in range(len(self.steps) + 1)]
        for index, planned in enumerate(self.steps):
            planned.step.channels_last = self.channels_last
            for value in planned.inputs:
                users[value].append(index)
        self.last_use = [max(indices, default=-1) for indices in users]
        for planned in self.steps:
            (first, *others) = planned.inputs
            maker = self.steps[first - 1].step if first else None
            planned.overwrites = (
                not others
                and len(users[first]) == 1
                and maker is not None
                and maker.fresh
                and not maker.keeps_output
            )
        # Which outputs pass through a mask on their way to the scores.
        self.bends_after = [False] * len(self.steps)
        for index in reversed(range(len(self.steps))):
            self.bends_after[index] = any(
                self.steps[user].step.bends or self.bends_after[user] for user in users[index + 1]
            )

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of every value, without the batch."""
        return [self.input_shape, *(planned.shape for planned in self.steps)]

    def parameters(self, critic: nn.Module, arguments: Sequence[Any]) -> list[Tensor]:
        """The effective parameters, one per slot."""
        known = self._constants(critic, arguments) if self.constants else {}
        modules: dict[str, nn.Module] = {}
        found: list[Tensor] = []
        for slot in self.slots:
            if isinstance(slot, Constant):
                found.append(known[slot.node])
                continue
            module = modules.get(slot.path)
            if module is None:
                module = modules[slot.path] = _submodule(critic, slot.path)
                for hook in module._forward_pre_hooks.values():
                    if isinstance(hook, REPARAMETRISING_HOOKS):
                        hook(module, ())
            found.append(getattr(module, slot.name))
        return found

    def _constants(self, critic: nn.Module, arguments: Sequence[Any]) -> dict[fx.Node, Any]:
        """Runs the part of the graph that doesn't depend on the images."""
        known: dict[fx.Node, Any] = {}

        def resolve(structure: Any) -> Any:
            return fx.node.map_arg(structure, lambda node: known[node])

        for node in self.constants:
            if node.op == "placeholder":
                known[node] = arguments[node.meta["position"]]
            elif node.op == "get_attr":
                path, _, name = str(node.target).rpartition(".")
                known[node] = getattr(critic.get_submodule(path), name)
            else:
                args, kwargs = resolve(node.args), resolve(node.kwargs)
                known[node] = _call(critic, node, args, kwargs)
        return known


def _submodule(critic: nn.Module, path: str) -> nn.Module:
    """``critic.get_submodule(path)``, which checks at every step what a plan knows."""
    for name in path.split(".") if path else ():
        child = critic._modules[name]
        assert child is not None
        critic = child
    return critic


def _call(critic: nn.Module, node: fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    if node.op == "call_module":
        return critic.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def moving_parameters(critic: nn.Module) -> str | None:
    """Why a forward pass changes the critic's parameters, or None."""
    for name, module in critic.named_modules():
        if not module.training:
            continue
        if type(module).__name__ == "_SpectralNorm" or any(
            isinstance(hook, SpectralNorm) for hook in module._forward_pre_hooks.values()
        ):
            owner = name.split(".parametrizations")[0]
            return f"spectral norm of layer {owner!r} iterates once for each forward pass"
    return None


def layout_for(dtype: torch.dtype, steps: Sequence[PlannedStep]) -> bool:
    """Whether channels-last pays: for maps, in dtypes that oneDNN and cuDNN know it in."""
    return dtype != torch.float64 and any(
        planned.step.op == "convolution" and len(planned.shape) == 3 for planned in steps
    )
