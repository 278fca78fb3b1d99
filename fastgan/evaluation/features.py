"""Feature spaces for comparing images, each with a name that is reported with every figure.

Figures from different feature spaces can't be compared. There are four spaces:

- ``classifier-128-<fingerprint>``: the penultimate layer of the classifier trained on the labelled
  real data. The default for labelled data.
- ``random-conv-128``: a fixed convolution network that was never trained. The default without
labels.
- ``inception-2048:<file>:<fingerprint>``: the Inception network of FID and KID, by torch-fidelity,
  with weights that the user has.
- ``torchscript:<file>:<fingerprint>``: an extractor given by the user.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan._util.extras import require
from fastgan._util.reading import one_line
from fastgan.errors import ConfigError, DataError, FastganError
from fastgan.evaluation.classifier import ImageClassifier

BATCH_SIZE = 256
#: The activations of 32 images of 299 x 299 take about a gigabyte.
INCEPTION_BATCH = 32


class FeatureSpace(Protocol):
    """Turns images into feature vectors, and has a name."""

    @property
    def name(self) -> str:
        """The space's name; figures with equal names are comparable."""

    def extract(self, images: Tensor) -> Tensor:
        """Features, float32 ``(N, F)`` on the CPU, of float images ``(N, C, H, W)``."""


def feature_space_named(name: str, device: torch.device | str = "cpu") -> FeatureSpace:
    """The feature space of a name, except ``"classifier"``.

    Args:
        name: ``"random-conv"``, ``"inception:FILE"`` or ``"torchscript:FILE"``.
        device: the device of an extractor.

    Raises:
        ConfigError: another name, or a library that isn't installed.
        DataError: a file that can't be used.
    """
    if name == "random-conv":
        return RandomConvolutionFeatures()
    if name.startswith("torchscript:"):
        return TorchScriptFeatures(name.removeprefix("torchscript:"), device=device)
    if name.startswith("inception:"):
        return InceptionFeatures(name.removeprefix("inception:"), device=device)
    raise ConfigError(
        f"feature_space: {name!r}; expected 'classifier' (of labelled data, all at once),"
        " 'random-conv', 'inception:FILE' or 'torchscript:FILE'"
    )


def _in_batches(
    images: Tensor, function: Callable[[Tensor], Tensor], batch_size: int = BATCH_SIZE
) -> Tensor:
    with torch.no_grad():
        return torch.cat([function(part).cpu() for part in torch.split(images, batch_size)])


class ClassifierFeatures:
    """Penultimate activations of a classifier trained on the real data.

    They capture what separates the data's classes, and little else: two styles of a seven, or a
    rough and a clean one, may coincide. The classifier was trained on most of the real images and
    separates those better than others, a slight disadvantage for generated ones. Figures are
    comparable for the same data, image size, seed and machine; the weights' fingerprint in the name
    shows it.

    Args:
        classifier: as trained by :func:`fastgan.evaluation.train_classifier`.

    Example:
        >>> import torch
        >>> from fastgan.evaluation import ClassifierFeatures, ImageClassifier
        >>> classifier = ImageClassifier(channels=1, image_size=16, num_classes=10)
        >>> space = ClassifierFeatures(classifier)
        >>> space.extract(torch.zeros(3, 1, 16, 16)).shape
        torch.Size([3, 128])
        >>> space.name.rsplit("-", 1)[0]
        'classifier-128'
    """

    def __init__(self, classifier: ImageClassifier) -> None:
        self.classifier = classifier.eval()
        digest = hashlib.sha256()
        for tensor in classifier.state_dict().values():
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        self._name = f"classifier-{classifier.feature_count}-{digest.hexdigest()[:8]}"

    @property
    def name(self) -> str:
        """``classifier-128-`` and eight digits that identify the weights."""
        return self._name

    def extract(self, images: Tensor) -> Tensor:
        """Features, float32 ``(N, 128)`` on the CPU."""
        device = next(self.classifier.parameters()).device
        return _in_batches(
            images, lambda part: self.classifier.features(part.to(device, torch.float32))
        )


