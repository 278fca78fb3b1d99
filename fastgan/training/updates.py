"""The updates of both players: what Algorithm 1 of each paper does between two lines of its loop.

The losses and the penalty come from :mod:`fastgan.losses` and :mod:`fastgan.penalty`; here is
only what surrounds them: noise, augmentation, precision, parts of a batch, the average over
processes, the optimiser's step, the clip.

Nothing here reads a value back from the device, so that a CUDA graph can hold an update whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastgan.losses import PLAYERS_LOSSES
from fastgan.noise import sample_noise
from fastgan.ops.chain import weights_left_out
from fastgan.optim import Adam, RMSprop
from fastgan.penalty import gradient_penalty, wgan_gp_critic_loss
from fastgan.training.augmentation import augment, augmentation_kinds, draw_augmentation
from fastgan.training.config import TrainConfig
from fastgan.training.processes import Processes
from fastgan.weight_clipping import clip_weights_

__all__ = ["Players", "build_optimizer"]


def build_optimizer(config: TrainConfig, module: nn.Module, lr: float) -> torch.optim.Optimizer:
    """The optimiser that ``config.optimizer`` names, over all of a network's parameters."""
    assert config.beta1 is not None
    assert config.beta2 is not None
    parameters = list(module.parameters())
    if config.optimizer == "adam":
        return Adam(parameters, lr=lr, betas=(config.beta1, config.beta2))
    if config.optimizer == "rmsprop":
        return RMSprop(parameters, lr=lr)
    # Of torch's own kernels only the fused one reads a rate that lies on a CUDA device there.
    fused = True if parameters[0].is_cuda else None
    return torch.optim.SGD(parameters, lr=lr, momentum=config.beta1, fused=fused)


