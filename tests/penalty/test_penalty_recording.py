"""Typical critics: fused losses have double backward's values and side effects."""

# ruff: noqa: NPY002 - critics in the wild draw from NumPy's global stream

from __future__ import annotations

import copy
import functools
import gc
import logging
import pickle
import random
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

import fastgan
from fastgan.models import DCGANGenerator, WGANCritic
from fastgan.ops.bias_act import bias_act
from fastgan.ops.filtered_lrelu import filtered_lrelu
from fastgan.ops.upfirdn2d import upfirdn2d

N, SHAPE = 4, (2, 6, 6)


def batches(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    stream = torch.Generator().manual_seed(1)
    real, fake = torch.randn(2, N, *SHAPE, generator=stream, dtype=dtype)
    return real, fake, torch.rand(N, 1, 1, 1, generator=stream, dtype=dtype)


def outcome(critic: Any, module: nn.Module, path: Any, calls: int, **asked: Any) -> list[Any]:
    """Losses and gradients of several calls, then the module's state and the random streams."""
    real, fake, eps = batches()
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    found: list[Any] = []
    for _ in range(calls):
        module.zero_grad()
        loss = fastgan.wgan_gp_critic_loss(critic, real, fake, eps=eps, path=path, **asked).loss
        loss.backward()
        found += [loss.detach(), *(p.grad for p in module.parameters())]
        penalty = fastgan.gradient_penalty(critic, real, fake, at="real", path=path, **asked)
        found.append(penalty.detach())
    counts = [v for m in module.modules() for v in vars(m).values() if type(v) in (int, float)]
    return [*found, *module.buffers(), *counts, torch.rand(3), random.random(), np.random.rand()]


def both(
    module: nn.Module,
    wrapped: Callable[[nn.Module], Any] = lambda module: module,
    calls: int = 3,
    **asked: Any,
) -> None:
    """Compares the paths, each on a copy of its own."""
    torch.manual_seed(0)
    module = module.double()
    twin = copy.deepcopy(module)
    ours = outcome(wrapped(module), module, "fused", calls, **asked)
    theirs = outcome(wrapped(twin), twin, "autograd", calls, **asked)
    for mine, expected in zip(ours, theirs, strict=True):
        if isinstance(expected, Tensor) and isinstance(mine, Tensor):
            size = float(expected.detach().abs().max()) if expected.numel() else 0.0
            torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-11 * max(size, 1.0))
        elif mine is None or expected is None:
            # Double backward leaves out, or gives zero, what a penalty doesn't depend on.
            assert all(g is None or not g.any() for g in (mine, expected))
        else:
            assert mine == expected


