"""The gradient penalty and whole critic losses, with their gradients.

For a DCGAN-64 critic, ours against :mod:`fastgan.reference`'s, and for third-party critics
(:mod:`fastgan.bench.critics`), the same module for all. Peers are double backward in plain PyTorch,
channels-last and in torch's default layout, and the former under torch.compile, which needs
``trace_autograd_ops``. All get the same weights, images and interpolates. fastgan gets our critic
channels-last, and the others contiguous.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan import penalty, reference
from fastgan.bench import critics
from fastgan.bench.cases import Case, Setting, autocast, placed, tracing_autograd
from fastgan.bench.timing import Call
from fastgan.bench.work import Work, products_work
from fastgan.models import WGANCritic

Loss = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
"""(critic, real, fake, eps) -> a scalar."""

_GAMMA = 10.0


def _our_penalty(critic: nn.Module, real: Tensor, fake: Tensor, eps: Tensor) -> Tensor:
    return penalty.gradient_penalty(critic, real, fake, eps=eps)


def _our_loss(critic: nn.Module, real: Tensor, fake: Tensor, eps: Tensor) -> Tensor:
    return penalty.wgan_gp_critic_loss(critic, real, fake, eps=eps).loss


def _our_logistic(critic: nn.Module, real: Tensor, fake: Tensor, eps: Tensor) -> Tensor:
    return penalty.discriminator_loss(
        critic, real, fake, loss="logistic", r1=_GAMMA, r2=_GAMMA
    ).loss


def _plain_penalty(critic: nn.Module, real: Tensor, fake: Tensor, eps: Tensor) -> Tensor:
    return reference.gradient_penalty(critic, real, fake, eps=eps)


def _plain_loss(critic: nn.Module, real: Tensor, fake: Tensor, eps: Tensor) -> Tensor:
    """The reference's loss, also for maps of scores, with the gradient of their sum."""
    adversarial = critic(fake).mean() - critic(real).mean()
    points = (eps * real + (1 - eps) * fake).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(points).sum(), points, create_graph=True)
    norms = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
    loss: Tensor = adversarial + 10 * (norms - 1).square().mean()
    return loss


def _plain_logistic(critic: nn.Module, real: Tensor, fake: Tensor, eps: Tensor) -> Tensor:
    fake, real = fake.detach().requires_grad_(), real.detach().requires_grad_()
    fakes, reals = critic(fake), critic(real)
    adversarial = F.softplus(-reals).mean() + F.softplus(fakes).mean()
    gradients = torch.autograd.grad(reals.sum() + fakes.sum(), (real, fake), create_graph=True)
    squares = sum(g.square().flatten(1).sum(1).mean() for g in gradients)
    loss: Tensor = adversarial + _GAMMA / 2 * squares
    return loss


@dataclass(frozen=True)
class _Op:
    """A loss.

    Attributes:
        ours: fastgan's.
        plain: plain PyTorch's.
        batches: the number of the critic's batches.
        penalised: the number of batches with a penalty.
    """

    ours: Loss
    plain: Loss
    batches: int
    penalised: int


_OPS = {
    "gradient penalty": _Op(_our_penalty, _plain_penalty, 1, 1),
    "critic loss": _Op(_our_loss, _plain_loss, 3, 1),
    "discriminator loss": _Op(_our_logistic, _plain_logistic, 2, 2),
}


@dataclass(frozen=True)
class Subject:
    """A critic.

    Attributes:
        shape: its description.
        plain: makes it in plain PyTorch.
        ours: makes fastgan's, with the same weights, in its best memory format; None if fastgan
            gets the plain one, contiguous.
        size: height and width of its images.
    """

    shape: str
    plain: Callable[[], nn.Module]
    ours: Callable[[], nn.Module] | None = None
    size: int = 64


_DCGAN = Subject("DCGAN-64 critic", reference.WGANCritic, WGANCritic)
_LAYER_NORM = Subject(
    "DCGAN-64 critic, layer norm",
    partial(reference.WGANCritic, norm="layer"),
    partial(WGANCritic, norm="layer"),
)

#: Third-party critics, with the batch on a CPU.
_CRITIC_LOSS = {
    Subject("5x5 critic", critics.WideCritic): 16,
    Subject("ResNet critic", critics.ResNetCritic): 16,
    Subject("spectral norm critic", critics.SpectralCritic, size=32): 16,
    Subject("PatchGAN critic", critics.PatchCritic): 16,
    Subject("batch norm critic", critics.BatchNormCritic): 16,
    Subject("self-attention critic", critics.AttentionCritic): 16,
    Subject("minibatch stddev critic", critics.StddevCritic, size=32): 32,
}
_DISCRIMINATOR_LOSS = {
    _DCGAN: 32,
    Subject("grouped ResNet critic", critics.GroupedCritic, size=32): 32,
}
#: Further (Subject, op, batch on a CPU).
OTHERS: tuple[tuple[Subject, str, int], ...] = (
    *((subject, "critic loss", batch) for subject, batch in _CRITIC_LOSS.items()),
    *((subject, "discriminator loss", batch) for subject, batch in _DISCRIMINATOR_LOSS.items()),
)


