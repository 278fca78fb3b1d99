"""Ops declared once: schema, reference, examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.ops import check_op, op_paths
from fastgan.ops.define import DEFINED, _copied


@pytest.mark.parametrize("name", DEFINED)
def test_examples_pass_what_torch_asks_of_an_op(name: str, device: torch.device) -> None:
    """One of each dtype: the fake kernel's shapes and strides are the kernel's.

    Whether it compiles doesn't depend on the dtype, and is asked of the first.
    """
    seen: set[torch.dtype] = set()
    for arguments in DEFINED[name].examples():
        (first, *_) = arguments[0] if isinstance(arguments[0], list) else arguments
        if first.dtype not in seen:
            compiling = [] if seen else ["test_autograd_registration", "test_aot_dispatch_dynamic"]
            seen.add(first.dtype)
            torch.library.opcheck(
                DEFINED[name].overload,
                [_copied(argument, device, None) for argument in arguments],
                test_utils=["test_schema", "test_faketensor", *compiling],
            )
    assert seen


@pytest.mark.parametrize("name", DEFINED)
def test_a_wrong_value_is_found(name: str) -> None:
    op = DEFINED[name]
    check_op(name, "cpu")

    def off(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrong(*args: Any) -> Any:
            result = call(*args)
            if result is None:
                written = args[op.places_written[0]]
                written = written[-1] if isinstance(written, list) else written
                written[(0,) * written.dim()] += 1
                return None
            first, *rest = (result,) if isinstance(result, Tensor) else result
            return (first + torch.nn.functional.one_hot(torch.tensor(0), first.shape[-1]), *rest)

        return wrong

    first = next(iter(op.examples()))[0]
    number = len(first) - 1 if isinstance(first, list) else 0
    with pytest.raises(FastganError, match=f"fastgan::{name} gives a wrong result {number} on cpu"):
        replace(op, reference=off(op.reference)).check("cpu")


def test_running_statistics_are_checked_too() -> None:
    op = DEFINED["batch_norm_statistics"]

    def wrong(*args: Any) -> Any:
        result = op.reference(*args)
        args[3].add_(1)
        return result

    with pytest.raises(FastganError, match="a wrong result 4 on cpu"):
        replace(op, reference=wrong).check("cpu")


def test_doctor_knows_every_defined_op() -> None:
    assert set(DEFINED) <= {row.op for row in op_paths()}
