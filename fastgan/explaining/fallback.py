"""Warns about each reason for a fallback once."""

from __future__ import annotations

import warnings

_seen: set[str] = set()


class FallbackWarning(UserWarning):
    """An operation took a slower path than intended; the message says why."""


def warn_once(reason: str, *, stacklevel: int = 2) -> None:
    """Warns with `reason`, once per process.

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
