"""What a setting's field says of itself: its help text, choices and bounds."""

from __future__ import annotations

import operator
from collections.abc import Collection
from dataclasses import Field, field
from typing import Any

from fastgan.errors import ConfigError

# Sixteen times the widest published GANs; far larger sizes overflow.
LARGEST_WIDTH = 16_384
# Likewise for layers: a damaged checkpoint must not build networks for minutes.
LARGEST_DEPTH = 1024

_BOUNDS = {
    "at_least": operator.ge,
    "above": operator.gt,
    "at_most": operator.le,
    "below": operator.lt,
}


def option(
    default: Any, help_text: str, choices: Collection[str] | None = None, **bounds: float
) -> Any:
    """A setting's field. Bounds are ``at_least``, ``above``, ``at_most`` and ``below``."""
    return field(default=default, metadata={"help": help_text, "choices": choices, **bounds})


def check_bounds(setting: Field[Any], value: float) -> None:
    """Raises :class:`ConfigError` if a number is out of its field's bounds."""
    for name, holds in _BOUNDS.items():
        if name in setting.metadata and not holds(value, setting.metadata[name]):
            raise ConfigError(
                f"{setting.name}: expected {name.replace('_', ' ')} {setting.metadata[name]},"
                f" got {value}"
            )
