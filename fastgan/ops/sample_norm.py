"""Norms with per-sample statistics, or per-sample scale and shift, and an activation, in one pass.

Instance norm (Ulyanov et al. 2016, arXiv 1607.08022), adaptive instance norm (Huang and Belongie
2017, arXiv 1703.06868), group norm (Wu and He 2018, arXiv 1803.08494) and conditional batch norm
(de Vries et al. 2017, arXiv 1707.00683; of SNGAN and BigGAN)::

    u = (x - mean) * invstd * gain + shift,    y = z(u)

with gain and shift of shape (N, C), and mean and invstd over the batch, or over each sample's
channels or groups of channels. With g = grad_output * z', the sums over a sample's map,
G = gain * g, and M values in each mean::

    grad_shift = sum(g),    grad_gain = sum(g * xhat)
    grad_input = invstd * (G - sum(G) / M - xhat * sum(G * xhat) / M)

the last two sums over a mean's elements. On CPUs two ops do this, sample by sample, on contiguous
and channels-last maps (``csrc/cpu/sample_norm.cpp``). Elsewhere the ops of
:mod:`fastgan.ops.batch_norm` run on the contiguous map viewed as (1, N * C, H, W).

Order of gradients supported: any. With ``create_graph=True`` autograd differentiates the formulas
in torch functions.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastgan.activations import ACTIVATIONS, BY_CODE
from fastgan.ops.batch_norm import (
    DTYPES,
    arithmetic_dtype,
    check_activation,
    check_alike,
    check_arrays,
    check_image,
    without_gaps,
)
from fastgan.ops.bn_act import batch_statistics, normalised, running_statistics
from fastgan.ops.define import define_op
from fastgan.ops.memory_format import is_channels_last, laid_out

_ops = torch.ops.fastgan


def sample_norm_act(
    input: Tensor,
    *,
    over: str,
    groups: int = 1,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
    gain: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str = "none",
    negative_slope: float = 0.0,
    original: Tensor | None = None,
) -> Tensor:
    """``z(norm(input) * gain + shift)``, in one pass over memory after the statistics.

    Args:
        input: (N, C, H, W); float64, float32, float16 or bfloat16. Channels-last on CPUs alone.
        over: the statistics: "batch", "sample" (per channel), "group" (per group of channels) or
            "running".
        groups: the number of groups for "group"; unused otherwise.
        weight: (C,), the norm's; None for 1.
        bias: (C,), the norm's; None for 0.
        running_mean: (C,); updated in place over "batch".
        running_var: as ``running_mean``.
        momentum: share of the new value in the running statistics.
        eps: added to the variance.
        gain: per-sample scale, (N, C, 1, 1); None for 1.
        shift: per-sample shift, as ``gain``; None for 0.
        activation: a name of :data:`fastgan.activations.ACTIVATIONS`.
        negative_slope: of "leaky_relu".
        original: ``input`` before its last alias, which gradients of second order go to.

    Returns:
        A new tensor like the input, laid out as it is, and so is the input's gradient.

    Example:
        >>> x, gain = torch.randn(2, 3, 4, 4), torch.rand(2, 3, 1, 1)
        >>> y = sample_norm_act(x, over="sample", gain=gain, activation="relu")
        >>> torch.allclose(y, torch.relu(torch.instance_norm(
        ...     x, None, None, None, None, True, 0.1, 1e-5, True) * gain), atol=1e-5)
        True
    """
    on_cpu, mean, invstd = input.is_cpu, None, None
    if over == "running":
        assert running_mean is not None
        assert running_var is not None
        mean, invstd = running_statistics(running_mean, running_var, eps, input.dtype)
    elif over == "batch":
        mean, invstd = batch_statistics(input, running_mean, running_var, momentum, eps)
    elif not on_cpu:
        values = _as_one_sample(input)
        if over == "group":
            values = input.reshape(1, input.shape[0] * groups, -1, input.shape[3])
        mean, invstd = batch_statistics(values, None, None, momentum, eps)
        if over == "group":
            mean, invstd = (
                vector.repeat_interleave(input.shape[1] // groups) for vector in (mean, invstd)
            )
    samples = input.shape[:2]
    scale = of_sample = None if gain is None else gain.reshape(samples)
    offset = bias
    if of_sample is None:
        scale = weight
    elif weight is not None:
        scale = weight * of_sample
    if bias is not None and of_sample is not None:
        offset = bias * of_sample
    if shift is not None:
        offset = shift.reshape(samples) + (0 if offset is None else offset)
    scale, offset = (
        None if vector is None else vector.expand(samples) for vector in (scale, offset)
    )
    row = ACTIVATIONS[activation]
    if over in ("sample", "running") and mean is not None and invstd is not None and not on_cpu:
        # A batch norm of one sample with N * C channels.
        value = normalised(
            _as_one_sample(input),
            None if scale is None else scale.reshape(-1),
            None if offset is None else offset.reshape(-1),
            _flat(mean, input),
            _flat(invstd, input),
            over == "sample",
            row.code,
            negative_slope,
        )
        # No view, whose gradient could not be found once somebody writes to it.
        return torch.ops.aten._unsafe_view(value, input.shape)  # type: ignore[no-any-return]
    output: Tensor = _SampleNormAct.apply(  # type: ignore[no-untyped-call]
        input,
        scale,
        offset,
        mean,
        invstd,
        over,
        groups if over == "group" else input.shape[1],
        eps,
        row,
        negative_slope,
        (original,),
    )
    return output


def _as_one_sample(map: Tensor) -> Tensor:
    """(N, C, H, W) -> (1, N * C, H, W)."""
    return map.reshape(1, -1, *map.shape[2:])


def _flat(vector: Tensor, input: Tensor) -> Tensor:
    """(C,), (N * C,) or (N, C) -> (N * C,), in the dtype of the arithmetic."""
    samples = input.shape[:2]
    whole = vector.view(samples) if vector.numel() == samples.numel() else vector.expand(samples)
    return whole.to(arithmetic_dtype(input.dtype)).reshape(-1)


class _SampleNormAct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        gain: Tensor | None,
        shift: Tensor | None,
        mean: Tensor | None,
        invstd: Tensor | None,
        over: str,
        groups: int,
        *rest: Any,
    ) -> Tensor:
        ctx.over, ctx.groups = over, groups
        ctx.eps, ctx.activation, ctx.negative_slope, (original,) = rest
        code, slope = ctx.activation.code, ctx.negative_slope
        if input.is_cpu:
            scale, offset = (_matrix(each, input, value) for each, value in ((gain, 1), (shift, 0)))
            mean, invstd = (
                torch.empty_like(scale) if each is None else _matrix(each, input, 0)
                for each in (mean, invstd)
            )
            own = _own_groups(ctx)
            given = (input, scale, offset, mean, invstd, own, ctx.eps, code, slope)
            output: Tensor = _ops.sample_norm_act(*given)
        else:
            assert mean is not None
            assert invstd is not None
            norm = _vectors(input, gain, shift, mean, invstd)
            value = _ops.norm_act(_as_one_sample(input), norm[0], norm[2], norm[3], code, slope)
            # No view, whose gradient could not be found once somebody writes to it.
            output = torch.ops.aten._unsafe_view(value, input.shape)
        ctx.save_for_backward(input if original is None else original, gain, shift, mean, invstd)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        if torch.is_grad_enabled():
            return (*_recorded_gradients(ctx, tensors, grad_output), *(None,) * 8)
        input, gain, shift, mean, invstd = tensors
        if input.is_cpu:
            scale, offset = (_matrix(each, input, value) for each, value in ((gain, 1), (shift, 0)))
            given = (grad_output, input, scale, offset, mean, invstd, _own_groups(ctx))
            rest = (ctx.activation.code, ctx.negative_slope)
            grad_input, grad_gain, grad_shift = _ops.sample_norm_act_gradient(*given, *rest)
        else:
            grad_input, grad_gain, grad_shift = _gradients(ctx, tensors, grad_output)
        of_vectors = (
            gradient.to(vector.dtype) if vector is not None else None
            for gradient, vector in ((grad_gain, gain), (grad_shift, shift))
        )
        return (grad_input, *of_vectors, *(None,) * 8)


def _own_groups(ctx: Any) -> int:
    """The ops' ``groups`` argument."""
    groups: int = {"batch": 0, "running": -1}.get(ctx.over, ctx.groups)
    return groups


