"""A digest of the native sources, read by the build and the package."""

from __future__ import annotations

import hashlib
from pathlib import Path


def sources_digest(root: Path) -> str | None:
    """SHA-256 of all names and contents in ``csrc``; None where it is missing.

    A checkout has it, and notices by it that its compiled part is of other sources. An installed
    package doesn't.
    """
    if not (root / "csrc" / "ops.cpp").exists():
        return None
    digest = hashlib.sha256()
    for path in sorted((root / "csrc").rglob("*.*")):
        if path.suffix in (".cpp", ".cu", ".h"):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()