class Critic(nn.Module):
    """A convolution and a head, with whatever a subclass does between."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.head = nn.Linear(144, 1)

    def between(self, h: Tensor) -> Tensor:
        return h

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(F.leaky_relu(self.first(x), 0.2)).flatten(1))


class CountsInABuffer(Critic):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("n", torch.zeros(()))

    def between(self, h: Tensor) -> Tensor:
        self.n += 1
        return h * (1 + self.n)


class CountsInPython(Critic):
    n = 0

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def between(self, h: Tensor) -> Tensor:
        self.n += 1
        return h * self.n


class PowerIteration(Critic):
    """Spectral norm by hand, its vector a buffer that is assigned."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.register_buffer("u", F.normalize(torch.randn(4), dim=0))

    def between(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            self.u = F.normalize(self.weight @ (self.weight.t() @ self.u), dim=0)
        sigma = self.u @ self.weight @ F.normalize(self.weight.t() @ self.u.detach(), dim=0)
        return torch.einsum("nchw,dc->ndhw", h, self.weight / sigma)


class DataSpectralNorm(nn.Module):
    """The one that everybody copies: u.data, v.data, and a weight that is set in forward."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        w = module.weight
        self.u = nn.Parameter(torch.randn(w.shape[0]), requires_grad=False)
        self.v = nn.Parameter(torch.randn(w[0].numel()), requires_grad=False)
        self.bar = nn.Parameter(w.data)
        del module._parameters["weight"]

    def forward(self, x: Tensor) -> Tensor:
        w = self.bar
        flat = w.view(w.shape[0], -1).data
        self.v.data = F.normalize(torch.mv(flat.t(), self.u.data), dim=0)
        self.u.data = F.normalize(torch.mv(flat, self.v.data), dim=0)
        sigma = self.u.dot(w.view(w.shape[0], -1).mv(self.v))
        self.module.weight = w / sigma.expand_as(w)
        return self.module(x)


class CopiedSpectralNorm(Critic):
    def __init__(self) -> None:
        super().__init__()
        self.first = DataSpectralNorm(self.first)  # type: ignore[assignment]


class ClampsItsWeight(Critic):
    def between(self, h: Tensor) -> Tensor:
        self.head.weight.data = self.head.weight.data.clamp(-0.1, 0.1)
        return h


class AsksForTensors(Critic):
    def between(self, h: Tensor) -> Tensor:
        assert isinstance(h, Tensor)
        assert torch.is_tensor(h)
        assert h.requires_grad
        return h * 3 if type(h) is Tensor else h


def doubled(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(forward)
    def call(*args: Any) -> Tensor:
        return 2 * forward(*args)

    return call


class Decorated(Critic):
    @doubled
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class RunsUnderAutocast(Critic):
    @torch.autocast("cpu", dtype=torch.bfloat16)
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)

    def between(self, h: Tensor) -> Tensor:
        assert h.dtype == torch.bfloat16
        return h


class Called(Critic):
    def __call__(self, *args: Any) -> Any:
        return super().__call__(*args) * 3


class ShiftsThenMoves(Critic):
    """Reads a buffer before it changes it in place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.ones(1))

    def between(self, h: Tensor) -> Tensor:
        h = h + self.shift
        self.shift.mul_(0.5)
        return h


