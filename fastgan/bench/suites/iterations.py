"""A whole iteration of training: the critic's updates, then the generator's.

DCGAN, WGAN and WGAN-GP at 64 pixels as in their papers; SNGAN, StyleGAN2 and R3GAN, which are much
deeper, at 32 pixels with 32 channels at full size and one update of each network; CycleGAN at 64
pixels with 32 channels and six blocks, four images of each domain. StyleGAN2's is an iteration
without penalties, as most are, and, as a case of its own, one with both; without style mixing.

Ours is ``fastgan train``'s iteration, on a GPU replayed from a CUDA graph. Peers are
:mod:`fastgan.reference`'s steps with torch's optimisers (fused Adam), channels-last, in the same
precision, and the same compiled by torch.compile as far as possible: the networks, and WGAN-GP's
critic loss. Images come from memory, noise is drawn in the loop; all leave out the generator's
moving average.

One-stage updates (Shen et al. 2021, arXiv 2103.00430) are a separate case: our iteration with and
without them.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastgan import reference
from fastgan.bench.cases import Case, Setting, autocast, placed, tracing_autograd
from fastgan.bench.timing import Call
from fastgan.bench.work import Work, products_work
from fastgan.errors import FastganError
from fastgan.training.config import TrainConfig
from fastgan.training.feed import Batch
from fastgan.training.graphs import WARM_UP, CapturedIteration, CudaCapture
from fastgan.training.iteration import Iteration, MetricTotals, Shape
from fastgan.training.model_kinds import named
from fastgan.training.networks import DataShape, build_discriminator, build_generator
from fastgan.training.updates import GANUpdater, build_optimizer

__all__ = ["cases"]

_MODELS = {
    "dcgan": "DCGAN",
    "wgan": "WGAN",
    "wgan-gp": "WGAN-GP",
    "sngan": "SNGAN",
    "stylegan2": "StyleGAN2",
    "r3gan": "R3GAN",
    "cyclegan": "CycleGAN",
}
_RESIDUAL: dict[str, Any] = {"image_size": 32, "ngf": 32, "ndf": 32, "n_critic": 1}
_SIZES: dict[str, dict[str, Any]] = {
    "sngan": _RESIDUAL,
    "stylegan2": {**_RESIDUAL, "style_mixing": 0.0, "r1": 0.0, "path_length": 0.0},
    "r3gan": _RESIDUAL,
    "cyclegan": {"image_size": 64, "ngf": 32, "ndf": 32, "batch_size": 4},
}
_PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def cases(device: torch.device, quick: bool) -> list[Case]:
    """The suite "training"."""
    if device.type == "cuda":
        batches = [64] if quick else [64, 128, 512]
        dtypes = ["bfloat16"]
    else:
        batches = [32]
        dtypes = ["float32"] if quick else ["float32", "bfloat16"]
    compiled = not quick or device.type == "cuda"
    models = [model for model in _MODELS if not quick or model not in _SIZES]
    found = [
        _case(model, dtype, n, compiled)
        for model in models
        for dtype in dtypes
        for n in (batches[:1] if "batch_size" in _SIZES.get(model, {}) else batches)
    ]
    if not quick:
        found += [_case("dcgan", dtypes[0], n, compiled=False, one_stage=True) for n in batches]
        found += [
            _case("stylegan2", dtype, n, False, lazy=True) for dtype in dtypes for n in batches
        ]
    return found


def _case(
    model: str,
    dtype: str,
    batch: int,
    compiled: bool,
    one_stage: bool = False,
    lazy: bool = False,
) -> Case:
    size = {"batch_size": batch, "image_size": 64, **_SIZES.get(model, {})}
    if lazy:
        size |= {"r1": None, "path_length": None}  # the paper's
    config = TrainConfig(
        model=model,
        precision=_PRECISIONS[dtype],
        out="unused",
        ema_decay=0.0,
        one_stage=one_stage,
        **size,
    ).resolved()
    assert config.n_critic is not None
    assert config.batch_size is not None
    side, batch = config.image_size, config.batch_size
    assert side is not None

    return Case(
        suite="training",
        op=f"{_MODELS[model]} iteration{', one-stage updates' if one_stage else ''}"
        + (", R1 and path length" if lazy else ""),
        shape=f"{side}x{side}, {config.n_critic} critic update{'s' * (config.n_critic > 1)}",
        dtype=dtype,
        batch=batch,
        work=_work(config, dtype),
        input_bytes=config.n_critic * batch * 3 * side * side * 4,
        prepare=partial(_contenders, config, dtype),
        images=config.n_critic * batch,
        compiled=compiled,
        breakdown=True,
    )


def _work(config: TrainConfig, dtype: str) -> Work:
    assert config.n_critic is not None
    assert config.batch_size is not None
    assert config.image_size is not None
    if config.kind.pairs:
        return _translation_work(config, dtype)
    # The gradient penalty's images: another batch, or existing ones.
    further, penalised = {"wgan-gp": (1, 1), "r3gan": (0, 2)}.get(config.model, (0, 0))
    if config.path_length:
        further, penalised = 1, 1
    with torch.device("meta"):
        networks = _reference_networks(config)
        generator, critic = networks
        frozen_generator, frozen_critic = (copy.deepcopy(n).requires_grad_(False) for n in networks)
        noise = torch.empty(config.batch_size, config.nz, 1, 1)
        images = torch.empty(config.batch_size, 3, config.image_size, config.image_size)
    learning = partial(products_work, dtype=dtype, gradients="of parameters")
    update = learning(frozen_generator, noise) + learning(
        critic, torch.cat([images] * (2 + further))
    )
    if penalised:
        points = torch.cat([images] * penalised)
        update += products_work(critic, points, dtype, gradients="of images")
    if config.path_length:
        some = noise[: config.batch_size // config.path_length_shrink]
        update += learning(generator, some)
        update += products_work(generator, some.requires_grad_(), dtype, gradients="of images")
    return (
        update.times(config.n_critic)
        + learning(generator, noise)
        + learning(frozen_critic, images.requires_grad_())
    )


def _translation_work(config: TrainConfig, dtype: str) -> Work:
    """Each generator translates both domains, and the other one's translations back."""
    assert config.batch_size is not None
    assert config.image_size is not None
    with torch.device("meta"):
        networks: Any = _reference_networks(config)
        generator, critic = networks[0].a_to_b, networks[1].a
        frozen = copy.deepcopy(critic).requires_grad_(False)
        images = torch.empty(config.batch_size, 3, config.image_size, config.image_size)
        fakes = images.clone().requires_grad_()
    learning = partial(products_work, dtype=dtype, gradients="of parameters")
    of_one = learning(generator, torch.cat([images] * 2)) + learning(generator, fakes)
    of_one += learning(critic, torch.cat([images] * 2)) + learning(frozen, fakes)
    return of_one.times(2)


