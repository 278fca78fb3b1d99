"""Fallbacks are never silent: one warning per reason, the first time it happens."""

from __future__ import annotations

import warnings

__all__ = ["FallbackWarning", "warn_once"]

_seen: set[str] = set()


class FallbackWarning(UserWarning):
    """An operation took a slower path than the one it was written for; the message says why."""


def warn_once(reason: str, *, stacklevel: int = 2) -> None:
    """Warns with `reason`, unless this process has done so already.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     for _ in range(3):
        ...         warn_once("an example: the moon is full")
        >>> [str(warning.message) for warning in caught]
        ['an example: the moon is full']
    """
    if reason in _seen:
        return
    _seen.add(reason)
    warnings.warn(reason, FallbackWarning, stacklevel=stacklevel + 1)
