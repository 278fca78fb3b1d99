"""A whole iteration of training: the critic's updates, then the generator's.

DCGAN, with labels too, ACGAN, InfoGAN, WGAN and WGAN-GP at 64 pixels as in their papers; the GAN's
MLPs at 32; SNGAN, BigGAN, StyleGAN2 and R3GAN, which are much deeper, at 32 pixels with 32 channels
at full size and one update of each network; CycleGAN and pix2pix at 64 pixels with 32 channels,
four pairs of images, CycleGAN with six blocks. Where there are labels, there are 10 classes.
StyleGAN2's is an iteration without penalties, as most are, and, as a case of its own, one with
both; without style mixing.

Ours is ``fastgan train``'s iteration, on a GPU replayed from a CUDA graph. Peers are
:mod:`fastgan.reference`'s steps with torch's fused optimisers, channels-last, in the same
precision, and the same compiled by torch.compile as far as possible: the networks, and losses with
penalties. Images come from memory, noise is drawn in the loop; all leave out the generator's moving
average.

One-stage updates (Shen et al. 2021, arXiv 2103.00430) are a separate case: our iteration with and
without them.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Sequence
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
from fastgan.training.optimizer_kinds import build_optimizer, build_torch_optimizer
from fastgan.training.updates import GANUpdater

_MODELS = {
    "dcgan": "DCGAN",
    "wgan": "WGAN",
    "wgan-gp": "WGAN-GP",
    "gan": "GAN",
    "cgan": "Conditional DCGAN",
    "acgan": "ACGAN",
    "infogan": "InfoGAN",
    "sngan": "SNGAN",
    "biggan": "BigGAN",
    "stylegan2": "StyleGAN2",
    "r3gan": "R3GAN",
    "cyclegan": "CycleGAN",
    "pix2pix": "pix2pix",
}
_RESIDUAL: dict[str, Any] = {"image_size": 32, "ngf": 32, "ndf": 32, "n_critic": 1}
_PAIRS: dict[str, Any] = {"image_size": 64, "ngf": 32, "ndf": 32, "batch_size": 4}
_SIZES: dict[str, dict[str, Any]] = {
    "gan": {"image_size": 32},
    "cgan": {},
    "acgan": {},
    "infogan": {},
    "sngan": _RESIDUAL,
    "biggan": {**_RESIDUAL, "conditional": True},
    "stylegan2": {**_RESIDUAL, "style_mixing": 0.0, "r1": 0.0, "path_length": 0.0},
    "r3gan": _RESIDUAL,
    "cyclegan": _PAIRS,
    "pix2pix": _PAIRS,
}
_CLASSES = 10
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
    suite = [
        _case(model, dtype, n, compiled)
        for model in models
        for dtype in dtypes
        for n in (batches[:1] if "batch_size" in _SIZES.get(model, {}) else batches)
    ]
    if not quick:
        suite += [_case("dcgan", dtypes[0], n, compiled=False, one_stage=True) for n in batches]
        suite += [
            _case("stylegan2", dtype, n, compiled, lazy=True) for dtype in dtypes for n in batches
        ]
    return suite


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
        count_work=partial(_work, config, dtype),
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
        networks = reference_networks(config, _data(config))
        frozen = [copy.deepcopy(network).requires_grad_(False) for network in networks]
        noise = torch.empty(config.batch_size, config.nz, 1, 1)
        images = torch.empty(config.batch_size, 3, config.image_size, config.image_size)
    generator, critic = (_labelled(network, config) for network in networks)
    frozen_generator, frozen_critic = (_labelled(network, config) for network in frozen)
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


def _labelled(network: nn.Module, config: TrainConfig) -> Callable[[Tensor], Tensor]:
    """The network, with labels for whatever it is given."""
    if not config.conditional:
        return network

    def run(given: Tensor) -> Tensor:
        labels = torch.empty(len(given), dtype=torch.int64, device=given.device)
        images: Tensor = network(given, labels)
        return images

    return run


def _translation_work(config: TrainConfig, dtype: str) -> Work:
    """CycleGAN's generators translate both domains, and the other one's translations back."""
    assert config.batch_size is not None
    assert config.image_size is not None
    cycle = config.model == "cyclegan"
    with torch.device("meta"):
        networks: Any = reference_networks(config, _data(config))
        generator, critic = (networks[0].a_to_b, networks[1].a) if cycle else networks
        frozen = copy.deepcopy(critic).requires_grad_(False)
        images = torch.empty(config.batch_size, 3, config.image_size, config.image_size)
        shown = images if cycle else torch.cat([images] * 2, 1)
    learning = partial(products_work, dtype=dtype, gradients="of parameters")
    players = learning(critic, torch.cat([shown] * 2))
    players += learning(frozen, shown.clone().requires_grad_())
    if not cycle:
        return players + learning(generator, images)
    players += learning(generator, torch.cat([images] * 2))
    players += learning(generator, images.clone().requires_grad_())
    return players.times(2)


def _contenders(config: TrainConfig, dtype: str, setting: Setting) -> dict[str, Call]:
    assert config.batch_size is not None
    assert config.n_critic is not None
    torch.manual_seed(0)
    data = _data(config)
    channels = 6 if config.kind.pairs else 3
    shape = (setting.copies, config.n_critic, config.batch_size, channels, *2 * (data.image_size,))
    labels = None
    if config.conditional:
        labels = torch.randint(_CLASSES, (config.batch_size,), device=setting.device)
    batches: list[list[Batch]] = [
        [(real.contiguous(memory_format=torch.channels_last), labels) for real in images]
        for images in torch.rand(shape).mul_(2).sub_(1).to(setting.device)
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
    return DataShape(
        name="random",
        channels=3,
        image_size=config.image_size,
        num_classes=_CLASSES if config.conditional else None,
    )


def reference_networks(config: TrainConfig, data: DataShape) -> tuple[nn.Module, nn.Module]:
    """:mod:`fastgan.reference`'s generator and discriminator, which returns logits."""
    pix2pix = config.model == "pix2pix"
    names = [named(name).__name__ for name in (config.kind.generator, config.kind.discriminator)]
    settings = {
        **config.to_dict(),
        "num_classes": data.num_classes,
        "norm": config.critic_norm,
        "output": "logits",
        "blocks": 6,
    }

    def build(name: str, channels: int) -> nn.Module:
        network = getattr(reference, name)
        given = {"nc": channels, **settings}
        taken = inspect.signature(network).parameters
        built: nn.Module = network(**{key: given[key] for key in taken if key in given})
        return built

    discriminator = "PatchDiscriminator" if pix2pix else names[1]
    return build(names[0], data.channels), build(discriminator, data.channels * (1 + pix2pix))


