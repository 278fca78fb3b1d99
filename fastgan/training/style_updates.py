"""StyleGAN2's updates: Karras et al. 2020, arXiv 1912.04958, section 3.

Both penalties are lazy: every k updates one has a separate step, with k times the weight. For k + 1
steps instead of k, Adam's rate and decays become, with c = k / (k + 1)::

    lr' = c lr    beta1' = beta1^c    beta2' = beta2^c

The generator's penalty pulls the path lengths to their moving average a (equation 4)::

    weight * mean over samples of (||J_w^T y|| - a)^2        y ~ N(0, I / (H W))

with the norm's mean over layers, each with its own w: so the default weight of 2 is appendix B's
gamma_pl = ln 2 / (r^2 (ln r - ln 2)).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastgan.errors import ConfigError
from fastgan.models.stylegan2 import GROUP, StyleGAN2Discriminator, StyleGAN2Generator
from fastgan.penalty import gradient_penalty
from fastgan.training.augmentation import augment
from fastgan.training.updates import GANUpdater, _Drawn, _means


class StyleGAN2Updater(GANUpdater):
    """The updates of a StyleGAN2; the arguments are :class:`GANUpdater`'s.

    Raises:
        ConfigError: an unsupported setting, batch or generator.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check()
        config = self.config
        assert config.penalty_every is not None
        lazy = (
            config.path_length_every if config.path_length else None,
            config.penalty_every if config.r1 else None,
        )
        self._corrections = [1.0 if every is None else every / (every + 1) for every in lazy]
        if self.own_optimizers:
            return
        both = zip((self.optimizer_g, self.optimizer_d), self._corrections, strict=True)
        for optimizer, correction in both:
            for group in optimizer.param_groups:
                if "betas" in group:
                    group["betas"] = tuple(beta**correction for beta in group["betas"])

    def _check(self) -> None:
        config = self.config
        styled = config.path_length or config.style_mixing
        if styled and not isinstance(self.generator, StyleGAN2Generator):
            raise ConfigError(
                f"generator: stylegan2 penalises and mixes styles, which"
                f" {type(self.generator).__name__} doesn't have; expected a StyleGAN2Generator, or"
                " path_length and style_mixing to be 0"
            )
        assert config.batch_size is not None
        parts = self.processes.world_size * config.accumulate
        part = config.batch_size // parts
        grouped = isinstance(self.discriminator, StyleGAN2Discriminator)
        if grouped and part > GROUP and part % GROUP:
            raise ConfigError(
                f"batch_size: stylegan2's discriminator looks at {GROUP} images at a time; expected"
                f" a multiple of {GROUP * parts}, got {config.batch_size}"
            )

    def set_learning_rates(self, lr_g: float, lr_d: float) -> None:
        """Sets the rates of later updates, before the correction for lazy penalties."""
        correction_g, correction_d = self._corrections
        super().set_learning_rates(lr_g * correction_g, lr_d * correction_d)

    def update_discriminator(
        self, real: Tensor, labels: Tensor | None, *, penalize: bool = True
    ) -> dict[str, Tensor]:
        """As :meth:`GANUpdater.update_discriminator`, followed by R1's step if it is due."""
        metrics = super().update_discriminator(real, labels, penalize=False)
        if penalize and self.config.r1:
            metrics |= self._descend_r1(real, labels)
        return metrics

    def update_generator(
        self,
        real: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        measure_gradient: bool,
        penalize: bool = False,
    ) -> dict[str, Tensor]:
        """As :meth:`GANUpdater.update_generator`, followed by the path length penalty's step if it
        is due.

        Returns:
            Also the step's ``path_length`` (the mean) and ``path_length_penalty``.
        """
        metrics = super().update_generator(real, labels, measure_gradient=measure_gradient)
        if penalize and self.config.path_length:
            metrics |= self._descend_path_length()
        return metrics

    def _descend_r1(self, real: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        drawn = self._drawn_for_critic(real, labels, penalize=True)
        self.optimizer_d.zero_grad(set_to_none=True)
        parts = []
        for part in drawn.parts(self.config.accumulate):
            assert part.real is not None
            shown = augment(part.real, part.augment_real)
            with self._autocast():
                penalty = gradient_penalty(
                    self.discriminator,
                    shown,
                    None,
                    at="real",
                    target=0.0,
                    weight=self._penalty_weights()["r1"] / 2,
                    critic_args=part.condition,
                )
            self._scaled(self.scaler_d, penalty).backward()
            parts.append({"r1": penalty.detach()})
        _complete_gradients(self.discriminator)
        self._step_discriminator()
        self.scaler_d.update()
        return _means(parts)

    def _descend_path_length(self) -> dict[str, Tensor]:
        config = self.config
        generator: Any = self.generator
        assert config.batch_size is not None
        assert config.path_length is not None
        shares = self.processes.world_size * config.accumulate
        count = shares * max(1, config.batch_size // (shares * config.path_length_shrink))
        drawn = self._drawn_for_fakes(count)
        shape = (count, generator.nc, generator.image_size, generator.image_size)
        directions = self.processes.rows(
            torch.randn(shape, generator=self.random, device=self.device)
        )
        self.optimizer_g.zero_grad(set_to_none=True)
        parts = []
        cut = directions.div_(generator.image_size).chunk(config.accumulate)
        for part, y in zip(drawn.parts(config.accumulate), cut, strict=True):
            with self._autocast():
                styles = self._styles(part)
                images = generator.synthesis(styles)
                (gradient,) = torch.autograd.grad(
                    (images * y.to(images.dtype)).sum(), styles, create_graph=True
                )
                wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
                lengths = wide.square().sum(2).mean(1).sqrt()
                apart = lengths - generator.path_length_mean
                weight = config.path_length * config.path_length_every
                penalty = weight * apart.square().mean()
            self._scaled(self.scaler_g, penalty).backward()
            parts.append(
                {"path_length": lengths.detach().mean(), "path_length_penalty": penalty.detach()}
            )
        _complete_gradients(generator)
        self._step_generator(measure_gradient=False)
        self.scaler_g.update()
        metrics = _means(parts)
        length = self.processes.sum_(metrics["path_length"] / self.processes.world_size)
        generator.path_length_mean.lerp_(length, config.path_length_decay)
        return metrics

    # Styles ---------------------------------------------------------------------------------------

    def _generated(self, part: _Drawn) -> Tensor:
        if not part.mixed:
            return super()._generated(part)
        generator: Any = self.generator
        images: Tensor = generator.synthesis(self._styles(part))
        return images

    def _styles(self, part: _Drawn) -> Tensor:
        generator: Any = self.generator
        labels = part.condition[0] if part.condition else None
        styles: Tensor = generator.styles(part.noise, labels, part.mixed or None)
        return styles

    def _drawn_for_critic(self, real: Tensor, labels: Tensor | None, penalize: bool) -> _Drawn:
        drawn = super()._drawn_for_critic(real, labels, penalize)
        drawn.mixed = self._mixed(len(real) * self.processes.world_size)
        return drawn

    def _drawn_for_fakes(self, count: int) -> _Drawn:
        drawn = super()._drawn_for_fakes(count)
        drawn.mixed = self._mixed(count)
        return drawn

    def _mixed(self, count: int) -> tuple[Tensor, ...]:
        """A second noise vector per sample, and the first layer that it styles (may be none)."""
        if not self.config.style_mixing:
            return ()
        generator: Any = self.generator
        second = self._noise(count)
        draw: Any = {"generator": self.random, "device": self.device}
        first = torch.randint(1, generator.layers, (count,), **draw)
        chosen = torch.rand(count, **draw) < self.config.style_mixing
        first = torch.where(chosen, first, generator.layers)
        return second, self.processes.rows(first)


def _complete_gradients(network: nn.Module) -> None:
    """Sets the gradient of weights that a penalty doesn't depend on to 0.

    Autograd leaves None or zeros, depending on the ops, and Adam counts steps.
    """
    for parameter in network.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