def _contenders(config: TrainConfig, dtype: str, setting: Setting) -> dict[str, Call]:
    assert config.batch_size is not None
    assert config.n_critic is not None
    torch.manual_seed(0)
    data = _data(config)
    channels = 6 if config.kind.pairs else 3
    shape = (setting.copies, config.n_critic, config.batch_size, channels, *2 * (data.image_size,))
    batches = [
        [real.contiguous(memory_format=torch.channels_last) for real in each]
        for each in torch.rand(shape).mul_(2).sub_(1).to(setting.device)
    ]
    weights = (
        build_generator(config, data).state_dict(),
        build_discriminator(config, data).state_dict(),
    )
    device = setting.device
    captured = device.type == "cuda"
    calls = {"fastgan": _ours(config, weights, batches, device, captured=captured)}
    if config.one_stage:
        two = dataclasses.replace(config, one_stage=False)
        return calls | {"two stages": _ours(two, weights, batches, device, captured=captured)}
    calls["eager"] = _plain(config, weights, batches, setting.device, dtype, None)
    if setting.compile_mode is not None:
        calls["torch.compile"] = _plain(
            config, weights, batches, setting.device, dtype, setting.compile_mode
        )
    return calls


def _data(config: TrainConfig) -> DataShape:
    assert config.image_size is not None
    return DataShape(name="random", channels=3, image_size=config.image_size)


def _reference_networks(config: TrainConfig) -> tuple[nn.Module, nn.Module]:
    """:mod:`fastgan.reference`'s generator and discriminator."""
    assert config.image_size is not None
    if config.kind.pairs:
        return (
            reference.CycleGANGenerator(3, config.ngf, blocks=6),
            reference.CycleGANDiscriminator(3, config.ndf, config.image_size),
        )
    generator: Any = reference.DCGANGenerator
    discriminator: Any = partial(reference.DCGANDiscriminator, output="logits")
    if config.is_wasserstein:
        discriminator = partial(reference.WGANCritic, norm=config.critic_norm)
    elif config.model in ("sngan", "stylegan2", "r3gan"):
        name = _MODELS[config.model]
        generator = getattr(reference, f"{name}Generator")
        discriminator = getattr(reference, f"{name}Discriminator")
    size = {"nc": 3, "image_size": config.image_size}
    return (
        generator(nz=config.nz, ngf=config.ngf, **size),
        discriminator(ndf=config.ndf, **size),
    )


