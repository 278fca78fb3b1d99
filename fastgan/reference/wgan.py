"""The Wasserstein GAN with weight clipping: Arjovsky et al. 2017, arXiv 1701.07875.

Equation 3:    max_w  E_x[f_w(x)] - E_z[f_w(G(z))]

over critics f_w whose weights lie in a box [-c, c], which keeps them Lipschitz. Algorithm 1's
defaults: learning rate 0.00005 with RMSProp, c = 0.01, m = 64 samples, n_critic = 5.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastgan.reference.conditional import append_label_planes, call
from fastgan.reference.dcgan import weights_init
from fastgan.reference.gan import GeneratorStep, descend

_NORM_LAYERS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


def _norm_layer(norm: str, channels: int) -> nn.Module:
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "instance":
        return nn.InstanceNorm2d(channels, affine=True)
    if norm == "layer":
        # One group: mean and variance of a sample over C, H and W; weight and bias per channel.
        return nn.GroupNorm(1, channels)
    raise ValueError(f"norm is {norm!r}; expected 'none', 'batch', 'instance' or 'layer'")


class WGANCritic(nn.Module):
    """f(x): the DCGAN discriminator without its sigmoid, with a choice of normalisation.

    Args:
        nc: image channels.
        ndf: channels of the first hidden map.
        image_size: a power of two, 16 or more.
        norm: "batch" (WGAN), "none" or "layer" (WGAN-GP, section 4, whose penalty is per sample
            and so needs a critic that doesn't couple samples), "instance". With "none" the
            hidden convolutions have a bias, since no normalisation brings one.
        num_classes: None, or the number of labels the critic is conditioned on.

    Shapes: images (N, nc, image_size, image_size), labels int64 (N,) -> (N,).

    Raises:
        ValueError: an unknown ``norm``.

    Example:
        >>> WGANCritic(nc=3, ndf=2, image_size=32)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2])
    """

    def __init__(
        self,
        nc: int = 3,
        ndf: int = 64,
        image_size: int = 64,
        norm: str = "none",
        *,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        bias = norm == "none"
        self.main = nn.Sequential(
            nn.Conv2d(nc + (num_classes or 0), ndf, 4, 2, 1, bias=bias), nn.LeakyReLU(0.2)
        )
        size, channels = image_size // 2, ndf
        while size > 4:
            self.main.append(nn.Conv2d(channels, channels * 2, 4, 2, 1, bias=bias))
            if norm != "none":
                self.main.append(_norm_layer(norm, channels * 2))
            self.main.append(nn.LeakyReLU(0.2))
            size, channels = size // 2, channels * 2
        self.main.append(nn.Conv2d(channels, 1, 4, 1, 0, bias=False))
        self.apply(weights_init)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """f(x), or f(x|y): one score per sample, any real number."""
        if self.num_classes is not None and labels is not None:
            images = append_label_planes(images, labels, self.num_classes)
        scores: Tensor = self.main(images)
        return scores.flatten()


def wgan_critic_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Minus the objective of equation 3: mean f(G(z)) - mean f(x).

    Args:
        real: f(x), any shape.
        fake: f(G(z)), any shape.

    Returns:
        A scalar; its negative estimates the Wasserstein distance, up to a constant factor.

    Example:
        >>> wgan_critic_loss(torch.tensor([3.0, 5.0]), torch.tensor([1.0]))
        tensor(-3.)
    """
    return fake.mean() - real.mean()


def wgan_generator_loss(fake: Tensor) -> Tensor:
    """-mean f(G(z)), whose gradient is line 10 of Algorithm 1.

    Example:
        >>> wgan_generator_loss(torch.tensor([1.0, 3.0]))
        tensor(-2.)
    """
    return -fake.mean()


