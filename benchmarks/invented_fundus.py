"""Invented photographs of the fundus: a lit field, an optic disc, vessels and, where ill, spots.

In: how many, their side, a seed. Out: uint8 [N, S, S, 3] with grades and sides.
Not covered: anything but test data; no photograph of a person is behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from common.arrays import Pixels

GRADES = (0, 3)  # without and with spots
FINER = 2  # drawn at twice the side, then made smaller
BRANCHES = 7
SPOTS = 24
VESSEL = (112, 28, 14)
DISC = (246, 214, 140)
BRIGHT_SPOT = (236, 206, 120)
DARK_SPOT = (96, 14, 10)


@dataclass(frozen=True)
class Photographs:
    """Photographs uint8 [N, S, S, 3], the grade of each, and its side as "L" or "R"."""

    images: Pixels
    grades: tuple[int, ...]
    sides: tuple[str, ...]

    def deal(self, number: int, of: int) -> Photographs:
        """Return every `of`-th run of four photographs, so that all kinds are dealt alike."""
        kinds = len(GRADES) * 2
        rows = [row for row in range(len(self.images)) if row // kinds % of == number]
        grades = tuple(self.grades[row] for row in rows)
        return Photographs(self.images[rows], grades, tuple(self.sides[row] for row in rows))


def draw_photographs(count: int, size_px: int, seed: int) -> Photographs:
    """Return invented photographs, each grade and side as often as the others."""
    random = np.random.default_rng([256, seed])
    images: list[Pixels] = []
    grades: list[int] = []
    sides: list[str] = []
    for number in range(count):
        grades.append(GRADES[number % len(GRADES)])
        sides.append("LR"[number // len(GRADES) % 2])
        images.append(_draw(random, size_px, grades[-1], sides[-1]))
    return Photographs(np.stack(images), tuple(grades), tuple(sides))


def read_photographs(path: Path, size_px: int, count: int) -> Photographs:
    """Return the first photographs of an .npz with `images` and `labels`, at the wanted side.

    Grades are taken as two: 0, and every other. Sides are not known: they alternate.
    """
    with np.load(path, allow_pickle=False) as file:
        images, labels = file["images"][:count], file["labels"][:count]
    shape = (size_px, size_px)
    resized = [Image.fromarray(one).resize(shape, Image.Resampling.BICUBIC) for one in images]
    by_grade = sorted(range(len(images)), key=lambda row: bool(labels[row]))
    half = len(by_grade) // 2
    order = [row for pair in zip(by_grade[:half], by_grade[half:], strict=False) for row in pair]
    sides = tuple("LR"[number // 2 % 2] for number in range(len(order)))
    grades = tuple(GRADES[bool(labels[row])] for row in order)
    return Photographs(np.stack([np.asarray(resized[row]) for row in order]), grades, sides)


def write_jpegs(photographs: Photographs, folder: Path) -> list[tuple[Path, int, str]]:
    """Write each as a JPEG; return path, grade and side, as the invented hospitals take them."""
    folder.mkdir(parents=True)
    crops: list[tuple[Path, int, str]] = []
    for number, pixels in enumerate(photographs.images):
        path = folder / f"{number:04d}.jpg"
        Image.fromarray(pixels).save(path, quality=95)
        crops.append((path, photographs.grades[number], photographs.sides[number]))
    return crops


def _draw(random: np.random.Generator, size_px: int, grade: int, side: str) -> Pixels:
    """One photograph."""
    side_px = FINER * size_px
    middle = side_px / 2 * random.normal(1, 0.015, 2)
    radius = side_px * random.uniform(0.455, 0.49)
    picture = Image.fromarray(_ground(random, side_px, middle, radius))
    pencil = ImageDraw.Draw(picture)

    # the disc lies towards the nose: right of the middle in a right eye
    towards = 1 if side == "R" else -1
    disc = middle + radius * np.array(
        [towards * random.uniform(0.42, 0.55), random.normal(0, 0.06)]
    )
    for branch in range(BRANCHES):
        angle = 2 * np.pi * (branch + random.uniform(-0.3, 0.3)) / BRANCHES
        _draw_vessel(pencil, random, disc, angle, radius)
    if grade:
        _draw_spots(pencil, random, middle, radius)
    _draw_dot(pencil, disc, radius * random.uniform(0.13, 0.18), DISC)

    # soften, and black outside of the field
    soft = picture.filter(ImageFilter.GaussianBlur(FINER * 0.8)).resize(
        (size_px, size_px), Image.Resampling.LANCZOS
    )
    y, x = np.mgrid[:size_px, :size_px] + 0.5
    away = np.hypot(x - middle[0] / FINER, y - middle[1] / FINER)
    field = np.clip(radius / FINER - away, 0, 1)[..., None]
    grain = random.normal(0, 3, (size_px, size_px, 3))
    pixels: Pixels = np.rint(np.clip((np.asarray(soft) + grain) * field, 0, 255)).astype(np.uint8)
    return pixels


def _ground(
    random: np.random.Generator, side_px: int, middle: Sequence[float], radius: float
) -> Pixels:
    """The ground's colour: brighter towards one side, dark around the macula."""
    y, x = np.mgrid[:side_px, :side_px] / radius
    x, y = x - middle[0] / radius, y - middle[1] / radius
    slope = random.normal(0, 0.08, 2)
    light = 1 + slope[0] * x + slope[1] * y - 0.35 * (x**2 + y**2)
    for _ in range(6):
        place = random.uniform(-0.8, 0.8, 2)
        width = random.uniform(0.15, 0.5)
        light += random.normal(0, 0.09) * np.exp(
            -((x - place[0]) ** 2 + (y - place[1]) ** 2) / width**2
        )
    light -= 0.3 * np.exp(-(x**2 + y**2) / 0.05)
    colour = random.normal([188, 92, 34], [12, 8, 5])
    ground: Pixels = np.clip(light[..., None] * colour, 0, 255).astype(np.uint8)
    return ground


def _draw_vessel(
    pencil: ImageDraw.ImageDraw,
    random: np.random.Generator,
    start: np.ndarray,
    angle: float,
    radius: float,
    width: float = 0.035,
) -> None:
    """A vessel that winds, thins and parts until it is too thin to see."""
    place = np.array(start, float)
    while width > 0.006:
        ahead = place + 0.06 * radius * np.array([np.cos(angle), np.sin(angle)])
        ends = [tuple(place), tuple(ahead)]
        pencil.line(ends, fill=VESSEL, width=max(1, round(width * radius)))
        place, angle, width = ahead, angle + random.normal(0, 0.22), width * 0.95
        if random.random() < 0.12:
            turn = random.choice((-1, 1)) * random.uniform(0.4, 0.8)
            _draw_vessel(pencil, random, place, angle + turn, radius, 0.7 * width)


def _draw_spots(
    pencil: ImageDraw.ImageDraw, random: np.random.Generator, middle: np.ndarray, radius: float
) -> None:
    """Bright and dark spots anywhere in the field."""
    for number in range(SPOTS):
        away, angle = radius * np.sqrt(random.uniform(0, 0.7)), random.uniform(0, 2 * np.pi)
        place = middle + away * np.array([np.cos(angle), np.sin(angle)])
        colour = BRIGHT_SPOT if number % 3 else DARK_SPOT
        _draw_dot(pencil, place, radius * random.uniform(0.008, 0.03), colour)


def _draw_dot(
    pencil: ImageDraw.ImageDraw, place: np.ndarray, radius: float, colour: tuple[int, int, int]
) -> None:
    """A filled circle."""
    x, y = place
    pencil.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
