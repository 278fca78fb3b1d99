"""The updates of discriminator and generator: the steps of each paper's Algorithm 1.

Losses and penalties are in :mod:`fastgan.losses` and :mod:`fastgan.penalty`; this module adds
noise, augmentation, precision, accumulation, averaging over processes, the optimiser's step and the
clip.

Nothing here reads a value from the device, so that a CUDA graph can contain an update.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastgan.losses import PLAYERS_LOSSES, loss_and_means, orthogonal_regularisation
from fastgan.ops.chain import weights_cast_once, weights_left_out
from fastgan.optim.clipping import ClippingOptimizer
from fastgan.optim.weight_clipping import clip_weights_
from fastgan.penalty import discriminator_loss, gradient_penalty
from fastgan.penalty.points import Points
from fastgan.sampling.noise import sample_noise
from fastgan.training.adaptive import AdaptiveProbability
from fastgan.training.augmentation import augment, augmentation_kinds, draw_augmentation
from fastgan.training.checkpoint import restore_optimizer, restore_scaler
from fastgan.training.config import TrainConfig
from fastgan.training.processes import Processes

# Each penalty's points, column in metrics.csv, target, and factor of the weight.
_PENALTIES: Mapping[str, tuple[Points, str, float, float]] = types.MappingProxyType(
    {
        "gp": ("interpolates", "penalty", 1.0, 1.0),
        "r1": ("real", "r1", 0.0, 0.5),
        "r2": ("fake", "r2", 0.0, 0.5),
    }
)

#: Names of buffers that follow each process's own part of the batches.
_RUNNING_STATISTICS = frozenset({"running_mean", "running_var", "w_avg"})


@dataclass
class _Drawn:
    """The random numbers and data of an update, or of a part of its batch.

    Attributes:
        noise: (N, nz, 1, 1).
        condition: ``(labels,)``, or nothing.
        real: (N, C, H, W), for the critic, and for the generator if its loss takes real scores.
        mixed: further arguments of a generator that mixes styles.
        penalize: whether the loss has its gradient penalties.
        mixing: (N, 1, 1, 1), for a penalty at interpolates.
        augment_real: random numbers for :mod:`fastgan.training.augmentation`.
        augment_fake: likewise.
    """

    noise: Tensor
    condition: tuple[Tensor, ...] = ()
    real: Tensor | None = None
    mixed: tuple[Tensor, ...] = ()
    penalize: bool = False
    mixing: Tensor | None = None
    augment_real: dict[str, Tensor] = field(default_factory=dict)
    augment_fake: dict[str, Tensor] = field(default_factory=dict)

    def parts(self, count: int) -> Iterator[_Drawn]:
        """The same, split along the batch into ``count`` equal parts."""
        if count == 1:
            yield self
            return
        size = len(self.noise) // count
        for start in range(0, len(self.noise), size):
            rows = slice(start, start + size)
            yield _Drawn(
                noise=self.noise[rows],
                condition=tuple(tensor[rows] for tensor in self.condition),
                real=None if self.real is None else self.real[rows],
                mixed=tuple(tensor[rows] for tensor in self.mixed),
                penalize=self.penalize,
                mixing=None if self.mixing is None else self.mixing[rows],
                augment_real={kind: tensor[rows] for kind, tensor in self.augment_real.items()},
                augment_fake={kind: tensor[rows] for kind, tensor in self.augment_fake.items()},
            )


@dataclass
class GANUpdater:
    """Both networks with their optimisers and updates.

    Attributes:
        config: resolved settings.
        generator: maps noise (and labels) to images in [-1, 1].
        discriminator: maps images (and labels) to one logit or score each.
        optimizer_g: the generator's optimiser.
        optimizer_d: the discriminator's.
        num_classes: the number of classes for conditional networks, or ``None``.
        device: the networks' device.
        random: generator of noise, labels, augmentation and interpolation, on ``device``; its state
            is the same in all processes.
        processes: the processes that share each batch.
        rates_on_device: keep the learning rates in tensors, for CUDA graphs.
        own_optimizers: whether the optimisers are the caller's, of any class.
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
    own_optimizers: bool = False

    def __post_init__(self) -> None:
        self.make_scalers()
        self.discriminator_loss, self.generator_loss = PLAYERS_LOSSES[self.config.loss]
        self._augmentation = augmentation_kinds(self.config.augment)
        self.adaptive: AdaptiveProbability | None = None
        if "ada" in self._augmentation:
            self.adaptive = AdaptiveProbability(self.config, self.device, self.processes)
        self._rates: dict[int, Tensor] = {}
        # What backward passes start with, which autograd would otherwise fill each time.
        self._one = torch.ones((), device=self.device)
        # Groups keep their ratio to the optimiser's first group.
        self._ratios = [
            [_ratio(group, optimizer.param_groups[0]) for group in optimizer.param_groups]
            for optimizer in (self.optimizer_g, self.optimizer_d)
        ]

    def make_scalers(self) -> None:
        """New gradient scalers for fp16, disabled in other precisions."""
        half = self.config.precision == "fp16"
        self.scaler_d = torch.amp.GradScaler(self.device.type, enabled=half)
        # If both networks share a backward pass, their gradients have the same scale.
        self.scaler_g = (
            self.scaler_d
            if self.config.one_stage
            else torch.amp.GradScaler(self.device.type, enabled=half)
        )

    def set_learning_rates(self, lr_g: float, lr_d: float) -> None:
        """Sets the learning rates of each optimiser's first group for later updates."""
        both = zip((self.optimizer_g, self.optimizer_d), (lr_g, lr_d), self._ratios, strict=True)
        for optimizer, lr, ratios in both:
            for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
                rate: float | Tensor = lr * ratio
                if self.rates_on_device:
                    rate = self._rates.setdefault(
                        id(group["params"][0]), torch.zeros((), device=self.device)
                    ).fill_(rate)
                group["lr"] = rate

    def update_discriminator(
        self, real: Tensor, labels: Tensor | None, *, penalize: bool = True
    ) -> dict[str, Tensor]:
        """One step of the discriminator or critic on a batch of real images.

        Args:
            real: this process's images, shape (N, channels, size, size), in [-1, 1].
            labels: their classes, shape (N,), for conditional networks.
            penalize: whether this update's loss has its gradient penalties, if there are any.

        Returns:
            Detached scalars: ``loss_d``; ``wasserstein``, or ``d_real`` and ``d_fake``;
            ``penalty``, ``r1`` and ``r2`` if the loss has them; ``ada_r`` and ``ada_p`` with
            adaptive augmentation.
        """
        drawn = self._drawn_for_critic(real, labels, penalize)
        self._clip_before()
        self.optimizer_d.zero_grad(set_to_none=True)
        parts = []
        for part in drawn.parts(self.config.accumulate):
            with torch.no_grad(), self._autocast():
                fake = self._generated(part)
            if part.penalize or self._augmentation or not self._is_plain:
                fake = fake.to(real.dtype)
            with self._autocast():
                loss, metrics, scores = self._critic_loss(part, fake)
            self._backpropagate(self._scaled(self.scaler_d, loss), scores)
            parts.append(metrics)
        self._step_discriminator()
        self.scaler_d.update()
        return self._adapted(_means(parts))

    def update_generator(
        self,
        real: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        measure_gradient: bool,
        penalize: bool = False,
    ) -> dict[str, Tensor]:
        """One step of the generator, on new noise and, if conditional, random labels.

        The relativistic loss compares generated image n with real image n, so it takes a real batch
        with the same labels. Other losses ignore it.

        Args:
            real: as in :meth:`update_discriminator`.
            labels: as in :meth:`update_discriminator`.
            measure_gradient: also return the norm of its gradient.
            penalize: whether this update has the generator's lazy penalty, if the model has one.

        Returns:
            Detached scalars: ``loss_g`` and, with ``measure_gradient``, ``grad_norm_g``.
        """
        drawn = self._drawn_for_generator(real, labels)
        self.optimizer_g.zero_grad(set_to_none=True)
        parts = []
        # The discriminator's gradients aren't needed, which saves a weight-gradient convolution per
        # layer.
        self.discriminator.requires_grad_(False)
        try:
            for part in drawn.parts(self.config.accumulate):
                with self._autocast():
                    scores: list[Tensor] = []
                    if part.real is not None:
                        with torch.no_grad():
                            shown = augment(part.real, part.augment_real)
                            scores.append(self.discriminator(shown, *part.condition))
                    fake = self._generated(part)
                    shown = augment(fake, part.augment_fake)
                    scores.append(self.discriminator(shown, *part.condition))
                    loss = self.generator_loss(*scores)
                self._scaled(self.scaler_g, loss).backward(self._one.to(loss.dtype))
                parts.append({"loss_g": loss.detach()})
        finally:
            self.discriminator.requires_grad_(True)
        measured = self._step_generator(measure_gradient)
        self.scaler_g.update()
        return {**_means(parts), **measured}

    def update_both(
        self, real: Tensor, labels: Tensor | None, *, penalize: bool, measure_gradient: bool
    ) -> dict[str, Tensor]:
        """One step of both networks from one pass over the fakes, at the weights before both.

        Shen et al. 2021, arXiv 2103.00430, "Training generative adversarial networks in one
        stage", section 3. The critic's graph of the fakes gives both gradients. If the generator's
        loss is minus the critic's, as for Wasserstein losses, the generator's gradient at the
        images is minus the critic's; otherwise a second pass through the same graph computes it.
        (The paper instead scales by the ratio of both losses' derivatives per sample, which
        requires a discriminator without batch norm and a derivative that is never zero.)

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
                fake = self._generated(part)
            images = fake.detach().to(real.dtype).requires_grad_()
            with self._autocast():
                loss, metrics, scores = self._plain_critic_loss(part, images)
                score_real, score_fake = scores
                compared = (score_real.detach(),) if self._takes_real_scores else ()
                loss_g = self.generator_loss(*compared, score_fake)
            if self.config.is_wasserstein:
                self._scaled(self.scaler_d, loss).backward(self._one.to(loss.dtype))
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
        return {**self._adapted(_means(parts)), **measured}

    def state_dict(self) -> dict[str, Any]:
        """Everything a checkpoint needs of both networks."""
        return {
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "optimizer_g": _with_plain_rates(self.optimizer_g.state_dict()),
            "optimizer_d": _with_plain_rates(self.optimizer_d.state_dict()),
            "scaler_g": self.scaler_g.state_dict(),
            "scaler_d": self.scaler_d.state_dict(),
            "adaptive": None if self.adaptive is None else self.adaptive.state_dict(),
        }

    def load_optimizers(self, saved: Mapping[str, Any], step: int) -> None:
        """Loads a :meth:`state_dict` without the networks, from any device.

        Raises:
            ValueError: invalid state, or state of other optimisers.
        """
        assert self.config.optimizer is not None
        for name in ("optimizer_g", "optimizer_d"):
            optimizer = getattr(self, name)
            kind = None if self.own_optimizers else self.config.optimizer
            restore_optimizer(name, kind, optimizer, saved.get(name), step)
        for name in ("scaler_g", "scaler_d"):
            restore_scaler(name, getattr(self, name), saved.get(name))
        if self.adaptive is not None:
            self.adaptive.load_state_dict(saved.get("adaptive"))

    # Parts of an update --------------------------------------------------------------------------

    def _generated(self, part: _Drawn) -> Tensor:
        images: Tensor = self.generator(part.noise, *part.condition)
        return images

    def _critic_loss(
        self, part: _Drawn, fake: Tensor
    ) -> tuple[Tensor, dict[str, Tensor], tuple[Tensor, ...]]:
        """The discriminator's loss, its metrics, and the scores, if it is a function of them."""
        if not part.penalize:
            return self._plain_critic_loss(part, fake)
        real, fake = self._shown(part, fake)
        weights = self._penalty_weights()
        metrics: dict[str, Tensor] = {}

        def adversarial(*scores: Tensor) -> Tensor:
            loss, measured = self._adversarial(*scores)
            metrics.update(measured)
            return loss

        loss, terms = discriminator_loss(
            self.discriminator,
            real,
            fake,
            # A named loss has a known gradient by the scores, which saves memory.
            loss="wasserstein" if self.config.is_wasserstein else adversarial,
            gp=weights.get("gp"),
            r1=weights.get("r1", 0.0),
            r2=weights.get("r2", 0.0),
            eps=part.mixing,
            critic_args=part.condition,
        )
        if self.config.is_wasserstein:
            metrics["wasserstein"] = -terms["adversarial"]
        for name, (_, metric, _, _) in _PENALTIES.items():
            if name in terms:
                metrics[metric] = terms[name]
        return loss, {**metrics, "loss_d": loss.detach()}, ()

    def _plain_critic_loss(
        self, part: _Drawn, fake: Tensor
    ) -> tuple[Tensor, dict[str, Tensor], tuple[Tensor, ...]]:
        """Loss and metrics by plain autograd, and the scores of real images and of fakes."""
        real, fake = self._shown(part, fake)
        # Two passes: batch norm's statistics are separate for fakes and reals, as in the papers.
        with weights_cast_once() if self._is_plain else nullcontext():
            score_real = self.discriminator(real, *part.condition)
            score_fake = self.discriminator(fake, *part.condition)
        loss, metrics = self._adversarial(score_real, score_fake)
        weights = self._penalty_weights() if part.penalize else {}
        for name, weight in weights.items():
            at, metric, target, scale = _PENALTIES[name]
            penalty = gradient_penalty(
                self.discriminator,
                real,
                fake,
                at=at,
                target=target,
                weight=scale * weight,
                eps=part.mixing if at == "interpolates" else None,
                critic_args=part.condition,
            )
            loss = loss + penalty
            metrics[metric] = penalty.detach()
        metrics["loss_d"] = loss.detach()
        return loss, metrics, (score_real, score_fake)

    @property
    def _is_plain(self) -> bool:
        """Whether the discriminator's class says that it is."""
        return bool(getattr(self.discriminator, "is_plain", False))

    def _backpropagate(self, loss: Tensor, scores: tuple[Tensor, ...]) -> None:
        """``loss.backward()``; each of the scores' passes in turn, if the loss is theirs alone.

        Autograd adds both passes' gradients in a launch for each weight; here one adds them all.
        """
        one = self._one.to(loss.dtype)
        if not scores:
            loss.backward(one)
            return
        weights = list(self.discriminator.parameters())
        gradients = torch.autograd.grad(loss, scores, one)
        for score, gradient in zip(reversed(scores), reversed(gradients), strict=True):
            sums = [weight.grad for weight in weights]
            for weight in weights:
                weight.grad = None
            # Kept until the last: a discriminator may use a result of one pass in the next.
            score.backward(gradient, retain_graph=score is not scores[0])
            pairs = []
            for weight, total in zip(weights, sums, strict=True):
                if weight.grad is None:
                    weight.grad = total
                elif total is not None:
                    pairs.append((weight.grad, total))
            if pairs:
                torch._foreach_add_(*map(list, zip(*pairs, strict=True)))

    @staticmethod
    def _shown(part: _Drawn, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Real and generated images, augmented for the discriminator."""
        assert part.real is not None
        return augment(part.real, part.augment_real), augment(fake, part.augment_fake)

    def _penalty_weights(self) -> dict[str, float]:
        """The penalties' weights, for :func:`fastgan.discriminator_loss`."""
        config = self.config
        assert config.penalty_every is not None
        every = config.penalty_every
        given = {"r1": config.r1, "r2": config.r2}
        weights = {name: weight for name, weight in given.items() if weight}
        if config.penalizes_interpolates:
            weights["gp"] = config.gp_weight
        return {name: weight * every for name, weight in weights.items()}

    def _adversarial(self, real: Tensor, fake: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The adversarial loss of real and fake scores, and their metrics."""
        loss, means = loss_and_means(self.config.loss, real, fake)
        if self.discriminator_loss is not PLAYERS_LOSSES[self.config.loss][0]:  # a subclass's own
            loss = self.discriminator_loss(real, fake)
        if self.config.is_wasserstein:
            return loss, {"wasserstein": means[2]}
        # Other losses' scores aren't logits, and are shown unchanged.
        metrics = {"d_real": means[0], "d_fake": means[1]}
        if self.adaptive is not None:
            metrics["ada_r"] = self.adaptive.measure(real, fake)
        return loss, metrics

    def _adapted(self, metrics: dict[str, Tensor]) -> dict[str, Tensor]:
        """Adds metrics and updates ADA's probability after the discriminator's update."""
        if self.adaptive is None:
            return metrics
        return {**metrics, **self.adaptive.update(metrics["ada_r"])}

    def _scaled(self, scaler: torch.amp.GradScaler, loss: Tensor) -> Tensor:
        if self.config.accumulate > 1:
            loss = loss / self.config.accumulate
        return scaler.scale(loss)

    def _clip_before(self) -> None:
        if self.config.clips_weights and self.config.clip_when == "before":
            # At the start, as in the authors' code, so that the gradient is computed at clipped
            # weights.
            clip_weights_(self.discriminator, self.config.clip)

    def _step_discriminator(self) -> None:
        self.processes.average_gradients(self.discriminator.parameters())
        clips_after = self.config.clips_weights and self.config.clip_when == "after"
        clips_in_step = clips_after and isinstance(self.optimizer_d, ClippingOptimizer)
        if clips_in_step:
            for group in self.optimizer_d.param_groups:
                # Set here, so that a loaded checkpoint can't change it.
                group["clip"] = self.config.clip
        self.scaler_d.step(self.optimizer_d)
        if clips_after and not clips_in_step:
            clip_weights_(self.discriminator, self.config.clip)

    def _step_generator(self, measure_gradient: bool) -> dict[str, Tensor]:
        if self.config.orthogonal:
            penalty = self.config.orthogonal * orthogonal_regularisation(self.generator)
            self.scaler_g.scale(penalty).backward()
        self.processes.average_gradients(self.generator.parameters())
        metrics = {}
        if measure_gradient:
            self.scaler_g.unscale_(self.optimizer_g)
            gradients = [p.grad for p in self.generator.parameters() if p.grad is not None]
            metrics["grad_norm_g"] = torch.nn.utils.get_total_norm(gradients)
        self.scaler_g.step(self.optimizer_g)
        self.average_statistics()
        return metrics

    def average_statistics(self) -> None:
        """Gives each process the mean of all processes' running statistics.

        They move in proportion to a batch's, so the mean of w is that of the whole batch, and so is
        batch norm's.
        """
        if self.processes.world_size > 1:
            self.processes.average_(
                [
                    buffer
                    for network in (self.generator, self.discriminator)
                    for name, buffer in network.named_buffers()
                    if name.rpartition(".")[2] in _RUNNING_STATISTICS
                ]
            )

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
        drawn.penalize = penalize and self.config.has_penalty
        if self.config.penalizes_interpolates and penalize:
            drawn.mixing = self.processes.rows(
                torch.rand((count, 1, 1, 1), generator=self.random, device=self.device)
            )
        return drawn

    @property
    def _takes_real_scores(self) -> bool:
        return self.config.loss == "relativistic"

    def _drawn_for_generator(self, real: Tensor | None, labels: Tensor | None) -> _Drawn:
        if self._takes_real_scores:
            assert real is not None
            return self._drawn_for_critic(real, labels, penalize=False)
        assert self.config.batch_size is not None
        return self._drawn_for_fakes(self.config.batch_size)

    def _drawn_for_fakes(self, count: int) -> _Drawn:
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

        p = 1.0 if self.adaptive is None else self.adaptive.p
        return draw_augmentation(self._augmentation, draw, p)

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.config.precision)
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)


def _ratio(group: Mapping[str, Any], first: Mapping[str, Any]) -> float:
    rate, base = float(group["lr"]), float(first["lr"])
    return rate / base if base else 1.0


def _means(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each metric over a batch's parts."""
    if len(parts) == 1:
        return parts[0]
    return {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}


def _with_plain_rates(state: dict[str, Any]) -> dict[str, Any]:
    """A state_dict with learning rates as numbers, as in torch's optimisers."""
    groups: Iterable[dict[str, Any]] = state["param_groups"]
    return {**state, "param_groups": [{**g, "lr": float(g["lr"])} for g in groups]}
