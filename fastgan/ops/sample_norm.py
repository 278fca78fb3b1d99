"""Norms with per-sample statistics, or per-sample scale and shift, and an activation, in one pass.

Instance norm (Ulyanov et al. 2016, arXiv 1607.08022), adaptive instance norm (Huang and Belongie
2017, arXiv 1703.06868), group norm (Wu and He 2018, arXiv 1803.08494) and conditional batch norm
(de Vries et al. 2017, arXiv 1707.00683; of SNGAN and BigGAN)::

    u = (x - mean) * invstd * gain + shift,    y = z(u)

with gain and shift of shape (N, C), and mean and invstd over the batch, or over each sample's
channels or groups of channels. The ops of :mod:`fastgan.ops.batch_norm` run on the contiguous map
viewed as (1, N * C, H, W). With g = grad_output * z', the sums over a sample's map, G = gain * g,
and M values in each mean::

    grad_shift = sum(g),    grad_gain = sum(g * xhat)
    grad_input = invstd * (G - sum(G) / M - xhat * sum(G * xhat) / M)

the last two sums over a mean's elements. With per-channel statistics of each sample, or constant
ones, it is a batch norm of that one sample (:mod:`fastgan.ops.bn_act`).

Order of gradients supported: any. With ``create_graph=True`` autograd differentiates the formulas
in torch functions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastgan.activations import ACTIVATIONS
from fastgan.ops.batch_norm import arithmetic_dtype
from fastgan.ops.bn_act import batch_statistics, normalised, running_statistics

__all__ = ["sample_norm_act"]

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
) -> Tensor:
    """``z(norm(input) * gain + shift)``, in one pass over memory after the statistics.

    Args:
        input: (N, C, H, W), contiguous; float64, float32, float16 or bfloat16.
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

    Returns:
        A new tensor like the input.

    Example:
        >>> x, gain = torch.randn(2, 3, 4, 4), torch.rand(2, 3, 1, 1)
        >>> y = sample_norm_act(x, over="sample", gain=gain, activation="relu")
        >>> torch.allclose(y, torch.relu(torch.instance_norm(
        ...     x, None, None, None, None, True, 0.1, 1e-5, True) * gain), atol=1e-5)
        True
    """
    if over == "running":
        assert running_mean is not None
        assert running_var is not None
        mean, invstd = running_statistics(running_mean, running_var, eps, input.dtype)
    else:
        values = input if over == "batch" else _as_one_sample(input)
        if over == "group":
            values = input.reshape(1, input.shape[0] * groups, -1, input.shape[3])
        if over != "batch":
            running_mean = running_var = None
        mean, invstd = batch_statistics(values, running_mean, running_var, momentum, eps)
        if over == "group":
            mean, invstd = (
                each.repeat_interleave(input.shape[1] // groups) for each in (mean, invstd)
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
    scale, offset = (None if each is None else each.expand(samples) for each in (scale, offset))
    row = ACTIVATIONS[activation]
    if over in ("sample", "running"):
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
        groups,
        eps,
        row,
        negative_slope,
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
        mean: Tensor,
        invstd: Tensor,
        over: str,
        groups: int,
        *rest: Any,
    ) -> Tensor:
        ctx.save_for_backward(input, gain, shift, mean, invstd)
        ctx.over, ctx.groups, (ctx.eps, ctx.activation, ctx.negative_slope) = over, groups, rest
        norm = _vectors(input, gain, shift, mean, invstd)
        value = _as_one_sample(input)
        code, slope = ctx.activation.code, ctx.negative_slope
        output = _ops.norm_act(value, norm[0], norm[2], norm[3], code, slope)
        # No view, whose gradient could not be found once somebody writes to it.
        return torch.ops.aten._unsafe_view(output, input.shape)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        if torch.is_grad_enabled():
            return (*_recorded_gradients(ctx, tensors, grad_output), *(None,) * 7)
        input, gain, shift, mean, invstd = tensors
        mean, invstd, scale, offset = _vectors(input, gain, shift, mean, invstd)
        value, grad = _as_one_sample(input), _as_one_sample(grad_output.contiguous())
        rest = (ctx.activation.code, ctx.negative_slope)
        tiles = _ops.norm_act_gradient_sums(grad, value, mean, invstd, scale, offset, *rest)
        grad_shift, grad_gain = (sums.double().sum(0).to(scale.dtype) for sums in tiles)
        grad_input = None
        if ctx.needs_input_grad[0]:
            slope, constant = torch.zeros_like(scale), torch.zeros_like(scale)
            # sum(G) and sum(G * xhat) over a mean's elements, divided by M, times invstd.
            for found, sums in ((constant, grad_shift), (slope, grad_gain)):
                share = (scale * sums).view(input.shape[:2])
                if ctx.over == "batch":
                    share = share.mean(0, keepdim=True)
                else:
                    of_group = share.view(len(share), ctx.groups, -1)
                    share = of_group.mean(2, keepdim=True).expand_as(of_group).flatten(1)
                found.view(input.shape[:2]).copy_(-share / (input.shape[2] * input.shape[3]))
            slope *= invstd
            grad_input = _ops.norm_act_gradient(
                grad, value, mean, scale, offset, slope, constant, *rest
            ).view(input.shape)
        of_vectors = (
            found.view(input.shape[:2]).to(vector.dtype) if vector is not None else None
            for found, vector in ((grad_gain, gain), (grad_shift, shift))
        )
        return (grad_input, *of_vectors, *(None,) * 7)


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
    own = [None if each is None else torch.ops.aten.alias(each) for each in tensors[:3]]
    input, gain, shift = own
    mean, invstd = tensors[3:]
    assert input is not None
    assert mean is not None
    assert invstd is not None
    x = input.to(mean.dtype)
    grouped = x.unflatten(1, (ctx.groups if ctx.over == "group" else x.shape[1], -1))
    over = (0, 2, 3, 4) if ctx.over == "batch" else (2, 3, 4)
    centred = grouped - grouped.mean(over, keepdim=True)
    variance = centred.square().mean(over, keepdim=True)
    xhat = (centred * (variance + ctx.eps).rsqrt()).flatten(1, 2)
    u = xhat if gain is None else xhat * gain[:, :, None, None]
    u = u if shift is None else u + shift[:, :, None, None]
    output = ctx.activation.forward(u, ctx.negative_slope).to(input.dtype)
    places = [place for place in range(3) if ctx.needs_input_grad[place]]
    found = torch.autograd.grad(
        output,
        [each for place in places if (each := own[place]) is not None],
        grad_output,
        create_graph=True,
    )
    grads: list[Tensor | None] = [None] * 3
    for place, grad in zip(places, found, strict=True):
        grads[place] = grad
    return grads
