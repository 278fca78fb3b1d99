"""Trained generators: loading, sampling, evaluation."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import json
import os
import reprlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastgan._util.reading import parsing
from fastgan.data import ImageSource, PairSource, as_source, load_data, load_pairs
from fastgan.data.sampling import images_to_compare
from fastgan.errors import CheckpointError, ConfigError, DataWarning
from fastgan.models import StyleGAN2Generator
from fastgan.models.checks import check_positive
from fastgan.sampling.batches import STANDING_BATCH, generate_images, standing_statistics_
from fastgan.sampling.noise import sample_noise, spherical_interpolation
from fastgan.training.checkpoint import (
    list_checkpoints,
    load_checkpoint,
    newest_checkpoint,
    read_description,
    restore_module,
)
from fastgan.training.config import TrainConfig
from fastgan.training.networks import DataShape, build_generator
from fastgan.training.own import own_names

if TYPE_CHECKING:
    from fastgan.evaluation import EvaluationReport, FeatureSpace

__all__ = ["PRETRAINED", "TrainedGenerator", "load_generator", "read_generator"]

#: File name of a generator's weights in the Hugging Face Hub's format.
PRETRAINED = "model.safetensors"


def load_generator(
    path: str | os.PathLike[str], *, ema: bool = True, generator: nn.Module | None = None
) -> TrainedGenerator:
    """Loads the generator of a checkpoint.

    Args:
        path: the checkpoint file, or a run's folder for its newest intact one (a
            :class:`fastgan.DataWarning` names damaged ones), or the output of ``fastgan export
            --format safetensors`` or :meth:`TrainedGenerator.save_pretrained`.
        ema: take the moving average if the checkpoint has one.
        generator: for runs with ``Trainer(generator=...)``: an equal module, which receives the
            weights.

    Raises:
        CheckpointError: the checkpoint is missing or damaged, its weights don't fit its model, or
            it has your own network and there is no ``generator``.

    Example:
        >>> import tempfile
        >>> from fastgan.training import TrainConfig, Trainer
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     config = TrainConfig(out=folder, steps=1, batch_size=4, ngf=4, ndf=4)
        ...     _ = Trainer(config).run()
        ...     generator = load_generator(folder)
        >>> generator.sample(3, seed=1).shape
        torch.Size([3, 1, 16, 16])
    """
    path = Path(path)
    if (path / PRETRAINED).is_file():
        path = path / PRETRAINED
    if path.suffix == ".safetensors":
        content = _read_safetensors(path)
    elif path.is_dir():
        checkpoints = list_checkpoints(path)
        if not checkpoints:
            raise CheckpointError(f"{path}: this folder holds no checkpoint")
        path, content, failures = newest_checkpoint(checkpoints)
        for failure in failures:
            warnings.warn(f"{failure}; taking {path}", DataWarning, stacklevel=2)
    else:
        content = load_checkpoint(path)
    return read_generator(path, content, ema=ema, generator=generator)


def read_generator(
    path: Path, content: Mapping[str, Any], *, ema: bool = True, generator: nn.Module | None = None
) -> TrainedGenerator:
    """The generator of a checkpoint that has been read; see :func:`load_generator`."""
    config, data = read_description(path, content)
    own = own_names(path, content).get("generator")
    if (own is None) != (generator is None):
        raise CheckpointError(
            f"{path}: its generator is the {config.model}'s; load it without generator="
            if own is None
            else f"{path}: its generator, {own}, was given to Trainer in Python; give one"
            " to fastgan.load_generator(..., generator=...)"
        )
    average = content.get("ema_generator") if ema else None
    weights = content.get("generator") if average is None else average
    module = restore_module(
        path, "generator", lambda: generator or build_generator(config, data), weights
    )
    module = module.eval()
    # Contiguous for safetensors; the fused forward uses the fastest layout.
    module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    step = content.get("step")
    if type(step) is not int:
        raise CheckpointError(f"{path}: expected a step, got {reprlib.repr(step)}")
    averaged = average is not None or content.get("averaged") is True
    return TrainedGenerator(path, step, averaged, module, config, data)


def _read_safetensors(path: Path) -> dict[str, Any]:
    """The generator's part of a checkpoint, from a safetensors file."""
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file")
    if importlib.util.find_spec("safetensors") is None:
        raise CheckpointError(f"{path}: safetensors isn't installed: pip install 'fastgan[hub]'")
    from safetensors import safe_open

    with (
        parsing(f"{path}: damaged, or not written by fastgan", CheckpointError),
        safe_open(path, "pt") as file,
    ):
        content = json.loads((file.metadata() or {})["fastgan"])
        weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return {**content, "generator": weights, "ema_generator": None}


