"""Libraries that only an extra of fastgan brings."""

from __future__ import annotations

import importlib.util

from fastgan.errors import ConfigError

__all__ = ["require"]


def require(package: str, extra: str) -> None:
    """Raises a ConfigError that says how to install a package, if it isn't."""
    spec = importlib.util.find_spec(package)
    # A folder of that name in the working directory, as W&B makes one, has no origin.
    if spec is None or spec.origin is None:
        raise ConfigError(f"{package} isn't installed: pip install 'fastgan[{extra}]'")
