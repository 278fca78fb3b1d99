"""Which children of a sequential module run as one, and why the others don't.

The plan is made anew at every call, from what the children are then: a layer put in the place of
another, a hook added, a norm frozen, a weight parametrised after fusing all show in it. What it
looks for is (ConvTranspose2d | Conv2d | Linear) -> [BatchNorm] -> [ReLU | LeakyReLU | Tanh |
Sigmoid], one such stage after the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize

from fastgan.ops.stages import padding_named, pair

__all__ = ["PlannedStage", "Single", "Stretch", "class_of", "plan_of", "sequential_was_replaced"]

_LAYERS: tuple[type[nn.Module], ...] = (nn.ConvTranspose2d, nn.Conv2d, nn.Linear)
_NORM_OF: dict[type[nn.Module], type[nn.Module]] = {
    nn.ConvTranspose2d: nn.BatchNorm2d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Linear: nn.BatchNorm1d,
}
_ACTIVATIONS: tuple[type[nn.Module], ...] = (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid)
_KNOWN = frozenset((*_LAYERS, *_NORM_OF.values(), *_ACTIVATIONS))

#: What a call of a module of ``_KNOWN`` runs besides torch's functions, and a fused stage doesn't.
_CALLED = (
    "__call__",
    "_compiled_call_impl",
    "_call_impl",
    "forward",
    "_conv_forward",
    "_output_padding",
    "_check_input_dim",
)


def _methods(kind: type[nn.Module]) -> dict[str, Any]:
    """Those of ``_CALLED`` that a class has; one replaced before this import compares unequal."""
    found = {name: getattr(kind, name) for name in _CALLED if hasattr(kind, name)}
    for name, method in found.items():
        home = getattr(method, "__globals__", {}).get("__name__", "")
        if method is not None and not home.startswith("torch."):
            found[name] = object()
    return found


_METHODS = {kind: _methods(kind) for kind in (*_KNOWN, nn.Sequential)}


def sequential_was_replaced() -> bool:
    """Whether ``nn.Sequential``'s forward isn't torch's: then no stretch may take its place."""
    return nn.Sequential.forward is not _METHODS[nn.Sequential]["forward"]


@dataclass
class PlannedStage:
    """A layer with what follows it.

    Attributes:
        layer: a convolution or linear layer.
        norm: its batch norm, if one follows.
        activation: its activation, if one follows.
        names: of the three, those that are there.
    """

    layer: nn.Module
    norm: nn.Module | None = None
    activation: nn.Module | None = None
    names: list[str] = field(default_factory=list)

    def modules(self) -> list[nn.Module]:
        """Those that are there, in the order they run."""
        return [m for m in (self.layer, self.norm, self.activation) if m is not None]


@dataclass
class Stretch:
    """Stages that run as one, each deferring its norm into the next one's load."""

    stages: list[PlannedStage]


@dataclass
class Single:
    """A child that runs by itself.

    Attributes:
        module: the child.
        name: its name.
        reason: why it is no part of a stretch.
    """

    module: nn.Module
    name: str
    reason: str


def class_of(module: nn.Module) -> type[nn.Module] | None:
    """The class of torch's that ``module`` is, if the plan knows it; a subclass is another.

    A parametrised layer (``torch.nn.utils.parametrizations``) counts as what it was made from: its
    weight is computed wherever it is read.

    Example:
        >>> class_of(nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2))).__name__
        'Linear'
        >>> class_of(nn.Softplus()) is None
        True
    """
    kind = type(module)
    if kind in _KNOWN:
        return kind
    if parametrize.is_parametrized(module) and kind.__bases__[0] in _KNOWN:
        return kind.__bases__[0]
    return None


def plan_of(children: Iterable[tuple[str, nn.Module]]) -> list[Stretch | Single]:
    """The children in the order they run, as stretches and single ones.

    Args:
        children: names and modules, as of ``named_children()``, repeated ones included.

    Example:
        >>> layers = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 1))
        >>> [type(part).__name__ for part in plan_of(layers.named_children())]
        ['Stretch', 'Single', 'Single']
    """
    plan: list[Stretch | Single] = []
    stretch: list[PlannedStage] = []
    everywhere = _why_all_are_single()

    def end_stretch() -> None:
        if not stretch:
            return
        if len(stretch) == 1 and len(stretch[0].names) == 1:
            (name,) = stretch[0].names
            plan.append(Single(stretch[0].layer, name, "nothing beside it to fuse it with"))
        else:
            plan.append(Stretch(list(stretch)))
        stretch.clear()

    for name, module in children:
        kind = class_of(module)
        reason = everywhere or _why_single(module, kind)
        if reason is not None:
            end_stretch()
            plan.append(Single(module, name, reason))
        elif kind in _LAYERS:
            if stretch and (class_of(stretch[-1].layer) is nn.Linear) != (kind is nn.Linear):
                end_stretch()
            stretch.append(PlannedStage(module, names=[name]))
        elif kind in _ACTIVATIONS:
            if stretch and stretch[-1].activation is None:
                stretch[-1].activation = module
                stretch[-1].names.append(name)
            else:
                end_stretch()
                plan.append(Single(module, name, "it does not follow a layer or its norm"))
        elif _takes_norm(stretch, kind):
            stretch[-1].norm = module
            stretch[-1].names.append(name)
        else:
            end_stretch()
            plan.append(Single(module, name, "it does not follow a layer it could be fused with"))
    end_stretch()
    return plan


def _takes_norm(stretch: list[PlannedStage], kind: type[nn.Module] | None) -> bool:
    if not stretch or stretch[-1].norm is not None or stretch[-1].activation is not None:
        return False
    layer = class_of(stretch[-1].layer)
    return layer is not None and _NORM_OF[layer] is kind


def _why_single(module: Any, kind: type[nn.Module] | None) -> str | None:
    if kind is None:
        return f"{type(module).__name__} is not one of the layers that are fused"
    replaced = _replaced_method(module, kind)
    if replaced is not None:
        return f"its {replaced} was replaced"
    if (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    ):
        return "it has a hook"
    if kind is nn.LeakyReLU and not module.negative_slope >= 0:
        return "its negative_slope is below 0"
    if kind in (nn.Conv2d, nn.ConvTranspose2d) and module.padding_mode != "zeros":
        return f"its padding_mode is {module.padding_mode!r}"
    if kind is nn.Conv2d and isinstance(module.padding, str):
        sizes = (module.kernel_size, module.dilation, module.stride)
        if padding_named(module.padding, *map(pair, sizes)) is None:
            return f"its padding={module.padding!r} is not the same on either side, or strided"
    return None


def _replaced_method(module: nn.Module, kind: type[nn.Module]) -> str | None:
    """The first method of ``_CALLED`` that isn't torch's, on the module or on its class."""
    own, found = vars(module), type(module)
    for name, method in _METHODS[kind].items():
        if own.get(name) is not None or getattr(found, name) is not method:
            return name
    return None


def _why_all_are_single() -> str | None:
    if sequential_was_replaced():
        return "the forward of nn.Sequential was replaced"
    if (
        torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    ):
        return "hooks are registered for all modules"
    return None
