"""Reports which path a critic's ops, a module's layers and the library's ops take, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module

from fastgan.errors import ConfigError, UnsupportedCriticError
from fastgan.explaining.report import Report, Row
from fastgan.nn.placement import placements
from fastgan.ops import op_path, op_paths
from fastgan.ops.backends import measuring_nothing
from fastgan.penalty.critics import Critic, Recording, inner_critic, record
from fastgan.penalty.entries import Node
from fastgan.penalty.tape import Tape, Unrecordable

_FUSED = "fused: one forward, one backward, one tangent pass, no second backward"


def explain(
    module_or_critic: Any = None,
    input: Tensor | None = None,
    *,
    critic_args: Sequence[Any] | None = None,
) -> Report:
    """Reports the paths of a module's layers and a critic's penalty ops, or of the library's ops.

    Runs a module on random values of the input's shape, a critic twice, and restores its state.

    Args:
        module_or_critic: a module or a function, or None for this build's ops on every kind of
            device.
        input: a batch for the module; only shape, dtype and device matter, as paths depend on the
            size. None: the size comes from the module's ``nc`` and ``image_size``, or is tried on
            its first layer.
        critic_args: the critic's arguments after the images; None tries labels if it has
            ``num_classes``.

    Returns:
        A report with one row per layer, for its forward and backward pass. For a critic (it returns
        a row of scores for each image) these rows come first: the penalty ("aten" is the fused pass
        with ATen's convolutions, "triton" with some of ``fastgan.kernels``, "autograd" double
        backward), the whole loss, each op of fastgan's outside the layers, and each op on the tape
        with its derivatives' backend ("autograd" for this op only) and kind.

    Raises:
        ConfigError: it isn't a module or a function (a ValueError).

    Example:
        >>> from fastgan.models import WGANCritic
        >>> report = explain(WGANCritic(nc=1, ndf=4, image_size=16))
        >>> report.rows[0].op, report.rows[0].path
        ('gradient_penalty', 'aten')
        >>> report.rows[2].op, report.rows[2].reason.split(";")[0]
        ('penalty_tangent_', "the penalty's value, and its tangent of the points' gradient")
        >>> print(explain(WGANCritic(nc=1, ndf=4, image_size=16, norm="batch")).rows[1].reason)
        fused, batch by batch: aten.add_.Tensor changes the critic's state in place
        >>> from fastgan.models import DCGANGenerator
        >>> row = explain(DCGANGenerator(nz=8, ngf=4, nc=1, image_size=16)).rows[1]
        >>> print(row.layer, row.op, "|", row.reason)
        main.1 BatchNorm2d | by torch's own function, the fastest here
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
    layers: list[Row] | None = None
    shapes = _candidate_shapes(critic) if input is None else [tuple(input.shape[1:])]
    for shape in shapes:
        like = input if input is not None else next(_parameters(critic), torch.empty(()))
        if not like.is_floating_point():
            continue
        random = torch.Generator(like.device).manual_seed(0)
        images = torch.rand(2, *shape, dtype=like.dtype, device=like.device, generator=random)
        if layers is None and isinstance(critic, nn.Module):
            batch = images
            if input is not None and critic_args is None:
                batch = torch.empty_like(input).uniform_(generator=random)
            layers = _layers(critic, batch, critic_args)
        if input is None and _makes_images(critic):
            continue
        rows = _of_critic(critic, images, critic_args, certain=input is not None)
        if rows is not None:
            return Report((*rows, *(layers or ())))
    if layers is None and isinstance(critic, nn.Module):
        layers = placements(critic)
    if not layers:
        raise ConfigError("input is None; expected a batch such as the function is called with")
    return Report(tuple(layers))


def _layers(module: nn.Module, input: Tensor, args: Sequence[Any] | None) -> list[Row] | None:
    """The rows of a module's layers; None if it doesn't accept the input."""
    try:
        with measuring_nothing():
            return placements(module, input, *_beside(module, input, args))
    except Exception:
        return None


def _beside(critic: Any, images: Tensor, args: Sequence[Any] | None) -> Sequence[Any]:
    """The arguments after the images: by default labels, if the module has classes."""
    if args is not None or getattr(critic, "num_classes", None) is None:
        return args or ()
    return (torch.zeros(len(images), dtype=torch.int64, device=images.device),)


