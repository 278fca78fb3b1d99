"""Optional dependencies."""

from __future__ import annotations

import importlib.util

from fastgan.errors import ConfigError


def require(package: str, extra: str) -> None:
    """Raises a ConfigError with installation instructions if a package is missing."""
    spec = importlib.util.find_spec(package)
    # A folder of that name in the working directory, such as W&B's, has no origin.
    if spec is None or spec.origin is None:
        raise ConfigError(f"{package} isn't installed: pip install 'fastgan[{extra}]'")
