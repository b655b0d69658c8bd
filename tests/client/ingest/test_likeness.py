"""client/ingest/likeness.py: what is alike is joined, as a comparison of all with all joins it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from client.ingest import likeness
from client.ingest.likeness import (
    SIGNATURE_SLACK,
    agree_where_lit,
    correlates,
    join_alike,
    near_duplicates,
    near_pairs,
    reduce_images,
    sign_images,
)
from client.state.people import Links
from tests import phantoms

THRESHOLD = 0.997


def plain_correlations(images: NDArray[np.uint8], kind: type) -> NDArray[np.floating]:
    """How each image correlates with each other one, at 64 px."""
    grey = images.mean(axis=3, dtype=kind)
    step = -(-grey.shape[1] // 64)
    side = grey.shape[1] // step
    flat = grey.reshape(len(grey), side, step, side, step).mean(axis=(2, 4)).reshape(len(grey), -1)
    flat -= flat.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(flat, axis=1, keepdims=True)
    rows = np.divide(flat, lengths, out=np.zeros_like(flat), where=lengths > 1e-3)
    return rows @ rows.T


def plain_pairs(images: NDArray[np.uint8]) -> list[tuple[int, int]]:
    """All pairs (i, j), i < j, that correlate, by comparing each image with each other one."""
    correlations = plain_correlations(images, np.float64)
    # single precision says the same, except where it cannot tell
    clear = np.abs(correlations - THRESHOLD) > 2e-6
    single = plain_correlations(images, np.float32)
    assert ((single > THRESHOLD) == (correlations > THRESHOLD))[clear].all()
    return [(i, j) for i, j in np.argwhere(np.triu(correlations, 1) > THRESHOLD).tolist()]


def persons(count: int, pairs: Iterable[tuple[int, int]]) -> set[frozenset[int]]:
    """What the pairs join."""
    links = Links()
    for pair in pairs:
        links.join(pair)
    trees: dict[object, set[int]] = {}
    for image in range(count):
        trees.setdefault(links.root(image), set()).add(image)
    return set(map(frozenset, trees.values()))


def families(seed: int, count: int, side: int, channels: int) -> NDArray[np.uint8]:
    """Smooth pictures and copies of them, many of which correlate by nearly 0.997."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(count // 6 + 1, side // 4, side // 4, channels))
    pictures = np.kron(coarse, np.ones((1, 4, 4, 1)))
    parents = pictures[rng.integers(0, len(pictures), count)]
    # 0.0776 of other detail leaves a correlation of 0.997
    detail = rng.normal(size=parents.shape) * rng.uniform(0.03, 0.13, (count, 1, 1, 1))
    step = -(-side // 64)
    shown = parents + detail * step
    return np.clip(128 + 32 * shown, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("side", "channels"), [(8, 1), (28, 1), (64, 1), (96, 3), (128, 1)])
@pytest.mark.parametrize("block", [5, 256])
def test_what_is_joined_is_what_a_comparison_of_all_with_all_joins(
    side: int, channels: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likeness, "BLOCK", block)
    images = families(side + block, 200, side, channels)
    images[17] = 90  # one even shade
    images[18] = 90
    expected = plain_pairs(images)
    found = list(near_duplicates(images))
    assert len(expected) > 20
    assert set(found) <= set(expected)
    assert persons(200, found) == persons(200, expected)


def test_the_order_of_the_images_joins_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likeness, "BLOCK", 7)
    images = families(3, 120, 64, 1)
    order = np.random.default_rng(1).permutation(120)
    turned = {
        frozenset(order[list(person)].tolist())
        for person in persons(120, near_duplicates(images[order]))
    }
    assert turned == persons(120, near_duplicates(images))


def waves() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The low frequencies of the signature, and some high ones; rows of unit length."""
    line = np.cos(np.pi / 64 * np.outer(np.arange(64), np.arange(64) + 0.5))
    line /= np.linalg.norm(line, axis=1, keepdims=True)
    low = np.einsum("ai,bj->abij", line[:8], line[:8]).reshape(64, -1)[1:]
    high = np.einsum("ai,bj->abij", line[20:28], line[20:28]).reshape(64, -1)
    return low, high


@pytest.mark.parametrize("kept", ["low", "high", "both"])
@pytest.mark.parametrize("changed", ["low", "high", "both"])
@pytest.mark.parametrize("block", [1, 8])
def test_a_pair_near_the_threshold_is_judged_wherever_it_differs(
    kept: str, changed: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pairs that differ in one direction; where all is low or all high the bounds are tight."""
    monkeypatch.setattr(likeness, "BLOCK", block)
    low, high = waves()
    directions = {"low": low, "high": high, "both": (low + high[:63]) / 2**0.5}
    rows = []
    for k, off in enumerate(np.linspace(-5e-7, 5e-7, 30)):
        target = THRESHOLD + off
        x = directions[kept][k]
        rows += [x, target * x + (1 - target**2) ** 0.5 * directions[changed][k + 30]]
    unit = np.stack(rows)
    fields = np.rint(32768 + unit * (32000 / np.abs(unit).max())).astype(np.uint16)
    correlations = np.triu(np.corrcoef(fields.astype(np.float64)), 1)
    expected = np.argwhere(correlations > THRESHOLD)
    assert 5 < len(expected) < 25
    assert sorted(join_alike(fields)) == [(int(i), int(j)) for i, j in expected]


