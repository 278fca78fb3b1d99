"""Adaptive augmentation: its maps against the paper's matrices and sums, p against manual
updates."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from test_training_options import configured, make_updater, real_batch
from torch import Tensor

from fastgan.errors import ConfigError
from fastgan.training import TrainConfig
from fastgan.training.adaptive import AdaptiveProbability
from fastgan.training.augmentation import (
    _SYM6,
    ADA_MAPS,
    ada_parameters,
    augment,
    draw_augmentation,
)
from fastgan.training.processes import Processes

# --- Maps -----------------------------------------------------------------------------------------


def forced(count: int = 1, **uniform: list[float]) -> dict[str, Tensor]:
    """Numbers that apply these maps alone, with what they make of these numbers."""
    columns: list[float] = []
    for name, (size, _) in ADA_MAPS.items():
        given = uniform.get(name)
        columns += [1.0, *[0.0] * size] if given is None else [0.0, *given]
    return {"ada": torch.tensor([*columns, 0.5], dtype=torch.float64).expand(count, -1)}


def parameters(numbers: dict[str, Tensor]) -> dict[str, list[float]]:
    return {name: values[0].tolist() for name, values in ada_parameters(numbers["ada"]).items()}


def images(size: int, channels: int = 3, count: int = 1, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, size, size, generator=random, dtype=torch.float64)


def below(deviations: float) -> float:
    """The number that becomes a normal one so many standard deviations from 0."""
    return 0.5 * math.erfc(-deviations / math.sqrt(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("size", "channels"), [(16, 1), (32, 3)])
def test_nothing_is_changed_at_a_probability_of_zero(
    size: int, channels: int, dtype: torch.dtype
) -> None:
    random = torch.Generator().manual_seed(0)
    numbers = draw_augmentation(["ada"], lambda k: torch.rand(5, k, generator=random), 0.0)
    x = images(size, channels, 5).to(dtype)
    assert torch.equal(augment(x, numbers), x)


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("flip", [0, 1])
def test_pixels_are_flipped_turned_and_shifted_as_numpy_does(flip: int, turns: int) -> None:
    size, x = 16, images(16)
    across, down = 2, -1
    numbers = forced(
        flip=[flip / 2],
        turns=[turns / 4],
        shift=[(8 * down / size + 1) / 2, (8 * across / size + 1) / 2],
    )
    expected = x[0].numpy()
    if flip:
        expected = expected[:, :, ::-1]
    expected = np.rot90(expected, turns, (1, 2))
    padded = np.pad(expected, ((0, 0), (2, 2), (2, 2)), mode="reflect")
    expected = padded[:, 2 - down : 2 - down + size, 2 - across : 2 - across + size]
    assert np.array_equal(augment(x, numbers)[0].numpy(), expected)


def test_the_filter_is_orthogonal_to_its_shifts_and_passes_polynomials() -> None:
    h = np.array(_SYM6)
    shifted = [float(h[2 * k :] @ h[: len(h) - 2 * k]) for k in range(6)]
    np.testing.assert_allclose(shifted, [1, 0, 0, 0, 0, 0], atol=1e-15)
    taps = np.arange(12.0)
    for power in range(6):
        moment = float((h * (-1) ** taps) @ (taps / 11) ** power)
        assert abs(moment) < 1e-15


@pytest.mark.parametrize("size", [16, 32])
def test_a_move_by_whole_pixels_is_a_shift_of_the_reflected_image(size: int) -> None:
    x, right, down = images(size), 5, -5 * size // 8
    numbers = forced(move=[below(8 * right / size), below(8 * down / size)])
    rows, columns = (np.arange(size) - by for by in (down, right))
    period = 2 * (size - 1)
    rows, columns = ((size - 1) - abs(each % period - (size - 1)) for each in (rows, columns))
    expected = x[0].numpy()[:, rows][:, :, columns]
    np.testing.assert_allclose(augment(x, numbers)[0].numpy(), expected, rtol=0, atol=1e-10)


GEOMETRY = {
    "scale": [0.8],
    "before": [0.7],
    "stretch": [0.15],
    "after": [0.2],
    "move": [0.6, 0.3],
}


def sources(numbers: dict[str, Tensor], size: int) -> np.ndarray:
    """From the paper's matrices: the place (x, y) whose value each place of the result has."""
    of = parameters(numbers)

    def rotation(angle: float) -> np.ndarray:
        c, s = math.cos(angle), math.sin(angle)
        return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])

    def translation(x: float, y: float) -> np.ndarray:
        return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]])

    s, a, centre = math.exp(of["scale"][0]), math.exp(of["stretch"][0]), (size - 1) / 2
    matrix = translation(-centre, -centre)
    for each in (
        np.diag([s, s, 1]),
        rotation(of["before"][0]),
        np.diag([a, 1 / a, 1]),
        rotation(of["after"][0]),
        translation(*(size * each for each in of["move"])),
        translation(centre, centre),
    ):
        matrix = each @ matrix
    inverse: np.ndarray = np.linalg.inv(matrix)
    return inverse


