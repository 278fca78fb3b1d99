"""A run's settings in one frozen dataclass.

A field of :class:`TrainConfig` is an option's only definition: its name is the command-line flag's,
its metadata has the help text and the allowed values, and ``None`` means the default of the model's
paper (:data:`fastgan.training.model_kinds.MODEL_KINDS`).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import reprlib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastgan._util.data_kinds import DATA_KINDS
from fastgan._util.devices import DEVICES, check_device_name
from fastgan.errors import ConfigError, ImageSizeError
from fastgan.training.config_files import check_text, format_settings, parse_settings
from fastgan.training.model_kinds import DEFAULT_MODEL, MODEL_KINDS, ModelKind, ModelSettings
from fastgan.training.optimizer_kinds import OPTIMIZER_KINDS
from fastgan.training.options import LARGEST_WIDTH, check_bounds, option

MODELS = tuple(MODEL_KINDS)

#: Defaults if neither the user nor the paper sets a field.
COMMON_DEFAULTS: Mapping[str, Any] = types.MappingProxyType(
    {
        "lr_decay": "none",
        "beta1": 0.9,
        "beta2": 0.999,
        "weight_decay": 0.01,
        "r1": 0.0,
        "r2": 0.0,
        "penalty_every": 1,
        "orthogonal": 0.0,
        "path_length": 0.0,
    }
)

# Fields that may change when a run is resumed: they don't affect the trajectory.
RESUMABLE_CHANGES = frozenset(
    {
        "out",
        "steps",
        "device",
        "workers",
        "log_every",
        "sample_every",
        "checkpoint_every",
        "evaluate_every",
        "keep_checkpoints",
        "n_samples",
        "max_minutes",
        "minutes",
        "data",
        "data_a",
        "data_b",
        "graphs",
        "profile",
        "logger",
    }
)

# Options that only some optimisers read.
_OPTIMIZERS_OWN = frozenset().union(*(kind.reads for kind in OPTIMIZER_KINDS.values()))


@dataclass(frozen=True, kw_only=True)
class _RunSettings:
    """The settings that all models have."""

    out: str = option("", "folder for the run's files")
    model: str = option(DEFAULT_MODEL, "model to train", MODEL_KINDS)
    data: str = option("digits", ", ".join(kind.form for kind in DATA_KINDS.values()))
    data_a: str | None = option(None, "cyclegan and pix2pix: the images of A, as for --data")
    data_b: str | None = option(
        None,
        "likewise the images of B; pix2pix: of the same file names as those of A they belong to",
    )
    steps: int = option(5000, "generator updates to train for", at_least=1)
    image_size: int | None = option(
        None, "side of the square images in pixels, a power of two from 16 to 256"
    )
    channels: int | None = option(None, "1 or 3 image channels; by default the data's own")
    batch_size: int | None = option(None, "images per batch", at_least=1)
    seed: int = option(0, "seed of weights, noise and data order", at_least=0)

    optimizer: str | None = option(None, "optimiser of both networks", tuple(OPTIMIZER_KINDS))
    lr: float | None = option(None, "learning rate of both networks", above=0)
    lr_g: float | None = option(None, "learning rate of the generator, if it differs", above=0)
    lr_d: float | None = option(None, "learning rate of the discriminator, if it differs", above=0)
    lr_decay: str | None = option(
        None,
        "linear: the learning rates fall to zero over --steps; half: over the second half of them",
        ("none", "linear", "half"),
    )
    beta1: float | None = option(
        None, "first moment's decay (Adam), or momentum (sgd)", at_least=0, below=1
    )
    beta2: float | None = option(None, "second moment's decay (Adam)", at_least=0, below=1)
    weight_decay: float | None = option(None, "decoupled weight decay (adamw)", at_least=0)

    accumulate: int = option(
        1, "accumulate gradients over this many parts of a batch, to save memory", at_least=1
    )

    nz: int = option(100, "length of the noise vector", at_least=1, at_most=LARGEST_WIDTH)
    noise: str | None = option(None, "distribution of the noise", ("normal", "uniform"))
    ngf: int = option(
        64, "generator width: channels of its last hidden layer", at_least=1, at_most=LARGEST_WIDTH
    )
    ndf: int = option(
        64, "discriminator width: channels of its first layer", at_least=1, at_most=LARGEST_WIDTH
    )
    critic_norm: str = option(
        "auto",
        "normalisation in the discriminator or critic, and in pix2pix's generator: auto is none for"
        " wgan-gp, instance for cyclegan and pix2pix, else batch, as in the papers",
        ("auto", "none", "batch", "instance", "layer"),
    )
    conditional: bool = option(
        False, "condition both networks on the class label (cgan and acgan always do)"
    )

    projection: bool = option(
        False,
        "conditional discriminators and critics compare images with an embedding of the label,"
        " instead of taking it as further channels; those of sngan, biggan, stylegan2 and r3gan"
        " always do",
    )

    loss: str = option(
        "auto",
        "what discriminators descend, by default bce on logits, but as their papers for r3gan"
        " (relativistic), sngan and biggan (hinge); critics have wasserstein",
        ("auto", "bce", "hinge", "least-squares", "relativistic", "wasserstein"),
    )
    n_critic: int | None = option(None, "critic updates for each generator update", at_least=1)
    critic_schedule: str = option(
        "constant",
        "original: as the WGAN authors' code, 100 critic updates for each of the first 25 generator"
        " updates and for every 500th",
        ("constant", "original"),
    )
    r1: float | None = option(
        None,
        "gamma of R1: adds gamma / 2 * mean ||grad D(x)||^2 at real images; not for wgan",
        at_least=0,
    )
    r2: float | None = option(
        None, "gamma of R2: the same at generated images; not for wgan and stylegan2", at_least=0
    )
    orthogonal: float | None = option(
        None, "weight of the generator's orthogonal regularisation (BigGAN's)", at_least=0
    )
    penalty_every: int | None = option(
        None,
        "wgan-gp, r1 and r2: penalise only every so many critic updates, by as many times the"
        " weight",
        at_least=1,
    )
    one_stage: bool = option(
        False,
        "update both players from one pass over the fakes, at the weights before both (Shen et al."
        " 2021)",
    )
    augment: str = option(
        "none",
        "augment what both players see: some of color,translation,cutout (DiffAugment), or ada, as"
        " often as the discriminator overfits (ADA)",
    )
    ada_target: float = option(
        0.6,
        "ada: mean sign of the discriminator's scores of real images above which the probability"
        " rises",
        at_least=-1,
        at_most=1,
    )
    ada_kimg: float = option(
        500.0, "ada: thousands of images within which the probability can rise from 0 to 1", above=0
    )
    ada_interval: int = option(
        4, "ada: discriminator updates between two changes of the probability", at_least=1
    )
    ema_decay: float = option(
        0.999,
        "decay of the generator's moving average, used for samples; 0 for none",
        at_least=0,
        below=1,
    )

    device: str = option("auto", f"where to train: {DEVICES}")
    precision: str = option(
        "auto",
        "arithmetic of the convolutions; auto is bf16 where that is fast and shown to train as well"
        " (see docs/training.md), else fp32",
        ("auto", "fp32", "bf16", "fp16"),
    )
    sync_batch_norm: bool = option(
        False, "several processes: batch norm takes its statistics from the whole batch"
    )
    graphs: bool = option(True, "on CUDA: replay whole steps as CUDA graphs")
    workers: int | None = option(None, "data loading processes; by default automatic", at_least=0)

    log_every: int = option(25, "generator updates between two rows of metrics.csv", at_least=1)
    sample_every: int = option(500, "generator updates between two sample grids", at_least=1)
    checkpoint_every: int = option(1000, "generator updates between two checkpoints", at_least=1)
    evaluate_every: int = option(
        0,
        "generator updates between two evaluations, in evaluations.json; best.pt is the checkpoint"
        " with the smallest Fréchet distance; 0 for none",
        at_least=0,
    )
    evaluate_features: str | None = option(
        None,
        "where those evaluations measure: torchscript:FILE, inception:FILE or random-conv; by"
        " default as fastgan evaluate",
    )
    keep_checkpoints: int = option(2, "number of newest checkpoints to keep", at_least=1)
    n_samples: int = option(64, "images in a sample grid", at_least=1)
    logger: str = option(
        "none",
        "where else metrics and grids go; the extra of that name brings it, and its own environment"
        " variables set it up",
        ("none", "wandb", "trackio", "mlflow"),
    )
    profile: bool = option(False, "trace a few steps and write where their time goes")
    minutes: float | None = option(
        None,
        "about how long the run may take: its speed is measured first, and what doesn't fit is"
        " taken off --steps, so that learning rates still fall to their end",
        above=0,
    )
    max_minutes: float | None = option(
        None, "stop, as if interrupted, after this many minutes of training", above=0
    )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(ModelSettings, _RunSettings):
    """The settings of one training run.

    Every field is also a flag of ``fastgan train`` (``batch_size`` is ``--batch-size``). Fields
    that are ``None`` take the default of the model's paper, see :meth:`resolved`.

    Raises:
        ConfigError: from :meth:`validate`: a value is out of range or contradicts another.
        ImageSizeError: for an image size that is not a power of two from 16 to 256.

    Example:
        >>> config = TrainConfig(model="wgan", data="digits", out="runs/wgan").resolved()
        >>> config.optimizer, config.lr_d, config.n_critic, config.image_size
        ('rmsprop', 5e-05, 5, 16)
    """

    def __post_init__(self) -> None:
        if isinstance(self.out, os.PathLike):
            object.__setattr__(self, "out", os.fspath(self.out))

    def resolved(self) -> TrainConfig:
        """This configuration with every ``None`` replaced by its default, and validated."""
        self.validate()  # what follows looks values up
        paper = {**COMMON_DEFAULTS, **self.kind.defaults}
        filled = {name: value for name, value in paper.items() if getattr(self, name) is None}
        if self._is_given:
            filled = {name: value for name, value in filled.items() if not name.startswith("data_")}
        filled["lr"] = paper["lr"] if self.lr is None else self.lr
        for name in ("lr_g", "lr_d"):
            if getattr(self, name) is None:
                filled[name] = paper.get(name, paper["lr"]) if self.lr is None else self.lr
        if self.image_size is None:
            data = (self.data_a or paper["data_a"]) if self.kind.pairs else self.data
            kind = DATA_KINDS.get(data.partition(":")[0])
            filled["image_size"] = kind.image_size if kind else 64
        if self.critic_norm == "auto":
            filled["critic_norm"] = paper.get("critic_norm", "batch")
        if "conditional" in paper:
            filled["conditional"] = True
        if self.loss == "auto":
            filled["loss"] = paper.get("loss", "bce")
        if self.precision == "auto":
            # Imported here, because the command line must not import torch.
            from fastgan.training.precision import automatic_precision

            filled["precision"] = automatic_precision(check_device_name(self.device))
        config = dataclasses.replace(self, **filled)
        config.validate()
        return config

    def validate(self) -> None:
        """Raises :class:`ConfigError` with the first invalid field."""
        for setting in dataclasses.fields(self):
            value = getattr(self, setting.name)
            choices = setting.metadata["choices"]
            _check_type(setting.name, value)
            if value is None:
                continue
            if choices and value not in choices:
                raise ConfigError(
                    f"{setting.name}: expected one of {', '.join(choices)}, got {value!r}"
                )
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"{setting.name}: expected a finite number, got {value}")
            if not isinstance(value, str):
                check_bounds(setting, value)
            if isinstance(value, str):
                if "\0" in value:
                    raise ConfigError(f"{setting.name}: expected text without NUL, got {value!r}")
                check_text(setting.name, value)  # before a folder is made
        if "codes" in self.kind.reads and self.codes > self.nz:
            raise ConfigError(f"codes: expected at most nz, {self.nz}, got {self.codes}")
        self._refuse_what_makes_no_sense()
        check_device_name(self.device)
        size = self.image_size
        if size is not None and not (16 <= size <= 256 and size & (size - 1) == 0):
            raise ImageSizeError(f"image_size: expected a power of two from 16 to 256, got {size}")
        if self.channels not in (None, 1, 3):
            raise ConfigError(f"channels: expected 1 or 3, got {self.channels}")
        if self.augment != "none":
            from fastgan.training.augmentation import augmentation_kinds

            if "ada" in augmentation_kinds(self.augment) and self.is_wasserstein:
                raise ConfigError(
                    f"augment: ada follows the signs of scores, which say nothing of {self.model}'s"
                    " critic; expected some of color,translation,cutout, or another model, got"
                    f" {self.augment!r}"
                )
        if self.loss != "auto" and (self.loss == "wasserstein") != self.is_wasserstein:
            raise ConfigError(
                f"loss: {self.model} has {'critics' if self.is_wasserstein else 'discriminators'},"
                f" which {self.loss} is not for"
            )
        if self.batch_size is not None:
            part, rest = divmod(self.batch_size, self.accumulate)
            if rest:
                raise ConfigError(
                    f"accumulate: expected a divisor of batch_size {self.batch_size}, got"
                    f" {self.accumulate}"
                )
            if part == 1 and self.uses_batch_norm:
                raise ConfigError(
                    f"batch_size: {self.model} normalises over the batch, which needs at least 2"
                    " images; got 1"
                )
        if self.sync_batch_norm and self.has_penalty:
            norm = self.kind.defaults.get("critic_norm", "batch")
            if self.critic_norm != "auto":
                norm = self.critic_norm
            if norm == "batch" and "critic_norm" in self.kind.reads:
                raise ConfigError(
                    "sync_batch_norm: has no second derivative, which gradient penalties take of a"
                    " discriminator with batch norm; expected another critic_norm, or r1 and r2 to"
                    " be 0"
                )

    def _refuse_what_makes_no_sense(self) -> None:
        for name in self.kind.refuses:
            value, default = getattr(self, name), getattr(TrainConfig, name)
            if value in (None, default, COMMON_DEFAULTS.get(name)) or (
                name == "data" and self._is_given
            ):
                continue
            raise ConfigError(
                f"{name}: {self.model} has no use for it, got {value!r}"
                + ("; expected data_a and data_b" if name == "data" else "")
            )
        if not self.kind.pairs:
            return
        if self.loss == "relativistic":
            raise ConfigError(
                f"loss: {self.model}'s generators are told the scores of their own images alone,"
                " and relativistic compares them with real ones'"
            )
        if self.critic_norm == "layer":
            raise ConfigError(
                f"critic_norm: for {self.model} expected auto, none, batch or instance, got 'layer'"
            )
        if (self.data_a is None) != (self.data_b is None):
            raise ConfigError(
                f"data_b: {self.model} takes data_a and data_b, or its own digits without either"
            )

    def folder(self) -> Path:
        """``out`` as a path.

        Raises:
            ConfigError: it isn't set.
        """
        if not self.out:
            raise ConfigError("out: expected a folder for the run's results, got none")
        return Path(self.out)

    @property
    def kind(self) -> ModelKind:
        """The model's row in the table of models."""
        return MODEL_KINDS[self.model]

    @property
    def _is_given(self) -> bool:
        """Whether the data was given to Trainer in Python; only its name is recorded."""
        return self.data.startswith("source:")

    @property
    def uses_batch_norm(self) -> bool:
        """Whether one of this model's networks has batch norm."""
        return self.kind.batch_norm or (
            "critic_norm" in self.kind.reads and self.critic_norm == "batch"
        )

    @property
    def is_wasserstein(self) -> bool:
        """Whether the discriminator is a Wasserstein critic."""
        return self.kind.defaults.get("loss") == "wasserstein"

    @property
    def has_penalty(self) -> bool:
        """Whether the discriminator's loss has a gradient penalty."""
        return self.penalizes_interpolates or bool(self.r1) or bool(self.r2)

    @property
    def penalizes_interpolates(self) -> bool:
        """Whether that is one at points between real and generated images."""
        return "gp_weight" in self.kind.reads

    @property
    def clips_weights(self) -> bool:
        """Whether the critic's weights are clipped."""
        return "clip" in self.kind.reads

    def ignored(self, names: Iterable[str]) -> list[str]:
        """Those of the given fields that neither the model nor the optimiser reads."""
        return [
            name
            for name in sorted(names)
            if (
                any(name in kind.reads for kind in MODEL_KINDS.values())
                and name not in self.kind.reads
                and not (name == "penalty_every" and self.has_penalty)
            )
            or (name.startswith("ada_") and "ada" not in self.augment)
            or (name == "evaluate_features" and not self.evaluate_every)
            or (
                name in _OPTIMIZERS_OWN
                and self.optimizer is not None
                and name not in OPTIMIZER_KINDS[self.optimizer].reads
            )
        ]

    def critic_updates(self, step: int) -> int:
        """Critic updates before generator update number ``step``, counted from 0."""
        assert self.n_critic is not None, "resolved() fills n_critic in"
        if self.critic_schedule == "original" and (step < 25 or step % 500 == 0):
            return max(100, self.n_critic)
        return self.n_critic

    def penalizes_generator(self, step: int) -> bool:
        """Whether generator update number ``step`` has its lazy penalty."""
        return bool(self.path_length) and step % self.path_length_every == 0

    def to_dict(self) -> dict[str, Any]:
        """Field names to plain values, for files and checkpoints."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """The inverse of :meth:`to_dict`; refuses unknown names and values of another type.

        Raises:
            ConfigError: naming the field.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"config: expected names with values, got {reprlib.repr(values)}")
        for name, value in values.items():
            if name not in _types():
                raise ConfigError(f"{reprlib.repr(name)}: there is no such setting")
            _check_type(name, value)
        return cls(**values)

    @classmethod
    def from_run(cls, values: Mapping[str, Any]) -> TrainConfig:
        """A run's resolved settings from its saved ones, perhaps by an older release.

        Raises:
            ConfigError: naming the field.
        """
        config = cls.from_dict(values)
        config.validate()
        if "orthogonal" not in values and not config.is_wasserstein:
            # Older releases ignored it, and used batch norm.
            config = dataclasses.replace(config, critic_norm="auto")
        return config.resolved()

    def to_toml(self) -> str:
        """This configuration as TOML, without fields that are ``None``.

        Example:
            >>> config = TrainConfig(model="wgan", out="runs/wgan")
            >>> TrainConfig.from_toml(config.to_toml()) == config
            True
        """
        return format_settings(self.to_dict())

    @classmethod
    def from_toml(cls, text: str) -> TrainConfig:
        """The inverse of :meth:`to_toml`.

        Raises:
            ConfigError: for text that isn't TOML, unknown names and values of another type.
        """
        return cls.from_dict(parse_settings(text))


@functools.cache
def _types() -> dict[str, tuple[type, ...]]:
    """The type of each field."""
    allowed = {
        name: typing.get_args(hint) or (hint,)
        for name, hint in typing.get_type_hints(TrainConfig).items()
    }
    return {
        name: (*kinds, int) if float in kinds and int not in kinds else kinds
        for name, kinds in allowed.items()
    }


def _check_type(name: str, value: object) -> None:
    allowed = _types()[name]
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        names = " or ".join("None" if kind is types.NoneType else kind.__name__ for kind in allowed)
        raise ConfigError(f"{name}: expected {names}, got {reprlib.repr(value)}")
    if isinstance(value, int) and value.bit_length() > 63:
        # Checked before printing: Python refuses to print very long numbers.
        raise ConfigError(f"{name}: expected a number of at most 63 bits")