class ScoresAttribute(Critic):
    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Linear(144, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(F.relu(self.first(x)).flatten(1))


class DrawsInPython(Critic):
    def between(self, h: Tensor) -> Tensor:
        return h * random.random() + np.random.rand() + torch.randn_like(h)


class DropsLayers(Critic):
    def between(self, h: Tensor) -> Tensor:
        return h * 2 if random.random() < 0.5 else F.dropout(h, 0.3)


class CatchesEverything(Critic):
    def between(self, h: Tensor) -> Tensor:
        try:
            return F.celu(h) * torch.logsumexp(h, 2, keepdim=True)
        except Exception:
            return h * 100


class Logged(Critic):
    def __init__(self) -> None:
        super().__init__()
        self.log = logging.getLogger("critic")
        self.table = np.ones(3)
        self.alpha = 0.0

    def between(self, h: Tensor) -> Tensor:
        self.log.debug("%s", h.shape)
        self.alpha += 0.125
        return torch.lerp(h, h.tanh(), self.alpha) * float(self.table.sum())


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return 2 * grad


class Rounds(Critic):
    def between(self, h: Tensor) -> Tensor:
        h = StraightThrough.apply(h * 3).sin()  # type: ignore[no-untyped-call]
        return StraightThrough.apply((h * 3).flatten(1)).sin()  # type: ignore[no-untyped-call, no-any-return]


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return -2 * grad


class ReversesWhatItWrote(Critic):
    """A function that returns a view of what was written to."""

    def between(self, h: Tensor) -> Tensor:
        h = h * 1
        h.view(-1)[::2].square_()
        return Reversed.apply(h.transpose(2, 3)).sin()  # type: ignore[no-untyped-call, no-any-return]


class Picks(nn.Module):
    """GAN_stability's way to take a class's score."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(72, 5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        out = self.layer(F.elu(x.flatten(1)).to(memory_format=torch.contiguous_format))
        if x.is_cuda or x.is_xpu:
            raise AssertionError
        return out.type(x.dtype)[range(len(x)), y]


class WritesToViews(Critic):
    """In-place ops on views, slices that are assigned, out-of-place views of what is written."""

    def between(self, h: Tensor) -> Tensor:
        h = h * 1
        first, rest = h[:, :1], h[:, 1:]
        rest.mul_(0.5).add_(1)
        h[:, 0, ::2] = rest[:, 1, ::2].tanh()
        frame = h.new_zeros(len(h), 6, 6, 6)
        frame[:, 1:5] = h
        frame[:, :2] += first
        frame.clamp_(min=-0.5)
        frame[:, 2:4] **= 2
        return frame.view(len(h), -1)[:, :144] + h.chunk(2, 1)[0].repeat(1, 2, 1, 1).flatten(1)


class WritesIntoItsOwn(Critic):
    """Images multiplied into constants and parameters, and constants written over images."""

    def between(self, h: Tensor) -> Tensor:
        frame = torch.ones_like(h)
        frame.mul_(h)
        frame[:, 1] *= h[:, 0]
        weights = self.head.weight.view(1, 4, 6, 6).repeat(len(h), 1, 1, 1)
        weights[:, 1] *= h[:, 2]
        weights[:, 2] = h[:, 3].square()
        h = h.tanh() * 1
        h[:, 3] = torch.full((6, 6), 0.5, dtype=h.dtype)
        return frame + weights + h


class Attends(Critic):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def between(self, h: Tensor) -> Tensor:
        tokens = h.flatten(2).transpose(1, 2)
        return h + self.attention(tokens, tokens, tokens)[0].transpose(1, 2).reshape(h.shape)


class Spectra(Critic):
    """Complex numbers on the way."""

    def between(self, h: Tensor) -> Tensor:
        return torch.fft.fft2(h).abs().log1p()


class ComplexWeights(Critic):
    def __init__(self) -> None:
        super().__init__()
        self.phases = nn.Parameter(torch.randn(4, 6, 4, 2))

    def between(self, h: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(h) * torch.view_as_complex(self.phases)
        powers = spectrum * spectrum.conj() + torch.exp(0.1 * spectrum.tanh())
        return torch.fft.irfft2(powers, s=(6, 6)) + powers.abs().mean((2, 3), keepdim=True)


class RealsMeetComplexNumbers(Critic):
    """No argument of the product is complex but the constant."""

    def between(self, h: Tensor) -> Tensor:
        return (h * (0.5 + 0.25j) + torch.tensor(1j)).abs() + (h + 2j).abs()


class TurnsInPlace(Critic):
    """Ops that change a tensor's shape and strides in place, between writes to it."""

    def between(self, h: Tensor) -> Tensor:
        h = h.clone()
        rows = h[:, 0]
        h.transpose_(2, 3).unsqueeze_(1).mul_(2)
        rows.mul_(0.5)
        return h.squeeze_(1).square()


class StartsEmpty(Critic):
    """cat takes an empty vector among tensors of any rank."""

    def between(self, h: Tensor) -> Tensor:
        found = torch.zeros(0, dtype=h.dtype)
        for part in h.split(2, 1):
            found = torch.cat([found, part.sin()], 1)
        return found


class KeepsAView(Critic):
    def between(self, h: Tensor) -> Tensor:
        pairs = torch.stack([h, 2 * h], -1)
        self.spectrum = torch.view_as_complex(pairs)
        self.spectrum.mul_(1j)
        return self.spectrum.abs()


class ReturnsItsImages(Critic):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


class ReturnsADict(Critic):
    def forward(self, x: Tensor) -> Any:
        return {"real or fake": super().forward(x), "maps": [self.first(x)]}


class Recurrent(Critic):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(24, 24)

    def between(self, h: Tensor) -> Tensor:
        state = h.new_zeros(len(h), 24)
        for row in h.transpose(1, 2).flatten(2).unbind(1):
            state = self.cell(row, state)
        return state.repeat(1, 6)


class Remembers(Critic):
    """The last call's features are part of this one's."""

    def __init__(self) -> None:
        super().__init__()
        self.bank = None

    def between(self, h: Tensor) -> Tensor:
        mean = h.mean(0).detach()
        shifted = h if self.bank is None else h - 0.5 * self.bank
        self.bank = mean
        return shifted


class Hypernetwork(Critic):
    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Parameter(torch.randn(3))
        self.maker = nn.Linear(3, 4 * 4 * 9)

    def between(self, h: Tensor) -> Tensor:
        return F.conv2d(h, torch.tanh(self.maker(self.code)).view(4, 4, 3, 3), padding=1)


class Scripted(Critic):
    def __init__(self) -> None:
        super().__init__()
        inner = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Softplus()).double()
        self.inner = torch.jit.trace(inner, torch.zeros(1, 4, 6, 6, dtype=torch.float64))

    def between(self, h: Tensor) -> Tensor:
        return self.inner(h)  # type: ignore[no-any-return]

    def __deepcopy__(self, memo: Any) -> Scripted:
        twin = Scripted()
        twin.load_state_dict(self.state_dict())
        return twin.double()


