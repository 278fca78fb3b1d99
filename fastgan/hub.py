"""Trained generators on the Hugging Face Hub, or in a folder of its format.

A folder holds ``model.safetensors``, ``config.json`` (the generator's settings) and a model card.
Needs the extra ``fastgan[hub]``; :class:`fastgan.trained.TrainedGenerator` has the methods.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelHubMixin, hf_hub_download

from fastgan._util.files import atomic_write
from fastgan.exporting import description, export_generator
from fastgan.trained import PRETRAINED, TrainedGenerator, load_generator

__all__ = ["Pretrained"]


class Pretrained(  # type: ignore[call-arg, unused-ignore]
    ModelHubMixin,  # type: ignore[misc, unused-ignore]
    library_name="fastgan",
    tags=["gan", "unconditional-image-generation"],
):
    """A generator with huggingface_hub's ``save_pretrained`` and the like.

    Args:
        generator: the generator.
    """

    def __init__(self, generator: TrainedGenerator) -> None:
        self.generator = generator

    def _save_pretrained(self, save_directory: Path) -> None:
        export_generator(self.generator, save_directory / PRETRAINED, format="safetensors")
        with atomic_write(save_directory / "config.json") as file:
            file.write(json.dumps(description(self.generator), indent=2).encode())

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> Pretrained:
        if Path(model_id).is_dir():
            return cls(load_generator(model_id))
        known = ("revision", "cache_dir", "force_download", "local_files_only", "token")
        options = {name: options[name] for name in known if name in options}
        return cls(load_generator(hf_hub_download(model_id, PRETRAINED, **options)))
