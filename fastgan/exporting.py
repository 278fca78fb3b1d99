"""Exports a trained generator: ONNX, ``torch.export``, safetensors.

The first two contain one function of noise (N, nz) float32, distributed as in the run, and for a
conditional generator labels (N,) int64. It returns images (N, channels, size, size) float32 in [-1,
1], for any N. It includes truncation: a monotone map to [-T, T] turns the run's noise into
truncated noise, so the images are distributed as by ``fastgan sample --truncation T``. StyleGAN2
truncates styles, as there.

safetensors contains the weights, and metadata for :func:`fastgan.load_generator`.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import json
import math
import os
import re
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from fastgan._util.extras import require
from fastgan._util.files import atomic_write, check_writable
from fastgan.errors import ConfigError, OutputError
from fastgan.ops.registration import NAMESPACE
from fastgan.trained import TrainedGenerator
from fastgan.training.checkpoint import describe

__all__ = ["description", "export_generator", "truncate"]

#: Number of images compared between generator and export.
_CHECKED = 3
#: Tolerance for float32 images in [-1, 1]: other programs sum in another order.
_TOLERANCE = 1e-4


def export_generator(
    generator: TrainedGenerator,
    path: str | os.PathLike[str],
    *,
    format: str,
    truncation: float | None = None,
) -> str:
    """Exports a generator, and checks that the export draws the same images.

    Args:
        generator: from :func:`fastgan.load_generator`, with its current weights.
        path: the file, in a folder that exists; replaced if there.
        format: "onnx", "torch-export" or "safetensors".
        truncation: T; not for safetensors.

    Returns:
        A description of the check.

    Raises:
        ConfigError: an unknown format, an invalid truncation, or a missing package.
        OutputError: the file can't be written, or draws other images than the generator.

    Example:
        >>> import tempfile
        >>> import fastgan
        >>> from fastgan.training import TrainConfig, Trainer
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     config = TrainConfig(out=folder, steps=1, batch_size=4, ngf=4, ndf=4)
        ...     generator = fastgan.load_generator(Trainer(config).run().checkpoint)
        ...     checked = export_generator(generator, f"{folder}/g.pt2", format="torch-export")
        ...     program = torch.export.load(f"{folder}/g.pt2").module()
        >>> program(torch.rand(5, 100) * 2 - 1).shape
        torch.Size([5, 1, 16, 16])
    """
    writers = {"onnx": _onnx, "torch-export": _torch_export, "safetensors": _safetensors}
    if format not in writers:
        raise ConfigError(f"format: expected one of {', '.join(writers)}, got {format!r}")
    if truncation is not None and format == "safetensors":
        raise ConfigError("truncation: weights alone have none; expected onnx or torch-export")
    check_writable(path)
    if format != "safetensors":
        if generator.config.kind.pairs:
            raise ConfigError(
                f"format: of {generator.config.model}, which translates images, expected"
                f" safetensors, got {format!r}"
            )
        generator.sample(1, truncation=truncation)  # refuses an invalid truncation
    content, checked = writers[format](generator, truncation)
    with atomic_write(path) as file:
        file.write(content)
    return checked


def truncate(z: Tensor, kind: str, truncation: float) -> Tensor:
    r"""Maps noise to truncated noise in [-T, T], with ops that ONNX supports.

    For normal noise :math:`\Phi^{-1}` of the truncated distribution's quantile, ``sqrt(2)
    erfinv(erf(T / sqrt(2)) erf(z / sqrt(2)))``; for uniform noise ``min(T, 1) z``.

    Args:
        z: float32 noise of any shape.
        kind: "normal" or "uniform".
        truncation: T.

    Example:
        >>> truncate(torch.tensor([-9.0, 0.0, 1.0]), "normal", 0.5)
        tensor([-0.5000,  0.0000,  0.3337])
    """
    if kind == "uniform":
        return z * min(truncation, 1.0)
    if truncation > 5:  # one value in two million is beyond: float32 can't tell them from 1
        return z.clamp(-truncation, truncation)
    root = math.sqrt(2.0)
    inside = torch.erf(z / root) * math.erf(truncation / root)
    return (_erfinv(inside) * root).clamp(-truncation, truncation)


# Giles 2010, "Approximating the erfinv function", table 1: single precision, below and above w = 5.
_CENTRAL = (
    *(2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087),
    *(-0.00125372503, -0.00417768164, 0.246640727, 1.50140941),
)
_TAIL = (
    *(-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773),
    *(-0.0076224613, 0.00943887047, 1.00167406, 2.83297682),
)


def _erfinv(x: Tensor) -> Tensor:
    w = -torch.log((1 - x) * (1 + x))
    central, tail = w - 2.5, w.clamp(min=0.0).sqrt() - 3
    p, q = torch.full_like(x, _CENTRAL[0]), torch.full_like(x, _TAIL[0])
    for a, b in zip(_CENTRAL[1:], _TAIL[1:], strict=True):
        p, q = p * central + a, q * tail + b
    return torch.where(w < 5, p, q) * x


class _Function(nn.Module):
    """The exported function."""

    def __init__(self, generator: TrainedGenerator, truncation: float | None) -> None:
        super().__init__()
        self.module = generator.module
        self.kind = generator.config.noise
        self.truncation, self.options = generator.truncated(truncation)

    def forward(self, z: Tensor, *labels: Tensor) -> Tensor:
        if self.truncation is not None:
            z = truncate(z, str(self.kind), self.truncation)
        images: Tensor = self.module(z[:, :, None, None], *labels, **self.options)
        return images


def _traced(
    generator: TrainedGenerator, truncation: float | None
) -> tuple[torch.export.ExportedProgram, tuple[Tensor, ...], Tensor]:
    """The program, inputs for the check, and the generator's images for them."""
    generator.to("cpu")
    function = _Function(generator, truncation).eval()
    z = generator.noise(_CHECKED)[:, :, 0, 0]
    labels = generator.labels(_CHECKED)
    inputs = (z,) if labels is None else (z, labels)
    batch = torch.export.Dim("batch", min=1)
    # One entry for z, and one for all of forward's *labels, if given.
    shapes: tuple[Any, ...] = ({0: batch}, ({0: batch},))[: len(inputs)]
    with torch.no_grad():
        program = torch.export.export(function, inputs, dynamic_shapes=shapes)
        return program, inputs, function(*inputs)


