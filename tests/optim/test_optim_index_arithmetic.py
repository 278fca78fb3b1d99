"""Indices beyond 2^31, checked on sizes alone: no such tensor is allocated.

The headers that the kernels use are compiled as a Python module, and its answers are compared with
Python's integers, which have no limit. Undefined arithmetic ends the process.
"""

from __future__ import annotations

import importlib.util
import os
import random
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pybind11
import pytest

ROOT = Path(__file__).resolve().parents[2]
CHUNK = 8192

MODULE = r"""
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <tuple>
#include <vector>

#include "cuda/chunk_table.h"

using namespace fastgan;
using namespace fastgan::cuda;
using Numbers = std::vector<std::int64_t>;

// The number of chunks, and of each chunk asked for: tensor, begin, end.
auto chunks(std::int64_t chunk_elements, const Numbers& sizes, const Numbers& asked) {
    ChunkTable table;
    for (const std::int64_t numel : sizes) {
        MultiTensorItem item;
        item.numel = numel;
        add_to_table(table, item, true, chunk_elements);
    }
    std::vector<std::tuple<std::int64_t, std::int64_t, std::int64_t>> found;
    for (const std::int64_t number : asked) {
        const Chunk chunk = find_chunk(table, number, chunk_elements);
        found.emplace_back(chunk.entry, chunk.begin, chunk.end);
    }
    return std::make_tuple(std::int64_t{table.chunks}, found);
}

// Of each element asked for: the offset in the parameter and in the gradient.
auto offsets(
    const Numbers& sizes, const Numbers& param, const Numbers& grad, const Numbers& asked) {
    const std::int64_t* const strides[kPlaces] = {param.data(), grad.data()};
    const auto layout = make_joint_layout(sizes.data(), strides, static_cast<int>(sizes.size()));
    std::vector<std::tuple<std::int64_t, std::int64_t>> found;
    for (const std::int64_t index : asked) {
        found.emplace_back(layout.offset(kParam, index), layout.offset(kGrad, index));
    }
    return found;
}

PYBIND11_MODULE(index_arithmetic, module) {
    module.def("chunks", &chunks);
    module.def("offsets", &offsets);
}
"""


@pytest.fixture(scope="module")
def headers(tmp_path_factory):
    """The module."""
    if not (ROOT / "csrc").exists():
        pytest.skip("needs a checkout: this is an install without its sources")
    compiler = shlex.split(os.environ.get("CXX", "") or "g++")
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"needs a C++ compiler: {compiler[0]} is not here")
    folder = tmp_path_factory.mktemp("index_arithmetic")
    source, library = folder / "module.cpp", folder / "index_arithmetic.so"
    source.write_text(MODULE, encoding="utf-8")
    flags = ["-std=c++20", "-O0", "-shared", "-fPIC", "-fvisibility=hidden"]
    flags += ["-fsanitize=undefined", "-fsanitize-undefined-trap-on-error", "-fno-sanitize=vptr"]
    for place in (ROOT / "csrc", pybind11.get_include(), sysconfig.get_path("include")):
        flags += ["-isystem", str(place)]
    subprocess.run([*compiler, *flags, str(source), "-o", str(library)], check=True)
    spec = importlib.util.spec_from_file_location("index_arithmetic", library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "sizes",
    [
        [2**31 + 37],
        [2**33 + 5, 1, 2**31 - 1, 0, 2**32, 17],
        [1] * 40,
        [0] * 7 + [2**40 + 1] + [CHUNK, CHUNK - 1, CHUNK + 1],
    ],
)
def test_every_chunk_lies_where_exact_arithmetic_puts_it(headers, sizes):
    chunks = [max(1, -(-n // CHUNK)) for n in sizes]
    first = [sum(chunks[:i]) for i in range(len(sizes))]
    total = sum(chunks)
    generator = random.Random(0)
    asked = {0, total - 1, *first, *(f - 1 for f in first if f > 0)}
    asked |= {generator.randrange(total) for _ in range(200)}
    asked = sorted(asked)
    answered, rows = headers.chunks(CHUNK, sizes, asked)
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
def test_every_element_of_large_strided_tensors_lies_where_exact_arithmetic_puts_it(headers, seed):
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
    rows = headers.offsets(sizes, strides[0], strides[1], asked)
    for index, (param, grad) in zip(asked, rows, strict=True):
        assert param == offsets(sizes, strides[0], by_stride, index)
        assert grad == offsets(sizes, strides[1], by_stride, index)
