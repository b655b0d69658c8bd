"""A ZIP archive as the hospital's source: the same cohort as its folder, and nothing else."""

from __future__ import annotations

import os
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom.uid import MediaStorageDirectoryStorage

from client.ingest import archive as archives
from client.ingest import decode_child
from client.ingest.archive import PREFIX, mark_source, open_source, sweep_unpacked
from client.ingest.build import READING, ingest
from client.ingest.listing import LISTING
from client.ingest.request import Limits, Photograph, Settings
from common.errors import ConfigurationError, EnvironmentFault
from common.study.intake import Intake
from tests import phantoms
from tests import volume_phantoms as made
from tests.client.ingest.cut_short import ONE_WORKER, Killed, take_in

RULES = Intake.model_validate(
    {
        "dicom_modalities": ["MR"],
        "size_px": 32,
        "channels": 1,
        "labels": ["vessels"],
        "volumes": {"patches_per_patient": 4},
    }
)
Rules = Callable[..., Intake]
Entry = tuple[zipfile.ZipInfo | str, bytes]


def zip_folder(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return path


def write_zip(path: Path, *entries: Entry) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return path


def write_directory(path: Path) -> Path:
    """A DICOMDIR: no image, and it names patients."""
    dataset = phantoms.header("OP")
    dataset.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    del dataset.SOPClassUID, dataset.Modality, dataset.SeriesInstanceUID
    return phantoms.save(dataset, path)


def unpacked_beside(out: Path) -> list[Path]:
    return list(out.parent.glob(f"{PREFIX}*"))


def refusal(source: Path, folder: Path, limits: Limits = ONE_WORKER) -> ConfigurationError:
    """Return the error of an archive; nothing may be left of it."""
    with (
        pytest.raises(ConfigurationError) as caught,
        open_source(source, folder / "cohort", limits, skip=None),
    ):
        pass
    assert unpacked_beside(folder / "cohort") == []
    assert caught.value.code == "E-DATA-ARCHIVE"
    return caught.value


def test_an_archive_gives_the_cohort_of_its_folder(
    intake: Rules, key: bytes, in_process: None, tmp_path: Path
) -> None:
    labels = phantoms.write_photographs(tmp_path / "data" / "DICOM", 4)
    phantoms.write_fundus(tmp_path / "data" / "DICOM" / "I0001", "P-0009", phantoms.fundus(5))
    write_directory(tmp_path / "data" / "DICOMDIR")
    labels = labels.rename(tmp_path / "labels.csv")
    labels.write_text(f"{labels.read_text()}I0001,P-0009,none\n")
    archive = zip_folder(tmp_path / "data", tmp_path / "export.zip")
    plain = take_in((tmp_path / "data", labels), intake(), key, tmp_path / "one" / "cohort")
    found = take_in((archive, labels), intake(), key, tmp_path / "two" / "cohort")
    assert found == plain
    assert found.patients == 5
    assert found.quarantined == {"not-an-image": 1}
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["cohort"]
    for name in ("index.sqlite", "quarantine.csv", "images.npy"):
        parts = [tmp_path / part / "cohort" / name for part in ("one", "two")]
        assert parts[0].read_bytes() == parts[1].read_bytes()


def test_an_archive_gives_the_volumes_of_its_folder(
    intake: Rules, key: bytes, in_process: None, tmp_path: Path
) -> None:
    for number in range(2):
        series, mask = made.patient(number)
        made.write_series(tmp_path / "data", series, f"p{number}")
        made.write_segmentation(tmp_path / "data" / f"p{number}-mask.dcm", series, mask)
    write_directory(tmp_path / "data" / "DICOMDIR")
    archive = zip_folder(tmp_path / "data", tmp_path / "export.zip")
    reports = []
    for number, source in enumerate((tmp_path / "data", archive)):
        reports.append(
            ingest(source, RULES, key, tmp_path / str(number) / "cohort", limits=ONE_WORKER)
        )
    assert reports[0] == reports[1]
    assert reports[1].quarantined == {"not-an-image": 1}


def test_files_lie_in_a_private_folder_under_numbers(tmp_path: Path) -> None:
    source = write_zip(tmp_path / "e.zip", ("MUELLER^ANNA/IM1", b"1" * 9), ("B\\IM2", b"2" * 9))
    with open_source(source, tmp_path / "cohort", ONE_WORKER, skip=None) as opened:
        assert list(opened.paths) == ["B/IM2", "MUELLER^ANNA/IM1"]
        assert [path.read_bytes() for path in opened.paths.values()] == [b"2" * 9, b"1" * 9]
        (folder,) = unpacked_beside(tmp_path / "cohort")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]
    assert unpacked_beside(tmp_path / "cohort") == []


def link(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "C:\\x", "..\\x", "a//b", "a/./b"])
def test_a_name_that_leads_out_is_refused_and_not_quoted(name: str, tmp_path: Path) -> None:
    source = write_zip(tmp_path / "e.zip", ("good", b"1"), (name, b"2"))
    error = refusal(source, tmp_path)
    assert "1 files whose names lead out of it" in str(error)
    assert name not in f"{error}{error.hint}"


def test_links_and_a_name_twice_are_refused(tmp_path: Path) -> None:
    assert "1 links" in str(refusal(write_zip(tmp_path / "e.zip", (link("x"), b"/etc")), tmp_path))
    twice = write_zip(tmp_path / "f.zip", ("a/b", b"1"), ("a\\b", b"2"))
    assert "1 files of a name that another has" in str(refusal(twice, tmp_path))


