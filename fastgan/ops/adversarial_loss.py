"""``torch.ops.fastgan.adversarial_loss``: an adversarial loss and what a log shows of its scores.

::

    loss           a, as a real image's     b, as a generated one's
    logistic       softplus(-a)             softplus(b)
    hinge          max(0, 1 - a)            max(0, 1 + b)
    least_squares  (a - 1)^2 / 2            b^2 / 2
    wasserstein    -a                       b

The loss is the sum of both columns' means; of one column's, without ``fake``. ``shown`` has the
scores' means, 0 for a missing ``fake``, and their difference; with ``squash`` their sigmoids'.
:mod:`fastgan.losses` names the papers. Generators' losses are the first column, of fakes' scores.

Scores have any shape and one of the four dtypes; loss, ``shown`` and the arithmetic are float32,
or float64 for float64. Sums have a fixed order. Kernels: ``csrc/cpu/adversarial_loss.cpp``,
``csrc/cuda/adversarial_loss.cu``: a launch for loss and ``shown``, and one for both gradients.

Order of gradients supported: any. With ``create_graph=True`` autograd differentiates the formulas.
``shown`` has no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.ops.define import define_op
from fastgan.ops.dtypes import DTYPES
from fastgan.ops.registration import calls_its_function, is_transformed

Term = Callable[[Tensor], Tensor]

#: Both columns, by the loss's name, in the order of the codes in ``csrc/math/adversarial_loss.h``.
TERMS: Mapping[str, tuple[Term, Term]] = MappingProxyType(
    {
        "logistic": (lambda a: F.softplus(-a), F.softplus),
        "hinge": (lambda a: F.relu(1 - a), lambda b: F.relu(1 + b)),
        "least_squares": (lambda a: (a - 1).square() / 2, lambda b: b.square() / 2),
        "wasserstein": (torch.neg, lambda b: b),
    }
)
_CODES = {name: code for code, name in enumerate(TERMS)}
_BY_CODE = list(TERMS.values())


def adversarial_loss(
    loss: str, real: Tensor, fake: Tensor | None = None, *, squash: bool = False
) -> tuple[Tensor, Tensor]:
    """The loss, and the scores' means for a log.

    Args:
        loss: a name of :data:`TERMS`.
        real: real images' scores, of any shape; or a generator's fakes', without ``fake``.
        fake: generated images' scores, of any shape and the same dtype.
        squash: whether ``shown`` is of the scores' sigmoids.

    Returns:
        The loss, a scalar, and ``shown``, (3,), without a graph.

    Example:
        >>> loss, shown = adversarial_loss("wasserstein", torch.ones(2), torch.tensor([3.0]))
        >>> loss.item(), shown.tolist()
        (2.0, [1.0, 3.0, -2.0])
    """
    settings = (real, fake, _CODES[loss], squash)
    if (
        real.dtype not in DTYPES
        or (fake is not None and (fake.dtype, fake.device) != (real.dtype, real.device))
        or is_transformed("adversarial_loss")
    ):
        shown, value = _adversarial_loss(*settings)
    elif (
        calls_its_function(real)
        and torch.is_grad_enabled()
        and (real.requires_grad or (fake is not None and fake.requires_grad))
    ):
        shown, value = _AdversarialLoss.apply(*settings)  # type: ignore[no-untyped-call]
    else:
        shown, value = _op(*settings)
    return value, shown


def score_gradients(
    loss: str, real: Tensor, fake: Tensor, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """``scale`` times the loss's gradients for real and fake scores, in their dtype.

    Example:
        >>> [grad.tolist() for grad in score_gradients("hinge", torch.zeros(2), torch.ones(2))]
        [[-0.5, -0.5], [0.5, 0.5]]
    """
    settings = (real, fake, None, _CODES[loss], scale)
    if is_transformed("adversarial_loss_gradient"):
        return _adversarial_loss_gradient(*settings)
    with torch.no_grad():
        return _gradient_op(*settings)  # type: ignore[no-any-return]


class _AdversarialLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, real: Tensor, fake: Tensor | None, loss: int, squash: bool
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(real, fake)
        ctx.loss = loss
        with torch._C._AutoDispatchBelowAutograd():
            shown, value = _op(real, fake, loss, squash)
        ctx.mark_non_differentiable(shown)
        return shown, value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad = grads[1]
        if grad is None:
            return (None,) * 4
        real, fake = ctx.saved_tensors
        if torch.is_grad_enabled():
            gradients = _recorded_gradients(grad, real, fake, ctx.loss)
        else:
            with torch._C._AutoDispatchBelowAutograd():
                gradients = _gradient_op(real, fake, grad, ctx.loss, 1.0)
        wanted = ctx.needs_input_grad
        return (*(g if w else None for g, w in zip(gradients, wanted, strict=False)), None, None)


def _recorded_gradients(
    grad: Tensor, real: Tensor, fake: Tensor | None, loss: int
) -> tuple[Tensor, ...]:
    """The gradients in differentiable functions of the scores, which may depend on one another."""
    scores = [
        torch.ops.aten.alias(each) if each.requires_grad else each.detach().requires_grad_()
        for each in (real, fake)
        if each is not None
    ]
    of_real, *of_fake = torch.autograd.grad(
        _mean_terms(loss, *scores), scores, grad, create_graph=True
    )
    return of_real, *(of_fake or [real.new_empty(0)])


# --- The ops in plain PyTorch ---------------------------------------------------------------------


def _wide(scores: Tensor) -> Tensor:
    return scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores


def _mean_terms(loss: int, real: Tensor, fake: Tensor | None = None) -> Tensor:
    as_real, as_fake = _BY_CODE[loss]
    value = as_real(_wide(real)).mean()
    return value if fake is None else value + as_fake(_wide(fake)).mean()


def _examples() -> Iterator[tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(0)
    for dtype in DTYPES:
        real, fake = (2 * torch.randn(2, 3, 1, 5, 7, generator=generator)).to(dtype).unbind(0)
        for code in _CODES.values():
            yield real, fake, code, code == 0
            yield fake[0, 0, 0, :1], None, code, False
        yield real[:, :, :, ::2], fake, 1, True


@define_op(
    "adversarial_loss(Tensor real, Tensor? fake, int loss, bool squash) -> (Tensor, Tensor)",
    examples=_examples,
    function=_AdversarialLoss,
)
def _adversarial_loss(
    real: Tensor, fake: Tensor | None, loss: int, squash: bool
) -> tuple[Tensor, Tensor]:
    """``shown`` and the loss."""
    means = [
        _wide(real).new_zeros(())
        if scores is None
        else (_wide(scores.detach()).sigmoid() if squash else _wide(scores.detach())).mean()
        for scores in (real, fake)
    ]
    return torch.stack([*means, means[0] - means[1]]), _mean_terms(loss, real, fake)


def _gradient_examples() -> Iterator[tuple[Any, ...]]:
    for real, fake, loss, squash in _examples():
        wide = torch.promote_types(real.dtype, torch.float32)
        grad = None if squash else torch.tensor(3.0, dtype=wide)
        yield real, fake, grad, loss, 2.0


@define_op(
    "adversarial_loss_gradient(Tensor real, Tensor? fake, Tensor? grad_output, int loss, "
    "float scale) -> (Tensor, Tensor)",
    examples=_gradient_examples,
)
def _adversarial_loss_gradient(
    real: Tensor, fake: Tensor | None, grad_output: Tensor | None, loss: int, scale: float
) -> tuple[Tensor, Tensor]:
    """``scale`` times both batches' gradients; without ``fake`` the second is empty."""

    def gradient(scores: Tensor, as_real: bool) -> Tensor:
        u = -_wide(scores) if as_real else _wide(scores)
        slope = (
            torch.sigmoid(u),
            (~(1 + u <= 0)).to(u.dtype),
            1 + u if as_real else u,
            torch.ones_like(u),
        )[loss]
        factor = (-scale if as_real else scale) / max(scores.numel(), 1)
        slope = slope * factor if grad_output is None else slope * (factor * grad_output)
        return slope.to(scores.dtype).contiguous()

    return gradient(real, True), real.new_empty(0) if fake is None else gradient(fake, False)


_op = torch.ops.fastgan.adversarial_loss.default
_gradient_op = torch.ops.fastgan.adversarial_loss_gradient.default
