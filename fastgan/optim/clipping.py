"""The optimisers' base class: clip settings, shadows, and the tensor lists for the op.

A step calls an op once for each param group, device and dtype. Like torch.optim, it reads all
settings and states anew, so changes by users, schedulers or checkpoints apply from the next step.
"""

from __future__ import annotations

import functools
import inspect
import math
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeAlias, overload

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from fastgan.errors import ConfigError, DtypeError
from fastgan.ops.dtypes import DTYPES
from fastgan.ops.registration import call_counting_writes
from fastgan.optim.weight_clipping import clip_bounds, clip_lists

Clip: TypeAlias = "float | tuple[float, float] | None"
ClipWhen: TypeAlias = Literal["after", "before"]
ParamGroup: TypeAlias = "dict[str, Any]"

_SHADOW_DTYPES = (torch.bfloat16, torch.float16)
#: torch.optim's choice of implementation. It has no effect here, but is kept in the groups as in
#: torch.
_CHOICES = ("foreach", "fused", "capturable", "differentiable")
_NO_CLIP = (-math.inf, math.inf)


class StepLists:
    """The tensors of one call of an op: those of one param group, device and dtype."""

    def __init__(self, device: torch.device, dtype: torch.dtype, states: Iterable[str]) -> None:
        self.device = device
        self.dtype = dtype
        self.params: list[Tensor] = []
        self.grads: list[Tensor] = []
        self.states: dict[str, list[Tensor]] = {name: [] for name in states}
        self.steps: list[Tensor] = []
        self.shadows: list[Tensor] = []


