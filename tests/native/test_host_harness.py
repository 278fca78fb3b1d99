"""The host harness finds each kind of planted bug, and none in the corrected kernel."""

from __future__ import annotations

import host_harness
import pytest
import torch
from host_harness import BUILDS, SCHEDULES, Case, HarnessError, Schedule

PLANTED = sorted((host_harness.HERE / "planted").glob("*.cu"))
BOTH = tuple(BUILDS)

#: Entry; the case's tensors; what is said of the broken kernel, by the builds that find it.
BUGS = {
    # --- Out of bounds, misaligned ---
    "write_past_the_end": {
        "values": 130,
        "sanitized": r"(?s)host harness: AddressSanitizer found an error in kernel "
        r"write_past_the_end<false>, block \(2, 0, 0\), thread \(2, 0, 0\).*heap-buffer-overflow"
        r".*WRITE of size 4.*bounds\.cu:\d+",
        "traced": r"out of bounds in kernel write_past_the_end<false>, block \(2, 0, 0\), thread "
        r"\(2, 0, 0\): writes 4 bytes up to 4 bytes after the end of device memory 'values' "
        r"\(520 bytes\) \[at bounds\.cu:\d+\]",
    },
    "read_past_the_end": {
        "values": 130,
        "sanitized": r"(?s)kernel read_past_the_end<false>.*heap-buffer-overflow.*READ of size 4",
        "traced": r"reads 4 bytes up to 4 bytes after the end of device memory 'values'",
    },
    "write_before_the_begin": {
        "values": 63,
        "misalignment": 4,
        # AddressSanitizer's shadow can't guard bytes before others of the same eight.
        "traced": r"writes 4 bytes up to 4 bytes before the begin of device memory 'values'",
    },
    "misaligned_vector": {
        "values": 12,
        "misalignment": 4,
        "sanitized": r"(?s)UndefinedBehaviorSanitizer found an error in kernel misaligned_vector<"
        r"false>.*misaligned address 0x[0-9a-f]+ for type .*, which requires 16 byte",
    },
    "static_shared_past_the_end": {
        "values": 32,
        "sanitized": r"(?s)static_shared_past_the_end<false>, block \(0, 0, 0\), thread \(31, 0, 0"
        r"\).*use-after-poison",
        "traced": r"thread \(31, 0, 0\): reads 4 bytes up to 4 bytes after the end of shared "
        r"memory 'first' \(128 bytes\)",
    },
    "dynamic_shared_past_the_end": {
        "values": 32,
        "sanitized": r"(?s)dynamic_shared_past_the_end<false>, .*heap-buffer-overflow",
        "traced": r"after the end of shared memory 'dynamic_shared' \(128 bytes\)",
    },
    "host_memory": {
        "values": 64,
        "traced": r"reads 4 bytes of what is neither device memory, nor shared memory",
    },
    "table_that_is_gone": {
        "values": 64,
        "sanitized": r"(?s)table_that_is_gone<false>.*heap-use-after-free",
        "traced": r"table_that_is_gone<false>.*neither device memory",
    },
    # --- Barriers ---
    "barrier_after_return": {
        "values": 60,
        "integers": {"count": 60},
        **dict.fromkeys(
            BOTH,
            r"divergent barrier in kernel barrier_after_return<false>, block \(0, 0, 0\), thread "
            r"\(0, 0, 0\): this thread waits at __syncthreads \(barriers\.cu:\d+\), which 4 of 64 "
            r"threads don't reach: thread \(60, 0, 0\) has left the kernel",
        ),
    },
    "barrier_in_both_branches": {
        "values": 64,
        **dict.fromkeys(
            BOTH,
            r"thread \(0, 0, 0\): this thread waits at __syncthreads \(barriers\.cu:(\d+)\), which "
            r"32 of 64 threads don't reach: thread \(32, 0, 0\) waits at __syncthreads "
            r"\(barriers\.cu:(?!\1)\d+\)",
        ),
    },
    "vote_in_branch": {
        "values": 8,
        **dict.fromkeys(
            BOTH,
            r"thread \(2, 1, 0\): this thread waits at __syncthreads_count \(.*\), which 6 of 8 "
            r"threads don't reach: thread \(0, 0, 0\) has left the kernel",
        ),
    },
    "syncwarp_without_some_lanes": {
        "values": 64,
        **dict.fromkeys(
            BOTH,
            r"divergent warp .*thread \(0, 0, 0\): this thread waits at __syncwarp \(.*\) for lane "
            r"1, which its mask names and which has left the kernel",
        ),
    },
    "syncwarp_after_return": {
        "values": 32,
        "integers": {"count": 20},
        **dict.fromkeys(BOTH, r"waits at __syncwarp \(.*\) for lane 20, .* has left the kernel"),
    },
    "mask_without_oneself": {
        "values": 32,
        **dict.fromkeys(
            BOTH, r"bad mask .*thread \(31, 0, 0\): lane 31 calls __syncwarp .*leaves itself out"
        ),
    },
    "shuffle_with_different_masks": {
        "values": 32,
        # The upper half's mask names the upper half alone, whose lanes so meet and ask the lower.
        **dict.fromkeys(
            BOTH, r"undefined shuffle .*__shfl_xor_sync \(.*\) reads lane \d+, which does not take"
        ),
    },
    "shuffle_from_absent_lane": {
        "values": 32,
        **dict.fromkeys(
            BOTH,
            r"undefined shuffle .*thread \(8, 0, 0\): __shfl_down_sync \(.*\) reads lane 16, which "
            r"does not take part",
        ),
    },
    "shuffle_meets_vote": {
        "values": 32,
        **dict.fromkeys(
            BOTH, r"waits at __shfl_sync \(.*\) for lane 5, .* which waits at __any_sync"
        ),
    },
    # --- What nobody wrote ---
    "uninitialised_static_shared": {
        "values": 64,
        "integers": {"count": 63},
        "traced": r"read of uninitialised memory in kernel uninitialised_static_shared<false>, "
        r"block \(0, 0, 0\), thread \(0, 0, 0\): reads 4 bytes of shared memory 'tile' \(256 "
        r"bytes\) at offset 252, of which nothing has written byte 252 \[at values\.cu:\d+\]",
        "schedules": "sanitized",
    },
    "uninitialised_dynamic_shared": {
        "values": 64,
        "integers": {"count": 10},
        "traced": r"reads 4 bytes of shared memory 'dynamic_shared' \(256 bytes\) at offset 252",
        "schedules": "sanitized",
    },
    "uninitialised_shared_scalar": {
        "values": 64,
        "traced": r"block \(0, 0, 0\).*reads 4 bytes of shared memory 'chunk' \(4 bytes\)",
        "schedules": "sanitized",
    },
    "shared_memory_of_the_block_before": {
        "values": 64,
        "traced": r"block \(1, 0, 0\).*reads 4 bytes of shared memory 'scale' \(4 bytes\)",
        "schedules": "sanitized",
    },
    "uninitialised_but_without_effect": {
        "values": 64,
        "traced": r"thread \(1, 0, 0\): reads 4 bytes of shared memory 'tile' .* at offset 4",
    },
    "uninitialised_output": {
        "values": 64,
        "output": 64,
        "uninitialised": {"output"},
        "traced": r"read of uninitialised memory .*: reads 4 bytes of device memory 'output'",
    },
    # --- Races ---
    "reduction_without_barrier": {
        "values": 64,
        "traced": r"race in kernel reduction_without_barrier<false>.* of shared memory 'partial' .*"
        r"which thread \(\d+, 0, 0\) (wrote|read) without a barrier between \[at values\.cu",
        "schedules": "sanitized",
    },
    "tile_overwritten_too_early": {
        "values": 64,
        "traced": r"writes 4 bytes of shared memory 'tile' .*thread \(\d+, 0, 0\) read without",
        "schedules": "sanitized",
    },
    "lockstep_assumed": {
        "values": 64,
        # In ascending order the thread reads what its neighbour has yet to write.
        "traced": r"read of uninitialised memory|race",
        "schedules": "sanitized",
    },
    "syncwarp_for_a_block": {
        "values": 64,
        "traced": r"read of uninitialised memory|race",
        "schedules": "sanitized",
    },
    "sum_without_atomics": {
        "values": 8,
        "output": 1,
        "traced": r"race in .*block \(1, 0, 0\).*reads 4 bytes of device memory 'output' .*which a "
        r"thread of another block wrote without an order between the blocks",
    },
    "block_reads_its_neighbour": {
        "values": 16,
        "output": 8,
        "traced": r"race in .*of device memory 'output' .*another block wrote without an order",
        "schedules": "sanitized",
    },
    "last_block_sums": {
        "values": 8,
        "output": 9,
        "finished": torch.zeros(1, dtype=torch.int32),
        "traced": r"race in .*of device memory 'output' .*another block wrote without an order",
    },
    "wrong_stream": {
        "values": 32,
        **dict.fromkeys(BOTH, r"wrong stream: work was put in the default stream, not in the one"),
    },
}


