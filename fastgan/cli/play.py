"""``fastgan play``: a local web page to explore a generator's images."""

from __future__ import annotations

import argparse
import os
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

from fastgan._util.devices import choose_device
from fastgan._util.extras import require
from fastgan.cli.terminal import say
from fastgan.errors import ConfigError, printable
from fastgan.models import StyleGAN2Generator
from fastgan.sampling.images import enlarge, to_bytes
from fastgan.trained import TrainedGenerator, load_generator

#: Images in the strip from one seed to the other.
STRIP = 9
#: Sides of the large image and of one in the strip, in pixels, at least.
LARGE, SMALL = 384, 96
LARGEST_SEED = 2**31 - 1

Picture = npt.NDArray[np.uint8]


def run(options: argparse.Namespace) -> int:
    """Serves the page until Ctrl-C; returns 0."""
    require("gradio", "play")
    device = choose_device(options.device)
    generator = load_generator(options.checkpoint, ema=not options.no_ema).to(device)
    blocks, looks = page(generator)
    try:
        _, address, _ = blocks.launch(
            server_name="127.0.0.1",
            server_port=options.port,
            share=False,
            quiet=True,
            ssr_mode=False,
            prevent_thread_lock=True,
            footer_links=[],
            **looks,
        )
    except OSError as error:
        raise ConfigError(f"port: {options.port or 'each that was tried'} is taken") from error
    say(f"{generator.path}: open {address} in a browser of this machine; Ctrl-C ends it")
    try:
        blocks.block_thread()
    finally:
        blocks.close(verbose=False)
    return 0


def draw(
    generator: TrainedGenerator,
    first: int,
    second: int,
    place: float,
    truncation: float | None = None,
    label: int = 0,
) -> tuple[Picture, Picture]:
    """The page's picture, enlarged.

    Args:
        generator: the generator.
        first: the seed at the start.
        second: the seed at the end.
        place: from 0, the start, to 1, the end.
        truncation: as of :meth:`TrainedGenerator.sample`.
        label: the class, of a conditional generator.

    Returns:
        uint8 (height, width, 3): the image at ``place``, and a strip from start to end.
    """
    places = [place, *np.linspace(0, 1, STRIP).tolist()]
    images = generator.between(first, second, places, truncation=truncation, classes=label)
    pixels = to_bytes(images)
    pixels = np.broadcast_to(pixels, (*pixels.shape[:3], 3))  # Gradio takes no grey channel
    return enlarge(pixels[:1], None, LARGE)[0], np.hstack(list(enlarge(pixels[1:], None, SMALL)))


def page(generator: TrainedGenerator) -> tuple[Any, dict[str, Any]]:
    """The page and its launch options: ``gradio.Blocks`` and a dictionary.

    Nothing is sent anywhere: Gradio's statistics are off, and its fonts are the system's.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio

    # Normal noise rarely exceeds 3; uniform noise and styles end at 1.
    styles = isinstance(generator.module, StyleGAN2Generator)
    limit = 1.0 if styles or generator.config.noise == "uniform" else 3.0
    title = f"{generator.config.model} on {printable(generator.data.name)}, {generator.step} steps"
    with gradio.Blocks(title=title, analytics_enabled=False, delete_cache=(600, 600)) as blocks:
        gradio.HTML(f"<h3>{escape(title)}</h3>", padding=False, elem_classes="title")
        with gradio.Row():
            with gradio.Column(min_width=320):
                image, strip = (
                    gradio.Image(
                        picture, label=label, show_label=False, alt_text=label, height=height,
                        format="png", buttons=["download"], elem_classes="pixels",
                    )
                    for picture, label, height in zip(
                        draw(generator, 0, 1, 0.0), ("the image", "the way"), (LARGE, SMALL),
                        strict=True,
                    )
                )  # fmt: skip
            with gradio.Column(min_width=320):
                place = gradio.Slider(0, 1, 0, step=0.01, label="from one seed to the other")
                with gradio.Row():
                    first, second = (
                        gradio.Number(
                            seed, label=label, precision=0, minimum=0, maximum=LARGEST_SEED,
                            min_width=120,
                        )
                        for seed, label in enumerate(("seed at the start", "seed at the end"))
                    )  # fmt: skip
                inputs = [first, second, place]
                inputs.append(
                    gradio.Slider(
                        0.1, limit, limit, step=0.05, label=f"truncation ({limit:g} is none)"
                    )
                )
                if generator.num_classes is not None:
                    names = [generator.data.class_name(k) for k in range(generator.num_classes)]
                    choices = [(name, number) for number, name in enumerate(names)]
                    inputs.append(gradio.Dropdown(choices, value=0, label="class"))
                another = gradio.Button("other seeds")

        def show(
            first: int | None, second: int | None, place: float, truncation: float, label: int = 0
        ) -> tuple[Picture, Picture]:
            # An emptied field is 0.
            seeds = int(first or 0), int(second or 0)
            bound = None if truncation >= limit else truncation
            return draw(generator, *seeds, place, bound, label)

        gradio.on(
            [input.change for input in inputs], show, inputs, [image, strip],
            show_progress="hidden", trigger_mode="always_last", api_name="draw",
        )  # fmt: skip
        another.click(
            lambda: tuple(np.random.default_rng().integers(LARGEST_SEED, size=2).tolist()),
            None,
            [first, second],
        )
    # Gradio pads a title though told not to, and cuts as much off the end of a long word.
    css = ".title * { padding: 0; overflow-wrap: anywhere; }"
    css += " .pixels img { image-rendering: pixelated; } footer { display: none !important; }"
    font, mono = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    return blocks, {"theme": gradio.themes.Default(font=font, font_mono=mono), "css": css}