Weights = tuple[dict[str, Tensor], dict[str, Tensor]]


def _ours(
    config: TrainConfig,
    weights: Weights,
    batches: list[list[Batch]],
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
        num_classes=_data(config).num_classes,
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

    def call(number: int) -> None:
        iteration.run(batches[number], shape)

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
    batches: list[list[Batch]],
    device: torch.device,
    dtype: str,
    mode: str | None,
) -> Call:
    generator: Any
    generator, discriminator = reference_networks(config, _data(config))
    for network, values in zip((generator, discriminator), weights, strict=True):
        known = network.state_dict()  # the reference's network has no pools of images
        placed(network, {k: values[k] for k in known}, device, torch.channels_last)
    optimizer_g, optimizer_d = (
        build_torch_optimizer(config, network, lr, fused=True)
        for network, lr in ((generator, config.lr_g), (discriminator, config.lr_d))
    )
    for optimizer in (optimizer_g, optimizer_d):
        # Autocast keeps copies of weights, and would go on with those from before the step.
        optimizer.register_step_post_hook(lambda *_: torch.clear_autocast_cache())
    if config.kind.pairs:
        networks = (generator, discriminator)
        return _translating(networks, (optimizer_g, optimizer_d), batches, device, dtype, mode)
    random = torch.Generator(device).manual_seed(0)
    critic_step, generator_step = reference_steps(
        config, (generator, discriminator), (optimizer_g, optimizer_d), random, mode
    )
    penalise_d, penalise_g = _lazy_steps(
        config, (generator, discriminator), (optimizer_g, optimizer_d), mode
    )
    size = len(batches[0][0][0])

    def noise() -> Tensor:
        return torch.randn(size, config.nz, 1, 1, generator=random, device=device)

    def iteration(number: int) -> None:
        with autocast(device, dtype):
            for real, labels in batches[number]:
                given = {} if labels is None else {"labels": labels}
                critic_step(real, noise(), **given)
                penalise_d(real)
            generator_step(real, noise(), **given)
            penalise_g(real, noise())

    return iteration


#: A player's update, of real images and noise, with ``labels=`` where the model has some.
Step = Callable[..., object]


