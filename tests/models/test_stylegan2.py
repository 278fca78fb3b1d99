"""StyleGAN2's training steps against fastgan.reference in float64, its styles, and its runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from test_families import BATCH, CLASSES, CONDITIONAL, NZ, SIZE, assert_same, drawn, pair
from torch import Tensor, nn

import fastgan
from fastgan import models, reference
from fastgan.cli import main
from fastgan.errors import ConfigError
from fastgan.exporting import export_generator
from fastgan.training import Processes, TrainConfig
from fastgan.training.checkpoint import list_checkpoints, load_checkpoint
from fastgan.training.model_kinds import named
from fastgan.training.optimizer_kinds import build_optimizer

SMALL: dict[str, Any] = {"nz": NZ, "ngf": 2, "ndf": 2, "mapping_layers": 2, "precision": "fp32"}
LAYERS = 6


def updater_of(generator: nn.Module, discriminator: nn.Module, **settings: Any) -> Any:
    """The updater of these networks, on the CPU."""
    given = {"model": "stylegan2", "out": "x", "nz": NZ, "batch_size": BATCH, "precision": "fp32"}
    config = TrainConfig(**(given | settings)).resolved()
    return named(config.kind.updater)(
        config=config,
        generator=generator,
        discriminator=discriminator,
        optimizer_g=build_optimizer(config, generator, config.lr_g),
        optimizer_d=build_optimizer(config, discriminator, config.lr_d),
        num_classes=CLASSES if config.conditional else None,
        device=torch.device("cpu"),
        random=torch.Generator().manual_seed(7),
        processes=settings.get("processes", Processes()),
    )


class Mixing(nn.Module):
    """A reference generator that mixes the styles of its noise with those of another."""

    def __init__(self, inner: Any, second: Tensor, first_layer: Tensor) -> None:
        super().__init__()
        self.inner, self.mixed = inner, (second, first_layer)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        images: Tensor = self.inner.synthesis(self.inner.styles(z, labels, self.mixed))
        return images


@CONDITIONAL
def test_whole_steps_are_the_references(conditional: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    generator, their_generator = pair("stylegan2", "Generator", conditional)
    discriminator, their_discriminator = pair("stylegan2", "Discriminator", conditional)
    updater = updater_of(generator, discriminator, conditional=conditional, style_mixing=0.7)
    noise_of = updater._noise
    monkeypatch.setattr(updater, "_noise", lambda count: noise_of(count).double())
    updater.set_learning_rates(2e-3, 2e-3)
    # c = k / (k + 1): every 4th and every 16th update has a further step.
    optimizer_g, optimizer_d = (
        torch.optim.Adam(network.parameters(), lr=2e-3 * c, betas=(0.0, 0.99**c))
        for network, c in ((their_generator, 4 / 5), (their_discriminator, 16 / 17))
    )
    random = torch.Generator().manual_seed(7)

    def noise(count: int) -> Tensor:
        return torch.randn(count * NZ, generator=random).view(count, NZ, 1, 1).double()

    def mixed(count: int) -> tuple[Tensor, Tensor]:
        second = noise(count)
        first = torch.randint(1, LAYERS, (count,), generator=random)
        return second, first.where(torch.rand(count, generator=random) < 0.7, LAYERS)

    def fakes_labels(count: int) -> Tensor | None:
        return torch.randint(CLASSES, (count,), generator=random) if conditional else None

    for step in range(2):
        lazy = step == 0
        real = drawn((BATCH, 1, SIZE, SIZE), step).tanh()
        labels = torch.tensor([0, 1, 2, 1]) if conditional else None
        torch.manual_seed(step)
        ours = updater.update_discriminator(real, labels, penalize=lazy)
        ours |= updater.update_generator(measure_gradient=False, penalize=lazy)

        torch.manual_seed(step)
        z, others = noise(BATCH), mixed(BATCH)
        found = reference.discriminator_step(
            Mixing(their_generator, *others), their_discriminator, optimizer_d, real, z,
            labels=labels, output="logits",
        )  # fmt: skip
        expected = {"loss_d": found.loss, "d_real": found.real_score, "d_fake": found.fake_score}
        if lazy:
            noise(BATCH), mixed(BATCH)  # of fakes that R1 doesn't look at
            expected["r1"] = reference.stylegan2_r1_step(
                their_discriminator, optimizer_d, real, weight=160.0, labels=labels
            )
        given, z, others = fakes_labels(BATCH), noise(BATCH), mixed(BATCH)
        expected["loss_g"] = reference.generator_step(
            Mixing(their_generator, *others), their_discriminator, optimizer_g, z,
            labels=given, output="logits",
        ).loss  # fmt: skip
        if lazy:
            half = BATCH // 2
            given, z, others = fakes_labels(half), noise(half), mixed(half)
            directions = torch.randn(half, 1, SIZE, SIZE, generator=random).double()
            paths = reference.stylegan2_path_length_step(
                their_generator, optimizer_g, z, directions,
                weight=8.0, labels=given, mixed=others,
            )  # fmt: skip
            expected["path_length_penalty"], expected["path_length"] = paths
        assert ours.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(ours[name], value, rtol=1e-6, atol=1e-6, check_dtype=False)
        for mine, theirs in ((generator, their_generator), (discriminator, their_discriminator)):
            for (name, a), b in zip(
                mine.state_dict().items(), theirs.state_dict().values(), strict=True
            ):
                assert_same(a, b, f"step {step}, {name}")
    assert generator.path_length_mean > 0
    assert generator.mapping.w_avg.any()


def test_path_lengths_are_those_of_the_jacobian() -> None:
    _, generator = pair("stylegan2", "Generator", False)
    generator.eval()
    z = drawn((1, NZ), 0)
    styles = generator.styles(z).detach()
    jacobian = torch.autograd.functional.jacobian(generator.synthesis, styles)
    y = drawn((1, 1, SIZE, SIZE), 1)
    products = torch.einsum("nchw,nchwmlk->lk", y / SIZE, jacobian)
    expected = (products.square().sum() / LAYERS).sqrt()
    found = reference.stylegan2_path_length(generator, z, y, weight=3.0, decay=0.5)
    assert_same(found.length, expected, "length")
    assert_same(found.penalty, 3 * expected**2, "penalty")
    assert_same(generator.path_length_mean, expected / 2, "average")


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_penalty_knows_all_of_the_critics_large_ops(dtype: torch.dtype | None) -> None:
    critic = models.StyleGAN2Discriminator(1, 4, SIZE, num_classes=CLASSES)
    images, labels = torch.randn(2, 1, SIZE, SIZE), torch.tensor([0, 2])
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        rows = fastgan.explain(critic, images, critic_args=(labels,)).rows
    ops = [row for row in rows if row.reason.startswith("penalty: ")]
    assert {"convolution", "fastgan.bias_act", "fastgan.upfirdn2d"} <= {row.op for row in ops}
    # Of a 4x4 map's standard deviation.
    assert {(row.layer, row.op) for row in ops if row.path == "autograd"} <= {("spread", "sqrt")}


# --- Styles ---------------------------------------------------------------------------------------


def test_each_layer_has_the_style_of_the_noise_it_is_given() -> None:
    generator = models.StyleGAN2Generator(NZ, 2, 1, SIZE, nw=3, mapping_layers=2).eval()
    assert generator.layers == LAYERS
    z, second = torch.randn(3, NZ), torch.randn(3, NZ)
    w, other = generator.styles(z), generator.styles(second)
    assert w.shape == (3, LAYERS, 3)
    mixed = generator.styles(z, mixed=(second, torch.tensor([2, LAYERS, 0])))
    torch.testing.assert_close(mixed[0], torch.cat([w[0, :2], other[0, 2:]]))
    torch.testing.assert_close(mixed[1:], torch.stack([w[1], other[2]]))


def test_truncation_contracts_to_the_average_style() -> None:
    generator = models.StyleGAN2Generator(NZ, 2, 1, SIZE, mapping_layers=2)
    z = torch.randn(256, NZ)
    for _ in range(3000):
        with torch.no_grad():
            w = generator.mapping(z, None)
    torch.testing.assert_close(generator.mapping.w_avg, w.mean(0), rtol=0.01, atol=1e-3)
    generator.eval()
    middle = generator(z[:2], truncation=0.0)
    torch.testing.assert_close(middle[0], middle[1])
    torch.testing.assert_close(generator(z[:2], truncation=1.0), generator(z[:2]))
    expected = generator.mapping.w_avg + 0.3 * (w[:2] - generator.mapping.w_avg)
    expected = generator.synthesis(expected[:, None].expand(-1, LAYERS, -1))
    torch.testing.assert_close(generator(z[:2], truncation=0.3), expected)
    with pytest.raises(ValueError, match="truncation: expected a number of at least 0, got -1"):
        generator(z, truncation=-1)


# --- Runs -----------------------------------------------------------------------------------------


def train(out: Path, steps: int, *more: str) -> int:
    words = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    words += ["--model=stylegan2", "--batch-size=8", "--device=cpu", "--conditional"]
    return main(["train", "--out", str(out), f"--steps={steps}", *words, *more])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stylegan2") / "run"
    assert train(out, 3, "--log-every=1", "--penalty-every=2", "--path-length-every=2") == 0
    return out


def test_a_resumed_run_is_the_same_to_the_bit(run: Path, tmp_path: Path) -> None:
    assert train(tmp_path / "run", 1, "--penalty-every=2", "--path-length-every=2") == 0
    assert main(["train", "--out", str(tmp_path / "run"), "--resume", "--steps=3"]) == 0
    whole, parts = (load_checkpoint(list_checkpoints(each)[-1]) for each in (run, tmp_path / "run"))
    assert whole["generator"]["path_length_mean"] > 0
    assert whole["optimizer_g"]["param_groups"][0]["betas"] == (0.0, 0.99 ** (2 / 3))
    for name in ("generator", "discriminator", "ema_generator"):
        for key, value in whole[name].items():
            assert torch.equal(value, parts[name][key]), key
    for name in ("optimizer_g", "optimizer_d"):
        for number, state in whole[name]["state"].items():
            for key, value in state.items():
                assert torch.equal(value, parts[name]["state"][number][key]), key
    assert torch.equal(whole["random"]["players"], parts["random"]["players"])


def test_penalties_come_as_often_as_asked_for(run: Path) -> None:
    header, *rows = (line.split(",") for line in (run / "metrics.csv").read_text().splitlines())
    for name in ("r1", "path_length", "path_length_penalty"):
        assert [bool(row[header.index(name)]) for row in rows] == [True, False, True], name


def test_half_precision_and_parts_of_a_batch_train(tmp_path: Path) -> None:
    assert train(tmp_path / "run", 2, "--precision=bf16", "--accumulate=2") == 0
    weights = load_checkpoint(list_checkpoints(tmp_path / "run")[-1])["generator"]
    assert all(bool(value.isfinite().all()) for value in weights.values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r2": 1.0}, "r2: stylegan2 has no use for it"),
        ({"one_stage": True}, "one_stage: stylegan2 has no use for it"),
        ({"batch_size": 6}, "expected a multiple of 4, got 6"),
        ({"batch_size": 12, "accumulate": 2}, "expected a multiple of 8, got 12"),
    ],
)
def test_what_cant_be_is_refused(settings: dict[str, Any], message: str) -> None:
    networks = (
        models.StyleGAN2Generator(NZ, 1, 1, SIZE, mapping_layers=1),
        models.StyleGAN2Discriminator(1, 1, SIZE),
    )
    with pytest.raises(ConfigError, match=message):
        updater_of(*networks, **settings)
    with pytest.raises(ConfigError, match="generator: stylegan2 penalises and mixes styles"):
        updater_of(models.DCGANGenerator(NZ, 1, 1, SIZE), networks[1])
    assert updater_of(
        models.DCGANGenerator(NZ, 1, 1, SIZE), networks[1], path_length=0.0, style_mixing=0.0
    ).update_generator(measure_gradient=False, penalize=True).keys() == {"loss_g"}


def test_truncation_and_crosses_of_a_trained_generator(run: Path, tmp_path: Path) -> None:
    generator = fastgan.load_generator(run)
    module: Any = generator.module
    z, labels = generator.noise(3, seed=2), generator.labels(3)
    with torch.no_grad():
        expected = module(z, labels, truncation=0.4)
    assert torch.equal(generator.sample(3, seed=2, truncation=0.4), expected)
    assert not torch.equal(generator.sample(3, seed=2), expected)

    sheet = generator.style_mixing(1, 2, seed=2, truncation=0.4, layer=2).unflatten(0, (2, 3))
    torch.testing.assert_close(sheet[1, 0], expected[0])
    torch.testing.assert_close(sheet[0, 1:], expected[1:])
    assert bool((sheet[0, 0] == -1).all())
    with torch.no_grad():
        w = module.truncated(module.styles(z, labels), 0.4)
        crossed = module.synthesis(torch.cat([w[:1, :2], w[2:, 2:]], 1))
    torch.testing.assert_close(sheet[1, 2:], crossed)

    path = tmp_path / "sheet.png"
    assert main(["sample", str(run), "--style-mixing=2x3", f"--out={path}"]) == 0
    with Image.open(path) as picture:
        assert picture.size == (4 * 50 + 2, 3 * 50 + 2)


def test_sheets_that_cant_be_are_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = f"--out={tmp_path / 'sheet.png'}"
    for words, message in (
        (["--style-mixing=2x3"], "out: expected --out"),
        (
            ["--style-mixing=2x3", path, "--n=4"],
            "style_mixing: expected --out FILE.png for a sheet",
        ),
        (["--truncation=-1", path], "truncation: expected a number of at least 0, got -1.0"),
    ):
        assert main(["sample", str(run), *words]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["sample", str(run), "--style-mixing=0x3", path])
    assert "expected two numbers from 1 to 99, as 3x6, got '0x3'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_exported_program_truncates_styles_without_fastgan(run: Path, tmp_path: Path) -> None:
    generator = fastgan.load_generator(run)
    export_generator(generator, tmp_path / "g.pt2", format="torch-export", truncation=0.4)
    program = torch.export.load(tmp_path / "g.pt2")
    assert not [node for node in program.graph.nodes if str(node.target).startswith("fastgan")]
    found = program.module()(generator.noise(5, seed=1)[:, :, 0, 0], generator.labels(5))
    torch.testing.assert_close(found, generator.sample(5, seed=1, truncation=0.4))