@pytest.fixture(scope="module")
def planted(harness):
    return harness.program("planted", PLANTED)


def case_of(bug: str, *, corrected: bool) -> Case:
    plan = BUGS[bug]
    tensors = {}
    for name in ("values", "output", "finished"):
        given = plan.get(name)
        if isinstance(given, int):
            # Whole numbers: sums in another order are the same.
            tensors[name] = torch.arange(1, given + 1, dtype=torch.float32)
        elif given is not None:
            tensors[name] = given
    return Case(
        bug,
        tensors,
        integers={"corrected": int(corrected), **plan.get("integers", {})},
        misalignment={"values": plan.get("misalignment", 0)},
        uninitialised=frozenset(plan.get("uninitialised", ())),
        label=f"planted {bug}",
    )


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bug_is_found_and_named(planted, bug):
    plan = BUGS[bug]
    found_by = [build for build in BOTH if build in plan]
    assert found_by
    for build in found_by:
        with pytest.raises(HarnessError, match=plan[build]) as caught:
            planted.run([case_of(bug, corrected=False)], build)
        assert f"planted {bug}, ascending order" in str(caught.value)


@pytest.mark.parametrize("schedule", SCHEDULES[1:], ids=lambda schedule: schedule.order)
@pytest.mark.parametrize("bug", BUGS)
def test_planted_bug_is_found_in_every_order(planted, bug, schedule):
    """Not in the same words: another thread may be the first to be caught."""
    for build in BOTH:
        if build in BUGS[bug]:
            with pytest.raises(HarnessError, match=r"host harness: "):
                planted.run([case_of(bug, corrected=False)], build, schedule)


