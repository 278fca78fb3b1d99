"""Safe writing to standard output and error, which may be closed, full or gone."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from fastgan.errors import printable


class Output:
    """A standard stream that survives the loss of its reader.

    Args:
        stream: the stream, or ``None`` if the process was started without it.
        number: its usual file descriptor.
        quiet: drop output that can't be written, instead of raising ``OSError``.

    Attributes:
        lost: the first error of writing, or ``None``.
    """

    def __init__(self, stream: IO[str] | None, number: int, *, quiet: bool) -> None:
        self._stream = stream
        self._number = number
        self.quiet = quiet
        self.lost: Exception | None = None
        if stream is not None and hasattr(stream, "reconfigure"):
            # A cluster's locale may be ASCII: other characters are escaped.
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes, if there is a reader."""
        self._try("write", text)
        return len(text)

    def flush(self) -> None:
        """Flushes, likewise."""
        self._try("flush")

    def isatty(self) -> bool:
        """Whether it is a terminal that still exists."""
        return self._stream is not None and self.lost is None and self._stream.isatty()

    def _try(self, method: str, *arguments: str) -> None:
        if self._stream is None or self.lost is not None:
            return
        try:
            getattr(self._stream, method)(*arguments)
        except (OSError, ValueError) as error:  # ValueError: closed
            self.lost = error
            # Python would try again at exit to write the buffer's content.
            with suppress(OSError, ValueError, AttributeError):
                if self._stream.fileno() == self._number:
                    os.dup2(os.open(os.devnull, os.O_WRONLY), self._number)
            if not self.quiet:
                raise


@contextmanager
def standard_streams() -> Iterator[tuple[Output, Output]]:
    """Replaces ``sys.stdout`` and ``sys.stderr`` by streams that may be lost.

    Yields:
        Both; standard output raises errors until it is set to ``quiet``.
    """
    for number in (0, 1, 2):
        # A later file would get a closed stream's descriptor, and its output.
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_RDWR), number)
    before = sys.stdout, sys.stderr
    output = Output(sys.stdout, 1, quiet=False)
    errors = Output(sys.stderr, 2, quiet=True)
    sys.stdout, sys.stderr = output, errors
    try:
        yield output, errors
    finally:
        sys.stdout, sys.stderr = before


def say(text: str, *, error: bool = False) -> None:
    """Prints lines, escaped, optionally on standard error."""
    lines = "\n".join(map(printable, text.split("\n")))
    print(lines, file=sys.stderr if error else sys.stdout, flush=True)


@contextmanager
def ended_by_interrupts() -> Iterator[None]:
    """Lets Ctrl-C end the process immediately: there is nothing to clean up yet.

    An exception within torch's imports may become any other, or be lost.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