def _torch_export(generator: TrainedGenerator, truncation: float | None) -> tuple[bytes, str]:
    program, inputs, wanted = _traced(generator, truncation)
    called = {node.target for node in program.graph.nodes}
    fastgan_ops = [op for op in called if getattr(op, "namespace", None) == NAMESPACE]
    if fastgan_ops:  # the file must be readable without fastgan
        program = program.run_decompositions(torch._decomp.get_decompositions(fastgan_ops))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    with torch.no_grad():
        _compare("torch.export", torch.export.load(file).module()(*inputs), wanted)
    return file.getvalue(), f"torch {torch.__version__}"


def _onnx(generator: TrainedGenerator, truncation: float | None) -> tuple[bytes, str]:
    require("onnxscript", "export")
    import onnx

    program, inputs, wanted = _traced(generator, truncation)
    names = ["z", "labels"][: len(inputs)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own warnings
        made = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=names, output_names=["images"]
        )
    assert made is not None
    proto = made.model_proto
    facts: dict[str, object] = {
        "noise": generator.config.noise,
        "truncation": truncation,
        "step": generator.step,
    }
    if generator.num_classes is not None:
        facts["classes"] = generator.data.class_names or generator.num_classes
    onnx.helper.set_model_props(proto, {name: json.dumps(value) for name, value in facts.items()})
    onnx.checker.check_model(proto)
    content: bytes = proto.SerializeToString()
    if importlib.util.find_spec("onnxruntime") is None:
        return content, "onnx's checker alone: onnxruntime isn't installed"
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    feed = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    _compare("onnxruntime", torch.from_numpy(session.run(None, feed)[0]), wanted)
    return content, f"onnxruntime {onnxruntime.__version__}"


def _safetensors(generator: TrainedGenerator, truncation: float | None) -> tuple[bytes, str]:
    require("safetensors", "export")
    import safetensors
    from safetensors.torch import load, save

    weights = {
        key: value.cpu().contiguous() for key, value in generator.module.state_dict().items()
    }
    content = save(weights, {"fastgan": json.dumps(description(generator))})
    back = load(content)
    if back.keys() != weights.keys() or not all(torch.equal(back[k], weights[k]) for k in weights):
        raise OutputError("safetensors: what was written isn't what was to be written")
    return content, f"safetensors {safetensors.__version__}"


def description(generator: TrainedGenerator) -> dict[str, Any]:
    """The settings that build a generator, without the training machine's folders."""
    # As in "folder:/data/photos", and "folder:/data/horses and folder:/data/zebras".
    name = re.sub(r"(?<=:).*?([^/]*)(?=/*( and \w+:|$))", r"\1", generator.data.name)
    data = dataclasses.replace(generator.data, name=name)
    config = dataclasses.replace(
        generator.config,
        out="",
        data=f"source:{name}",
        data_a=None,
        data_b=None,
        device="auto",
    )
    return {
        "format": "fastgan-generator",
        **describe(config, data),
        "step": generator.step,
        "averaged": generator.averaged,
    }


def _compare(program: str, images: Tensor, wanted: Tensor) -> None:
    off = float((images - wanted).abs().max())
    if not off <= _TOLERANCE:
        raise OutputError(f"{program} draws other images than the generator: off by {off:.2g}")
