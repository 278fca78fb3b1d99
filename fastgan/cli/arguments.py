"""Every command's arguments. Nothing here imports torch, so help and errors appear at once."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import typing
from collections.abc import Callable, Sequence
from types import NoneType
from typing import Any, NoReturn

from fastgan._util.devices import DEVICES
from fastgan._version import __version__
from fastgan.bench.suites import SUITES
from fastgan.errors import ConfigError, printable
from fastgan.training.config import COMMON_DEFAULTS, TrainConfig
from fastgan.training.config_files import read_settings
from fastgan.training.model_kinds import MODEL_KINDS, ModelSettings

EXPORT_FORMATS = ("onnx", "torch-export", "safetensors")

#: Each sample's neighbourhood reaches to its fifth neighbour, as in Naeem et al. 2020.
NEIGHBOURS = 5

#: The settings that determine a run's convolutions.
TUNED = (
    *("model", "image_size", "channels", "batch_size", "accumulate"),
    *("nz", "ngf", "ndf", "critic_norm", "conditional", "projection"),
    *(setting.name for setting in dataclasses.fields(ModelSettings)),
    *("loss", "n_critic", "r1", "r2", "penalty_every", "one_stage", "device", "precision"),
)

_GROUPS = {
    "out": "model and data",
    "optimizer": "optimisers",
    "nz": "networks",
    "loss": "training",
    "device": "machine",
    "log_every": "output",
    "nw": "single models",
}


class _Parser(argparse.ArgumentParser):
    """An argument parser with one-line errors.

    No abbreviations: a flag added later would break the scripts that use them.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {printable(message)} (see {self.prog} --help)\n")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses a command line; a mistake in it ends the process with one line and exit code 2.

    Returns:
        The command's arguments, its name as ``command``.

    Raises:
        ConfigError: a setting of ``train`` that is out of range or contradicts another.
    """
    parser = _Parser(
        prog="fastgan",
        description="Train convolutional GANs fast, sample from them, and evaluate the samples",
        epilog="Start with: fastgan train --model dcgan --out runs/first",
    )
    parser.add_argument("--version", action="version", version=f"fastgan {__version__}")
    commands = parser.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", required=True
    )
    for add in (
        *(_add_train, _add_sample, _add_translate, _add_interpolate, _add_export, _add_evaluate),
        *(_add_play, _add_check, _add_bench, _add_tune, _add_doctor),
    ):
        add(commands)
    options = parser.parse_args(arguments)
    # A resumed run has further settings, and only one of several processes may complain.
    if options.command == "train" and not options.resume and "RANK" not in os.environ:
        config = TrainConfig(**train_settings(options))
        config.folder()
        config.validate()
    return options


def train_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The settings of ``train``, from its flags and the file of ``--config``.

    Raises:
        ConfigError: the file can't be read, isn't TOML, or has a wrong name or type.
    """
    given: dict[str, Any] = {}
    if options.config is not None:
        given = read_settings(options.config)
        try:
            TrainConfig.from_dict(given)
        except ConfigError as error:
            raise ConfigError(f"{options.config}: {error}") from error
    names = {option.name for option in dataclasses.fields(TrainConfig)}
    return given | {name: value for name, value in vars(options).items() if name in names}


def _add_train(commands: Any) -> None:
    parser = commands.add_parser(
        "train",
        help="train a GAN",
        description="Train a GAN. Unset options take the defaults of the model's paper.",
        argument_default=argparse.SUPPRESS,
    )
    _add_settings(parser, [option.name for option in dataclasses.fields(TrainConfig)])


