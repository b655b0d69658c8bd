"""`kohort detect` and `kohort export`: what they print, and how they end."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from common.errors import ConfigurationError, RefusedError
from kohort import credentials, detection, verification
from kohort.commands import app
from kohort.console import run_typer
from kohort.detection import examine, parse_pixels, read_released
from kohort.layout import PIXELS
from kohort.manifest import Manifest
from kohort.marks import DICOM, PLAIN, XMP
from kohort.verification import verify
from server.public_data.pictures import marked_png_bytes, png_bytes
from tests.releases import small_release

FIRST = "data/train/none/00000.png"


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_release(tmp_path_factory.mktemp("release"))[0]


@pytest.fixture
def first(release: Path) -> Path:
    return sorted(release.glob("data/train/*/*.png"))[0]


def kohort(*arguments: object) -> int:
    return run_typer("kohort", lambda: app([*map(str, arguments)], standalone_mode=False))


def stripped(path: Path, out: Path) -> Path:
    """The same pixels in a PNG without marks, as another program saves them."""
    with Image.open(path) as picture:
        Image.fromarray(np.asarray(picture)).save(out, "PNG")
    return out


def test_every_picture_of_a_release_is_marked(
    release: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = sorted(release.rglob("*.png"))
    assert len(pictures) == 12 + 1  # and the contact sheet
    for path in pictures:
        assert examine(path).marks == (XMP, PLAIN), path
    assert kohort("detect", release) == 0
    said = capsys.readouterr().out
    assert said == (f"{release}: 13 of 13 pictures are marked as synthetic; C2PA manifest: holds\n")


def test_the_list_of_pixels_names_every_image(release: Path) -> None:
    found = read_released(release, verify(release)).names
    names = sorted(name for many in found.values() for name in many)
    assert names == sorted(p.relative_to(release).as_posix() for p in release.glob("data/*/*/*"))


def test_a_mark_that_was_removed_is_missed_and_the_pixels_are_found(
    release: Path, first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = stripped(first, tmp_path / "bare.png")
    assert kohort("detect", first, bare) == 1
    assert kohort("detect", bare, "--release", release) == 0
    name = first.relative_to(release).as_posix()
    assert capsys.readouterr().out.splitlines() == [
        f"{first}: marked as synthetic (XMP, PNG text)",
        f"{bare}: no mark of a synthetic image",
        f"{bare}: no mark of a synthetic image; its pixels are those of {name} in small 1.0.0",
    ]


def test_other_pixels_are_not_those_of_the_release(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.png"
    other.write_bytes(marked_png_bytes(np.zeros((32, 32, 3), np.uint8)))
    assert kohort("detect", other, "--release", release, "--json") == 1
    assert json.loads(capsys.readouterr().out) == {
        "path": str(other), "kind": "PNG", "marks": [XMP, PLAIN], "released_as": [],
    }  # fmt: skip


def test_an_exported_release_is_marked_and_of_the_release(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "dicom"
    assert kohort("export", "--dicom", release, out) == 0
    assert "12 DICOM files, each with SyntheticData = YES" in capsys.readouterr().out
    assert kohort("detect", out, "--release", release) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 12
    assert all("marked as synthetic (DICOM SyntheticData); its pixels are" in x for x in lines)
    assert kohort("export", "--dicom", release, out) == 2
    assert kohort("export", release, tmp_path / "other") == 2
    assert not (tmp_path / "other").exists()


def test_an_altered_release_is_neither_exported_nor_compared_with(
    release: Path, first: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(release, tmp_path / "copy"))
    name = first.relative_to(release)
    (copy / name).write_bytes(png_bytes(np.zeros((32, 32, 3), np.uint8)))
    assert kohort("export", "--dicom", copy, tmp_path / "out") == 1
    assert not (tmp_path / "out").exists()
    assert kohort("detect", first, "--release", copy) == 1
    assert kohort("detect", copy) == 1


def test_what_lacks_a_mark_in_a_release_is_counted(
    release: Path, first: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    copy = Path(shutil.copytree(release, tmp_path / "copy"))
    stripped(first, copy / first.relative_to(release))
    (copy / "provenance.c2pa").write_bytes(b"x")
    manifest = Manifest.model_validate_json((release / "manifest.json").read_bytes())
    monkeypatch.setattr(verification, "verify", lambda *_, **__: manifest)
    assert kohort("detect", copy) == 1
    said = capsys.readouterr()
    assert "12 of 13 pictures are marked as synthetic; C2PA manifest: does not hold" in said.out
    assert "no mark of a synthetic image" in said.err
    assert "provenance.c2pa: not a C2PA manifest" in said.err


def test_without_c2pa_python_the_marks_are_still_counted(
    release: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(*_: object) -> None:
        raise ConfigurationError("needs c2pa-python", hint="install it")

    monkeypatch.setattr(credentials, "check_credentials", absent)
    assert kohort("detect", release, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {
        **{"path": str(release), "kind": "release", "pictures": 13, "marked": 13},
        "c2pa": "not checked",
    }


def test_files_that_are_no_pictures_end_with_1_and_missing_ones_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("text")
    assert kohort("detect", tmp_path / "a.txt") == 1
    assert "neither a PNG nor a DICOM file" in capsys.readouterr().err
    assert kohort("detect", tmp_path / "gone.png") == 2
    assert kohort("detect", tmp_path) == 2


def test_a_release_without_a_list_of_pixels_says_what_to_do(release: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="lists no pixels") as caught:
        read_released(tmp_path, verify(release))
    assert "SHA256SUMS" in caught.value.hint


@pytest.mark.parametrize("data", [b"", b"[]", b'{"a": 1}', b'{"a": "x"}', b"[" * 100_000])
def test_a_list_of_pixels_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(RefusedError, match=PIXELS):
        parse_pixels(data)


def dicom(**changes: object) -> bytes:
    """A small grey DICOM image."""
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = "2.25.1"
    facts = {
        "Rows": 2, "Columns": 3, "BitsAllocated": 8, "BitsStored": 8, "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2", "PixelData": bytes(range(6)),
    }  # fmt: skip
    for keyword, value in (facts | changes).items():
        setattr(dataset, keyword, value)
    out = io.BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    return out.getvalue()


def test_only_plain_dicom_images_are_compared() -> None:
    plain = detection.dicom_picture(dicom(), "a.dcm")
    assert plain.rgb == bytes(value for value in range(6) for _ in range(3))
    for changes in (
        {"BitsAllocated": 16, "BitsStored": 12, "PixelData": bytes(12)},
        {"PhotometricInterpretation": "MONOCHROME1"},
        {"BitsStored": 7},
        {"NumberOfFrames": 2, "PixelData": bytes(12)},
        {"Rows": 200},
    ):
        with pytest.raises(RefusedError, match="only plain images"):
            detection.dicom_picture(dicom(**changes), "a.dcm")
    with pytest.raises(RefusedError, match="damaged"):
        detection.dicom_picture(dicom()[:140], "a.dcm")


@pytest.mark.parametrize(("said", "marks"), [("YES", (DICOM,)), ("NO", ()), ("", ())])
def test_a_dicom_file_is_marked_by_its_header(said: str, marks: tuple[str, ...]) -> None:
    assert detection.dicom_marks(dicom(SyntheticData=said), "a.dcm") == marks


def test_a_key_that_nobody_checked_is_said(
    release: Path, first: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kohort("detect", release) == 0
    assert "signed by a key that you have not checked" in capsys.readouterr().err
    key = release / "allowed_signers"
    assert kohort("detect", first, "--release", release, "--trust", key) == 0
    assert capsys.readouterr().err == ""
    assert kohort("detect", release, "--trust", "SHA256:" + "A" * 43) == 1
