"""Random draws of every test and docstring, from one seed; what failed, as an ``@example``.

The seed is FASTGAN_TEST_SEED, 0 by default, so that a suite which was green stays green until the
code changes. ``make fuzz`` runs the tests of hypothesis with new ones.
"""

from __future__ import annotations

import ast
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis.internal.conjecture import providers

SEED = int(os.environ.get("FASTGAN_TEST_SEED", "0"))
#: At most as many examples of each test; a smaller number is for a quick look.
MOST_EXAMPLES = int(os.environ.get("FASTGAN_TEST_EXAMPLES", "1000"))

# What tests compute must not depend on what was fast a moment ago; tests of the choice of backends
# ask for it. Set before fastgan is imported, and for the processes that tests start.
os.environ.setdefault("FASTGAN_AUTOTUNE", "0")

#: What `make quick` leaves out: files, and tests with their files, relative to tests/.
SLOW = frozenset(
    line
    for line in (Path(__file__).parent / "tests" / "slow.txt").read_text().splitlines()
    if not line.startswith("#")
)
#: What `make test` leaves to `make test-all`: the same again for other GPUs and sizes of images.
EXHAUSTIVE = re.compile(
    # The CPU part as a wheel: `make test` has built it already, into a checkout.
    r"test_build\.py::test_(wheel|only_what_changed)_"
    r"|test_compiled\.py::test_(each|the_small).*\[(sm_80|sm_100)\b"
    r"|test_evaluation_classifier\.py::test_other_sizes.*\[28-3\]$"
)
#: Files that keep a worker busy for the longest, in the order in which they begin.
LONGEST_FILES = (
    "test_in_the_interpreter.py",
    "test_compiled.py",
    "test_cuda_kernels_on_host.py",
    "test_build.py",
    "test_evaluation_classifier.py",
    "test_training_processes.py",
    "test_training_reliability.py",
    "test_cli.py",
    "test_batch_norm_ops.py",
    "test_clipping.py",
    "test_seeding.py",
    "test_penalty_ops.py",
    "test_evaluation_report.py",
    "test_optim.py",
    "test_cpu_convolutions_under_sanitizers.py",
)

#: What hypothesis, older or newer, says of a failure that was not an example already.
FAILING_CALL = r"^(?:Falsifying example|Failing test case):\s*(\w+\(.*?^\))"

# Hypothesis draws some values from the constants in the sources of all modules imported so far:
# any change there, and any other order of tests, would draw other examples.
providers._get_local_constants = lambda: providers._local_constants


class TorchGenerator:
    """Torch's default generators, which hypothesis seeds before each example."""

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


TORCH_GENERATOR = TorchGenerator()  # hypothesis only has a weak reference
hypothesis.register_random(TORCH_GENERATOR)


def seed_all() -> None:
    """Begins each test's draws anew, so that they don't depend on the tests before it."""
    random.seed(SEED)
    torch.manual_seed(SEED)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Seeds the draws of fixtures."""
    seed_all()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    """Seeds the draws of the test itself."""
    # Again: which fixtures were set up for this test depends on the tests before it.
    seed_all()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Seeds hypothesis, frees its verdicts from the machine's load; sorts the tests."""
    for item in items:
        path, _, test = item.nodeid.partition("[")[0].partition("::")
        path = os.path.relpath(path, "tests")
        # It compiles CUDA kernels, which `make test` leaves out without a GPU.
        on_harness = "harness" in getattr(item, "fixturenames", ())
        if SLOW & {path, f"{path}::{test}"} or on_harness:
            item.add_marker("slow")
        if EXHAUSTIVE.search(item.nodeid) or on_harness:
            item.add_marker("exhaustive")
    # What takes minutes alone must not begin last.
    longest = {name: number - len(LONGEST_FILES) for number, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: longest.get(item.path.name, 0))
    for test in {hypothesis_test(item) for item in items} - {None}:
        hypothesis.seed(SEED)(test)
        drawn = test._hypothesis_internal_use_settings
        test._hypothesis_internal_use_settings = hypothesis.settings(
            drawn,
            max_examples=min(drawn.max_examples, MOST_EXAMPLES),
            # How busy the machine is decides these two.
            deadline=None,
            suppress_health_check={*drawn.suppress_health_check, hypothesis.HealthCheck.too_slow},
            print_blob=True,
        )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Gives each worker a file at a time, in the order of collection."""
    from xdist.scheduler import LoadScopeScheduling

    class LoadFiles(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            # A test there is a file of others, and takes minutes.
            return nodeid if "test_in_the_interpreter" in nodeid else nodeid.partition("::")[0]

    config.option.loadscopereorder = False
    return LoadFiles(config, log)


def hypothesis_test(item: pytest.Item) -> Any:
    """The test function if it is one of hypothesis, else None."""
    function = getattr(item, "obj", None)
    function = getattr(function, "__func__", function)
    return function if hypothesis.is_hypothesis_test(function) else None


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Adds to a failed test of hypothesis the lines that make its failures examples of it."""
    report = (yield).get_result()
    test = hypothesis_test(item)
    if test is not None and call.excinfo is not None and report.failed:
        names = set(test.hypothesis._given_kwargs)
        lines = dict.fromkeys(example_lines(call.excinfo.value, names))
        report.user_properties += [("example", f"{item.nodeid}: {line}") for line in lines]


def example_lines(error: BaseException, names: set[str]) -> Iterator[str]:
    """For each failure that hypothesis found, a decorator that draws it first.

    Args:
        error: what the test raised: a group of errors where it found several.
        names: the arguments that hypothesis draws; others are fixtures.
    """
    for one in getattr(error, "exceptions", ()):
        yield from example_lines(one, names)
    notes = "\n".join(getattr(error, "__notes__", ()))
    call = re.search(FAILING_CALL, notes, flags=re.M | re.S)
    blob = re.search(r"@reproduce_failure\(.*\)", notes)
    try:
        given = [each for each in ast.parse(call[1]).body[0].value.keywords if each.arg in names]
        if any(getattr(part, "value", None) is ... for each in given for part in ast.walk(each)):
            raise SyntaxError("what st.data() gave is not in the call")
    except (SyntaxError, TypeError):
        # No example, or something in it has no repr that Python reads.
        if blob is not None:
            yield blob[0]
        return
    yield f"@example({', '.join(map(ast.unparse, given))})"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the examples of what failed, and the seed."""
    lines = [
        line
        for report in terminalreporter.stats.get("failed", ())
        for name, line in report.user_properties
        if name == "example"
    ]
    if lines:
        terminalreporter.section("examples to paste above the tests that failed")
        for line in lines:
            terminalreporter.line(line)
    terminalreporter.line(f"random draws began with FASTGAN_TEST_SEED={SEED}")
