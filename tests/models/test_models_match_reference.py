"""fastgan.models against fastgan.reference: the same seed, weights and outputs."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastgan import models, reference

IMAGE_CLASSES = ["DCGANDiscriminator", "WGANCritic", "MLPDiscriminator"]


def draw_network(name: str, seed: int) -> tuple[dict[str, Any], tuple[Tensor, ...]]:
    """Constructor's arguments and an input for them, small enough to be quick."""
    random = np.random.default_rng(seed)
    arguments: dict[str, Any] = {"nc": int(random.choice([1, 2, 3]))}
    arguments["image_size"] = int(random.choice([16, 32, 64]))
    arguments["num_classes"] = None if random.integers(2) else int(random.integers(1, 11))
    width = int(random.integers(1, 7))
    n = int(random.integers(1, 6))
    if name.endswith("Generator"):
        arguments["nz"] = int(random.integers(1, 12))
        x = torch.randn(n, arguments["nz"], *([1, 1] if random.integers(2) else []))
    else:
        x = torch.randn(n, arguments["nc"], arguments["image_size"], arguments["image_size"])
    if name.startswith("MLP"):
        arguments["hidden"] = width
    else:
        arguments["ngf" if name.endswith("Generator") else "ndf"] = width
    if name.endswith("Discriminator"):
        arguments["output"] = str(random.choice(["probability", "logits"]))
    if name == "WGANCritic":
        arguments["norm"] = str(random.choice(["none", "batch", "instance", "layer"]))
    if arguments["num_classes"] is None:
        return arguments, (x,)
    return arguments, (x, torch.randint(arguments["num_classes"], (n,)))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "name", ["DCGANGenerator", "DCGANDiscriminator", "WGANCritic", "MLPGenerator", IMAGE_CLASSES[2]]
)
def test_same_seed_same_weights_same_outputs(name: str, seed: int, device: torch.device) -> None:
    torch.manual_seed(seed)
    arguments, inputs = draw_network(name, seed)
    inputs = tuple(x.to(device) for x in inputs)
    torch.manual_seed(seed)
    ours = getattr(models, name)(**arguments)
    torch.manual_seed(seed)
    theirs = getattr(reference, name)(**arguments)

    assert list(ours.state_dict()) == list(theirs.state_dict())
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value), key

    # Other weights than the initial ones, so that biases and running statistics count.
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, 0.0, 0.3)
    ours.load_state_dict(theirs.state_dict())
    ours, theirs = ours.double().to(device), theirs.double().to(device)
    for training in (True, False):
        ours.train(training)
        theirs.train(training)
        doubled = (inputs[0].double(), *inputs[1:])
        torch.manual_seed(seed)  # for dropout
        output = ours(*doubled)
        torch.manual_seed(seed)
        torch.testing.assert_close(output, theirs(*doubled), rtol=1e-10, atol=1e-12)
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value)


@pytest.mark.parametrize("name", ["DCGANGenerator", "DCGANDiscriminator", "WGANCritic"])
@pytest.mark.parametrize("image_size", [16, 32, 64, 128, 256])
def test_every_image_size_gives_its_shape(name: str, image_size: int) -> None:
    if name == "DCGANGenerator":
        network = models.DCGANGenerator(nz=3, ngf=1, nc=2, image_size=image_size)
        assert network(torch.randn(2, 3)).shape == (2, 2, image_size, image_size)
    else:
        network = getattr(models, name)(nc=2, ndf=1, image_size=image_size)
        assert network(torch.randn(2, 2, image_size, image_size)).shape == (2,)


def test_default_networks_have_the_published_sizes() -> None:
    generator, discriminator = models.DCGANGenerator(), models.DCGANDiscriminator()
    assert sum(p.numel() for p in generator.parameters()) == 3_576_704
    assert sum(p.numel() for p in discriminator.parameters()) == 2_765_568


def test_probability_and_logits_share_weights_and_agree() -> None:
    torch.manual_seed(0)
    for cls, width in ((models.DCGANDiscriminator, "ndf"), (models.MLPDiscriminator, "hidden")):
        arguments: dict[str, Any] = {"nc": 1, width: 4, "image_size": 16}
        probability = cls(output="probability", **arguments)
        logits = cls(output="logits", **arguments)
        logits.load_state_dict(probability.state_dict())
        x = torch.randn(3, 1, 16, 16)
        torch.testing.assert_close(probability.eval()(x), torch.sigmoid(logits.eval()(x)))


def test_an_untrained_dense_generator_draws_a_different_image_for_every_z() -> None:
    # One that doesn't never learns to: the discriminator then sees one image and wins.
    torch.manual_seed(0)
    images = models.MLPGenerator(nz=100, nc=1, image_size=16)(torch.rand(256, 100) * 2 - 1)
    # In images of the range [-1, 1]; from torch's default initialisation it is 0.0015.
    assert images.var(dim=0).mean() > 0.05