@pytest.mark.parametrize("bug", [bug for bug in BUGS if "schedules" in BUGS[bug]])
def test_planted_bug_changes_results_with_the_schedule(planted, bug):
    """The second net: the sanitized build alone, by comparing orders and poisons."""
    with pytest.raises(HarnessError, match="result depends on the schedule: tensor '"):
        planted.check([case_of(bug, corrected=False)], builds=["sanitized"])


def test_every_correction_passes_both_builds_in_every_order(planted):
    results = planted.check([case_of(bug, corrected=True) for bug in BUGS])
    assert [result.error for result in results] == [""] * len(BUGS)


def test_index_that_needs_more_than_32_bits_is_found_without_the_memory(planted):
    count = 2**31 + 300
    zeros = torch.zeros(100, dtype=torch.int16)

    def case(corrected):
        values = host_harness.SparseTensor(torch.int16, count, {0: zeros, count - 100: zeros})
        return Case(
            "index_in_32_bits",
            {"values": values},
            integers={"corrected": corrected},
            only_blocks=(0, -1),
        )

    with pytest.raises(HarnessError, match="signed integer overflow") as caught:
        planted.run([case(0)], "sanitized")
    assert "index_in_32_bits<false>, block (8388609, 0, 0), thread (0, 0, 0)" in str(caught.value)
    (result,) = planted.run([case(1)], "sanitized")
    windows = result.tensors["values"]
    assert windows[0].eq(7).all()
    # The last block has 44 elements; the one before it did not run.
    assert windows[count - 100].tolist() == [0] * 56 + [7] * 44