@torch.no_grad()
def clip_weights_(
    params_or_module: nn.Module | Tensor | Iterable[Tensor],
    clip: float | tuple[float, float],
    *,
    include_norm: bool = True,
) -> None:
    """w <- clip(w, -c, c): line 7 of Algorithm 1, in place.

    Args:
        params_or_module: a module (its parameters, not its buffers), a tensor, or several.
        clip: c for [-c, c], or (lo, hi).
        include_norm: whether normalisation layers' weights and biases are clipped too, as the
            paper's line and the original code do. False needs a module, to know which they are.

    Raises:
        ValueError: lo > hi (so also c < 0), or ``include_norm=False`` without a module.

    Example:
        >>> w = torch.tensor([-2.0, 0.5, float("nan"), 3.0])
        >>> clip_weights_([w], 1.0)
        >>> w
        tensor([-1.0000,  0.5000,     nan,  1.0000])
    """
    low, high = clip if isinstance(clip, tuple) else (-clip, clip)
    if not low <= high:
        raise ValueError(f"clip is {clip!r}; expected c >= 0 or (lo, hi) with lo <= hi")
    if isinstance(params_or_module, nn.Module):
        spared = {
            id(parameter)
            for module in params_or_module.modules()
            if isinstance(module, _NORM_LAYERS) and not include_norm
            for parameter in module.parameters(recurse=False)
        }
        parameters: Iterable[Tensor] = [
            parameter for parameter in params_or_module.parameters() if id(parameter) not in spared
        ]
    elif not include_norm:
        raise ValueError("include_norm=False needs a module, not parameters alone")
    elif isinstance(params_or_module, Tensor):
        parameters = [params_or_module]
    else:
        parameters = params_or_module
    for parameter in parameters:
        parameter.clamp_(low, high)


class WGANCriticStep(NamedTuple):
    """What a critic step saw, before its update; detached scalars."""

    loss: Tensor
    """The loss that was descended."""
    wasserstein: Tensor
    """mean f(x) - mean f(G(z))."""


def wgan_critic_step(
    generator: nn.Module,
    critic: nn.Module,
    optimizer: torch.optim.Optimizer,
    real: Tensor,
    noise: Tensor,
    *,
    clip: float | tuple[float, float] = 0.01,
    labels: Tensor | None = None,
) -> WGANCriticStep:
    """Lines 3 to 7 of Algorithm 1: ascend equation 3, then clip.

    Args:
        generator: G, left as it is but for its batch norms' running statistics.
        critic: f_w.
        optimizer: of the critic's parameters.
        real: a batch of real images, (N, C, H, W).
        noise: z, the generator's input.
        clip: c, or (lo, hi).
        labels: None, or int64 (N,).

    Returns:
        Loss and estimate from before the update, detached.

    Raises:
        ValueError: a bad ``clip``, see :func:`clip_weights_`.

    Example:
        >>> from fastgan.reference import DCGANGenerator
        >>> G, f = DCGANGenerator(3, 2, 1, 16), WGANCritic(1, 2, 16)
        >>> _ = wgan_critic_step(G, f, torch.optim.RMSprop(f.parameters(), lr=5e-5),
        ...                      torch.zeros(2, 1, 16, 16), torch.zeros(2, 3))
        >>> max(p.abs().max().item() for p in f.parameters()) <= 0.01 + 1e-9
        True
    """
    with torch.no_grad():
        fake = call(generator, noise, labels)
    real_scores = call(critic, real, labels)
    fake_scores = call(critic, fake, labels)
    loss = wgan_critic_loss(real_scores, fake_scores)
    descend(optimizer, loss)
    clip_weights_(critic, clip)
    return WGANCriticStep(loss.detach(), -loss.detach())


def wgan_generator_step(
    generator: nn.Module,
    critic: nn.Module,
    optimizer: torch.optim.Optimizer,
    noise: Tensor,
    *,
    labels: Tensor | None = None,
) -> GeneratorStep:
    """Lines 9 to 11 of Algorithm 1; of WGAN-GP's Algorithm 1, lines 11 and 12.

    Args:
        generator: G.
        critic: f_w; no gradient is added to its parameters.
        optimizer: of the generator's parameters.
        noise: z, the generator's input.
        labels: None, or int64 (N,).

    Returns:
        Loss and mean f(G(z)) from before the update, detached.

    Example:
        >>> from fastgan.reference import DCGANGenerator
        >>> G, f = DCGANGenerator(3, 2, 1, 16), WGANCritic(1, 2, 16)
        >>> step = wgan_generator_step(G, f, torch.optim.RMSprop(G.parameters(), lr=5e-5),
        ...                            torch.zeros(2, 3))
        >>> bool(step.loss == -step.fake_score)
        True
    """
    fake_scores = call(critic, call(generator, noise, labels), labels)
    loss = wgan_generator_loss(fake_scores)
    descend(optimizer, loss, generator)
    return GeneratorStep(loss.detach(), -loss.detach())