def test_the_dense_discriminator_drops_out_in_training_only() -> None:
    torch.manual_seed(0)
    discriminator = models.MLPDiscriminator(nc=1, image_size=16, output="logits")
    x = torch.randn(5, 1, 16, 16)
    assert not torch.equal(discriminator(x), discriminator(x))
    discriminator.eval()
    assert torch.equal(discriminator(x), discriminator(x))


def test_convolutional_networks_start_from_the_dcgans_distribution() -> None:
    torch.manual_seed(0)
    for network in (models.DCGANGenerator(), models.WGANCritic(norm="batch"), models.WGANCritic()):
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                # Relative standard error of a standard deviation: 1 / sqrt(2 n).
                tolerance = 5 / (2 * module.weight.numel()) ** 0.5
                assert module.weight.std().item() == pytest.approx(0.02, rel=tolerance)
                assert module.bias is None or not module.bias.any()
            elif isinstance(module, nn.BatchNorm2d):
                assert module.weight.mean().item() == pytest.approx(1, abs=0.02)
                assert 0.01 < module.weight.std().item() < 0.03
                assert not module.bias.any()


def test_weights_init_knows_layers_by_their_class_names() -> None:
    class MyConvolution(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((50, 50), 9.0))

    class ConvVariant(MyConvolution):
        pass

    linear = nn.Linear(3, 3)
    before = linear.weight.clone()
    for module in (linear, layer := ConvVariant()):
        models.weights_init(module)
    assert torch.equal(linear.weight, before)
    assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_layer_norm_is_over_channels_rows_and_columns_of_each_sample() -> None:
    critic = models.WGANCritic(nc=1, ndf=3, image_size=16, norm="layer")
    (layer,) = [m for m in critic.modules() if isinstance(m, nn.GroupNorm)]
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    x = torch.randn(4, 6, 4, 4)
    mean = x.mean((1, 2, 3), keepdim=True)
    var = x.var((1, 2, 3), keepdim=True, unbiased=False)
    expected = (x - mean) / (var + 1e-5).sqrt()
    expected = expected * layer.weight[:, None, None] + layer.bias[:, None, None]
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("norm", ["none", "instance", "layer"])
def test_critics_for_a_penalty_do_not_couple_samples(norm: str) -> None:
    critic = models.WGANCritic(nc=1, ndf=3, image_size=16, norm=norm)
    x = torch.randn(4, 1, 16, 16)
    torch.testing.assert_close(critic(x)[1:2], critic(x[1:2]))


def test_labels_are_one_hot_beside_noise_and_as_planes_behind_images() -> None:
    torch.manual_seed(0)
    labels = torch.tensor([2, 0, 1])
    eye = torch.eye(3)[labels]

    generator = models.DCGANGenerator(nz=4, ngf=2, nc=1, image_size=16, num_classes=3)
    z = torch.randn(3, 4)
    expected = generator.main(torch.cat([z, eye], 1).view(3, 7, 1, 1))
    torch.testing.assert_close(generator(z, labels), expected)
    torch.testing.assert_close(generator(z.view(3, 4, 1, 1), labels), expected)

    x = torch.randn(3, 1, 16, 16)
    planes = torch.stack([torch.stack([v.expand(16, 16) for v in row]) for row in eye])
    discriminator = models.DCGANDiscriminator(nc=1, ndf=2, image_size=16, num_classes=3)
    expected = discriminator.main(torch.cat([x, planes], 1)).flatten()
    torch.testing.assert_close(discriminator(x, labels), expected)

    dense = models.MLPDiscriminator(nc=1, hidden=4, image_size=16, num_classes=3).eval()
    expected = dense.main(torch.cat([x.flatten(1), eye], 1)).flatten()
    torch.testing.assert_close(dense(x, labels), expected)


@pytest.mark.parametrize(
    "network",
    [
        models.DCGANGenerator(nz=4, ngf=2, nc=1, image_size=16),
        models.MLPGenerator(nz=4, hidden=3, nc=1, image_size=5),
    ],
    ids=lambda n: type(n).__name__,
)
@pytest.mark.parametrize("shape", [(3, 5), (3, 4, 2, 2), (3, 5, 1, 1), (4,), (3, 4, 1), (3, 1, 4)])
def test_noise_of_another_shape_is_refused(network: nn.Module, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"z of shape .*expected \(N, 4\) or \(N, 4, 1, 1\)"):
        network(torch.zeros(shape))


@pytest.mark.parametrize("name", IMAGE_CLASSES)
@pytest.mark.parametrize(
    "shape", [(2, 3, 16, 32), (2, 3, 32, 32), (2, 1, 16, 16), (3, 16, 16), (2, 768), (2, 3, 8, 8)]
)
def test_images_of_another_shape_are_refused(name: str, shape: tuple[int, ...]) -> None:
    network = getattr(models, name)(nc=3, image_size=16)
    with pytest.raises(ValueError, match=r"images of shape .*expected \(N, 3, 16, 16\)"):
        network(torch.zeros(shape))


