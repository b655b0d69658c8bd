"""client/ingest/patterns.py: counts and looks up as numpy does, of any type and in any strips."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from client.ingest import images
from client.ingest.patterns import count_values, map_values

DTYPES = [np.uint8, np.uint16]


def patterns(dtype: type[np.generic], *, flat: bool = False) -> Any:
    """An image that cannot be written to, as pixels in a file's bytes are."""
    top = np.iinfo(dtype).max
    rng = np.random.default_rng(0)
    raw = rng.integers(0, top, (61, 33), dtype=dtype, endpoint=True)
    raw[0, :2] = (0, top)
    if flat:
        raw[:] = top
    raw.flags.writeable = False
    return raw


@pytest.mark.parametrize("strip_pixels", [1, 500, 1 << 20])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("flat", [False, True])
def test_every_pattern_is_counted(
    dtype: type[np.generic], flat: bool, strip_pixels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "STRIP_PIXELS", strip_pixels)
    raw = patterns(dtype, flat=flat)
    expected = np.bincount(raw.ravel(), minlength=1 << 8 * raw.dtype.itemsize)
    counts = count_values(raw)
    assert counts.dtype == np.int64
    assert np.array_equal(counts, expected)


def test_more_of_a_kind_than_a_float_can_count_are_counted() -> None:
    """Float32 has no whole number after 2^24."""
    raw = np.zeros((4097, 4097), np.uint8)
    assert count_values(raw)[0] == 4097**2 > 1 << 24


@pytest.mark.parametrize("strip_pixels", [1, 500, 1 << 20])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("entries", [np.uint8, np.float32])
def test_every_pattern_is_looked_up(
    dtype: type[np.generic],
    entries: type[np.generic],
    strip_pixels: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(images, "STRIP_PIXELS", strip_pixels)
    raw = patterns(dtype)
    rng = np.random.default_rng(1)
    table = (255 * rng.random(1 << 8 * raw.dtype.itemsize)).astype(entries)
    if entries is np.float32:
        table[3] = np.nan
    found = map_values(raw, table)
    assert found.dtype == entries
    assert np.array_equal(found, table[raw], equal_nan=entries is np.float32)
