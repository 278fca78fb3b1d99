"""The command line: ``fastgan`` and ``python -m fastgan``.

Each command is a module of this package with ``run``, which is imported when it is asked for; the
arguments are all in ``arguments.py``. Mistakes of the user end in one line on stderr and exit code
2; a run that diverges in exit code 1; Ctrl-C in 130.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from fastgan.cli.arguments import parse
from fastgan.errors import DataWarning, FastganError
from fastgan.fallback import FallbackWarning

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: the words after the program's name; ``sys.argv[1:]`` if ``None``.

    Returns:
        The exit code.
    """
    try:
        options = parse(arguments)
        with warnings.catch_warnings():
            warnings.showwarning = _one_line(warnings.showwarning)
            code: int = importlib.import_module(f"fastgan.cli.{options.command}").run(options)
    except FastganError as error:
        if not error.said_elsewhere:
            print(f"fastgan: error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("fastgan: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our output has stopped; Python would complain again at exit.
        sys.stdout = None
        return 141
    return code


def _one_line(show: Callable[..., None]) -> Callable[..., None]:
    """``show``, a ``warnings.showwarning``, but for our own: those get one line, as errors do."""

    def showwarning(
        message: Warning | str, category: type[Warning], *arguments: Any, **options: Any
    ) -> None:
        if issubclass(category, (DataWarning, FallbackWarning)):
            print(f"fastgan: warning: {message}", file=sys.stderr)
        else:
            show(message, category, *arguments, **options)

    return showwarning
