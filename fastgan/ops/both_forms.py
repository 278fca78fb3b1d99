"""Ops that take a gradient back in two forms: a new tensor, or written over the gradient that came.

Both forms have one set of checks and one formula; the name of the one in place ends in ``_``, its
first argument is what it writes. Neither has a gradient of its own: they raise where autograd would
have to record them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastgan.ops.registration import (
    NAMESPACE,
    define_if_absent,
    register_fallback,
    register_in_place_on_lists,
)
from fastgan.ops.without_gradient import register_without_gradient

__all__ = ["define_both_forms", "returning_what_it_writes"]


def define_both_forms(
    schema: str,
    in_place_schema: str,
    *,
    check: Callable[..., None],
    formula: Callable[..., Tensor],
    empty: Callable[..., Tensor],
) -> tuple[Callable[..., Tensor], Callable[..., None]]:
    """Defines ``name`` and ``name_``, with all that Python has to say about them.

    Args:
        schema: of the form that returns its result.
        in_place_schema: of the other; it has the same arguments.
        check: called with the op's name and its arguments; raises RuntimeError.
        formula: of the arguments, in plain PyTorch; any layout and a wider dtype will do.
        empty: of the arguments; a tensor such as the result.

    Returns:
        Both in plain PyTorch.
    """
    name = schema.partition("(")[0]

    def plain(*args: Any) -> Tensor:
        check(name, *args)
        return empty(*args).copy_(formula(*args))

    def plain_(grad_output: Tensor, *args: Any) -> None:
        check(f"{name}_", grad_output, *args)
        grad_output.copy_(formula(grad_output, *args))

    def fake(*args: Any) -> Tensor:
        check(name, *args)
        return empty(*args)

    def fake_(*args: Any) -> None:
        check(f"{name}_", *args)

    define_if_absent(schema)
    define_if_absent(in_place_schema)
    register_fallback(name, plain)
    register_fallback(f"{name}_", plain_)
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake)
    torch.library.register_fake(f"{NAMESPACE}::{name}_", fake_)
    register_without_gradient(getattr(torch.ops.fastgan, name).default)
    register_in_place_on_lists(
        getattr(torch.ops.fastgan, f"{name}_").default, lambda args: [args[0]]
    )
    return plain, plain_


def returning_what_it_writes(op: Callable[..., None]) -> Callable[..., Tensor]:
    """The form in place as the other is called, for the checks that both share."""

    def call(grad_output: Tensor, *args: Any) -> Tensor:
        op(grad_output, *args)
        return grad_output

    return call