# --- Correct kernels give the right results -------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 1000])
def test_sums_by_shuffles_and_shared_memory(planted, count):
    generator = torch.Generator().manual_seed(count)
    values = torch.randint(-50, 50, (count,), generator=generator).float()
    blocks = -(-count // 256)
    case = Case(
        "block_sums",
        {"values": values, "output": torch.zeros(blocks)},
        uninitialised=frozenset({"output"}),
    )
    (result,) = planted.check([case])
    expected = torch.tensor([chunk.sum() for chunk in values.split(256)][:blocks])
    assert torch.equal(result.tensors["output"], expected)


def test_warp_functions_do_what_ptx_says(planted):
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-99, 99, (32,), generator=generator, dtype=torch.int32)
    case = Case("warp_functions", {"values": values, "results": torch.zeros(512).int()})
    (result,) = planted.check([case])
    v = values.tolist()
    lanes = range(32)
    expected = [
        [v[5] for _ in lanes],
        [v[lane // 8 * 8 + (lane + 3) % 8] for lane in lanes],
        [v[lane - 3] if lane >= 3 else v[lane] for lane in lanes],
        [v[lane - 3] if lane % 8 >= 3 else v[lane] for lane in lanes],
        [v[lane + 3] if lane + 3 < 32 else v[lane] for lane in lanes],
        [v[lane + 3] if lane % 8 + 3 < 8 else v[lane] for lane in lanes],
        [v[lane ^ 9] for lane in lanes],
        # Beyond its segment's end a lane keeps its own; before its begin it may read.
        [v[lane ^ 9] if lane ^ 9 <= lane // 8 * 8 + 7 else v[lane] for lane in lanes],
        [(sum((v[lane] > 0) << lane for lane in lanes) + 2**31) % 2**32 - 2**31 for _ in lanes],
        [1 for _ in lanes],
        [int(len(set(v)) == 1) for _ in lanes],
        [sum(v) for _ in lanes],
        [max(v) for _ in lanes],
        [min(v[:8]) if lane < 8 else 0 for lane in lanes],
        [int(0.5 * v[31]) for _ in lanes],
        [-1 for _ in lanes],
    ]
    assert result.tensors["results"].view(32, 16).t().tolist() == expected


def test_votes_count_the_threads_of_a_two_dimensional_block(planted):
    generator = torch.Generator().manual_seed(1)
    values = torch.randint(-2, 3, (240,), generator=generator, dtype=torch.int32)
    values[:40] = 1
    values[40:80] = -2
    case = Case("votes", {"values": values, "results": torch.zeros(240).int()})
    (result,) = planted.check([case])
    for block, got in zip(values.split(40), result.tensors["results"].split(40), strict=True):
        expected = (
            int((block > 0).sum())
            + 1000 * bool((block > -2).all())
            + 2000 * bool((block > 1).any())
        )
        assert got.tolist() == [expected] * 40


def test_atomics_add_up_in_every_order(planted):
    generator = torch.Generator().manual_seed(2)
    values = torch.randint(-99, 99, (256,), generator=generator, dtype=torch.int32)
    tensors = {"values": values, "results": torch.zeros(6).int(), "sum": torch.zeros(1)}
    (result,) = planted.check([Case("atomics", tensors)])
    all_bits = 0
    for value in values.tolist():
        all_bits |= value
    total = int(values.sum())
    expected = [total, max(0, *values.tolist()), min(0, *values.tolist()), all_bits, total, 64]
    assert result.tensors["results"].tolist() == expected
    assert result.tensors["sum"].item() == total


def test_what_was_launched_can_be_replayed_as_a_graph(planted):
    (result,) = planted.check([Case("count_launches", {"values": torch.zeros(32)}, replays=3)])
    assert result.tensors["values"].tolist() == [3.0] * 32


def test_copies_and_fills_run_in_the_stream_and_initialise(planted):
    tensors = {"values": torch.arange(32.0), "output": torch.zeros(32)}
    case = Case("copy_and_fill", tensors, uninitialised=frozenset({"output"}))
    (result,) = planted.check([case])
    assert result.tensors["output"].tolist() == [i + 1 for i in range(32)]
    assert result.tensors["values"].tolist() == list(range(32))


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({}, ""),
        ({"threads": 1024, "blocks": 2}, ""),
        ({"shared": 48 << 10}, ""),
        ({"blocks": 0}, ""),  # launch() launches nothing
        ({"threads": 1025}, "nothing failed: cudaErrorInvalidConfiguration"),
        ({"threads": 0}, "cudaErrorInvalidConfiguration"),
        ({"blocks_y": 65536}, "cudaErrorInvalidConfiguration"),
        ({"shared": (48 << 10) + 1}, "cudaErrorInvalidValue"),
    ],
)
def test_impossible_launches_are_errors_as_on_a_gpu(planted, asked, error):
    integers = {"blocks": 1, "blocks_y": 1, "threads": 1, "shared": 0, **asked}
    (result,) = planted.run([Case("launch_as_asked", {}, integers=integers)], "sanitized")
    assert error in result.error
    assert bool(result.error) == bool(error)


def test_fibers_on_ucontext_give_the_same(harness, planted):
    """What other processors than x86-64 use."""
    portable = harness.program(
        "planted-ucontext", PLANTED, runtime_flags={"fibers": ["-DFASTGAN_HOST_UCONTEXT"]}
    )
    values = torch.arange(600.0)
    case = Case("block_sums", {"values": values, "output": torch.zeros(3)})
    (result,) = portable.check([case])
    assert result.tensors["output"].tolist() == [chunk.sum() for chunk in values.split(256)]
    with pytest.raises(HarnessError, match=BUGS["vote_in_branch"]["traced"]):
        portable.run([case_of("vote_in_branch", corrected=False)], "sanitized")


def test_shuffled_orders_differ_by_seed_and_are_the_same_for_the_same_seed(planted):
    """Seen through a race that the sanitized build does not watch for."""
    case = case_of("reduction_without_barrier", corrected=False)

    def run(seed):
        (result,) = planted.run([case], "sanitized", Schedule("shuffled", seed))
        return result.tensors["values"].tolist()

    assert run(1) == run(1)
    assert len({tuple(run(seed)) for seed in range(1, 6)}) > 1


def test_program_that_does_not_compile_is_an_error_with_the_compilers_words(harness, tmp_path):
    source = tmp_path / "broken.cu"
    source.write_text("extern __shared__ float values[];\n")
    with pytest.raises(HarnessError, match=r"broken\.cu"):
        harness.program("broken", [source])


def test_unfit_case_is_refused_by_name(planted):
    for case, message in (
        (Case("no_such_entry", {}), "no entry 'no_such_entry'"),
        (Case("count_launches", {}), "no tensor 'values'"),
    ):
        with pytest.raises(HarnessError, match=message):
            planted.run([case], "sanitized")