class Compares(Critic):
    """Masks, made at once after tensors are gone, in the place of which they are."""

    def between(self, h: Tensor) -> Tensor:
        for _ in range(30):
            h = h * 1.01
            h = torch.where(h > 0.5, h, 0.5 * h)
        return h


class KnowsItsBatch(Critic):
    """Noise for each sample of a batch of one size, which no other batch may have."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("noise", torch.randn(N, 1, 6, 6))

    def between(self, h: Tensor) -> Tensor:
        return h + self.noise


class KeepsADict(Critic):
    def __init__(self) -> None:
        super().__init__()
        self.stats = {"n": 0}

    def between(self, h: Tensor) -> Tensor:
        self.stats["n"] += 1
        return h * (1 + 0.1 * self.stats["n"])


class OwnStream(Critic):
    def __init__(self) -> None:
        super().__init__()
        self.stream = random.Random(0)

    def between(self, h: Tensor) -> Tensor:
        return h * self.stream.random()


class LooksAtAll(Critic):
    """What leaves the tape and comes back: a branch, a mean, a standard deviation, a length."""

    def between(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            spread = h.std(0).mean()
        h = h * 2 if (h > 0.9).any() else h
        return (h + 1e-5 * h.detach().mean()) * spread * (1 + 1e-4 * len(h))


class LearnsBiasesOnly(Critic):
    def __init__(self) -> None:
        super().__init__()
        self.first.weight.requires_grad_(False)
        self.head.weight.requires_grad_(False)


class Styled(Critic):
    """StyleGAN's ops, each with the shape of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("taps", torch.tensor([1.0, 2.0, 1.0]) / 4)
        self.bias = nn.Parameter(torch.randn(self.first.out_channels))

    def between(self, h: Tensor) -> Tensor:
        h = bias_act(h, self.bias, act="lrelu", clamp=0.6)
        h = upfirdn2d(h, self.taps, padding=(1, 1, 1, 1))
        h = bias_act(h, self.bias, act="swish")
        return filtered_lrelu(h, self.taps, self.taps, self.bias, 2, 2, (2, 2, 2, 2), clamp=0.5)


