"""Iterations of training: both sides of every case run, on the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

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


def test_plain_pytorch_goes_on_with_the_weights_after_a_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Under one autocast around the iteration, its copies of weights outlive the update."""
    exact: list[bool] = []

    def compare(module: Any, given: tuple[Tensor, ...], output: Tensor) -> None:
        image, weight, bias = (
            None if each is None else each.bfloat16()
            for each in (given[0], module.weight, module.bias)
        )
        with torch.autocast("cpu", enabled=False):
            exact.append(torch.equal(output, module._conv_forward(image, weight, bias)))

    def watched(*arguments: Any) -> tuple[nn.Module, nn.Module]:
        networks = make(*arguments)
        for network in networks:
            for layer in network.modules():
                if type(layer) is nn.Conv2d:
                    layer.register_forward_hook(compare)
        return networks

    make = iterations.reference_networks
    monkeypatch.setattr(iterations, "reference_networks", watched)
    small = {"ngf": 2, "ndf": 2, "image_size": 16, "n_critic": 1, "batch_size": 4, "lr": 0.1}
    for model in ("dcgan", "cyclegan"):
        monkeypatch.setitem(iterations._SIZES, model, small)
        case = iterations._case(model, "bfloat16", 4, compiled=False)
        case.prepare(Setting(torch.device("cpu")))["eager"](0)
    assert len(exact) > 20
    assert all(exact)