@dataclass(frozen=True)
class TrainedGenerator:
    """A generator and its origin; made by :func:`load_generator`.

    Attributes:
        path: the checkpoint.
        step: generator updates done.
        averaged: whether the weights are the moving average.
        module: in eval mode, initially on the CPU; its weights are contiguous, for safetensors'
            ``save_file``. Takes z (N, nz, 1, 1), and labels (N,) int64 if it is conditional.
        config: the run's settings.
        data: the training images' shape.
    """

    path: Path
    step: int
    averaged: bool
    module: nn.Module
    config: TrainConfig
    data: DataShape

    @property
    def num_classes(self) -> int | None:
        """The number of classes; None if it isn't conditional."""
        return self.data.num_classes if self.config.conditional else None

    @property
    def device(self) -> torch.device:
        """The module's device."""
        return next(self.module.parameters()).device

    @property
    def directions(self) -> dict[str, nn.Module]:
        """Of models that translate, the networks of "a2b" and perhaps "b2a"."""
        module: Any = self.module
        return dict(module.directions) if self.config.kind.pairs else {}

    def to(self, device: torch.device | str) -> TrainedGenerator:
        """Moves the module; returns this object."""
        self.module.to(device)
        return self

    def evaluate(
        self,
        source: Any = None,
        n: int = 1000,
        *,
        seed: int = 0,
        truncation: float | None = None,
        feature_space: FeatureSpace | str | None = None,
        k: int = 5,
        direction: str = "a2b",
    ) -> EvaluationReport:
        """Measures ``n`` samples against real images, like ``fastgan evaluate``.

        Samples and features are computed on the module's device.

        Args:
            source: the real images, of which at most 10,000 are used: any argument of
                :func:`fastgan.data.as_source`, a name as for ``fastgan train --data``, or None for
                the training data. For ``cyclegan`` and ``pix2pix``, a
                :class:`fastgan.data.PairSource`: translations of A are compared with B, or
                those of B with A.
            n: samples to draw, equally from all classes.
            seed: of the noise, the classes and the choice of real images.
            truncation: as in :meth:`sample`.
            feature_space: see :func:`fastgan.evaluation.evaluate_samples`.
            k: likewise.
            direction: as in :meth:`translate`; of other models there is one alone.

        Raises:
            ConfigError: real images with other channels or classes than the generator's.
            DataError: real images that can't be read, or must be given again.

        Example:
            >>> import tempfile
            >>> from fastgan.training import TrainConfig, Trainer
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     config = TrainConfig(out=folder, steps=1, batch_size=4, ngf=4, ndf=4)
            ...     generator = load_generator(Trainer(config).run().checkpoint)
            >>> generator.evaluate(torch.rand(50, 1, 16, 16) * 2 - 1, n=20).n_real
            50
        """
        from fastgan.evaluation import evaluate_samples

        config, shape = self.config, self.data
        if config.kind.pairs:
            if truncation is not None:
                raise ConfigError(
                    f"truncation: {config.model} translates images, and has no noise to truncate;"
                    f" expected none, got {truncation}"
                )
            pairs = self.pairs() if source is None else source
            if not isinstance(pairs, PairSource):
                got = repr(pairs) if isinstance(pairs, str) else type(pairs).__name__
                raise ConfigError(
                    f"data: {config.model} is measured on images of both domains; expected data_a"
                    f" and data_b, a fastgan.data.PairSource in Python, got {got}"
                )
            self._check_channels(pairs)
            a, b = images_to_compare(pairs, seed)[0].chunk(2, 1)
            if direction == "b2a":
                a, b = b, a
            return evaluate_samples(
                self.translate(a[torch.arange(n) % len(a)], direction),
                b,
                k=k,
                feature_space=feature_space,
                device=self.device,
            )
        # A run that converted its data to grey or colour is measured against converted data.
        options: dict[str, Any] = {"image_size": shape.image_size, "channels": config.channels}
        if source is None or isinstance(source, str):
            source = load_data(source or config.data, **options)
        else:
            source = as_source(source, **options)
        self._check_channels(source)
        classes = self.num_classes
        reads_labels = classes is not None and not config.kind.draws_labels
        if reads_labels and source.num_classes not in (None, classes):
            raise ConfigError(
                f"data: {source.name} has {source.num_classes} classes, the checkpoint {classes}"
            )
        random = torch.Generator().manual_seed(seed)
        assert config.noise is not None
        truncation, options = self.truncated(truncation)
        z = sample_noise(n, config.nz, config.noise, truncation=truncation, generator=random)
        labels = None
        if classes is not None:
            labels = torch.randint(classes, (n,), generator=random)
        real, real_labels = images_to_compare(source, seed)
        return evaluate_samples(
            generate_images(self.module, z, labels, **options),
            real,
            labels=real_labels,
            num_classes=source.num_classes,
            class_names=source.class_names,
            k=k,
            feature_space=feature_space,
            device=self.device,
        )

    def _check_channels(self, source: ImageSource) -> None:
        if source.channels != self.data.channels:
            raise ConfigError(
                f"data: {source.name} has {source.channels} channel(s), the checkpoint draws"
                f" {self.data.channels}"
            )

    def pairs(self, data_a: str | None = None, data_b: str | None = None) -> PairSource:
        """Images for :meth:`evaluate` of ``cyclegan`` and ``pix2pix``.

        Args:
            data_a: images of A, such as ``folder:DIR``; None for the training data, with
                ``data_b``.
            data_b: images of B, of pix2pix those that belong to A's.

        Raises:
            ConfigError: the generator takes noise, one set alone is given, or there is none and the
                training data was given in Python.
            DataError: a set that can't be read, or sets that don't pair up.
        """
        config = self.config
        if not config.kind.pairs:
            raise ConfigError(
                f"data_a: {config.model} doesn't translate between two sets of images; expected"
                " data"
            )
        if (data_a is None) != (data_b is None):
            raise ConfigError("data_b: expected data_a and data_b, or neither of them")
        if data_a is None:
            data_a, data_b = config.data_a, config.data_b
        if data_a is None or data_b is None:
            raise ConfigError(f"data: {self.path} was trained on pairs that were given in Python")
        return load_pairs(
            data_a,
            data_b,
            paired=config.kind.pairs == "paired",
            image_size=self.data.image_size,
            channels=config.channels,
        )

    def save_pretrained(self, folder: str | os.PathLike[str], **options: Any) -> None:
        """Writes a folder in the Hugging Face Hub's format; needs ``fastgan[hub]``.

        Args:
            folder: for ``model.safetensors``, ``config.json`` and a model card.
            options: of huggingface_hub's ``ModelHubMixin.save_pretrained``.
        """
        from fastgan.hub import Pretrained

        Pretrained(self).save_pretrained(Path(folder), **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Uploads that folder; returns the commit's address; needs ``fastgan[hub]``.

        Args:
            repo_id: ``USER/NAME``.
            options: of huggingface_hub's ``ModelHubMixin.push_to_hub``.
        """
        from fastgan.hub import Pretrained

        return str(Pretrained(self).push_to_hub(repo_id, **options))

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], **options: Any) -> TrainedGenerator:
        """Loads such a folder, or one from the Hub; needs ``fastgan[hub]``.

        Args:
            name: the folder, or ``USER/NAME`` on the Hub.
            options: of huggingface_hub's ``ModelHubMixin.from_pretrained``, such as ``revision``.

        Raises:
            CheckpointError: the file wasn't written by :meth:`save_pretrained`.
        """
        from fastgan.hub import Pretrained

        pretrained: Pretrained = Pretrained.from_pretrained(str(name), **options)
        return pretrained.generator

    def class_number(self, name: int | str) -> int:
        """The number of a class, given by name or number (also as text).

        Raises:
            ConfigError: there is no such class, or the generator isn't conditional.
        """
        if self.num_classes is None:
            raise ConfigError("class: this checkpoint's model is not conditional")
        names = self.data.class_names or ()
        if name in names:
            return names.index(str(name))
        try:
            number = int(name)
        except ValueError:
            raise ConfigError(
                f"class: expected 0 to {self.num_classes - 1} or one of"
                f" {', '.join(names[:10])}, got {name!r}"
            ) from None
        if not 0 <= number < self.num_classes:
            raise ConfigError(f"class: expected 0 to {self.num_classes - 1}, got {number}")
        return number

    def labels(
        self, n: int, classes: int | str | Sequence[int | str] | None = None
    ) -> Tensor | None:
        """Labels (n,) int64: the classes in turn, by default all; None if not conditional.

        Raises:
            ConfigError: a class that doesn't exist, or one of a generator without classes.
        """
        if classes is None:
            return None if self.num_classes is None else torch.arange(n) % self.num_classes
        asked = [classes] if isinstance(classes, (int, str)) else list(classes)
        numbers = torch.tensor([self.class_number(name) for name in asked])
        return numbers[torch.arange(n) % len(numbers)]

    def noise(self, n: int, *, seed: int = 0, truncation: float | None = None) -> Tensor:
        """Latent vectors (n, nz, 1, 1) on the CPU, the same for the same seed.

        Raises:
            ConfigError: a ``truncation`` below 0.001, or a generator that takes images instead.
        """
        if self.config.noise is None:
            raise ConfigError(
                f"{self.path}: {self.config.model} draws nothing from noise, it translates images:"
                " fastgan translate"
            )
        return sample_noise(
            n,
            self.config.nz,
            self.config.noise,
            truncation=truncation,
            generator=torch.Generator().manual_seed(seed),
        )

    def truncated(self, truncation: float | None) -> tuple[float | None, dict[str, Any]]:
        """The noise's truncation, and the module's further arguments.

        StyleGAN2 truncates styles instead, towards their average, by the module's ``truncation``.
        """
        if truncation is None or not isinstance(self.module, StyleGAN2Generator):
            return truncation, {}
        return None, {"truncation": truncation}

    def with_standing_statistics(
        self, truncation: float | None = None, *, batches: int = 16, seed: int = 0
    ) -> TrainedGenerator:
        """A copy with batch norms' statistics for truncated noise (BigGAN, appendix D).

        Args:
            truncation: as of :meth:`sample`.
            batches: of 64 images, of all classes in turn.
            seed: of the noise.

        Raises:
            ConfigError: a ``truncation`` below 0.001.
        """
        n = batches * STANDING_BATCH
        module = copy.deepcopy(self.module)
        noise = self.noise(n, seed=seed, truncation=truncation)
        standing_statistics_(module, noise, self.labels(n))
        return dataclasses.replace(self, module=module)

    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        truncation: float | None = None,
        classes: int | str | Sequence[int | str] | None = None,
    ) -> Tensor:
        """Draws images.

        Args:
            n: how many.
            seed: of the noise.
            truncation: noise beyond it is drawn again: more typical, less varied images. StyleGAN2
                instead contracts styles to their average by this factor.
            classes: of a conditional generator: a number, a name, or several, in turn; by default
                all.

        Returns:
            float32 (n, channels, size, size) in [-1, 1], on the CPU.

        Raises:
            ConfigError: an invalid class or truncation.
        """
        truncation, options = self.truncated(truncation)
        z = self.noise(n, seed=seed, truncation=truncation)
        return generate_images(self.module, z, self.labels(n, classes), **options)

    def style_mixing(
        self,
        rows: int,
        columns: int,
        *,
        seed: int = 0,
        truncation: float | None = None,
        layer: int | None = None,
        classes: int | str | Sequence[int | str] | None = None,
    ) -> Tensor:
        """Crosses samples: mixed styles, as in Karras et al. 2018, arXiv 1812.04948, figure 3.

        The image in row i and column k has the styles of sample i in layers below ``layer``, the
        coarse ones, and of sample k of another set in the others.

        Args:
            rows: samples on the left.
            columns: samples on top.
            seed: of the noise, and ``truncation`` and ``classes``, as in :meth:`sample`; the rows'
                samples are the first.
            truncation: see ``seed``.
            layer: from 0 to the generator's ``layers``; None for half of them.
            classes: see ``seed``.

        Returns:
            float32 ((rows + 1) * (columns + 1), channels, size, size) in [-1, 1], row by row: a
            black image, the samples on top, and so on.

        Raises:
            ConfigError: the generator has no styles, or as in :meth:`sample`.
        """
        module = self.module
        if not isinstance(module, StyleGAN2Generator):
            raise ConfigError(f"style_mixing: {self.config.model} has no styles; stylegan2 has")
        check_positive(rows=rows, columns=columns)
        layer = module.layers // 2 if layer is None else layer
        n, device = rows + columns, module.const.device
        labels = self.labels(n, classes)
        with torch.no_grad():
            z = self.noise(n, seed=seed).to(device)
            styles = module.styles(z, None if labels is None else labels.to(device))
            left, top = module.truncated(styles, truncation).split([rows, columns])
            black = torch.full((1, module.nc, *2 * (module.image_size,)), -1.0)
            sheet = [black, module.synthesis(top).float().cpu()]
            for style in left:
                coarse = style[:layer].expand(columns, -1, -1)
                crossed = torch.cat([coarse, top[:, layer:]], 1)
                images = module.synthesis(torch.cat([style[None], crossed]))
                sheet.append(images.float().cpu())
        return torch.cat(sheet)

    def code_walk(self, code: int, rows: int = 10, columns: int = 9, *, seed: int = 0) -> Tensor:
        """Samples that differ along a row in a continuous code alone, as in InfoGAN's figure 2.

        Args:
            code: number of the code, from 0.
            rows: samples; the categories in turn.
            columns: values of the code, from -2 to 2 in equal steps (1 for 0 alone).
            seed: of the noise.

        Returns:
            float32 (rows * columns, channels, size, size) in [-1, 1], row by row.

        Raises:
            ConfigError: the generator has no such code.
        """
        codes = self.config.codes if self.config.kind.draws_labels else 0
        if not 0 <= code < codes:
            expected = f"0 to {codes - 1}" if codes else "an infogan with continuous codes"
            raise ConfigError(f"code_walk: expected {expected}, got code {code} of {self.path}")
        check_positive(rows=rows, columns=columns)
        z = self.noise(rows, seed=seed).repeat_interleave(columns, 0)
        labels = self.labels(rows)
        assert labels is not None
        values = torch.linspace(-2, 2, columns) if columns > 1 else torch.zeros(1)
        z[:, code, 0, 0] = values.repeat(rows)
        return generate_images(self.module, z, labels.repeat_interleave(columns))

    def translate(self, images: Tensor, direction: str = "a2b") -> Tensor:
        """Translates images; for ``cyclegan`` and ``pix2pix``.

        Args:
            images: (n, channels, size, size) in [-1, 1], floating-point.
            direction: "a2b", or of ``cyclegan`` also "b2a".

        Returns:
            float32, of the same shape, in [-1, 1], on the CPU.

        Raises:
            ConfigError: the generator takes noise, or doesn't have this direction.
            ImageSizeError: images of another shape.

        Example:
            >>> import tempfile
            >>> from fastgan.training import TrainConfig, Trainer
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     config = TrainConfig(model="pix2pix", out=folder, steps=1, ngf=2, ndf=2)
            ...     generator = load_generator(Trainer(config).run().checkpoint)
            >>> generator.translate(torch.zeros(3, 1, 16, 16)).shape
            torch.Size([3, 1, 16, 16])
        """
        ways = self.directions
        if direction not in ways:
            expected = f"expected {' or '.join(ways)}" if ways else "it draws images from noise"
            raise ConfigError(
                f"direction: {self.config.model} doesn't translate {direction}; {expected}"
            )
        return generate_images(ways[direction], images, batch_size=32)

    def interpolate(
        self,
        stops: int = 6,
        frames: int = 12,
        *,
        seed: int = 0,
        truncation: float | None = None,
        classes: int | str = 0,
    ) -> Tensor:
        """A closed interpolation through samples, along great circles (White 2016, arXiv
        1609.04468).

        Args:
            stops: number of samples, at least 2.
            frames: images from one to the next.
            seed: of the noise, and ``truncation``, as in :meth:`sample`.
            truncation: see ``seed``.
            classes: the class that is drawn throughout, if the generator is conditional.

        Returns:
            float32 (stops * frames, channels, size, size) in [-1, 1]; the last leads to the first.
        """
        truncation, options = self.truncated(truncation)
        corners = self.noise(stops, seed=seed, truncation=truncation)
        following = corners.roll(-1, dims=0)
        parts = [
            spherical_interpolation(corners, following, frame / frames) for frame in range(frames)
        ]
        z = torch.stack(parts, dim=1).flatten(0, 1)
        labels = None if self.num_classes is None else self.labels(len(z), classes)
        return generate_images(self.module, z, labels, **options)

    def between(
        self,
        first: int,
        second: int,
        places: Sequence[float],
        *,
        truncation: float | None = None,
        classes: int | str = 0,
    ) -> Tensor:
        """Images on the great circle from one seed's sample to another's.

        Args:
            first: the seed at 0: the image there is ``sample(1, seed=first)``.
            second: the seed at 1.
            places: where to draw, from 0 to 1.
            truncation: as in :meth:`sample`.
            classes: the class that is drawn throughout, if the generator is conditional.

        Returns:
            float32 (len(places), channels, size, size) in [-1, 1], on the CPU.
        """
        truncation, options = self.truncated(truncation)
        start, end = (
            self.noise(1, seed=number, truncation=truncation) for number in (first, second)
        )
        z = torch.cat([spherical_interpolation(start, end, place) for place in places])
        labels = None if self.num_classes is None else self.labels(len(z), classes)
        return generate_images(self.module, z, labels, **options)
