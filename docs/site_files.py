"""MkDocs' hooks: pages and files that lie outside of docs/."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

#: Warnings end a strict build.
LOG = logging.getLogger("mkdocs.hooks.site_files")
ROOT = Path(__file__).parents[1]
#: Page of the site -> file in the repository.
PAGES = {"index.md": "README.md"} | {
    name: name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
}
#: The text of a link, its target within the repository, and the place in it.
LINK = re.compile(r"\[([^\[\]]*)\]\((?!\w+:|#)([^)#]+)(#[^)]*)?\)")


def on_files(files: Files, *, config: Any) -> Files:
    """Adds the pages, and every file that a page links to."""
    for page, source in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    linked = set()
    for file in files.documentation_pages():
        for _, target, _ in LINK.findall(file.content_string):
            linked.add((Path(file.abs_src_path).parent / target).resolve())
    for path in sorted(linked):
        name = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else ""
        outside = path.is_file() and not path.is_relative_to(ROOT / "docs")
        if outside and name not in PAGES.values():
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Turns links between files of the repository into links between files of the site."""
    folder = Path(page.file.abs_src_path).parent
    pages = {source: name for name, source in PAGES.items()}

    def moved(match: re.Match[str]) -> str:
        text, target, anchor = match.groups(default="")
        path = (folder / target).resolve()
        if path.is_dir():  # a site has no listing of folders
            return text
        if not path.exists():  # no link, or a broken one, which MkDocs names
            return match[0]
        name = str(path.relative_to(ROOT)).removeprefix("docs/")
        name = pages.get(name, name)
        file = files.get_file_from_path(name)
        if file is None or file.inclusion.is_excluded():
            LOG.warning("%s: a link to %s, which exclude_docs leaves out", page.file.src_uri, name)
        up = "../" * page.file.src_uri.count("/")
        return f"[{text}]({up}{name}{anchor})"

    return LINK.sub(moved, markdown)
