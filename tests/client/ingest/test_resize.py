"""client/ingest/resize.py: strips give what the whole picture gives; reducing changes little."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from client.ingest import resize as module
from client.ingest.resize import GAP, resize
from tests import phantoms


def whole(pixels: np.ndarray, height: int, width: int, gap: float | None) -> np.ndarray:
    """What Pillow makes of the whole picture."""
    picture = Image.fromarray(pixels.squeeze())
    size = (width, height)
    found = picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=gap)
    return np.asarray(found).reshape(height, width, pixels.shape[2])


@pytest.mark.parametrize("strip_pixels", [1, 5000, 1 << 20])
@pytest.mark.parametrize("channels", [1, 3])
def test_strips_are_reduced_as_the_whole_picture_is(
    strip_pixels: int, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STRIP_PIXELS", strip_pixels)
    rng = np.random.default_rng(channels)
    for height, width in ((128, 128), (90, 131), (257, 401), (640, 480), (701, 33), (9, 800)):
        pixels = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
        for size in ((32, 32), (13, 20), (40, 7)):
            assert np.array_equal(resize(pixels, *size), whole(pixels, *size, GAP))


def test_a_part_of_a_picture_is_resized_as_its_copy_is() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    part = pixels[10:290, 33:301]
    assert np.array_equal(resize(part, 20, 19), resize(part.copy(), 20, 19))


def test_blocks_are_not_seen_in_the_result() -> None:
    """A photograph twelve times too large differs by at most three grey levels."""
    photograph = phantoms.fundus(1, 128)
    large = np.asarray(Image.fromarray(photograph).resize((1536, 1536), Image.Resampling.BICUBIC))
    plain, reduced = (whole(large, 128, 128, gap).astype(int) for gap in (None, GAP))
    difference = np.abs(plain - reduced)
    assert difference.any()
    assert difference.max() <= 3 and difference.mean() < 0.5
