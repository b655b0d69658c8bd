"""The files of the repository's packages, without what an installer leaves beside them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]


def package_files(package: str, pattern: str) -> Iterator[Path]:
    """Yield a package's files of the pattern, sorted; a `build` folder holds copies, not sources.

    Installing from a checkout makes `kohort/build/lib`, which git ignores.
    """
    for path in sorted((ROOT / package).rglob(pattern)):
        if "build" not in path.relative_to(ROOT).parts:
            yield path