class RandomConvolutionFeatures:
    """A three-stage convolution network with fixed random weights, never trained.

    Random filters with rectification and pooling respond to edges, strokes, textures and colours at
    three scales and ignore small shifts: much better than raw pixels, but they don't recognise
    objects. The network needs no labels or download and is the same everywhere, so figures from the
    same data and image size are comparable. They rank generators; they are not the "FID" of papers.

    Grey images become RGB with equal channels. Images are averaged to 32x32 first.

    Example:
        >>> import torch
        >>> from fastgan.evaluation import RandomConvolutionFeatures
        >>> space = RandomConvolutionFeatures()
        >>> space.name, space.extract(torch.zeros(3, 1, 64, 64)).shape
        ('random-conv-128', torch.Size([3, 128]))
    """

    name = "random-conv-128"
    """Identifies the seed and the widths below; another network needs another name."""

    SEED = 20200219
    WIDTHS = (3, 16, 32, 32)
    SIDE = 32

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(self.SEED)
        self._weights = []
        for in_channels, out_channels in zip(self.WIDTHS[:-1], self.WIDTHS[1:], strict=True):
            # He et al. 2015: a rectified layer keeps the scale at variance 2 / fan_in.
            deviation = math.sqrt(2 / (in_channels * 9))
            shape = (out_channels, in_channels, 3, 3)
            self._weights.append(torch.randn(shape, generator=generator) * deviation)

    def _features(self, images: Tensor) -> Tensor:
        images = images.to(torch.float32).expand(-1, 3, -1, -1)
        activations = F.interpolate(images, size=self.SIDE, mode="area")
        for weight in self._weights:
            # Edges are repeated, since zeros would be a grey frame around black digits.
            padded = F.pad(activations, (1, 1, 1, 1), mode="replicate")
            convolved = F.conv2d(padded, weight.to(images.device))
            activations = F.avg_pool2d(F.leaky_relu(convolved, 0.1), 2)
        return F.avg_pool2d(activations, 2).flatten(1)  # 32 channels at 2 x 2 positions

    def extract(self, images: Tensor) -> Tensor:
        """Features, float32 ``(N, 128)`` on the CPU."""
        return _in_batches(images, self._features)


class InceptionFeatures:
    """The Inception network of FID and KID, with weights from a local file.

    The network is torch-fidelity's, ``pip install 'fastgan[fid]'`` (torchmetrics has the same): its
    pool3 layer of 2,048 features, of 8-bit images enlarged to 299 x 299 as TensorFlow 1 did. The
    weights are the file ``weights-inception-2015-12-05-6726825d.pth`` of its releases; nothing is
    downloaded here. Grey images become RGB with equal channels.

    The file is read as weights: it can't run code.

    Args:
        path: the weights.
        device: where to run the network.

    Raises:
        ConfigError: torch-fidelity isn't installed.
        DataError: a missing file, or one that doesn't hold the network's weights.

    Example:
        >>> from fastgan.evaluation import InceptionFeatures
        >>> InceptionFeatures("missing.pth")
        Traceback (most recent call last):
            ...
        fastgan.errors.DataError: missing.pth: no such file of Inception weights
    """

    def __init__(self, path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> None:
        self.path = Path(path)
        self.device = torch.device(device)
        if not self.path.is_file():
            raise DataError(f"{self.path}: no such file of Inception weights")
        require("torch_fidelity", "fid")
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        content = self.path.read_bytes()
        try:
            weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as error:  # any error, from a file of another kind
            raise DataError(
                f"{self.path}: not a file that torch saved, or not only weights"
            ) from error
        try:
            # torch-fidelity unpickles its file, so it doesn't get the user's.
            plain = io.BytesIO()
            torch.save(weights, plain)
            plain.seek(0)
            self._module = FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048"], feature_extractor_weights_path=plain
            ).to(self.device)
        except Exception as error:  # any error, from another network's weights
            raise DataError(f"{self.path}: not Inception weights: {one_line(error)}") from error
        self._name = f"inception-2048:{self.path.name}:{hashlib.sha256(content).hexdigest()[:8]}"

    @property
    def name(self) -> str:
        """``inception-2048:``, the file's name, and eight digits that identify its content."""
        return self._name

    def _features(self, images: Tensor) -> Tensor:
        images = images.to(self.device, torch.float32).expand(-1, 3, -1, -1)
        pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        features: Tensor = self._module(pixels)[0]
        return features

    def extract(self, images: Tensor) -> Tensor:
        """Features, float32 ``(N, 2048)`` on the CPU."""
        return _in_batches(images, self._features, batch_size=INCEPTION_BATCH)


