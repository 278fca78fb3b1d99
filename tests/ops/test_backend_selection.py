"""The selection of convolution backends: measured, cached, written, read again; or fixed."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fastgan
from fastgan.errors import ConfigError
from fastgan.explaining import fallback
from fastgan.nn import recording_cost
from fastgan.nn.recording_cost import recording_milliseconds, watching_milliseconds
from fastgan.ops.backends import (
    BACKENDS,
    PASSES,
    Backend,
    Problem,
    Selector,
    fixed_table,
    measurement,
    measuring_nothing,
    patches,
    recorded_choices,
    select_backend,
    select_layout,
    selection,
    using,
    winograd,
)
from fastgan.ops.backends import fusion as fusion_of
from fastgan.ops.backends.choices import Choice, ChoicesFile, cache_folder, cache_path
from fastgan.ops.backends.describe import backend_facts, describe_layer
from fastgan.ops.backends.devices import device_name, fingerprint
from fastgan.ops.backends.fixed_table import fixed_choice
from fastgan.ops.backends.measurement import Times, measure
from fastgan.ops.backends.problem import float32_precision, product_precision
from fastgan.ops.backends.selection import Way, supporting
from fastgan.ops.stages import Stage

CPU = torch.device("cpu")
DOUBLING = Stage("conv_transpose2d", (2, 2), (1, 1))
HALVING = Stage("conv2d", (2, 2), (1, 1))
BY_NAME = {backend.name: backend for backend in BACKENDS}


def channels_last(*size: int) -> Tensor:
    return torch.empty(size).contiguous(memory_format=torch.channels_last)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of the test's own, no committed tables, and warnings that were not given yet."""
    monkeypatch.setenv("FASTGAN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(selection, "TABLES", tmp_path / "tables")
    monkeypatch.setattr(fallback, "_seen", set())
    selection._committed.cache_clear()
    yield cache_path(fingerprint(CPU))
    selection._committed.cache_clear()


class Watched:
    """Stands for the measurement: says what is fastest, and counts how often it was asked."""

    def __init__(self, fastest: str) -> None:
        self.fastest = fastest
        self.asked: list[str] = []

    def __call__(
        self, problem: Problem, backends: list[Backend], *, exhaustive: bool = False
    ) -> Times:
        self.asked.append(problem.key)
        return Times({b.name: 1.0 if b.name == self.fastest else 2.0 for b in backends})


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    measurement = Watched("aten_contiguous")
    monkeypatch.setattr(selection, "measure", measurement)
    return measurement


INPUT, WEIGHT = channels_last(2, 3, 8, 8), channels_last(5, 3, 3, 3)
CONV = Stage("conv2d", padding=(1, 1))


def choose(which: Any = "forward") -> str:
    return select_backend(which, CONV, INPUT, WEIGHT).name


# --- Measured once ------------------------------------------------------------------------------


def test_a_problem_is_measured_once_in_a_process(watched: Watched) -> None:
    with using(Selector("1")):
        assert [choose() for _ in range(3)] == ["aten_contiguous"] * 3
        assert len(watched.asked) == 1
        choose("weight_gradient")
        select_backend("forward", CONV, INPUT[:1], WEIGHT)
        select_backend("forward", CONV, INPUT, WEIGHT.contiguous())
    assert len(set(watched.asked)) == 4


def test_a_known_problem_takes_one_look_up(watched: Watched) -> None:
    functions: list[str] = []

    def note(frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            functions.append(frame.f_code.co_name)

    with using(Selector("1")):
        choose()
        sys.setprofile(note)
        try:
            choose()
        finally:
            sys.setprofile(None)
    # The stage's hash is a part of the look-up's.
    assert functions == ["choose", "select_backend", "__hash__"]
    assert len(watched.asked) == 1


def test_what_is_measured_answers_in_other_processes(watched: Watched, own_cache: Path) -> None:
    for _ in range(2):  # a selector begins as a process does, knowing nothing
        with using(Selector("1")):
            assert choose() == "aten_contiguous"
    assert len(watched.asked) == 1
    (choice,) = ChoicesFile(own_cache).read()[fingerprint(CPU)].values()
    assert choice.milliseconds == {"matrix_product": 2.0, "aten_contiguous": 1.0, "aten": 2.0}


def test_a_file_decides_and_its_choice_is_repeated(own_cache: Path) -> None:
    """Given the file, nothing is left to timing."""
    problem = Problem.of("forward", CONV, INPUT, WEIGHT)
    for name in ("matrix_product", "aten", "aten_contiguous"):
        ChoicesFile(own_cache).merge({fingerprint(CPU): {problem.key: Choice(name)}})
        with using(Selector("1")):
            assert [choose() for _ in range(3)] == [name] * 3


def test_other_software_or_another_device_measures_anew(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    with using(Selector("1")):
        choose()
    monkeypatch.setattr(selection, "fingerprint", lambda device: "cpu: another; torch 9")
    with using(Selector("1")):
        choose()
    assert len(watched.asked) == 2


def test_exhaustive_takes_only_what_was_measured_so(watched: Watched) -> None:
    with using(Selector("1")):
        choose()
    for _ in range(2):
        with using(Selector("exhaustive")):
            choose()
    assert len(watched.asked) == 2
    with using(Selector("1")):
        choose()
    assert len(watched.asked) == 2


def test_a_committed_table_answers_at_once(watched: Watched) -> None:
    problem = Problem.of("forward", CONV, INPUT, WEIGHT)
    table = ChoicesFile(selection.TABLES / "some.json")
    table.merge({device_name(CPU): {problem.key: Choice("matrix_product", exhaustive=True)}})
    for mode in ("1", "exhaustive"):
        with using(Selector(mode)):
            assert choose() == "matrix_product"
    assert watched.asked == []


def test_a_lead_within_the_noise_leaves_the_fixed_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    for which, lead, expected in (
        ("forward", 1.01, "aten"),
        ("input_gradient", 1.1, "matrix_product"),
    ):
        times = Times({"matrix_product": 1.0, "aten": lead})
        monkeypatch.setattr(selection, "measure", lambda *_, times=times, **__: times)
        with using(Selector("1")):
            assert choose(which) == expected


def test_a_process_measures_for_a_bounded_time(watched: Watched, tmp_path: Path) -> None:
    selector = Selector("1")
    selector._seconds_spent = selection.MOST_SECONDS + 1
    within_a_run = Selector("1", ChoicesFile(tmp_path / "run"), selector)
    for each in (selector, within_a_run):
        fallback._seen.clear()
        with using(each), pytest.warns(fastgan.FallbackWarning, match="fixed table"):
            assert choose() == "aten"
    assert watched.asked == []


@pytest.mark.parametrize(("copy", "converts"), [(0.2, True), (0.6, False)])
def test_maps_are_converted_only_where_that_saves_more_than_the_copies_take(
    monkeypatch: pytest.MonkeyPatch, copy: float, converts: bool
) -> None:
    def measured(problem: Problem, backends: Any, *, exhaustive: bool = False) -> Times:
        return Times({"aten": 1.0 if "nhwc" in problem.key else 1.4})

    monkeypatch.setattr(selection, "measure", measured)
    monkeypatch.setattr(selection, "race", lambda key, calls, device: Times.fromkeys(calls, copy))
    input, weight = torch.ones(2, 3, 8, 8), torch.ones(5, 3, 3, 3)
    with using(Selector("1")):
        assert select_layout(CONV, input, weight, ("forward",))[0][:2] == (False, converts)
        # Over both ways: 2 x 0.4 ms are saved, and two copies made.
        both = select_layout(CONV, input, weight, ("forward", "input_gradient"))
        assert both[0][:2] == (False, converts)
        assert both[1] == Way(False, False, 0.0, 2 * 1.4)
        assert both[0].copies == pytest.approx(2 * copy if converts else 0.0)
        if converts:
            assert both[0].saves == pytest.approx(2 * 0.2)


@pytest.mark.parametrize(("costs", "chained"), [(0.5, True), (1.5, False)])
def test_what_saves_less_than_recording_it_costs_is_left_to_torch(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, costs: float, chained: bool
) -> None:
    watched.fastest = "aten_contiguous"  # of channels-last tensors: in 1 ms, not 2
    with using(Selector("1")):
        (found, _) = select_layout(CONV, INPUT, WEIGHT, ("forward",), lambda input: costs)
    assert found == Way(chained, False, 1 - costs if chained else 0.0, 2.0)
    monkeypatch.setattr(selection, "fixed_choice", lambda problem, backends: backends[0])
    for fewest in (0, 10**9):
        monkeypatch.setattr(fixed_table, "FEWEST_PRODUCTS", fewest)
        with using(Selector("0")):  # no times to compare
            (found, _) = select_layout(CONV, INPUT, WEIGHT, ("forward",), lambda input: costs)
        assert found[:2] == (fewest == 0, False)


def test_what_recording_costs_is_measured_once_and_kept(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with using(Selector("0")):
        assert recording_milliseconds(INPUT) == fixed_table.RECORDING_MILLISECONDS
    assert not own_cache.exists()
    with using(Selector("1")):
        found = recording_milliseconds(INPUT)
    assert 0 <= found < 100
    monkeypatch.setattr(recording_cost, "_measured", lambda key: pytest.fail("measured again"))
    with using(Selector("1")):  # another process's, which reads the file
        assert recording_milliseconds(INPUT) == pytest.approx(found, abs=1e-5)
    (choices,) = ChoicesFile(own_cache).read().values()
    (kept,) = (each for key, each in choices.items() if key.startswith("recording and"))
    assert set(kept.milliseconds) == {"recorded", "watched", "plain", "mode"}


def test_watching_costs_at_least_what_its_mode_takes(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if, on a busy machine, the watched forward came out faster than the plain one."""
    times = Times({"recorded": 1.0, "watched": 1.0, "plain": 1.5, "mode": 0.001})
    monkeypatch.setattr(recording_cost, "_measured", lambda key: times)
    with using(Selector("1")):
        assert watching_milliseconds() == 0.001


@pytest.mark.parametrize("is_quiet", [True, False])
def test_times_of_a_busy_machine_are_not_stored(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch, is_quiet: bool
) -> None:
    """A disturbed turn is repeated; if none is as short as the shortest, other processes measure
    again."""
    turns = itertools.count()
    monkeypatch.setattr(measurement, "_SECONDS", 0.01)
    monkeypatch.setattr(
        measurement,
        "_on_the_host",
        lambda call, repeats: 1.0 if next(turns) in ((0, 40) if is_quiet else (0,)) else 1.3,
    )

    def choose(selector: Selector) -> tuple[Choice, bool]:
        calls = {"only": lambda: None}
        return selector.choose(
            "it", INPUT, ["only"], "only", lambda: measurement.race("it", calls, INPUT.device)
        )

    selector = Selector("1")
    choice, is_lasting = choose(selector)
    assert choice.milliseconds == {"only": 1e3}
    assert is_lasting
    assert own_cache.exists() == selector.is_confirmed() == is_quiet
    taken = next(turns)
    assert choose(selector)[0] == choice  # the same process goes on with it
    choose(Selector("1"))
    assert (next(turns) == taken + 1) == is_quiet


def test_only_what_changes_the_choice_is_told_apart(watched: Watched) -> None:
    """On a CPU nothing fuses, so that what lies around a convolution is no other problem."""
    with using(Selector("1")):
        for around in (fusion_of(), fusion_of("norm", "", "statistics")):
            select_backend("forward", CONV, INPUT, WEIGHT, around)
        # Strides of dimensions of one place say nothing of the layout.
        select_backend("forward", CONV, INPUT.clone(), WEIGHT)
        select_backend("forward", Stage("linear"), torch.ones(2, 3), torch.ones(4, 3))
        select_backend("forward", CONV, INPUT[:0], WEIGHT)
        select_backend("forward", CONV, INPUT.double(), WEIGHT)
    assert len(watched.asked) == 1


@pytest.mark.parametrize("allowed", [False, True])
def test_convolutions_and_products_say_alike_that_they_may_use_tf32(
    monkeypatch: pytest.MonkeyPatch, allowed: bool
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = allowed
        found = float32_precision(torch.float32, torch.device("cuda")), product_precision()
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert found == (("tf32", "tf32") if allowed else ("ieee", "ieee"))


def test_the_number_of_threads_is_part_of_a_problem(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    with using(Selector("1")):
        choose()
        monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
        monkeypatch.setattr(selection, "_threads", lambda: 64)
        choose()
    assert [key.rpartition(" ")[2] for key in watched.asked][1] == "64"


# --- Measured never -----------------------------------------------------------------------------


def test_a_fixed_table_measures_and_reads_nothing(watched: Watched, own_cache: Path) -> None:
    problem = Problem.of("forward", CONV, INPUT, WEIGHT)
    ChoicesFile(own_cache).merge({fingerprint(CPU): {problem.key: Choice("matrix_product")}})
    with using(Selector("0")):
        assert choose() == "aten"
    with using(Selector("1")):
        torch.use_deterministic_algorithms(True)
        try:
            assert choose() == "aten"
        finally:
            torch.use_deterministic_algorithms(False)
        assert choose() == "aten"  # as it was chosen once
    assert watched.asked == []


def test_the_environment_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    for mode in ("0", "1", "exhaustive"):
        monkeypatch.setenv("FASTGAN_AUTOTUNE", mode)
        assert Selector().mode == mode
    monkeypatch.delenv("FASTGAN_AUTOTUNE")
    assert Selector().mode == "1"
    monkeypatch.setenv("FASTGAN_AUTOTUNE", "yes")
    with pytest.raises(ConfigError, match=r"FASTGAN_AUTOTUNE: expected 0, 1, exhaustive"):
        Selector()


def test_nothing_is_measured_where_it_would_be_captured(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    def func_transform() -> None:
        torch.func.vmap(lambda x: (choose(), x)[1])(torch.ones(2))

    def compilation() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(torch.compiler, "is_compiling", lambda: True)
            choose()

    def trace() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.trace(lambda x: (choose(), x * 2)[1], torch.ones(2), check_trace=False)

    def subclass() -> None:
        class Own(Tensor):
            pass

        select_backend("forward", CONV, INPUT.as_subclass(Own), WEIGHT)

    def look() -> None:
        with measuring_nothing():
            choose()

    with using(Selector("1")) as selector:
        for place in (func_transform, trace, subclass, look, compilation):
            place()
            assert watched.asked == [], place.__name__
            assert selector.known == {}, "the choice must be open still"
        assert choose() == "aten_contiguous"


@pytest.mark.gpu
def test_nothing_is_measured_while_a_graph_is_captured(watched: Watched, cuda: Any) -> None:
    input, weight = INPUT.to(cuda), WEIGHT.to(cuda)
    with using(Selector("1")):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            select_backend("forward", CONV, input, weight)
        assert watched.asked == []
        select_backend("forward", CONV, input, weight)
        assert len(watched.asked) == 1


def test_explain_measures_nothing(watched: Watched) -> None:
    critic = fastgan.models.WGANCritic(nc=1, ndf=32, image_size=16)
    with using(Selector("1")):
        report = fastgan.explain(critic)
        assert watched.asked == []
        assert "by measurement at its first call" in str(report)
        critic(torch.rand(2, 1, 16, 16))
        assert watched.asked
        assert "measured: forward of 2x1x16x16: " in str(fastgan.explain(critic))


# --- The measurement ----------------------------------------------------------------------------


@pytest.mark.parametrize("which", PASSES)
def test_every_backend_that_can_is_timed(which: Any) -> None:
    input, weight = torch.rand(2, 32, 4, 4), torch.rand(32, 64, 4, 4)
    problem = Problem.of(which, DOUBLING, input, weight)
    before = torch.get_rng_state()
    found = measure(problem, supporting(problem))
    assert set(found) == {backend.name for backend in supporting(problem)}
    assert {"matrix_product", "aten_channels_last", "aten"} <= set(found)
    assert all(milliseconds > 0 for milliseconds in found.values())
    assert torch.equal(torch.get_rng_state(), before), "the user's random numbers go on as before"


def test_a_backend_that_fails_is_left_out_and_named() -> None:
    class Broken(type(BY_NAME["aten"])):  # type: ignore[misc]
        name = "broken"

        def forward(self, *arguments: Any) -> Tensor:
            raise RuntimeError("no such kernel")

    problem = Problem.of("forward", CONV, INPUT, WEIGHT)
    with pytest.warns(fastgan.FallbackWarning, match="broken left out, RuntimeError: no such"):
        assert set(measure(problem, [Broken(), BY_NAME["aten"]])) == {"aten"}


def test_the_user_s_modes_do_not_see_a_measurement() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    layer = torch.nn.Conv2d(3, 4, 3)
    with using(Selector("1")), FlopCounterMode(display=False) as counter, torch.inference_mode():
        select_backend("forward", CONV, torch.ones(1, 3, 8, 8), layer.weight)
    assert counter.get_total_flops() == 0


@pytest.mark.parametrize("which", PASSES)
def test_what_is_fused_is_timed_around_the_others(which: Any) -> None:
    """A backend that doesn't fuse pays for each pass around the convolution."""
    from torch.profiler import profile

    problem = Problem.of(which, CONV, INPUT, channels_last(5, 3, 3, 3))
    stores = {"forward": "statistics", "input_gradient": "norm", "weight_gradient": ""}
    loads = ("norm", "") if which == "forward" else ("", "norm")
    around = fusion_of(*(loads if which != "weight_gradient" else ("norm", "norm")), stores[which])
    with profile() as traced:
        measure(problem._replace(fusion=around), [BY_NAME["aten"]])
    seen = {event.name for event in traced.events()}
    expected = {
        "forward": {"fastgan::norm_act", "fastgan::batch_norm_statistics"},
        "input_gradient": {"fastgan::norm_act_gradient_", "fastgan::norm_act_gradient_sums"},
        "weight_gradient": {"fastgan::norm_act_gradient_", "fastgan::norm_act"},
    }
    assert expected[which] <= seen


# --- Files --------------------------------------------------------------------------------------

GOOD = {"cpu: x": {"p": Choice("aten", {"aten": 1.5}), "q": Choice("winograd", exhaustive=True)}}


def test_a_file_reads_back_as_it_was_written(tmp_path: Path) -> None:
    file = ChoicesFile(tmp_path / "a" / "b.json")
    assert file.read() == {}
    file.merge(GOOD)
    assert file.read() == GOOD
    file.merge({"cpu: x": {"q": Choice("aten")}, "cpu: y": {"p": Choice("patches")}})
    assert file.read() == {
        "cpu: x": {"p": GOOD["cpu: x"]["p"], "q": Choice("aten")},
        "cpu: y": {"p": Choice("patches")},
    }
    assert [path.name for path in file.path.parent.iterdir()] == ["b.json"]


HOSTILE = {
    "empty": b"",
    "half": b'{"format": "fastgan backends", "version": 1, "choices": {"cpu',
    "bytes": bytes(range(256)),
    "a list": b"[]",
    "a number": b"1",
    "another format": b'{"format": "x", "version": 1, "choices": {}}',
    "another version": b'{"format": "fastgan backends", "version": 2, "choices": {}}',
    "no choices": b'{"format": "fastgan backends", "version": 1}',
    "deep": b"[" * 200_000,
    "huge number": b'{"format": "fastgan backends", "version": 1, "choices": {"d": {"p": '
    b'{"backend": "aten", "milliseconds": {"aten": 1' + b"0" * 4000 + b"}}}}}",
    "infinite": b'{"format": "fastgan backends", "version": 1, "choices": {"d": {"p": '
    b'{"backend": "aten", "milliseconds": {"aten": 1e999}}}}}',
    "no name": b'{"format": "fastgan backends", "version": 1, "choices": {"d": {"p": '
    b'{"backend": ["aten"]}}}}',
    "not its time": b'{"format": "fastgan backends", "version": 1, "choices": {"d": {"p": '
    b'{"backend": "aten", "milliseconds": {"patches": 1}}}}}',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_such_file_is_said_once_ignored_and_replaced(
    name: str, watched: Watched, own_cache: Path
) -> None:
    own_cache.parent.mkdir(parents=True)
    own_cache.write_bytes(HOSTILE[name])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            with using(Selector("1")):
                assert choose() == "aten_contiguous"
    assert "ignored, not a file of measured backends" in str(said[0].message)
    assert len(said) == 1
    assert len(watched.asked) == 1
    assert len(ChoicesFile(own_cache).read()[fingerprint(CPU)]) == 1


@given(
    st.recursive(
        st.none() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["backend", "milliseconds", "exhaustive", "a"]), inner
            )
        ),
    )
)
def test_any_json_is_choices_or_nothing(tmp_path_factory: Any, value: Any) -> None:
    path = tmp_path_factory.mktemp("any") / "a.json"
    for choices in (value, {"device": value}, {"device": {"problem": value}}):
        path.write_text(
            json.dumps({"format": "fastgan backends", "version": 1, "choices": choices})
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for of_device in ChoicesFile(path).read().values():
                for choice in of_device.values():
                    assert isinstance(choice.backend, str)
                    assert str(choice)


@pytest.mark.parametrize("backend", ["", "no such", "triton", "__class__", "winograd"])
def test_a_file_can_name_no_backend_that_cannot_do_it(
    backend: str, watched: Watched, own_cache: Path
) -> None:
    problem = Problem.of("forward", CONV, INPUT, WEIGHT)
    ChoicesFile(own_cache).merge({fingerprint(CPU): {problem.key: Choice(backend)}})
    with using(Selector("1")):
        assert choose() == "aten_contiguous"
    assert len(watched.asked) == 1


def test_a_folder_that_cannot_be_written_is_said_once(
    watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTGAN_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with using(Selector("1")), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert choose() == "aten_contiguous"
        choose("weight_gradient")
        choose()
    assert len([w for w in said if "kept" in str(w.message)]) == 1
    assert len(watched.asked) == 2


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTGAN_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/some/where")
    assert cache_folder() == Path("/some/where/fastgan")
    for ignored in ("relative", ""):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert cache_folder() == Path("~/.cache/fastgan").expanduser()
    monkeypatch.setenv("FASTGAN_CACHE_DIR", "~/mine")
    assert cache_folder() == Path("~/mine").expanduser()
    assert cache_path("cpu: a b; torch 1").parent == Path("~/mine/backends").expanduser()
    assert cache_path("cpu: a b; torch 1") != cache_path("cpu: a b; torch 2")


WRITER = """
import sys
from pathlib import Path
from fastgan.ops.backends.choices import Choice, ChoicesFile
file, name = ChoicesFile(Path(sys.argv[1])), sys.argv[2]
print("begun", flush=True)
for number in range(int(sys.argv[3])):
    file.merge({"cpu": {f"{name} {number}": Choice("aten", {"aten": 1.0})}})
"""


def writer(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", WRITER, str(path), name, str(count)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def test_two_writers_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "choices.json"
    writers = [writer(path, name, 40) for name in ("one", "two")]
    assert [process.wait() for process in writers] == [0, 0]
    found = ChoicesFile(path).read()["cpu"]
    assert set(found) == {f"{name} {n}" for name in ("one", "two") for n in range(40)}


def test_a_writer_killed_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "choices.json"
    ChoicesFile(path).merge({"cpu": {f"first {n}": Choice("aten") for n in range(2000)}})
    for wait in (0.0, 0.003, 0.011, 0.017):
        process = writer(path, f"killed after {wait}", 100_000)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = ChoicesFile(path).read()["cpu"]
        assert {f"first {n}" for n in range(2000)} <= set(found)
        ChoicesFile(path).merge({"cpu": {f"after {wait}": Choice("aten")}})
        assert f"after {wait}" in ChoicesFile(path).read()["cpu"], "its lock went with it"


def test_half_written_files_are_removed_when_they_are_old(tmp_path: Path) -> None:
    old, new = tmp_path / ".a.json.old", tmp_path / ".a.json.new"
    for path in (old, new):
        path.write_text("{")
    os.utime(old, (1, 1))
    ChoicesFile(tmp_path / "a.json").merge(GOOD)
    assert not old.exists()
    assert new.exists()


# --- A run's own file ---------------------------------------------------------------------------


def test_a_run_goes_on_with_the_choices_it_made(watched: Watched, tmp_path: Path) -> None:
    run = tmp_path / "backends.json"
    with using(Selector("1")), recorded_choices(run):
        assert choose() == "aten_contiguous"
    # Elsewhere something else has been measured meanwhile, and the cache is gone.
    watched.fastest = "matrix_product"
    for path in cache_folder().rglob("*.json"):
        path.unlink()
    with using(Selector("1")):
        assert choose() == "matrix_product"
        with recorded_choices(run):
            assert choose() == "aten_contiguous"
        assert choose() == "matrix_product"
    with using(Selector("exhaustive")), recorded_choices(run):
        assert choose() == "aten_contiguous"


def test_a_run_that_began_with_the_fixed_table_keeps_to_it(
    watched: Watched, tmp_path: Path
) -> None:
    run = tmp_path / "backends.json"
    with using(Selector("0")), recorded_choices(run):
        assert choose() == "aten"
    with using(Selector("1")), recorded_choices(run):
        assert choose() == "aten"
        assert choose("weight_gradient") == "aten_contiguous"


# --- The fixed table ----------------------------------------------------------------------------


def fixed(which: Any, stage: Stage, input: Tensor, weight: Tensor) -> str:
    problem = Problem.of(which, stage, input, weight)
    return fixed_choice(problem, supporting(problem)).name


@pytest.fixture
def vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (winograd, patches):
        monkeypatch.setattr(module, "has_vectors", lambda: True)
    monkeypatch.setattr(winograd, "has_bfloat16_tiles", lambda: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


@pytest.mark.usefixtures("vectors")
def test_winograd_has_the_inner_layers_of_a_dcgan() -> None:
    weight = channels_last(512, 256, 4, 4)
    for which in PASSES:
        assert fixed(which, HALVING, torch.empty(16, 256, 8, 8), weight) == "winograd"
        assert fixed(which, DOUBLING, torch.empty(16, 512, 4, 4), weight) == "winograd"
    small = torch.empty(16, 512, 4, 4).bfloat16()
    assert fixed("forward", DOUBLING, small, weight.bfloat16()) == "winograd"
    wide = torch.empty(16, 256, 8, 8)
    assert fixed("forward", HALVING, wide, channels_last(512, 256, 3, 3)) == "winograd"
    no = {
        "few tiles": (HALVING, wide[:4], weight),
        "another stride": (Stage("conv2d", (3, 3), (1, 1)), wide, weight),
        "dilated": (Stage("conv2d", (2, 2), (3, 3), (2, 2)), wide, weight),
        "grouped": (Stage("conv2d", (2, 2), (1, 1), groups=2), torch.empty(16, 512, 8, 8), weight),
        "another kernel": (HALVING, wide, channels_last(512, 256, 7, 7)),
        "colours": (HALVING, torch.empty(16, 3, 64, 64), channels_last(64, 3, 4, 4)),
        "float64": (HALVING, wide.double(), weight.double()),
        "float16": (HALVING, wide.half(), weight.half()),
        "another layout": (HALVING, wide, weight.contiguous()),
        "one place": (HALVING, torch.empty(64, 256, 2, 2), weight),
        "tiles half empty": (HALVING, torch.empty(64, 256, 6, 6), weight),
        "elsewhere": (HALVING, wide.to("meta"), weight),
    }
    for why, arguments in no.items():
        assert fixed("forward", *arguments) != "winograd", why


@pytest.mark.usefixtures("vectors")
def test_what_the_processor_has_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    input, weight = torch.empty(16, 512, 8, 8), channels_last(512, 256, 4, 4)
    monkeypatch.setattr(winograd, "has_bfloat16_tiles", lambda: True)
    assert fixed("forward", DOUBLING, input, weight) == "winograd"
    assert fixed("forward", DOUBLING, input.bfloat16(), weight.bfloat16()) == "aten"
    monkeypatch.setattr(winograd, "has_vectors", lambda: False)
    assert fixed("forward", DOUBLING, input, weight) == "aten"


@pytest.mark.usefixtures("vectors")
def test_patches_have_the_pass_that_makes_an_image() -> None:
    weight = torch.empty(64, 3, 4, 4)
    for dtype in (torch.float32, torch.bfloat16):
        maps, image = torch.empty(2, 64, 8, 8, dtype=dtype), torch.empty(2, 3, 16, 16, dtype=dtype)
        taken = {
            (stage.kind, which)
            for stage, input in ((DOUBLING, maps), (HALVING, image))
            for which in PASSES
            if fixed(which, stage, input, weight.to(dtype)) == "patches"
        }
        assert taken == {("conv_transpose2d", "forward"), ("conv2d", "input_gradient")}
    maps = torch.empty(2, 64, 8, 8)
    no = {
        "many channels": (DOUBLING, maps, torch.empty(64, 5, 4, 4)),
        "odd channels": (DOUBLING, maps[:, :20], weight[:20]),
        "large patches": (DOUBLING, maps, torch.empty(64, 4, 5, 5)),
        "dilated": (Stage("conv_transpose2d", dilation=(2, 1)), maps, weight),
        "grouped": (Stage("conv_transpose2d", groups=2), maps, weight),
        "float64": (DOUBLING, maps.double(), weight.double()),
        "elsewhere": (DOUBLING, maps.to("meta"), weight),
    }
    for why, arguments in no.items():
        assert fixed("forward", *arguments) != "patches", why


@pytest.mark.usefixtures("vectors")
def test_patches_are_left_where_most_threads_would_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread makes whole images, and on one thread they take less than half of oneDNN's time."""
    weight = torch.empty(64, 3, 4, 4)
    taken = {1: [1, 2, 3], 2: [1, 2, 3], 8: [4, 7, 8, 9], 64: [32, 64, 65, 128]}
    left = {8: [1, 3], 64: [1, 16, 31]}
    for expected, cases in (("patches", taken), ("aten", left)):
        for threads, batches in cases.items():
            monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
            for batch in batches:
                assert fixed("forward", DOUBLING, torch.empty(batch, 64, 4, 4), weight) == expected


def test_products_have_few_places_and_many_channels() -> None:
    deep = channels_last(512, 256, 6, 6)
    for size, dtype, which, expected in (
        (8, torch.float32, "forward", True),
        (16, torch.float32, "forward", False),
        (8, torch.bfloat16, "forward", False),
        (8, torch.bfloat16, "weight_gradient", True),
        (16, torch.bfloat16, "weight_gradient", False),
    ):
        input, weight = torch.empty(64, 256, size, size, dtype=dtype), deep.to(dtype)
        assert (fixed(which, HALVING, input, weight) == "matrix_product") is expected
        contiguous = weight.contiguous()
        assert fixed(which, HALVING, input, contiguous) == "aten"
    first, last = Stage("conv_transpose2d"), Stage("conv2d")
    for dtype, weight in itertools.product(
        (torch.float32, torch.bfloat16), (deep, deep.contiguous())
    ):
        small, wide = (
            torch.empty(64, 512, 1, 1, dtype=dtype),
            torch.empty(64, 256, 6, 6, dtype=dtype),
        )
        assert fixed("forward", first, small, weight.to(dtype)) == "matrix_product"
        assert fixed("forward", last, wide, weight.to(dtype)) == "matrix_product"
    assert fixed("forward", Stage("linear"), torch.empty(64, 256), torch.empty(3, 256)) == "aten"
    for stage in (Stage("conv2d", dilation=(2, 2)), Stage("conv2d", groups=2)):
        assert (
            fixed("forward", stage, torch.empty(2, 512, 4, 4), channels_last(64, 256, 2, 2))
            == "aten"
        )


# --- All backends -------------------------------------------------------------------------------

PROBLEMS = {
    "inner layer": (DOUBLING, (3, 64, 5, 4), (64, 32, 4, 4)),
    "inner layer of a critic": (HALVING, (3, 32, 10, 8), (64, 32, 4, 4)),
    "image out": (DOUBLING, (2, 32, 5, 4), (32, 3, 4, 4)),
    "image in": (HALVING, (2, 3, 8, 10), (32, 3, 4, 4)),
    "first": (Stage("conv_transpose2d"), (4, 20, 1, 1), (20, 8, 4, 4)),
    "3x3": (CONV, (2, 16, 7, 6), (24, 16, 3, 3)),
    "linear": (Stage("linear"), (5, 7), (3, 7)),
}


@pytest.mark.processors
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layouts", [(False, False), (True, True), (False, True)])
@pytest.mark.parametrize("name", PROBLEMS)
def test_every_backend_is_as_exact_as_eager(
    name: str, layouts: tuple[bool, bool], dtype: torch.dtype
) -> None:
    """Against float64: whatever is chosen, at most twice eager's error, and eager's strides."""
    stage, *shapes = PROBLEMS[name]
    input, weight = (torch.randn(shape).to(dtype) for shape in shapes)
    if stage.kind != "linear":
        input, weight = (
            tensor.contiguous(memory_format=torch.channels_last) if last else tensor
            for tensor, last in zip((input, weight), layouts, strict=True)
        )
    aten = BY_NAME["aten"]
    output = aten.forward(stage, input, weight, None)
    grad = torch.randn(output.shape).to(dtype)

    def passes(backend: Backend, *tensors: Tensor) -> dict[str, Any]:
        input, weight, grad = tensors
        return {
            "forward": lambda: backend.forward(stage, input, weight, None),
            "input_gradient": lambda: backend.input_gradient(stage, grad, input, weight),
            "weight_gradient": lambda: backend.weight_gradient(stage, grad, input, weight, False)[
                0
            ],
        }

    exact = passes(aten, input.double(), weight.double(), grad.double())
    eager = passes(aten, input, weight, grad)
    for which in PASSES:
        expected, usual = exact[which](), eager[which]()
        # Half a step of the result's own rounding is nobody's fault.
        slack = expected.abs().max() * torch.finfo(dtype).eps
        for backend in supporting(Problem.of(which, stage, input, weight)):
            found = passes(backend, input, weight, grad)[which]()
            error = (found.double() - expected).abs().max()
            assert error <= 2 * (usual.double() - expected).abs().max() + slack, backend.name
            if which != "weight_gradient" and not backend.fuses:
                assert found.stride() == usual.stride(), backend.name


def test_a_chain_computes_the_same_by_whatever_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch import nn

    net = fastgan.fuse(
        nn.Sequential(nn.Conv2d(3, 32, 4, 2, 1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 8, 3))
    ).double()
    x = torch.randn(4, 3, 12, 12, dtype=torch.float64)
    expected = F.conv2d(
        F.relu(
            F.batch_norm(F.conv2d(x, net[0].weight, net[0].bias, 2, 1), None, None, training=True)
        ),
        net[3].weight,
        net[3].bias,
    )
    for fastest in ("aten", "matrix_product", "aten_channels_last"):
        monkeypatch.setattr(selection, "measure", Watched(fastest))
        with using(Selector("exhaustive", ChoicesFile(Path(os.devnull).parent / "none"))):
            torch.testing.assert_close(net(x), expected)


def test_the_fixed_table_has_nothing_done_on_load_where_products_are_fast(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight, input = channels_last(8, 8, 4, 4).bfloat16(), channels_last(2, 8, 8, 8).bfloat16()
    loading, after_passes, _ = (each for each in BACKENDS if each.fuses)
    around = fusion_of("norm", "", "statistics")
    assert after_passes.unsupported_reason(Problem.of("forward", HALVING, input, weight))
    for capability, expected in (((8, 6), loading), ((9, 0), after_passes)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        problem = Problem.of("forward", HALVING, input, weight, around)
        problem = problem._replace(device=torch.device("cuda"))
        assert fixed_choice(problem, [loading, after_passes, BACKENDS[-1]]) is expected
        plain = problem._replace(fusion=fusion_of("", "", "statistics"))
        assert fixed_choice(plain, [loading, BACKENDS[-1]]) is loading


# --- What is said -------------------------------------------------------------------------------


def test_what_is_known_of_a_layer(watched: Watched) -> None:
    weight = channels_last(5, 3, 3, 3)
    with using(Selector("0")):
        assert describe_layer(CONV, weight, torch.float32, CPU) == (
            "aten",
            "matrix_product or aten, by a fixed table",
        )
    with using(Selector("1")):
        _, said = describe_layer(CONV, weight, torch.float32, CPU)
        assert said == "matrix_product or aten, by measurement at its first call"
        choose()
        _, said = describe_layer(CONV, weight, torch.float32, CPU)
        assert said.startswith("measured: forward of 2x3x8x8: aten_contiguous 1 ms (")
        facts = backend_facts()
        assert facts["measured on cpu"] == "1 problems; fastest: aten_contiguous 1"
        assert facts["kept for cpu in"] == str(cache_path(fingerprint(CPU)))
