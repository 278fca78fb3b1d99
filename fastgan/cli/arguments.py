"""Arguments that several commands share."""

from __future__ import annotations

import argparse

from fastgan.errors import ConfigError

__all__ = ["add_checkpoint", "add_sampling", "positive", "require_class"]


def positive(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    value = _whole_number(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {value}")
    return value


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Adds the checkpoint to read and which of its generators to take."""
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


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Adds how the noise is drawn."""
    parser.add_argument(
        "--seed", type=_seed, default=0, metavar="N", help="of the noise (default 0)"
    )
    parser.add_argument(
        "--truncation",
        type=float,
        metavar="T",
        help="draw noise again until within [-T, T]: more typical, less varied images",
    )


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


def require_class(label: int | None, num_classes: int | None) -> None:
    """Refuses a class that the model doesn't have."""
    if label is None:
        return
    if num_classes is None:
        raise ConfigError("class: this checkpoint's model is not conditional")
    if not 0 <= label < num_classes:
        raise ConfigError(f"class: expected 0 to {num_classes - 1}, got {label}")