def cases(device: torch.device, quick: bool) -> list[Case]:
    """These cases of the suite "ops"."""
    cuda = device.type == "cuda"
    if cuda:
        batches = [64] if quick else [64, 128, 512]
        dtypes = ["bfloat16"] if quick else ["float32", "bfloat16"]
    else:
        batches = [16] if quick else [16, 32, 64]
        dtypes = ["float32"] if quick else ["float32", "bfloat16"]
    result = [
        _case(subject, op, dtype, batch)
        for subject, op in (
            (_DCGAN, "gradient penalty"),
            (_DCGAN, "critic loss"),
            (_LAYER_NORM, "critic loss"),
        )
        for dtype in dtypes
        for batch in batches
    ]
    return result + [
        # Compiling one of these may take minutes.
        _case(subject, op, *(("bfloat16", 64) if cuda else ("float32", batch)), compiled=not quick)
        for subject, op, batch in OTHERS
    ]


def _case(subject: Subject, op: str, dtype: str, batch: int, *, compiled: bool = True) -> Case:
    return Case(
        suite="ops",
        op=op,
        shape=subject.shape,
        dtype=dtype,
        batch=batch,
        count_work=partial(_work, subject, op, dtype, batch),
        input_bytes=2 * 4 * batch * 3 * subject.size**2,
        prepare=partial(contenders, subject, op, dtype, batch),
        compiled=compiled,
        capturable=True,
        breakdown=op != "gradient penalty",
    )


def _work(subject: Subject, op: str, dtype: str, batch: int) -> Work:
    """The work of a loss and its gradients without double backward.

    Every batch takes a forward pass, input and weight gradients; a penalised one also tangents and
    the images' gradient; see ``docs/gradient-penalty.md``. Smooth ops need more, but this is a
    lower bound.
    """
    batches, penalised = _OPS[op].batches, _OPS[op].penalised
    shape = (3, subject.size, subject.size)
    with torch.device("meta"):
        critic = subject.plain()
        every = torch.empty(batches * batch, *shape)
        some = torch.empty(penalised * batch, *shape)
    learning = products_work(critic, every, dtype, gradients="of parameters")
    return learning + products_work(critic, some, dtype, gradients="of images")


def contenders(
    subject: Subject, op: str, dtype: str, batch: int, setting: Setting
) -> dict[str, Call]:
    """A case's providers: each sets its critic's gradients and returns the loss.

    Args:
        subject: makes the critic.
        op: a name of the losses.
        dtype: a name of :data:`fastgan.bench.cases.DTYPES`.
        batch: real images, and as many fakes.
        setting: device and peers.
    """
    device = setting.device
    torch.manual_seed(0)
    weights = subject.plain().state_dict()
    images = torch.randn(setting.copies, 2, batch, 3, subject.size, subject.size).to(device)
    eps = torch.rand(setting.copies, batch, 1, 1, 1).to(device)

    def call(
        loss: Loss, model: nn.Module, layout: torch.memory_format, mode: str | None = None
    ) -> Call:
        placed(model, weights, device, layout)
        pairs = [
            tuple(images.contiguous(memory_format=layout) for images in pair.unbind(0))
            for pair in images
        ]
        run: Callable[..., Any] = loss if mode is None else torch.compile(loss, mode=mode)

        def step(number: int) -> Tensor:
            model.zero_grad()
            with autocast(device, dtype):
                value: Tensor = run(model, *pairs[number], eps[number])
            value.backward()
            return value

        if mode is None:
            return step

        def step_traced(number: int) -> Tensor:
            with tracing_autograd():
                return step(number)

        return step_traced

    loss, (last, default) = _OPS[op], (torch.channels_last, torch.contiguous_format)
    if subject.ours is not None:
        calls = {"fastgan": call(loss.ours, subject.ours(), last)}
    else:
        calls = {"fastgan": call(loss.ours, subject.plain(), default)}
    calls["eager"] = call(loss.plain, subject.plain(), last)
    calls["eager, contiguous"] = call(loss.plain, subject.plain(), default)
    if setting.compile_mode is not None:
        calls["torch.compile"] = call(loss.plain, subject.plain(), last, setting.compile_mode)
    return calls
