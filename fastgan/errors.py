"""The errors fastgan raises on purpose.

Where torch or Python has its own type for the same mistake (a wrong image size is a
``ValueError``, a wrong dtype a ``TypeError``), the class here also derives from that type,
so that both ``except fastgan.FastganError`` and ``except ValueError`` catch it. The command
line turns each into one line on stderr and exit code 2.
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
    r"""``text`` with every character that isn't printable escaped, newlines as well.

    File names, class names and the fields of a file are others' text: raw, an escape sequence in
    it could move the cursor, rename the window or hide what was said before.

    Example:
        >>> print(printable("cat\x1b[2J"))
        cat\x1b[2J
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


class FastganError(Exception):
    """Base class of every error fastgan raises on purpose.

    Attributes:
        said_elsewhere: whether another process of the run fails with the same words, and says them.
        exit_code: of the command line.
    """

    said_elsewhere = False
    exit_code = 2

    def __str__(self) -> str:
        # Messages quote what files say. Lines of our own stay lines.
        return "\n".join(map(printable, super().__str__().split("\n")))


class ConfigError(FastganError, ValueError):
    """A setting is out of range or contradicts another; the message names it."""


class ImageSizeError(FastganError, ValueError):
    """An image size, channel count or rank a model does not take."""


class DataError(FastganError, ValueError):
    """Data that is missing, corrupt or of the wrong kind; the message names the file."""


class DataWarning(UserWarning):
    """Part of the data is left out; the message says what, how much, and why."""


class CheckpointError(FastganError, ValueError):
    """A checkpoint that is missing, truncated, of another model, or that hides code."""


class OutputError(FastganError, OSError):
    """A place for results that can't be written, or that already holds other results."""


class LabelError(FastganError, ValueError):
    """Class labels that are missing, not wanted, or of the wrong shape, dtype or range."""


class UnsupportedCriticError(FastganError, ValueError):
    """A critic that the asked-for pass can't take; the message names the layer or the output."""


class DtypeError(FastganError, TypeError):
    """A tensor of a dtype that the operation does not take."""


class NativeLibraryError(FastganError, ImportError):
    """The compiled part is there but can't be used; the message says why and what to do."""
