"""SNGAN, BigGAN, R3GAN, StyleGAN2 against fastgan.reference in float64: forward, gradients, steps.

StyleGAN2's steps are in test_stylegan2.py.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm as torch_spectral_norm
from torch.utils.checkpoint import checkpoint

import fastgan
from fastgan import losses, models, reference
from fastgan.nn import spectral_norm
from fastgan.training.config import TrainConfig
from fastgan.training.networks import DataShape, build_discriminator, build_generator
from fastgan.training.optimizer_kinds import build_optimizer
from fastgan.training.updates import GANUpdater

FAMILIES = {"sngan": "SNGAN", "biggan": "BigGAN", "r3gan": "R3GAN", "stylegan2": "StyleGAN2"}
BATCH, SIZE, CLASSES, NZ, WIDTH = 4, 16, 3, 5, 4
CONDITIONAL = pytest.mark.parametrize("conditional", [False, True], ids=["plain", "conditional"])


def pair(model: str, role: str, conditional: bool) -> tuple[nn.Module, nn.Module]:
    """Ours and the reference's network, from the same seed, in float64."""
    name = f"{FAMILIES[model]}{role}"
    settings: dict[str, Any] = {"nc": 1, "image_size": SIZE}
    settings |= {"nz": NZ, "ngf": WIDTH} if role == "Generator" else {"ndf": WIDTH}
    settings["num_classes"] = CLASSES if conditional else None
    found = []
    for package in (models, reference):
        torch.manual_seed(3)
        found.append(getattr(package, name)(**settings))
    ours, theirs = found
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value), key
    with torch.no_grad():
        # Other weights than the initial ones: zeros hide mistakes.
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    ours.load_state_dict(theirs.state_dict())
    return ours.double(), theirs.double()


def drawn(shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def assert_same(ours: Tensor, theirs: Tensor, what: str) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9, msg=lambda m: f"{what}: {m}")


@CONDITIONAL
@pytest.mark.parametrize("role", ["Generator", "Discriminator"])
@pytest.mark.parametrize("model", FAMILIES)
def test_the_same_seed_gives_the_same_network_outputs_and_gradients(
    model: str, role: str, conditional: bool
) -> None:
    ours, theirs = pair(model, role, conditional)
    shape = (BATCH, NZ) if role == "Generator" else (BATCH, 1, SIZE, SIZE)
    labels = (torch.tensor([0, 2, 1, 2]),) if conditional else ()
    # In training twice: norms' buffers move, and one pass must not spoil the next.
    for training in (True, True, False):
        ours.train(training)
        theirs.train(training)
        inputs = [drawn(shape, 1).requires_grad_() for _ in range(2)]
        outputs = []
        for network, x in zip((ours, theirs), inputs, strict=True):
            torch.manual_seed(4)  # of the noise within StyleGAN2
            outputs.append(network(x, *labels))
        assert_same(*outputs, "output")
        weights = drawn(tuple(outputs[0].shape), 2)
        for network, output in zip((ours, theirs), outputs, strict=True):
            network.zero_grad()
            (output * weights).sum().backward()
        assert_same(inputs[0].grad, inputs[1].grad, "input's gradient")
        for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            assert_same(a.grad, b.grad, name)
        for name, value in theirs.state_dict().items():
            assert_same(ours.state_dict()[name], value, name)


