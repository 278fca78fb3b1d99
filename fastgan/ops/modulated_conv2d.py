"""``modulated_conv2d``: a convolution with a weight of its own for each sample.

::

    w[n, o, i] = weight[o, i] * styles[n, i]
    d[n, o]    = (sum_{i, ky, kx} w[n, o, i, ky, kx]^2 + 1e-8)^(-1/2)
    y[n]       = conv2d_resample(x[n], w[n] * d[n]) + noise

of StyleGAN2 (Karras et al. 2019, arXiv 1912.04958, section 2.2). The N weights are never computed:
styles scale the input and d the output, and d needs only the weight's squares summed over the taps,
a (C_out, C) matrix. On CPUs, where autograd doesn't record, the convolution's kernel does both, and
adds the noise (:func:`fastgan.ops.convolution.modulated_convolution`).

Order of gradients supported: any.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from fastgan.errors import ConfigError
from fastgan.ops.conv2d_resample import Padding, conv2d_resample, resampled
from fastgan.ops.convolution import modulated_convolution, modulates_on_load


def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    noise: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: Padding = 0,
    resample_filter: Tensor | None = None,
    demodulate: bool = True,
    flip_weight: bool = True,
) -> Tensor:
    """Convolves each sample with the weight scaled by its style, and normalised.

    Args:
        x: (N, C, H, W); float64, float32, float16 or bfloat16.
        weight: (C_out, C, kh, kw); converted to x's dtype.
        styles: (N, C), a factor for each input channel of each sample.
        noise: added to the result, to which it broadcasts, such as (N, 1, H', W'); None for none.
        up: upsampling factor.
        down: downsampling factor.
        padding: of the upsampled image: one number, (x, y), or (x0, x1, y0, y1).
        resample_filter: f of :func:`fastgan.ops.conv2d_resample.conv2d_resample`.
        demodulate: whether each output channel is divided by its weight's norm.
        flip_weight: True for torch's convolution (correlation), False for a true convolution.

    Returns:
        (N, C_out, H', W'), in x's dtype.

    Raises:
        ConfigError: ``styles`` doesn't fit, or as in ``conv2d_resample`` (a ValueError).
        RuntimeError: shapes that torch's convolution refuses.

    Example:
        >>> x, weight, styles = torch.randn(2, 8, 4, 4), torch.randn(6, 8, 3, 3), torch.randn(2, 8)
        >>> modulated_conv2d(x, weight, styles, up=2, padding=1).shape
        torch.Size([2, 6, 8, 8])
    """
    if styles.shape != x.shape[:2]:
        raise ConfigError(
            f"styles has shape {tuple(styles.shape)}; expected {tuple(x.shape[:2])}, as x's first "
            "two dimensions"
        )
    scale = None
    if demodulate:
        wide = torch.promote_types(weight.dtype, torch.float32)
        weight, styles, eps = weight.to(wide), styles.to(wide), 1e-8
        if x.dtype == torch.float16:
            # The result doesn't depend on their scale, and half precision ends at 65504.
            largest = weight.detach().abs().amax().clamp_min(1e-30)
            size = largest * weight[0].numel() ** 0.5
            of_sample = styles.detach().abs().amax(1, keepdim=True).clamp_min(1e-30)
            weight, styles, eps = weight / size, styles / of_sample, 1e-8 / (size * of_sample) ** 2
        scale = (styles.square() @ weight.square().sum((2, 3)).t() + eps).rsqrt()
    if modulates_on_load(x, weight, styles, scale, noise):
        # After the filter, if there is one behind the convolution.
        on_store = noise if up == 1 else None
        conv2d, conv_transpose2d = (
            partial(modulated_convolution, styles, scale, on_store, kind)
            for kind in ("conv2d", "conv_transpose2d")
        )
        settings = (resample_filter, up, down, padding, 1, flip_weight)
        y = resampled(conv2d, conv_transpose2d, x, weight, *settings)
        return y if noise is None or up == 1 else y.add_(noise)
    x = x * styles.to(x.dtype)[:, :, None, None]
    y = conv2d_resample(
        x, weight.to(x.dtype), resample_filter, up, down, padding, flip_weight=flip_weight
    )
    if scale is None:
        return y if noise is None else y + noise.to(y.dtype)
    scale = scale.to(y.dtype)[:, :, None, None]
    return y * scale if noise is None else torch.addcmul(noise.to(y.dtype), y, scale)
