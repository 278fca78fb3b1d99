"""The ops of StyleGAN-like code, under the names that it imports.

    import fastgan.compat.torch_utils_ops as ops
    ops.install("torch_utils.ops")        # before the code that uses them is imported

Then ``from torch_utils.ops import upfirdn2d`` and so on import this package's modules:
``bias_act``, ``upfirdn2d``, ``filtered_lrelu``, ``conv2d_gradfix``, ``conv2d_resample``,
``grid_sample_gradfix`` and ``fma``. :func:`install_op` is for code with ``FusedLeakyReLU``,
``fused_leaky_relu`` and ``upfirdn2d`` in a package ``op``. Nothing is compiled, downloaded or
written. The ops run on CPUs and GPUs, in both memory formats, are differentiable to any order, and
work with ``torch.compile``, ``torch.export`` and ``torch.onnx.export``.

Names, arguments and meaning are those that such code uses; the operations are from Karras et al.
2018 to 2021, arXiv 1812.04948, 1912.04958, 2006.06676 and 2106.12423.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from fastgan.compat.torch_utils_ops import (
    bias_act,
    conv2d_gradfix,
    conv2d_resample,
    filtered_lrelu,
    fma,
    fused_act,
    grid_sample_gradfix,
    upfirdn2d,
    upfirdn2d_by_kernel,
)
from fastgan.errors import ConfigError

__all__ = [
    "bias_act",
    "conv2d_gradfix",
    "conv2d_resample",
    "filtered_lrelu",
    "fma",
    "grid_sample_gradfix",
    "install",
    "install_op",
    "uninstall",
    "upfirdn2d",
]

_TORCH_UTILS: Mapping[str, ModuleType] = {
    "bias_act": bias_act,
    "conv2d_gradfix": conv2d_gradfix,
    "conv2d_resample": conv2d_resample,
    "filtered_lrelu": filtered_lrelu,
    "fma": fma,
    "grid_sample_gradfix": grid_sample_gradfix,
    "upfirdn2d": upfirdn2d,
}
_OP: Mapping[str, ModuleType] = {
    "conv2d_gradfix": conv2d_gradfix,
    "fused_act": fused_act,
    "upfirdn2d": upfirdn2d_by_kernel,
}

#: Entries of ``sys.modules`` made by this module.
_installed: dict[str, ModuleType] = {}
#: Attributes set on installed packages' parents.
_attributes: list[tuple[ModuleType, str]] = []


def install(name: str = "torch_utils.ops") -> None:
    """Makes ``import name``, ``import name.bias_act`` and so on import this package's modules.

    A folder of that name keeps its other modules, and its parent package is unchanged; missing
    parents are made. Installing twice has no further effect.

    Args:
        name: the package's dotted name, as it is imported.

    Raises:
        ImportError: modules of these names were imported already; the message names them.
        ConfigError: ``name`` isn't a dotted name (a ValueError).

    Example:
        >>> install("my_gan.torch_utils.ops")
        >>> from my_gan.torch_utils.ops import bias_act
        >>> bias_act.activation_funcs["lrelu"].def_alpha
        0.2
        >>> uninstall()
    """
    _install(name, _TORCH_UTILS, {})


def install_op(name: str = "op") -> None:
    """As :func:`install`, for the modules ``fused_act``, ``upfirdn2d`` and ``conv2d_gradfix``.

    The package also has ``FusedLeakyReLU``, ``fused_leaky_relu`` and the function ``upfirdn2d``.

    Args:
        name: the package's dotted name, as it is imported.

    Raises:
        ImportError: as :func:`install`.
        ConfigError: as :func:`install`.

    Example:
        >>> install_op("my_gan.op")
        >>> from my_gan.op import FusedLeakyReLU, upfirdn2d
        >>> FusedLeakyReLU(4).bias.shape
        torch.Size([4])
        >>> uninstall()
    """
    functions = {
        "FusedLeakyReLU": fused_act.FusedLeakyReLU,
        "fused_leaky_relu": fused_act.fused_leaky_relu,
        "upfirdn2d": upfirdn2d_by_kernel.upfirdn2d,
    }
    _install(name, _OP, functions)


def uninstall() -> None:
    """Undoes every installation; modules that code has imported already stay usable.

    Example:
        >>> install("my_gan.ops")
        >>> uninstall()
        >>> import my_gan.ops
        Traceback (most recent call last):
        ModuleNotFoundError: No module named 'my_gan'
    """
    for name, module in _installed.items():
        if sys.modules.get(name) is module:
            del sys.modules[name]
    for parent, attribute in _attributes:
        vars(parent).pop(attribute, None)
    _installed.clear()
    _attributes.clear()


def _install(name: str, modules: Mapping[str, ModuleType], functions: Mapping[str, Any]) -> None:
    if not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(f"name is {name!r}; expected a dotted name such as 'torch_utils.ops'")
    wanted = {f"{name}.{short}": module for short, module in modules.items()}
    wanted[name] = _installed.get(name) or _package(name, _folders(name))
    taken = [name for name in wanted if sys.modules.get(name, wanted[name]) is not wanted[name]]
    if taken:
        raise ImportError(
            f"{', '.join(sorted(taken))}: imported already; install {name!r} before the code that "
            "uses it is imported"
        )
    vars(wanted[name]).update(modules, **functions)
    sys.modules.update(wanted)
    _installed.update(wanted)
    try:
        _give_to_parent(name)
    except BaseException:
        uninstall()
        raise


def _give_to_parent(name: str) -> None:
    """Sets a package as an attribute of its parent, which is imported, or made if missing."""
    parent, _, short = name.rpartition(".")
    if not parent:
        return
    try:
        module = importlib.import_module(parent)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{parent}.".startswith(f"{error.name}."):
            raise
        module = _package(parent, [])
        sys.modules[parent] = _installed[parent] = module
        _give_to_parent(parent)
    setattr(module, short, sys.modules[name])
    _attributes.append((module, short))


def _package(name: str, folders: list[str]) -> ModuleType:
    package = ModuleType(name, f"Installed by {__name__}.")
    package.__path__ = folders
    package.__spec__ = ModuleSpec(name, None, is_package=True)
    package.__spec__.submodule_search_locations = folders
    return package


def _folders(name: str) -> list[str]:
    """A package's folders, found without importing its parents."""
    folders = sys.path
    for part in name.split("."):
        inner = [os.path.join(folder, part) for folder in folders]
        folders = [folder for folder in inner if os.path.isdir(folder)]
    return folders
