"""Launches: Triton's arguments, and the caching of later calls."""

from __future__ import annotations

import subprocess
import sys

import torch

from fastgan.kernels.launch import Launch
from fastgan.kernels.tiles import Tile

# A driver that names a GPU without one: all of a launch but the launch itself.
BINDING = """
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

class Driver:
    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)
    def get_current_device(self):
        return 0
    def get_current_stream(self, device):
        return 0

driver.set_active(Driver())

from fastgan.kernels import ConvGeometry, convolution, forward, input_gradient, weight_gradient
from fastgan.kernels.fusion import (
    BatchNormGradient,
    NormActivation,
    NormActivationGradient,
    Statistics,
)
from fastgan.kernels.launch import Launch

compiled = []

def bind(self, pointers, descriptors):
    options = dict(self.options, grid=self.grid, warmup=True)
    compiled.append(self.kernel.run(*pointers, *descriptors, *self.arguments, **options))

Launch._run = bind
convolution._capability = lambda device: (9, 0)
ones = torch.ones
def image(*shape):
    return ones(shape, dtype=torch.float16).to(memory_format=torch.channels_last)
geometry = ConvGeometry((4, 4), (2, 2), (1, 1))
x, w, grad = image(64, 64, 8, 8), image(128, 64, 4, 4), image(64, 128, 4, 4)
norm = NormActivation(ones(64), ones(64), None, "relu", 0.0)
gradient = BatchNormGradient(grad, ones(128), ones(128), ones(128), ones(128))
forward(x, w, geometry, prologue=norm, epilogue=Statistics())
input_gradient(
    grad, w, geometry, (8, 8),
    prologue=gradient, epilogue=NormActivationGradient(x, norm, ones(64)),
)
weight_gradient(x, grad, geometry, w, input_prologue=norm, grad_prologue=gradient, with_bias=True)
forward(x, w, geometry, descriptors=True)
weight_gradient(x, grad, geometry, w, descriptors=True)
print(*(kernel.name for kernel in compiled if "wgmma" in kernel.asm["ptx"]))
"""


def test_triton_binds_the_arguments_and_compiles():
    done = subprocess.run(
        [sys.executable, "-c", BINDING], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        *(2 * ["implicit_gemm_kernel"]),
        "weight_gradient_kernel",
        "descriptor_gemm_kernel",
        "descriptor_weight_gradient_kernel",
    ]


class Recorder:
    """Stands for a kernel, or for a compiled one, and writes down its launches."""

    def __init__(self, log: list[tuple[object, ...]], name: str) -> None:
        self.log, self.name = log, name

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            self.log.append((self.name, grid, *arguments[1:], options))
            return Recorder(self.log, "compiled")

        return launch


def test_a_kernel_is_bound_once_for_each_alignment(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    log: list[tuple[object, ...]] = []
    launch = Launch(Recorder(log, "bound"), 5, (7, 1.5), Tile(64, 64, 32, 4, 3))
    tensor = torch.zeros(64)
    for pointer in (tensor, tensor, tensor[1:], tensor[1:], tensor):
        launch(pointer, None)
    options = {"num_warps": 4, "num_stages": 3}
    bound = ("bound", (5, 1, 1), None, 7, 1.5, options)
    again = ("compiled", (5, 1, 1), None, 7, 1.5, {})
    assert log == [bound, again, bound, again, again]


def test_nothing_is_launched_for_no_programs():
    log: list[tuple[object, ...]] = []
    Launch(Recorder(log, "bound"), 0, (), Tile(64, 64, 32, 4, 3))(torch.zeros(1))
    assert log == []