@pytest.mark.parametrize("name", ["DCGANGenerator", "DCGANDiscriminator", "WGANCritic"])
@pytest.mark.parametrize("image_size", [48, 8, 512, 0, -64, 63, 64.0, "64"])
def test_image_sizes_that_no_pyramid_reaches_are_refused(name: str, image_size: Any) -> None:
    with pytest.raises(
        models.checks.ImageSizeError, match=r"power of two from 16 to 256"
    ) as caught:
        getattr(models, name)(image_size=image_size)
    assert repr(image_size) in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("DCGANGenerator", {"nz": 0}, "nz is 0"),
        ("DCGANGenerator", {"ngf": -1}, "ngf is -1"),
        ("DCGANGenerator", {"num_classes": 0}, "num_classes is 0"),
        ("DCGANDiscriminator", {"nc": 1.5}, "nc is 1.5"),
        ("DCGANDiscriminator", {"output": "odds"}, "output is 'odds'.*'logits'"),
        ("WGANCritic", {"norm": "group"}, "norm is 'group'.*'instance'"),
        ("MLPGenerator", {"hidden": 0}, "hidden is 0"),
        ("MLPDiscriminator", {"output": ""}, "output is ''"),
        ("MLPDiscriminator", {"image_size": 0}, "image_size is 0"),
    ],
)
def test_other_settings_out_of_range_are_refused(
    name: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(models, name)(**settings)


def conditional_pairs() -> list[tuple[nn.Module, Tensor]]:
    return [
        (models.DCGANGenerator(4, 2, 1, 16, num_classes=3), torch.randn(2, 4)),
        (models.DCGANDiscriminator(1, 2, 16, num_classes=3), torch.randn(2, 1, 16, 16)),
        (models.WGANCritic(1, 2, 16, num_classes=3), torch.randn(2, 1, 16, 16)),
        (models.MLPGenerator(4, 2, 1, 16, num_classes=3), torch.randn(2, 4)),
        (models.MLPDiscriminator(1, 2, 16, num_classes=3), torch.randn(2, 1, 16, 16)),
    ]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "got no labels"),
        (torch.tensor([0, 3]), "got label 3; expected labels from 0 to 2"),
        (torch.tensor([-1, 0]), "got label -1"),
        (torch.tensor([0, 1], dtype=torch.int32), "dtype torch.int32"),
        (torch.tensor([0.0, 1.0]), "dtype torch.float32"),
        (torch.tensor([0]), r"shape \(1,\).*\(2,\)"),
        (torch.tensor([[0], [1]]), r"shape \(2, 1\)"),
    ],
    ids=str,
)
def test_unfit_labels_are_refused(labels: Tensor | None, message: str) -> None:
    for network, x in conditional_pairs():
        with pytest.raises(ValueError, match=message):
            network(x, labels)


def test_labels_for_an_unconditional_network_are_refused() -> None:
    with pytest.raises(ValueError, match="built without num_classes"):
        models.WGANCritic(1, 2, 16)(torch.zeros(2, 1, 16, 16), torch.tensor([0, 0]))


def test_where_labels_cannot_be_read_back_a_wrong_one_makes_its_sample_nan(
    monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    critic = models.WGANCritic(1, 2, 16, num_classes=3).to(device)
    labels = torch.tensor([1, 3, -1, 2], device=device)
    scores = critic(torch.randn(4, 1, 16, 16, device=device), labels)
    assert scores.isnan().tolist() == [False, True, True, False]


def test_copies_and_pickles_give_the_same_images(tmp_path: Any) -> None:
    torch.manual_seed(0)
    generator = models.DCGANGenerator(4, 2, 1, 16, num_classes=3).eval()
    torch.save(generator, tmp_path / "generator.pt")
    loaded = torch.load(tmp_path / "generator.pt", weights_only=False)
    inputs = torch.randn(2, 4), torch.tensor([0, 2])
    for other in (copy.deepcopy(generator), loaded):
        assert torch.equal(other(*inputs), generator(*inputs))


@pytest.mark.parametrize("name", IMAGE_CLASSES)
def test_inputs_are_left_as_they_are(name: str) -> None:
    # The activations work in place; the first one must not reach the caller's tensor.
    network = getattr(models, name)(nc=1, image_size=16)
    x = torch.randn(2, 1, 16, 16)
    before = x.clone()
    network(x)
    assert torch.equal(x, before)
    z = torch.randn(2, 5)
    before = z.clone()
    models.MLPGenerator(nz=5, hidden=4, nc=1, image_size=4)(z)
    assert torch.equal(z, before)


def test_channels_last_and_half_precision_pass_through(device: torch.device) -> None:
    critic = models.WGANCritic(nc=3, ndf=2, image_size=16, norm="layer").double().to(device)
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64, device=device)
    expected = critic(x)
    critic = critic.to(memory_format=torch.channels_last)
    actual = critic(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)
    assert critic.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
