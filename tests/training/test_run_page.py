"""A run's page: its content, and that all text is escaped."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from fastgan.training import Callback, TrainConfig, Trainer
from fastgan.training.page import render_run

SMALL = {"nz": 4, "ngf": 4, "ndf": 4, "batch_size": 4, "n_critic": 1}


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_runs_page_shows_its_samples_curves_warnings_and_settings(tmp_path: Path) -> None:
    class Grumble(Callback):
        def on_step(self, trainer: Trainer) -> None:
            if trainer.step == 3:
                trainer.warn("<b>mode</b> collapse")

    out = tmp_path / "run"
    options = {"out": str(out), "steps": 4, "sample_every": 2, "log_every": 1, **SMALL}
    Trainer(TrainConfig(model="wgan-gp", **options), callbacks=[Grumble()]).run()
    page = Page((out / "index.html").read_text())
    images = [attrs["src"] for tag, attrs in page.found if tag == "img"]
    assert images == ["samples-0000004.png", "samples-0000002.png"]
    assert all((out / name).exists() for name in images)
    lines = [attrs["points"] for tag, attrs in page.found if tag == "polyline"]
    # Losses, estimate, penalty, gradient and diversity, rates: of every step but diversity's.
    assert sorted(len(points.split()) for points in lines) == [2, 4, 4, 4, 4, 4, 4, 4]
    for text in ("4 of 4 steps", "step 3: <b>mode</b> collapse", "gp_weight", "10.0"):
        assert text in page.text, text
    assert (out / "warnings.txt").read_text() == "step 3: <b>mode</b> collapse\n"
    # A page alone: nothing is fetched, nothing runs.
    assert not {"script", "link", "b"} & {tag for tag, _ in page.found}


def test_names_on_a_page_are_text_and_no_numbers_are_no_curve(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\x1b[2J"
    (tmp_path / "metrics.csv").write_text("step,images,loss_d,loss_g\n1,4,nan,\n2,8,,inf\n")
    (tmp_path / "samples-of-mine.png").touch()  # no grid of the run's
    text = render_run(tmp_path, evil, {"data": evil, "steps": 3, "lr": None})
    assert "of-mine" not in text
    page = Page(text)
    assert "script" not in {tag for tag, _ in page.found}
    assert "\x1b" not in text
    assert "polyline" not in {tag for tag, _ in page.found}
    assert "No warnings." in page.text
    assert "2 of 3 steps" in page.text