class InDouble(nn.Module):
    """A generator that takes the trainer's noise, which is float32, in float64."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, noise: Tensor, *condition: Tensor) -> Tensor:
        images: Tensor = self.inner(noise.double(), *condition)
        return images


@CONDITIONAL
@pytest.mark.parametrize("model", [each for each in FAMILIES if each != "stylegan2"])
def test_whole_steps_are_the_references(model: str, conditional: bool) -> None:
    config = TrainConfig(
        model=model, out="x", nz=NZ, batch_size=BATCH, conditional=conditional, precision="fp32"
    ).resolved()
    generator, their_generator = (InDouble(each) for each in pair(model, "Generator", conditional))
    discriminator, their_discriminator = pair(model, "Discriminator", conditional)
    updater = GANUpdater(
        config=config,
        generator=generator,
        discriminator=discriminator,
        optimizer_g=build_optimizer(config, generator, config.lr_g),
        optimizer_d=build_optimizer(config, discriminator, config.lr_d),
        num_classes=CLASSES if conditional else None,
        device=torch.device("cpu"),
        random=torch.Generator().manual_seed(7),
    )
    lr_g, betas = {
        "sngan": (2e-4, (0.0, 0.9)),
        "biggan": (5e-5, (0.0, 0.999)),
        "r3gan": (2e-4, (0.0, 0.99)),
    }[model]
    optimizer_g = torch.optim.Adam(their_generator.parameters(), lr=lr_g, betas=betas)
    optimizer_d = torch.optim.Adam(their_discriminator.parameters(), lr=2e-4, betas=betas)
    random = torch.Generator().manual_seed(7)
    their_networks = (their_generator, their_discriminator)

    def noise() -> Tensor:
        return torch.randn(BATCH * NZ, generator=random).view(BATCH, NZ, 1, 1)

    for step in range(2):
        real = drawn((BATCH, 1, SIZE, SIZE), step).tanh()
        labels = torch.tensor([0, 1, 2, 1])
        given = labels if conditional else None
        ours = updater.update_discriminator(real, labels)
        if model == "r3gan":
            found = reference.r3gan_discriminator_step(
                *their_networks, optimizer_d, real, noise(), gamma=2.0, labels=given
            )
            expected = {"r1": found.r1, "r2": found.r2}
        else:
            found = reference.hinge_discriminator_step(
                *their_networks, optimizer_d, real, noise(), labels=given
            )
            expected = {"d_real": found.real_score, "d_fake": found.fake_score}
        for name, value in {"loss_d": found.loss, **expected}.items():
            torch.testing.assert_close(ours[name], value, rtol=1e-6, atol=1e-6, check_dtype=False)
        ours = updater.update_generator(real, labels, measure_gradient=False)
        if model == "r3gan":
            loss = reference.r3gan_generator_step(
                *their_networks, optimizer_g, real, noise(), labels=given
            )
        else:
            if conditional:
                given = torch.randint(CLASSES, (BATCH,), generator=random)
            loss = reference.hinge_generator_step(
                *their_networks,
                optimizer_g,
                noise(),
                labels=given,
                orthogonal=1e-4 if model == "biggan" else 0.0,
            )
        torch.testing.assert_close(ours["loss_g"], loss, rtol=1e-6, atol=1e-6, check_dtype=False)
        for network, theirs in zip((generator, discriminator), their_networks, strict=True):
            for (name, a), b in zip(
                network.state_dict().items(), theirs.state_dict().values(), strict=True
            ):
                assert_same(a, b, f"step {step}, {name}")


# --- Spectral norm --------------------------------------------------------------------------------


class Layers(nn.Module):
    """Every kind of layer that has a spectral norm, the same one twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(3, 4)
        self.up = nn.ConvTranspose2d(4, 6, 4)
        self.conv = nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.linear = nn.Linear(6 * 16, 2)

    def forward(self, labels: Tensor) -> Tensor:
        x = self.conv(self.conv(self.up(self.embedding(labels)[:, :, None, None])))
        output: Tensor = self.linear(x.flatten(1))
        return output


def layers(ours: bool) -> nn.Module:
    torch.manual_seed(0)
    module = Layers().double()
    if ours:
        return spectral_norm(module)
    for layer in (module.embedding, module.up, module.conv, module.linear):
        torch_spectral_norm(layer)
    return module