def _add_settings(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """Adds a flag for each of these fields of :class:`TrainConfig`."""
    hints = typing.get_type_hints(TrainConfig)
    group: Any = parser
    for option in dataclasses.fields(TrainConfig):
        if option.name not in names:
            continue
        if option.name in _GROUPS:
            group = parser.add_argument_group(_GROUPS[option.name])
        flag = "--" + option.name.replace("_", "-")
        text = option.metadata["help"]
        text += _default(option)
        kinds = [kind for kind in typing.get_args(hints[option.name]) if kind is not NoneType]
        kind = kinds[0] if kinds else hints[option.name]
        if kind is bool:
            group.add_argument(
                flag, dest=option.name, action=argparse.BooleanOptionalAction, help=text
            )
            continue
        group.add_argument(
            flag,
            dest=option.name,
            type=kind,
            choices=option.metadata["choices"],
            metavar={"out": "DIR", **dict.fromkeys(("data", "data_a", "data_b"), "SOURCE")}.get(
                option.name,
                None if option.metadata["choices"] else {int: "N", float: "X"}.get(kind),
            ),
            help=text,
        )
        if option.name == "out":
            group.add_argument(
                "--resume",
                action="store_true",
                default=False,
                help="continue the run in --out from its newest checkpoint, or from the start if"
                " it has none yet",
            )
            group.add_argument(
                "--config",
                metavar="FILE",
                default=None,
                help="a TOML file with settings by their names; flags override it",
            )


def _default(setting: dataclasses.Field[Any]) -> str:
    """A setting's default for the help, which may depend on the model."""
    papers = {
        model: {**COMMON_DEFAULTS, **kind.defaults}[setting.name]
        for model, kind in MODEL_KINDS.items()
        if setting.name in kind.defaults or setting.name in COMMON_DEFAULTS
    }
    if papers and setting.default is None:
        common = max(papers.values(), key=list(papers.values()).count)
        others = [f"{model} {value}" for model, value in papers.items() if value != common]
        return f" (default {', '.join([str(common), *others])})"
    if isinstance(setting.default, bool):
        return f" (default {'on' if setting.default else 'off'})"
    return "" if setting.default in (None, "") else f" (default {setting.default})"


def _add_sample(commands: Any) -> None:
    parser = commands.add_parser(
        "sample", help="sample from a checkpoint", description="Draw a grid of images."
    )
    _add_checkpoint(parser)
    parser.add_argument("--out", metavar="FILE.png", help="file for a grid")
    parser.add_argument(
        "--to",
        metavar="DIR|FILE.npz",
        help="write single images: PNGs in a new folder, with a subfolder per class, or one array",
    )
    parser.add_argument(
        "--n",
        type=_at_least(1),
        metavar="N",
        help="images (default 64, or about 64 in whole rows of a grid with classes)",
    )
    _add_sampling(parser)
    _add_device(parser)
    parser.add_argument(
        "--class",
        dest="label",
        metavar="NAME|K",
        help="of a conditional model; by default all classes, in a grid with columns for each",
    )
    parser.add_argument(
        "--style-mixing",
        type=_rows_and_columns,
        metavar="ROWSxCOLUMNS",
        help="of stylegan2: write a sheet instead, each image with the coarse styles of the sample"
        " on its left and the fine ones of the sample on top",
    )
    parser.add_argument(
        "--code-walk",
        type=_at_least(0),
        metavar="K",
        help="of infogan: write a sheet instead, a row a category, in which the continuous code K"
        " goes from -2 to 2",
    )


def _add_translate(commands: Any) -> None:
    parser = commands.add_parser(
        "translate",
        help="translate images by a checkpoint of cyclegan or pix2pix",
        description="Writes an image of the same name for each image, cut to a square and resized"
        " to the size of training; a PNG, or a JPEG of a JPEG.",
    )
    _add_checkpoint(parser)
    parser.add_argument(
        "--data",
        required=True,
        nargs="+",
        metavar="folder:DIR|FILE",
        help="images to translate",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="a new or empty folder")
    parser.add_argument(
        "--direction",
        choices=("a2b", "b2a"),
        default="a2b",
        help="from A to B, or of cyclegan also back (default a2b)",
    )
    _add_device(parser)


def _add_interpolate(commands: Any) -> None:
    parser = commands.add_parser(
        "interpolate",
        help="morph between samples",
        description="Morph between samples along great circles of the latent space; writes a GIF"
        " that loops, and beside it a PNG strip.",
    )
    _add_checkpoint(parser)
    parser.add_argument(
        "--out",
        required=True,
        metavar="FILE.gif|FILE.mp4",
        help="the animation to write; MP4 needs imageio with ffmpeg",
    )
    parser.add_argument(
        "--stops", type=_at_least(2), default=6, metavar="N", help="samples on the way (default 6)"
    )
    parser.add_argument(
        "--frames",
        type=_at_least(1),
        default=12,
        metavar="N",
        help="frames between two (default 12)",
    )
    _add_sampling(parser)
    _add_device(parser)
    parser.add_argument(
        "--class", dest="label", metavar="NAME|K", help="of a conditional model (default 0)"
    )


def _add_play(commands: Any) -> None:
    parser = commands.add_parser(
        "play",
        help="explore a checkpoint's samples in a browser",
        description="Serve a page on this machine, for this machine alone: truncation, class, and"
        " two seeds to walk between. Needs fastgan[play]; nothing is sent anywhere.",
    )
    _add_checkpoint(parser)
    parser.add_argument(
        "--port",
        type=_at_least(1),
        metavar="N",
        help="of the page's address (default the first free one from 7860 on)",
    )
    _add_device(parser)


def _add_export(commands: Any) -> None:
    parser = commands.add_parser(
        "export",
        help="export a generator for other programs",
        description="Write a generator as ONNX or torch.export, a function of noise (N, nz), and"
        " labels (N,) if it is conditional, or its weights as safetensors, which"
        " fastgan.load_generator reads too. What was written is run and compared.",
    )
    _add_checkpoint(parser)
    parser.add_argument("--format", required=True, choices=EXPORT_FORMATS, help="of the file")
    parser.add_argument("--out", required=True, metavar="FILE", help="the file to write")
    _add_truncation(parser, "in the file: draw as from noise within [-T, T]; not for safetensors")


def _add_evaluate(commands: Any) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="measure a checkpoint's samples against data",
        description="Precision, recall, density, coverage and a Fréchet distance in a named"
        " feature space; for labelled data also a classifier's view of the samples.",
    )
    _add_checkpoint(parser)
    parser.add_argument(
        "--data", metavar="SOURCE", help="as for fastgan train; by default the training data"
    )
    parser.add_argument(
        "--data-a",
        metavar="SOURCE",
        help="of cyclegan and pix2pix: images of A, whose translations are compared with --data-b",
    )
    parser.add_argument("--data-b", metavar="SOURCE", help="likewise the images of B")
    parser.add_argument(
        "--n",
        type=_at_least(NEIGHBOURS + 1),
        default=1000,
        metavar="N",
        help="samples to draw (default 1000)",
    )
    _add_sampling(parser)
    parser.add_argument(
        "--features",
        metavar="FILE",
        help="a TorchScript feature extractor to measure in (a program: use only files you trust)",
    )
    parser.add_argument(
        "--inception",
        metavar="FILE",
        help="torch-fidelity's Inception weights: the Fréchet distance is FID, the kernel distance"
        " KID (needs fastgan[fid])",
    )
    _add_device(parser)
    parser.add_argument("--json", metavar="FILE", help="also write the figures to this file")


