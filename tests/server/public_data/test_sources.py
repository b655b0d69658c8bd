"""Several public sources in one training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common.errors import ConfigurationError
from server.public_data.images import Source, read_source
from server.public_data.sources import draw_shares, join_sources


def source(count: int, digest: str, patients: tuple[str, ...] = (), size_px: int = 8) -> Source:
    images = np.zeros((count, size_px, size_px, 3), np.uint8)
    names = tuple(f"p{i}" for i in range(count))
    return Source(images, names, np.zeros(count, bool), digest, None, patients)


def test_a_source_counts_by_the_root_of_its_people_and_each_of_them_once() -> None:
    """Nine people and four: 3 to 2. Two photographs of one person share what is theirs."""
    joined = join_sources([source(9, "a"), source(5, "b", ("x", "x", "y", "z", "w"))])
    shares = draw_shares(joined)
    assert shares.sum() == pytest.approx(1)
    assert shares[:9].sum() == pytest.approx(3 / 5)
    assert shares[9:] == pytest.approx([0.05, 0.05, 0.1, 0.1, 0.1])


def test_the_same_name_in_two_sources_is_not_the_same_person() -> None:
    joined = join_sources([source(3, "a"), source(3, "b")])
    assert len(set(joined.patients)) == len(set(joined.names)) == 6
    assert joined.digest not in ("a", "b")


def test_sides_are_known_where_every_source_knows_them() -> None:
    blind = Source(np.zeros((2, 8, 8, 3), np.uint8), ("a", "b"), None, "b")
    assert join_sources([source(2, "a"), blind]).right is None
    joined = join_sources([source(2, "a"), source(2, "b")])
    assert joined.right is not None
    assert len(joined.right) == 4


def test_a_source_that_is_given_twice_and_sources_of_two_sizes_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="given twice"):
        join_sources([source(2, "a"), source(2, "a")])
    with pytest.raises(ConfigurationError, match="different sizes"):
        join_sources([source(2, "a"), source(2, "b", size_px=16)])


def test_an_npz_gives_its_patients_and_may_be_finer(tmp_path: Path) -> None:
    images = np.zeros((4, 16, 16, 3), np.uint8)
    names = np.array(["a", "b", "c", "d"])
    path = tmp_path / "p.npz"
    np.savez(path, images=images, names=names, patients=np.array(["x", "x", "y", "z"]))
    read = read_source(path, 8, 3, ["b"], finer=2)
    assert read.patients == ("x", "y", "z")
    with pytest.raises(ConfigurationError, match=r"expected images uint8 \[N, 8, 8, 3\], got"):
        read_source(path, 8, 3)
    np.savez(path, images=images, names=names, patients=np.array(["x", "y"]))
    with pytest.raises(ConfigurationError, match="2 patients, expected one for each of the 4"):
        read_source(path, 16, 3)
