"""Pictures of the chest results: AUC against epsilon, and a strip of releases at each epsilon.

In: numbers and uint8 images. Out: a PNG. Guarantees: the same input gives the same picture.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from common.storage.files import atomic_write

WIDTH = 760
HEIGHT = 420
MARGIN = 48
LEGEND = 250
COLOURS = ("#1f5fa8", "#c0392b", "#2e8b57", "#8e44ad", "#d68910", "#117a8b", "#7b5a3a", "#555555")
ZOOM = 3
GAP = 4
HEAD = 26


def curves(
    path: Path,
    title: str,
    lines: Mapping[str, Sequence[tuple[float, float]]],
    levels: Mapping[str, float],
    lowest: float = 0.4,
) -> None:
    """Draw AUC (from `lowest` to 1) over log2 epsilon: `lines` of (epsilon, AUC), `levels` that
    have no epsilon, dashed.
    """
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    every = [e for points in lines.values() for e, _ in points]
    low = math.log2(min(every))
    high = math.log2(max(every))
    right = WIDTH - LEGEND
    bottom = HEIGHT - MARGIN

    def place(epsilon: float, auc: float) -> tuple[float, float]:
        x = MARGIN + (math.log2(epsilon) - low) / max(high - low, 1e-9) * (right - MARGIN - 12)
        return x, bottom - (min(max(auc, lowest), 1.0) - lowest) / (1 - lowest) * (bottom - MARGIN)

    draw.text((MARGIN, 12), title, fill="black")
    for auc in np.arange(lowest, 1.001, 0.1):
        y = place(2**low, float(auc))[1]
        draw.line([(MARGIN, y), (right, y)], fill="#e4e4e4")
        draw.text((14, y - 6), f"{auc:.1f}", fill="black")
    for epsilon in sorted(set(every)):
        x = place(epsilon, lowest)[0]
        draw.line([(x, MARGIN), (x, bottom)], fill="#e4e4e4")
        draw.text((x - 8, bottom + 6), f"{epsilon:g}", fill="black")
    draw.text(
        (MARGIN, bottom + 24),
        "epsilon per patient (per coordinate, where the legend says so)",
        fill="black",
    )
    for i, (name, points) in enumerate(lines.items()):
        colour = COLOURS[i % len(COLOURS)]
        spots = [place(*point) for point in sorted(points)]
        draw.line(spots, fill=colour, width=3)
        for x, y in spots:
            draw.ellipse([x - 4, y - 4, x + 4, y + 4], fill=colour)
        draw.line([(right + 10, 60 + 20 * i), (right + 30, 60 + 20 * i)], fill=colour, width=3)
        draw.text((right + 36, 54 + 20 * i), name, fill="black")
    for i, (name, auc) in enumerate(levels.items(), start=len(lines)):
        colour = COLOURS[i % len(COLOURS)]
        y = place(2**low, auc)[1]
        for x in range(MARGIN, right, 12):
            draw.line([(x, y), (x + 6, y)], fill=colour, width=2)
        draw.line([(right + 10, 60 + 20 * i), (right + 18, 60 + 20 * i)], fill=colour, width=2)
        draw.text((right + 36, 54 + 20 * i), f"{name} ({auc:.2f})", fill="black")
    _write(picture, path)


def strip(path: Path, columns: Mapping[str, NDArray[np.uint8]]) -> None:
    """Draw uint8 [R, S, S, 1] images side by side, one column a name (two lines at most, split at
    `|`).
    """
    size = next(iter(columns.values())).shape[1] * ZOOM
    rows = max(len(images) for images in columns.values())
    step = max(size, 84) + GAP
    picture = Image.new("RGB", (len(columns) * step + GAP, HEAD + rows * (size + GAP)), "white")
    draw = ImageDraw.Draw(picture)
    for c, (name, images) in enumerate(columns.items()):
        for line, words in enumerate(name.split("|")):
            draw.text((GAP + c * step, 1 + 12 * line), words.strip(), fill="black")
        for r, image in enumerate(images):
            big = Image.fromarray(image[..., 0]).resize((size, size), Image.Resampling.NEAREST)
            picture.paste(big, (GAP + c * step, HEAD + r * (size + GAP)))
    _write(picture, path)


def _write(picture: Image.Image, path: Path) -> None:
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, stream.getvalue())