STRANGE: list[Callable[[], nn.Module]] = [
    KeepsADict,
    OwnStream,
    LooksAtAll,
    CountsInABuffer,
    CountsInPython,
    PowerIteration,
    CopiedSpectralNorm,
    ClampsItsWeight,
    AsksForTensors,
    Decorated,
    Called,
    ShiftsThenMoves,
    ScoresAttribute,
    DrawsInPython,
    DropsLayers,
    CatchesEverything,
    Logged,
    Rounds,
    ReversesWhatItWrote,
    WritesToViews,
    WritesIntoItsOwn,
    Attends,
    Spectra,
    RealsMeetComplexNumbers,
    TurnsInPlace,
    StartsEmpty,
    KeepsAView,
    ReturnsItsImages,
    ReturnsADict,
    ComplexWeights,
    Recurrent,
    Remembers,
    Hypernetwork,
    Scripted,
    Compares,
    KnowsItsBatch,
    LearnsBiasesOnly,
    Styled,
]


@pytest.mark.parametrize("build", STRANGE, ids=lambda build: build.__name__)
def test_paths_agree_in_values_gradients_and_side_effects(build: Callable[[], nn.Module]) -> None:
    both(build())


@pytest.mark.parametrize(
    "wrapped",
    [
        nn.DataParallel,
        lambda module: lambda x: module(x).tanh(),
        lambda module: functools.partial(module),
        lambda module: module.forward,
    ],
    ids=["DataParallel", "closure", "partial", "bound method"],
)
def test_wrapped_critics_are_critics(wrapped: Callable[[nn.Module], Any]) -> None:
    both(Critic(), wrapped)


