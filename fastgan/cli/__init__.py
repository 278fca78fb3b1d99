"""The command line: ``fastgan`` and ``python -m fastgan``.

Each command is a module of this package with ``run``, imported on demand; all arguments are in
``arguments.py``. Users' mistakes end with one line on stderr and exit code 2, a diverged run with
exit code 1, Ctrl-C with 130.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from fastgan._util.reading import one_line
from fastgan.cli.arguments import parse
from fastgan.cli.terminal import Output, ended_by_interrupts, say, standard_streams
from fastgan.errors import DataWarning, FastganError
from fastgan.explaining.fallback import FallbackWarning

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: the words after the program's name; ``sys.argv[1:]`` if ``None``.

    Returns:
        The exit code.
    """
    with standard_streams() as (output, _):
        try:
            code = _run(arguments, output)
            output.flush()
        except FastganError as error:
            if not error.said_elsewhere:
                say(f"fastgan: error: {' '.join(str(error).split())}", error=True)
            return error.exit_code
        except KeyboardInterrupt:
            say("fastgan: interrupted", error=True)
            return 130
        except (OSError, ValueError, SystemExit) as error:
            lost = output.lost
            # rich turns a broken pipe into SystemExit; argparse's own loses no output.
            if lost is None or (error is not lost and not isinstance(error, SystemExit)):
                raise
            if isinstance(lost, BrokenPipeError):  # the reader of our output has stopped
                return 141
            say(f"fastgan: error: standard output: {one_line(lost)}", error=True)
            return 2
    return code


def _run(arguments: Sequence[str] | None, output: Output) -> int:
    with ended_by_interrupts():
        options = parse(arguments)
        command = importlib.import_module(f"fastgan.cli.{options.command}")
    # Training continues without a reader.
    output.quiet = options.command == "train"
    with warnings.catch_warnings():
        warnings.showwarning = _one_line(warnings.showwarning)
        code: int = command.run(options)
    return code


def _one_line(show: Callable[..., None]) -> Callable[..., None]:
    """Wraps a ``warnings.showwarning``: our own warnings get one line, like errors."""

    def showwarning(
        message: Warning | str, category: type[Warning], *arguments: Any, **options: Any
    ) -> None:
        if issubclass(category, (DataWarning, FallbackWarning)):
            say(f"fastgan: warning: {message}", error=True)
        else:
            show(message, category, *arguments, **options)

    return showwarning
