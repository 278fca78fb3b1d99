"""What the compiled ops refuse when they are called directly, each named in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import fastgan

pytestmark = pytest.mark.skipif(
    not fastgan.build_info().cpu_instruction_sets, reason="the compiled ops weren't built"
)
ops = torch.ops.fastgan

MAPS = torch.ones(2, 3, 4, 4)
ROWS = torch.ones(2, 3)
VECTOR = torch.ones(3)
BITS = torch.zeros(1, dtype=torch.uint8)
RELU, LEAKY_RELU, TANH = 1, 2, 3
NOTHING, BITS_KEPT, INPUT = 0, 1, 3


def bias_act(x: torch.Tensor, b: Any = None, dim: int = 1, act: int = RELU) -> Any:
    return ops.bias_act(x, b, dim, act, 0.2, 1.0, None)


def bias_act_gradient(kept: Any, act: int, keeps: int, channels_last: bool = False) -> Any:
    return ops.bias_act_gradient(
        ROWS, kept, None, 1, act, 0.2, 1.0, None, keeps, channels_last, False
    )


def upfirdn2d(f: Any = None, up: Any = (1, 1), padding: Any = (0, 0, 0, 0)) -> Any:
    return ops.upfirdn2d(MAPS, f, up, [1, 1], padding, False, 1.0)


def filtered_lrelu(b: torch.Tensor) -> Any:
    return ops.filtered_lrelu(MAPS, None, None, b, 1, 1, [0] * 4, 1.0, 0.2, None, False)


def mix(batch: torch.Tensor, real: torch.Tensor, fake: torch.Tensor) -> Any:
    return ops.penalty_mix_(batch, real, fake, torch.ones(real.size(0)))


def tangent(gradient: torch.Tensor, output: torch.Tensor) -> Any:
    norms = torch.ones(gradient.size(0))
    return ops.penalty_tangent_(gradient, output, norms, torch.ones(1), 1.0, 1.0, False)


def norm(maps: torch.Tensor, *outputs: torch.Tensor) -> Any:
    return ops.penalty_norm_forward_(
        maps, None, None, 1, 1e-5, outputs[0], torch.ones(maps.size(0), 1), outputs[-1]
    )


def finalize(counters: Any) -> Any:
    norm = (None, None, None, 0.1, 1e-5, None, None)
    return ops.batch_norm_finalize(torch.ones(2), ROWS, ROWS, *norm, counters)


def rmsprop(shadows: Any = (), square_avgs: Any = (), **tensors: Any) -> Any:
    params = [torch.ones(2)]
    given = {"grad_scale": None, "found_inf": None, **tensors}
    return ops.rmsprop_step_(
        *(params, [torch.ones(2)], list(square_avgs) or [torch.ones(2)], [], []),
        *([torch.ones(())], list(shadows), 0.1, None, 0.9, 1e-8, 0.0, 0.0),
        *(False, False, float("-inf"), float("inf"), False),
        *given.values(),
    )


CASES: dict[str, tuple[Callable[[], Any], str]] = {
    "another dtype": (lambda: bias_act(ROWS, VECTOR.double()), r"b has dtype torch\.float64; exp"),
    "an unnamed dtype": (lambda: bias_act(ROWS.to(torch.float8_e5m2)), r"x has dtype .*; expected"),
    "an unknown activation": (lambda: bias_act(ROWS, act=99), "act is 99; expected a code from 0"),
    "a dimension too many": (lambda: bias_act(ROWS, dim=2), "dim is 2, x has 2 dimensions"),
    "a bias too long": (
        lambda: bias_act(ROWS, torch.ones(4)),
        r"b has shape \(4\); expected \(3\)",
    ),
    "bits of tanh": (
        lambda: ops.bias_act_bits(ROWS, None, 1, TANH, 0.0, 1.0),
        "act is 3; expected 1 or 2",
    ),
    "channels last of rows": (
        lambda: bias_act_gradient(ROWS, RELU, INPUT, channels_last=True),
        "channels-last goes with dim = 1 of four dimensions",
    ),
    "nothing kept of relu": (
        lambda: bias_act_gradient(None, TANH, NOTHING),
        "from what keeps = 0 names, this gradient can't be computed",
    ),
    "too few bits": (
        lambda: bias_act_gradient(BITS[:0], LEAKY_RELU, BITS_KEPT),
        r"kept has shape \(0\) and dtype torch\.uint8; expected 1 of torch\.uint8",
    ),
    "another input": (
        lambda: bias_act_gradient(torch.ones(3, 2), RELU, INPUT),
        r"kept has shape \(3, 2\); expected \(2, 3\)",
    ),
    "one factor for two axes": (lambda: upfirdn2d(up=[2]), "up should be 2 numbers from 1 on"),
    "a padding past all numbers": (
        lambda: upfirdn2d(padding=[0, 0, 0, 2**40]),
        "padding should be 4 numbers from",
    ),
    "a filter of three dimensions": (
        lambda: upfirdn2d(torch.ones(1, 1, 1)),
        r"f has shape \(1, 1, 1\); expected \(taps,\) or \(rows, columns\)",
    ),
    "a filter of halves": (lambda: upfirdn2d(VECTOR.half()), "expected float32 or float64"),
    "a bias of another map": (
        lambda: filtered_lrelu(torch.ones(4)),
        r"b has shape \(4\); expected \(3\)",
    ),
    "fakes of another dtype": (
        lambda: mix(torch.ones(6, 3), ROWS, ROWS.double()),
        r"dtypes torch\.float32, torch\.float64 and torch\.float32; expected one for all",
    ),
    "more dimensions than are counted": (
        lambda: mix(
            torch.ones(3, *[2] * 9), *[torch.ones(10).as_strided((1, *[2] * 9), [1] * 10)] * 2
        ),
        "real and fake have more than",
    ),
    "two halves of different kinds": (
        lambda: tangent(ROWS.half(), ROWS.bfloat16()),
        r"dtypes torch\.float16 and torch\.bfloat16; expected the same",
    ),
    "no samples": (lambda: tangent(ROWS[:0], ROWS[:0].clone()), "gradient has no samples"),
    "another order in memory": (
        lambda: norm(MAPS, MAPS.clone(), MAPS.contiguous(memory_format=torch.channels_last)),
        "lies in memory in another order than the first tensor",
    ),
    "channels in between": (
        lambda: norm(*[torch.ones(2, 4, 3, 4).transpose(1, 2)] * 3),
        "is neither contiguous nor channels-last",
    ),
    "maps of another dtype": (
        lambda: norm(MAPS, MAPS.clone(), MAPS.half()),
        r"has dtype torch\.float16; expected that of the first tensor",
    ),
    "a float counter": (
        lambda: finalize([torch.ones(())]),
        r"counters has a tensor of shape \(\) and dtype torch\.float32; expected one int64",
    ),
    "too many counters": (
        lambda: finalize([torch.tensor(0)] * 17),
        "counters has 17 tensors; expected at most 16",
    ),
    "an unknown loss": (
        lambda: ops.adversarial_loss(ROWS, ROWS, 4, False),
        "loss is 4; expected 0 to 3",
    ),
    "scores of two dtypes": (
        lambda: ops.adversarial_loss(ROWS, ROWS.half(), 0, False),
        r"dtypes torch\.float32 and torch\.float16; expected one dtype, on one device",
    ),
    "a loss's gradient of another dtype": (
        lambda: ops.adversarial_loss_gradient(ROWS, None, torch.ones(()).half(), 0, 1.0),
        r"grad_output has shape \(\) and dtype torch\.float16; expected one number",
    ),
    "a shadow of float32": (
        lambda: rmsprop(shadows=[torch.ones(2)]),
        "shadows must all be float16 or all bfloat16, one is",
    ),
    "two averages of one parameter": (
        lambda: rmsprop(square_avgs=[torch.ones(2)] * 2),
        "square_avgs has 2 tensors for 1 in params",
    ),
    "a scale of two numbers": (
        lambda: rmsprop(grad_scale=torch.ones(2)),
        r"grad_scale has shape \(2\) and dtype torch\.float32; expected one element",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_an_op_refuses_it_names(case: str) -> None:
    call, words = CASES[case]
    with pytest.raises(RuntimeError, match=words):
        call()
