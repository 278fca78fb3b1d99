"""``python -m fastgan`` is the command line ``fastgan``."""

from __future__ import annotations

import sys

from fastgan.cli import main

if __name__ == "__main__":
    sys.exit(main())