def patched(path: Path, old: bytes, new: bytes) -> Path:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))
    return path


def test_encrypted_files_and_other_compression_are_refused(tmp_path: Path) -> None:
    source = write_zip(tmp_path / "e.zip", ("a", b"1" * 40))
    # the flags stand behind the version, in the list of files
    data = bytearray(source.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    source.write_bytes(data)
    assert "1 encrypted files" in str(refusal(source, tmp_path))
    with zipfile.ZipFile(tmp_path / "l.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a", b"1" * 40)
    assert "compressed in another way" in str(refusal(tmp_path / "l.zip", tmp_path))


def test_sizes_and_numbers_are_bounded_before_anything_is_written(tmp_path: Path) -> None:
    bomb = write_zip(tmp_path / "e.zip", ("a", bytes(1 << 20)))
    assert "100 times its size" in str(refusal(bomb, tmp_path))
    several = write_zip(tmp_path / "f.zip", ("a", b"1"), ("b", b"2"))
    assert "more than 1 files" in str(refusal(several, tmp_path, Limits(max_files=1)))


def test_a_full_disk_is_named_before_unpacking(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = write_zip(tmp_path / "e.zip", ("a", b"123"))
    usage = shutil.disk_usage(tmp_path)._replace(free=2)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with (
        pytest.raises(EnvironmentFault, match="3 bytes, 2 are free") as caught,
        open_source(source, tmp_path / "cohort", ONE_WORKER, skip=None),
    ):
        pass
    assert caught.value.code == "E-DISK-FULL"
    assert unpacked_beside(tmp_path / "cohort") == []


def test_a_file_above_the_cap_is_refused_unread(tmp_path: Path) -> None:
    source = write_zip(tmp_path / "e.zip", ("a", os.urandom(4096)))
    limits = Limits(max_file_bytes=1000)
    with open_source(source, tmp_path / "cohort", limits, skip=None) as opened:
        assert opened.paths["a"].read_bytes() == bytes(4096)


def test_damage_is_refused_with_words(tmp_path: Path) -> None:
    source = write_zip(tmp_path / "e.zip", ("a", bytes(range(256))))
    whole = source.read_bytes()
    for cut in (b"", b"PK", whole[:40], whole[:-1]):
        source.write_bytes(cut)
        assert "not a ZIP archive, or a damaged one" in str(refusal(source, tmp_path))
    # fewer bytes than the list of files states, with the right checksum
    place = whole.index(b"PK\x01\x02") + 24
    source.write_bytes(whole[:place] + (300).to_bytes(4, "little") + whole[place + 4 :])
    assert "size or checksum are wrong" in str(refusal(source, tmp_path))
    # a byte of the contents
    source.write_bytes(whole[:40] + bytes([whole[40] ^ 1]) + whole[41:])
    assert "size or checksum are wrong" in str(refusal(source, tmp_path))


def test_the_list_of_files_is_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = write_zip(tmp_path / "e.zip", *((f"{number:050d}", b"") for number in range(20)))
    monkeypatch.setattr(archives, "DIRECTORY_CAP_BYTES", 1000)
    assert "not a ZIP archive, or a damaged one" in str(refusal(source, tmp_path))


def test_an_archive_inside_is_a_file_of_an_unknown_format(
    intake: Rules, key: bytes, in_process: None, tmp_path: Path
) -> None:
    labels = phantoms.write_photographs(tmp_path / "data", 2)
    zip_folder(tmp_path / "data", tmp_path / "inner.zip").rename(tmp_path / "data" / "inner.zip")
    archive = zip_folder(tmp_path / "data", tmp_path / "export.zip")
    found = take_in((archive, labels), intake(), key, tmp_path / "cohort")
    assert (found.patients, found.quarantined) == (2, {"unknown-format": 1})


def test_what_a_kill_left_goes_and_what_is_in_use_stays(tmp_path: Path) -> None:
    left = tmp_path / f"{PREFIX}left"
    left.mkdir()
    (left / "1").touch()
    source = write_zip(tmp_path / "e.zip", ("a", b"1"))
    with open_source(source, tmp_path / "cohort", ONE_WORKER, skip=None) as opened:
        assert not left.exists()
        sweep_unpacked(tmp_path)
        assert opened.paths["a"].read_bytes() == b"1"


def test_an_intake_of_an_archive_goes_on_after_a_kill(
    intake: Rules,
    key: bytes,
    in_process: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    labels = phantoms.write_photographs(tmp_path / "data", 4)
    archive = zip_folder(tmp_path / "data", tmp_path / "export.zip")
    decoded: list[str] = []
    read = decode_child.read_file

    def watched(path: str, settings: Settings) -> Photograph:
        decoded.append(path)
        return read(path, settings)

    monkeypatch.setattr(decode_child, "read_file", watched)
    out = tmp_path / "cohort"
    with pytest.raises(Killed):
        take_in((archive, labels), intake(), key, out, (READING, 3))
    assert unpacked_beside(out) == []
    assert take_in((archive, labels), intake(), key, out).patients == 4
    assert len(decoded) == 4


def test_a_file_that_changed_in_the_archive_is_seen(tmp_path: Path) -> None:
    source = write_zip(tmp_path / "e.zip", ("a", b"1"), ("b", b"2"))
    before = mark_source(source, tmp_path / "none", ONE_WORKER, skip=None)
    write_zip(source, ("a", b"1"), ("b", b"3"))
    after = mark_source(source, tmp_path / "none", ONE_WORKER, skip=None)
    assert before["a"] == after["a"]
    assert before["b"] != after["b"]
    assert LISTING not in after