def test_a_linear_image_is_moved_as_its_formula_says() -> None:
    size, numbers = 32, forced(**GEOMETRY)
    inverse = sources(numbers, size)
    y, x = np.mgrid[:size, :size].astype(float)
    place = np.einsum("ij,jyx->iyx", inverse, np.stack([x, y, np.ones_like(x)]))[:2]
    image = torch.from_numpy(0.3 * x - 0.2 * y + 1)[None, None]
    smooth = torch.from_numpy(np.cos(0.3 * x + 0.2 * y))[None, None]
    inside = ((place > 8) & (place < size - 9)).all(0)
    assert inside.sum() > 200
    found = augment(image, numbers)[0, 0].numpy()[inside]
    np.testing.assert_allclose(
        found, (0.3 * place[0] - 0.2 * place[1] + 1)[inside], rtol=0, atol=1e-11
    )
    found = augment(smooth, numbers)[0, 0].numpy()[inside]
    # What linear interpolation at half a pixel may miss: |grad|^2 (1/2)^2 / 8 and as much again.
    np.testing.assert_allclose(
        found, np.cos(0.3 * place[0] + 0.2 * place[1])[inside], rtol=0, atol=2 * 0.13 / 32
    )


def test_each_pixel_is_the_paper_s_sum() -> None:
    size, numbers = 8, forced(**GEOMETRY)
    x, inverse, h = images(size, 1), sources(numbers, size), np.array(_SYM6)
    centre = float(np.arange(12) @ h / h.sum())
    image, period = x[0, 0].numpy(), 2 * (size - 1)
    far = np.arange(-60, 60)
    reflected = (size - 1) - abs(far % period - (size - 1))
    endless = image[np.ix_(reflected, reflected)]
    # Upsampled: place n takes pixel k by the tap 2 k - n.
    n = np.arange(-80, 80)
    taps = 2 * far[None] - n[:, None]
    up = np.where((taps >= 0) & (taps < 12), h[taps.clip(0, 11)], 0) * math.sqrt(2)
    fine = up @ endless @ up.T

    def look_up(places: np.ndarray) -> float:
        px, py = 2 * places - centre - n[0]
        i, j = math.floor(py), math.floor(px)
        v, u = py - i, px - j
        return float(
            (1 - v) * ((1 - u) * fine[i, j] + u * fine[i, j + 1])
            + v * ((1 - u) * fine[i + 1, j] + u * fine[i + 1, j + 1])
        )

    found = augment(x, numbers)[0, 0]
    for row, column in ((0, 0), (3, 5), (7, 2)):
        total = 0.0
        for p in range(12):
            for q in range(12):
                y, x_ = ((2 * at + tap - 11 + centre) / 2 for at, tap in ((row, p), (column, q)))
                total += h[11 - p] * h[11 - q] / 2 * look_up((inverse @ [x_, y, 1])[:2])
        assert found[row, column].item() == pytest.approx(total, abs=1e-12)


