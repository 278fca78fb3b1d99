"""W&B, trackio and MLflow: settings, metrics and grids arrive, and runs get the right status.

The services are stand-ins that take what wandb 0.31, trackio 0.43 and MLflow 3.17 take: two of
these want another Pillow than the tests, and the third is 800 MB.
"""

from __future__ import annotations

import importlib.machinery
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from fastgan.cli import main
from fastgan.errors import ConfigError, OutputError
from fastgan.training import (
    Callback,
    MLflowLogger,
    TrackioLogger,
    TrainConfig,
    Trainer,
    WandbLogger,
)
from fastgan.training.recorder import read_metrics

SMALL: dict[str, Any] = {"nz": 4, "ngf": 4, "ndf": 4, "batch_size": 4, "n_critic": 1, "steps": 4}
SMALL |= {"log_every": 2, "sample_every": 2, "n_samples": 4}
LOGGERS = {"wandb": WandbLogger, "trackio": TrackioLogger, "mlflow": MLflowLogger}


class Service(types.ModuleType):
    """What a service received."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None, origin="stand-in")
        self.begun: list[dict[str, Any]] = []
        self.rows: dict[int, dict[str, float]] = {}
        self.grids: dict[int, bytes] = {}
        self.ended: list[object] = []
        self.refusal: Exception | None = None

    def begin(self, **given: Any) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.begun.append(given)

    def receive(self, metrics: dict[str, Any], step: int | None) -> None:
        assert step is not None
        if "samples" in metrics:
            self.grids[step] = Path(metrics["samples"].path).read_bytes()
        else:
            self.rows[step] = metrics


class Image:
    def __init__(self, path: str) -> None:
        self.path = path


class WandbService(Service):
    run: Any = None

    def init(self, *, project: str, name: str, config: Any, **options: Any) -> object:
        assert not options.keys() - {"entity", "dir", "id", "notes", "tags", "mode", "resume"}
        self.begin(project=project, name=name, config=config, **options)
        self.run = WandbRun(self)
        return self.run

    Image = staticmethod(lambda data_or_path, mode=None, caption=None: Image(data_or_path))


class WandbRun:
    def __init__(self, service: WandbService) -> None:
        self.service = service

    def log(self, data: Any, step: int | None = None, commit: bool | None = None) -> None:
        self.service.receive(data, step)

    def finish(self, exit_code: int | None = None) -> None:
        self.service.ended.append(exit_code)
        self.service.run = None


class TrackioService(Service):
    def init(self, project: str, name: str | None = None, config: Any = None) -> object:
        self.begin(project=project, name=name, config=config)
        return TrackioRun(self)

    Image = staticmethod(lambda value, caption=None: Image(value))


class TrackioRun:
    def __init__(self, service: Service) -> None:
        self.service = service

    def log(self, metrics: Any, step: int | None = None) -> None:
        self.service.receive(metrics, step)

    def finish(self) -> None:
        self.service.ended.append(0)


class MLflowService(Service):
    active: Any = None

    def active_run(self) -> Any:
        return self.active

    def start_run(self, run_id: str | None = None, *, run_name: str | None = None) -> Any:
        self.begin(name=run_name, run_id=run_id)
        self.active = types.SimpleNamespace(info=types.SimpleNamespace(run_id="r1"))
        return self.active

    def log_params(self, params: dict[str, Any], run_id: str | None = None) -> None:
        self.begun[-1]["config"] = params

    def log_metrics(self, metrics: Any, step: int | None = None, run_id: str | None = None) -> None:
        assert run_id == "r1"
        self.receive(metrics, step)

    def log_artifact(self, local_path: str, artifact_path: str, run_id: str | None = None) -> None:
        assert (artifact_path, run_id) == ("samples", "r1")
        self.grids[int(Path(local_path).stem[-7:])] = Path(local_path).read_bytes()

    def end_run(self, status: str = "FINISHED") -> None:
        self.ended.append({"FINISHED": 0, "FAILED": 1}[status])
        self.active = None


SERVICES = {"wandb": WandbService, "trackio": TrackioService, "mlflow": MLflowService}


@pytest.fixture
def service(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Service:
    found: Service = SERVICES[request.param](request.param)
    monkeypatch.setitem(sys.modules, request.param, found)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return found


each_service = pytest.mark.parametrize("service", SERVICES, indirect=True)


@each_service
def test_settings_metrics_and_grids_arrive(service: Service, tmp_path: Path) -> None:
    class Own(Callback):
        def on_step(self, trainer: Trainer) -> None:
            trainer.log("a, b", trainer.step)

    out = tmp_path / "first"
    config = TrainConfig(out=str(out), **SMALL)
    Trainer(config, callbacks=[Own(), LOGGERS[service.__name__]()]).run()
    (begun,) = service.begun
    assert begun["name"] == "first"
    assert begun["config"]["batch_size"] == 4
    assert service.__name__ == "mlflow" or begun["project"] == "fastgan"
    rows = {int(row["step"]): row for row in read_metrics(out / "metrics.csv")}
    assert list(service.rows) == list(rows) == [2, 4]
    for step, row in rows.items():
        sent = service.rows[step]
        assert sent["loss/loss_d"] == pytest.approx(row["loss_d"], rel=1e-5)
        assert sent["own/a_ b" if service.__name__ == "mlflow" else "own/a, b"] == row["a, b"]
        assert len(sent) == len(row) - 2  # without step and seconds
        assert service.grids[step] == (out / f"samples-{step:07d}.png").read_bytes()
    assert service.ended == [0]


@each_service
def test_a_run_that_fails_has_failed_there(service: Service, tmp_path: Path) -> None:
    class Broken(Callback):
        def on_step(self, trainer: Trainer) -> None:
            raise LookupError

    logger = LOGGERS[service.__name__]()
    with pytest.raises(LookupError):
        Trainer(TrainConfig(out=str(tmp_path / "run"), **SMALL), callbacks=[logger, Broken()]).run()
    assert service.ended == [0 if service.__name__ == "trackio" else 1]  # trackio knows no failures


@pytest.mark.parametrize("service", ["wandb", "mlflow"], indirect=True)
def test_a_run_that_is_active_is_taken_and_left_open(service: Service, tmp_path: Path) -> None:
    if isinstance(service, WandbService):
        service.init(project="mine", name="mine", config={})
    else:
        assert isinstance(service, MLflowService)
        service.start_run()
    logger = LOGGERS[service.__name__]()
    Trainer(TrainConfig(out=str(tmp_path / "run"), **SMALL), callbacks=[logger]).run()
    assert (len(service.begun), list(service.rows), service.ended) == (1, [2, 4], [])


@pytest.mark.parametrize("service", ["wandb"], indirect=True)
def test_options_are_the_services_own(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(out=str(tmp_path / "run"), **SMALL | {"steps": 1})
    monkeypatch.setenv("WANDB_PROJECT", "of the environment")
    Trainer(config, callbacks=[WandbLogger(name="x", mode="offline", tags=["a"])]).run()
    (begun,) = service.begun
    assert begun["config"]["steps"] == 1
    del begun["config"]
    assert begun == {
        "project": "of the environment", "name": "x", "mode": "offline", "tags": ["a"]
    }  # fmt: skip


@pytest.mark.parametrize("service", ["wandb"], indirect=True)
def test_only_the_first_process_begins_a_run(service: Service, tmp_path: Path) -> None:
    trainer = Trainer(TrainConfig(out=str(tmp_path / "run"), **SMALL))
    trainer.processes = types.SimpleNamespace(is_main=False)  # type: ignore[assignment]
    logger = WandbLogger()
    logger.on_start(trainer)
    logger.on_metrics(trainer, {"step": 1, "loss_d": 0.5})
    logger.on_exception(trainer, ValueError())
    assert (service.begun, service.rows, service.ended) == ([], {}, [])


@pytest.mark.parametrize("service", ["wandb"], indirect=True)
def test_the_command_line_has_them_and_says_why_a_service_refuses(
    service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    assert main(["train", f"--out={tmp_path / 'a'}", "--logger=wandb", *small]) == 0
    assert (list(service.rows), service.ended) == ([2, 4], [0])
    service.refusal = RuntimeError("no login:\nset a key")
    begin = ["train", f"--out={tmp_path / 'b'}", "--logger=wandb", *small]
    assert main(begin) == 2
    assert "wandb: can't begin a run: no login: set a key" in capsys.readouterr().err
    # No run has begun there: once there is a login, the same command begins it.
    assert not (tmp_path / "b").exists()
    (tmp_path / "b").mkdir()
    assert main(begin) == 2
    assert list((tmp_path / "b").iterdir()) == []
    service.refusal = None
    assert main(begin) == 0
    service.begun.pop()
    # Another logger, or none, is no other run.
    words = ["train", f"--out={tmp_path / 'a'}", "--resume", "--logger=none", "--steps=5"]
    assert main(words) == 0
    assert len(service.begun) == 1


def test_a_service_that_is_not_installed_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wandb").mkdir()  # as W&B leaves it in the working directory: no package
    monkeypatch.setattr(sys, "path", [str(tmp_path)])  # nothing is installed there
    message = r"wandb isn't installed: pip install 'fastgan\[wandb\]'"
    with pytest.raises(ConfigError, match=message):
        WandbLogger()
    with pytest.raises(ConfigError, match=message):
        Trainer(TrainConfig(out=str(tmp_path / "run"), logger="wandb", **SMALL))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("service", ["trackio"], indirect=True)
def test_refusals_are_errors_of_fastgan(service: Service, tmp_path: Path) -> None:
    service.refusal = PermissionError(13, "Permission denied")
    logger = TrackioLogger()
    with pytest.raises(OutputError, match="trackio: can't begin a run: Permission denied"):
        Trainer(TrainConfig(out=str(tmp_path / "run"), **SMALL), callbacks=[logger]).run()
    assert service.ended == []


@each_service
@pytest.mark.parametrize("lost", ["row", "end"])
def test_a_service_that_fails_later_is_named_and_what_was_trained_is_saved(
    service: Service, lost: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ConnectionError("gone")

    class Gone(list[object]):
        append = fail

    if lost == "row":
        monkeypatch.setattr(service, "receive", fail)
    service.ended = Gone()
    logger = LOGGERS[service.__name__]()
    config = TrainConfig(out=str(tmp_path / "run"), **SMALL)
    what = "end the run" if lost == "end" else "send (metrics|a grid)"
    with pytest.raises(OutputError, match=f"{service.__name__}: can't {what}: gone"):
        Trainer(config, callbacks=[logger]).run()
    (saved,) = (tmp_path / "run").glob("*.pt")
    assert saved.stem.endswith("2" if lost == "row" else "4")
    assert logger.run is None
