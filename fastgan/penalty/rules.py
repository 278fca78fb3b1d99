"""The table from ATen op to rule. Other ops use :class:`Autograd`."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastgan.penalty.elementwise import ELEMENTWISE
from fastgan.penalty.linear import LINEAR_RULES
from fastgan.penalty.norms import BatchNorm, GroupNorm, LayerNorm
from fastgan.penalty.products import Convolution, MatrixProduct, Multiply
from fastgan.penalty.rule import AUTOGRAD, POINTWISE, Rule

__all__ = ["RULES", "Op", "rule_of"]

aten = torch.ops.aten

RULES: dict[Any, Rule] = {
    aten.convolution.default: Convolution(),
    aten.mm.default: MatrixProduct(),
    aten.bmm.default: MatrixProduct(),
    aten.addmm.default: MatrixProduct(bias=True),
    aten.baddbmm.default: MatrixProduct(bias=True),
    aten.mul.Tensor: Multiply(),
    aten.mul.Scalar: Multiply(),
    aten.native_layer_norm.default: LayerNorm(),
    aten.native_group_norm.default: GroupNorm(),
    aten.native_batch_norm.default: BatchNorm(),
    **ELEMENTWISE,
    **LINEAR_RULES,
}

#: Names of ops that use only their tensors' shape.
_CONSTANT = re.compile(r"aten::(bernoulli|new_\w+|\w+_like)")

#: Ops that share memory although their schema doesn't say so; ops whose schema says so of a tensor
#: that is new.
_SHARING = {
    *(aten._unsafe_view.default, aten._reshape_alias.default),
    *(aten.unsafe_split.Tensor, aten.unsafe_split_with_sizes.default),
}
_ALONE = {aten.lift_fresh.default}


@dataclass(frozen=True)
class Op:
    """The tape's view of an op, before it runs.

    Attributes:
        writes: names or positions of the arguments that it writes to.
        functional: the op's functional variant; None if there is none.
        random: whether it draws random numbers.
        constant: whether it takes its tensors for their shape alone.
        view: whether its result may share an argument's memory.
        tensors: positions of the arguments that are tensors.
        lists: positions of those that are lists of tensors.
    """

    func: Any
    rule: Rule
    writes: tuple[tuple[int, str], ...]
    functional: Any
    random: bool
    constant: bool
    view: bool
    tensors: tuple[int, ...]
    lists: tuple[int, ...]

    def written(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Tensor]:
        """The tensors that a call writes to."""
        for position, name in self.writes:
            argument = args[position] if position < len(args) else kwargs.get(name)
            for tensor in argument if isinstance(argument, (list, tuple)) else (argument,):
                if isinstance(tensor, Tensor):
                    yield tensor


@functools.cache
def rule_of(func: Any) -> Op:
    """Looks up an ATen op, or an op of another library."""
    schema = func._schema
    writes = tuple(
        (position, argument.name)
        for position, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )
    of_tensors = [
        (position, str(argument.type))
        for position, argument in enumerate(schema.arguments)
        if "Tensor" in str(argument.type)
    ]
    rule = RULES.get(func)
    if rule is None:
        rule = POINTWISE if torch.Tag.pointwise in func.tags else AUTOGRAD
    return Op(
        func,
        rule,
        writes,
        _functional(func) if writes else None,
        torch.Tag.nondeterministic_seeded in func.tags,
        _CONSTANT.fullmatch(schema.name) is not None,
        func in _SHARING
        or (func not in _ALONE and any(result.alias_info is not None for result in schema.returns)),
        tuple(position for position, kind in of_tensors if "List" not in kind),
        tuple(position for position, kind in of_tensors if "List" in kind),
    )


def _functional(func: Any) -> Any:
    """aten.relu_.default -> aten.relu.default."""
    namespace, _, name = func._schema.name.partition("::")
    if not name.endswith("_"):
        return None
    packet = getattr(getattr(torch.ops, namespace), name[:-1], None)
    overload = "int" if name == "transpose_" else func._overloadname
    return None if packet is None else getattr(packet, overload, None)