@pytest.mark.parametrize("channels", [1, 3])
def test_colours_are_multiplied_by_the_paper_s_matrix(channels: int) -> None:
    numbers = forced(
        brightness=[0.7], contrast=[0.8], luma_flip=[0.6], hue=[0.65], saturation=[0.3]
    )
    of = {name: values[0] for name, values in parameters(numbers).items()}
    v = torch.full((3, 1), 1 / math.sqrt(3), dtype=torch.float64)
    cross = torch.tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], dtype=torch.float64) / math.sqrt(3)
    one, grey = torch.eye(3, dtype=torch.float64), v @ v.T
    matrix = one * math.exp(of["contrast"])
    matrix = (one - 2 * of["luma_flip"] * grey) @ matrix
    matrix = torch.matrix_exp(of["hue"] * cross) @ matrix
    matrix = (grey + (one - grey) * math.exp(of["saturation"])) @ matrix
    x = images(8, channels)
    colours = x.expand(1, 3, 8, 8) + of["brightness"]
    expected = torch.einsum("ij,njyx->niyx", matrix, colours)
    torch.testing.assert_close(augment(x, numbers), expected[:, :channels])


def test_gradients_pass_through_to_any_order() -> None:
    random = torch.Generator().manual_seed(2)
    numbers = draw_augmentation(["ada"], lambda k: torch.rand(2, k, generator=random).double())
    x = images(4, 3, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: augment(x, numbers), (x,))
    assert torch.autograd.gradgradcheck(lambda x: augment(x, numbers).square(), (x,))


def test_hue_and_saturation_leave_each_pixel_its_grey() -> None:
    x = images(8, 3, 4)
    found = augment(x, forced(4, hue=[0.9], saturation=[0.8]))
    torch.testing.assert_close(found.mean(1), x.mean(1))
    assert not torch.allclose(found, x, atol=0.1)


def test_maps_come_as_often_and_as_far_as_the_paper_says() -> None:
    count, p = 40_000, 0.3
    random = torch.Generator().manual_seed(0)
    drawn = draw_augmentation(["ada"], lambda k: torch.rand(count, k, generator=random), p)
    of = ada_parameters(drawn["ada"].double())
    shown = {"flip": 1 / 2, "turns": 3 / 4, "luma_flip": 1 / 2}
    rotations = 1 - math.sqrt(1 - p)
    for name, values in of.items():
        share = values.ne(0).any(1).double().mean().item()
        often = rotations if name in ("before", "after") else p * shown.get(name, 1)
        assert share == pytest.approx(often, abs=0.01), name
    rotated = (of["before"].ne(0) | of["after"].ne(0)).double().mean().item()
    assert rotated == pytest.approx(p, abs=0.01)
    deviations = {
        **dict.fromkeys(("scale", "stretch"), 0.2 * math.log(2)),
        **dict.fromkeys(("before", "after", "hue"), math.pi / math.sqrt(3)),
        "shift": 1 / 8 / math.sqrt(3),
        "move": 1 / 8,
        "brightness": 0.2,
        "contrast": 0.5 * math.log(2),
        "saturation": math.log(2),
    }
    for name, deviation in deviations.items():
        applied = of[name][of[name].ne(0).any(1)]
        assert applied.mean().item() == pytest.approx(0, abs=0.03 * deviation), name
        assert applied.std().item() == pytest.approx(deviation, rel=0.03), name


# --- The probability ------------------------------------------------------------------------------

ADAPTIVE: dict[str, Any] = {"model": "gan", "augment": "ada", "batch_size": 8, "ada_kimg": 0.2}