def test_spectral_norm_is_torchs() -> None:
    ours, theirs = layers(True), layers(False)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for key, value in theirs.state_dict().items():
        assert_same(ours.state_dict()[key], value, key)
    labels = torch.tensor([0, 2])
    for module in (ours, theirs):
        module.eval()
        module(labels).square().sum().backward()
    assert_same(ours(labels), theirs(labels), "output")
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert_same(a.grad, b.grad, name)


def differently_laid(how: str) -> nn.Sequential:
    torch.manual_seed(1)
    module = nn.Sequential(
        nn.ConvTranspose2d(4, 6, 4, 2, 1), nn.Conv2d(6, 5, (3, 2)), nn.Flatten(), nn.Linear(210, 2)
    )
    module.double().to(memory_format=torch.channels_last)
    if how == "all at once":
        return spectral_norm(module)
    for place in (0, 1, 3):
        torch_spectral_norm(module[place])
    return fastgan.fuse(module) if how == "fused" else module


each_way = pytest.mark.parametrize("how", ["all at once", "fused"])


def assert_equal_in_training(ours: nn.Sequential, theirs: nn.Sequential) -> None:
    for step in range(3):
        x = drawn((2, 4, 4, 4), step)
        gradients = []
        for module in (ours, theirs):
            module.zero_grad()
            module(x).square().sum().backward()
            gradients.append([p.grad for p in module.parameters()])
        for (name, ours_value), value in zip(
            ours.state_dict().items(), theirs.state_dict().values(), strict=True
        ):
            torch.testing.assert_close(ours_value, value, rtol=1e-12, atol=1e-12, msg=name)
        for ours_value, value in zip(*gradients, strict=True):
            torch.testing.assert_close(ours_value, value, rtol=1e-12, atol=1e-12)


@each_way
def test_spectral_norm_in_training_is_torchs_to_twelve_digits(how: str) -> None:
    ours, theirs = differently_laid(how), differently_laid("torch")
    assert_equal_in_training(ours, theirs)
    for module in (ours, theirs):
        module[1].parametrizations.weight.original.requires_grad_(False)
    assert_equal_in_training(ours, theirs)
    # As they lie elsewhere: the order of the products is found anew.
    for module in (ours, theirs):
        for parameter in module.parameters():
            parameter.data = parameter.data.contiguous()
    assert_equal_in_training(ours, theirs)


@each_way
@pytest.mark.parametrize("frozen", [0, 1])
def test_layers_in_eval_mode_leave_the_others_iterations_alone(frozen: int, how: str) -> None:
    ours, theirs = differently_laid(how), differently_laid("torch")
    for module in (ours, theirs):
        module[frozen].eval()
    assert_equal_in_training(ours, theirs)


def test_modules_without_a_weight_of_their_own_to_norm_pass() -> None:
    x = drawn((2, 3), 0)
    relu = spectral_norm(nn.Sequential(nn.ReLU()))
    assert_same(relu(x), x.relu(), "no weights")
    by_hand = spectral_norm(nn.Sequential(torch_spectral_norm(nn.Linear(3, 2)))).double().eval()
    assert_same(by_hand(x), by_hand[0](x), "torch's norm")
    removed = spectral_norm(nn.Sequential(nn.Linear(3, 2))).double().eval()
    parametrize.remove_parametrizations(removed[0], "weight")
    assert_same(removed(x), removed[0](x), "removed")


@each_way
def test_gradients_through_spectral_norm_have_torchs_gradients(how: str) -> None:
    x, found = drawn((2, 4, 4, 4), 0), []
    for module in (differently_laid(how), differently_laid("torch")):
        loss = module(x).square().sum()
        weights = [module[place].parametrizations.weight.original for place in (0, 1, 3)]
        first = torch.autograd.grad(loss, weights, create_graph=True)
        found.append(torch.autograd.grad(sum(each.square().sum() for each in first), weights))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@each_way
