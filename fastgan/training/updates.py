"""One update of each player: what Algorithm 1 of each paper does between two lines of its loop.

The losses and the penalty come from :mod:`fastgan.losses` and :mod:`fastgan.penalty`; here is
only what surrounds them: precision, the optimiser's step, the clip.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastgan.losses import (
    bce_discriminator_loss,
    bce_generator_loss,
    wasserstein_critic_loss,
    wasserstein_generator_loss,
)
from fastgan.noise import sample_noise
from fastgan.optim import Adam, RMSprop
from fastgan.penalty import wgan_gp_critic_loss
from fastgan.training.config import TrainConfig
from fastgan.weight_clipping import clip_weights_

__all__ = ["Players", "build_optimizer"]


def build_optimizer(config: TrainConfig, module: nn.Module, lr: float) -> torch.optim.Optimizer:
    """The optimiser that ``config.optimizer`` names, over all of a network's parameters."""
    assert config.beta1 is not None
    assert config.beta2 is not None
    parameters = module.parameters()
    if config.optimizer == "adam":
        return Adam(parameters, lr=lr, betas=(config.beta1, config.beta2))
    if config.optimizer == "rmsprop":
        return RMSprop(parameters, lr=lr)
    return torch.optim.SGD(parameters, lr=lr, momentum=config.beta1)


@dataclass
class Players:
    """Both networks with their optimisers, and how each is updated.

    Attributes:
        config: resolved settings.
        generator: maps noise (and labels) to images in [-1, 1].
        discriminator: maps images (and labels) to one logit or score each.
        optimizer_g: the generator's optimiser.
        optimizer_d: the discriminator's.
        num_classes: labels that the networks are conditioned on, or ``None``.
        device: where everything lives.
        random: source of noise, labels and interpolation, on ``device``.
    """

    config: TrainConfig
    generator: nn.Module
    discriminator: nn.Module
    optimizer_g: torch.optim.Optimizer
    optimizer_d: torch.optim.Optimizer
    num_classes: int | None
    device: torch.device
    random: torch.Generator

    def __post_init__(self) -> None:
        half = self.config.precision == "fp16"
        self.scaler_g = torch.amp.GradScaler(self.device.type, enabled=half)
        self.scaler_d = torch.amp.GradScaler(self.device.type, enabled=half)

    def update_discriminator(self, real: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        """One step of the discriminator or critic on a batch of real images.

        Args:
            real: images, shape (batch, channels, size, size), in [-1, 1].
            labels: their classes, shape (batch,), where the networks are conditioned.

        Returns:
            Detached scalars: ``loss_d``, and ``wasserstein`` and ``penalty`` or ``d_real`` and
            ``d_fake``.
        """
        condition = () if self.num_classes is None else (labels,)
        config = self.config
        with torch.no_grad(), self._autocast():
            fake = self.generator(self._noise(len(real)), *condition).to(real.dtype)
        if config.model == "wgan" and config.clip_when == "before":
            # At the start of the authors' loop, so that the gradient is taken at clipped weights.
            clip_weights_(self.discriminator, config.clip)
        metrics: dict[str, Tensor] = {}
        self.optimizer_d.zero_grad(set_to_none=True)
        with self._autocast():
            if config.model == "wgan-gp":
                loss, metrics["wasserstein"], penalty = wgan_gp_critic_loss(
                    self.discriminator,
                    real,
                    fake,
                    weight=config.gp_weight,
                    generator=self.random,
                    critic_args=condition,
                )
                metrics["penalty"] = penalty.detach()
            else:
                # Two passes, not one of twice the batch: batch norm takes its statistics from
                # fakes and reals apart, as in the papers.
                score_real = self.discriminator(real, *condition)
                score_fake = self.discriminator(fake, *condition)
                if config.model == "wgan":
                    loss = wasserstein_critic_loss(score_real, score_fake)
                    metrics["wasserstein"] = -loss.detach()
                else:
                    loss = bce_discriminator_loss(score_real, score_fake)
                    metrics["d_real"] = score_real.detach().float().sigmoid().mean()
                    metrics["d_fake"] = score_fake.detach().float().sigmoid().mean()
        metrics["loss_d"] = loss.detach()
        self.scaler_d.scale(loss).backward()
        clips_after = config.model == "wgan" and config.clip_when == "after"
        clips_in_step = clips_after and isinstance(self.optimizer_d, (RMSprop, Adam))
        if clips_in_step:
            for group in self.optimizer_d.param_groups:
                group["clip"] = config.clip  # here, where a loaded checkpoint can't have its own
        self.scaler_d.step(self.optimizer_d)
        self.scaler_d.update()
        if clips_after and not clips_in_step:
            clip_weights_(self.discriminator, config.clip)
        return metrics

    def update_generator(self, *, measure_gradient: bool) -> dict[str, Tensor]:
        """One step of the generator, on fresh noise and, if conditioned, random labels.

        Args:
            measure_gradient: also return the norm of its gradient.

        Returns:
            Detached scalars: ``loss_g`` and, if asked for, ``grad_norm_g``.
        """
        batch_size = self.config.batch_size
        assert batch_size is not None
        condition: tuple[Tensor, ...] = ()
        if self.num_classes is not None:
            condition = (
                torch.randint(
                    self.num_classes, (batch_size,), generator=self.random, device=self.device
                ),
            )
        self.optimizer_g.zero_grad(set_to_none=True)
        # The discriminator's own gradients would be thrown away; not asking for them saves a
        # weight-gradient convolution a layer.
        self.discriminator.requires_grad_(False)
        try:
            with self._autocast():
                fake = self.generator(self._noise(batch_size), *condition)
                score = self.discriminator(fake, *condition)
                if self.config.is_wasserstein:
                    loss = wasserstein_generator_loss(score)
                else:
                    loss = bce_generator_loss(score)
            self.scaler_g.scale(loss).backward()
        finally:
            self.discriminator.requires_grad_(True)
        metrics = {"loss_g": loss.detach()}
        if measure_gradient:
            self.scaler_g.unscale_(self.optimizer_g)
            gradients = [p.grad for p in self.generator.parameters() if p.grad is not None]
            metrics["grad_norm_g"] = torch.nn.utils.get_total_norm(gradients)
        self.scaler_g.step(self.optimizer_g)
        self.scaler_g.update()
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Everything a checkpoint needs of the players."""
        return {
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "optimizer_g": self.optimizer_g.state_dict(),
            "optimizer_d": self.optimizer_d.state_dict(),
            "scaler_g": self.scaler_g.state_dict(),
            "scaler_d": self.scaler_d.state_dict(),
        }

    def _noise(self, n: int) -> Tensor:
        assert self.config.noise is not None
        return sample_noise(
            n, self.config.nz, self.config.noise, generator=self.random, device=self.device
        )

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.config.precision)
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)
