"""Runs the command line: the entry point of ``fastgan`` and of ``python -m fastgan``."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """Runs one command; Ctrl-C during imports ends the process silently.

    The same holds from the first lines of ``fastgan/__init__.py`` on, and during Python's exit.

    Returns:
        The exit code.
    """
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if not ignored:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from fastgan.cli import main as run_command

    if not ignored:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return run_command()
    finally:
        if not ignored:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())
