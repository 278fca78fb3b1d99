"""The compat classes against the originals' layers, written out here by hand, row by row.

Each table is one network: the child's name in ``main`` and its layer, in order. Building the
table in order takes torch's default initialisation from the random stream as the original does.
"""

from __future__ import annotations

import copy
import io
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastgan import models
from fastgan.models.compat import parallel, pytorch_examples, wasserstein_gan

Table = list[tuple[str, nn.Module]]


def up(cin: int, cout: int) -> nn.Module:
    return nn.ConvTranspose2d(cin, cout, kernel_size=4, stride=2, padding=1, bias=False)


def down(cin: int, cout: int) -> nn.Module:
    return nn.Conv2d(cin, cout, kernel_size=4, stride=2, padding=1, bias=False)


def first(cin: int, cout: int) -> nn.Module:
    return nn.ConvTranspose2d(cin, cout, kernel_size=4, stride=1, padding=0, bias=False)


def last(cin: int) -> nn.Module:
    return nn.Conv2d(cin, 1, kernel_size=4, stride=1, padding=0, bias=False)


def same(channels: int) -> nn.Module:
    return nn.Conv2d(channels, channels, kernel_size=3, stride=1, padding=1, bias=False)


def relu() -> nn.Module:
    return nn.ReLU(inplace=True)


def leaky() -> nn.Module:
    return nn.LeakyReLU(0.2, inplace=True)


def numbered(*layers: nn.Module) -> Table:
    return [(str(i), layer) for i, layer in enumerate(layers)]


def examples_generator() -> Table:
    return numbered(
        *(first(100, 512), nn.BatchNorm2d(512), relu()),
        *(up(512, 256), nn.BatchNorm2d(256), relu()),
        *(up(256, 128), nn.BatchNorm2d(128), relu()),
        *(up(128, 64), nn.BatchNorm2d(64), relu()),
        *(up(64, 3), nn.Tanh()),
    )


def examples_discriminator() -> Table:
    return numbered(
        *(down(3, 64), leaky()),
        *(down(64, 128), nn.BatchNorm2d(128), leaky()),
        *(down(128, 256), nn.BatchNorm2d(256), leaky()),
        *(down(256, 512), nn.BatchNorm2d(512), leaky()),
        *(last(512), nn.Sigmoid()),
    )


def wgan_generator() -> Table:  # DCGAN_G(64, 100, 3, 64, 1, 2)
    return [
        ("initial:100-512:convt", first(100, 512)),
        ("initial:512:batchnorm", nn.BatchNorm2d(512)),
        ("initial:512:relu", relu()),
        ("pyramid:512-256:convt", up(512, 256)),
        ("pyramid:256:batchnorm", nn.BatchNorm2d(256)),
        ("pyramid:256:relu", relu()),
        ("pyramid:256-128:convt", up(256, 128)),
        ("pyramid:128:batchnorm", nn.BatchNorm2d(128)),
        ("pyramid:128:relu", relu()),
        ("pyramid:128-64:convt", up(128, 64)),
        ("pyramid:64:batchnorm", nn.BatchNorm2d(64)),
        ("pyramid:64:relu", relu()),
        ("extra-layers-0:64:conv", same(64)),
        ("extra-layers-0:64:batchnorm", nn.BatchNorm2d(64)),
        ("extra-layers-0:64:relu", relu()),
        ("extra-layers-1:64:conv", same(64)),
        ("extra-layers-1:64:batchnorm", nn.BatchNorm2d(64)),
        ("extra-layers-1:64:relu", relu()),
        ("final:64-3:convt", up(64, 3)),
        ("final:3:tanh", nn.Tanh()),
    ]


def wgan_generator_odd_width() -> Table:  # DCGAN_G(16, 5, 1, 7, 1): widths from 7 // 2 = 3
    return [
        ("initial:5-12:convt", first(5, 12)),
        ("initial:12:batchnorm", nn.BatchNorm2d(12)),
        ("initial:12:relu", relu()),
        ("pyramid:12-6:convt", up(12, 6)),
        ("pyramid:6:batchnorm", nn.BatchNorm2d(6)),
        ("pyramid:6:relu", relu()),
        ("final:6-1:convt", up(6, 1)),
        ("final:1:tanh", nn.Tanh()),
    ]


def wgan_generator_nobn() -> Table:  # DCGAN_G_nobn(32, 100, 3, 64, 1, 1)
    return [
        ("initial:100-256:convt", first(100, 256)),
        ("initial:256:relu", relu()),
        ("pyramid:256-128:convt", up(256, 128)),
        ("pyramid:128:relu", relu()),
        ("pyramid:128-64:convt", up(128, 64)),
        ("pyramid:64:relu", relu()),
        ("extra-layers-0:64:conv", same(64)),
        ("extra-layers-0:64:relu", relu()),
        ("final:64-3:convt", up(64, 3)),
        ("final:3:tanh", nn.Tanh()),
    ]