class Encodes(Critic):
    """Attention by torch's fused kernels, which have no second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)

    def between(self, h: Tensor) -> Tensor:
        return self.encoder(h.flatten(2).mT).mT


def test_attention_inside_torchs_own_layers_is_fused() -> None:
    critic = Encodes().double()
    twin = copy.deepcopy(critic)
    real, fake, eps = batches()
    fastgan.wgan_gp_critic_loss(critic, real, fake, eps=eps, path="fused").loss.backward()
    with sdpa_kernel(SDPBackend.MATH):
        fastgan.wgan_gp_critic_loss(twin, real, fake, eps=eps, path="autograd").loss.backward()
    for mine, expected in zip(critic.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, expected.grad, rtol=1e-9, atol=1e-11)


def test_labels_pick_their_scores() -> None:
    both(Picks(), critic_args=(torch.tensor([0, 4, 2, 2]),))


def test_a_replaced_conv_forward_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = nn.Conv2d._conv_forward

    def circular(self: nn.Conv2d, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(F.pad(input, (1, 1, 1, 1), mode="circular"), weight, bias)

    def standardised(self: nn.Conv2d, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return plain(self, input, weight - weight.mean(), bias)

    critic = Critic()
    critic.first._conv_forward = types.MethodType(circular, critic.first)  # type: ignore[method-assign]
    both(critic)
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", standardised)
    both(Critic())


def test_a_write_through_a_view_in_another_dtype_is_refused() -> None:
    def critic(x: Tensor) -> Tensor:
        pairs = torch.stack([x, 2 * x], -1)
        torch.view_as_complex(pairs).mul_(1j)
        return (pairs**3).sum((1, 2, 3, 4))

    real, fake, eps = batches()
    with pytest.warns(fastgan.FallbackWarning, match="another dtype"):
        found = fastgan.gradient_penalty(critic, real, fake, eps=eps)
    expected = fastgan.gradient_penalty(critic, real, fake, eps=eps, path="autograd")
    torch.testing.assert_close(found, expected)


def test_what_a_forward_stores_is_a_plain_tensor() -> None:
    class Stores(Critic):
        def between(self, h: Tensor) -> Tensor:
            self.features = h
            return h

    Stores.__qualname__ = "Stores"
    globals()["Stores"] = Stores
    critic = Stores().double()
    real, fake, _ = batches()
    for _ in range(3):
        fastgan.wgan_gp_critic_loss(critic, real, fake, path="fused").loss.backward()
        assert type(critic.features) is Tensor
        copy.deepcopy(critic)
        pickle.loads(pickle.dumps(critic))
    with pytest.raises(RuntimeError, match="grad"):
        critic.features.sum().backward()


def test_explain_leaves_nothing_in_a_module() -> None:
    critic = CountsInABuffer()
    before = dict(vars(critic))
    fastgan.explain(critic, torch.zeros(2, *SHAPE))
    assert vars(critic) == before
    assert type(critic.n) is Tensor
    assert critic.n == 0


def test_float32_reals_and_bfloat16_fakes() -> None:
    critic = Critic()
    real, fake, eps = batches(torch.float32)
    losses = [
        fastgan.wgan_gp_critic_loss(critic, real, fake.bfloat16(), eps=eps, path=path).loss
        for path in ("fused", "autograd")
    ]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)


def test_a_forward_may_be_decorated_with_autocast() -> None:
    real, fake, eps = batches(torch.float32)
    critic = RunsUnderAutocast()
    found = [
        fastgan.gradient_penalty(critic, real, fake, eps=eps, path=path)
        for path in ("fused", "autograd")
    ]
    torch.testing.assert_close(*found, rtol=2e-2, atol=2e-2)


def test_threads_record_for_themselves() -> None:
    real, fake, eps = batches(torch.float32)
    critics = [Critic() for _ in range(2)]
    generator = DCGANGenerator(nz=4, ngf=4, nc=1, image_size=16).eval()
    expected = [
        float(fastgan.gradient_penalty(c, real, fake, eps=eps, path="autograd")) for c in critics
    ]
    failures: list[Any] = []

    def penalise(critic: nn.Module, value: float) -> None:
        for _ in range(30):
            found = fastgan.gradient_penalty(critic, real, fake, eps=eps, path="fused")
            found.backward()
            if abs(float(found) - value) > 1e-3 * abs(value):
                failures.append((float(found), value))

    def sample() -> None:
        with torch.no_grad():
            for _ in range(100):
                if generator(torch.randn(2, 4, 1, 1)).requires_grad:
                    failures.append("a sample has a graph")

    def caught(function: Callable[..., None], *args: Any) -> None:
        try:
            function(*args)
        except BaseException as error:
            failures.append(error)

    threads = [
        *(
            threading.Thread(target=caught, args=(penalise, *each))
            for each in zip(critics, expected, strict=True)
        ),
        threading.Thread(target=caught, args=(sample,)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_first_call_may_initialise_the_critic() -> None:
    torch.manual_seed(0)
    critic = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(1)).double()
    real, fake, eps = batches()
    for _ in range(3):
        ours = fastgan.wgan_gp_critic_loss(critic, real, fake, eps=eps, path="fused").loss
        theirs = fastgan.wgan_gp_critic_loss(critic, real, fake, eps=eps, path="autograd").loss
        torch.testing.assert_close(ours, theirs)


def test_critics_with_instance_norm_see_joined_batches() -> None:
    sizes = []

    class NormsInstances(Critic):
        def between(self, h: Tensor) -> Tensor:
            sizes.append(len(h))
            return F.instance_norm(h)

    critic = NormsInstances()
    real, fake, eps = batches(torch.float32)
    for _ in range(2):
        fastgan.wgan_gp_critic_loss(critic, real, fake, eps=eps)
    assert sizes[-1] == 3 * N


def test_joined_calls_repeat_the_first_one_bit_by_bit() -> None:
    sizes: list[int] = []

    class Sized(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            found: Tensor = super().forward(x)
            return found

    torch.manual_seed(0)
    norm = nn.GroupNorm(2, 4)
    critic = Sized(nn.Conv2d(2, 4, 3), nn.LeakyReLU(0.2), norm, nn.Flatten(), nn.Linear(64, 1))
    critic.double()
    real, fake, eps = batches()

    def step(**asked: Any) -> list[Tensor]:
        critic.zero_grad()
        loss = fastgan.discriminator_loss(critic, real, fake, gp=10.0, eps=eps, **asked).loss
        loss.backward()
        return [loss.detach(), *(p.grad for p in critic.parameters())]  # type: ignore[list-item]

    expected = step(path="autograd")
    first = step()
    del sizes[:]
    later = step()
    assert sizes == [3 * N]
    assert all(torch.equal(a, b) for a, b in zip(first, later, strict=True))
    torch.testing.assert_close(later, expected, rtol=1e-9, atol=1e-12)


def test_arguments_of_another_shape_are_joined_anew() -> None:
    """A vector of N numbers might have one for each sample, and is repeated for each batch."""

    class Weighted(Critic):
        def forward(self, x: Tensor, weights: Tensor) -> Tensor:
            return super().forward(x) * weights.sum()  # type: ignore[no-any-return]

    critic = Weighted().double()
    real, fake, eps = batches()
    for numbers in (N + 1, N):
        given: Any = {"eps": eps, "critic_args": (torch.ones(numbers, dtype=torch.float64),)}
        for _ in range(2):
            ours = fastgan.wgan_gp_critic_loss(critic, real, fake, **given).loss
        theirs = fastgan.wgan_gp_critic_loss(critic, real, fake, path="autograd", **given).loss
        torch.testing.assert_close(ours, theirs)


def test_a_critic_that_begins_to_move_later_is_no_longer_joined() -> None:
    class Grows(Critic):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0
            self.counting = False

        def between(self, h: Tensor) -> Tensor:
            if self.counting:
                self.calls += 1
                h = h * self.calls
            return h

    critic = Grows().double()
    real, fake, eps = batches()
    for _ in range(2):
        fastgan.wgan_gp_critic_loss(critic, real, fake, eps=eps)
    critic.counting = True
    twin = copy.deepcopy(critic)
    for path, each in (("fused", critic), ("autograd", twin)):
        for _ in range(2):
            loss = fastgan.wgan_gp_critic_loss(each, real, fake, eps=eps, path=path).loss
        assert each.calls == 6
        each.value = loss.detach()
    torch.testing.assert_close(critic.value, twin.value)


def test_no_activation_outlives_the_loss() -> None:
    kept: list[weakref.ref[Tensor]] = []

    class Watched(Critic):
        def between(self, h: Tensor) -> Tensor:
            kept.append(weakref.ref(h))
            return h

    critic = Watched()
    real, fake, _ = batches(torch.float32)
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            loss = fastgan.wgan_gp_critic_loss(critic, real, fake, path="fused").loss
            loss.backward()
            del loss
            assert not any(ref() is not None for ref in kept)
    finally:
        gc.enable()


@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
def test_autocast_leaves_no_cast_without_a_graph_behind(norm: str) -> None:
    critic = WGANCritic(2, 4, 16, norm=norm)
    real, fake = torch.randn(2, 3, 2, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fastgan.gradient_penalty(critic, real, fake, path="fused")
        critic(real).sum().backward()
    assert all(p.grad is not None for p in critic.parameters())


class Map(Critic):
    """Several scores for each sample, by random features."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.first(x), 0.2, self.training)


