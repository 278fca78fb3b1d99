"""Declares an op once: its schema, a reference in plain PyTorch, and examples.

    @define_op("twice(Tensor input) -> Tensor", examples=lambda: [(torch.ones(3),)])
    def twice(input: Tensor) -> Tensor:
        return 2 * input

The declaration provides the schema, the kernel for devices without a compiled one, the fake kernel
(the reference on meta tensors), the decomposition for ONNX exports, the behaviour under autograd,
and the check for ``fastgan doctor`` and the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.ops.registration import (
    NAMESPACE,
    library,
    register_fallback,
    register_function,
    register_in_place,
)
from fastgan.ops.without_gradient import register_without_gradient

Reference = TypeVar("Reference", bound=Callable[..., Any])
Arguments = tuple[Any, ...]


@dataclass(frozen=True)
class Op:
    """An op under ``torch.ops.fastgan``.

    Attributes:
        schema: with mutation annotations; ``csrc`` has functions of these arguments.
        reference: the op in plain PyTorch, its checks of arguments included.
        examples: arguments on the CPU, of the dtypes that the op takes.
        units: how many units in the last place, of the largest value, the op may be off by.
        exact: the reference's dtype for comparison.
        scratch: arguments that are written, but aren't results.
        as_given: arguments that are of the examples' dtype for the reference, too.
    """

    schema: str
    reference: Callable[..., Any]
    examples: Callable[[], Iterable[Arguments]]
    units: int = 32
    exact: torch.dtype = torch.float64
    scratch: tuple[str, ...] = ()
    as_given: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name under ``torch.ops.fastgan``."""
        return self.schema.partition("(")[0]

    @property
    def overload(self) -> Any:
        """The op as torch calls it."""
        return getattr(torch.ops.fastgan, self.name).default

    @property
    def places_written(self) -> list[int]:
        """The positions of written arguments."""
        arguments = self.overload._schema.arguments
        return [place for place, argument in enumerate(arguments) if argument.is_write]

    def check(self, device: torch.device | str) -> None:
        """Runs the examples on ``device`` and compares with the reference in ``exact``.

        Raises:
            FastganError: a value is off by more than rounding.
        """
        names = [argument.name for argument in self.overload._schema.arguments]
        for arguments in self.examples():
            own = [_copied(each, device, None) for each in arguments]
            wide = [
                _copied(each, "cpu", None if name in self.as_given else self.exact)
                for name, each in zip(names, arguments, strict=False)
            ]
            with torch.no_grad():
                results, expected = _tensors(self.overload(*own)), _tensors(self.reference(*wide))
            for place in self.places_written:
                if names[place] not in self.scratch:
                    results += _tensors(own[place])
                    expected += _tensors(wide[place])
            for number, (actual, right) in enumerate(zip(results, expected, strict=True)):
                size = max(1.0, float(right.abs().max())) if right.numel() else 1.0
                rounding = torch.finfo(actual.dtype).eps if actual.is_floating_point() else 0
                tolerance = self.units * rounding
                error = (actual.cpu().double() - right.double()).abs()
                if not (error <= tolerance * (size + right.double().abs())).all():
                    settings = [each for each in arguments if not isinstance(each, (Tensor, list))]
                    raise FastganError(
                        f"fastgan::{self.name} gives a wrong result {number} on {device}, for "
                        f"{_tensors(own[0])[0].dtype}, {settings}"
                    )


#: The declared ops, by name.
DEFINED: dict[str, Op] = {}


def define_op(
    schema: str,
    *,
    examples: Callable[[], Iterable[Arguments]],
    units: int = 32,
    exact: torch.dtype = torch.float64,
    scratch: tuple[str, ...] = (),
    as_given: tuple[str, ...] = (),
    fake: Callable[..., Any] | None = None,
    written: Callable[[Sequence[Any]], Iterable[Tensor]] | None = None,
    autograd: tuple[Callable[..., Any], Callable[..., Any]] | None = None,
    function: type[torch.autograd.Function] | None = None,
) -> Callable[[Reference], Reference]:
    """Defines an op by its reference.

    Args:
        schema: as in :class:`Op`.
        examples: gives arguments on the CPU, of the dtypes that the op takes.
        units: how many units in the last place, of the largest value, the op may be off by.
        exact: the widest dtype that the op takes.
        scratch: names of arguments that are written, but aren't results.
        as_given: names of arguments that are of the examples' dtype for the reference, too.
        fake: replaces the reference on tensors without values, if it reads values.
        written: given the op's arguments, the tensors that this call writes; by default all in the
            schema.
        autograd: (backward, setup_context) of ``torch.library.register_autograd``.
        function: replaces the op when autograd records; it may keep tensors that the op doesn't
            return. Without ``autograd`` or ``function`` the op raises if autograd would have to
            record it.

    Returns:
        A decorator that returns the reference unchanged.
    """

    def define(reference: Reference) -> Reference:
        op = Op(schema, reference, examples, units, exact, scratch, as_given)
        library.define(schema)
        register_fallback(op.name, reference)
        torch.library.register_fake(f"{NAMESPACE}::{op.name}", fake or reference)
        if autograd is not None:
            backward, setup_context = autograd
            torch.library.register_autograd(
                f"{NAMESPACE}::{op.name}", backward, setup_context=setup_context
            )
        elif function is not None:
            register_function(op.overload, function)
        elif places := op.places_written:
            register_in_place(
                op.overload,
                written or (lambda args: [tensor for i in places for tensor in _tensors(args[i])]),
            )
        else:
            register_without_gradient(op.overload)
        if not op.places_written:
            # Exports to other runtimes, such as ONNX, replace the op by this.
            torch._decomp.register_decomposition(op.overload)(reference)
        DEFINED[op.name] = op
        return reference

    return define


def _tensors(results: Any) -> list[Tensor]:
    if results is None:
        return []
    return list(results) if isinstance(results, (tuple, list)) else [results]


def _copied(argument: Any, device: torch.device | str, dtype: torch.dtype | None) -> Any:
    if isinstance(argument, list):
        return [_copied(element, device, dtype) for element in argument]
    if not isinstance(argument, Tensor):
        return argument
    return argument.to(device, argument.dtype if dtype is None else dtype, copy=True)