def test_spectral_norm_passes_under_torch_func(how: str) -> None:
    found = []
    for module in (differently_laid(how), differently_laid("torch")):
        weights, rest = dict(module.named_parameters()), dict(module.named_buffers())

        def loss(
            weights: dict[str, Tensor], module: nn.Module = module, rest: Any = rest
        ) -> Tensor:
            x = drawn((2, 4, 4, 4), 0)
            called: Tensor = torch.func.functional_call(module, {**weights, **rest}, (x,))
            return called.square().sum()

        found.append(torch.func.grad(loss)(weights))
    for name, value in found[1].items():
        torch.testing.assert_close(found[0][name], value, rtol=1e-12, atol=1e-12, msg=name)


def test_a_fused_modules_spectral_norms_are_torchs_by_class_and_copy() -> None:
    module, name = differently_laid("fused"), "parametrizations"
    for copied in (module, copy.deepcopy(module)):
        norm = getattr(copied[1], name).weight[0]
        assert isinstance(norm, type(getattr(differently_laid("torch")[1], name).weight[0]))
        node = type(copied[1].weight.grad_fn).__name__
        assert node == "_DividedBackward"
    # One layer called twice iterates twice, as torch's does.
    x, applied = drawn((1, 6, 6, 6), 0), []
    for layer in (differently_laid("fused")[1], differently_laid("torch")[1]):
        (layer(x).square().sum() + layer(x).sum()).backward()
        applied.append((layer.parametrizations.weight.original.grad, *layer.buffers()))
    for ours, theirs in zip(*applied, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    vector = nn.Module()
    vector.weight = nn.Parameter(drawn((3,), 0))
    torch_spectral_norm(vector)
    torch.testing.assert_close(
        copy.deepcopy(vector).weight, fastgan.fuse(nn.Sequential(vector))[0].weight
    )


@each_way
def test_spectral_norm_within_a_checkpoint_has_its_first_gradients(how: str) -> None:
    x, gradients = drawn((2, 4, 4, 4), 0), []
    for module in (differently_laid(how), differently_laid("torch")):
        output = checkpoint(module, x, use_reentrant=False)
        weights = [module[place].parametrizations.weight.original for place in (0, 1, 3)]
        gradients.append(torch.autograd.grad(output.square().sum(), weights))
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-11)


def test_a_training_pass_iterates_once_and_its_backward_survives_the_next() -> None:
    module = spectral_norm(nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))).double()
    weight = module[0].parametrizations.weight.original.detach()
    norm = module[0].parametrizations.weight[0]
    x = torch.ones(1, 3, dtype=torch.float64)
    u = torch.nn.functional.normalize(weight @ norm._v, dim=0)
    first = module(x)
    assert_same(norm._u, u, "u")
    assert_same(norm._v, torch.nn.functional.normalize(weight.T @ u, dim=0), "v")
    module(x)
    first.sum().backward()
    for _ in range(60):
        module(x)
    module.eval()
    assert torch.linalg.matrix_norm(module[0].weight, 2).item() == pytest.approx(1, rel=1e-9)
    with pytest.raises(ValueError, match="n_power_iterations is 0"):
        spectral_norm(nn.Linear(2, 2), n_power_iterations=0)


def test_a_failed_pass_leaves_no_stale_weight() -> None:
    module = spectral_norm(nn.Sequential(nn.Linear(3, 3))).double().eval()
    with pytest.raises(RuntimeError, match="shapes"):
        module(torch.ones(1, 4, dtype=torch.float64))
    with torch.no_grad():
        module[0].parametrizations.weight.original.mul_(7).fill_diagonal_(5)
    expected = module[0].parametrizations.weight.original.detach().clone()
    norm = module[0].parametrizations.weight[0]
    assert_same(module[0].weight, expected / (norm._u @ expected @ norm._v), "weight")


