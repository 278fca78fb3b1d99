"""Updates and pictures for image translation between two domains, A and B.

A batch has pairs, A's channels before B's (:class:`fastgan.data.PairSource`). The discriminators'
update translates it, and the generators' update reuses the translations, which saves a pass. Both
papers halve the discriminators' objective.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.data import ImageSource, PairSource
from fastgan.losses import at_least_float32
from fastgan.sampling.batches import generate_images
from fastgan.sampling.images import save_grid
from fastgan.training.config import TrainConfig
from fastgan.training.outputs import HealthWatch, MetricsWriter, SampleWriter
from fastgan.training.state import TrainState
from fastgan.training.updates import GANUpdater

if TYPE_CHECKING:
    from fastgan.training.trainer import Trainer

#: Pictures in a row of a grid.
MOST_COLUMNS = 12


class Pix2PixUpdater(GANUpdater):
    """Isola et al. 2017, arXiv 1611.07004, section 3.1: a conditional GAN loss and an L1 loss."""

    _translated: tuple[Tensor, tuple[Tensor, ...]] | None = None

    def update_discriminator(
        self, real: Tensor, labels: Tensor | None = None, *, penalize: bool = True
    ) -> dict[str, Tensor]:
        """One step of the discriminator, or of both, on a batch of pairs.

        Args:
            real: this process's pairs, shape (N, 2 * channels, size, size), in [-1, 1].
            labels: not read.
            penalize: not read.

        Returns:
            Detached scalars: ``loss_d``, ``d_real`` and ``d_fake``.
        """
        self.optimizer_d.zero_grad(set_to_none=True)
        with self._autocast():
            translations = self._translations(real)
            self._translated = real, translations
            loss, metrics = self._discriminators_loss(real, *translations)
        self.scaler_d.scale(loss).backward()
        self._step_discriminator()
        self.scaler_d.update()
        return {**metrics, "loss_d": loss.detach()}

    def update_generator(
        self,
        real: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        measure_gradient: bool,
        penalize: bool = False,
    ) -> dict[str, Tensor]:
        """One step of the generator, or of both, on the discriminator's translations.

        Args:
            real: as in :meth:`update_discriminator`; another batch than the last one there is
                translated first.
            labels: not read.
            measure_gradient: also return the norm of the gradient.
            penalize: not read.

        Returns:
            Detached scalars: ``loss_g``, its terms, and with ``measure_gradient`` ``grad_norm_g``.
        """
        assert real is not None
        self.optimizer_g.zero_grad(set_to_none=True)
        self.discriminator.requires_grad_(False)
        try:
            with self._autocast():
                translated, self._translated = self._translated, None
                known = translated is not None and translated[0] is real
                translations = translated[1] if translated and known else self._translations(real)
                adversarial, terms = self._generators_losses(real, *translations)
                loss = torch.stack([adversarial, *terms.values()]).sum()
            self.scaler_g.scale(loss).backward()
        finally:
            self.discriminator.requires_grad_(True)
        measured = self._step_generator(measure_gradient)
        self.scaler_g.update()
        return {
            "loss_g": loss.detach(),
            **{name: term.detach() for name, term in terms.items()},
            **measured,
        }

    def _translations(self, real: Tensor) -> tuple[Tensor, ...]:
        """The generator's translations of a batch."""
        a, _ = _domains(real)
        return (self.generator(a),)

    def _discriminators_loss(
        self, real: Tensor, *translations: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its metrics."""
        (fake,) = translations
        beside = torch.cat([_domains(real)[0], fake.detach().to(real.dtype)], dim=1)
        return self._halved_loss(*self._scores(self.discriminator, real, beside))

    def _generators_losses(
        self, real: Tensor, *translations: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The adversarial loss and the other terms."""
        (fake,) = translations
        a, b = _domains(real)
        scores = self.discriminator(torch.cat([a, fake.to(a.dtype)], dim=1))
        return self._whole_loss(scores), {"l1": self.config.l1_weight * _l1(fake, b)}

    def _scores(self, network: nn.Module, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of real and of translated images."""
        if self.config.uses_batch_norm:  # batch norm's statistics must be of one kind of images
            return network(real), network(fake)
        first, second = network(torch.cat([real, fake])).chunk(2)
        return first, second

    def _halved_loss(
        self, real_scores: Tensor, fake_scores: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A discriminator's halved loss, and its metrics; least squares already has the factor."""
        loss, metrics = self._adversarial(real_scores, fake_scores)
        return loss if self.config.loss == "least-squares" else loss / 2, metrics

    def _whole_loss(self, scores: Tensor) -> Tensor:
        """The papers' generator loss, without the factor 1/2 of least squares."""
        loss = self.generator_loss(scores)
        return 2 * loss if self.config.loss == "least-squares" else loss


class CycleGANUpdater(Pix2PixUpdater):
    """Zhu et al. 2017, arXiv 1703.10593, section 3, with the identity loss of section 5.2.2."""

    def _translations(self, real: Tensor) -> tuple[Tensor, ...]:
        """A as B, B as A and, for the identity loss, B as B and A as A."""
        a, b = _domains(real)
        generator: Any = self.generator
        to_b, to_a = generator.a_to_b, generator.b_to_a
        if not self.config.identity_weight:
            return to_a(b), to_b(a)
        # The generators' norms are per image, so two batches can be joined.
        fake_a, same_a = to_a(torch.cat([b, a])).chunk(2)
        fake_b, same_b = to_b(torch.cat([a, b])).chunk(2)
        return fake_a, fake_b, same_a, same_b

    def _discriminators_loss(
        self, real: Tensor, *translations: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of both losses, and the mean of their metrics."""
        both = []
        for name, images, fake in zip("ab", _domains(real), translations, strict=False):
            pool = getattr(self.discriminator, f"pool_{name}")
            count = len(real) * self.processes.world_size
            coins, keys = (
                torch.rand(numbers, generator=self.random, device=self.device)
                for numbers in (count, pool.size)
            )
            # From all processes, so that all have the same pool for checkpoints.
            own = fake.detach().to(real.dtype).contiguous()
            whole = self.processes.gather_rows(own).flatten(0, 1)
            shown = self.processes.rows(pool(whole, coins, keys))
            scores = self._scores(getattr(self.discriminator, name), images, shown)
            both.append(self._halved_loss(*scores))
        (loss_a, of_a), (loss_b, of_b) = both
        return loss_a + loss_b, {name: (of_a[name] + of_b[name]) / 2 for name in of_a}

    def _generators_losses(
        self, real: Tensor, *translations: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Both adversarial losses, the cycle and the identity terms."""
        fake_a, fake_b, *same = translations
        a, b = _domains(real)
        config = self.config
        generator: Any = self.generator
        discriminator: Any = self.discriminator
        said = self._whole_loss(discriminator.a(fake_a)) + self._whole_loss(discriminator.b(fake_b))
        back = _l1(generator.b_to_a(fake_b), a) + _l1(generator.a_to_b(fake_a), b)
        terms = {"cycle": config.cycle_weight * back}
        if same:
            weight = config.cycle_weight * config.identity_weight
            terms["identity"] = weight * (_l1(same[0], a) + _l1(same[1], b))
        return said, terms


class TranslationWriter(SampleWriter):
    """Draws images with their translations, and measures the variety of translations to B."""

    def __init__(
        self, config: TrainConfig, source: ImageSource, metrics: MetricsWriter, health: HealthWatch
    ) -> None:
        assert isinstance(source, PairSource)
        super().__init__(config, source, metrics, health)

    def _looked_at(self, images: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Keeps the pairs; translations are compared with B."""
        self._pairs = images
        return _domains(images)[1], None

    def _save(self, trainer: Trainer, path: Path) -> tuple[Tensor, int | None]:
        images, captions, columns = translation_rows(
            trainer.state.sampler, self._pairs, self._config.n_samples
        )
        save_grid(images, path, columns=columns, captions=captions)
        return images, columns

    def sample(self, state: TrainState, n: int, labels: Tensor | None = None) -> Tensor:
        """Translations to B of ``n`` images of A, the same at every call."""
        a, _ = _domains(self._pairs)
        sampler: Any = state.sampler
        return generate_images(sampler.directions["a2b"], a[torch.arange(n) % len(a)])

    def compared(self, state: TrainState, real: Tensor, n: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Translations of ``n`` images, and those of the other domain, in each direction."""
        a, b = _domains(real)
        sampler: Any = state.sampler
        return {
            way: (generate_images(network, given[torch.arange(n) % len(given)]), wanted)
            for (way, network), (given, wanted) in zip(
                sampler.directions.items(), ((a, b), (b, a)), strict=False
            )
        }


def translation_rows(
    generator: nn.Module, pairs: Tensor, count: int
) -> tuple[Tensor, list[str], int]:
    """A grid with rows A, A as B and back as A, and the same for B.

    Args:
        generator: with ``directions``; with only one, the rows are A, A as B, and B.
        pairs: (n, 2 * channels, size, size), n at least 1.
        count: about how many images.

    Returns:
        The images, a caption for each, and the number of columns.
    """
    translator: Any = generator
    ways = translator.directions
    columns = max(1, min(count // (3 * len(ways)), MOST_COLUMNS, len(pairs)))
    a, b = _domains(pairs[:columns])
    rows = {"A": a, "A to B": generate_images(ways["a2b"], a)}
    if "b2a" in ways:
        rows["A to B to A"] = generate_images(ways["b2a"], rows["A to B"])
        rows |= {"B": b, "B to A": generate_images(ways["b2a"], b)}
        rows["B to A to B"] = generate_images(ways["a2b"], rows["B to A"])
    else:
        rows["B"] = b
    captions = [name for name in rows for _ in range(columns)]
    return torch.cat(list(rows.values())), captions, columns


def _domains(pairs: Tensor) -> tuple[Tensor, Tensor]:
    """The images of A and those of B."""
    a, b = pairs.chunk(2, dim=1)
    return a.contiguous(), b.contiguous()


def _l1(images: Tensor, others: Tensor) -> Tensor:
    return F.l1_loss(at_least_float32(images), others)
