"""Whole runs of the trainer: files, resuming, endings."""

from __future__ import annotations

import csv
import functools
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from fastgan._util.random_streams import seeded_generator
from fastgan.data import MemorySource
from fastgan.errors import CheckpointError, ConfigError, DataError, OutputError
from fastgan.ops.backends import Backend, Problem, Selector, selection, using
from fastgan.ops.backends.measurement import Times
from fastgan.training import Callback, TrainConfig, Trainer, TrainingDivergedError, load_generator
from fastgan.training.checkpoint import list_checkpoints, load_checkpoint
from fastgan.training.config import MODELS
from fastgan.training.outputs import HealthWatch, SampleWriter
from fastgan.training.recorder import MetricsRecorder
from fastgan.training.result import TrainingResult
from fastgan.training.state import PICTURE_STREAM

SMALL = {"nz": 6, "ngf": 4, "ndf": 4, "batch_size": 8, "n_critic": 2, "log_every": 2}


def small_config(out: Path, **changes: object) -> TrainConfig:
    return TrainConfig(**{"out": str(out), "steps": 6, **SMALL, **changes})


def assert_same(a: object, b: object, where: str = "") -> None:
    """Equality to the bit of nested dictionaries, lists and tensors."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}/{index}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def all_models(*, exhaustive: tuple[str, ...]) -> list[object]:
    marks = dict.fromkeys(exhaustive, pytest.mark.exhaustive)
    return [pytest.param(each, marks=marks.get(each, ())) for each in MODELS]


#: Its probability has moved, and is about to move again, when the run is cut.
ADAPTIVE = {"model": "gan", "augment": "ada", "ada_target": -0.9, "ada_kimg": 0.1}


def config_of(model: str, out: Path) -> TrainConfig:
    """For whole runs of every model."""
    changes = ADAPTIVE if model == "adaptive" else {"model": model}
    every = {"sample_every": 3, "checkpoint_every": 3, "lr_decay": "linear"}
    return small_config(out, **every, **changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TrainingResult]:
    """What came of a model's run without a break, by its name."""

    @functools.cache
    def run(model: str) -> TrainingResult:
        return Trainer(config_of(model, tmp_path_factory.mktemp(model) / "run")).run()

    return run


