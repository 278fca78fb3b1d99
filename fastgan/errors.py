"""The errors fastgan raises on purpose.

If torch or Python has its own type for a mistake (a wrong image size is a ``ValueError``, a wrong
dtype a ``TypeError``), the class here also derives from it, so that both ``except
fastgan.FastganError`` and ``except ValueError`` catch it. The command line turns each into one line
on stderr and exit code 2.
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DataWarning",
    "DtypeError",
    "FastganError",
    "ImageSizeError",
    "LabelError",
    "NativeLibraryError",
    "OutputError",
    "UnsupportedCriticError",
    "printable",
]


def printable(text: str) -> str:
    r"""``text`` with unprintable characters and newlines escaped.

    File names, class names and fields of files come from outside: an escape sequence could move the
    cursor, rename the window or hide earlier output.

    Example:
        >>> print(printable("cat\x1b[2J"))
        cat\x1b[2J
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


class FastganError(Exception):
    """Base class of every error fastgan raises on purpose.

    Attributes:
        said_elsewhere: whether another process of the run reports the same error.
        exit_code: of the command line.
    """

    said_elsewhere = False
    exit_code = 2

    def __str__(self) -> str:
        # Messages quote files, so escape them; keep our own newlines.
        return "\n".join(map(printable, super().__str__().split("\n")))


class ConfigError(FastganError, ValueError):
    """A setting is out of range or contradicts another; the message names it."""


class ImageSizeError(FastganError, ValueError):
    """An image size, channel count or rank that a model doesn't accept."""


class DataError(FastganError, ValueError):
    """Data that is missing, corrupt or of the wrong kind; the message names the file."""


class DataWarning(UserWarning):
    """Part of the data is left out; the message says what, how much, and why."""


class CheckpointError(FastganError, ValueError):
    """A checkpoint that is missing, truncated, of another model, or contains code."""


class OutputError(FastganError, OSError):
    """A place for results that can't be written or already has other results."""


class LabelError(FastganError, ValueError):
    """Class labels that are missing, unexpected, or of the wrong shape, dtype or range."""


class UnsupportedCriticError(FastganError, ValueError):
    """A critic that the requested path doesn't support; the message names the layer or the
    output."""


class DtypeError(FastganError, TypeError):
    """A tensor of a dtype that the operation doesn't support."""


class NativeLibraryError(FastganError, ImportError):
    """The compiled part exists but can't be used; the message says why and what to do."""
