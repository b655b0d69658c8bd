"""A release of pairs verifies, is laid out for its readers, and claims no k."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common.errors import RefusedError
from kohort import layout
from kohort.drawn_folder import write_drawn
from kohort.verification import verify
from server.release.build import build_release
from tests.pair_releases import Finished, finish_study


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finish_study(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def release(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_release(finished.inputs, tmp_path_factory.mktemp("out"), finished.federation.key)


def test_the_release_verifies_claims_no_k_and_a_second_build_has_the_same_bytes(
    finished: Finished, release: Path, tmp_path: Path
) -> None:
    manifest = verify(release)
    assert (
        manifest.k is None
        and manifest.images == 12
        and manifest.sites == ("hospital-a", "hospital-b", "hospital-c")
    )
    assert json.loads((release / "manifest.json").read_text())["k"] is None
    again = build_release(finished.inputs, tmp_path, finished.federation.key)
    assert (again / "SHA256SUMS").read_bytes() == (release / "SHA256SUMS").read_bytes()


def test_every_pair_is_image_mask_and_nifti_under_one_number(
    finished: Finished, release: Path
) -> None:
    import nibabel
    from torchvision.datasets import ImageFolder

    assert len(ImageFolder(str(release / "data" / "train"))) == 12
    rows = list(csv.DictReader((release / "metadata.csv").read_text().splitlines()))
    assert list(rows[0]) == [
        "file_name",
        "mask_file_name",
        "mask_nifti",
        "label",
        "mechanism",
        "synthetic",
    ]
    found = set()
    for row in rows:
        image, mask = (
            np.asarray(Image.open(release / row[name])) for name in ("file_name", "mask_file_name")
        )
        nifti: Any = nibabel.load(release / row["mask_nifti"])
        assert image.dtype == mask.dtype == np.uint8 and image.shape == mask.shape == (32, 32)
        assert (
            np.array_equal(np.asarray(nifti.dataobj).T * 255, mask)
            and nifti.get_data_dtype() == np.uint8
        )
        found.add(np.stack([image, mask], axis=-1).tobytes())
    assert found == {pair.tobytes() for pair in finished.pairs.drawn}
    sheet = np.asarray(Image.open(release / layout.CONTACT_SHEET))
    assert sheet.shape[2] == 3 and sheet.shape[1] > 4 * 3 * 128


def test_a_reader_draws_more_pairs_from_the_averaged_generator(
    finished: Finished, release: Path, tmp_path: Path
) -> None:
    from torchvision.datasets import ImageFolder

    facts = write_drawn(release, 20, tmp_path / "more", seed=1)
    assert (facts.model, facts.label, facts.images) == ("wgan", "vessels", 20)
    privacy = finished.inputs.study.privacy
    assert (facts.claim.epsilon, facts.claim.delta) == (privacy.epsilon, privacy.delta)
    assert "k-anonymity is not claimed" in facts.claim.sentence
    assert len(ImageFolder(str(tmp_path / "more" / "data" / "train"))) == 20
    rows = list(csv.DictReader((tmp_path / "more" / "metadata.csv").read_text().splitlines()))
    assert list(rows[0]) == ["file_name", "mask_file_name", "label", "mechanism", "synthetic"]
    for row in rows:
        image = np.asarray(Image.open(tmp_path / "more" / row["file_name"]))
        mask = np.asarray(Image.open(tmp_path / "more" / row["mask_file_name"]))
        assert image.shape == mask.shape == (32, 32)
        assert np.isin(mask, (0, 255)).all()


def test_the_order_of_the_release_is_not_the_order_of_drawing(
    finished: Finished, release: Path
) -> None:
    first = np.asarray(Image.open(release / "data/train/vessels/00000.png"))
    images = [np.asarray(Image.open(p)) for p in sorted((release / "data/train/vessels").iterdir())]
    assert any(
        not np.array_equal(a, b) for a, b in zip(images, finished.pairs.drawn[..., 0], strict=True)
    )
    assert any(np.array_equal(first, image) for image in finished.pairs.drawn[..., 0])


def test_the_words_claim_the_updates_epsilon_and_no_k(release: Path) -> None:
    statement = json.loads((release / "privacy_statement.json").read_text())
    assert (
        statement["images"]["k"] is None
        and "k-anonymity is not claimed" in statement["images"]["claim"]
    )
    assert statement["updates"]["consortium"]["patient_of_every_site"]["epsilon"] == 24.0
    assert set(statement["updates"]["evidence"]) == {"hospital-a", "hospital-b", "hospital-c"}
    for name in ("privacy_statement.md", "README.md", "index.html"):
        text = (release / name).read_text()
        assert "k-anonymity is not claimed" in text, name
        for word in ("distinct patients", "k ≥", "Grouping", "averages", "None"):
            assert word not in text, (name, word)
    page = (release / "index.html").read_text()
    assert page.count("data:image/png") == 12 and "<script" not in page
    assert "masks/NNNNN.nii.gz" in (release / "README.md").read_text()


def test_one_altered_byte_in_any_file_of_pairs_is_found(release: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(release, tmp_path / "copy"))
    for path in sorted(p for p in copy.rglob("*") if p.is_file()):
        name, original = path.relative_to(copy).as_posix(), path.read_bytes()
        path.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
        with pytest.raises(RefusedError) as caught:
            verify(copy)
        assert name in str(caught.value)
        path.write_bytes(original)
    verify(copy)