def test_at_exactly_the_threshold_two_images_are_not_alike() -> None:
    # 997^2 + 77^2 + 7^2 + 3^2 + 2^2 = 1000^2, over patterns of +1 and -1 that are orthogonal
    signs = np.array([[1.0]])
    while len(signs) < 64:
        signs = np.block([[signs, signs], [signs, -signs]])
    one = 30000 + 1000 * signs[1]
    exactly = 30000 + np.array([997, 77, 7, 3, 2]) @ signs[[1, 2, 3, 4, 5]]
    closer = 30000 + np.array([997, 77, 7, 3]) @ signs[[1, 2, 3, 4]]
    fields = np.stack([one, exactly, closer]).astype(np.uint16)
    assert not correlates(fields[0], fields[1])
    assert correlates(fields[0], fields[2])
    assert list(join_alike(fields[:2])) == []
    assert (0, 1) in set(join_alike(fields[[0, 2]]))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0, 1))
def test_a_signature_never_understates_a_correlation(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 65_536, 4096)
    other = share * base + (1 - share) * rng.integers(0, 65_536, 4096)
    fields = np.stack([base, other]).astype(np.uint16)
    signatures, rows = sign_images(fields)
    assert rows.tolist() == [0, 1]
    correlation = np.corrcoef(fields.astype(np.float64))[0, 1]
    assert float(signatures[0] @ signatures[1]) >= correlation - SIGNATURE_SLACK
    assert np.allclose(np.linalg.norm(signatures, axis=1), 1, atol=1e-6)


def test_many_copies_are_joined_by_one_pair_each() -> None:
    images = np.repeat(phantoms.fundus(1)[None], 700, axis=0)
    found = list(near_duplicates(images))
    assert len(found) == 699
    assert len(persons(700, found)) == 1


def test_progress_counts_every_image_once() -> None:
    images = families(0, 600, 8, 1)
    images[5] = 7  # compared with nothing
    seen: list[tuple[int, int]] = []
    list(join_alike(reduce_images(images), lambda *at: seen.append(at)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len(seen) > 2
    assert seen[-1] == (600, 600)


def test_nothing_is_like_nothing() -> None:
    assert list(near_duplicates(np.empty((0, 64, 64, 1), np.uint8))) == []
    assert list(near_duplicates(np.full((3, 64, 64, 1), 7, np.uint8))) == []


@pytest.mark.parametrize("side", [64, 128])
def test_pairs_of_two_sets_are_those_of_the_plain_way(side: int) -> None:
    images = families(7, 200, side, 1)
    left, right = images[:20], images[20:]
    expected = {(i, j - 20) for i, j in plain_pairs(images) if i < 20 <= j}
    assert expected
    assert set(near_pairs(left, right)) == expected


@pytest.mark.parametrize(("side", "channels"), [(64, 1), (96, 3), (512, 3), (512, 1)])
def test_fields_are_exact_sums(side: int, channels: int) -> None:
    images = np.full((2, side, side, channels), 255, np.uint8)
    step = -(-side // 64)
    fields = reduce_images(images)
    assert fields.shape == (2, (side // step) ** 2)
    assert (fields == 255 * step * step * channels).all()


def test_a_brighter_resaved_copy_is_found_and_strangers_are_not() -> None:
    photographs = [phantoms.fundus(i, 128) for i in range(40)]
    photographs.append(np.clip(photographs[7] * 1.05 + 3, 0, 255).astype(np.uint8))
    assert list(near_duplicates(np.stack(photographs))) == [(7, 40)]


@pytest.mark.parametrize("block", [1, 3, 512])
def test_two_images_are_compared_in_whichever_blocks_they_stand(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.ingest.likeness.BLOCK", block)
    images = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 1), dtype=np.uint8)
    for copy, of in ((9, 0), (3, 2), (8, 4)):
        images[copy] = images[of]
    assert sorted(near_duplicates(images)) == [(0, 9), (2, 3), (4, 8)]


def test_idrid_has_six_pairs_and_no_other() -> None:
    path = Path(__file__).parents[4] / "shared" / "data" / "idrid_64.npz"
    if not path.exists():
        pytest.skip("the IDRiD array lies outside the repository and is not here")
    with np.load(path) as data:
        images = data["images"]
    pairs = list(near_duplicates(images))
    assert len(pairs) == 6
    assert all(np.array_equal(images[i], images[j]) for i, j in pairs)


def hazy(seed: int) -> NDArray[np.uint8]:
    """A photograph of haze in a black frame, uint8 [64, 64, 3]: a shade, and a faint slope."""
    chance = np.random.default_rng(seed)
    places = np.arange(64) - 31.5
    slope = chance.normal(0, 0.06, (2, 1, 1))
    shade = chance.uniform(130, 160) + slope[0] * places + slope[1] * places[:, None]
    shade += chance.normal(0, 1, (64, 64))
    shade[np.hypot(places, places[:, None]) > 31] = 0
    return np.clip(shade, 0, 255).astype(np.uint8)[..., None].repeat(3, axis=2)


def test_a_frame_around_haze_makes_nobody_one_person() -> None:
    images = np.stack([hazy(seed) for seed in range(6)])
    fields = reduce_images(images)
    assert all(correlates(fields[0], other) for other in fields)
    assert not list(near_duplicates(images))
    assert list(near_pairs(images[:2], images)) == [(0, 0), (1, 1)]


def test_a_copy_is_found_where_little_is_lit() -> None:
    dark = np.zeros((2, 64, 64, 1), np.uint8)
    dark[:, 10:20, 10:20, 0] = np.random.default_rng(0).integers(50, 255, (10, 10))
    dark[1, 15, 15] += 1
    assert list(near_duplicates(dark)) == [(0, 1)]
    assert agree_where_lit(*reduce_images(dark))