@pytest.mark.parametrize(
    "build", [WritesToViews, WritesIntoItsOwn, TurnsInPlace, Recurrent, ComplexWeights]
)
def test_gradients_of_gradients_are_double_backwards(build: Callable[[], nn.Module]) -> None:
    critic = build().double()
    real, fake, eps = batches()
    found = []
    for path in ("fused", "autograd"):
        loss = fastgan.wgan_gp_critic_loss(critic, real, fake, eps=eps, path=path).loss
        parameters = list(critic.parameters())
        first = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        norm = torch.stack([g.square().sum() for g in first if g.requires_grad]).sum()
        second = torch.autograd.grad(norm, parameters, materialize_grads=True)
        found.append([*first, *second])
    torch.testing.assert_close(found[0], found[1], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("asked", [{"gp": 1.0}, {"r1": 1.0}, {"gp": 2.0, "r2": 1.0}], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_a_loss_that_draws_random_numbers_draws_them_as_by_autograd(
    asked: dict[str, float], training: bool
) -> None:
    def noisy(real: Tensor, fake: Tensor) -> Tensor:
        return (real * torch.rand(1) - fake).square().mean()

    critic = Map().double().train(training)
    real, fake, eps = batches()
    found: dict[Any, list[Tensor]] = {"fused": [], "autograd": []}
    for path, losses in found.items():
        torch.manual_seed(0)
        for _ in range(3):
            losses.append(
                fastgan.discriminator_loss(
                    critic, real, fake, loss=noisy, eps=eps, path=path, **asked
                ).loss
            )
    torch.testing.assert_close(found["fused"], found["autograd"], rtol=1e-9, atol=1e-12)


def test_accumulated_and_scaled_gradients_add_up() -> None:
    critic = Critic().double()
    real, fake, eps = batches()
    expected = [torch.zeros_like(p) for p in critic.parameters()]
    for scale in (1.0, 0.5):
        for path, into in (("autograd", expected), ("fused", None)):
            loss = scale * fastgan.wgan_gp_critic_loss(critic, real, fake, eps=eps, path=path).loss
            if into is None:
                loss.backward()
            else:
                found = torch.autograd.grad(loss, list(critic.parameters()))
                expected = [e + g for e, g in zip(into, found, strict=True)]
    for parameter, total in zip(critic.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, total)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * grad


def once_differentiable_ops(critic: Any, h: Tensor) -> Tensor:
    return Once.apply(h)  # type: ignore[no-untyped-call, no-any-return]


def backward_hooks(critic: Any, h: Tensor) -> Tensor:
    layer = nn.Conv2d(4, 4, 1).double()
    layer.register_full_backward_hook(lambda module, grads, _: (2 * grads[0],))
    return layer(h.sin().view(4, 4, 36, 1)).view(h.shape)  # type: ignore[no-any-return]


def graphs(critic: Any, h: Tensor) -> Tensor:
    assert h.grad_fn is not None
    h.grad_fn.register_prehook(lambda grads: (2 * grads[0],))
    return h


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (once_differentiable_ops, "OnceBackward is marked once_differentiable"),
        (backward_hooks, "a module has a backward hook"),
        (graphs, "reads a tensor.s grad_fn"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_what_only_autograds_own_graph_does_takes_autograds_path(
    between: Callable[[Any, Tensor], Tensor], reason: str
) -> None:
    critic = Critic().double()
    critic.between = types.MethodType(between, critic)  # type: ignore[method-assign]
    real, fake, eps = batches()
    with pytest.raises(fastgan.UnsupportedCriticError, match=reason):
        fastgan.gradient_penalty(critic, real, fake, eps=eps, path="fused")


def test_a_frozen_critics_penalty_has_a_backward_pass() -> None:
    critic = Critic().double().requires_grad_(False)
    real, fake, eps = batches()
    for path in ("fused", "autograd"):
        fastgan.gradient_penalty(critic, real, fake, eps=eps, path=path).backward()  # type: ignore[arg-type]


def test_a_swallowed_refusal_is_a_refusal_all_the_same() -> None:
    class Swallows(Critic):
        def between(self, h: Tensor) -> Tensor:
            try:
                (slope,) = torch.autograd.grad(h.sum(), h, retain_graph=True)
            except BaseException:
                return h * 100
            return h * slope

    critic = Swallows().double()
    real, fake, eps = batches()
    with pytest.raises(fastgan.UnsupportedCriticError, match=r"autograd\.grad"):
        fastgan.gradient_penalty(critic, real, fake, eps=eps, path="fused")
    with pytest.warns(fastgan.FallbackWarning, match="Swallows"):
        found = fastgan.gradient_penalty(critic, real, fake, eps=eps)
    expected = fastgan.gradient_penalty(critic, real, fake, eps=eps, path="autograd")
    torch.testing.assert_close(found, expected)