def reference_steps(
    config: TrainConfig,
    networks: tuple[Any, Any],
    optimizers: tuple[Any, Any],
    random: torch.Generator,
    mode: str | None,
) -> tuple[Step, Step]:
    """The reference's steps of both networks, compiled with ``mode`` unless it is None."""
    generator, discriminator = networks
    optimizer_g, optimizer_d = optimizers
    run_d = discriminator
    whole = mode is not None and config.loss == "hinge"
    if mode is not None and not whole:
        generator.compile(mode=mode)
        # A copy, as losses with penalties compile the network within them.
        run_d = torch.compile(discriminator, mode=mode)
    of_critic = (generator, run_d, optimizer_d)
    of_generator = (generator, run_d, optimizer_g)
    if config.model == "r3gan":
        return (
            _relativistic_step(config, generator, discriminator, optimizer_d, mode),
            partial(reference.r3gan_generator_step, *of_generator),
        )
    critic_step: Step = partial(reference.discriminator_step, *of_critic, output="logits")
    step: Step = partial(reference.generator_step, *of_generator, output="logits")
    if config.model == "wgan-gp":
        critic_step = _penalised_step(config, generator, discriminator, optimizer_d, random, mode)
        step = partial(reference.wgan_generator_step, *of_generator)
    elif config.model == "wgan":
        critic_step = partial(reference.wgan_critic_step, *of_critic, clip=config.clip)
        step = partial(reference.wgan_generator_step, *of_generator)
    elif config.model == "acgan":
        critic_step = partial(reference.acgan_discriminator_step, *of_critic)
        step = partial(reference.acgan_generator_step, *of_generator)
    elif config.model == "infogan":
        of_both = partial(reference.infogan_discriminator_step, *of_critic)
        of_codes = partial(reference.infogan_generator_step, *of_generator)

        def codes(z: Tensor) -> dict[str, Any]:
            first, noise = z.flatten(1).tensor_split([config.codes], dim=1)
            return {"codes": first, "noise": noise}

        return (
            lambda real, z, **given: of_both(real=real, **codes(z), **given),
            lambda real, z, **given: of_codes(**codes(z), **given),
        )
    elif config.loss == "hinge":
        of_real_and_fake: Any = reference.hinge_discriminator_step
        of_fake: Any = reference.hinge_generator_step
        if whole:
            # Spectral norm's vectors change between the two passes over a compiled network, before
            # the first one's gradient; in one graph of both they are as they were.
            of_real_and_fake, of_fake = (
                torch.compile(function, mode=mode) for function in (of_real_and_fake, of_fake)
            )
        critic_step = partial(of_real_and_fake, *of_critic)
        step = partial(of_fake, *of_generator, orthogonal=config.orthogonal or 0.0)
    return critic_step, lambda real, z, **given: step(z, **given)


def _lazy_steps(
    config: TrainConfig,
    networks: tuple[Any, Any],
    optimizers: tuple[Any, Any],
    mode: str | None,
) -> tuple[Callable[[Tensor], None], Callable[[Tensor, Tensor], None]]:
    """Steps down StyleGAN2's penalties, where the iteration has them."""
    r1_step: Step = reference.stylegan2_r1_step
    path_length_step: Step = reference.stylegan2_path_length_step
    if mode is not None:
        r1_step, path_length_step = (
            torch.compile(step, mode=mode) for step in (r1_step, path_length_step)
        )

    def penalise_d(real: Tensor) -> None:
        if config.path_length:
            with tracing_autograd():
                r1_step(networks[1], optimizers[1], real, weight=160.0)

    def penalise_g(real: Tensor, noise: Tensor) -> None:
        if config.path_length:
            z = noise[: len(noise) // config.path_length_shrink]
            directions = torch.randn(len(z), *real.shape[1:], device=real.device)
            with tracing_autograd():
                path_length_step(networks[0], optimizers[0], z, directions, weight=8.0)

    return penalise_d, penalise_g


def _translating(
    networks: Sequence[Any],
    optimizers: tuple[Any, Any],
    batches: list[list[Batch]],
    device: torch.device,
    dtype: str,
    mode: str | None,
) -> Call:
    """The reference's steps of CycleGAN and pix2pix, with networks that can be compiled."""
    generator, discriminator = networks
    cycle = isinstance(generator, reference.CycleGANGenerator)
    if mode is not None:
        both = (*generator.children(), *discriminator.children()) if cycle else networks
        for network in both:
            network.compile(mode=mode)
    pools = (reference.ImagePool(), reference.ImagePool())
    random = torch.Generator().manual_seed(0)

    def step(real: Tensor) -> None:
        given = (generator, discriminator, *optimizers, *real.chunk(2, 1))
        if not cycle:
            reference.pix2pix_step(*given)
            return
        coins, keys = torch.rand(2, len(real), generator=random), torch.rand(2, 50)
        drawn = ((coins[0], keys[0]), (coins[1], keys[1]))
        reference.cyclegan_step(*given, pools=pools, drawn=drawn)

    def iteration(number: int) -> None:
        with autocast(device, dtype):
            for real, _ in batches[number]:
                step(real)

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