@dataclass
class _Drawn:
    """The random numbers and the data of an update, or of a part of its batch.

    Attributes:
        noise: (N, nz, 1, 1).
        condition: ``(labels,)``, or nothing.
        real: (N, C, H, W), in the critic's updates.
        mixing: (N, 1, 1, 1), where there is a penalty.
        augment_real: numbers of :mod:`fastgan.training.augmentation`.
        augment_fake: likewise.
    """

    noise: Tensor
    condition: tuple[Tensor, ...] = ()
    real: Tensor | None = None
    mixing: Tensor | None = None
    augment_real: dict[str, Tensor] = field(default_factory=dict)
    augment_fake: dict[str, Tensor] = field(default_factory=dict)

    def parts(self, count: int) -> Iterator[_Drawn]:
        """The same, cut along the batch into ``count`` equal parts."""
        if count == 1:
            yield self
            return
        size = len(self.noise) // count
        for start in range(0, len(self.noise), size):
            rows = slice(start, start + size)
            yield _Drawn(
                noise=self.noise[rows],
                condition=tuple(each[rows] for each in self.condition),
                real=None if self.real is None else self.real[rows],
                mixing=None if self.mixing is None else self.mixing[rows],
                augment_real={kind: each[rows] for kind, each in self.augment_real.items()},
                augment_fake={kind: each[rows] for kind, each in self.augment_fake.items()},
            )


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
        random: source of noise, labels, augmentation and interpolation, on ``device``; in the same
            state in all processes.
        processes: who share each batch.
        rates_on_device: keep the learning rates in tensors, which CUDA graphs read anew.
    """

    config: TrainConfig
    generator: nn.Module
    discriminator: nn.Module
    optimizer_g: torch.optim.Optimizer
    optimizer_d: torch.optim.Optimizer
    num_classes: int | None
    device: torch.device
    random: torch.Generator
    processes: Processes = field(default_factory=Processes)
    rates_on_device: bool = False

    def __post_init__(self) -> None:
        self.make_scalers()
        self.discriminator_loss, self.generator_loss = PLAYERS_LOSSES[self.config.loss]
        self._augmentation = augmentation_kinds(self.config.augment)
        self._rates: dict[int, Tensor] = {}

    def make_scalers(self) -> None:
        """Fresh scalers of fp16's gradients, which do nothing in other precisions."""
        half = self.config.precision == "fp16"
        self.scaler_d = torch.amp.GradScaler(self.device.type, enabled=half)
        # Where one backward pass serves both players, their gradients have one scale.
        self.scaler_g = (
            self.scaler_d
            if self.config.one_stage
            else torch.amp.GradScaler(self.device.type, enabled=half)
        )

    def set_learning_rates(self, lr_g: float, lr_d: float) -> None:
        """The rates of the updates to come."""
        for optimizer, lr in ((self.optimizer_g, lr_g), (self.optimizer_d, lr_d)):
            rate: float | Tensor = lr
            if self.rates_on_device:
                rate = self._rates.setdefault(
                    id(optimizer), torch.zeros((), device=self.device)
                ).fill_(lr)
            for group in optimizer.param_groups:
                group["lr"] = rate

    def update_discriminator(
        self, real: Tensor, labels: Tensor | None, *, penalize: bool = True
    ) -> dict[str, Tensor]:
        """One step of the discriminator or critic on a batch of real images.

        Args:
            real: this process's images, shape (N, channels, size, size), in [-1, 1].
            labels: their classes, shape (N,), where the networks are conditioned.
            penalize: whether this update's loss has the gradient penalty, if the model has one.

        Returns:
            Detached scalars: ``loss_d``, and ``wasserstein`` and ``penalty`` or ``d_real`` and
            ``d_fake``.
        """
        drawn = self._drawn_for_critic(real, labels, penalize)
        self._clip_before()
        self.optimizer_d.zero_grad(set_to_none=True)
        parts = []
        for part in drawn.parts(self.config.accumulate):
            with torch.no_grad(), self._autocast():
                fake = self.generator(part.noise, *part.condition).to(real.dtype)
            with self._autocast():
                loss, metrics, _ = self._critic_loss(part, fake)
            self._scaled(self.scaler_d, loss).backward()
            parts.append(metrics)
        self._step_discriminator()
        self.scaler_d.update()
        return _means(parts)

    def update_generator(self, *, measure_gradient: bool) -> dict[str, Tensor]:
        """One step of the generator, on fresh noise and, if conditioned, random labels.

        Args:
            measure_gradient: also return the norm of its gradient.

        Returns:
            Detached scalars: ``loss_g`` and, if asked for, ``grad_norm_g``.
        """
        drawn = self._drawn_for_generator()
        self.optimizer_g.zero_grad(set_to_none=True)
        parts = []
        # The discriminator's own gradients would be thrown away; not asking for them saves a
        # weight-gradient convolution a layer.
        self.discriminator.requires_grad_(False)
        try:
            for part in drawn.parts(self.config.accumulate):
                with self._autocast():
                    fake = self.generator(part.noise, *part.condition)
                    shown = augment(fake, part.augment_fake)
                    loss = self.generator_loss(self.discriminator(shown, *part.condition))
                self._scaled(self.scaler_g, loss).backward()
                parts.append({"loss_g": loss.detach()})
        finally:
            self.discriminator.requires_grad_(True)
        measured = self._step_generator(measure_gradient)
        self.scaler_g.update()
        return {**_means(parts), **measured}

    def update_both(
        self, real: Tensor, labels: Tensor | None, *, penalize: bool, measure_gradient: bool
    ) -> dict[str, Tensor]:
        """One step of each player from one pass over the fakes, at the weights before both.

        Shen et al. 2021, arXiv 2103.00430, "Training generative adversarial networks in one
        stage", section 3. The critic's graph of the fakes gives both gradients. Where the
        generator's loss is minus the critic's, as between Wasserstein players, the gradient that
        the critic's backward pass leaves at the images is the generator's with the sign turned;
        between others a second pass through the same graph, down to the images, finds it. (The
        paper scales by the ratio of both losses' derivatives sample by sample instead; that
        wants a discriminator without batch norm, and a derivative that is nowhere zero.)

        Args:
            real: as in :meth:`update_discriminator`.
            labels: as in :meth:`update_discriminator`; the fakes' labels too.
            penalize: as in :meth:`update_discriminator`.
            measure_gradient: as in :meth:`update_generator`.

        Returns:
            What both updates return.
        """
        drawn = self._drawn_for_critic(real, labels, penalize)
        self._clip_before()
        self.optimizer_d.zero_grad(set_to_none=True)
        self.optimizer_g.zero_grad(set_to_none=True)
        weights = list(self.discriminator.parameters())
        parts = []
        for part in drawn.parts(self.config.accumulate):
            with self._autocast():
                fake = self.generator(part.noise, *part.condition)
            images = fake.detach().to(real.dtype).requires_grad_()
            with self._autocast():
                loss, metrics, scores = self._critic_loss(part, images, for_both=True)
                loss_g = self.generator_loss(scores)
            if self.config.is_wasserstein:
                self._scaled(self.scaler_d, loss).backward()
                assert images.grad is not None
                gradient = -images.grad
            else:
                scaled = self._scaled(self.scaler_d, loss_g)
                with weights_left_out():
                    (gradient,) = torch.autograd.grad(scaled, images, retain_graph=True)
                torch.autograd.backward(self._scaled(self.scaler_d, loss), inputs=weights)
            fake.backward(gradient.to(fake.dtype))
            parts.append({**metrics, "loss_g": loss_g.detach()})
        self._step_discriminator()
        measured = self._step_generator(measure_gradient)
        self.scaler_d.update()
        return {**_means(parts), **measured}

    def state_dict(self) -> dict[str, Any]:
        """Everything a checkpoint needs of the players."""
        return {
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "optimizer_g": _with_plain_rates(self.optimizer_g.state_dict()),
            "optimizer_d": _with_plain_rates(self.optimizer_d.state_dict()),
            "scaler_g": self.scaler_g.state_dict(),
            "scaler_d": self.scaler_d.state_dict(),
        }

    def load_optimizers(self, saved: dict[str, Any]) -> None:
        """What :meth:`state_dict` gave of the optimisers and scalers, on whatever device."""
        for name in ("optimizer_g", "optimizer_d"):
            optimizer: torch.optim.Optimizer = getattr(self, name)
            fused = [group.get("fused") for group in optimizer.param_groups]
            optimizer.load_state_dict(saved[name])
            for group, choice in zip(optimizer.param_groups, fused, strict=True):
                if "fused" in group:
                    group["fused"] = choice  # this device's, not that of the checkpoint
        self.scaler_g.load_state_dict(saved["scaler_g"])
        self.scaler_d.load_state_dict(saved["scaler_d"])

    # What an update consists of ------------------------------------------------------------------

    def _critic_loss(
        self, part: _Drawn, fake: Tensor, *, for_both: bool = False
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """The second player's loss, its metrics, and the fakes' scores if ``for_both``."""
        config = self.config
        assert part.real is not None
        real = augment(part.real, part.augment_real)
        fake = augment(fake, part.augment_fake)
        if part.mixing is not None and not for_both:
            loss, wasserstein, penalty = wgan_gp_critic_loss(
                self.discriminator,
                real,
                fake,
                weight=config.gp_weight * config.penalty_every,
                eps=part.mixing,
                critic_args=part.condition,
            )
            metrics = {"wasserstein": wasserstein, "penalty": penalty.detach()}
            return loss, {**metrics, "loss_d": loss.detach()}, loss
        # Two passes, not one of twice the batch: batch norm takes its statistics from fakes and
        # reals apart, as in the papers.
        score_real = self.discriminator(real, *part.condition)
        score_fake = self.discriminator(fake, *part.condition)
        loss = self.discriminator_loss(score_real, score_fake)
        metrics = {}
        if config.is_wasserstein:
            metrics["wasserstein"] = -loss.detach()
        else:
            # The scores of a hinge or of squares are no logits, and are shown as they are.
            squashed = torch.sigmoid if config.loss == "bce" else torch.Tensor.detach
            metrics["d_real"] = squashed(score_real.detach().float()).mean()
            metrics["d_fake"] = squashed(score_fake.detach().float()).mean()
        if part.mixing is not None:
            penalty = gradient_penalty(
                self.discriminator,
                real,
                fake,
                weight=config.gp_weight * config.penalty_every,
                eps=part.mixing,
                critic_args=part.condition,
            )
            loss = loss + penalty
            metrics["penalty"] = penalty.detach()
        metrics["loss_d"] = loss.detach()
        return loss, metrics, score_fake

    def _scaled(self, scaler: torch.amp.GradScaler, loss: Tensor) -> Tensor:
        if self.config.accumulate > 1:
            loss = loss / self.config.accumulate
        return scaler.scale(loss)

    def _clip_before(self) -> None:
        if self.config.model == "wgan" and self.config.clip_when == "before":
            # At the start of the authors' loop, so that the gradient is taken at clipped weights.
            clip_weights_(self.discriminator, self.config.clip)

    def _step_discriminator(self) -> None:
        self.processes.average_gradients(self.discriminator.parameters())
        clips_after = self.config.model == "wgan" and self.config.clip_when == "after"
        clips_in_step = clips_after and isinstance(self.optimizer_d, (RMSprop, Adam))
        if clips_in_step:
            for group in self.optimizer_d.param_groups:
                # Here, where a loaded checkpoint can't have its own.
                group["clip"] = self.config.clip
        self.scaler_d.step(self.optimizer_d)
        if clips_after and not clips_in_step:
            clip_weights_(self.discriminator, self.config.clip)

    def _step_generator(self, measure_gradient: bool) -> dict[str, Tensor]:
        self.processes.average_gradients(self.generator.parameters())
        metrics = {}
        if measure_gradient:
            self.scaler_g.unscale_(self.optimizer_g)
            gradients = [p.grad for p in self.generator.parameters() if p.grad is not None]
            metrics["grad_norm_g"] = torch.nn.utils.get_total_norm(gradients)
        self.scaler_g.step(self.optimizer_g)
        return metrics

    # Random numbers, drawn for the whole batch in every process --------------------------------

    def _drawn_for_critic(self, real: Tensor, labels: Tensor | None, penalize: bool) -> _Drawn:
        count = len(real) * self.processes.world_size
        condition: tuple[Tensor, ...] = ()
        if self.num_classes is not None:
            assert labels is not None
            condition = (labels,)
        drawn = _Drawn(noise=self._noise(count), condition=condition, real=real)
        if self._augmentation:
            drawn.augment_real = self._augmentation_numbers(count)
            drawn.augment_fake = self._augmentation_numbers(count)
        if self.config.model == "wgan-gp" and penalize:
            drawn.mixing = self.processes.rows(
                torch.rand((count, 1, 1, 1), generator=self.random, device=self.device)
            )
        return drawn

    def _drawn_for_generator(self) -> _Drawn:
        count = self.config.batch_size
        assert count is not None
        condition: tuple[Tensor, ...] = ()
        if self.num_classes is not None:
            classes = torch.randint(
                self.num_classes, (count,), generator=self.random, device=self.device
            )
            condition = (self.processes.rows(classes),)
        drawn = _Drawn(noise=self._noise(count), condition=condition)
        if self._augmentation:
            drawn.augment_fake = self._augmentation_numbers(count)
        return drawn

    def _noise(self, count: int) -> Tensor:
        assert self.config.noise is not None
        return self.processes.rows(
            sample_noise(
                count,
                self.config.nz,
                self.config.noise,
                generator=self.random,
                device=self.device,
            )
        )

    def _augmentation_numbers(self, count: int) -> dict[str, Tensor]:
        def draw(numbers: int) -> Tensor:
            return self.processes.rows(
                torch.rand((count, numbers), generator=self.random, device=self.device)
            )

        return draw_augmentation(self._augmentation, draw)

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.config.precision)
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)


def _means(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each metric over a batch's parts."""
    if len(parts) == 1:
        return parts[0]
    return {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}


def _with_plain_rates(state: dict[str, Any]) -> dict[str, Any]:
    """A state_dict whose learning rates are numbers, as torch's optimisers have them."""
    groups: Iterable[dict[str, Any]] = state["param_groups"]
    return {**state, "param_groups": [{**g, "lr": float(g["lr"])} for g in groups]}
