"""Docstrings as MkDocs reads them: roles become links, examples become code."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|attr|mod|data|exc):`(~?)([\w.]+)`")


class Docstrings(griffe.Extension):
    """Rewrites the docstrings of all objects that are loaded."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each object, before its docstring is parsed."""
        if obj.docstring is not None:
            text = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.M)
            obj.docstring.value = ROLE.sub(_link, text)


def _link(match: re.Match[str]) -> str:
    short, name = match.groups()
    shown = name.rpartition(".")[2] if short else name
    # Without a warning where the target has no entry of its own.
    return f'<autoref identifier="{name}" optional><code>{shown}</code></autoref>'
