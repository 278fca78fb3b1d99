"""The suite's random draws: the seed determines all, and failures become examples."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from forked import Forked

CONFTEST = Path(__file__).resolve().parent.parent / "conftest.py"

DRAWING = """
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def drawn_once():
    return torch.rand(()).item()


def test_plain(drawn_once):
    print("drew", drawn_once, torch.rand(()).item(), random.random())


@given(n=st.integers(), text=st.text())
@settings(derandomize=True, max_examples=5)
def test_with_hypothesis(n, text):
    print("drew", n, ascii(text), torch.rand(()).item(), random.random())
"""

FAILING = """
from dataclasses import dataclass

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

settings.register_profile("fast", phases=(Phase.explicit, Phase.generate, Phase.shrink))
settings.load_profile("fast")


@dataclass(frozen=True)
class Size:
    height: int
    width: int


@pytest.fixture(scope="module")
def limit():
    return 1000


@given(n=st.integers(), size=st.builds(Size, st.integers(0, 9), st.just(1)))
def test_two_failures(n, size, limit):
    if n > limit:
        raise ValueError("n")
    if size.height > 7:
        raise TypeError("height")


@given(data=st.data())
def test_drawing_within(data):
    assert data.draw(st.integers()) < 50
"""


def plant(folder: Path, text: str) -> Path:
    """A file of tests with this text, under a copy of the suite's conftest.py."""
    shutil.copy(CONFTEST, folder)
    (folder / "tests").mkdir(exist_ok=True)
    (folder / "tests" / "slow.txt").touch()
    planted = folder / "test_planted.py"
    planted.write_text(text)
    return planted


def run_pytest(arguments: list[str]) -> int:
    """pytest, in its folder."""
    os.chdir(Path(arguments[-1]).parent)
    return int(pytest.main(arguments))


def run(folder: Path, text: str, **environment: str) -> str:
    """What pytest says of a file that has this text."""
    arguments = ["-p", "no:cacheprovider", "-p", "no:xdist", "-rA", str(plant(folder, text))]
    process = Forked(run_pytest, arguments, folder=folder, environment=environment)
    process.ended(120)
    return process.printed


def test_the_seed_decides_every_draw(tmp_path: Path):
    one, other = (
        re.findall("^drew.*", run(tmp_path, DRAWING, FASTGAN_TEST_SEED=seed), flags=re.M)
        for seed in ("1", "2")
    )
    assert len(one) == 6
    assert one[0] != other[0]
    assert one[1:] != other[1:]
    alone = run(tmp_path, DRAWING.replace("test_plain", "unused"), FASTGAN_TEST_SEED="1")
    assert re.findall("^drew.*", alone, flags=re.M) == one[1:]


def test_a_failure_is_printed_as_an_example_which_fails_when_pasted(tmp_path: Path):
    said = run(tmp_path, FAILING)
    assert "FASTGAN_TEST_SEED=0" in said
    examples = re.findall(r"^test_planted\.py::test_two_failures: (@example.*)", said, flags=re.M)
    assert sorted(examples) == [
        "@example(n=0, size=Size(8, 1))",
        "@example(n=1001, size=Size(0, 1))",
    ]
    assert re.search(r"::test_drawing_within: @reproduce_failure\('.*', b'.*'\)$", said, flags=re.M)
    decorated = "\n".join([*examples, "@given(n=st.just(0),"])
    pasted = FAILING.replace("@given(n=st.integers(),", decorated)
    said = run(tmp_path, pasted.replace("st.integers(0, 9)", "st.just(0)"))
    assert said.count("Failing explicit") == 2


FUZZED = """
import time

from hypothesis import given
from hypothesis import strategies as st


@given(n=st.integers(1, 100))
def test_any_number(n):
    assert n != n + {step}
    time.sleep({seconds})


def test_not_of_hypothesis():
    raise AssertionError
"""


@pytest.mark.parametrize(("step", "seconds", "minutes", "code"), [(0, 0, 10, 1), (1, 1000, 0.1, 0)])
def test_fuzzing_takes_new_seeds_until_the_time_is_over(
    tmp_path: Path, step: int, seconds: int, minutes: float, code: int
):
    planted = plant(tmp_path, FUZZED.format(step=step, seconds=seconds))
    rounds = [({}, [str(planted)])] * 2
    done = subprocess.run(
        [sys.executable, "-c", f"import fuzz; raise SystemExit(fuzz.fuzz({minutes}, {rounds}))"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == code, done.stdout
    assert ("::test_any_number: @example(n=1)" in done.stdout) == bool(code)
    seeds = re.findall(r"^FASTGAN_TEST_SEED=(\d+)", done.stdout, flags=re.M)
    assert len(set(seeds)) == len(seeds) == (1 if seconds else 2)


def test_what_make_quick_leaves_out_is_there():
    """A name that has changed would be run by ``make quick`` again."""
    for line in (CONFTEST.parent / "tests" / "slow.txt").read_text().splitlines():
        if not line.startswith("#"):
            name, _, test = line.partition("::")
            path = CONFTEST.parent / "tests" / name
            assert path.exists(), f"remove {line} from tests/slow.txt"
            assert not test or f"def {test}(" in path.read_text(), (
                f"remove {line} from tests/slow.txt"
            )
