"""Runs the command line: the entry point of ``fastgan`` and of ``python -m fastgan``."""

from __future__ import annotations

import signal
import sys

__all__ = ["main"]


def main() -> int:
    """Runs one command; Ctrl-C while its modules are imported ends the process without a word.

    Returns:
        The exit code.
    """
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if interruptible:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from fastgan.cli import main as run_command

    if interruptible:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return run_command()


if __name__ == "__main__":
    sys.exit(main())
