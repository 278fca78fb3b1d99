"""Safe reading of files from outside: any problem becomes one line of error message.

Two rules apply to every such file. It is parsed inside :func:`parsing`, which turns any parser's
error into the caller's; and its text is shown through :func:`printable`, which escapes control
characters.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastgan.errors import FastganError, printable

__all__ = ["MAX_TEXT_BYTES", "one_line", "parsing", "printable", "read_text"]

MAX_TEXT_BYTES = 2**26
"""Most bytes of a settings, metrics or result file; ours are a thousand times smaller."""

# Longest foreign message: enough to name the problem, too short to fill a terminal.
_LONGEST = 300


def one_line(error: BaseException) -> str:
    """An error's message, printable and on one line; its type's name if it is empty.

    Example:
        >>> one_line(ValueError("two" + chr(10) + chr(27) + "[31mlines"))
        'two \\\\x1b[31mlines'
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = printable(" ".join(str(error).split()))
    if len(text) > _LONGEST:
        text = text[:_LONGEST] + "..."
    return text or type(error).__name__


@contextmanager
def parsing(what: str | os.PathLike[str], kind: type[FastganError]) -> Iterator[None]:
    """Turns any error in the block into ``kind``, in one line that names ``what``.

    A parser may raise nearly anything on unexpected bytes: a ``RecursionError``, a ``MemoryError``,
    a ``TypeError`` for an unhashable key. Fastgan's own errors pass through.

    Args:
        what: the beginning of the message: the file, and that it can't be read.
        kind: the error to raise.

    Raises:
        FastganError: of that kind.

    Example:
        >>> from fastgan.errors import DataError
        >>> with parsing("a.npz: can't be read", DataError):
        ...     {}[[]]
        Traceback (most recent call last):
        fastgan.errors.DataError: a.npz: can't be read: TypeError: unhashable type: 'list'
    """
    try:
        yield
    except FastganError:
        raise
    except MemoryError as error:
        raise kind(f"{os.fspath(what)}: too large for this machine's memory") from error
    except (OSError, ValueError) as error:
        raise kind(f"{os.fspath(what)}: {one_line(error)}") from error
    except Exception as error:
        name, text = type(error).__name__, one_line(error)
        raise kind(f"{os.fspath(what)}: {name if text == name else f'{name}: {text}'}") from error


def read_text(path: str | os.PathLike[str], kind: type[FastganError]) -> str:
    """The UTF-8 text of a file of at most :data:`MAX_TEXT_BYTES`.

    Raises:
        FastganError: of that ``kind``: missing, no regular file, too large, or other than UTF-8.
    """
    with parsing(f"{os.fspath(path)}: can't be read", kind):
        if "\0" in os.fspath(path):
            raise kind(f"{os.fspath(path)}: no file has such a name")
        # Checked after opening: it might be a pipe or an endless device.
        if Path(path).exists() and not Path(path).is_file():
            raise kind(f"{os.fspath(path)}: can't be read: is not a regular file")
        with open(path, "rb") as file:
            content = file.read(MAX_TEXT_BYTES + 1)
        if len(content) > MAX_TEXT_BYTES:
            raise kind(f"{os.fspath(path)}: expected at most {MAX_TEXT_BYTES} bytes of text")
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise kind(f"{os.fspath(path)}: can't be read: is not UTF-8 text") from error