def wgan_critic() -> Table:  # DCGAN_D(64, 100, 3, 64, 1, 1)
    return [
        ("initial:3-64:conv", down(3, 64)),
        ("initial:64:relu", leaky()),
        ("extra-layers-0:64:conv", same(64)),
        ("extra-layers-0:64:batchnorm", nn.BatchNorm2d(64)),
        ("extra-layers-0:64:relu", leaky()),
        ("pyramid:64-128:conv", down(64, 128)),
        ("pyramid:128:batchnorm", nn.BatchNorm2d(128)),
        ("pyramid:128:relu", leaky()),
        ("pyramid:128-256:conv", down(128, 256)),
        ("pyramid:256:batchnorm", nn.BatchNorm2d(256)),
        ("pyramid:256:relu", leaky()),
        ("pyramid:256-512:conv", down(256, 512)),
        ("pyramid:512:batchnorm", nn.BatchNorm2d(512)),
        ("pyramid:512:relu", leaky()),
        ("final:512-1:conv", last(512)),
    ]


def wgan_critic_nobn() -> Table:  # DCGAN_D_nobn(32, 100, 1, 6, 1, 2)
    return [
        ("initial:1-6:conv", down(1, 6)),
        ("initial:6:conv", leaky()),  # the original's name for its first activation
        ("extra-layers-0:6:conv", same(6)),
        ("extra-layers-0:6:relu", leaky()),
        ("extra-layers-1:6:conv", same(6)),
        ("extra-layers-1:6:relu", leaky()),
        ("pyramid:6-12:conv", down(6, 12)),
        ("pyramid:12:relu", leaky()),
        ("pyramid:12-24:conv", down(12, 24)),
        ("pyramid:24:relu", leaky()),
        ("final:24-1:conv", last(24)),
    ]


def dense(features_in: int, features_out: int) -> Callable[[], Table]:  # hidden width 9
    return lambda: numbered(
        *(nn.Linear(features_in, 9), relu(), nn.Linear(9, 9), relu(), nn.Linear(9, 9), relu()),
        nn.Linear(9, features_out),
    )


def as_is(output: Tensor) -> Tensor:
    return output


def one_per_row(output: Tensor) -> Tensor:
    return output.view(-1, 1).squeeze(1)


def batch_mean(output: Tensor) -> Tensor:
    return output.mean(0).view(1)


def images_3x12(output: Tensor) -> Tensor:
    return output.view(output.size(0), 3, 12, 12)


E = pytorch_examples
W = wasserstein_gan
# network under test, original's layers, its input's shape and what main receives, its output
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Table], tuple[int, ...], Any]] = {
    "Generator": (lambda: E.Generator(1), examples_generator, (100, 1, 1), as_is),
    "Discriminator": (lambda: E.Discriminator(1), examples_discriminator, (3, 64, 64), one_per_row),
    "DCGAN_G": (lambda: W.DCGAN_G(64, 100, 3, 64, 1, 2), wgan_generator, (100, 1, 1), as_is),
    "DCGAN_G-odd": (lambda: W.DCGAN_G(16, 5, 1, 7, 1), wgan_generator_odd_width, (5, 1, 1), as_is),
    "DCGAN_G_nobn": (
        lambda: W.DCGAN_G_nobn(32, 100, 3, 64, 1, 1),
        wgan_generator_nobn,
        (100, 1, 1),
        as_is,
    ),
    "DCGAN_D": (lambda: W.DCGAN_D(64, 100, 3, 64, 1, 1), wgan_critic, (3, 64, 64), batch_mean),
    "DCGAN_D_nobn": (
        lambda: W.DCGAN_D_nobn(32, 100, 1, 6, 1, 2),
        wgan_critic_nobn,
        (1, 32, 32),
        batch_mean,
    ),
    "MLP_G": (lambda: W.MLP_G(12, 5, 3, 9, 1), dense(5, 432), (5, 1, 1), images_3x12),
    "MLP_D": (lambda: W.MLP_D(12, 5, 3, 9, 1), dense(432, 1), (3, 12, 12), batch_mean),
}
cases = pytest.mark.parametrize("name", CASES)


def scripts_weights_init(module: nn.Module) -> None:
    """Both scripts' rule: by class name, weights only, batch norm's bias to zero."""
    layer: Any = module
    if type(module).__name__.find("Conv") != -1:
        layer.weight.data.normal_(0.0, 0.02)
    elif type(module).__name__.find("BatchNorm") != -1:
        layer.weight.data.normal_(1.0, 0.02)
        layer.bias.data.fill_(0)