Weights = tuple[dict[str, Tensor], dict[str, Tensor]]


def _ours(
    config: TrainConfig,
    weights: Weights,
    batches: list[list[Tensor]],
    device: torch.device,
    *,
    captured: bool,
) -> Call:
    generator = build_generator(config, _data(config))
    discriminator = build_discriminator(config, _data(config))
    for network, values in zip((generator, discriminator), weights, strict=True):
        placed(network, values, device, torch.channels_last)
    assert config.lr_g is not None
    assert config.lr_d is not None
    random = torch.Generator(device).manual_seed(0)
    updater: GANUpdater = named(config.kind.updater)(
        config=config,
        generator=generator,
        discriminator=discriminator,
        optimizer_g=build_optimizer(config, generator, config.lr_g),
        optimizer_d=build_optimizer(config, discriminator, config.lr_d),
        num_classes=None,
        device=device,
        random=random,
        rates_on_device=captured,
    )
    plain = Iteration(updater, None, MetricTotals())
    iteration = CapturedIteration(plain, CudaCapture(device, [random])) if captured else plain
    assert config.n_critic is not None
    shape = Shape(
        penalized=(config.has_penalty,) * config.n_critic,
        measured=False,
        penalized_g=config.penalizes_generator(0),
    )
    sets: list[list[Batch]] = [[(real, None) for real in each] for each in batches]

    def call(number: int) -> None:
        iteration.run(sets[number], shape)

    if captured:
        # Until the graph is captured, because long runs consist of replays.
        for _ in range(WARM_UP + 1):
            call(0)
        if isinstance(iteration, CapturedIteration) and iteration.failure is not None:
            raise FastganError(f"the iteration could not be captured: {iteration.failure}")
    return call


