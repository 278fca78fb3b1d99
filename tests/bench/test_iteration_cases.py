"""Iterations of training: both sides of every case run, on the same weights."""

from __future__ import annotations

import pytest
import torch

from fastgan.bench.cases import Setting
from fastgan.bench.suites import iterations
from fastgan.training.config import MODELS


def test_every_model_has_an_iteration() -> None:
    assert set(iterations._MODELS) == set(MODELS)


@pytest.mark.parametrize("model", [*MODELS, "stylegan2 with penalties"])
def test_contenders_run_from_the_same_weights(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, lazy, _ = model.partition(" with penalties")
    small = {"ngf": 2, "ndf": 2, "image_size": 16, "n_critic": 1, "batch_size": 4}
    size = iterations._SIZES.get(model, {})
    monkeypatch.setitem(iterations._SIZES, model, {**size, **small})
    case = iterations._case(model, "float32", 4, compiled=False, lazy=bool(lazy))
    # A state_dict that didn't fit the reference's network would be refused here.
    calls = case.prepare(Setting(torch.device("cpu")))
    assert list(calls) == ["fastgan", "eager"]
    for call in calls.values():
        call(0)