def _of_critic(
    critic: Any, images: Tensor, args: Sequence[Any] | None, *, certain: bool
) -> list[Row] | None:
    """A critic's rows; None if it doesn't accept images of that size."""
    called = Critic(critic, _beside(critic, images, args))
    try:
        recording = _named_recording(called, images)
    except Unrecordable as refusal:
        return _functions(called.name, "autograd", str(refusal), str(refusal))
    except UnsupportedCriticError as error:
        return _functions(called.name, "autograd", str(error), str(error)) if certain else None
    except Exception:
        if certain:
            raise
        return None
    tape = recording.tape
    device = images.device.type
    nodes = [_of_node(node) for node in tape.nodes if node.by_images]
    whole = "fused: fakes, reals and points in one batch, from the second call on"
    apart = tape.moves or tape.mixes
    if apart is not None:
        whole = f"fused, batch by batch: {apart}"
    path = "triton" if any(row.path == "triton" for row in nodes) else "aten"
    beside = {"penalty_tangent_": "the penalty's value, and its tangent of the points' gradient"}
    if apart is None:
        beside["penalty_mix_"] = "the critic loss's batch of fakes, reals and points"
    return [
        *_functions(called.name, path, _FUSED, whole),
        *(_by_kernel(called.name, op, device, purpose) for op, purpose in beside.items()),
        *nodes,
    ]


def _named_recording(critic: Critic, images: Tensor) -> Recording:
    """A recording with the calling module's name in each entry."""
    inner = critic.inner
    names = (
        {module: name for name, module in inner.named_modules()}
        if isinstance(inner, nn.Module)
        else {}
    )
    running: list[str] = []
    tapes: list[Tape] = []

    def enter(module: nn.Module, args: Any) -> None:
        running.append(names.get(module, ""))
        tapes[0].layer = running[-1]

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        running.pop()
        tapes[0].layer = running[-1] if running else ""

    handles = [
        nn_module.register_module_forward_pre_hook(enter),
        nn_module.register_module_forward_hook(leave, always_call=True),
    ]
    try:
        with measuring_nothing():  # for sizes that are only tried
            return record(critic, images, watching=True, leave=True, on_tape=tapes.append)
    finally:
        for handle in handles:
            handle.remove()


def _of_node(node: Node) -> Row:
    rule = node.rule
    name = rule.name or str(node.func).removeprefix("aten.").rpartition(".")[0] or str(node.func)
    path, reason = rule.backend(node)
    said = "; ".join(part for part in (f"penalty: {rule.kind_of(node)}", reason) if part)
    return Row(node.layer or name, name, path, said)


def _functions(name: str, path: str, reason: str, whole: str) -> list[Row]:
    return [
        Row(name, "gradient_penalty", path, reason),
        Row(name, "discriminator_loss", path, whole),
    ]


def _by_kernel(layer: str, op: str, device: str, purpose: str) -> Row:
    path = op_path(op, device)
    return Row(layer, op, path.path, f"{purpose}; {path.reason}")


def _parameters(critic: Any) -> Any:
    return critic.parameters() if isinstance(critic, nn.Module) else iter(())


def _makes_images(module: Any) -> bool:
    """Whether it is a generator, by its argument's name or its first layer."""
    layers = module.modules() if isinstance(module, nn.Module) else ()
    first = (layer for layer in layers if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d))
    return hasattr(module, "nz") or isinstance(next(first, None), nn.ConvTranspose2d)


def _candidate_shapes(critic: Any) -> list[tuple[int, ...]]:
    channels = getattr(critic, "nc", None)
    size = getattr(critic, "image_size", getattr(critic, "isize", None))
    if _makes_images(critic):
        given = [critic.nz] if isinstance(getattr(critic, "nz", None), int) else []
        first = [m.in_channels for m in critic.modules() if isinstance(m, nn.ConvTranspose2d)][:1]
        return [(n, s, s) for n in given + first for s in (1, 4, 2, 7, 8)] + [(n,) for n in given]
    if isinstance(channels, int) and isinstance(size, int):
        return [(channels, size, size)]
    for module in critic.modules() if isinstance(critic, nn.Module) else ():
        if isinstance(module, nn.Linear):
            side = int(module.in_features**0.5)
            square = [(1, side, side)] if side * side == module.in_features else []
            return [(module.in_features,), *square]
        if isinstance(module, nn.Conv2d):
            return [(module.in_channels, s, s) for s in (64, 32, 128, 28, 16, 256, 8, 4)]
    return []
