"""The operations of StyleGAN's networks, one torch function after the other.

    bias_act          clamp(gain * act(x + b))
    upfirdn2d         insert zeros, pad or crop, filter, keep every down-th value
    filtered_lrelu    the above: bias, up, leaky ReLU, gain, clamp, down
    conv2d_resample   up, convolve, down
    modulated_conv2d  the weight scaled by a style for each sample, and divided by its norm
    minibatch_stddev  the samples' standard deviation as a further channel

Sources: Karras et al. 2018, arXiv 1710.10196 (section 3); 2020, arXiv
1912.04958 (section 2.2: modulation); 2021, arXiv 2106.12423 (the filtered leaky ReLU). Any floating
dtype, differentiable to any order.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Padding = tuple[int, int, int, int]

_SQRT2 = math.sqrt(2)

#: name -> (function of x and alpha, default alpha, default gain)
_ACTIVATIONS: dict[str, tuple[Callable[[Tensor, float], Tensor], float, float]] = {
    "linear": (lambda x, alpha: x, 0.0, 1.0),
    "relu": (lambda x, alpha: F.relu(x), 0.0, _SQRT2),
    "lrelu": (lambda x, alpha: F.leaky_relu(x, alpha), 0.2, _SQRT2),
    "tanh": (lambda x, alpha: x.tanh(), 0.0, 1.0),
    "sigmoid": (lambda x, alpha: x.sigmoid(), 0.0, 1.0),
    "elu": (lambda x, alpha: F.elu(x), 0.0, 1.0),
    "selu": (lambda x, alpha: F.selu(x), 0.0, 1.0),
    "softplus": (lambda x, alpha: F.softplus(x), 0.0, 1.0),
    "swish": (lambda x, alpha: x.sigmoid() * x, 0.0, _SQRT2),
}


def bias_act(
    x: Tensor,
    b: Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """``clamp(gain * act(x + b))``.

    Args:
        x: any shape.
        b: bias, of shape (x.size(dim),) and x's dtype, or None for 0.
        dim: the dimension of ``x`` that the bias belongs to.
        act: "linear", "relu", "lrelu", "tanh", "sigmoid", "elu", "selu", "softplus" or "swish".
        alpha: slope of "lrelu" below zero; None for 0.2.
        gain: factor; None for the square root of 2 for "relu", "lrelu" and "swish", else 1.
        clamp: largest absolute value of the result; None or a negative number for no bound.

    Returns:
        A tensor of ``x``'s shape and dtype.

    Raises:
        ValueError: an unknown activation.

    Example:
        >>> import torch
        >>> bias_act(torch.tensor([[-2.0, 1.0]]), torch.tensor([1.0, 0.5]), act="lrelu", gain=2.0)
        tensor([[-0.4000,  3.0000]])
    """
    if act not in _ACTIVATIONS:
        raise ValueError(f"act is {act!r}; expected one of {', '.join(_ACTIVATIONS)}")
    function, default_alpha, default_gain = _ACTIVATIONS[act]
    if b is not None:
        x = x + b.reshape([-1 if i == dim % x.ndim else 1 for i in range(x.ndim)])
    x = function(x, default_alpha if alpha is None else alpha)
    gain = default_gain if gain is None else gain
    if gain != 1:
        x = x * gain
    if clamp is not None and clamp >= 0:
        x = x.clamp(-clamp, clamp)
    return x


def upfirdn2d(
    x: Tensor,
    f: Tensor | None,
    up: tuple[int, int] = (1, 1),
    down: tuple[int, int] = (1, 1),
    padding: Padding = (0, 0, 0, 0),
    flip_filter: bool = False,
    gain: float = 1.0,
) -> Tensor:
    """Upsamples by zeros, pads, filters and downsamples each channel.

    Args:
        x: shape (N, C, H, W).
        f: the filter: shape (fh, fw), or (taps,) for both directions, or None for a single 1.
        up: factor in x and in y: after each value ``up - 1`` zeros follow.
        down: factor in x and in y: of the filtered values every ``down``-th is kept.
        padding: zeros to the left, right, top and bottom of the upsampled image; negative numbers
            crop it.
        flip_filter: False for a convolution, True for a correlation.
        gain: factor of the result.

    Returns:
        A tensor of shape (N, C, (H up_y + y0 + y1 - fh) // down_y + 1, and likewise the width).

    Example:
        >>> import torch
        >>> upfirdn2d(torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([1.0, 1.0]), up=(2, 2),
        ...           padding=(1, 0, 1, 0))
        tensor([[[[1., 1., 2., 2.],
                  [1., 1., 2., 2.]]]])
    """
    batch, channels, height, width = x.shape
    (up_x, up_y), (down_x, down_y) = up, down
    x = x.reshape(batch, channels, height, 1, width, 1)
    x = F.pad(x, [0, up_x - 1, 0, 0, 0, up_y - 1])
    x = x.reshape(batch, channels, height * up_y, width * up_x)
    # More may be cropped on one side than there is, if there are zeros on the other.
    x = F.pad(x, [max(zeros, 0) for zeros in padding])
    left, right, top, bottom = (max(-cropped, 0) for cropped in padding)
    x = x[:, :, top : x.shape[2] - bottom, left : x.shape[3] - right]
    if f is None:
        f = torch.ones(1, 1, device=x.device)
    f = f.to(x.dtype)
    if not flip_filter:
        f = f.flip(list(range(f.ndim)))
    filters = [f] if f.ndim == 2 else [f[None, :], f[:, None]]
    for taps in filters:
        x = F.conv2d(x, taps[None, None].repeat(channels, 1, 1, 1), groups=channels)
    return x[:, :, ::down_y, ::down_x] * gain


def filtered_lrelu(
    x: Tensor,
    fu: Tensor | None,
    fd: Tensor | None,
    b: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: Padding = (0, 0, 0, 0),
    gain: float = _SQRT2,
    slope: float = 0.2,
    clamp: float | None = None,
    flip_filter: bool = False,
) -> Tensor:
    """Bias, upsampling, leaky ReLU times gain, clamp, downsampling.

    Args:
        x: shape (N, C, H, W).
        fu: filter of the upsampling, as in :func:`upfirdn2d`; its gain is ``up`` squared.
        fd: filter of the downsampling.
        b: bias, shape (C,), or None for 0.
        up: upsampling factor, in both directions.
        down: downsampling factor, in both directions.
        padding: of the upsampled image: left, right, top, bottom.
        gain: factor of the leaky ReLU's result.
        slope: of the leaky ReLU below zero.
        clamp: largest absolute value after ``gain``; None for no bound.
        flip_filter: as in :func:`upfirdn2d`, for both filters.

    Returns:
        A tensor of ``x``'s dtype, of the size that the two :func:`upfirdn2d` give.

    Example:
        >>> import torch
        >>> filtered_lrelu(torch.tensor([[[[-1.0, 2.0]]]]), None, None, gain=2.0, clamp=3.0)
        tensor([[[[-0.4000,  3.0000]]]])
    """
    x = bias_act(x, b)
    x = upfirdn2d(x, fu, (up, up), (1, 1), padding, flip_filter, float(up * up))
    x = bias_act(x, act="lrelu", alpha=slope, gain=gain, clamp=clamp)
    return upfirdn2d(x, fd, (1, 1), (down, down), flip_filter=flip_filter)


def conv2d_resample(
    x: Tensor,
    w: Tensor,
    f: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: Padding = (0, 0, 0, 0),
    groups: int = 1,
    flip_weight: bool = True,
    flip_filter: bool = False,
) -> Tensor:
    """Upsamples with a filter, convolves, and downsamples with the filter.

    Args:
        x: shape (N, C, H, W).
        w: weight, shape (C_out, C / groups, kh, kw).
        f: the filter of both resamplings, as in :func:`upfirdn2d`.
        up: upsampling factor.
        down: downsampling factor.
        padding: of the upsampled image: left, right, top, bottom. What keeps the resamplings
            centred is added to it.
        groups: of the convolution.
        flip_weight: True for what torch calls a convolution (a correlation), False for a true one.
        flip_filter: as in :func:`upfirdn2d`.

    Returns:
        A tensor of shape (N, C_out, H', W'): H' = H up / down if ``padding`` keeps the
        convolution's size and the filter's taps go with the factors.

    Example:
        >>> import torch
        >>> x, w = torch.ones(1, 1, 2, 2), torch.ones(1, 1, 1, 1)
        >>> conv2d_resample(x, w, torch.full((2, 2), 0.25), down=2)
        tensor([[[[1.]]]])
    """
    fh, fw = (1, 1) if f is None else (f.shape[0], f.shape[-1])
    x0, x1, y0, y1 = padding
    if up > 1:
        x0, x1 = x0 + (fw + up - 1) // 2, x1 + (fw - up) // 2
        y0, y1 = y0 + (fh + up - 1) // 2, y1 + (fh - up) // 2
    if down > 1:
        x0, x1 = x0 + (fw - down + 1) // 2, x1 + (fw - down) // 2
        y0, y1 = y0 + (fh - down + 1) // 2, y1 + (fh - down) // 2
    x = upfirdn2d(
        x, f if up > 1 else None, (up, up), (1, 1), (x0, x1, y0, y1), flip_filter, float(up * up)
    )
    x = F.conv2d(x, w if flip_weight else w.flip([2, 3]), groups=groups)
    if down > 1:
        x = upfirdn2d(x, f, (1, 1), (down, down), flip_filter=flip_filter)
    return x


def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    noise: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: Padding = (0, 0, 0, 0),
    resample_filter: Tensor | None = None,
    demodulate: bool = True,
    flip_weight: bool = True,
) -> Tensor:
    """Convolves each sample with a weight of its own: ``w[n] = weight * styles[n]``.

    Demodulated, each of its output channels is divided by its norm,
    ``sqrt(sum(w[n, o] ** 2) + 1e-8)``.

    Args:
        x: shape (N, C, H, W).
        weight: shape (C_out, C, kh, kw).
        styles: shape (N, C).
        noise: is added to the result; any shape that broadcasts to it, or None.
        up: see :func:`conv2d_resample`, and so the next three.
        down: upsampling comes first, then the convolution, then downsampling.
        padding: of the upsampled image.
        resample_filter: of both resamplings.
        demodulate: whether to divide.
        flip_weight: see :func:`conv2d_resample`.

    Returns:
        A tensor of shape (N, C_out, H', W').

    Example:
        >>> import torch
        >>> modulated_conv2d(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1), torch.tensor([[3.0]]))
        tensor([[[[1.]]]])
    """
    w = weight[None] * styles[:, None, :, None, None]
    if demodulate:
        w = w * (w.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    samples = [
        conv2d_resample(
            x[n : n + 1], w[n], resample_filter, up, down, padding, flip_weight=flip_weight
        )
        for n in range(x.shape[0])
    ]
    y = torch.cat(samples)
    return y if noise is None else y + noise


def minibatch_stddev(x: Tensor, group_size: int | None = 4, num_channels: int = 1) -> Tensor:
    """Appends the standard deviation over groups of samples, as ``num_channels`` channels.

    Sample ``n`` of N belongs to group ``n % (N // G)``, G samples each. The standard deviation over
    a group, ``sqrt(var + 1e-8)``, is averaged over C / num_channels channels and all positions.

    Args:
        x: shape (N, C, H, W).
        group_size: G; at most N is taken. None for N.
        num_channels: into how many the channels are averaged; must divide C.

    Returns:
        A tensor of shape (N, C + num_channels, H, W).

    Raises:
        RuntimeError: G doesn't divide N, or ``num_channels`` C (from torch).

    Example:
        >>> import torch
        >>> minibatch_stddev(torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)).flatten(1)
        tensor([[1., 1.],
                [3., 1.]])
    """
    batch, channels, height, width = x.shape
    group = batch if group_size is None else min(group_size, batch)
    y = x.reshape(group, -1, num_channels, channels // num_channels, height, width)
    y = (y - y.mean(0)).square().mean(0)
    y = (y + 1e-8).sqrt().mean((2, 3, 4))
    y = y.repeat(group, 1)[:, :, None, None].expand(-1, -1, height, width)
    return torch.cat([x, y], 1)
