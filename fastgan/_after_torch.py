"""Defines ``torch.ops.fastgan`` when fastgan and torch are both imported, in whichever order.

``import fastgan`` doesn't import torch, which takes over a second. Programs that use
``torch.ops.fastgan`` may import only the two packages: the second of these imports defines the ops.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

#: Modules that import torch and that the ops import. If one of them is the first to import torch,
#: it is incomplete, and the next module that needs the ops defines them.
NEEDED_WHOLE = ("fastgan.activations",)


def define_ops() -> None:
    """Defines the ops now if torch is imported, otherwise right after its import."""
    if "torch" in sys.modules:
        importlib.import_module("fastgan.ops")
    else:
        sys.meta_path.insert(0, _TorchFinder())


class _TorchFinder(MetaPathFinder):
    """Finds torch as usual, and adds a step to its loader."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Torch's own spec; None for every other module."""
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            loader = spec.loader
            load = loader.exec_module

            def load_and_define(module: ModuleType) -> None:
                del loader.__dict__["exec_module"]
                load(module)
                if not any(name in sys.modules for name in NEEDED_WHOLE):
                    importlib.import_module("fastgan.ops")

            loader.__dict__["exec_module"] = load_and_define
        return spec
