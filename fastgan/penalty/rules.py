"""The table from ATen op to rule. Other ops use :class:`Autograd`."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fastgan.penalty.elementwise import ELEMENTWISE
from fastgan.penalty.linear import LINEAR_RULES
from fastgan.penalty.norms import BatchNorm, GroupNorm, LayerNorm
from fastgan.penalty.products import Convolution, MatrixProduct, Multiply
from fastgan.penalty.rule import AUTOGRAD, POINTWISE, Rule

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

#: Ops that use only their tensors' shapes.
_CONSTANT = re.compile(r"aten::(bernoulli|new_\w+|\w+_like)")

#: Ops that return views without their schema saying so; ops that return a new tensor although their
#: schema says it's a view.
_SHARING = {
    *(aten._unsafe_view.default, aten._reshape_alias.default),
    *(aten.unsafe_split.Tensor, aten.unsafe_split_with_sizes.default),
}
_ALONE = {aten.lift_fresh.default}


class Op:
    """The tape's view of an op, before it runs.

    Attributes:
        writes: names or positions of the arguments it writes to.
        functional: the op's functional variant; None if there is none.
        random: whether it draws random numbers.
        constant: whether it uses only its tensors' shapes.
        view: whether its result may share an argument's memory.
        tensors: positions of the arguments that are tensors.
        lists: positions of the arguments that are lists of tensors.
    """

    def __init__(self, func: Any) -> None:
        schema = func._schema
        is_pointwise = torch.Tag.pointwise in func.tags
        shares = func in _SHARING or any(r.alias_info is not None for r in schema.returns)
        kinds = [(i, str(argument.type)) for i, argument in enumerate(schema.arguments)]
        self.func = func
        self.rule: Rule = RULES.get(func, POINTWISE if is_pointwise else AUTOGRAD)
        self.writes = [
            (position, argument.name)
            for position, argument in enumerate(schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        self.functional = _functional(func) if self.writes else None
        self.random = torch.Tag.nondeterministic_seeded in func.tags
        self.constant = _CONSTANT.fullmatch(schema.name) is not None
        self.view = shares and func not in _ALONE
        self.tensors = [i for i, kind in kinds if "Tensor" in kind and "List" not in kind]
        self.lists = [i for i, kind in kinds if "Tensor" in kind and "List" in kind]

    def written(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Tensor]:
        """The tensors that a call writes to."""
        for position, name in self.writes:
            argument = args[position] if position < len(args) else kwargs.get(name)
            for tensor in argument if isinstance(argument, (list, tuple)) else (argument,):
                if isinstance(tensor, Tensor):
                    yield tensor


def _functional(func: Any) -> Any:
    """aten.relu_.default -> aten.relu.default, aten.pow_.Scalar -> aten.pow.Tensor_Scalar."""
    namespace, _, name = func._schema.name.partition("::")
    if not name.endswith("_"):
        return None
    packet = getattr(getattr(torch.ops, namespace), name[:-1], None)
    # Of the same name first, which may have another order of arguments.
    names = () if packet is None else (func._overloadname, *packet.overloads())
    variants = (getattr(packet, each, None) for each in names)
    return next((each for each in variants if each and _types(each) == _types(func)), None)


def _types(func: Any) -> list[str]:
    return [str(argument.type) for argument in func._schema.arguments]


#: Looks up an ATen op, or an op of another library.
rule_of = functools.cache(Op)