def _matrix(vector: Tensor | None, input: Tensor, value: float) -> Tensor:
    """(C,) or (N, C) -> (N, C), in the dtype of the arithmetic; None for all ``value``."""
    samples, dtype = input.shape[:2], arithmetic_dtype(input.dtype)
    if vector is None:
        return torch.full(samples, value, dtype=dtype, device=input.device)
    return vector.to(dtype).expand(samples).contiguous()


def _gradients(
    ctx: Any, tensors: tuple[Tensor, ...], grad_output: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of input, gain and shift, by the ops of batch norm."""
    input, mean = tensors[0], tensors[3]
    mean, invstd, scale, offset = _vectors(*tensors)
    value, grad = _as_one_sample(input), _as_one_sample(grad_output.contiguous())
    rest = (ctx.activation.code, ctx.negative_slope)
    tiles = _ops.norm_act_gradient_sums(grad, value, mean, invstd, scale, offset, *rest)
    grad_shift, grad_gain = (sums.double().sum(0).to(scale.dtype) for sums in tiles)
    slope, constant = torch.zeros_like(scale), torch.zeros_like(scale)
    # sum(G) and sum(G * xhat) over what a mean is over, divided by M, times invstd.
    for vector, sums in ((constant, grad_shift), (slope, grad_gain)):
        share = (scale * sums).view(input.shape[:2])
        if ctx.over == "batch":
            share = share.mean(0, keepdim=True)
        else:
            of_group = share.view(len(share), ctx.groups, -1)
            share = of_group.mean(2, keepdim=True).expand_as(of_group).flatten(1)
        vector.view(input.shape[:2]).copy_(-share / (input.shape[2] * input.shape[3]))
    slope *= invstd
    grad_input = _ops.norm_act_gradient(grad, value, mean, scale, offset, slope, constant, *rest)
    of_vectors = (gradient.view(input.shape[:2]) for gradient in (grad_gain, grad_shift))
    return (grad_input.view(input.shape), *of_vectors)


def _vectors(
    input: Tensor, gain: Tensor | None, shift: Tensor | None, mean: Tensor, invstd: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Mean, invstd, invstd * gain and shift, (N * C,) each."""
    mean, invstd = _flat(mean, input), _flat(invstd, input)
    scale = invstd if gain is None else invstd * _flat(gain, input)
    return mean, invstd, scale, None if shift is None else _flat(shift, input)


def _recorded_gradients(
    ctx: Any, tensors: tuple[Tensor | None, ...], grad_output: Tensor
) -> list[Tensor | None]:
    """The gradients of input, gain and shift, differentiable in what they depend on."""
    # Aliases, because one argument may depend on another.
    own = [None if tensor is None else torch.ops.aten.alias(tensor) for tensor in tensors[:3]]
    input, gain, shift = own
    mean, invstd = tensors[3:]
    assert input is not None
    assert mean is not None
    assert invstd is not None
    x = input.to(mean.dtype)
    if ctx.over == "running":
        xhat = (x - mean[:, :, None, None]) * invstd[:, :, None, None]
    else:
        grouped, over = x.unflatten(1, (ctx.groups, -1)), (2, 3, 4)
        if ctx.over == "batch":
            grouped, over = x, (0, 2, 3)
            if input.requires_grad:  # its gradients have its layout, as torch's
                input.register_hook(
                    partial(_laid_out, torch.empty_like(input, device="meta").stride())
                )
        centred = grouped - grouped.mean(over, keepdim=True)
        variance = centred.square().mean(over, keepdim=True)
        xhat = (centred * (variance + ctx.eps).rsqrt()).reshape(x.shape)
    u = xhat if gain is None else xhat * gain[:, :, None, None]
    u = u if shift is None else u + shift[:, :, None, None]
    output = ctx.activation.forward(u, ctx.negative_slope).to(input.dtype)
    places = [place for place in range(3) if ctx.needs_input_grad[place]]
    gradients = torch.autograd.grad(
        output,
        [tensor for place in places if (tensor := own[place]) is not None],
        grad_output,
        create_graph=True,
    )
    grads: list[Tensor | None] = [None] * 3
    for place, grad in zip(places, gradients, strict=True):
        grads[place] = grad if place else laid_out(grad, is_channels_last(input))
    return grads


def _laid_out(strides: tuple[int, ...], grad: Tensor) -> Tensor:
    if grad.stride() == strides:
        return grad
    like = torch.empty_strided(grad.shape, strides, dtype=grad.dtype, device=grad.device)
    return like.copy_(grad)


# --- The ops --------------------------------------------------------------------------------------


def _check(op: str, input: Tensor, groups: int, activation: int, **vectors: Tensor) -> None:
    check_image(op, "input", input)
    if input.numel() == 0:
        raise RuntimeError(f"fastgan::{op}: input is empty: its shape is {tuple(input.shape)}")
    if groups < -1 or (groups > 0 and input.shape[1] % groups != 0):
        raise RuntimeError(
            f"fastgan::{op}: groups is {groups}; expected -1, 0 or a divisor of {input.shape[1]}"
        )
    check_arrays(op, arithmetic_dtype(input.dtype), tuple(input.shape[:2]), **vectors)
    check_activation(op, activation)


def _examples() -> Iterator[tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(0)
    for dtype, shape in itertools.product(DTYPES, ((3, 6, 5, 7), (2, 4, 16, 15))):
        map = torch.randn(shape, generator=generator).to(dtype)
        vectors = torch.rand((4, *shape[:2]), generator=generator).to(arithmetic_dtype(dtype))
        for memory_format, groups in itertools.product(
            (torch.contiguous_format, torch.channels_last), (shape[1], 2, 0, -1)
        ):
            scale, shift, *moments = vectors.clone()
            if groups == 0:  # the batch's, the same for each sample
                moments = [moment[:1].expand(shape[:2]).clone() for moment in moments]
            elif groups > 0:
                size = shape[1] // groups
                moments = [moment[:, ::size].repeat_interleave(size, 1) for moment in moments]
            for code in BY_CODE if shape[0] == 3 else (0,):
                input = map.contiguous(memory_format=memory_format)
                yield (input, scale, shift, *moments, groups, 1e-3, code, 0.2)


@define_op(
    "sample_norm_act(Tensor input, Tensor scale, Tensor shift, Tensor(a!) mean, "
    "Tensor(b!) invstd, int groups, float eps, int activation, float negative_slope) -> Tensor",
    examples=_examples,
    written=lambda arguments: arguments[3:5] if arguments[5] > 0 else (),
)
def _sample_norm_act(
    input: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    invstd: Tensor,
    groups: int,
    eps: float,
    activation: int,
    negative_slope: float,
) -> Tensor:
    """z((input - mean) * invstd * scale + shift), with vectors of shape (N, C).

    If ``groups`` is positive, mean and invstd of that many groups of each sample's channels are
    written. Otherwise they are inputs: the batch's for 0, constants for -1.
    """
    vectors = {"scale": scale, "shift": shift, "mean": mean, "invstd": invstd}
    _check("sample_norm_act", input, groups, activation, **vectors)
    if groups > 0:
        samples, channels = input.shape[:2]
        grouped = input.to(mean.dtype).reshape(samples, groups, -1)
        variance = grouped.var(2, correction=0)
        for vector, per_group in ((mean, grouped.mean(2)), (invstd, (variance + eps).rsqrt())):
            vector.copy_(per_group.repeat_interleave(channels // groups, 1))
    u = _affine(_xhat(input, mean, invstd), scale, shift)
    return torch.empty_like(without_gaps(input)).copy_(
        BY_CODE[activation].forward(u, negative_slope)
    )


def _gradient_examples() -> Iterator[tuple[Any, ...]]:
    for input, scale, shift, mean, invstd, groups, _, *rest in _examples():
        yield (torch.sin(input), input, scale, shift, mean, invstd, groups, *rest)


@define_op(
    "sample_norm_act_gradient(Tensor grad_output, Tensor input, Tensor scale, Tensor shift, "
    "Tensor mean, Tensor invstd, int groups, int activation, float negative_slope) -> "
    "(Tensor grad_input, Tensor grad_scale, Tensor grad_shift)",
    examples=_gradient_examples,
)
def _sample_norm_act_gradient(
    grad_output: Tensor,
    input: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    invstd: Tensor,
    groups: int,
    activation: int,
    negative_slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of input, scale and shift of ``sample_norm_act``, by the module's formulas."""
    op = "sample_norm_act_gradient"
    vectors = {"scale": scale, "shift": shift, "mean": mean, "invstd": invstd}
    _check(op, input, groups, activation, **vectors)
    check_alike(op, "grad_output", grad_output, "input", input)
    xhat = _xhat(input, mean, invstd)
    u = _affine(xhat, scale, shift)
    g = BY_CODE[activation].gradient_by_input(grad_output.to(mean.dtype), u, negative_slope)
    inner = scaled = _affine(g, scale, torch.zeros_like(shift))
    if groups >= 0:
        shape = (
            (1, *input.shape) if groups == 0 else (*input.shape[:1], groups, -1, *input.shape[2:])
        )
        over = (
            (0, 1, *range(3, input.dim() + 1)) if groups == 0 else tuple(range(2, input.dim() + 1))
        )
        for factor in (torch.ones_like(xhat), xhat):
            share = (scaled * factor).reshape(shape).mean(over, keepdim=True)
            inner = inner - factor * share.expand(scaled.reshape(shape).shape).reshape(input.shape)
    grad_input = inner * _per_sample(invstd, input)
    places = tuple(range(2, input.dim()))
    result = torch.empty_like(without_gaps(input)).copy_(grad_input)
    return result, (g * xhat).sum(places), g.sum(places)


def _per_sample(vector: Tensor, input: Tensor) -> Tensor:
    return vector.reshape(*vector.shape, *(1,) * (input.dim() - 2))


def _xhat(input: Tensor, mean: Tensor, invstd: Tensor) -> Tensor:
    return (input.to(mean.dtype) - _per_sample(mean, input)) * _per_sample(invstd, input)


def _affine(map: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return map * _per_sample(scale, map) + _per_sample(shift, map)
