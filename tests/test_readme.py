"""The README's and docs' code runs, and their figures are the committed ones."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, flags=re.S))
def test_code_blocks_run(block: str) -> None:
    exec(compile(block, "README.md", "exec"), {})


def test_demo_figures_are_those_of_the_committed_run() -> None:
    figures = json.loads((ROOT / "benchmarks/results/demo-cpu.json").read_text())
    evaluation = figures["evaluation"]
    table = README.split("<!-- table: demo -->")[1].split("<!-- end of table -->")[0]
    shown = [row.split("|")[2].strip() for row in table.strip().splitlines()[2:]]
    assert shown == [
        f"{figures['training_seconds']:.0f} s",
        f"{evaluation['confidence_ratio']:.3f}",
        f"{evaluation['coverage']:.2f}",
        f"{evaluation['frechet_distance']:.1f}; {evaluation['frechet_distance_real']:.1f}",
        f"{100 * min(evaluation['class_histogram']):.1f}%",
        f"{100 * evaluation['classifier_accuracy']:.1f}%",
    ]


def test_every_link_into_the_repository_leads_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_make_target_in_the_readme_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([a-z-]+)", README, flags=re.M):
        assert re.search(rf"^{target}:", makefile, flags=re.M)