def _add_bench(commands: Any) -> None:
    parser = commands.add_parser(
        "bench",
        help="time fastgan against eager PyTorch and torch.compile on this machine",
        description="Times every case in turns with its peers, and writes results.json,"
        " results.csv, plots and index.html. Exits with 1 if --compare finds a regression.",
    )
    parser.add_argument(
        "--suite", choices=(*SUITES, "all"), default="all", help="suite to measure (default all)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer shapes and rounds: minutes on two cores"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the results")
    parser.add_argument(
        "--compare", metavar="OLD.json", help="an earlier results.json, to find regressions"
    )
    _add_device(parser)
    parser.add_argument(
        "--threads",
        type=_at_least(1),
        metavar="N",
        help="torch's threads; its own choice by default",
    )
    parser.add_argument(
        "--only",
        metavar="TEXT",
        nargs="+",
        help="only cases whose name, as in the table, contains one of these",
    )
    parser.add_argument(
        "--max-minutes",
        type=_above_zero,
        metavar="M",
        help="about how long all may take: cases that don't fit are left out, with a note; below 5"
        " minutes so are torch.compile and peak memory (default 9 with --quick)",
    )
    parser.add_argument(
        "--no-compile", action="store_true", help="leave torch.compile out: compiling takes longest"
    )


def _add_tune(commands: Any) -> None:
    parser = commands.add_parser(
        "tune",
        help="measure which convolution backends are the fastest for a model on this machine",
        description="Runs two steps of training on noise, and times every backend for every"
        " convolution in them at length. What is the fastest is kept for all later programs in"
        " FASTGAN_CACHE_DIR, and shown.",
        argument_default=argparse.SUPPRESS,
    )
    _add_settings(parser, TUNED)
    parser.add_argument(
        "--table",
        metavar="FILE",
        default=None,
        help="also add the choices to a table for all machines with this device",
    )


def _add_check(commands: Any) -> None:
    check = commands.add_parser(
        "check",
        help="verify a run's checkpoints, settings and metrics",
        description="Reads every checkpoint of a run, compares its digest, and fits its weights to"
        " the model it names. Exits with 1 if a file is damaged.",
    )
    check.add_argument("run", metavar="RUN", help="a run's folder, or one checkpoint-*.pt")


def _add_doctor(commands: Any) -> None:
    commands.add_parser(
        "doctor",
        help="show what this machine and this build can run, and test it",
        description="Versions, what the build contains, and a quick numerical check of every path"
        " that this machine can use. Exits with 1 if a check fails.",
    )


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Adds the checkpoint and the choice between its generators."""
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="a checkpoint-*.pt, or a run's folder for its newest",
    )
    parser.add_argument(
        "--no-ema",
        action="store_true",
        help="use the last weights instead of their moving average",
    )


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    """Adds the noise's options."""
    parser.add_argument(
        "--seed", type=_seed, default=0, metavar="N", help="of the noise (default 0)"
    )
    _add_truncation(
        parser,
        "draw noise again until within [-T, T], of stylegan2 contract styles to their average by T:"
        " more typical, less varied images",
    )
    parser.add_argument(
        "--standing-statistics",
        action="store_true",
        help="take batch norms' statistics from noise that is truncated so, not from training",
    )


def _add_truncation(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--truncation", type=float, metavar="T", help=text)


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help=f"where: {DEVICES} (default auto)")


def _at_least(minimum: int) -> Callable[[str], int]:
    """An argparse type: a whole number of at least ``bound``."""

    def parse(text: str) -> int:
        value = _whole_number(text)
        if value < minimum:
            raise argparse.ArgumentTypeError(f"expected at least {minimum}, got {value}")
        return value

    return parse


def _rows_and_columns(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d?)x([1-9]\d?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected two numbers from 1 to 99, as 3x6, got {text!r}")
    return int(match[1]), int(match[2])


def _above_zero(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}") from None
    if not value > 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {value}")
    return value


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from None


def _seed(text: str) -> int:
    value = _whole_number(text)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"expected 0 to 2**63 - 1, got {value}")
    return value
