"""A run's settings as a TOML file, written by ``train`` and read back by ``train --config``.

The file is flat: a line ``name = value`` for each field of :class:`fastgan.training.TrainConfig`,
with TOML's syntax (https://toml.io/en/v1.0.0). TOML has no null, so a field that is ``None`` is
left out, and missing fields take their defaults.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from fastgan._util.reading import one_line, parsing, read_text
from fastgan.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def format_settings(settings: Mapping[str, Any]) -> str:
    r"""Plain values (strings, whole numbers, floats, booleans) as TOML, without ``None``.

    Raises:
        ConfigError: a value of another kind, or text that UTF-8 can't hold.

    Example:
        >>> print(format_settings({"out": 'a "b"', "steps": 3, "lr": 1e-4, "nz": None}).strip())
        out = "a \"b\""
        steps = 3
        lr = 0.0001
    """
    return "".join(
        f"{name} = {_formatted(name, value)}\n"
        for name, value in settings.items()
        if value is not None
    )


_MOST_DOTS = 2000


def parse_settings(text: str) -> dict[str, Any]:
    """The inverse of :func:`format_settings`.

    Raises:
        ConfigError: for text that isn't TOML.

    Example:
        >>> parse_settings('model = "wgan"  # as in the paper')
        {'model': 'wgan'}
    """
    with parsing("config: can't be read", ConfigError):
        # Settings are flat, and tomllib needs quadratic time for dotted keys.
        if text.count(".") > _MOST_DOTS:
            raise ConfigError(f"config: more than {_MOST_DOTS} dots; expected flat settings")
        try:
            settings: dict[str, Any] = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"config: expected TOML, got: {one_line(error)}") from error
    return settings


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A settings file's unchecked names and values.

    Raises:
        ConfigError: a file that can't be read, or isn't TOML.
    """
    text = read_text(path, ConfigError)
    try:
        return parse_settings(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {str(error).removeprefix('config: ')}") from error


def _formatted(name: str, value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if not isinstance(value, str):
        raise ConfigError(f"{name}: expected text, a number or a truth value, got {value!r}")
    check_text(name, value)
    return '"' + "".join(map(_escaped, value)) + '"'


def check_text(name: str, value: str) -> None:
    """Refuses text that UTF-8 can't encode, such as a path with undecodable bytes.

    Raises:
        ConfigError: naming the setting.
    """
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{name}: expected text that UTF-8 can hold, got {value!r}") from error


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x20 or code == 0x7F else character
