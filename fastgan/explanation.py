"""Which path a critic's layers and the ops take, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastgan.errors import ConfigError
from fastgan.nn.placement import placements
from fastgan.ops import op_path, op_paths
from fastgan.penalty.plan import Plan, PlannedStep
from fastgan.penalty.selection import find_plan, inner_critic
from fastgan.penalty.steps import Step
from fastgan.report import Report, Row

__all__ = ["explain"]

_FUSED = "fused: one forward, one signal, one tangent pass, no second backward"


def explain(
    module_or_critic: Any = None,
    images: Tensor | None = None,
    *,
    critic_args: Sequence[Any] | None = None,
) -> Report:
    """Which path a module's layers take, and a critic's for the gradient penalty; or the ops.

    Args:
        module_or_critic: a module, or None for the ops of this build on every kind of device.
        images: a batch such as the critic is called with, of which only shape, dtype and device
            count. None: the size is taken from the critic's own ``nc`` and ``image_size``, or
            tried out on its first layer.
        critic_args: what the critic takes beside the images; None tries labels where it has
            ``num_classes``.

    Returns:
        A report. Of a module: one row per layer, for its forward and backward pass. Before these,
        if it is a critic (it takes images and returns one score for each): one row for the penalty
        ("aten" is the fused pass over aten's convolutions, "triton" that over convolutions some of
        which are ``fastgan.kernels``'s, "autograd" double backward), one for the critic loss, one
        for each op of fastgan's that either calls beside the layers, and one per layer of the
        penalty's plan ("triton", "cpu" or "cuda" where fastgan's kernels compute it).

    Raises:
        ConfigError: it is no module, nor a function (a ValueError).

    Example:
        >>> from fastgan.models import WGANCritic
        >>> report = explain(WGANCritic(nc=1, ndf=4, image_size=16))
        >>> report.rows[0].op, report.rows[0].path
        ('gradient_penalty', 'aten')
        >>> report.rows[2].op, report.rows[2].reason.split(";")[0]
        ('penalty_tangent_', "the penalty's value, and its tangent of the points' gradient")
        >>> print(explain(WGANCritic(nc=1, ndf=4, image_size=16, norm="batch")).rows[0].reason)
        layer 'main.3' (BatchNorm2d): batch norm in training mode couples the samples of a batch
        >>> from fastgan.models import DCGANGenerator
        >>> row = explain(DCGANGenerator(nz=8, ngf=4, nc=1, image_size=16)).rows[1]
        >>> print(row.layer, row.op, row.reason.split(";")[0])
        main.1 BatchNorm2d statistics of the batch
    """
    if module_or_critic is None:
        return Report(
            tuple(Row(f"{op.op} on {op.device}", op.op, op.path, op.reason) for op in op_paths())
        )
    if not callable(module_or_critic):
        raise ConfigError(
            f"module_or_critic is {type(module_or_critic).__name__}; expected a module or a "
            "function"
        )
    critic = inner_critic(module_or_critic)
    name = getattr(critic, "__name__", type(critic).__name__)
    if not isinstance(critic, nn.Module):
        reason = find_plan(critic, torch.empty(2, 1), ())
        assert isinstance(reason, str)
        return Report(_functions(name, "autograd", reason))
    layers = placements(critic)
    if images is None:
        images = _example(critic)
        if images is None:
            return Report(tuple(layers))
    if critic_args is None:
        classes = getattr(critic, "num_classes", None)
        labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        critic_args = (labels,) if classes is not None else ()
    found = find_plan(critic, images, tuple(critic_args))
    if isinstance(found, Plan):
        device = images.device.type
        rows = [
            *_functions(name, _convolutions_of(found), _FUSED, found.moving),
            *_beside_layers(name, found, device),
            *_layers(found, device),
        ]
        return Report((*rows, *layers))
    rows = [*_functions(name, "autograd", found)]
    rows += [
        Row(
            path,
            type(module).__name__,
            "autograd",
            f"penalty: {found}" if repr(path) in found else "penalty",
        )
        for path, module in critic.named_modules()
        if path and not list(module.children())
    ]
    return Report((*rows, *layers))


def _functions(name: str, path: str, reason: str, moving: str | None = None) -> tuple[Row, ...]:
    whole = reason
    if moving is not None:
        whole = f"the penalty as above, fakes and reals by autograd: {moving}"
    elif path != "autograd":
        whole = "fused: fakes, reals and the penalty's tangents in one batch"
    return (
        Row(name, "gradient_penalty", path, reason),
        Row(name, "wgan_gp_critic_loss", path, whole),
    )


def _beside_layers(name: str, plan: Plan, device: str) -> list[Row]:
    purposes = {"penalty_tangent_": "the penalty's value, and its tangent of the points' gradient"}
    if plan.moving is None:
        purposes["penalty_mix_"] = "the critic loss's batch of fakes, reals and points"
    return [_by_kernel(name, op, op, device, purpose) for op, purpose in purposes.items()]


def _layers(plan: Plan, device: str) -> list[Row]:
    rows = []
    for index, planned in enumerate(plan.steps):
        step, layer = planned.step, _name_of(planned)
        if step.kernel is None:
            reason = "; ".join([_shape_of(step), *_on_storing(plan, index)])
            rows.append(Row(layer, step.op, step.path, reason))
        else:
            rows.append(_by_kernel(layer, step.op, step.kernel, device, _shape_of(step)))
    return rows


def _convolutions_of(plan: Plan) -> str:
    return "triton" if any(planned.step.path == "triton" for planned in plan.steps) else "aten"


def _name_of(planned: PlannedStep) -> str:
    return planned.layer or planned.kind


def _on_storing(plan: Plan, index: int) -> list[str]:
    """What a convolution of ``fastgan.kernels`` does beside, or which one does this step."""
    planned = plan.steps[index]
    said = []
    if planned.applies is not None:
        after = plan.steps[planned.applies]
        said.append(f"{after.step.op} of {_name_of(after)!r} on storing its result")
    if planned.masks is not None:
        before = plan.steps[planned.masks]
        said.append(f"the mask of {_name_of(before)!r} on storing its signal")
    for user in plan.steps:
        if user.applies == index:
            said.append(f"together with {_name_of(user)!r}")
    return said


def _by_kernel(layer: str, op: str, kernel: str, device: str, purpose: str) -> Row:
    found = op_path(kernel, device)
    return Row(layer, op, found.path, f"{purpose}; {found.reason}")


def _shape_of(step: Step) -> str:
    if step.curved:
        return "penalty: smooth; the gradient of its second derivative is carried back from here"
    return f"penalty: {'piecewise linear, its mask' if step.bends else 'linear'}"


def _example(critic: nn.Module) -> Tensor | None:
    """A batch of two whose size the critic takes; None where no such size is found."""
    first = next(iter(critic.parameters()), torch.empty(()))
    for shape in _candidate_shapes(critic):
        images = torch.empty(2, *shape, dtype=first.dtype, device=first.device)
        if not images.is_floating_point():
            continue
        if _fits(critic, images):
            return images
    return None


def _candidate_shapes(critic: nn.Module) -> list[tuple[int, ...]]:
    channels = getattr(critic, "nc", None)
    size = getattr(critic, "image_size", getattr(critic, "isize", None))
    if isinstance(channels, int) and isinstance(size, int):
        return [(channels, size, size)]
    for module in critic.modules():
        if isinstance(module, nn.Linear):
            side = int(module.in_features**0.5)
            square = [(1, side, side)] if side * side == module.in_features else []
            return [(module.in_features,), *square]
        if isinstance(module, nn.Conv2d):
            return [(module.in_channels, s, s) for s in (64, 32, 128, 28, 16, 256, 8, 4)]
    return []


def _fits(critic: nn.Module, images: Tensor) -> bool:
    """Whether tracing gets as far as one score per sample, or to a layer that is refused."""
    classes = getattr(critic, "num_classes", None)
    args = () if classes is None else (torch.zeros(2, dtype=torch.int64, device=images.device),)
    try:
        found = find_plan(critic, images, args)
    except ValueError:
        return False
    return isinstance(found, Plan) or not any(
        sign in found for sign in ("torch.fx can't trace", "it returns shape")
    )
