"""Takes the pictures of the review desk for the guides: `python -m tests.desk_screens`.

Every image in them is invented here; nobody's photograph is in one.
"""

from __future__ import annotations

import io
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.state.folder import State
from common.arrays import Images
from tests import shown_batches
from tests.client.desk.conftest import PLACE, Visitor, listening, visit, wait_for_people
from tests.sites import Hospital
from tests.webdriver import Chromium, chromium

FIGURES = Path(__file__).parents[1] / "docs" / "figures"
SIZE_PX = 128
COLOURS = 80  # of a figure: pages have few, and small files load fast


@dataclass
class Figure:
    """One picture: its name, the page, the size of the window."""

    name: str
    path: str
    width: int
    height: int


def eye(seed: int, size: int = SIZE_PX) -> Images:
    """An invented picture of the back of an eye: a disc, its bright spot, and vessels."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size - 0.5
    shade = np.clip(1.15 - 1.7 * (x**2 + y**2), 0, 1)[..., None]
    tint = np.array([196, 92, 44]) * rng.uniform(0.85, 1.1, 3)
    image = shade * tint
    spot = np.array([0.22 + rng.normal(0, 0.015), rng.normal(0, 0.02)])
    image += np.exp(-((x - spot[0]) ** 2 + (y - spot[1]) ** 2) / 0.004)[..., None] * [70, 95, 60]
    image -= np.exp(-((x + 0.16) ** 2 + y**2) / 0.006)[..., None] * [60, 35, 15]
    for start in (0.9, 2.0, 3.0, 3.9, 5.1):
        image = _vessel(image, spot, start + rng.normal(0, 0.2), rng)
    outside = x**2 + y**2 > 0.235
    image[outside] = 12
    return np.clip(image + rng.normal(0, 2, image.shape), 0, 255).astype(np.uint8)


def _vessel(
    image: np.ndarray, spot: np.ndarray, angle: float, rng: np.random.Generator
) -> np.ndarray:
    """The image with one dark, bent line from the spot."""
    size = len(image)
    place = spot.copy()
    line = np.zeros((size, size))
    for step in range(160):
        angle += rng.normal(0, 0.06) + (0.01 if np.sin(angle) > 0 else -0.01)
        place = place + 0.005 * np.array([np.cos(angle), np.sin(angle)])
        column, row = ((place + 0.5) * size).astype(int)
        if not (0 <= row < size and 0 <= column < size):
            break
        reach = 1 if step < 90 else 0
        line[max(row - reach, 0) : row + reach + 1, max(column - reach, 0) : column + 1] = 1
    return image * (1 - 0.38 * line[..., None])


def hospital(root: Path, patch: pytest.MonkeyPatch) -> Hospital:
    """A hospital of forty invented eyes, whose averages wait for two persons."""
    found = shown_batches.showing_hospital(
        root, patch, intake__size_px=SIZE_PX, synthesis__privatize=None
    )
    images = np.stack([eye(seed) for seed in range(shown_batches.PATIENTS)])
    np.save(State(found.root).cohort(found.study.intake) / "images.npy", images)
    wait_for_people(found, reviewers=2)
    return found


def take(browser: Chromium, visitor: Visitor, figure: Figure) -> bytes:
    """Return one picture as a small PNG."""
    browser.resize(figure.width, figure.height)
    browser.open(f"http://127.0.0.1:{visitor.desk.address.port}{PLACE}{figure.path}")
    assert browser.evaluate("return [...document.images].every(image => image.naturalWidth > 0)")
    picture = Image.open(io.BytesIO(browser.screenshot())).convert("RGB")
    stream = io.BytesIO()
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def main(folder: Path = FIGURES) -> None:
    """Write the figures."""
    with tempfile.TemporaryDirectory(dir="/tmp") as root, pytest.MonkeyPatch.context() as patch:
        visitor = visit(hospital(Path(root), patch), reviewers=2)
        digest = visitor.reviews.find("").digest
        with listening(visitor) as origin, chromium() as browser:
            browser.open(f"{origin}{PLACE}/open?token={visitor.desk.sessions.new_link()}")
            session = next(iter(visitor.desk.sessions._sessions.values()))
            session.marks[digest] = {3, 6}
            for figure in (
                Figure("desk-batch", f"/batches/{digest}", 1180, 960),
                Figure("desk-decision", f"/batches/{digest}/decision", 1000, 860),
                Figure("desk-narrow", f"/batches/{digest}", 390, 900),
            ):
                (folder / f"{figure.name}.png").write_bytes(take(browser, visitor, figure))


if __name__ == "__main__":
    main()
