"""Supported problems, and the errors for wrong arguments."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from fastgan.errors import ConfigError, DtypeError
from fastgan.kernels import (
    ConvGeometry,
    forward,
    input_gradient,
    unsupported_reason,
    weight_gradient,
)
from fastgan.kernels.convolution import _float32_precision
from fastgan.kernels.fusion import ActivationGradient, NormActivation

GEOMETRY = ConvGeometry((4, 4), (2, 2), (1, 1))
INPUT = torch.zeros(2, 3, 8, 8)
WEIGHT = torch.zeros(5, 3, 4, 4)
GRAD = torch.zeros(2, 5, 4, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_covered(dtype):
    assert unsupported_reason(GEOMETRY, dtype) is None
    assert unsupported_reason(GEOMETRY, dtype, 1, input_shape=(2, 3, 8, 8)) is None


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"dtype": torch.float64}, "float64"),
        ({"dtype": torch.complex64}, "complex64"),
        ({"groups": 3}, "groups = 3"),
        ({"input_shape": (3, 8, 8)}, "an input of 3 dimensions"),
        ({"input_shape": (2, 0, 8, 8)}, "0 channels"),
        ({"input_shape": (1, 3, 2**16, 2**16)}, "an image of 2^31 pixels or more"),
        ({"device": torch.device("cpu")}, "device cpu"),
        ({"device": torch.device("meta")}, "device meta"),
    ],
)
def test_what_is_not_covered(arguments, reason):
    assert unsupported_reason(GEOMETRY, **{"dtype": torch.float32, **arguments}) == reason


def test_without_triton_all_imports_and_covers_says_so():
    program = """
import sys
sys.modules["triton"] = None
import torch, fastgan
from fastgan.kernels import ConvGeometry, unsupported_reason
print(unsupported_reason(ConvGeometry((4, 4)), torch.float32))
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "triton is not installed"


def test_triton_is_not_imported_before_it_is_needed():
    program = """
import sys
import torch
before = "triton" in sys.modules
import fastgan.kernels
print(("triton" in sys.modules) == before)
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "True"


def norm(channels: int) -> NormActivation:
    vector = torch.zeros(channels)
    return NormActivation(vector, vector, vector, "relu", 0.0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: forward(INPUT, WEIGHT[:, :2], GEOMETRY),
            ConfigError,
            "a tensor of shape (2, 3, 8, 8) with a weight of shape (5, 2, 4, 4); expected 2",
        ),
        (
            lambda: forward(INPUT, WEIGHT[..., :3], GEOMETRY),
            ConfigError,
            "weight has shape (5, 3, 4, 3); expected four dimensions that end in (4, 4)",
        ),
        (
            lambda: forward(INPUT.double(), WEIGHT.double(), GEOMETRY),
            DtypeError,
            "a tensor is torch.float64; expected float32, float16 or bfloat16",
        ),
        (
            lambda: forward(INPUT, WEIGHT.half(), GEOMETRY),
            DtypeError,
            "weight is torch.float16; expected torch.float32",
        ),
        (
            lambda: forward(INPUT, WEIGHT, GEOMETRY, prologue=norm(4)),
            ConfigError,
            "the prologue's mean has shape (4,) on cpu; expected (3,) on cpu",
        ),
        (
            lambda: input_gradient(GRAD, WEIGHT, GEOMETRY, (16, 16)),
            ConfigError,
            "grad_output has shape (2, 5, 4, 4); expected 8x8 pixels, from an input of 16x16",
        ),
        (
            lambda: input_gradient(
                GRAD, WEIGHT, GEOMETRY, (8, 8), prologue=ActivationGradient(INPUT, "relu", 0.0)
            ),
            ConfigError,
            "the prologue's tensor has shape (2, 3, 8, 8) on cpu; expected (2, 5, 4, 4) on cpu",
        ),
        (
            lambda: input_gradient(
                GRAD, WEIGHT, GEOMETRY, (8, 8), prologue=ActivationGradient(GRAD.half(), "relu", 0)
            ),
            DtypeError,
            "the prologue's tensor is torch.float16; expected torch.float32",
        ),
        (
            lambda: forward(
                INPUT, WEIGHT, GEOMETRY, epilogue=ActivationGradient(INPUT, "relu", 0.0)
            ),
            ConfigError,
            "the epilogue's tensor has shape (2, 3, 8, 8) on cpu; expected (2, 5, 4, 4) on cpu",
        ),
        (
            lambda: forward(INPUT, WEIGHT, GEOMETRY, out=GRAD[:1]),
            ConfigError,
            "out has shape (1, 5, 4, 4) on cpu; expected (2, 5, 4, 4) on cpu",
        ),
        (
            lambda: forward(INPUT, WEIGHT, GEOMETRY, out=GRAD),
            ConfigError,
            "out has strides (80, 16, 4, 1); expected channels-last memory",
        ),
        (
            lambda: input_gradient(GRAD, WEIGHT, GEOMETRY, (8, 8), out=INPUT.half()),
            DtypeError,
            "out is torch.float16; expected torch.float32",
        ),
        (
            lambda: weight_gradient(INPUT[:1], GRAD, GEOMETRY, WEIGHT),
            ConfigError,
            "grad_output has 2 samples; expected 1, as input",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, error, message):
    with pytest.raises(error) as raised:
        call()
    assert message in str(raised.value)


@pytest.fixture
def precision_settings():
    allowed = torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cudnn.allow_tf32 = allowed


@pytest.mark.usefixtures("precision_settings")
def test_tf32_exactly_where_torch_allows_it():
    torch.backends.cudnn.allow_tf32 = True
    assert _float32_precision(torch.float32) == "tf32"
    assert _float32_precision(torch.float16) == "ieee"
    torch.backends.cudnn.allow_tf32 = False
    assert _float32_precision(torch.float32) == "ieee"
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    assert _float32_precision(torch.float32) == "tf32"
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    assert _float32_precision(torch.float32) == "ieee"
