"""Invented people for tests: a folder of photographs with its table."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image


def write_people(folder: Path, count: int, seed: int, labels: tuple[str, ...]) -> Path:
    """A folder of invented photographs, each a lit field on black, with its table."""
    places = np.arange(40) - 19.5
    field = np.hypot(places[:, None], places[None, :]) < 19
    rng = np.random.default_rng(seed)
    folder.mkdir()
    rows = [("file", "label", "laterality")]
    for i in range(count):
        coarse = rng.integers(40, 255, (6, 6, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((40, 40), Image.Resampling.BICUBIC)
        pixels = np.where(field[..., None], np.maximum(picture, 20), 0).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
        rows.append((f"{i:02d}.png", labels[i % len(labels)], "LR"[i // 3 % 2]))
    with open(folder / "labels.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return folder
