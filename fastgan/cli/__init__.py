"""The command line: ``fastgan`` and ``python -m fastgan``.

Each command is a module of this package with ``add_parser`` and ``run``. Mistakes of the user end
in one line on stderr and exit code 2; a run that diverges in exit code 1; Ctrl-C in 130.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from fastgan._version import __version__
from fastgan.cli import bench, doctor, evaluate, interpolate, sample, train
from fastgan.errors import DataWarning, FastganError
from fastgan.fallback import FallbackWarning
from fastgan.training import TrainingDivergedError

__all__ = ["main"]


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, as all of ours are.

    No abbreviations: a flag added later would break the scripts that use them.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _build_parser() -> _Parser:
    parser = _Parser(
        prog="fastgan",
        description="Train convolutional GANs fast, look at what they draw, measure how good it is",
        epilog="Start with: fastgan train --model dcgan --out runs/first",
    )
    parser.add_argument("--version", action="version", version=f"fastgan {__version__}")
    commands = parser.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", required=True
    )
    for module in (train, sample, interpolate, evaluate, bench, doctor):
        module.add_parser(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: the words after the program's name; ``sys.argv[1:]`` if ``None``.

    Returns:
        The exit code.
    """
    options = _build_parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _one_line(warnings.showwarning)
            code: int = options.run(options)
    except TrainingDivergedError as error:
        return _complain(error, 1)
    except FastganError as error:
        return _complain(error, 2)
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


def _complain(error: FastganError, code: int) -> int:
    if not error.said_elsewhere:
        print(f"fastgan: error: {' '.join(str(error).split())}", file=sys.stderr)
    return code
