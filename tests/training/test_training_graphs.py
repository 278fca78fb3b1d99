"""Whole steps, recorded and replayed: by CUDA graphs on a GPU, by a stand-in for them anywhere.

The stand-in plays back the very call that was recorded, with the buffers it was recorded with. What
it can't show, a GPU does: the last test. What makes a step fit for recording is shown on the CPU:
it reads no value back, and it leaves all its results in tensors that stay where they are.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastgan.explaining.fallback
from fastgan.errors import FastganError
from fastgan.explaining.fallback import FallbackWarning
from fastgan.training import TrainConfig, Trainer
from fastgan.training.checkpoint import load_checkpoint
from fastgan.training.config import MODELS
from fastgan.training.ema import ExponentialMovingAverage
from fastgan.training.graphs import WARM_UP, CapturedIteration, Step
from fastgan.training.iteration import Iteration, MetricTotals, Shape
from fastgan.training.model_kinds import named
from fastgan.training.networks import DataShape, build_discriminator, build_generator
from fastgan.training.optimizer_kinds import build_optimizer
from fastgan.training.updates import GANUpdater

BATCH, SIZE, CLASSES = 4, 16, 3


class Playback:
    """Records a step by keeping it, and plays it again by calling it.

    As with a graph, what Python does of a step happens when it is recorded, and only then; what
    happens to tensors happens when it is played, and only then.
    """

    spoils_allocator = False

    def __init__(self, iteration: Iteration) -> None:
        self.warm = 0
        self.recorded = 0
        self._iteration = iteration

    def warm_up(self, step: Step) -> None:
        self.warm += 1
        step()

    def capture(self, step: Step) -> Step:
        self.recorded += 1
        updater = self._iteration.updater
        tensors = results_of(self._iteration)
        before = [tensor.clone() for tensor in tensors]
        drawn, dropped = updater.random.get_state(), torch.get_rng_state()
        step()
        for tensor, value in zip(tensors, before, strict=True):
            tensor.detach().copy_(value)
        updater.random.set_state(drawn)
        torch.set_rng_state(dropped)

        def play() -> None:
            counts = dict(self._iteration.totals.counts)
            step()
            self._iteration.totals.counts.clear()
            self._iteration.totals.counts.update(counts)

        return play


def results_of(iteration: Iteration) -> list[Tensor]:
    """Every tensor in which a step leaves something."""
    updater, average = iteration.updater, iteration.average
    assert average is not None
    tensors = [
        *updater.generator.state_dict().values(),
        *updater.discriminator.state_dict().values(),
        *average.module.state_dict().values(),
        *iteration.totals._sums.values(),
    ]
    if isinstance(average._updates, Tensor):
        tensors.append(average._updates)
    for optimizer in (updater.optimizer_g, updater.optimizer_d):
        for values in optimizer.state.values():
            tensors += [value for value in values.values() if isinstance(value, Tensor)]
        tensors += [group["lr"] for group in optimizer.param_groups]
    if updater.adaptive is not None:
        tensors.append(updater.adaptive._state)
    for scaler in (updater.scaler_g, updater.scaler_d):
        held = (getattr(scaler, name, None) for name in ("_scale", "_growth_tracker"))
        tensors += [each for each in held if each is not None]
    return tensors


class Refusal(Playback):
    """Fails halfway through, as a capture does when a step waits for the device."""

    def capture(self, step: Step) -> Step:
        self._iteration.updater.random = torch.Generator().manual_seed(99)
        self._iteration.updater.optimizer_d.grad_scale = torch.ones(
            ()
        )  # as left by a scaler's step
        raise RuntimeError("operation not permitted when stream is capturing\nand so on")


def make(**changes: Any) -> Iteration:
    small = {"out": "unused", "nz": 5, "ngf": 4, "ndf": 4, "batch_size": BATCH}
    config = TrainConfig(**{**small, **changes}).resolved()
    torch.manual_seed(0)
    data = DataShape("random", 1, SIZE, CLASSES)
    generator, discriminator = build_generator(config, data), build_discriminator(config, data)
    updater: GANUpdater = named(config.kind.updater)(
        config=config,
        generator=generator,
        discriminator=discriminator,
        optimizer_g=build_optimizer(config, generator, config.lr_g),
        optimizer_d=build_optimizer(config, discriminator, config.lr_d),
        num_classes=CLASSES if config.conditional else None,
        device=torch.device("cpu"),
        random=torch.Generator().manual_seed(0),
        rates_on_device=True,
    )
    average = ExponentialMovingAverage(generator, 0.9)
    average._updates = torch.zeros(())  # counted in a tensor, as on a CUDA device
    return Iteration(updater, average, MetricTotals())


def batches(count: int, config: TrainConfig) -> Callable[[], list[tuple[Tensor, Tensor]]]:
    channels = 2 if config.kind.pairs else 1
    random = torch.Generator().manual_seed(1)

    def next_ones() -> list[tuple[Tensor, Tensor]]:
        return [
            (
                torch.rand(BATCH, channels, SIZE, SIZE, generator=random) * 2 - 1,
                torch.randint(CLASSES, (BATCH,), generator=random),
            )
            for _ in range(count)
        ]

    return next_ones


def state(iteration: Iteration) -> dict[str, Tensor]:
    assert iteration.average is not None
    networks = {
        "generator": iteration.updater.generator,
        "discriminator": iteration.updater.discriminator,
        "average": iteration.average.module,
    }
    return {
        f"{kind}.{name}": value.clone()
        for kind, network in networks.items()
        for name, value in network.state_dict().items()
    }


def trained(iteration: Any, inner: Iteration, n_critic: int, steps: int) -> dict[str, float]:
    """Trains with falling rates and a penalty in turns; gives the mean metrics."""
    taken = batches(n_critic, inner.updater.config)
    torch.manual_seed(7)  # dropout
    lazily = itertools.cycle([True, False, False])
    for step in range(steps):
        inner.updater.set_learning_rates(1e-3 / (step + 1), 2e-3 / (step + 1))
        penalized = tuple(next(lazily) for _ in range(n_critic))
        iteration.run(taken(), Shape(penalized, measured=True, penalized_g=penalized[0]))
    return inner.totals.take()


CASES: list[dict[str, Any]] = [
    *({"model": model} for model in MODELS if model not in ("biggan", "r3gan", "cyclegan")),
    {"model": "cyclegan", "blocks": 1},
    {"model": "wgan-gp", "conditional": True, "penalty_every": 2, "augment": "color,cutout"},
    {"model": "dcgan", "one_stage": True, "accumulate": 2},
    {"model": "wgan", "optimizer": "sgd", "clip_when": "before"},
    {"model": "dcgan", "precision": "fp16"},
    {"model": "gan", "augment": "ada", "ada_target": -0.9, "ada_kimg": 0.1},
]


@pytest.mark.parametrize(
    "case",
    [
        *CASES,
        *(
            pytest.param({"model": model}, marks=pytest.mark.exhaustive)
            for model in ("biggan", "r3gan")
        ),
    ],
    ids=str,
)
def test_replayed_steps_take_the_trajectory_of_steps_run_one_by_one(case: dict[str, Any]) -> None:
    eager, replayed = make(**case), make(**case)
    playback = Playback(replayed)
    captured = CapturedIteration(replayed, playback)
    steps = 3 * (WARM_UP + 1)
    metrics = trained(eager, eager, 2, steps)
    found = trained(captured, replayed, 2, steps)
    assert captured.failure is None
    assert playback.recorded == 3  # one for each place of the penalty in a step
    assert playback.warm == 3 * WARM_UP
    assert found == pytest.approx(metrics, rel=0, abs=0, nan_ok=True)  # fp16 may overflow at first
    expected = state(eager)
    for name, value in state(replayed).items():
        assert torch.equal(value, expected[name]), name
    assert torch.equal(replayed.updater.random.get_state(), eager.updater.random.get_state())


class NoReading(TorchDispatchMode):
    """Refuses every op whose result in Python depends on a value: on CUDA it would wait for it."""

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        name = function.name()
        refused = (
            "_local_scalar_dense",
            "nonzero",
            "masked_select",
            "equal",
            "unique",
            "is_nonzero",
        )
        if any(name in (f"aten::{each}", f"aten::_{each}") for each in refused):
            # Labels out of range are looked for on the CPU alone.
            raise AssertionError(f"{name} reads a value back")
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("case", [case for case in CASES if "conditional" not in case], ids=str)
def test_a_step_reads_nothing_back_and_its_results_stay_in_their_places(
    case: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastgan.models import conditioning

    # The one check of the labels that reads values does so on the CPU only.
    monkeypatch.setattr(conditioning, "_refuse_labels_outside", lambda *arguments: None)
    iteration = make(**case)
    if case.get("precision") == "fp16":
        iteration.updater.make_scalers()
    taken, shape = batches(2, iteration.updater.config), Shape((True, False), measured=True)
    iteration.updater.set_learning_rates(1e-3, 1e-3)
    iteration.run(taken(), shape)  # makes the optimisers' states

    def addresses() -> list[int]:
        return [tensor.data_ptr() for tensor in results_of(iteration)]

    before = addresses()
    given = taken()
    with NoReading():
        iteration.run(given, shape)
    iteration.updater.set_learning_rates(5e-4, 5e-4)
    iteration.run(taken(), shape)
    assert addresses() == before


def test_reading_a_value_back_is_noticed() -> None:
    for read in (Tensor.item, Tensor.nonzero, bool):
        with NoReading(), pytest.raises(AssertionError, match="reads a value back"):
            read(torch.ones(()))


def test_a_step_that_can_not_be_recorded_is_run_with_one_warning_and_nothing_lost() -> None:
    fastgan.explaining.fallback._seen.clear()
    eager, refused = make(model="wgan"), make(model="wgan")
    captured = CapturedIteration(refused, Refusal(refused))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = trained(captured, refused, 1, WARM_UP * 3 + 6)
    texts = [str(each.message) for each in caught if each.category is FallbackWarning]
    assert [text for text in texts if "captured" in text] == [
        "steps run one by one, they can't be captured as a CUDA graph: RuntimeError: operation not"
        " permitted when stream is capturing"
    ]
    assert found == trained(eager, eager, 1, WARM_UP * 3 + 6)
    expected = state(eager)
    for name, value in state(refused).items():
        assert torch.equal(value, expected[name]), name


def test_a_step_that_can_not_be_recorded_ends_the_run_where_torch_can_not_go_on() -> None:
    refused = make(model="wgan")
    refusal = Refusal(refused)
    refusal.spoils_allocator = True
    captured = CapturedIteration(refused, refusal)
    with pytest.raises(
        FastganError, match=r"last checkpoint with --no-graphs, or with torch 2\.12"
    ):
        trained(captured, refused, 1, WARM_UP * 3 + 6)


def test_the_average_on_a_device_is_the_average() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2)
    ours, theirs = (ExponentialMovingAverage(layer, 0.8, updates=2) for _ in range(2))
    ours._updates = torch.tensor(2.0)  # as on a CUDA device
    for _ in range(30):
        with torch.no_grad():
            layer.weight.normal_()
        ours.update(layer)
        theirs.update(layer)
        torch.testing.assert_close(ours.module.weight, theirs.module.weight)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.gpu
def test_graphs_and_single_steps_train_alike_on_a_gpu(
    model: str, precision: str, cuda: torch.device, tmp_path: Path
) -> None:
    small = {"nz": 8, "ngf": 8, "ndf": 8, "batch_size": 8, "n_critic": 2, "log_every": 4}
    checkpoints = []
    for name, graphs in (("graphs", True), ("steps", False)):
        config = TrainConfig(
            out=str(tmp_path / name),
            model=model,
            steps=12,
            graphs=graphs,
            precision=precision,
            device="cuda",
            lr_decay="linear",
            **small,
        )
        fastgan.explaining.fallback._seen.clear()
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "steps run one by one", FallbackWarning)
            checkpoints.append(load_checkpoint(Trainer(config).run().checkpoint))
    ours, theirs = checkpoints
    assert torch.equal(ours["random"]["players"], theirs["random"]["players"])
    tolerance = {"fp32": 1e-3, "bf16": 2e-2, "fp16": 2e-2}[precision]
    for network in ("generator", "discriminator", "ema_generator"):
        for key, value in theirs[network].items():
            # Adam turns a rounding difference of a small gradient into one of up to the rate.
            torch.testing.assert_close(
                ours[network][key], value, rtol=tolerance, atol=tolerance, msg=f"{network} {key}"
            )
