"""Weight clipping, which keeps a WGAN critic Lipschitz."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from numbers import Real
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fastgan.errors import ConfigError, DtypeError
from fastgan.ops.dtypes import DTYPES
from fastgan.ops.registration import call_counting_writes, call_if_accepted

_op = torch.ops.fastgan.clip_tensors_.default

#: Layers that ``include_norm=False`` leaves alone; subclasses count.
NORM_LAYERS: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase,  # batch norm and instance norm, of every dimension
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)

_PLAIN_TYPES = frozenset({Tensor, nn.Parameter})


def clip_weights_(
    params_or_module: nn.Module | Tensor | Iterable[Tensor],
    clip: float | tuple[float, float],
    *,
    include_norm: bool = True,
) -> None:
    """Clips weights in place to [-c, c], after the optimiser's step of a WGAN critic.

    ``w <- clip(w, -c, c)``: Arjovsky et al. 2017, arXiv 1701.07875, algorithm 1, line 7, where
    c = 0.01. NaN stays NaN. Like any in-place op it increments version counters, so a backward pass
    through values from before the clip raises.

    Args:
        params_or_module: a module, for all its parameters; or a tensor; or an iterable of tensors,
            such as ``critic.parameters()``. Any shapes, layouts and devices; float64, float32,
            float16 or bfloat16. A tensor that occurs twice (tied weights) is clipped once.
        clip: c for [-c, c], c >= 0; or a pair (lo, hi), lo <= hi. An infinity means no bound.
        include_norm: False skips parameters of batch, instance, layer, group and RMS norm layers;
            needs a module. A parameter that a norm layer shares with another layer is clipped.

    Raises:
        ConfigError: `clip` is malformed; ``include_norm=False`` without a module.
        DtypeError: a parameter isn't a floating-point tensor. Nothing is clipped then.

    Example:
        >>> import torch, fastgan
        >>> critic = torch.nn.Linear(100, 1)
        >>> fastgan.clip_weights_(critic, 0.01)
        >>> bool(critic.weight.abs().max() <= 0.01)
        True
    """
    lower, upper = clip_bounds(clip)
    if include_norm and not torch.compiler.is_compiling():
        # Clipping a small network takes microseconds, as would each check per tensor in Python:
        # loops in C recognise the common case, plain tensors of one kind.
        if isinstance(params_or_module, nn.Module):
            tensors = _parameters_of(params_or_module)
        elif isinstance(params_or_module, Iterable) and not isinstance(params_or_module, Tensor):
            tensors = params_or_module = list(params_or_module)
        else:
            tensors = []
        if tensors and _PLAIN_TYPES.issuperset(map(type, tensors)):
            if len(set(map(id, tensors))) < len(tensors):
                tensors = list({id(tensor): tensor for tensor in tensors}.values())
            if call_if_accepted(_op, tensors, tensors, (), lower, upper, None):
                return
            # Several devices or dtypes, or an unsupported one: errors are reported below.
    placed: dict[int, Tensor] = {}
    for place, tensor in _placed_tensors(params_or_module, include_norm):
        if not isinstance(tensor, Tensor) or tensor.dtype not in DTYPES or is_lazy(tensor):
            _refuse(place, tensor)
        placed.setdefault(id(tensor), tensor)
    with torch.no_grad():
        clip_lists(placed.values(), lower, upper)


def _parameters_of(module: nn.Module) -> list[Tensor]:
    """``list(module.parameters())``, but faster: in any order, tied ones more than once."""
    parameters: list[Tensor] = []
    modules, seen = [module], {id(module)}
    for submodule in modules:  # grows during the loop
        for parameter in submodule._parameters.values():
            if parameter is not None:
                parameters.append(parameter)
        for child in submodule._modules.values():
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                modules.append(child)
    return parameters


def clip_lists(
    tensors: Iterable[Tensor],
    lower: float,
    upper: float,
    *,
    found_inf: Tensor | None = None,
    shadow_of: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Clips tensors of any dtypes and devices in place, in one launch per device and dtype.

    Runs without autograd, so leaves that require grad are clipped, too.

    Args:
        tensors: float64, float32, float16 or bfloat16.
        lower: lower bound.
        upper: upper bound, at least `lower`.
        found_inf: one element; if it isn't zero, nothing is clipped.
        shadow_of: returns a tensor's 16-bit copy, which is written too; a 16-bit tensor's is
        itself.

    Example:
        >>> weights = [torch.full((2,), 3.0), torch.full((2,), 3.0, dtype=torch.float64)]
        >>> clip_lists(weights, -1.0, 1.0)
        >>> [weight.tolist() for weight in weights]
        [[1.0, 1.0], [1.0, 1.0]]
    """
    lists: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[Tensor]]] = {}
    device, dtype = None, None
    for tensor in tensors:
        # Usually the same as before, which saves hashing a device.
        if tensor.dtype is not dtype or tensor.device != device:
            device, dtype = tensor.device, tensor.dtype
            alike, shadows = lists.setdefault((device, dtype), ([], []))
        alike.append(tensor)
        if shadow_of is not None:
            shadow = shadow_of(tensor)
            if shadow is not tensor:
                shadows.append(shadow)
    for (device, _), (alike, shadows) in lists.items():
        skip = found_inf
        if skip is not None and skip.device != device:
            skip = skip.to(device, non_blocking=True)
        call_counting_writes(
            _op,
            (alike, shadows),
            *(alike, shadows, lower, upper, skip),
        )