class TorchScriptFeatures:
    """Features from an extractor in a TorchScript file of the user's choice.

    The file holds a module that takes float32 ``(N, C, H, W)`` in ``[-1, 1]``, with the channels
    and size of the data, on the CPU or the device given, and returns ``(N, F)`` (trailing
    dimensions of 1 are dropped). Wrap an extractor with other inputs in a module that resizes,
    rescales or repeats channels; ``docs/evaluation.md`` has an example.

    A TorchScript file is a program. It can't run Python, but can take any time and memory and call
    any torch operator: use files only from authors you trust.

    Args:
        path: the file, as written by ``torch.jit.save``.
        device: where to run it.

    Raises:
        DataError: a missing file, or one that is not TorchScript.

    Example:
        >>> from fastgan.evaluation import TorchScriptFeatures
        >>> TorchScriptFeatures("missing.pt")
        Traceback (most recent call last):
            ...
        fastgan.errors.DataError: missing.pt: no such feature extractor file
    """

    def __init__(self, path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> None:
        self.path = Path(path)
        self.device = torch.device(device)
        if not self.path.is_file():
            raise DataError(f"{self.path}: no such feature extractor file")
        try:
            digest = hashlib.sha256(self.path.read_bytes()).hexdigest()[:8]
            with open(self.path, "rb") as file, warnings.catch_warnings():
                # torch deprecates TorchScript, 2.14 to all users; published extractors have it.
                for category in (DeprecationWarning, FutureWarning):
                    warnings.filterwarnings("ignore", "`torch.jit.load`", category)
                self._module = torch.jit.load(file, map_location=self.device).eval()
        except (OSError, RuntimeError, ValueError) as error:
            raise DataError(
                f"{self.path}: not a TorchScript feature extractor: {_first_sentence(error)}"
            ) from error
        self._name = f"torchscript:{self.path.name}:{digest}"

    @property
    def name(self) -> str:
        """``torchscript:``, the file's name, and eight digits that identify its content."""
        return self._name

    def _features(self, images: Tensor) -> Tensor:
        shape = tuple(images.shape)
        try:
            features = self._module(images.to(self.device, torch.float32))
        except FastganError:
            raise
        except Exception as error:  # the file's program may raise anything
            raise ConfigError(
                f"{self.path}: the extractor failed on float32 images {shape} in [-1, 1]: "
                f"{_last_line(error)}"
            ) from error
        if not isinstance(features, Tensor) or not features.is_floating_point():
            kind = features.dtype if isinstance(features, Tensor) else type(features).__name__
            raise ConfigError(
                f"{self.path}: the extractor returned {kind}, expected a floating-point tensor"
            )
        if features.dim() < 2 or features.shape[0] != shape[0] or features[0].numel() == 0:
            raise ConfigError(
                f"{self.path}: the extractor turned images {shape} into "
                f"{tuple(features.shape)}, expected ({shape[0]}, F)"
            )
        if features.shape[2:].numel() != 1:
            raise ConfigError(
                f"{self.path}: the extractor returned maps {tuple(features.shape)}, "
                f"expected vectors ({shape[0]}, F)"
            )
        if not bool(torch.isfinite(features).all()):
            raise ConfigError(f"{self.path}: the extractor returned NaN or infinity")
        return features.flatten(1).to(torch.float32)

    def extract(self, images: Tensor) -> Tensor:
        """Features, float32 ``(N, F)`` on the CPU.

        Raises:
            ConfigError: the extractor fails on these images, or does not return ``(N, F)``
                finite floating-point numbers.
        """
        return _in_batches(images, self._features)


def _first_sentence(error: Exception) -> str:
    return str(error).strip().split("\n")[0].split(". ")[0]


def _last_line(error: Exception) -> str:
    """The last line of TorchScript's message: the error after its own traceback."""
    return (str(error).strip() or type(error).__name__).split("\n")[-1]