class Original(nn.Module):
    """A table as a network whose keys start with ``main.``."""

    def __init__(self, table: Table) -> None:
        super().__init__()
        self.main = nn.Sequential(OrderedDict(table))


def build(name: str, seed: int) -> tuple[nn.Module, Original]:
    ours, table, _, _ = CASES[name]
    torch.manual_seed(seed)
    network = ours()
    network.apply(E.weights_init)
    after = torch.get_rng_state()
    torch.manual_seed(seed)
    original = Original(table())
    original.apply(scripts_weights_init)
    assert torch.equal(torch.get_rng_state(), after), "another number of draws"
    return network, original


def forward_original(name: str, original: Original, x: Tensor) -> Tensor:
    output = original.main(x.flatten(1) if name.startswith("MLP") else x)
    result: Tensor = CASES[name][3](output)
    return result


@cases
def test_layers_keys_and_initial_weights_are_the_originals(name: str) -> None:
    network, original = build(name, seed=3)
    assert isinstance(network.main, nn.Sequential)
    ours, theirs = network.main._modules, original.main._modules
    assert list(ours) == list(theirs)
    assert [repr(layer) for layer in ours.values()] == [repr(layer) for layer in theirs.values()]
    assert list(network.state_dict()) == list(original.state_dict())
    for key, value in original.state_dict().items():
        assert torch.equal(network.state_dict()[key], value), key


@cases
def test_outputs_are_the_originals(name: str, device: torch.device) -> None:
    network, original = build(name, seed=4)
    # In float64 a GPU's choice of algorithm makes no difference that counts.
    network, original = network.double().to(device), original.double().to(device)
    for n in (3, 1):
        x = torch.randn(n, *CASES[name][2], dtype=torch.float64, device=device)
        for training in (True, False):
            network.train(training)
            original.train(training)
            expected = forward_original(name, original, x)
            actual = network(x)
            assert actual.shape == expected.shape
            torch.testing.assert_close(actual, expected)


@cases
def test_checkpoints_load_both_ways(name: str) -> None:
    network, _ = build(name, seed=5)
    _, original = build(name, seed=6)
    file = io.BytesIO()
    torch.save(original.state_dict(), file)
    file.seek(0)
    network.load_state_dict(torch.load(file, weights_only=True), strict=True)
    x = torch.randn(2, *CASES[name][2])
    network.eval()
    original.eval()
    torch.testing.assert_close(network(x), forward_original(name, original, x))
    _, other = build(name, seed=7)
    other.load_state_dict(network.state_dict(), strict=True)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("DCGAN")])
@pytest.mark.parametrize("with_batches_tracked", [True, False])
@pytest.mark.parametrize("prefix", ["", "0."])
def test_checkpoints_with_dots_for_colons_load(
    name: str, with_batches_tracked: bool, prefix: str
) -> None:
    network, _ = build(name, seed=8)
    _, original = build(name, seed=9)
    saved = OrderedDict(
        (prefix + key.replace(":", "."), value)
        for key, value in original.state_dict().items()
        if with_batches_tracked or not key.endswith("num_batches_tracked")
    )
    keys = list(saved)
    (nn.Sequential(network) if prefix else network).load_state_dict(saved, strict=True)
    assert list(saved) == keys, "the caller's dictionary was changed"
    for key, value in original.state_dict().items():
        assert torch.equal(network.state_dict()[key], value), key


def test_strict_loading_still_refuses_foreign_keys() -> None:
    network, original = build("DCGAN_G-odd", seed=0)
    saved = {key.replace(":", "."): value for key, value in original.state_dict().items()}
    saved["main.initial.5-12.convt.bias"] = torch.zeros(12)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        network.load_state_dict(saved)
    del saved["main.initial.5-12.convt.bias"], saved["main.final.6-1.convt.weight"]
    with pytest.raises(RuntimeError, match="Missing key"):
        network.load_state_dict(saved)


def test_parameter_counts_are_the_published_ones() -> None:
    generator, discriminator = E.Generator(0), E.Discriminator(0)
    assert sum(p.numel() for p in generator.parameters()) == 3_576_704
    assert sum(p.numel() for p in discriminator.parameters()) == 2_765_568


