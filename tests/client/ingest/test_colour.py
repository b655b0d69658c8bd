"""client/ingest/colour.py: what is grey, or of one plane, is no colour photograph."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from client.ingest.colour import check_colour
from client.ingest.decode_child import read_file
from client.ingest.quarantine import Reason, Unusable
from client.ingest.request import Settings
from tests import phantoms

SIDE = 64


def is_refused(square: NDArray[np.uint8]) -> bool:
    """Whether a picture is refused, and as one of wrong channels."""
    try:
        check_colour(square)
    except Unusable as refusal:
        return refusal.reason is Reason.WRONG_CHANNELS
    return False


def grey() -> NDArray[np.uint8]:
    """Three equal planes of a photograph."""
    return np.repeat(phantoms.fundus(1, SIDE)[..., :1], 3, axis=2)


def through_jpeg(square: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    buffer = io.BytesIO()
    Image.fromarray(square).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))


def test_equal_planes_are_refused_also_after_a_codec_and_noise() -> None:
    assert is_refused(grey())
    assert is_refused(through_jpeg(grey(), 30))
    noise = np.random.default_rng(0).normal(0, 4, grey().shape)
    assert is_refused(np.clip(grey() + noise, 0, 255).astype(np.uint8))
    # a small coloured mark makes no photograph
    marked = grey()
    marked[:4, :4] = (255, 255, 0)
    assert is_refused(marked)


@pytest.mark.parametrize("plane", [0, 1, 2])
def test_one_plane_alone_is_refused(plane: int) -> None:
    single = np.zeros((SIDE, SIDE, 3), np.uint8)
    single[..., plane] = grey()[..., 0]
    assert is_refused(single)
    assert is_refused(through_jpeg(single, 60))


def test_pale_dark_and_red_photographs_are_taken() -> None:
    photograph = phantoms.fundus(2, SIDE).astype(float)
    assert not is_refused(photograph.astype(np.uint8))
    # nine tenths of the colour taken out, a quarter of the light, a second plane of a quarter
    pale = photograph + 0.85 * (photograph.max(axis=2, keepdims=True) - photograph)
    assert not is_refused(pale.astype(np.uint8))
    assert not is_refused((photograph / 4).astype(np.uint8))
    assert not is_refused((photograph * (1, 0.5, 0)).astype(np.uint8))
    # what is black is for another rule
    assert not is_refused(np.zeros((SIDE, SIDE, 3), np.uint8))


@pytest.mark.parametrize(("channels", "refused"), [(3, True), (1, False)])
def test_a_file_of_equal_planes_is_refused_in_a_study_of_colour(
    channels: int, refused: bool, tmp_path: Path
) -> None:
    dataset = phantoms.with_pixels(phantoms.header("OP"), grey(), "RGB")
    path = str(phantoms.save(dataset, tmp_path / "angiogram.dcm"))
    settings = Settings(SIDE, channels, ("OP",), None, 1 << 24, 1 << 24, 1 << 30, 30.0)
    if not refused:
        assert read_file(path, settings).pixels.shape == (SIDE, SIDE, channels)
        return
    with pytest.raises(Unusable) as refusal:
        read_file(path, settings)
    assert refusal.value.reason is Reason.WRONG_CHANNELS
