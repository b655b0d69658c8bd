"""A release as DICOM: synthetic in every header, valid, reproducible, and with its origin."""

import csv
import hashlib
import io
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from common.errors import ConfigurationError, EnvironmentFault, RefusedError
from common.wire import signing
from kohort import dicom_export
from kohort.detection import dicom_marks, dicom_picture
from kohort.dicom_export import export_dicom
from kohort.manifest import Manifest
from kohort.marks import DICOM
from kohort.png import read_picture
from server.public_data.pictures import marked_png_bytes

# the dictionary of Debian's dicom3tools is older than the attribute SyntheticData
UNKNOWN_TO_IT = "recognized standard attribute - (0x0008,0x001c)"


@dataclass(frozen=True)
class Exported:
    """A small folder of pairs in both colours, its manifest, and what was exported of it."""

    release: Path
    manifest: Manifest
    out: Path

    def read(self, name: str) -> Any:
        return pydicom.dcmread(self.out / name)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    release = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    rows = [("file_name", "label", "mask")]
    for i, shape in enumerate([(17, 16), (16, 16, 3)]):
        rows.append((f"data/train/vessels/{i:05d}.png", "vessels", f"masks/{i:05d}.png"))
        for name, pixels in (
            (rows[-1][0], rng.integers(0, 256, shape)),
            (rows[-1][2], 255 * (rng.random(shape[:2]) < 0.3) * (i == 0)),
        ):
            (release / name).parent.mkdir(parents=True, exist_ok=True)
            (release / name).write_bytes(marked_png_bytes(pixels.astype(np.uint8)))
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    (release / "metadata.csv").write_text(text.getvalue())
    manifest = Manifest.model_construct(
        name="vessels", version="1.0.0", date="2026-09-01", study="a" * 64, labels=("vessels",),
        operator_key=signing.public_text(signing.new_key().public_key()),
    )  # fmt: skip
    out = release.parent / "dicom"
    assert export_dicom(release, manifest, out) == 4
    return Exported(release, manifest, out)


def names(exported: Exported) -> list[str]:
    return sorted(p.relative_to(exported.out).as_posix() for p in exported.out.rglob("*.dcm"))


def test_each_picture_and_mask_is_a_file_that_says_synthetic(exported: Exported) -> None:
    assert names(exported) == [
        *("images/vessels/00000.dcm", "images/vessels/00001.dcm"),
        *("masks/00000.dcm", "masks/00001.dcm"),
    ]
    for name in names(exported):
        assert dicom_marks((exported.out / name).read_bytes(), name) == (DICOM,)
        said = exported.read(name)
        assert said.PatientIdentityRemoved == "YES"
        assert said.PatientID.startswith("SYNTHETIC-")
        assert said.DeidentificationMethodCodeSequence[0].CodingSchemeDesignator == "99KOHORT"
    assert exported.read("images/vessels/00000.dcm").ConversionType == "SYN"


def test_the_pixels_are_those_of_the_release(exported: Exported) -> None:
    for name in names(exported):
        number = Path(name).stem
        png = exported.release / f"masks/{number}.png"
        if name.startswith("images"):
            png = exported.release / f"data/train/vessels/{number}.png"
        found = dicom_picture((exported.out / name).read_bytes(), name)
        assert found == read_picture(png.read_bytes(), png.name), name


def test_each_file_names_the_release_and_the_digest_of_its_png(exported: Exported) -> None:
    said = exported.read("masks/00001.dcm").ContributingEquipmentSequence[0]
    digest = hashlib.sha256((exported.release / "masks/00001.png").read_bytes()).hexdigest()
    key = signing.parse_public(exported.manifest.operator_key)
    for words in ("vessels 1.0.0, masks/00001.png", digest, signing.fingerprint(key)):
        assert words in said.ContributionDescription


def test_a_mask_references_its_image_and_no_two_images_are_of_one_patient(
    exported: Exported,
) -> None:
    image, mask = exported.read("images/vessels/00001.dcm"), exported.read("masks/00001.dcm")
    source = mask.SourceImageSequence[0]
    assert source.ReferencedSOPInstanceUID == image.SOPInstanceUID
    assert mask.StudyInstanceUID == image.StudyInstanceUID
    other = exported.read("images/vessels/00000.dcm")
    for keyword in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        assert other[keyword].value != image[keyword].value
    assert image.SOPInstanceUID.startswith("2.25.")
    assert len(image.SOPInstanceUID) <= 64


def test_the_same_release_gives_the_same_bytes_and_a_next_version_other_uids(
    exported: Exported, tmp_path: Path
) -> None:
    export_dicom(exported.release, exported.manifest, tmp_path / "again")
    for name in names(exported):
        assert (tmp_path / "again" / name).read_bytes() == (exported.out / name).read_bytes()
    newer = exported.manifest.model_copy(update={"version": "1.0.1"})
    export_dicom(exported.release, newer, tmp_path / "newer")
    before = exported.read("images/vessels/00000.dcm").SOPInstanceUID
    after = pydicom.dcmread(tmp_path / "newer" / "images/vessels/00000.dcm").SOPInstanceUID
    assert before != after


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (dicom3tools) is missing")
def test_a_validator_finds_no_error(exported: Exported) -> None:
    for name in names(exported):
        done = subprocess.run(
            ["dciodvfy", str(exported.out / name)], capture_output=True, text=True, check=False
        )
        said = done.stderr + done.stdout
        assert ("Segmentation" if name.startswith("masks") else "SCImage") in said
        errors = [line for line in said.splitlines() if line.startswith("Error")]
        assert [line for line in errors if UNKNOWN_TO_IT not in line] == [], name


def test_a_failed_export_leaves_nothing(exported: Exported, tmp_path: Path) -> None:
    broken = shutil.copytree(exported.release, tmp_path / "broken")
    (broken / "masks/00001.png").unlink()
    with pytest.raises(EnvironmentFault, match=r"00001\.png"):
        export_dicom(broken, exported.manifest, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"broken"}


def test_what_cannot_be_exported_is_refused_with_words(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigurationError, match="exists already"):
        export_dicom(exported.release, exported.manifest, exported.out)
    undated = exported.manifest.model_copy(update={"date": "1st of May"})
    with pytest.raises(RefusedError, match="YYYY-MM-DD expected"):
        export_dicom(exported.release, undated, tmp_path / "out")
    monkeypatch.setattr(dicom_export, "NEEDS", ("no_such_package",))
    with pytest.raises(ConfigurationError, match="no_such_package, which is not") as caught:
        export_dicom(exported.release, exported.manifest, tmp_path / "out")
    assert "kohort[dicom]" in caught.value.hint