def test_p_moves_as_computed_by_hand() -> None:
    config = configured(**ADAPTIVE, ada_interval=2, ada_target=0.5)
    adaptive = AdaptiveProbability(config, torch.device("cpu"), Processes())
    by_hand = []
    for r, p in (
        (0.75, 0.0),  # between two moves
        (0.5, 0.08),  # mean 0.625: up by 2 * 8 / 200
        (1.0, 0.08),
        (0.25, 0.16),
        (0.5, 0.16),
        (0.5, 0.16),  # on target
        (0.0, 0.16),
        (-1.0, 0.08),
        (0.0, 0.08),
        (0.0, 0.0),
        (0.0, 0.0),
        (0.0, 0.0),  # not below 0
        *((1.0, min(1.0, 0.08 * ((n + 1) // 2))) for n in range(40)),  # nor above 1
    ):
        found = adaptive.update(torch.tensor(r))["ada_p"].item()
        by_hand.append(p)
        assert found == pytest.approx(p, abs=1e-6), by_hand
    assert by_hand[-1] == 1.0


@pytest.mark.parametrize(
    ("loss", "r"),
    [("bce", 0.5), ("hinge", 0.5), ("least-squares", 0.0), ("relativistic", -0.5)],
)
def test_r_is_the_mean_decision_for_real(loss: str, r: float) -> None:
    config = configured(**ADAPTIVE, loss=loss)
    adaptive = AdaptiveProbability(config, torch.device("cpu"), Processes())
    real, fake = torch.tensor([2.0, 1.0, 0.25, -1.0]), torch.tensor([3.0, 0.0, 1.0, 0.0])
    assert adaptive.measure(real, fake).item() == r
    overflown = torch.tensor([math.nan, math.inf, math.inf, -math.inf])
    assert adaptive.measure(overflown, fake).item() == 0.25


@pytest.mark.parametrize(
    "changes", [{}, {"r1": 1.0}, {"one_stage": True}, {"accumulate": 2}], ids=str
)
def test_an_update_measures_the_images_that_the_discriminator_sees(changes: dict[str, Any]) -> None:
    settings = {**ADAPTIVE, **changes, "model": "dcgan", "critic_norm": "none", "loss": "hinge"}
    config = configured(**settings, ada_interval=1, ada_target=-1.0)
    updater, same = make_updater(config), make_updater(config)
    expected_p = 0.0
    for step in range(3):
        same.discriminator = copy.deepcopy(updater.discriminator)
        same.random.set_state(updater.random.get_state())
        assert same.adaptive is not None
        same.adaptive.p.fill_(expected_p)
        real, labels = real_batch(step)
        drawn = same._drawn_for_critic(real, labels, penalize=True)
        torch.testing.assert_close(
            drawn.augment_real["ada"][:, -1], torch.full((8,), expected_p), rtol=0, atol=1e-6
        )
        shown = augment(real, drawn.augment_real)
        expected_r = same.discriminator.train()(shown).sign().mean()
        if config.one_stage:
            metrics = updater.update_both(real, labels, penalize=True, measure_gradient=False)
        else:
            metrics = updater.update_discriminator(real, labels)
        torch.testing.assert_close(metrics["ada_r"], expected_r.detach())
        expected_p += 8 / 200 * (expected_r.item() > -1)
        assert metrics["ada_p"].item() == pytest.approx(expected_p, abs=1e-6)


def test_a_probability_of_a_file_is_checked() -> None:
    config = configured(**ADAPTIVE)
    adaptive = AdaptiveProbability(config, torch.device("cpu"), Processes())
    saved = {"p": 0.25, "total": -1.5, "count": 2.0}
    adaptive.load_state_dict(saved)
    assert adaptive.state_dict() == saved
    for wrong in (
        None,
        [],
        {},
        {**saved, "p": 1.5},
        {**saved, "p": math.nan},
        {**saved, "p": torch.tensor(0.5)},
        {**saved, "total": 3.0},
        {**saved, "count": 4.0},
        {**saved, "count": 1.75},
        {**saved, "count": True},
    ):
        with pytest.raises(ValueError, match="no probability"):
            adaptive.load_state_dict(wrong)
    assert adaptive.state_dict() == saved


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": "wgan", "augment": "ada"}, "augment"),
        ({"model": "wgan-gp", "augment": "cutout,ada"}, "augment"),
        ({"ada_target": 1.5}, "ada_target"),
        ({"ada_kimg": 0.0}, "ada_kimg"),
        ({"ada_interval": 0}, "ada_interval"),
    ],
)
def test_impossible_settings_are_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=f"^{named}: "):
        configured(**changes)


def test_settings_without_adaptive_augmentation_are_called_ignored() -> None:
    given = ["ada_interval", "ada_kimg", "ada_target"]
    assert TrainConfig(augment="color").ignored(given) == given
    assert TrainConfig(augment="cutout, ada").ignored(given) == []