@pytest.mark.parametrize("shape", [(3, 2, 2, 2), (9, 4), (50, 3)])
def test_orthogonal_regularisation_is_the_sum_over_pairs_of_filters(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(shape))
    network = nn.ModuleDict({"a": nn.ParameterList([weight]), "embedding": nn.Linear(4, 4)})
    rows = weight.detach().double().flatten(1).requires_grad_()
    expected = sum((rows[i] @ rows[j]) ** 2 for i in range(len(rows)) for j in range(i)) * 2
    (gradient,) = torch.autograd.grad(expected, rows)
    found = losses.orthogonal_regularisation(network)
    found.backward()
    assert found.item() == pytest.approx(float(expected), rel=1e-6)
    torch.testing.assert_close(weight.grad.flatten(1).double(), gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model", FAMILIES)
def test_unfit_inputs_are_refused(model: str) -> None:
    generator, discriminator = (
        getattr(models, f"{FAMILIES[model]}{role}")(image_size=16, num_classes=3, **width)
        for role, width in (("Generator", {"nz": 4, "ngf": 1}), ("Discriminator", {"ndf": 1}))
    )
    labels = torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"z of shape \(2, 5\)"):
        generator(torch.zeros(2, 5), labels)
    with pytest.raises(ValueError, match=r"expected \(N, 3, 16, 16\)"):
        discriminator(torch.zeros(2, 3, 8, 8), labels)
    for network, x in ((generator, torch.zeros(2, 4)), (discriminator, torch.zeros(2, 3, 16, 16))):
        with pytest.raises(ValueError, match="got label 3"):
            network(x, labels + 2)
        with pytest.raises(ValueError, match="got no labels"):
            network(x)
    with pytest.raises(ValueError, match="image_size is 48"):
        type(generator)(image_size=48)
    with pytest.raises(ValueError, match="ndf is 0"):
        type(discriminator)(ndf=0)


@pytest.mark.parametrize("image_size", [16, 64])
@pytest.mark.parametrize("model", FAMILIES)
def test_sizes_fit_together(model: str, image_size: int) -> None:
    data = DataShape("x", 3, image_size)
    config = TrainConfig(model=model, out="x", nz=6, ngf=1, ndf=1).resolved()
    images = build_generator(config, data)(torch.randn(2, 6))
    assert images.shape == (2, 3, image_size, image_size)
    assert build_discriminator(config, data)(images).shape == (2,)
    with torch.device("meta"):  # as checkpoints are checked
        build_generator(config, data)
        build_discriminator(config, data)


@pytest.mark.parametrize("norm", ["none", "layer"])
def test_a_dcgans_discriminator_with_another_norm_is_a_wgans_critic(norm: str) -> None:
    torch.manual_seed(0)
    ours = models.DCGANDiscriminator(1, WIDTH, SIZE, output="logits", norm=norm).double()
    theirs = reference.WGANCritic(1, WIDTH, SIZE, norm).double()
    theirs.load_state_dict(ours.state_dict())
    images = drawn((BATCH, 1, SIZE, SIZE), 0)
    assert_same(ours(images), theirs(images), norm)
    with pytest.raises(ValueError, match="norm is 'group'"):
        models.DCGANDiscriminator(norm="group")


@pytest.mark.parametrize("output", ["probability", "logits"])
def test_projection_is_the_product_of_features_and_the_labels_embedding(output: str) -> None:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"num_classes": CLASSES, "projection": True, "norm": "none"}
    network = models.DCGANDiscriminator(1, WIDTH, SIZE, output, **settings).double()
    images, labels = drawn((BATCH, 1, SIZE, SIZE), 0), torch.tensor([0, 2, 1, 2])
    embedding = network.projection.embedding.weight.T[labels]
    expected = torch.einsum("nc,nc->n", network.main(images).flatten(1), embedding)
    if output == "probability":
        expected = 1 / (1 + (-expected).exp())
    assert_same(network(images, labels), expected, output)
    with pytest.raises(ValueError, match="got label 3"):
        network(images, labels + 1)
    with pytest.raises(ValueError, match="projection is True, num_classes None"):
        models.WGANCritic(projection=True)