def _without_compiler(name: str) -> Callable[..., Any]:
    """A method of torch's optimisers that doesn't import ``torch._dynamo``.

    torch disables compilation of these methods, and imports its compiler for that, which takes
    longer than everything else when training starts. Without the compiler nothing needs disabling.
    """
    method = getattr(torch.optim.Optimizer, name)
    plain = inspect.unwrap(method)

    @functools.wraps(plain)
    def call(self: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        hidden = method if "torch._dynamo" in sys.modules else plain
        return hidden(self, *args, **kwargs)

    return call


class _QuickToStart(torch.optim.Optimizer):
    """torch's optimiser, without importing the compiler."""

    add_param_group = _without_compiler("add_param_group")
    load_state_dict = _without_compiler("load_state_dict")
    state_dict = _without_compiler("state_dict")
    zero_grad = _without_compiler("zero_grad")


class ClippingOptimizer(_QuickToStart):
    """Base of the optimisers.

    A subclass also derives from torch's optimiser of the same name, for its argument checks,
    defaults and ``isinstance``, and defines its states and its op.
    """

    #: Makes torch.amp.GradScaler set ``grad_scale`` and ``found_inf`` instead of unscaling and
    #: skipping; the kernels read both on the device, so no step waits for the GPU.
    _step_supports_amp_scaling = True

    # --- For subclasses ---------------------------------------------------------------------------

    #: The step's op, of :mod:`fastgan.ops.optimizer_steps`.
    _op: torch._ops.OpOverload

    @abstractmethod
    def _states(self, group: ParamGroup) -> dict[str, bool]:
        """The keys of a parameter's state in the op's order, and whether the group uses them."""

    @abstractmethod
    def _settings(self, group: ParamGroup) -> tuple[Any, ...]:
        """The group's settings for the op."""

    def _remember_defaults(self, clip: Clip, clip_when: str, shadow_dtype: object) -> None:
        """Must be called before torch's ``__init__``, which adds the param groups."""
        self._own_defaults: dict[str, Any] = {
            "clip": clip,
            "clip_when": clip_when,
            "shadow_dtype": shadow_dtype,
        }
        self._shadows: dict[Tensor, Tensor] = {}
        self._check_settings(self._own_defaults)

    def _check_settings(self, settings: ParamGroup) -> None:
        """Raises ConfigError for a setting that torch doesn't check; absent ones pass."""
        for name in _CHOICES:
            if settings.get(name) not in (None, True, False):
                raise ConfigError(f"{name} is {settings[name]!r}; expected True, False or None")
        if settings.get("differentiable"):
            raise ConfigError(
                "differentiable is True; autograd can't see into fastgan.optim's step: take "
                f"torch.optim.{type(self).__name__} for that"
            )
        if settings.get("clip") is not None:
            clip_bounds(settings["clip"])
        _clip_first(settings.get("clip_when", "after"))
        dtype = settings.get("shadow_dtype")
        if dtype is not None and dtype not in _SHADOW_DTYPES:
            raise ConfigError(
                f"shadow_dtype is {dtype!r}; expected None, torch.bfloat16 or torch.float16"
            )

    # --- Param groups and state dicts -------------------------------------------------------------

    def add_param_group(self, param_group: ParamGroup) -> None:
        """As torch's; a group may have its own ``clip``, ``clip_when`` and ``shadow_dtype``.

        Raises:
            ConfigError: one of these three is malformed, or ``differentiable`` is True.
            DtypeError: a parameter is not float64, float32, float16 or bfloat16.
        """
        for key, value in self._own_defaults.items():
            self.defaults.setdefault(key, value)
        if isinstance(param_group, dict):  # torch reports anything that isn't a tensor
            self._check_settings({**self.defaults, **param_group})
        super().add_param_group(param_group)
        added = self.param_groups[-1]
        for index, param in enumerate(added["params"]):
            if param.dtype not in DTYPES:
                self.param_groups.pop()
                raise DtypeError(
                    f"parameter number {index} of the group has dtype {param.dtype}; expected "
                    "float64, float32, float16 or bfloat16"
                )

    def __setstate__(self, state: dict[str, Any]) -> None:
        # torch's load_state_dict also calls this. torch.optim's state dicts lack our settings: the
        # groups keep theirs.
        earlier: list[ParamGroup] = self.__dict__.get("param_groups", [])
        for group in state["param_groups"]:
            self._check_settings(group)  # before any change
        super().__setstate__(state)
        self._own_defaults = {
            key: self.defaults[key] for key in ("clip", "clip_when", "shadow_dtype")
        }
        self._shadows = self.__dict__.get("_shadows", {})
        for index, group in enumerate(self.param_groups):
            kept = earlier[index] if index < len(earlier) else self._own_defaults
            for key in self._own_defaults:
                group.setdefault(key, kept[key])
            # torch keeps step counts on the CPU by default; the kernels count on the weights'
            # device.
            for param in group["params"]:
                step = self.state[param].get("step") if param in self.state else None
                if step is not None and step.device != param.device:
                    self.state[param]["step"] = step.to(param.device)

    # --- Shadows ----------------------------------------------------------------------------------

    def shadow(self, param: Tensor) -> Tensor:
        """The copy of `param` in its group's ``shadow_dtype``, which every step rewrites.

        Always the same tensor, with `param`'s shape and layout, so CUDA graphs may use it. A 16-bit
        parameter is its own shadow.

        Raises:
            ConfigError: `param` is not this optimiser's, or its group has no ``shadow_dtype``.

        Example:
            >>> import torch, fastgan.optim
            >>> weight = torch.nn.Parameter(torch.tensor([1.0, 1 / 3]))
            >>> optimizer = fastgan.optim.Adam([weight], shadow_dtype=torch.bfloat16)
            >>> optimizer.shadow(weight)
            tensor([1.0000, 0.3340], dtype=torch.bfloat16)
        """
        for group in self.param_groups:
            if any(param is own for own in group["params"]):
                if group["shadow_dtype"] is None:
                    raise ConfigError("the parameter's group has shadow_dtype None: no shadows")
                return self._shadow(param, group["shadow_dtype"])
        raise ConfigError("the tensor is none of this optimiser's parameters")

    @torch.no_grad()
    def refresh_shadows(self) -> None:
        """Copies all weights to their shadows, after a change other than by ``step``."""
        for param, shadow in self._shadows.items():
            shadow.copy_(param)

    def _shadow(self, param: Tensor, dtype: torch.dtype) -> Tensor:
        if param.dtype in _SHADOW_DTYPES:
            return param
        shadow = self._shadows.get(param)
        if shadow is None or shadow.dtype != dtype or shadow.device != param.device:
            with torch.no_grad():
                shadow = param.detach().to(dtype, memory_format=torch.preserve_format)
            self._shadows[param] = shadow
        return shadow

    # --- The step ---------------------------------------------------------------------------------

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of every parameter that has a gradient, and the clip of every parameter.

        Args:
            closure: reevaluates the model and returns the loss; run first, with gradients.

        Returns:
            The closure's result, or None.

        Raises:
            RuntimeError: a gradient is sparse, or of another dtype than its parameter.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        grad_scale = _scalar_or_none(getattr(self, "grad_scale", None))
        found_inf = _scalar_or_none(getattr(self, "found_inf", None))
        for group in self.param_groups:
            self._step_group(group, grad_scale, found_inf)
        return loss

    def _step_group(
        self, group: ParamGroup, grad_scale: Tensor | None, found_inf: Tensor | None
    ) -> None:
        bounds = _NO_CLIP if group["clip"] is None else clip_bounds(group["clip"])
        clip_first = _clip_first(group["clip_when"])
        calls, idle = self._gather(group, grad_scale)
        lr = group["lr"]
        for lists in calls:
            lr_here: float = 0.0
            lr_tensor: Tensor | None = None
            if not isinstance(lr, Tensor):
                lr_here = lr
            elif lr.device == lists.device:
                lr_tensor = _as_scalar(lr)
            elif lr.device.type == "cpu":
                lr_here = lr.item()
            else:
                lr_tensor = _as_scalar(lr).to(lists.device)
            states = lists.states.values()
            written = [lists.params, lists.steps, lists.shadows, *states]
            if grad_scale is not None:  # the gradients are unscaled in place
                written.append(lists.grads)
            call_counting_writes(
                self._op,
                written,
                *(lists.params, lists.grads, *states, lists.steps, lists.shadows),
                *(
                    lr_here,
                    lr_tensor,
                    *self._settings(group),
                    group["maximize"],
                    *bounds,
                    clip_first,
                ),
                *(_on(lists.device, grad_scale), _on(lists.device, found_inf)),
            )
        if idle and bounds != _NO_CLIP:
            clip_lists(idle, *bounds, found_inf=found_inf, shadow_of=self._shadow_for(group))

    def _shadow_for(self, group: ParamGroup) -> Callable[[Tensor], Tensor] | None:
        dtype = group["shadow_dtype"]
        if dtype is None:
            return None
        return lambda param: self._shadow(param, dtype)

    def _gather(
        self, group: ParamGroup, grad_scale: Tensor | None
    ) -> tuple[Iterable[StepLists], list[Tensor]]:
        """The lists for each call of the op, and the parameters without a gradient."""
        states = self._states(group)
        names = [name for name, used in states.items() if used]
        needed = ["step", *names]
        shadow_dtype = group["shadow_dtype"]
        calls: dict[tuple[torch.device, torch.dtype], StepLists] = {}
        idle: list[Tensor] = []
        lists: StepLists | None = None
        traced = torch.compiler.is_compiling()
        state = self.state
        for index, param in enumerate(group["params"]):
            grad = param.grad
            if grad is None:
                if not is_lazy(param):
                    idle.append(param)
                continue
            if grad.layout != torch.strided:
                raise RuntimeError(
                    f"{type(self).__name__} does not support sparse gradients: that of parameter "
                    f"number {index} of its group has layout {grad.layout}"
                )
            # torch can't pass lists with lazily negated tensors to an op, nor trace this check.
            if not traced and grad.is_neg():
                grad = grad.resolve_neg()
                if grad_scale is not None:
                    param.grad = grad  # users read the unscaled gradient here
            own_state = state[param]
            for key in needed:
                if key not in own_state:
                    _complete_state(own_state, param, names)
                    break
            # Elements may share memory, but must be unscaled once. Tracing can't decide this; the
            # op refuses expanded gradients.
            if (
                grad_scale is not None
                and not traced
                and torch._debug_has_internal_overlap(grad) != 0
            ):
                param.grad = grad = grad.clone()
            device, dtype = param.device, param.dtype
            # Usually the same as before, which saves hashing a device.
            if lists is None or dtype is not lists.dtype or device != lists.device:
                lists = calls.get((device, dtype))
                if lists is None:
                    lists = calls[device, dtype] = StepLists(device, dtype, states)
            lists.params.append(param)
            lists.grads.append(grad)
            lists.steps.append(own_state["step"])
            for name in names:
                lists.states[name].append(own_state[name])
            if shadow_dtype is not None and dtype not in _SHADOW_DTYPES:
                lists.shadows.append(self._shadow(param, shadow_dtype))
        return calls.values(), idle


def _complete_state(state: dict[str, Any], param: Tensor, names: list[str]) -> None:
    if "step" not in state:
        dtype = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
        state["step"] = torch.zeros((), dtype=dtype, device=param.device)
    for name in names:
        if name not in state:
            state[name] = torch.zeros_like(param, memory_format=torch.preserve_format)


def _clip_first(clip_when: str) -> bool:
    if clip_when == "after":
        return False
    if clip_when == "before":
        return True
    raise ConfigError(f"clip_when is {clip_when!r}; expected 'after' or 'before'")


def _scalar_or_none(value: Tensor | float | None) -> Tensor | None:
    # GradScaler's found_inf is the number 0 if no parameter has a gradient.
    return value if isinstance(value, Tensor) else None


def _as_scalar(value: Tensor) -> Tensor:
    return value if value.dtype in (torch.float32, torch.float64) else value.float()


def _on(device: torch.device, value: Tensor | None) -> Tensor | None:
    if value is None or value.device == device:
        return value
    return value.to(device, non_blocking=True)
