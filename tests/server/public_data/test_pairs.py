"""Public pairs from folders, archives and phantoms, and what is refused in which words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.errors import ConfigurationError
from common.wire import tensors
from server.pretrain.provenance import Provenance
from server.pretrain.session import Session
from server.pretrain.wgan_checkpoint import public_plan, run
from server.public_data.pairs import phantom_pairs, read_pairs

ORIGIN = Provenance("invented", "CC0-1.0", "nobody")


def folder(root: Path, count: int = 4, side: int = 40) -> Path:
    """A folder of invented pairs of two patients."""
    rng = np.random.default_rng(0)
    lines = ["file,patient"]
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for i in range(count):
        Image.fromarray(rng.integers(0, 255, (side, side), dtype=np.uint8)).save(
            root / "images" / f"{i:03d}.png"
        )
        mask = (rng.random((side, side)) < 0.2).astype(np.uint8) * 255
        Image.fromarray(mask).save(root / "masks" / f"{i:03d}.png")
        lines.append(f"{i:03d}.png,p{i % 2}")
    (root / "patients.csv").write_text("\n".join(lines) + "\n")
    return root


def test_a_folder_of_pairs_is_read_cut_to_its_centre_and_knows_its_patients(tmp_path: Path) -> None:
    found = read_pairs(folder(tmp_path), 32)
    assert found.pairs.shape == (4, 32, 32, 2) and found.pairs.dtype == np.uint8
    assert found.patient_of.tolist() == [0, 1, 0, 1]
    whole = np.asarray(Image.open(tmp_path / "images" / "002.png"))
    assert np.array_equal(found.pairs[2, ..., 0], whole[4:36, 4:36])
    assert set(np.unique(found.pairs[..., 1])) == {0, 255}


@pytest.mark.parametrize(
    "names", [("images", "masks", "patient_of"), ("images", "vessel_masks", "sequence")]
)
def test_an_archive_of_pairs_is_read(names: tuple[str, str, str], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images, masks = (
        rng.integers(0, 255, (5, 32, 32), dtype=np.uint8),
        rng.integers(0, 2, (5, 32, 32), dtype=np.uint8),
    )
    np.savez(tmp_path / "x.npz", **dict(zip(names, (images, masks, np.arange(5)), strict=True)))
    found = read_pairs(tmp_path / "x.npz", 32)
    assert np.array_equal(found.pairs[..., 0], images) and np.array_equal(
        found.pairs[..., 1], masks * 255
    )


def grey_mask(root: Path) -> None:
    Image.fromarray(np.full((40, 40), 7, np.uint8)).save(root / "masks" / "001.png")


def colour(root: Path) -> None:
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(root / "images" / "001.png")


def other_size(root: Path) -> None:
    Image.fromarray(np.zeros((41, 40), np.uint8)).save(root / "masks" / "001.png")


def table(text: str) -> Callable[[Path], None]:
    return lambda root: (root / "patients.csv").write_text(text) and None


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no table": (lambda root: (root / "patients.csv").unlink(), r"patients\.csv: missing"),
    "a table without patients": (table("file\n000.png\n"), "expected columns file and patient"),
    "a path for a name": (table("file,patient\n../images/000.png,p\n"), "line 2"),
    "a name twice": (table("file,patient\n000.png,p\n000.png,q\n"), "line 3"),
    "an empty patient": (table("file,patient\n000.png,\n"), "line 2"),
    "a picture that nobody listed": (table("file,patient\n000.png,p\n001.png,p\n"), "not listed"),
    "no mask for a picture": (
        lambda root: (root / "masks" / "001.png").unlink(),
        r"masks/001\.png: missing",
    ),
    "a grey mask": (grey_mask, "expected 0 and 255"),
    "a colour picture": (colour, "8-bit grey"),
    "a mask of another size": (other_size, "one size for all"),
    "bytes that are no picture": (
        lambda root: (root / "images" / "001.png").write_bytes(b"x" * 99),
        "not a PNG",
    ),
    "one pair": (table("file,patient\n000.png,p\n"), "1 pairs, expected 2"),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_a_folder_is_refused_with(sentence: str, tmp_path: Path) -> None:
    root = folder(tmp_path)
    read_pairs(root, 32)
    spoil, message = REFUSED[sentence]
    spoil(root)
    with pytest.raises(ConfigurationError, match=message):
        read_pairs(root, 32)


def test_small_pairs_unknown_files_and_odd_archives_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="40 x 40 pixels, expected at least 64"):
        read_pairs(folder(tmp_path / "a"), 64)
    with pytest.raises(ConfigurationError, match=r"expected a folder or an \.npz"):
        read_pairs(tmp_path / "none.npz", 32)
    (tmp_path / "b.npz").write_bytes(b"no archive")
    with pytest.raises(ConfigurationError, match=r"expected an \.npz"):
        read_pairs(tmp_path / "b.npz", 32)
    np.savez(tmp_path / "c.npz", images=np.zeros((3, 32, 32), np.uint8))
    with pytest.raises(ConfigurationError, match="expected `images` and `masks`"):
        read_pairs(tmp_path / "c.npz", 32)
    np.savez(tmp_path / "d.npz", images=np.array([{}], dtype=object))
    with pytest.raises(ConfigurationError, match=r"expected an \.npz of arrays"):
        read_pairs(tmp_path / "d.npz", 32)


def test_phantoms_are_pairs_of_their_own_patients_and_repeatable() -> None:
    one, again = phantom_pairs(2, 4, 32, 5), phantom_pairs(2, 4, 32, 5)
    assert one.pairs.shape == (8, 32, 32, 2) and one.patient_of.tolist() == [0] * 4 + [1] * 4
    assert one.digest == again.digest != phantom_pairs(2, 4, 32, 6).digest


def test_pretraining_writes_checkpoint_card_and_sheet_and_goes_on_where_it_was(
    tmp_path: Path,
) -> None:
    source, plan = phantom_pairs(2, 8, 32, 0), public_plan(width=8, generator_width=8, latent=16)
    assert run(source, tmp_path, plan, ORIGIN, Session(steps=2)) == 2
    first = tensors.read(tmp_path / "wgan.safetensors", max_bytes=1 << 24)
    assert {name.split(".")[0] for name in first} == {"generator", "average", "critic"}
    with pytest.raises(ConfigurationError, match="holds a checkpoint"):
        run(source, tmp_path, plan, ORIGIN, Session(steps=4))
    seen: list[int] = []
    session = Session(steps=4, resume=True, progress=lambda s, _: seen.append(s))
    assert run(source, tmp_path, plan, ORIGIN, session) == 4
    second = tensors.read(tmp_path / "wgan.safetensors", max_bytes=1 << 24)
    assert seen == [3, 4] and any((first[name] != second[name]).any() for name in first)
    text = (tmp_path / "MODEL_CARD.md").read_text()
    assert "16 of 2 patients" in text and "4 steps" in text and source.digest in text
    assert np.asarray(Image.open(tmp_path / "training" / "samples.png")).shape[2] == 3


def test_pretraining_without_an_end_or_a_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="minutes or steps"):
        run(phantom_pairs(2, 2, 32, 0), tmp_path, public_plan(), ORIGIN, Session())
    with pytest.raises(ConfigurationError, match="missing"):
        Provenance("", "CC0-1.0", "x")
