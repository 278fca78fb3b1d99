"""Defines ``torch.ops.fastgan`` when fastgan and torch are both imported, in whichever order.

``import fastgan`` doesn't import torch, which takes over a second that ``fastgan --help`` needn't
wait for. Programs that use ``torch.ops.fastgan`` import both packages but no module of fastgan's:
the ops are defined at the second of the two imports.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["NEEDED_WHOLE", "define_ops"]

#: Modules that import torch and that the ops import. One which is the first to import torch is not
#: whole yet; the ops are then defined by the next of our modules that needs them.
NEEDED_WHOLE = ("fastgan.activations",)


def define_ops() -> None:
    """Defines the ops now if torch is imported, else right after its import."""
    if "torch" in sys.modules:
        importlib.import_module("fastgan.ops")
    else:
        sys.meta_path.insert(0, _TorchFinder())


class _TorchFinder(MetaPathFinder):
    """Finds torch as without it, and adds a step to its loader."""

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
                if not any(each in sys.modules for each in NEEDED_WHOLE):
                    importlib.import_module("fastgan.ops")

            loader.__dict__["exec_module"] = load_and_define
        return spec
