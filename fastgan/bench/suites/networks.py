"""A DCGAN's networks at 64 pixels and third-party ones, forward and backward to the weights.

Peers are :mod:`fastgan.reference`'s networks with the same weights, channels-last and in torch's
default layout, and the former under torch.compile; for networks of :mod:`fastgan.bench.styles`,
fused by ``fastgan.fuse`` with weights in either layout, the unfused networks. Weights are float32;
"bfloat16" and "float16" are autocast's for all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from fastgan import models, reference
from fastgan.bench.cases import Case, Setting, autocast, placed
from fastgan.bench.styles import STYLES, DcganCritic
from fastgan.bench.timing import Call
from fastgan.bench.work import Work, products_work
from fastgan.nn import fuse

Make = Callable[[], nn.Module]

#: Network -> ours, the reference's, and the input shape without the batch.
_DCGAN: dict[str, tuple[Make, Make, tuple[int, ...]]] = {
    "generator": (models.DCGANGenerator, reference.DCGANGenerator, (100, 1, 1)),
    "discriminator": (
        partial(models.DCGANDiscriminator, output="logits"),
        partial(reference.DCGANDiscriminator, output="logits"),
        (3, 64, 64),
    ),
    "critic": (
        partial(models.WGANCritic, norm="batch"),
        partial(reference.WGANCritic, norm="batch"),
        (3, 64, 64),
    ),
}

#: Its ``view`` needs torch's default layout.
_VIEWS = partial(DcganCritic, 64)


def cases(device: torch.device, quick: bool) -> list[Case]:
    """The suite "models"."""
    if device.type == "cuda":
        batches = [64] if quick else [64, 128, 512]
        dtypes = ["bfloat16"] if quick else ["bfloat16", "float16", "float32"]
    else:
        batches = [32] if quick else [16, 64]
        dtypes = ["float32"] if quick else ["float32", "bfloat16"]
    result = [
        _case(name, "DCGAN-64", *network, dtype, batch)
        for name, network in _DCGAN.items()
        for dtype in dtypes
        for batch in batches
    ]
    if not quick:
        for name, (network, shape) in STYLES.items():
            plain = _VIEWS if network is DcganCritic else partial(network, 64)
            sizes = "x".join(map(str, shape))
            result += [_case(name, sizes, None, plain, shape, dtype, 16) for dtype in dtypes]
    return result


def _case(
    name: str,
    what: str,
    ours: Make | None,
    plain: Make,
    shape: tuple[int, ...],
    dtype: str,
    batch: int,
) -> Case:
    """A case; without ``ours``, fastgan's network is the fused plain one."""
    return Case(
        suite="models",
        op=f"{name}, forward and backward",
        shape=what,
        dtype=dtype,
        batch=batch,
        count_work=partial(_work, plain, shape, dtype, batch),
        input_bytes=4 * batch * math.prod(shape),
        prepare=partial(_contenders, ours, plain, shape, dtype, batch),
        capturable=True,
        breakdown=True,
    )


def _work(plain: Make, shape: tuple[int, ...], dtype: str, batch: int) -> Work:
    with torch.device("meta"):
        network, images = plain().eval(), torch.empty(batch, *shape)
    return products_work(network, images, dtype, gradients="of parameters")


def _contenders(
    ours: Make | None, plain: Make, shape: tuple[int, ...], dtype: str, batch: int, setting: Setting
) -> dict[str, Call]:
    device, mode = setting.device, setting.compile_mode
    torch.manual_seed(0)
    weights = plain().state_dict()
    inputs = torch.randn(setting.copies, batch, *shape).to(device)

    def call(make: Make, layout: torch.memory_format, mode: str | None = None) -> Call:
        model = placed(make(), weights, device, layout)
        run = model if mode is None else torch.compile(model, mode=mode)
        sets = list(inputs)
        if inputs.dim() == 5:
            sets = [tensor.contiguous(memory_format=layout) for tensor in inputs]
        with torch.no_grad(), autocast(device, dtype):
            gradients = torch.randn_like(model(sets[0]))

        def step(number: int) -> None:
            model.zero_grad()
            with autocast(device, dtype):
                output = run(sets[number])
            output.backward(gradients)

        return step

    last, default = torch.channels_last, torch.contiguous_format
    make = ours or (lambda: fuse(plain()))
    calls = {}
    if plain is not _VIEWS:
        calls = {"fastgan": call(make, last), "eager": call(plain, last)}
    if ours is None:
        calls["fastgan, contiguous"] = call(make, default)
    calls["eager, contiguous"] = call(plain, default)
    if mode is not None:
        calls["torch.compile"] = call(plain, last if ours else default, mode)
    return calls
