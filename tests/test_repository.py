"""The repository's metadata for services agrees with the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import fastgan

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def text_of(name: str) -> str:
    return (ROOT / name).read_text()


def jobs(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text())["jobs"]
    return found


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_run_what_is_there(path: Path) -> None:
    extras = set(re.findall(r"^(\w+) = \[", text_of("pyproject.toml"), flags=re.M))
    for job in jobs(path).values():
        steps = job["steps"]
        assert all(("run" in step) != ("uses" in step) for step in steps)
        commands = "\n".join(step.get("run", "") for step in steps)
        for script in re.findall(r"^(\.\S+)$", commands, flags=re.M):
            assert (ROOT / script).exists(), script
        for target in re.findall(r"\bmake ([a-z-]+)", commands):
            assert re.search(rf"^{target}:", text_of("Makefile"), flags=re.M), target
        for named in re.findall(r"\.\[([\w,]+)\]", commands):
            assert set(named.split(",")) <= extras


def test_the_suite_runs_on_the_oldest_and_the_newest_versions() -> None:
    versions = jobs(ROOT / ".github" / "workflows" / "tests.yml")["versions"]
    pairs = versions["strategy"]["matrix"]["include"]
    pythons, torches = ({each[name] for each in pairs} for name in ("python", "torch"))
    assert pythons == {f"3.{minor}" for minor in range(10, 15)}
    assert {"2.10", "2.11", "2.13", "2.14"} == torches
    assert 'requires-python = ">=3.10"' in text_of("pyproject.toml")
    assert f'TORCH_TARGET = "{min(torches, key=lambda v: int(v[2:]))}"' in text_of(
        "native_build.py"
    )


def test_no_page_has_both_sides_of_a_merge() -> None:
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")):
        assert not re.search(r"^(<{7}|>{7}) ", page.read_text(), flags=re.M), page.name


def test_one_version_is_named_everywhere() -> None:
    assert yaml.safe_load(text_of("CITATION.cff"))["version"] == fastgan.__version__


def test_wheels_have_code_for_the_same_gpus_wherever_they_are_built() -> None:
    (asked,) = re.findall(r"^WHEEL_ARCHS := (.*)$", text_of("Makefile"), flags=re.M)
    assert f'FASTGAN_CUDA_ARCHS = "{asked}"' in text_of("pyproject.toml")


@pytest.mark.parametrize("name", ["bug", "slow"])
def test_forms_of_issues_ask_for_what_doctor_prints(name: str) -> None:
    form = yaml.safe_load(text_of(f".github/ISSUE_TEMPLATE/{name}.yml"))
    assert {"name", "description", "body"} <= form.keys()
    assert any("fastgan doctor" in part["attributes"]["label"] for part in form["body"])


def sources() -> Iterator[ast.AST]:
    for path in sorted((ROOT / "fastgan").rglob("*.py")):
        yield from ast.walk(ast.parse(path.read_text(), str(path)))


def test_the_page_of_messages_has_every_error_and_every_warning() -> None:
    page = text_of("docs/messages.md")
    kinds = {
        node.name
        for node in sources()
        if isinstance(node, ast.ClassDef) and re.search(r"^[A-Z].*(Error|Warning)$", node.name)
    }
    assert len(kinds) > 12
    assert kinds == set(re.findall(r"^::: .*\.(\w+)$", page, flags=re.M))
    texts = []
    for node in sources():
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("warn_once", ".warn")):
            parts = [
                each.value for each in ast.walk(node.args[0]) if isinstance(each, ast.Constant)
            ]
            if parts:  # no text that another place composed
                texts.append([str(part) for part in parts])
    assert len(texts) > 15
    for parts in texts:
        clauses = [each.strip() for part in parts for each in re.split("[,;:]", part)]
        assert any(len(each) >= 6 and each in page for each in clauses), parts
