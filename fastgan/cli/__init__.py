"""The command line: ``fastgan`` and ``python -m fastgan``.

Each command is a module of this package with ``run``, which is imported when it is asked for; the
arguments are all in ``arguments.py``. Mistakes of the user end in one line on stderr and exit code
2; a run that diverges in exit code 1; Ctrl-C in 130.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from fastgan.cli.arguments import parse
from fastgan.errors import FastganError

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
