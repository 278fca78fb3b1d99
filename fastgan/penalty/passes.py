"""The fused passes: the penalty's gradient, and the whole critic loss's, without autograd.

With h_i = W_i a_(i-1) + b_i, a_i = phi(h_i), m_i = phi'(h_i) and phi piecewise linear, the penalty
P(g) at the points x has the gradient

    d_L = 1,    d_i = m_i (W_(i+1)^T d_(i+1)),    g = W_1^T d_1          1. forward, 2. signals
    u_0 = v = dP/dg,    u_i = m_i (W_i u_(i-1))                         3. tangents
    dP/dW_i = weight gradient of (input u_(i-1), signal d_i)            4. gradients
    dP/db_i = 0

since the second derivative of phi is zero: four convolutions a layer, where double backward needs
six. Of the Wasserstein loss mean f(fake) - mean f(real), the tangent pass is just another forward
pass through the same linear maps, and its weight gradients another batch of pairs (a_(i-1), d_i).
So fakes and reals join in: one convolution over 3 N rows for passes 1, 2 and 4, where each step
takes the one before it. In other graphs they join the tangents instead, 3 N rows for passes 3 and
4, and their signals are a pass of their own, since the points' passes have to be over before. (Not
where pass 5 below is needed, for the points' activations would stay in memory beside theirs.)

Signals start at +1 and -1 and tangents at N dP/dg; what comes out is N times the gradient. Only
then does fp16 not underflow where a batch is large.

A critic that bends smoothly somewhere (a norm, tanh) has a second derivative there, and P depends
on the points' values too. With f_i the i-th step of any kind and J_i its derivative, <v, g> is the
tangent of the scores along v, and its reverse carries a second signal beside d:

    e_L = 0,    e_(i-1) = J_i^T e_i + d/da <d_i, J_i(a) u_(i-1)>        5. curvature
    dP/dW_i = weight gradient of (u_(i-1), d_i) and of (a_(i-1), e_i),    dP/db_i = sum of e_i

which is zero down to the last step that is curved, and only goes on from there.

The passes take little memory because everything is dropped once used, and because activations,
signals and tangents are written over what nobody wants any more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastgan.losses import widened
from fastgan.penalty.bent_steps import Activation
from fastgan.penalty.curved_steps import CurvedStep
from fastgan.penalty.formula import Formula
from fastgan.penalty.linear_steps import Convolution, FullConvolution, Linear, Reshape
from fastgan.penalty.plan import Plan
from fastgan.penalty.steps import PairedRows, Rows, Target

__all__ = ["Passes"]

OnGradient = Callable[[int, Tensor], None]
_IN_LINE = (Activation, Convolution, FullConvolution, Linear, Reshape)
_NARROWED = (torch.float32, torch.float16, torch.bfloat16)


@dataclass
class _Run:
    """What one pass forward leaves behind.

    Attributes:
        output: the scores, in the critic's own shape.
        kept: what each step kept of the rows that hold values.
        dtypes: of each step's output.
        inputs: of those steps whose parameters want a gradient.
        tangents: the rows of tangents that went into each curved step.
    """

    output: Tensor = field(init=False)
    kept: list[Any] = field(default_factory=list)
    dtypes: list[torch.dtype] = field(default_factory=list)
    inputs: dict[int, list[Tensor]] = field(default_factory=dict)
    tangents: dict[int, Tensor] = field(default_factory=dict)


class Passes:
    """All passes over one batch.

    Args:
        plan: the critic.
        parameters: its effective parameters, one per slot.
        wanted: which of them want a gradient.
        dtype: what matrix products compute in; None for the inputs' own dtype.

    Attributes:
        gradients: after :meth:`penalty` or :meth:`critic_loss`, N times each slot's gradient, in
            the dtype it was computed in; None where none is wanted, or where double backward would
            give none.
    """

    def __init__(
        self,
        plan: Plan,
        parameters: Sequence[Tensor],
        wanted: Sequence[bool],
        dtype: torch.dtype | None,
    ) -> None:
        self.plan = plan
        self.dtype = dtype
        self.parameters = parameters
        self.gradients: list[Tensor | None] = [None] * len(parameters)
        self.shapes = plan.shapes
        self.wanted = [
            [slot is not None and wanted[slot] for slot in planned.parameters]
            for planned in plan.steps
        ]
        # Steps with a parameter that the penalty itself depends on.
        self.shaping = [
            any(want and i not in planned.step.offsets for i, want in enumerate(flags))
            for planned, flags in zip(plan.steps, self.wanted, strict=True)
        ]
        # Values with a parameter behind them that wants a gradient.
        self.upstream = [False]
        for planned, flags in zip(plan.steps, self.wanted, strict=True):
            self.upstream.append(any(flags) or any(self.upstream[v] for v in planned.inputs))
        # Curved steps with such a parameter behind them, and values that lead to one.
        self.curved = [
            planned.step.curved and self.upstream[planned.inputs[0]] for planned in plan.steps
        ]
        self.leads_to_curved = [False] * (len(plan.steps) + 1)
        for index in reversed(range(len(plan.steps))):
            if self.curved[index] or self.leads_to_curved[index + 1]:
                for value in plan.steps[index].inputs:
                    self.leads_to_curved[value] = True
        self.prepared = [
            planned.step.prepare(
                [
                    None if slot is None else self._cast(parameters[slot], planned.step.casts)
                    for slot in planned.parameters
                ]
            )
            for planned in plan.steps
        ]

    def dtype_of_images(self, dtype: torch.dtype) -> torch.dtype:
        """In which dtype images do best: of what they meet first, if that is all the same."""
        first = [planned.step for planned in self.plan.steps if 0 in planned.inputs]
        if self.dtype is None or dtype not in _NARROWED or not all(step.casts for step in first):
            return dtype
        return self.dtype if torch.float32 in (dtype, self.dtype) else dtype

    # The two things that are asked for.

    def penalty(self, points: Tensor, formula: Formula, *, alone: bool = True) -> Tensor:
        """P at ``points`` (N, ...); unless ``alone``, another pass follows."""
        run, signals, gradient = self._first_order(points)
        tangent = torch.empty_like(points)
        value = formula.value_and_tangent(gradient, tangent)
        del gradient
        last = max((i for i in range(len(self.shaping)) if self._needs_signal(i)), default=-1)
        values: dict[int, Tensor] = {0: tangent}
        del tangent
        for index in range(last + 1):
            planned = self.plan.steps[index]
            inputs = self._inputs(index, values)
            kept = run.kept[index]
            if self.curved[index]:
                run.tangents[index] = inputs[0]
            if self.shaping[index]:
                self._accumulate(index, inputs, self._taken(signals, index), 0, None, kept)
            if index < last:
                # Tangents that a curved step took are wanted once more.
                overwrites = planned.overwrites and not self.curved[index]
                values[index + 1], _ = planned.step.run(
                    inputs,
                    self.prepared[index],
                    Rows(0, self._points(run.kept, index), overwrites),
                )
            if not self.leads_to_curved[index + 1] and not self.curved[index]:
                run.kept[index] = None
                if alone:
                    self.prepared[index] = []
            self._drop(values, index)
        values.clear()
        self._curvature(run, signals)
        self._zeros_for_offsets()
        return value

    def critic_loss(
        self,
        whole_batch: Callable[[], Tensor],
        fakes_and_reals: Callable[[], Tensor],
        formula: Formula,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, Wasserstein estimate and penalty.

        Args:
            whole_batch: makes 3 N rows, fakes, reals and points, that are ours to write over.
            fakes_and_reals: makes the first 2 N of these rows once more, when the others are long
                gone: the first layer wants them at the very end.
            formula: what the penalty is.
        """
        batch = whole_batch()
        count = batch.size(0) // 3
        primal = 2 * count
        learning = any(map(any, self.wanted))
        if learning and self._in_line():
            return self._critic_loss_in_line(batch, formula)
        masks: list[Any] | None = None
        signals: dict[int, Tensor] = {}
        if any(planned.step.curved for planned in self.plan.steps):
            # The points' activations are wanted until the very end of their passes: by the time
            # that fakes and reals come, all of that had better be gone.
            penalty = self.penalty(batch[primal:], formula, alone=False)
            batch = batch[:primal]
        else:
            penalty, masks, signals = self._first_order_and_tangents(batch[primal:], formula)
            if not learning:
                batch = batch[:primal]
        values = {0: batch}
        del batch
        keep_inputs = [learning and planned.inputs != (0,) for planned in self.plan.steps]
        run = self._forward(values, primal, masks, keep_inputs)
        fake_mean, real_mean = widened(run.output[:primal]).reshape(2, count).mean(1)
        if learning:
            buffers: dict[int, Tensor] = {}

            def on_gradient(index: int, grad: Tensor) -> None:
                if index in run.inputs:
                    inputs = run.inputs.pop(index)
                else:
                    inputs = self._inputs(index, {0: fakes_and_reals()})
                mask = None
                if index in signals:
                    assert masks is not None
                    grad = _joined(grad, signals.pop(index), buffers.pop(index, None))
                    mask, masks[index] = masks[index], None
                else:
                    inputs = [input[:primal] for input in inputs]
                self._accumulate(index, inputs, grad, primal, run.kept[index], mask)

            def room(maker: int, output: Tensor) -> Tensor | None:
                """Where the rows of fakes and reals stand before those of the points: in the
                memory of the activation's output, which nobody wants after its mask."""
                if maker not in signals:
                    return None
                buffers[maker] = output
                return output[:primal]

            sign = torch.ones_like(run.output[:primal])
            sign[count:] = -1
            self._signals(sign, run, on_gradient, room, to_images=False)
        return fake_mean - real_mean + penalty, real_mean - fake_mean, penalty

    # What they are made of.

    def _in_line(self) -> bool:
        """Whether each step takes the one before it, and none keeps anything but its output."""
        steps = self.plan.steps
        return not isinstance(steps[0].step, Activation) and all(
            planned.inputs == (index,) and isinstance(planned.step, _IN_LINE)
            for index, planned in enumerate(steps)
        )

    def _critic_loss_in_line(
        self, batch: Tensor, formula: Formula
    ) -> tuple[Tensor, Tensor, Tensor]:
        """:meth:`critic_loss` of a critic without branches, whose points join fakes and reals.

        Args:
            batch: 3 N rows, fakes, reals and points; the points become their tangents.
            formula: what the penalty is.
        """
        steps = self.plan.steps
        count = batch.size(0) // 3
        primal = 2 * count
        keep_inputs = [index > 0 for index in range(len(steps))]
        run = self._forward({0: batch}, batch.size(0), None, keep_inputs)
        fake_mean, real_mean = widened(run.output[:primal]).reshape(2, count).mean(1)
        grad = torch.ones_like(run.output)
        grad[count:primal] = -1
        owned = True
        signals: dict[int, Tensor] = {}
        masked: set[int] = set()
        for index in reversed(range(len(steps))):
            grad = grad.to(run.dtypes[index])
            if any(self.wanted[index]):
                signals[index] = grad
                owned = False
            # Nobody wants the signals of the fakes and reals themselves.
            taken = grad if index > 0 else grad[primal:]
            (found,) = self._signal(index, taken, owned, [True], run, masked)
            assert found is not None
            owned = (owned or not _share_memory(found, grad)) and 0 not in found.stride()
            grad = found
        points = batch[primal:]
        penalty = formula.value_and_tangent(grad, points)
        del grad, taken, found
        last = max((i for i in range(len(steps)) if self._needs_signal(i)), default=-1)
        tangents = points
        for index, planned in enumerate(steps):
            if index <= last:
                tangents = self._cast(tangents, planned.step.casts)
            if any(self.wanted[index]):
                (input,) = run.inputs.pop(index) if index > 0 else self._inputs(0, {0: batch})
                if index <= last:
                    # Where the points' activations were: of these only the masks were wanted.
                    input[primal:] = tangents
                self._accumulate(index, [input], signals.pop(index), primal, None, None)
                del input
            else:
                run.inputs.pop(index, None)
            if index < last:
                kept = self._points(run.kept, index)
                rows = Rows(0, None if kept is None else kept[primal:], planned.overwrites)
                tangents, _ = planned.step.run([tangents], self.prepared[index], rows)
            if index > 0:
                run.kept[index - 1] = None
            self.prepared[index] = []
        return fake_mean - real_mean + penalty, real_mean - fake_mean, penalty

    def _first_order_and_tangents(
        self, points: Tensor, formula: Formula
    ) -> tuple[Tensor, list[Any], dict[int, Tensor]]:
        """P, what the points' pass kept and their signals; ``points`` become their tangents."""
        run, signals, gradient = self._first_order(points)
        value = formula.value_and_tangent(gradient, points)
        # The first layer's largest signals needn't wait for its part of fakes and reals.
        for index in [i for i in signals if self.plan.steps[i].inputs == (0,)]:
            inputs = self._inputs(index, {0: points})
            self._accumulate(index, inputs, signals.pop(index), 0, None, run.kept[index])
        return value, run.kept, signals

    def _first_order(self, points: Tensor) -> tuple[_Run, dict[int, Tensor], Tensor]:
        """What the forward pass kept, the signals that gradients will need, and g."""
        keep_inputs = self.leads_to_curved[1:]
        run = self._forward({0: points}, points.size(0), None, keep_inputs)
        signals: dict[int, Tensor] = {}

        def on_gradient(index: int, grad: Tensor) -> None:
            if self._needs_signal(index):
                signals[index] = grad

        start = torch.ones_like(run.output)
        return run, signals, self._signals(start, run, on_gradient, None, to_images=True)

    def _forward(
        self,
        values: dict[int, Tensor],
        primal: int,
        points: list[Any] | None,
        keep_inputs: Sequence[bool],
    ) -> _Run:
        """``values`` are the images alone, and used up: their memory is free once nobody asks."""
        run = _Run()
        for index, planned in enumerate(self.plan.steps):
            inputs = self._inputs(index, values)
            if keep_inputs[index] and any(self.wanted[index]):
                run.inputs[index] = inputs
            of_points = None if points is None else self._points(points, index)
            rows = Rows(primal, of_points, planned.overwrites)
            output, kept = planned.step.run(inputs, self.prepared[index], rows)
            lasting = self.shaping[index] or self.curved[index] or self.leads_to_curved[index + 1]
            if points is not None and not lasting:
                points[index] = None
            values[index + 1] = output
            run.kept.append(kept)
            run.dtypes.append(output.dtype)
            self._drop(values, index)
        run.output = values[len(self.plan.steps)]
        return run

    def _signals(
        self,
        start: Tensor,
        run: _Run,
        on_gradient: OnGradient,
        room: Callable[[int, Tensor], Tensor | None] | None,
        to_images: bool,
    ) -> Tensor:
        """From the scores back: to the images, or only as far as parameters want gradients.

        Calls ``on_gradient`` with every step whose parameters want one (or, to the images, that is
        curved), and its output's signal.
        Returns the images' signal, or the last one.
        """
        masked: set[int] = set()
        found: dict[int, tuple[Tensor, bool]] = {len(self.plan.steps): (start, True)}
        grad = start
        for index in reversed(range(len(self.plan.steps))):
            planned = self.plan.steps[index]
            if index + 1 not in found:
                continue  # nothing behind it wants a gradient
            grad, owned = found.pop(index + 1)
            grad = grad.to(run.dtypes[index])
            if any(self.wanted[index]) or (to_images and self.curved[index]):
                on_gradient(index, grad)
                # The first order's signals are kept for the gradients.
                owned = owned and not (to_images and self._needs_signal(index))
            wanted = [to_images or self.upstream[value] for value in planned.inputs]
            if any(wanted):
                results = self._signal(index, grad, owned, wanted, run, masked, room)
                self._spread(found, planned.inputs, wanted, results, grad, owned)
                del results
            if not to_images:  # while the points' masks and the weights are the tangents' as well
                run.kept[index] = None
                self.prepared[index] = []
        if to_images:
            return found[0][0]
        return grad

    def _signal(
        self,
        index: int,
        grad: Tensor,
        owned: bool,
        wanted: Sequence[bool],
        run: _Run,
        masked: set[int],
        room: Callable[[int, Tensor], Tensor | None] | None = None,
    ) -> Sequence[Tensor | None]:
        """A step's signals; ``masked`` are activations whose masks these have been through."""
        if index in masked:
            return [grad]
        planned = self.plan.steps[index]
        shapes = [self.shapes[value] for value in planned.inputs]
        target = Target(run.kept[index], shapes, wanted, owned)
        # The activation that the result has been through the mask of, if any.
        bent = index
        # Under autocast the two may differ in dtype: then the mask is a step of its own.
        if planned.masks is not None and run.dtypes[planned.masks] == run.dtypes[index]:
            bent = planned.masks
            masked.add(bent)
            target.mask = run.kept[bent]
        activation = self.plan.steps[bent]
        if room is not None and activation.step.keeps_output and activation.overwrites:
            target.out = room(activation.inputs[0] - 1, run.kept[bent])
        return planned.step.signal(grad, self.prepared[index], target)

    def _points(self, kept: Sequence[Any], index: int) -> Any:
        """What the points kept of a step, or of the activation that it does as well."""
        applies = self.plan.steps[index].applies
        return kept[index if applies is None else applies]

    def _needs_signal(self, index: int) -> bool:
        """Whether the points' signal is wanted once tangents are there."""
        return self.shaping[index] or self.curved[index]

    def _taken(self, signals: dict[int, Tensor], index: int) -> Tensor:
        """The signal, which stays only where curvature will want it."""
        return signals[index] if self.curved[index] else signals.pop(index)

    def _curvature(self, points: _Run, signals: dict[int, Tensor]) -> None:
        """Pass 5, and the gradients that come of it.

        Args:
            points: what the points' passes left behind; used up.
            signals: of each curved step's output; used up.
        """
        masked: set[int] = set()
        found: dict[int, tuple[Tensor, bool]] = {}
        for index in reversed(range(len(self.plan.steps))):
            planned = self.plan.steps[index]
            kept = points.kept[index]
            if index + 1 in found:
                grad, owned = found.pop(index + 1)
                grad = grad.to(points.dtypes[index])
                if any(self.wanted[index]):
                    inputs = points.inputs.pop(index)
                    self._accumulate(index, inputs, grad, grad.size(0), kept, None)
                    del inputs
                wanted = [self.upstream[value] for value in planned.inputs]
                if any(wanted):
                    results = self._signal(index, grad, owned, wanted, points, masked)
                    self._spread(found, planned.inputs, wanted, results, grad, owned)
                    del results
                del grad
            if self.curved[index]:
                step = planned.step
                assert isinstance(step, CurvedStep)
                result = step.curvature(
                    signals.pop(index), points.tangents.pop(index), self.prepared[index], kept
                )
                _add(found, planned.inputs[0], result, True)
                del result
            points.kept[index] = None

    def _spread(
        self,
        found: dict[int, tuple[Tensor, bool]],
        inputs: Sequence[int],
        wanted: Sequence[bool],
        results: Sequence[Tensor | None],
        grad: Tensor,
        owned: bool,
    ) -> None:
        """Adds a step's signals to what its inputs have already."""
        for value, want, result in zip(inputs, wanted, results, strict=True):
            if want:
                assert result is not None
                ours = (owned and len(inputs) == 1) or not _share_memory(result, grad)
                # An expanded tensor, as a sum's signal is, can't be written to.
                _add(found, value, result, ours and 0 not in result.stride())

    def _inputs(self, index: int, values: dict[int, Tensor]) -> list[Tensor]:
        planned = self.plan.steps[index]
        return [self._cast(values[v], planned.step.casts) for v in planned.inputs]

    def _cast(self, tensor: Tensor, casts: bool) -> Tensor:
        # As autocast does, which leaves float64 alone.
        if casts and self.dtype is not None and tensor.dtype in _NARROWED:
            return tensor.to(self.dtype)
        return tensor

    def _drop(self, values: dict[int, Tensor], index: int) -> None:
        for value in self.plan.steps[index].inputs:
            if self.plan.last_use[value] == index:
                values.pop(value, None)

    def _accumulate(
        self,
        index: int,
        inputs: list[Tensor],
        grad: Tensor,
        primal: int,
        kept: Any,
        points: Any,
    ) -> None:
        planned = self.plan.steps[index]
        wanted = [
            want and (primal > 0 or i not in planned.step.offsets)
            for i, want in enumerate(self.wanted[index])
        ]
        paired = PairedRows(wanted, primal, kept, points)
        found = planned.step.gradients(inputs, grad, self.prepared[index], paired)
        for slot, want, gradient in zip(planned.parameters, wanted, found, strict=True):
            if slot is None or not want or gradient is None:
                continue
            if any(_share_memory(gradient, tensor) for tensor in (grad, *inputs)):
                # A constant's gradient may be a piece of the signal, which others still want;
                # what is kept here is added to, and scaled, in place.
                gradient = gradient.clone()
            earlier = self.gradients[slot]
            # A half stays one, which takes less memory, unless something is added to it.
            self.gradients[slot] = (
                gradient if earlier is None else widened(earlier).add_(widened(gradient))
            )

    def _zeros_for_offsets(self) -> None:
        """Zeros for biases that double backward reaches, through the derivative of a mask."""
        for index, planned in enumerate(self.plan.steps):
            for slot, want in zip(planned.parameters, self.wanted[index], strict=True):
                if slot is None or not want or not self.plan.bends_after[index]:
                    continue
                if self.gradients[slot] is None:
                    self.gradients[slot] = torch.zeros_like(self.parameters[slot])


def _share_memory(left: Tensor, right: Tensor) -> bool:
    return left.untyped_storage().data_ptr() == right.untyped_storage().data_ptr()


def _add(found: dict[int, tuple[Tensor, bool]], value: int, signal: Tensor, owned: bool) -> None:
    if value not in found:
        found[value] = (signal, owned)
        return
    earlier, earlier_owned = found[value]
    if earlier_owned and earlier.dtype == signal.dtype:
        found[value] = (earlier.add_(signal), True)
    else:
        found[value] = (earlier + signal, True)


def _joined(head: Tensor, tail: Tensor, buffer: Tensor | None) -> Tensor:
    """The rows of ``head`` and then those of ``tail``; in ``buffer`` if ``head`` is there."""
    if buffer is None or not _share_memory(buffer, head):
        return torch.cat([head, tail])
    buffer[head.size(0) :] = tail
    return buffer