def test_arguments_have_the_originals_names() -> None:
    E.Generator(ngpu=0, nz=2, ngf=2, nc=1)
    E.Discriminator(ngpu=0, ndf=2, nc=1)
    for cls, width in ((W.DCGAN_G, "ngf"), (W.DCGAN_G_nobn, "ngf"), (W.DCGAN_D, "ndf")):
        cls(isize=16, nz=2, nc=1, ngpu=1, n_extra_layers=1, **{width: 2})
    W.DCGAN_D_nobn(isize=16, nz=2, nc=1, ndf=2, ngpu=1, n_extra_layers=1)
    W.MLP_G(isize=16, nz=2, nc=1, ngf=2, ngpu=1)
    W.MLP_D(isize=16, nz=2, nc=1, ndf=2, ngpu=1)


@pytest.mark.parametrize("name", ["DCGAN_D", "DCGAN_D_nobn", "MLP_D"])
def test_scores_are_per_sample_and_their_mean_is_the_output(name: str) -> None:
    network, original = build(name, seed=10)
    x = torch.randn(5, *CASES[name][2])
    scores = network.scores(x)
    assert scores.shape == (5,)
    expected = original.main(x.flatten(1) if name == "MLP_D" else x).flatten()
    torch.testing.assert_close(scores, expected)
    torch.testing.assert_close(scores.mean().view(1), network(x), rtol=1e-4, atol=1e-6)


@cases
def test_copies_and_pickles_give_the_same_output(name: str) -> None:
    network, _ = build(name, seed=11)
    network.eval()
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    x = torch.randn(2, *CASES[name][2])
    for other in (copy.deepcopy(network), torch.load(file, weights_only=False)):
        assert torch.equal(other(x), network(x))


def test_dcgan_checkpoints_interchange_with_fastgans_own_networks() -> None:
    models.DCGANGenerator().load_state_dict(E.Generator(0).state_dict())
    models.DCGANDiscriminator().load_state_dict(E.Discriminator(0).state_dict())


@pytest.mark.parametrize("cls", [W.DCGAN_G, W.DCGAN_G_nobn, W.DCGAN_D, W.DCGAN_D_nobn])
@pytest.mark.parametrize("isize", [48, 80, 8, 20, 0])
def test_sizes_no_pyramid_reaches_are_refused(cls: type[nn.Module], isize: int) -> None:
    with pytest.raises(ValueError, match=f"isize is {isize}; expected a power of two"):
        cls(isize, 4, 3, 4, 1)


@pytest.mark.parametrize("name", CASES)
def test_inputs_of_another_shape_are_refused(name: str) -> None:
    network, _ = build(name, seed=0)
    channels, *size = CASES[name][2]
    unfit = [(2, channels + 1, *size), (channels, *size), (2, channels, *size, 1)]
    if size != [1, 1]:
        unfit.append((2, channels, 2 * size[0], 2 * size[1]))
    for shape in unfit:
        with pytest.raises(ValueError, match=r"got (z|images) of shape .*expected"):
            network(torch.zeros(shape))


def test_generators_take_larger_maps_as_the_originals_do() -> None:
    network, original = build("DCGAN_G-odd", seed=1)
    x = torch.randn(2, 5, 2, 3)
    torch.testing.assert_close(network(x), original.main(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: W.DCGAN_G(16, 4, 3, 1, 1), "ngf is 1; expected at least 2"),
        (lambda: W.DCGAN_G(16, 0, 3, 4, 1), "nz is 0"),
        (lambda: W.DCGAN_D(16, 4, 3, 0, 1), "ndf is 0"),
        (lambda: W.DCGAN_D(16, 4, 3, 4, 1, -1), "n_extra_layers is -1"),
        (lambda: W.MLP_G(0, 4, 3, 4, 1), "isize is 0"),
        (lambda: W.MLP_D(4, 4, 0, 4, 1), "nc is 0"),
        (lambda: E.Generator(0, nz=-1), "nz is -1"),
        (lambda: E.Discriminator(0, ndf=0), "ndf is 0"),
    ],
)
def test_settings_out_of_range_are_refused(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("on_gpu", "ngpu", "split"), [(True, 3, True), (True, 1, False), (False, 3, False)]
)
def test_a_batch_on_a_gpu_is_split_over_ngpu_replicas(
    monkeypatch: pytest.MonkeyPatch, on_gpu: bool, ngpu: int, split: bool
) -> None:
    class Batch:
        is_cuda = on_gpu

    calls: list[tuple[Any, ...]] = []

    def data_parallel(*arguments: Any) -> str:
        calls.append(arguments)
        return "gathered"

    def main(input: Any) -> str:
        return "alone"

    monkeypatch.setattr(parallel, "data_parallel", data_parallel)
    batch = Batch()
    result: Any = parallel.run(main, batch, ngpu)  # type: ignore[arg-type]
    assert result == ("gathered" if split else "alone")
    assert calls == ([(main, batch, range(ngpu))] if split else [])