def _plain(
    config: TrainConfig,
    weights: Weights,
    batches: list[list[Tensor]],
    device: torch.device,
    dtype: str,
    mode: str | None,
) -> Call:
    generator: Any
    generator, discriminator = _reference_networks(config)
    for network, values in zip((generator, discriminator), weights, strict=True):
        known = network.state_dict()  # the reference's network has no pools of images
        placed(network, {k: values[k] for k in known}, device, torch.channels_last)
    optimizer_g, optimizer_d = (
        _torch_optimizer(config, network.parameters(), lr)
        for network, lr in ((generator, config.lr_g), (discriminator, config.lr_d))
    )
    if config.kind.pairs:
        networks = (generator, discriminator)
        return _translating(networks, (optimizer_g, optimizer_d), batches, device, dtype, mode)
    run_g: Any = generator
    run_d: Any = discriminator
    if mode is not None:
        run_g, run_d = (torch.compile(network, mode=mode) for network in (run_g, run_d))
    random = torch.Generator(device).manual_seed(0)
    size = len(batches[0][0])

    def noise() -> Tensor:
        return torch.randn(size, config.nz, 1, 1, generator=random, device=device)

    if config.model == "wgan-gp":
        critic_step = _penalised_step(config, run_g, discriminator, optimizer_d, random, mode)
    elif config.model == "wgan":

        def critic_step(real: Tensor, z: Tensor) -> object:
            return reference.wgan_critic_step(run_g, run_d, optimizer_d, real, z, clip=config.clip)
    elif config.model == "r3gan":
        critic_step = _relativistic_step(config, run_g, discriminator, optimizer_d, mode)
    elif config.model == "sngan":

        def critic_step(real: Tensor, z: Tensor) -> object:
            return reference.hinge_discriminator_step(run_g, run_d, optimizer_d, real, z)
    else:

        def critic_step(real: Tensor, z: Tensor) -> object:
            return reference.discriminator_step(run_g, run_d, optimizer_d, real, z, output="logits")

    def generator_step(real: Tensor, z: Tensor) -> object:
        if config.is_wasserstein:
            return reference.wgan_generator_step(run_g, run_d, optimizer_g, z)
        if config.model == "r3gan":
            return reference.r3gan_generator_step(run_g, run_d, optimizer_g, real, z)
        if config.model == "sngan":
            return reference.hinge_generator_step(run_g, run_d, optimizer_g, z)
        return reference.generator_step(run_g, run_d, optimizer_g, z, output="logits")

    def iteration(number: int) -> None:
        with autocast(device, dtype):
            for real in batches[number]:
                critic_step(real, noise())
                if config.path_length:
                    reference.stylegan2_r1_step(discriminator, optimizer_d, real, weight=160.0)
            generator_step(batches[number][-1], noise())
            if config.path_length:
                z = noise()[: size // config.path_length_shrink]
                directions = torch.randn(len(z), *real.shape[1:], device=device)
                reference.stylegan2_path_length_step(
                    generator, optimizer_g, z, directions, weight=8.0
                )

    return iteration


def _translating(
    networks: tuple[Any, Any],
    optimizers: tuple[Any, Any],
    batches: list[list[Tensor]],
    device: torch.device,
    dtype: str,
    mode: str | None,
) -> Call:
    """:func:`fastgan.reference.cyclegan_step`, with networks that can be compiled."""
    generator, discriminator = networks
    if mode is not None:
        for each in (generator.a_to_b, generator.b_to_a, discriminator.a, discriminator.b):
            each.compile(mode=mode)
    pools = (reference.ImagePool(), reference.ImagePool())
    random = torch.Generator().manual_seed(0)

    def iteration(number: int) -> None:
        with autocast(device, dtype):
            for real in batches[number]:
                coins, keys = torch.rand(2, len(real), generator=random), torch.rand(2, 50)
                reference.cyclegan_step(
                    generator, discriminator, *optimizers, *real.chunk(2, 1), pools=pools,
                    drawn=((coins[0], keys[0]), (coins[1], keys[1])),
                )  # fmt: skip

    return iteration


def _penalised_step(
    config: TrainConfig,
    generator: Callable[[Tensor], Tensor],
    critic: nn.Module,
    optimizer: torch.optim.Optimizer,
    random: torch.Generator,
    mode: str | None,
) -> Callable[[Tensor, Tensor], object]:
    """:func:`fastgan.reference.wgan_gp_critic_step`, with a loss that can be compiled."""

    def loss(real: Tensor, fake: Tensor, eps: Tensor) -> Tensor:
        return reference.wgan_gp_critic_loss(
            critic, real, fake, weight=config.gp_weight, eps=eps
        ).loss

    def points(real: Tensor) -> tuple[Tensor]:
        return (torch.rand(len(real), 1, 1, 1, generator=random, device=real.device),)

    return _compiled_step(loss, points, generator, optimizer, mode)


def _relativistic_step(
    config: TrainConfig,
    generator: Callable[[Tensor], Tensor],
    discriminator: nn.Module,
    optimizer: torch.optim.Optimizer,
    mode: str | None,
) -> Callable[[Tensor, Tensor], object]:
    """:func:`fastgan.reference.r3gan_discriminator_step`, with a loss that can be compiled."""
    assert config.r1 is not None
    gamma = config.r1

    def loss(real: Tensor, fake: Tensor) -> Tensor:
        return reference.r3gan_discriminator_loss(discriminator, real, fake, gamma=gamma).loss

    return _compiled_step(loss, lambda real: (), generator, optimizer, mode)


def _compiled_step(
    loss: Callable[..., Tensor],
    more: Callable[[Tensor], tuple[Tensor, ...]],
    generator: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    mode: str | None,
) -> Callable[[Tensor, Tensor], object]:
    """An optimiser step for a loss of real and generated images, and of ``more``'s draws."""
    run: Callable[..., Any] = loss if mode is None else torch.compile(loss, mode=mode)

    def step(real: Tensor, z: Tensor) -> None:
        with torch.no_grad():
            fake = generator(z).to(real.dtype)
        given = (real, fake, *more(real))
        optimizer.zero_grad()
        if mode is None:
            value = run(*given)
        else:
            with tracing_autograd():
                value = run(*given)
        value.backward()
        optimizer.step()

    return step


def _torch_optimizer(config: TrainConfig, parameters: Any, lr: float | None) -> Any:
    assert lr is not None
    if config.optimizer == "adam":
        assert config.beta1 is not None
        assert config.beta2 is not None
        return torch.optim.Adam(parameters, lr=lr, betas=(config.beta1, config.beta2), fused=True)
    return torch.optim.RMSprop(parameters, lr=lr)
