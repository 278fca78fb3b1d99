"""Seeds every test and docstring; prints failed examples as ``@example``.

The seed is FASTGAN_TEST_SEED, 0 by default, so that a green suite stays green until the code
changes. ``make fuzz`` runs hypothesis's tests with new seeds.
"""

from __future__ import annotations

import ast
import gc
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
#: Most examples per test; a smaller number is for a quick check.
MOST_EXAMPLES = int(os.environ.get("FASTGAN_TEST_EXAMPLES", "1000"))

# Tests must not depend on measured speeds; tests of the selection of backends enable it. Set before
# fastgan is imported, and inherited by child processes.
os.environ.setdefault("FASTGAN_AUTOTUNE", "0")

#: Files and tests that `make quick` leaves out, relative to tests/.
SLOW = frozenset(
    line
    for line in (Path(__file__).parent / "tests" / "slow.txt").read_text().splitlines()
    if not line.startswith("#")
)
#: Left to `make test-all`: the same tests for other GPUs, models and image sizes, and some that
#: take ten seconds.
EXHAUSTIVE = re.compile(
    # The CPU part as a wheel: `make test` has already built it in place.
    r"test_build\.py::test_(wheel|only_what_changed)_"
    r"|test_compiled\.py::test_(each|the_small).*\[(sm_80|sm_100)\b"
    r"|test_compiled\.py::test_each_tile"
    r"|test_evaluation_classifier\.py::test_other_sizes.*\[28-3\]$"
    r"|test_cpu_convolutions_under_sanitizers\.py::"
    r"|test_penalty_cases\.py::test_contenders_agree"
    r"|test_seeding\.py::test_fuzzing_takes_new_seeds"
    r"|test_training_processes\.py::test_torchrun_goes_on"
    r"|test_training_run\.py::test_a_plain_gan_with_its_papers_settings"
    r"|test_training_run\.py::test_resuming_continues_to_the_bit\[(?!dcgan|wgan-gp)"
)
#: The slowest files, in the order in which they start.
LONGEST_FILES = (
    "test_in_the_interpreter.py",
    "test_compiled.py",
    "test_cuda_kernels_on_host.py",
    "test_build.py",
    "test_few_channels_on_host.py",
    "test_evaluation_classifier.py",
    "test_training_processes.py",
    "test_training_reliability.py",
    "test_cli.py",
    "test_batch_norm_ops.py",
    "test_clipping.py",
    "test_seeding.py",
    "test_penalty_ops.py",
    "test_adversarial_loss.py",
    "test_evaluation_report.py",
    "test_optim.py",
    "test_cpu_convolutions_under_sanitizers.py",
)

#: Hypothesis's note (older and newer versions) about a failure that isn't an explicit example.
FAILING_CALL = r"^(?:Falsifying example|Failing test case):\s*(\w+\(.*?^\))"

# Hypothesis draws some values from constants in all imported modules' sources: any change there, or
# another order of tests, would draw other examples.
providers._get_local_constants = lambda: providers._local_constants


def seed_torch(seed: int) -> None:
    """torch.manual_seed, which without a GPU keeps a formatted traceback of every call for one."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)


class TorchGenerator:
    """Torch's default generators, which hypothesis seeds before each example."""

    seed = staticmethod(seed_torch)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


TORCH_GENERATOR = TorchGenerator()  # hypothesis only has a weak reference
hypothesis.register_random(TORCH_GENERATOR)


def seed_all() -> None:
    """Seeds each test, so that its draws don't depend on earlier tests."""
    random.seed(SEED)
    seed_torch(SEED)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Seeds fixtures."""
    seed_all()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    """Seeds the test itself."""
    # Again, because the fixtures set up for this test depend on earlier tests.
    seed_all()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Seeds hypothesis, makes it independent of the machine's load, and sorts the tests."""
    for item in items:
        path, _, test = item.nodeid.partition("[")[0].partition("::")
        path = os.path.relpath(path, "tests")
        # It compiles CUDA kernels, which `make test` skips without a GPU.
        on_harness = "harness" in getattr(item, "fixturenames", ())
        if SLOW & {path, f"{path}::{test}"} or on_harness:
            item.add_marker("slow")
        if EXHAUSTIVE.search(item.nodeid) or on_harness:
            item.add_marker("exhaustive")
    # The slowest tests must not start last.
    longest = {name: number - len(LONGEST_FILES) for number, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: longest.get(item.path.name, 0))
    for test in {hypothesis_test(item) for item in items} - {None}:
        hypothesis.seed(SEED)(test)
        drawn = test._hypothesis_internal_use_settings
        test._hypothesis_internal_use_settings = hypothesis.settings(
            drawn,
            max_examples=min(drawn.max_examples, MOST_EXAMPLES),
            # These two depend on the machine's load.
            deadline=None,
            suppress_health_check={*drawn.suppress_health_check, hypothesis.HealthCheck.too_slow},
            print_blob=True,
        )


def pytest_collection_finish() -> None:
    """Spares the garbage collector torch and the tests themselves: a twelfth of their time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Assigns one file at a time to each worker, in collection order."""
    from xdist.scheduler import LoadScopeScheduling

    class LoadFiles(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            # Tests there run whole files, and take minutes.
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
    """Adds ``@example`` lines to the report of a failed hypothesis test."""
    report = (yield).get_result()
    test = hypothesis_test(item)
    if test is not None and call.excinfo is not None and report.failed:
        names = set(test.hypothesis._given_kwargs)
        lines = dict.fromkeys(example_lines(call.excinfo.value, names))
        report.user_properties += [("example", f"{item.nodeid}: {line}") for line in lines]


def example_lines(error: BaseException, names: set[str]) -> Iterator[str]:
    """An ``@example`` decorator for each failure found by hypothesis.

    Args:
        error: the test's error; a group if there are several failures.
        names: the arguments drawn by hypothesis; others are fixtures.
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
        # No example, or a value's repr isn't valid Python.
        if blob is not None:
            yield blob[0]
        return
    yield f"@example({', '.join(map(ast.unparse, given))})"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints failed examples and the seed."""
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
