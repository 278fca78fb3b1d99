"""Indices beyond 2^31, checked on sizes alone: no such tensor is allocated.

A small program is compiled from the headers that the kernels use, and its answers are compared with
Python's integers, which have no limit.
"""

from __future__ import annotations

import os
import random
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHUNK = 8192

PROGRAM = r"""
#include <cstdio>
#include <cstring>
#include <iostream>
#include <vector>

#include "cuda/chunk_table.h"

using namespace fastgan;
using namespace fastgan::cuda;

// In: "table", the chunk size, the number of tensors, their sizes, the number of questions, chunks.
// Out: the number of chunks, then for each chunk asked for: tensor, begin, end.
void answer_table() {
    std::int64_t chunk_elements, tensors, questions;
    std::cin >> chunk_elements >> tensors;
    ChunkTable table;
    for (std::int64_t i = 0; i < tensors; ++i) {
        MultiTensorItem item;
        std::cin >> item.numel;
        add_to_table(table, item, true, chunk_elements);
    }
    std::cout << table.chunks << "\n";
    std::cin >> questions;
    for (std::int64_t i = 0; i < questions; ++i) {
        std::int64_t asked;
        std::cin >> asked;
        const Chunk chunk = find_chunk(table, asked, chunk_elements);
        std::cout << chunk.entry << " " << chunk.begin << " " << chunk.end << "\n";
    }
}

// In: "layout", dimensions, sizes, the parameter's strides, the gradient's, questions, indices.
// Out: for each index: the offset in the parameter and in the gradient.
void answer_layout() {
    int dimensions;
    std::cin >> dimensions;
    std::vector<std::int64_t> sizes(dimensions), param(dimensions), grad(dimensions);
    for (auto* list : {&sizes, &param, &grad}) {
        for (auto& value : *list) {
            std::cin >> value;
        }
    }
    const std::int64_t* const strides[kPlaces] = {param.data(), grad.data()};
    const JointLayout layout = make_joint_layout(sizes.data(), strides, dimensions);
    std::int64_t questions;
    std::cin >> questions;
    for (std::int64_t i = 0; i < questions; ++i) {
        std::int64_t index;
        std::cin >> index;
        std::cout << layout.offset(kParam, index) << " " << layout.offset(kGrad, index) << "\n";
    }
}

int main() {
    std::string question;
    std::cin >> question;
    question == "table" ? answer_table() : answer_layout();
}
"""


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """Given words, the program's answer as rows of numbers."""
    if not (ROOT / "csrc").exists():
        pytest.skip("needs a checkout: this is an install without its sources")
    compiler = shlex.split(os.environ.get("CXX", "") or "g++")
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"needs a C++ compiler: {compiler[0]} is not here")
    folder = tmp_path_factory.mktemp("index_arithmetic")
    source, program = folder / "main.cpp", folder / "main"
    source.write_text("#include <string>\n" + PROGRAM, encoding="utf-8")
    flags = ["-std=c++20", "-O1", "-fsanitize=undefined", "-fno-sanitize-recover=all"]
    subprocess.run(
        [*compiler, *flags, "-I", str(ROOT / "csrc"), str(source), "-o", str(program)], check=True
    )

    def run(*words):
        flat = []
        for word in words:
            flat += word if isinstance(word, (list, tuple)) else [word]
        result = subprocess.run(
            [str(program)],
            input=" ".join(map(str, flat)),
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return [[int(x) for x in line.split()] for line in result.stdout.splitlines()]

    return run


@pytest.mark.parametrize(
    "sizes",
    [
        [2**31 + 37],
        [2**33 + 5, 1, 2**31 - 1, 0, 2**32, 17],
        [1] * 40,
        [0] * 7 + [2**40 + 1] + [CHUNK, CHUNK - 1, CHUNK + 1],
    ],
)
def test_every_chunk_lies_where_exact_arithmetic_puts_it(ask, sizes):
    chunks = [max(1, -(-n // CHUNK)) for n in sizes]
    first = [sum(chunks[:i]) for i in range(len(sizes))]
    total = sum(chunks)
    generator = random.Random(0)
    asked = {0, total - 1, *first, *(f - 1 for f in first if f > 0)}
    asked |= {generator.randrange(total) for _ in range(200)}
    asked = sorted(asked)
    (answered,), *rows = ask("table", CHUNK, len(sizes), sizes, len(asked), asked)
    assert answered == total
    for chunk, (entry, begin, end) in zip(asked, rows, strict=True):
        expected = max(i for i in range(len(sizes)) if first[i] <= chunk)
        assert entry == expected
        assert begin == (chunk - first[expected]) * CHUNK
        assert end == min(begin + CHUNK, sizes[expected])
    for i, n in enumerate(sizes):  # nothing is left out at a tensor's end
        if n > 0:
            assert (chunks[i] - 1) * CHUNK < n <= chunks[i] * CHUNK


def offsets(sizes, strides, order, index):
    """The offset of the index-th element, dimensions counted in `order`, fastest first."""
    result = 0
    for d in order:
        index, position = divmod(index, sizes[d])
        result += position * strides[d]
    return result


@pytest.mark.parametrize("seed", range(20))
def test_every_element_of_large_strided_tensors_lies_where_exact_arithmetic_puts_it(ask, seed):
    generator = random.Random(seed)
    dimensions = generator.randrange(1, 6)
    sizes = [generator.choice([1, 2, 3, 70, 4099, 65537]) for _ in range(dimensions)]
    sizes[generator.randrange(dimensions)] = 2**31 + 11
    strides = []
    for _ in range(
        2
    ):  # of the parameter and of the gradient: dense in an order of its own, or gappy
        order = generator.sample(range(dimensions), dimensions)
        stride, made = generator.choice([1, 1, 2]), [0] * dimensions
        for d in order:
            made[d] = stride
            stride *= sizes[d] if stride < 2**40 else 1
        strides.append(made)
    if any(sum((n - 1) * s for n, s in zip(sizes, made, strict=True)) >= 2**62 for made in strides):
        sizes = [min(n, 2**31 + 11) if i == 0 else 2 for i, n in enumerate(sizes)]
        strides = [[2, *(2**40 * 2**i for i in range(dimensions - 1))]] * 2
    numel = 1
    for n in sizes:
        numel *= n
    if numel >= 2**62:
        sizes, strides, numel = [2**31 + 11], [[3], [5]], 2**31 + 11
    real = [d for d in range(len(sizes)) if sizes[d] > 1]
    by_stride = sorted(real, key=lambda d: (strides[0][d], -d))
    asked = sorted({0, numel - 1, *(generator.randrange(numel) for _ in range(100))})
    rows = ask("layout", len(sizes), sizes, strides[0], strides[1], len(asked), asked)
    for index, (param, grad) in zip(asked, rows, strict=True):
        assert param == offsets(sizes, strides[0], by_stride, index)
        assert grad == offsets(sizes, strides[1], by_stride, index)
