"""A run's settings in one frozen dataclass.

A field of :class:`TrainConfig` is an option's only definition: its name is the command-line flag's,
its metadata has the help text and the allowed values, and ``None`` means the default of the model's
paper (:data:`PAPER_DEFAULTS`).
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastgan._util.data_kinds import DATA_KINDS
from fastgan._util.devices import DEVICES, check_device_name
from fastgan.errors import ConfigError, ImageSizeError
from fastgan.training.config_files import check_text, format_settings, parse_settings
from fastgan.training.model_kinds import MODEL_KINDS, ModelKind
from fastgan.training.optimizer_kinds import OPTIMIZER_KINDS

PAPER_DEFAULTS: Mapping[str, Mapping[str, Any]] = types.MappingProxyType(
    {name: kind.defaults for name, kind in MODEL_KINDS.items()}
)

MODELS = tuple(PAPER_DEFAULTS)

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

# Options that only some models or optimisers read.
_MODELS_OWN = frozenset(name for kind in MODEL_KINDS.values() for name in kind.reads)
_OPTIMIZERS_OWN = frozenset().union(*(kind.reads for kind in OPTIMIZER_KINDS.values()))


# Sixteen times the widest published GANs; far larger sizes overflow.
LARGEST_WIDTH = 16_384
# Likewise for layers: a damaged checkpoint must not build networks for minutes.
LARGEST_DEPTH = 1024


def _option(default: Any, help_text: str, choices: tuple[str, ...] | None = None) -> Any:
    return field(default=default, metadata={"help": help_text, "choices": choices})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The settings of one training run.

    Every field is also a flag of ``fastgan train`` (``batch_size`` is ``--batch-size``). Fields
    that are ``None`` take the default of the model's paper, see :data:`PAPER_DEFAULTS` and
    :meth:`resolved`.

    Raises:
        ConfigError: from :meth:`validate`: a value is out of range or contradicts another.
        ImageSizeError: for an image size that is not a power of two from 16 to 256.

    Example:
        >>> config = TrainConfig(model="wgan", data="digits", out="runs/wgan").resolved()
        >>> config.optimizer, config.lr_d, config.n_critic, config.image_size
        ('rmsprop', 5e-05, 5, 16)
    """

    out: str = _option("", "folder for the run's files")
    model: str = _option("dcgan", "model to train", MODELS)
    data: str = _option("digits", ", ".join(kind.form for kind in DATA_KINDS.values()))
    data_a: str | None = _option(None, "cyclegan and pix2pix: the images of A, as for --data")
    data_b: str | None = _option(
        None,
        "likewise the images of B; pix2pix: of the same file names as those of A they belong to",
    )
    steps: int = _option(5000, "generator updates to train for")
    image_size: int | None = _option(
        None, "side of the square images in pixels, a power of two from 16 to 256"
    )
    channels: int | None = _option(None, "1 or 3 image channels; by default the data's own")
    batch_size: int | None = _option(None, "images per batch")
    seed: int = _option(0, "seed of weights, noise and data order")

    optimizer: str | None = _option(None, "optimiser of both networks", tuple(OPTIMIZER_KINDS))
    lr: float | None = _option(None, "learning rate of both networks")
    lr_g: float | None = _option(None, "learning rate of the generator, if it differs")
    lr_d: float | None = _option(None, "learning rate of the discriminator, if it differs")
    lr_decay: str | None = _option(
        None,
        "linear: the learning rates fall to zero over --steps; half: over the second half of them",
        ("none", "linear", "half"),
    )
    beta1: float | None = _option(None, "first moment's decay (Adam), or momentum (sgd)")
    beta2: float | None = _option(None, "second moment's decay (Adam)")
    weight_decay: float | None = _option(None, "decoupled weight decay (adamw)")

    accumulate: int = _option(
        1, "accumulate gradients over this many parts of a batch, to save memory"
    )

    nz: int = _option(100, "length of the noise vector")
    noise: str | None = _option(None, "distribution of the noise", ("normal", "uniform"))
    nw: int | None = _option(None, "stylegan2: length of the style vectors; by default nz")
    mapping_layers: int = _option(8, "stylegan2: layers from noise to style vectors")
    ngf: int = _option(64, "generator width: channels of its last hidden layer")
    ndf: int = _option(64, "discriminator width: channels of its first layer")
    blocks: int | None = _option(
        None, "cyclegan: residual blocks of a generator; by default 9 from 256 pixels on, else 6"
    )
    critic_norm: str = _option(
        "auto",
        "normalisation in the discriminator or critic, and in pix2pix's generator: auto is none for"
        " wgan-gp, instance for cyclegan and pix2pix, else batch, as in the papers",
        ("auto", "none", "batch", "instance", "layer"),
    )
    conditional: bool = _option(
        False, "condition both networks on the class label (cgan and acgan always do)"
    )
    categories: int = _option(10, "infogan: values of the categorical code, drawn as labels")
    codes: int = _option(2, "infogan: continuous codes, the first numbers of the noise")
    info_weight: float = _option(
        1.0, "infogan: weight of the categorical code's mutual information with images"
    )
    code_weight: float = _option(0.1, "infogan: likewise the continuous codes'")

    projection: bool = _option(
        False,
        "conditional discriminators and critics compare images with an embedding of the label,"
        " instead of taking it as further channels; those of sngan, biggan, stylegan2 and r3gan"
        " always do",
    )

    loss: str = _option(
        "auto",
        "what discriminators descend, by default bce on logits, but as their papers for r3gan"
        " (relativistic), sngan and biggan (hinge); critics have wasserstein",
        ("auto", "bce", "hinge", "least-squares", "relativistic", "wasserstein"),
    )
    n_critic: int | None = _option(None, "critic updates for each generator update")
    critic_schedule: str = _option(
        "constant",
        "original: as the WGAN authors' code, 100 critic updates for each of the first 25 generator"
        " updates and for every 500th",
        ("constant", "original"),
    )
    clip: float = _option(0.01, "wgan: the critic's weights are kept within [-clip, clip]")
    clip_when: str = _option(
        "after",
        "wgan: clip after each critic update (the paper), or before its forward pass (the authors'"
        " code)",
        ("after", "before"),
    )
    gp_weight: float = _option(10.0, "wgan-gp: weight of the gradient penalty")
    r1: float | None = _option(
        None, "gamma of R1: adds gamma / 2 * mean ||grad D(x)||^2 at real images; not for wgan"
    )
    r2: float | None = _option(
        None, "gamma of R2: the same at generated images; not for wgan and stylegan2"
    )
    orthogonal: float | None = _option(
        None, "weight of the generator's orthogonal regularisation (BigGAN's)"
    )
    cycle_weight: float = _option(10.0, "cyclegan: weight of the cycle loss")
    identity_weight: float = _option(
        0.5, "cyclegan: weight of the identity loss, as a factor of the cycle loss's"
    )
    l1_weight: float = _option(100.0, "pix2pix: weight of the L1 loss")
    penalty_every: int | None = _option(
        None,
        "wgan-gp, r1 and r2: penalise only every so many critic updates, by as many times the"
        " weight",
    )
    path_length: float | None = _option(
        None, "stylegan2: weight of the generator's path length penalty; 0 for none"
    )
    path_length_every: int = _option(
        4,
        "stylegan2: penalise path lengths only every so many updates, by as many times the weight",
    )
    path_length_decay: float = _option(
        0.01, "stylegan2: weight of each new path length in the target average"
    )
    path_length_shrink: int = _option(
        2, "stylegan2: factor by which the path lengths' batch is smaller"
    )
    style_mixing: float = _option(
        0.9, "stylegan2: probability that a generated image has the styles of two noise vectors"
    )
    one_stage: bool = _option(
        False,
        "update both players from one pass over the fakes, at the weights before both (Shen et al."
        " 2021)",
    )
    augment: str = _option(
        "none",
        "augment what both players see: some of color,translation,cutout (DiffAugment), or ada, as"
        " often as the discriminator overfits (ADA)",
    )
    ada_target: float = _option(
        0.6,
        "ada: mean sign of the discriminator's scores of real images above which the probability"
        " rises",
    )
    ada_kimg: float = _option(
        500.0, "ada: thousands of images within which the probability can rise from 0 to 1"
    )
    ada_interval: int = _option(
        4, "ada: discriminator updates between two changes of the probability"
    )
    ema_decay: float = _option(
        0.999, "decay of the generator's moving average, used for samples; 0 for none"
    )

    device: str = _option("auto", f"where to train: {DEVICES}")
    precision: str = _option(
        "auto",
        "arithmetic of the convolutions; auto is bf16 where that is fast and shown to train as well"
        " (see docs/training.md), else fp32",
        ("auto", "fp32", "bf16", "fp16"),
    )
    sync_batch_norm: bool = _option(
        False, "several processes: batch norm takes its statistics from the whole batch"
    )
    graphs: bool = _option(True, "on CUDA: replay whole steps as CUDA graphs")
    workers: int | None = _option(None, "data loading processes; by default automatic")

    log_every: int = _option(25, "generator updates between two rows of metrics.csv")
    sample_every: int = _option(500, "generator updates between two sample grids")
    checkpoint_every: int = _option(1000, "generator updates between two checkpoints")
    evaluate_every: int = _option(
        0,
        "generator updates between two evaluations, in evaluations.json; best.pt is the checkpoint"
        " with the smallest Fréchet distance; 0 for none",
    )
    evaluate_features: str | None = _option(
        None,
        "where those evaluations measure: torchscript:FILE, inception:FILE or random-conv; by"
        " default as fastgan evaluate",
    )
    keep_checkpoints: int = _option(2, "number of newest checkpoints to keep")
    n_samples: int = _option(64, "images in a sample grid")
    logger: str = _option(
        "none",
        "where else metrics and grids go; the extra of that name brings it, and its own environment"
        " variables set it up",
        ("none", "wandb", "trackio", "mlflow"),
    )
    profile: bool = _option(False, "trace a few steps and write where their time goes")
    minutes: float | None = _option(
        None,
        "about how long the run may take: its speed is measured first, and what doesn't fit is"
        " taken off --steps, so that learning rates still fall to their end",
    )
    max_minutes: float | None = _option(
        None, "stop, as if interrupted, after this many minutes of training"
    )

    def __post_init__(self) -> None:
        if isinstance(self.out, os.PathLike):
            object.__setattr__(self, "out", os.fspath(self.out))

    def resolved(self) -> TrainConfig:
        """This configuration with every ``None`` replaced by its default, and validated."""
        self.validate()  # what follows looks values up
        paper = {**COMMON_DEFAULTS, **PAPER_DEFAULTS[self.model]}
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
        for option in dataclasses.fields(self):
            value = getattr(self, option.name)
            choices = option.metadata["choices"]
            _check_type(option.name, value)
            if value is None:
                continue
            if choices and value not in choices:
                raise ConfigError(
                    f"{option.name}: expected one of {', '.join(choices)}, got {value!r}"
                )
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"{option.name}: expected a finite number, got {value}")
            if isinstance(value, str):
                if "\0" in value:
                    raise ConfigError(f"{option.name}: expected text without NUL, got {value!r}")
                check_text(option.name, value)  # before a folder is made
        self._require_at_least(
            1,
            ("steps", "batch_size", "nz", "ngf", "ndf", "n_critic", "log_every"),
            ("sample_every", "checkpoint_every", "keep_checkpoints", "n_samples"),
            ("accumulate", "penalty_every", "ada_interval", "blocks", "nw", "mapping_layers"),
            ("path_length_every", "path_length_shrink", "categories"),
        )
        widths = dict.fromkeys(("nz", "ngf", "ndf", "nw", "categories"), LARGEST_WIDTH)
        depths = dict.fromkeys(("mapping_layers", "blocks"), LARGEST_DEPTH)
        for name, largest in (widths | depths).items():
            if (getattr(self, name) or 0) > largest:
                raise ConfigError(f"{name}: expected at most {largest}, got {getattr(self, name)}")
        self._require_at_least(
            0,
            ("seed", "workers", "gp_weight", "r1", "r2", "orthogonal", "evaluate_every"),
            ("cycle_weight", "identity_weight", "l1_weight", "path_length", "weight_decay"),
            ("codes", "info_weight", "code_weight"),
        )
        if self.kind.draws_labels and self.codes > self.nz:
            raise ConfigError(f"codes: expected at most nz, {self.nz}, got {self.codes}")
        for name in ("path_length_decay", "style_mixing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(
                    f"{name}: expected a number from 0 to 1, got {getattr(self, name)}"
                )
        self._refuse_what_makes_no_sense()
        check_device_name(self.device)
        for name in ("lr", "lr_g", "lr_d", "clip", "ada_kimg", "minutes", "max_minutes"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{name}: expected a number above 0, got {value}")
        for name in ("beta1", "beta2", "ema_decay"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ConfigError(f"{name}: expected a number from 0 to below 1, got {value}")
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
        if not -1 <= self.ada_target <= 1:
            raise ConfigError(
                f"ada_target: expected a mean of signs, from -1 to 1, got {self.ada_target}"
            )
        if self.loss != "auto" and (self.loss == "wasserstein") != self.is_wasserstein:
            raise ConfigError(
                f"loss: {self.model} has {'critics' if self.is_wasserstein else 'discriminators'},"
                f" which {self.loss} is not for"
            )
        for name in ("r1", "r2"):
            if getattr(self, name) and self.model == "wgan":
                raise ConfigError(
                    f"{name}: wgan clips its critic's weights instead of penalising gradients;"
                    f" expected 0, or another model, got {getattr(self, name)}"
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
            needed = "sync_batch_norm: has no second derivative, which "
            if self.model == "wgan-gp" and self.critic_norm == "batch":
                raise ConfigError(
                    f"{needed}wgan-gp takes of its critic; expected another critic_norm than batch"
                )
            if self.model in ("dcgan", "cgan") and self.critic_norm in ("auto", "batch"):
                raise ConfigError(
                    f"{needed}r1 and r2 take of a discriminator with batch norm; expected r1 and r2"
                    " to be 0, or another critic_norm"
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
        return self.model == "wgan-gp" or bool(self.r1) or bool(self.r2)

    def ignored(self, names: Iterable[str]) -> list[str]:
        """Those of the given fields that neither the model nor the optimiser reads."""
        return [
            name
            for name in sorted(names)
            if (
                name in _MODELS_OWN
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
        if (
            isinstance(values, Mapping)
            and "orthogonal" not in values
            and values.get("model") in ("dcgan", "cgan")
        ):
            # Older releases ignored it, and used batch norm.
            values = {**values, "critic_norm": "auto"}
        return cls.from_dict(values).resolved()

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

    def _require_at_least(self, minimum: int, *groups: tuple[str, ...]) -> None:
        for name in (name for group in groups for name in group):
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise ConfigError(f"{name}: expected at least {minimum}, got {value}")


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
