"""Options of the benchmarks under pytest."""

from __future__ import annotations


def pytest_addoption(parser) -> None:
    parser.addoption(
        "--no-compile",
        action="store_true",
        default=False,
        help="leave torch.compile's peers out: compiling takes longest",
    )