def clip_bounds(clip: float | tuple[float, float]) -> tuple[float, float]:
    """The setting `clip` as (lo, hi): c stands for (-c, c).

    Raises:
        ConfigError: not a number >= 0, nor a pair of numbers lo <= hi.

    Example:
        >>> clip_bounds(0.01), clip_bounds((-1, 0.5))
        ((-0.01, 0.01), (-1.0, 0.5))
    """
    c = _number(clip)
    if c is not None:
        if not c >= 0:
            raise ConfigError(f"clip is {clip}; expected c >= 0, for [-c, c]")
        return -c, c
    if isinstance(clip, (tuple, list)) and len(clip) == 2:
        lower, upper = _number(clip[0]), _number(clip[1])
        if lower is not None and upper is not None:
            if not lower <= upper:
                raise ConfigError(f"clip is ({lower}, {upper}); expected (lo, hi) with lo <= hi")
            return lower, upper
    raise ConfigError(f"clip is {clip!r}; expected a number c >= 0 or a pair (lo, hi)")


def _number(value: object) -> float | None:
    """`value` as a float, or None if it isn't a number (booleans aren't)."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        return float(value)
    except OverflowError:
        raise ConfigError(
            "clip has a number beyond what a float holds; for no bound pass an infinity"
        ) from None


def _placed_tensors(
    params_or_module: nn.Module | Tensor | Iterable[Tensor], include_norm: bool
) -> Iterator[tuple[str | int | None, Tensor]]:
    """Each tensor with its name in the module, its number in the iterable, or None if alone."""
    if isinstance(params_or_module, nn.Module):
        for prefix, module in params_or_module.named_modules():
            if not include_norm and isinstance(module, NORM_LAYERS):
                continue
            yield from module.named_parameters(prefix=prefix, recurse=False)
        return
    if not include_norm:
        raise ConfigError(
            "include_norm=False needs a module, to know which parameters are of norm layers; "
            f"got {type(params_or_module).__name__}"
        )
    if isinstance(params_or_module, Tensor):
        yield None, params_or_module
        return
    if not isinstance(params_or_module, Iterable):
        raise DtypeError(
            f"params_or_module is {type(params_or_module).__name__}; "
            "expected a module, a tensor or an iterable of tensors"
        )
    yield from enumerate(params_or_module)


def _refuse(place: str | int | None, tensor: Tensor) -> NoReturn:
    if place is None:
        name = "the tensor"
    else:
        name = f"parameter {place!r}" if isinstance(place, str) else f"parameter number {place}"
    if not isinstance(tensor, Tensor):
        raise DtypeError(f"{name} is {type(tensor).__name__}; expected a tensor")
    if is_lazy(tensor):
        raise DtypeError(f"{name} has no values yet; run the module once, then clip")
    raise DtypeError(
        f"{name} has dtype {tensor.dtype}; expected float64, float32, float16 or bfloat16"
    )