@pytest.mark.parametrize(
    "model", all_models(exhaustive=("sngan", "biggan", "stylegan2", "r3gan", "cyclegan"))
)
def test_a_run_leaves_everything_a_person_needs(
    model: str, whole: Callable[[str], TrainingResult]
) -> None:
    result = whole(model)
    assert result.checkpoint is not None
    out = result.checkpoint.parent
    assert (result.step, result.stopped_by) == (6, None)
    assert {path.name for path in out.iterdir()} == {
        "checkpoint-0000003.pt",
        "checkpoint-0000006.pt",
        "config.toml",
        "index.html",
        "losses.png",
        "metrics.csv",
        "samples-0000003.png",
        "samples-0000006.png",
        "samples.png",
        "tensorboard",
        "backends.json",
    }
    assert result.checkpoint == out / "checkpoint-0000006.pt"
    with (out / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["2", "4", "6"]
    critic_updates = 2
    assert [row["images"] for row in rows] == [str(n * critic_updates * 8) for n in (2, 4, 6)]
    filled = {"wgan": ("wasserstein",), "wgan-gp": ("wasserstein", "penalty")}.get(
        model, ("d_real", "d_fake")
    )
    for row in rows:
        assert all(float(row[name]) == float(row[name]) for name in ("loss_d", "loss_g", *filled))
    assert rows[-1]["diversity"] != ""
    assert TrainConfig.from_toml((out / "config.toml").read_text()).model == model
    with Image.open(out / "losses.png") as plot:
        assert plot.size == (960, 720)
    assert any("tfevents" in path.name for path in (out / "tensorboard").iterdir())


@pytest.mark.parametrize(
    "model", [*all_models(exhaustive=("biggan", "stylegan2", "pix2pix")), "adaptive"]
)
def test_resuming_continues_to_the_bit(
    model: str, whole: Callable[[str], TrainingResult], tmp_path: Path
) -> None:
    class StopAtThree(Callback):
        def on_step(self, trainer: Trainer) -> None:
            if trainer.step == 3:
                trainer.request_stop("test")

    parts = tmp_path / "parts"
    first = Trainer(config_of(model, parts), callbacks=[StopAtThree()]).run()
    assert (first.step, first.stopped_by) == (3, "test")
    torch.rand(5)  # whatever happens in between
    second = Trainer(TrainConfig(out=str(parts)), resume=True).run()
    assert second.step == 6
    ours, theirs = load_checkpoint(second.checkpoint), load_checkpoint(whole(model).checkpoint)
    ours["config"].pop("out")
    theirs["config"].pop("out")
    assert_same(ours, theirs)
    assert (ours["adaptive"] is not None) == (model == "adaptive")
    timing = {"seconds", "images_per_second"}
    tables = []
    for run in (second, whole(model)):
        with (run.checkpoint.parent / "metrics.csv").open(newline="") as file:
            tables.append(
                {
                    row["step"]: {k: v for k, v in row.items() if k not in timing}
                    for row in csv.DictReader(file)
                }
            )
    assert tables[0].keys() == {"2", "4", "6"}
    assert tables[0] == tables[1]


def test_resuming_continues_with_the_backends_that_the_run_chose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, though by now another backend would be measured to be the fastest."""
    monkeypatch.setenv("FASTGAN_CACHE_DIR", str(tmp_path / "cache"))

    def measured(fastest: str) -> object:
        def measure(problem: Problem, backends: list[Backend], **_: object) -> Times:
            return Times({b.name: 1.0 if b.name == fastest else 2.0 for b in backends})

        return measure

    def train(out: str, fastest: str, **options: object) -> dict[str, object]:
        monkeypatch.setattr(selection, "measure", measured(fastest))
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        config = small_config(tmp_path / out, model="wgan-gp", critic_norm="none")
        with using(Selector("1")):
            return load_checkpoint(Trainer(config, **options).run().checkpoint)

    class StopAtThree(Callback):
        def on_step(self, trainer: Trainer) -> None:
            if trainer.step == 3:
                trainer.request_stop("test")

    whole = train("whole", "matrix_product")
    train("parts", "matrix_product", callbacks=[StopAtThree()])
    parts = train("parts", "aten", resume=True)
    other = train("other", "aten")
    assert_same(parts["generator"], whole["generator"])
    assert_same(parts["discriminator"], whole["discriminator"])
    different = [not torch.equal(a, other["generator"][k]) for k, a in whole["generator"].items()]
    assert any(different), "the backends round alike, and the test shows nothing"


def test_two_runs_of_one_seed_are_equal_and_of_two_seeds_differ(tmp_path: Path) -> None:
    runs = [
        load_checkpoint(Trainer(small_config(tmp_path / name, seed=seed)).run().checkpoint)
        for name, seed in (("a", 5), ("b", 5), ("c", 6))
    ]
    assert_same(runs[0]["generator"], runs[1]["generator"])
    assert not torch.equal(
        runs[0]["generator"]["main.0.weight"], runs[2]["generator"]["main.0.weight"]
    )


def test_only_a_folder_that_holds_a_run_is_resumed(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="new: holds no run to resume"):
        Trainer(small_config(tmp_path / "new", steps=2), resume=True)
    assert not (tmp_path / "new").exists()


def test_more_steps_can_be_asked_of_a_finished_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    Trainer(small_config(out, steps=2)).run()
    trainer = Trainer(
        TrainConfig(out=str(out), steps=4), resume=True, explicit=frozenset({"steps"})
    )
    assert trainer.config.batch_size == SMALL["batch_size"]
    assert trainer.run().step == 4


def test_resume_refuses_a_setting_that_contradicts_the_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    Trainer(small_config(out, steps=2)).run()
    asked = small_config(out, steps=2, batch_size=16)
    with pytest.raises(ConfigError, match=r"batch_size: .* made with 8, can't go on with 16"):
        Trainer(asked, resume=True, explicit=frozenset({"batch_size"}))


@pytest.mark.parametrize(
    ("model", "field", "value"),
    [
        ("gan", "batch_size", 1),  # which the default model would refuse
        ("wgan", "critic_norm", "auto"),  # is batch, for a wgan
        ("dcgan", "precision", "fp32"),  # is what auto was
        ("wgan", "lr", 5e-5),  # is the paper's
    ],
)
def test_resume_takes_a_setting_that_says_what_the_run_has(
    model: str, field: str, value: object, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    changes = {"batch_size": 1} if field == "batch_size" else {}
    Trainer(small_config(out, model=model, steps=1, **changes)).run()
    asked = TrainConfig(**{"out": str(out), "steps": 2, field: value})
    trainer = Trainer(asked, resume=True, explicit=frozenset({"steps", field}))
    assert trainer.run().step == 2
    assert trainer.config.model == model


def test_a_run_that_died_before_its_first_checkpoint_keeps_its_settings(tmp_path: Path) -> None:
    out = tmp_path / "run"
    Trainer(small_config(out, model="wgan", steps=3, seed=11)).run()
    whole = load_checkpoint(list_checkpoints(out)[-1])
    for path in list_checkpoints(out):
        path.unlink()
    trainer = Trainer(TrainConfig(out=str(out)), resume=True)
    assert trainer.resumed_from is None
    assert (trainer.config.model, trainer.config.seed) == ("wgan", 11)
    assert_same(load_checkpoint(trainer.run().checkpoint)["generator"], whole["generator"])


@pytest.mark.parametrize("content", ["{", "[]", '{"model": "stylegan"}', '{"steps": "x"}'])
def test_a_damaged_description_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"config\.json"):
        Trainer(TrainConfig(out=str(tmp_path)), resume=True)


def test_resuming_a_finished_run_leaves_its_files_alone(tmp_path: Path) -> None:
    out = tmp_path / "run"
    Trainer(small_config(out, steps=3)).run()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    for steps in (3, 2):
        asked = TrainConfig(out=str(out), steps=steps)
        result = Trainer(asked, resume=True, explicit=frozenset({"steps"})).run()
        assert result.step == 3
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def make_folder(folder: Path, count: int) -> None:
    folder.mkdir(exist_ok=True)
    for index in range(count):
        Image.new("L", (16, 16), 10 * index).save(folder / f"{index}.png")


def test_a_run_can_be_resumed_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(tmp_path / "images", 10)
    monkeypatch.chdir(tmp_path)
    Trainer(small_config(Path("run"), steps=1, data="folder:images", image_size=16)).run()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    asked = TrainConfig(out="../run", steps=2)
    assert Trainer(asked, resume=True, explicit=frozenset({"steps"})).run().step == 2


def test_moved_data_can_be_named_and_changed_data_is_refused(tmp_path: Path) -> None:
    make_folder(tmp_path / "images", 10)
    out = tmp_path / "run"
    data = f"folder:{tmp_path / 'images'}"
    Trainer(small_config(out, steps=1, data=data, image_size=16)).run()
    (tmp_path / "images").rename(tmp_path / "moved")
    asked = TrainConfig(out=str(out), steps=2, data=f"folder:{tmp_path / 'moved'}")
    explicit = frozenset({"steps", "data"})
    assert Trainer(asked, resume=True, explicit=explicit).run().step == 2
    make_folder(tmp_path / "moved", 11)
    asked = TrainConfig(out=str(out), steps=3)
    with pytest.raises(CheckpointError, match=r"length 10, but .* has 11"):
        Trainer(asked, resume=True, explicit=frozenset({"steps"}))


def test_the_time_limit_of_one_call_does_not_bind_the_next(tmp_path: Path) -> None:
    out = tmp_path / "run"
    Trainer(small_config(out, steps=10**6, max_minutes=0.002)).run()
    assert Trainer(TrainConfig(out=str(out)), resume=True).config.max_minutes is None


def test_one_image_is_no_data_set(tmp_path: Path) -> None:
    make_folder(tmp_path / "images", 1)
    config = small_config(tmp_path / "run", data=f"folder:{tmp_path / 'images'}", image_size=16)
    with pytest.raises(DataError, match=r"images: expected at least 2 images"):
        Trainer(config)


def test_images_that_are_all_the_same_are_no_data_set(tmp_path: Path) -> None:
    """Found by a run on constant images, which ended at its first samples."""
    source = MemorySource("flat", torch.zeros(9, 1, 16, 16))
    with pytest.raises(DataError, match="all the same"):
        Trainer(small_config(tmp_path / "run"), source=source)
    assert not (tmp_path / "run").exists()


def test_a_folder_with_a_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "run"
    Trainer(small_config(out, steps=2)).run()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(OutputError, match="already holds a run"):
        Trainer(small_config(out, steps=2))
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_nothing_is_written_when_the_data_is_bad(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        Trainer(small_config(tmp_path / "run", data=f"folder:{tmp_path / 'nowhere'}"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_at_the_step_s_end(number: signal.Signals, tmp_path: Path) -> None:
    class Interrupt(Callback):
        def on_step(self, trainer: Trainer) -> None:
            if trainer.step == 4:
                os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    result = Trainer(small_config(tmp_path / "run", steps=50), callbacks=[Interrupt()]).run()
    assert (result.step, result.stopped_by) == (4, number.name)
    assert result.checkpoint.name == "checkpoint-0000004.pt"
    assert result.samples.exists()
    assert signal.getsignal(number) is before


def test_the_second_signal_ends_at_once(tmp_path: Path) -> None:
    class Impatient(Callback):
        def on_step(self, trainer: Trainer) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)

    with pytest.raises(KeyboardInterrupt):
        Trainer(small_config(tmp_path / "run", steps=50), callbacks=[Impatient()]).run()


def test_training_outside_the_main_thread(tmp_path: Path) -> None:
    results: list[TrainingResult] = []
    trainer = Trainer(small_config(tmp_path / "run", steps=2))
    thread = threading.Thread(target=lambda: results.append(trainer.run()))
    thread.start()
    thread.join()
    assert results[0].step == 2


def test_the_time_limit_stops_with_a_checkpoint(tmp_path: Path) -> None:
    result = Trainer(small_config(tmp_path / "run", steps=10**6, max_minutes=0.01)).run()
    assert result.stopped_by == "max_minutes"
    assert result.step < 10**6
    assert result.seconds < 30
    assert result.checkpoint.exists()


@pytest.mark.parametrize("where", ["loss", "weights", "samples"])
def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(where: str, tmp_path: Path) -> None:
    class Poison(Callback):
        def on_step(self, trainer: Trainer) -> None:
            network = trainer.updater.discriminator
            if where != "loss":
                network = trainer.updater.generator
            if trainer.step == 5:
                with torch.no_grad():
                    next(network.parameters()).fill_(float("nan"))

    out = tmp_path / "run"
    # Logging every 100 steps leaves it to the look at the weights before a checkpoint or a picture.
    config = small_config(
        out,
        steps=20,
        checkpoint_every=4 if where == "samples" else 2,
        sample_every=1 if where == "samples" else 100,
        log_every=1 if where == "loss" else 100,
        keep_checkpoints=1,
    )
    with pytest.raises(TrainingDivergedError, match=r"last good checkpoint is .*0000004\.pt"):
        Trainer(config, callbacks=[Poison()]).run()
    assert [path.name for path in list_checkpoints(out)] == ["checkpoint-0000004.pt"]
    content = load_checkpoint(out / "checkpoint-0000004.pt")
    assert all(bool(v.isfinite().all()) for v in content["generator"].values())


def test_a_collapsed_generator_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastgan.training.health.EARLIEST_SAMPLES", 0)
    texts: list[str] = []

    class Collapse(Callback):
        def on_step(self, trainer: Trainer) -> None:
            assert trainer.ema is not None
            if trainer.step == 1:
                (health,) = (c for c in trainer.callbacks if isinstance(c, HealthWatch))
                health.monitor._warm_up = 0  # a short run stands for a long one
            with torch.no_grad():  # one picture, whatever the noise
                next(trainer.ema.module.parameters()).zero_()

        def on_warning(self, trainer: Trainer, text: str) -> None:
            texts.append(text)

    Trainer(small_config(tmp_path / "run", steps=6, sample_every=2), callbacks=[Collapse()]).run()
    collapses = [text for text in texts if text.startswith("mode collapse")]
    assert len(collapses) == 1  # said once, though it lasts


def test_a_generator_that_never_varied_in_four_steps_is_a_beginning(
    tmp_path: Path,
) -> None:
    texts: list[str] = []

    class Constant(Callback):
        def on_step(self, trainer: Trainer) -> None:
            assert trainer.ema is not None
            with torch.no_grad():
                next(trainer.ema.module.parameters()).zero_()

        def on_warning(self, trainer: Trainer, text: str) -> None:
            texts.append(text)

    Trainer(small_config(tmp_path / "run", steps=4, sample_every=1), callbacks=[Constant()]).run()
    assert texts == []


@pytest.mark.slow
def test_a_plain_gan_with_its_papers_settings_learns_to_vary(tmp_path: Path) -> None:
    config = TrainConfig(model="gan", out=str(tmp_path / "run"), steps=400, sample_every=400)
    result = Trainer(config).run()
    assert result.metrics["diversity"] > 0.5
    assert 0.3 < result.metrics["loss_g"] < 3


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    recorder = MetricsRecorder(tmp_path)
    recorder._file.close()
    recorder.path.unlink()
    recorder.path.symlink_to("/dev/full")
    with Path("/dev/full").open("w") as full:
        recorder._file = full
        recorder._writer.writer = csv.writer(full)
        with pytest.raises(OutputError, match=r"metrics\.csv: can't be written: No space left"):
            recorder.record({"step": 1, "images": 8, "seconds": 0.1})
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())  # let it close in peace


def test_an_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    class HangUp(Callback):
        def on_step(self, trainer: Trainer) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        result = Trainer(small_config(tmp_path / "run", steps=3), callbacks=[HangUp()]).run()
    finally:
        signal.signal(signal.SIGINT, before)
    assert (result.step, result.stopped_by) == (3, None)


def test_old_checkpoints_are_removed_but_not_foreign_files(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "mine.pt").write_bytes(b"not a checkpoint of ours")
    Trainer(small_config(out, steps=6, checkpoint_every=1, keep_checkpoints=3)).run()
    assert [path.name for path in list_checkpoints(out)] == [
        f"checkpoint-000000{step}.pt" for step in (4, 5, 6)
    ]
    assert (out / "mine.pt").exists()


def test_a_checkpoint_that_somebody_reads_is_removed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows removes no file that is open."""
    remove = Path.unlink

    def busy(path: Path, missing_ok: bool = False) -> None:
        if path.name == "checkpoint-0000001.pt" and not (path.parent / "free").exists():
            raise PermissionError(13, "used by another process")
        remove(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", busy)
    out = tmp_path / "run"
    told: list[str] = []

    class Listener(Callback):
        def on_warning(self, trainer: Trainer, text: str) -> None:
            told.append(text)

    config = small_config(out, steps=3, checkpoint_every=1, keep_checkpoints=1)
    Trainer(config, callbacks=[Listener()]).run()
    assert [path.name[-4] for path in list_checkpoints(out)] == ["1", "3"]
    assert len([text for text in told if "0000001.pt wasn't removed" in text]) == 1
    (out / "free").touch()
    asked = small_config(out, steps=4)
    Trainer(asked, resume=True, explicit=frozenset({"steps"})).run()
    assert [path.name[-4] for path in list_checkpoints(out)] == ["4"]


def test_unlabelled_data_can_not_condition(tmp_path: Path) -> None:
    Image.new("L", (16, 16), 3).save(tmp_path / "a.png")
    Image.new("L", (16, 16), 200).save(tmp_path / "b.png")
    with pytest.raises(ConfigError, match="labels"):
        Trainer(
            small_config(tmp_path / "run", model="cgan", data=f"folder:{tmp_path}", image_size=16)
        )


def test_other_data_with_other_channels_is_no_continuation(tmp_path: Path) -> None:
    out = tmp_path / "run"
    Trainer(small_config(out, steps=2)).run()
    saved = load_checkpoint(list_checkpoints(out)[-1])
    saved["data"]["channels"] = 3
    torch.save(saved, list_checkpoints(out)[-1])
    with pytest.raises(CheckpointError):
        Trainer(TrainConfig(out=str(out)), resume=True)


def test_the_generator_of_a_run_draws_what_the_run_drew(tmp_path: Path) -> None:
    class Remember(Callback):
        def on_end(self, trainer: Trainer, result: TrainingResult) -> None:
            (writer,) = (c for c in trainer.callbacks if isinstance(c, SampleWriter))
            self.images = writer.sample(trainer.state, 64)

    remember = Remember()
    result = Trainer(small_config(tmp_path / "run", noise="normal"), callbacks=[remember]).run()
    generator, config, _ = load_generator(result.checkpoint)
    assert not generator.training
    z = torch.randn(64 * 6, generator=seeded_generator(config.seed, PICTURE_STREAM))
    with torch.no_grad():
        torch.testing.assert_close(generator(z.view(64, 6, 1, 1)), remember.images)
