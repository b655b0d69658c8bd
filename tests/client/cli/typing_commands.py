"""What the tests of the commands share: how a command is typed, and a folder of photographs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from tests import phantoms

Cli = Callable[..., tuple[int, str, str]]


def photographs(folder: Path) -> Path:
    """Twelve invented people with one photograph each, and their labels file."""
    folder.mkdir()
    rows = ["file,patient,label,laterality"]
    for i in range(12):
        Image.fromarray(phantoms.fundus(i, 64)).save(folder / f"{i}.png")
        rows.append(f"{i}.png,P{i},{'none' if i < 6 else 'severe'},R")
    labels = folder.parent / "labels.csv"
    labels.write_text("\n".join(rows) + "\n")
    return labels
