"""The tuner's table selects the fastest tile for every problem, with artificial times."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastgan.kernels import tile_tables
from fastgan.kernels.tiles import Problem, Tile, TileRow

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "tune_convolutions.py"


@pytest.fixture(scope="module")
def tuner():
    spec = importlib.util.spec_from_file_location("tune_convolutions", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def problems_of_dcgan(tuner) -> list[Problem]:
    found = []
    for layer in tuner.layers():
        for batch in tuner.BATCHES:
            inputs, outputs = layer.channels
            out_size = layer.geometry.output_size((layer.size, layer.size))
            kernel = "scatter" if layer.geometry.transposed else "gather"
            found.append(Problem(kernel, 16, batch * out_size[0] * out_size[1], outputs, inputs))
    return found


def test_layers_are_those_of_dcgan_64(tuner):
    sizes = [
        (layer.channels, layer.size, layer.geometry.output_size((layer.size, layer.size))[0])
        for layer in tuner.layers()
    ]
    assert sizes == [
        ((100, 512), 1, 4),
        ((512, 256), 4, 8),
        ((256, 128), 8, 16),
        ((128, 64), 16, 32),
        ((64, 3), 32, 64),
        ((3, 64), 64, 32),
        ((64, 128), 32, 16),
        ((128, 256), 16, 8),
        ((256, 512), 8, 4),
        ((512, 1), 4, 1),
    ]


@pytest.mark.parametrize("seed", range(5))
def test_every_problem_finds_the_tile_that_won_it(seed, tuner):
    chance = random.Random(seed)
    problems = problems_of_dcgan(tuner)
    best = {problem: chance.choice(tuner.CANDIDATES[16]) for problem in problems}
    found = tuner.table_from(best, tile_tables.TABLES["sm_90"])
    table = [
        TileRow(kernel, *row[:4], Tile(*row[4])) for kernel, rows in found.items() for row in rows
    ]
    for problem, tile in best.items():
        assert next(row.tile for row in table if row.takes(problem)) == tile
    for kernel in ("gather", "scatter", "weight_gradient"):
        for bits in (16, 32):
            for size in (1, 2**40):
                assert any(row.takes(Problem(kernel, bits, size, size, size)) for row in table)


def test_rows_of_what_was_not_measured_stay(tuner):
    best = {Problem("gather", 16, 4096, 64, 64): Tile(64, 64, 32, 4, 4)}
    old = tile_tables.TABLES["sm_90"]
    new = tuner.table_from(best, old)
    replaced = {row for row in old["gather"] if row[0] == 16 and row[3] is None}
    assert set(new.pop("gather")) == (set(old["gather"]) - replaced) | {
        (16, None, None, None, (64, 64, 32, 4, 4))
    }
    assert new == {kernel: rows for kernel, rows in old.items() if kernel != "gather"}


def test_what_is_rendered_is_the_file(tuner):
    text = tuner.render(tile_tables.MEASURED, tile_tables.PROGRAMS, tile_tables.TABLES)
    assert text == Path(tile_tables.__file__).read_text(encoding="utf-8")


def test_what_is_rendered_says_each_table_whoever_has_it(tuner):
    best = {Problem("gather", 16, 4096, 64, 64): Tile(64, 64, 32, 4, 4)}
    tables = dict(tile_tables.TABLES)
    tables["sm_90"] = tuner.table_from(best, tables["sm_90"])
    text = tuner.render(tile_tables.MEASURED, tile_tables.PROGRAMS, tables)
    written: dict = {}
    exec(compile(text, "tile_tables.py", "exec"), written)
    assert written["TABLES"] == tables
    assert written["TABLES"]["sm_90"]["gather"] != written["TABLES"]["sm_100"]["gather"]
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: it would be tuned for")
def test_without_a_gpu_the_tuner_says_so():
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "needs a CUDA device" in done.stderr
