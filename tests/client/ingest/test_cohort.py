"""client/ingest/cohort.py, decode.py.

Every file ends somewhere, the folder is whole or absent, children may be lost.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from client.ingest import build, cohort, request
from client.ingest.build import COMPARING, READING, WRITING, ingest
from client.ingest.cohort import Cohort
from client.ingest.decode import Decoder, decode_all
from client.ingest.quarantine import Reason, Unusable
from client.ingest.refused import LIST, find_refused
from client.ingest.request import Limits, Settings
from common.errors import ConfigurationError, EnvironmentFault, RefusedError
from common.study.intake import Intake
from tests import phantoms

ONE_WORKER = Limits(workers=1)
Rules = Callable[..., Intake]


def settings(**changes: Any) -> Settings:
    values: dict[str, Any] = {
        "size_px": 64,
        "channels": 3,
        "modalities": ("OP",),
        "window": None,
        "max_file_bytes": 1 << 24,
        "max_pixel_bytes": 1 << 26,
        "memory_bytes": 2 << 30,
        "timeout_s": 20.0,
    }
    return Settings(**(values | changes))


@pytest.fixture
def clinic(tmp_path: Path) -> tuple[Path, Path]:
    """Four persons, and files that cannot be used.

    The persons: two photographs of A; B; C who is D (one photograph under both ids).
    """
    source = tmp_path / "source"
    phantoms.write_fundus(source / "x" / "a1.dcm", "A", phantoms.fundus(1), laterality="L")
    phantoms.write_fundus(source / "x" / "a2.dcm", "A ", phantoms.fundus(2), laterality="R")
    phantoms.write_fundus(source / "b.dcm", "B", phantoms.fundus(3))
    phantoms.write_fundus(source / "c.dcm", "C", phantoms.fundus(4))
    phantoms.write_fundus(source / "d.dcm", "D", phantoms.fundus(4))
    phantoms.write_fundus(source / "d2.dcm", "D", phantoms.fundus(5))
    phantoms.write_fundus(source / "nobody.dcm", "ANONYMOUS", phantoms.fundus(6))
    phantoms.write_fundus(source / "stranger.dcm", "E", phantoms.fundus(7))
    phantoms.write_fundus(source / "f.dcm", "F", phantoms.fundus(8))
    (source / "notes.txt").write_text("hello")
    (source / "link.dcm").symlink_to(source / "b.dcm")
    os.mkfifo(source / "pipe.dcm")
    rows = [("A", "none"), ("B", "mild"), ("C", "none"), ("D", "severe"), ("F", "unheard-of")]
    return source, phantoms.write_labels(source / "labels.csv", rows)


EXPECTED = {
    "duplicate-image": 1,
    "no-label": 1,
    "no-patient-id": 1,
    "not-a-regular-file": 2,
    "unknown-format": 1,
    "unknown-label": 1,
}


def test_every_file_enters_or_has_a_reason(
    clinic: tuple[Path, Path], intake: Rules, key: bytes, tmp_path: Path
) -> None:
    source, labels = clinic
    seen: list[tuple[str, int, int]] = []
    report = ingest(
        source,
        intake(),
        key,
        tmp_path / "out",
        labels_csv=labels,
        limits=ONE_WORKER,
        phases=lambda *at: seen.append(at),
    )
    assert dict(report.quarantined) == EXPECTED
    assert (report.ingested, report.patients, report.merged, report.most_ids) == (5, 3, 1, 2)
    # 12 files are read one by one; what shows somebody is compared, what enters is written
    assert seen[:12] == [(READING, i, 12) for i in range(1, 13)]
    compared = [(COMPARING, 2, 8), (COMPARING, 5, 8), (COMPARING, 8, 8)]
    assert seen[12:] == [*compared, (WRITING, 5, 5)]
    assert not list(tmp_path.glob(".*"))

    found = Cohort.open(tmp_path / "out")
    found.verify()
    assert found.digest == report.digest
    assert (found.images.shape, found.images.dtype, found.patient_count) == (
        (5, 64, 64, 3),
        np.uint8,
        3,
    )
    assert isinstance(found.images, np.memmap)
    assert sorted(len(found.images_of(p)) for p in range(3)) == [1, 2, 2]
    merged = next(p for p in range(3) if len(found.aliases[p]) == 2)
    assert {found.label_names[i] for i in found.labels[found.images_of(merged)]} == {"severe"}
    assert found.pseudonyms == tuple(names[0] for names in found.aliases)
    assert sorted(found.laterality.tolist()) == [1, 2, 2, 2, 2]

    names = [path.relative_to(source).as_posix() for path in source.rglob("*")]
    refused = find_refused(tmp_path / "out" / LIST, names, key, built=True)
    codes = {file.code: file.path for file in refused.files}
    assert codes["no-patient-id"] == "nobody.dcm"
    assert codes["no-label"] == "stranger.dcm"
    assert refused.counts() == EXPECTED


@pytest.mark.usefixtures("in_process")
def test_the_cohort_does_not_depend_on_names_order_or_place(
    clinic: tuple[Path, Path], intake: Rules, key: bytes, tmp_path: Path
) -> None:
    source, labels = clinic
    first = ingest(source, intake(), key, tmp_path / "one", labels_csv=labels)
    for number, path in enumerate(sorted(source.rglob("*.dcm"), reverse=True)):
        path.rename(source / f"{number:03d}")
    assert ingest(source, intake(), key, tmp_path / "two", labels_csv=labels).digest == first.digest
    assert (
        ingest(source, intake(), bytes(32), tmp_path / "three", labels_csv=labels).digest
        != first.digest
    )


@pytest.mark.usefixtures("in_process")
def test_photographs_with_a_labels_file(intake: Rules, key: bytes, tmp_path: Path) -> None:
    labels = phantoms.write_photographs(tmp_path / "photographs", 4, 2, ("none", "mild"))
    Image.fromarray(phantoms.fundus(99, 64)).save(tmp_path / "photographs" / "unlisted.png")
    report = ingest(tmp_path / "photographs", intake(), key, tmp_path / "out", labels_csv=labels)
    assert (report.ingested, report.patients, dict(report.quarantined)) == (
        8,
        4,
        {"no-patient-id": 1},
    )


@pytest.mark.usefixtures("in_process")
def test_an_id_without_its_issuer_is_the_same_person(
    intake: Rules, key: bytes, tmp_path: Path
) -> None:
    for number, issuer in enumerate(("NORTH", "", "SOUTH")):
        phantoms.write_fundus(
            tmp_path / "s" / f"{number}", "77", phantoms.fundus(number), IssuerOfPatientID=issuer
        )
    for number, issuer in ((8, "NORTH"), (9, "SOUTH")):
        phantoms.write_fundus(
            tmp_path / "s" / f"{number}",
            "88",
            phantoms.fundus(number),
            IssuerOfPatientID=issuer,
            StudyInstanceUID=f"2.25.100{number}",
        )
    assert ingest(tmp_path / "s", intake(labels=("all",)), key, tmp_path / "out").patients == 3


@pytest.mark.usefixtures("in_process")
def test_separated_eyes_need_a_side(intake: Rules, key: bytes, tmp_path: Path) -> None:
    phantoms.write_fundus(tmp_path / "s" / "1", "A", phantoms.fundus(1), laterality="L")
    phantoms.write_fundus(tmp_path / "s" / "2", "A", phantoms.fundus(2), laterality="R")
    phantoms.write_fundus(tmp_path / "s" / "3", "B", phantoms.fundus(3), laterality="")
    report = ingest(
        tmp_path / "s", intake(labels=("all",), stratify_laterality=True), key, tmp_path / "out"
    )
    assert dict(report.quarantined) == {"no-laterality": 1, "other-side-of-person": 1}


@pytest.mark.usefixtures("in_process")
def test_nothing_usable_is_one_clear_error(intake: Rules, key: bytes, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match="the folder is empty"):
        ingest(tmp_path / "empty", intake(labels=("all",)), key, tmp_path / "out")
    phantoms.write_fundus(tmp_path / "s" / f"{phantoms.MARKERS[0]}.dcm", "", phantoms.fundus(1))
    with pytest.raises(ConfigurationError, match=r"no-patient-id \(1\)") as error:
        ingest(tmp_path / "s", intake(labels=("all",)), key, tmp_path / "out")
    assert error.value.code == "E-EMPTY-COHORT"
    assert phantoms.MARKERS[0] not in str(error.value) + error.value.hint
    assert not (tmp_path / "out").exists()


def test_folders_and_keys_are_checked_first(intake: Rules, key: bytes, tmp_path: Path) -> None:
    source = tmp_path / "s"
    source.mkdir()
    for arguments in (
        (tmp_path / "missing", intake(), key, tmp_path / "out"),
        (source, intake(), key[:16], tmp_path / "out"),
        (source, intake(), key, source / "out"),
        (source, intake(), key, tmp_path),
    ):
        with pytest.raises(ConfigurationError):
            ingest(*arguments)
    for number in range(4):
        (source / str(number)).touch()
    with pytest.raises(ConfigurationError, match="more than 3 files"):
        ingest(source, intake(labels=("all",)), key, tmp_path / "out", limits=Limits(max_files=3))


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("place", ["images", "index"])
def test_a_full_disk_leaves_nothing_behind(
    place: str,
    clinic: tuple[Path, Path],
    intake: Rules,
    key: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*arguments: object) -> None:
        if place == "images":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    monkeypatch.setattr(build, "write_images" if place == "images" else "write_index", full)
    source, labels = clinic
    with pytest.raises(EnvironmentFault) as fault:
        ingest(source, intake(), key, tmp_path / "out", labels_csv=labels)
    assert fault.value.code == "E-DISK-FULL"
    assert "free some space" in fault.value.hint
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("damage", ["images", "index", "facts", "pixel"])
def test_a_damaged_cohort_is_refused(
    damage: str, intake: Rules, key: bytes, tmp_path: Path
) -> None:
    labels = phantoms.write_photographs(tmp_path / "s", 3)
    ingest(tmp_path / "s", intake(), key, tmp_path / "out", labels_csv=labels)
    if damage == "images":
        (tmp_path / "out" / "images.npy").unlink()
    elif damage == "index":
        with sqlite3.connect(tmp_path / "out" / "index.sqlite") as index:
            index.execute("DELETE FROM image WHERE image = 1")
        index.close()
    elif damage == "facts":
        facts = json.loads((tmp_path / "out" / "cohort.json").read_text()) | {"format": "other"}
        (tmp_path / "out" / "cohort.json").write_text(json.dumps(facts))
    else:
        data = bytearray((tmp_path / "out" / "images.npy").read_bytes())
        data[-5000] ^= 1
        (tmp_path / "out" / "images.npy").write_bytes(data)
    with pytest.raises(RefusedError):
        Cohort.open(tmp_path / "out").verify()


def test_a_lost_child_costs_one_file(tmp_path: Path) -> None:
    path = phantoms.write_fundus(tmp_path / "a.dcm", "A", phantoms.fundus(1))
    decoder = Decoder(settings())
    try:
        assert decoder.decode(path).patient_id == "A"
        assert decoder._child is not None
        decoder._child.kill()
        with pytest.raises(Unusable) as refusal:
            decoder.decode(path)
        assert refusal.value.reason is Reason.DECODER_DIED
        assert decoder.decode(path).patient_id == "A"
    finally:
        decoder.close()


def test_a_hanging_child_is_ended(tmp_path: Path) -> None:
    path = phantoms.write_fundus(tmp_path / "a.dcm", "A", phantoms.fundus(1))
    decoder = Decoder(settings(timeout_s=0.5))
    try:
        decoder.decode(path)
        child = decoder._child
        assert child is not None
        os.kill(child.pid, 19)  # SIGSTOP: a codec in an endless loop
        with pytest.raises(Unusable) as refusal:
            decoder.decode(path)
        assert refusal.value.reason is Reason.TIMED_OUT
        assert child.poll() is not None
    finally:
        decoder.close()


def test_a_file_that_needs_too_much_memory_is_quarantined(tmp_path: Path) -> None:
    wide = tmp_path / "wide.png"
    wide.write_bytes(phantoms.hollow_png(16000, 12000))
    good = phantoms.write_fundus(tmp_path / "a.dcm", "A", phantoms.fundus(1))
    limits = settings(max_pixel_bytes=1 << 40, memory_bytes=700 << 20)
    first, second = decode_all([wide, good], limits, workers=1)
    assert first in (Reason.OUT_OF_MEMORY, Reason.DECODER_DIED)
    assert not isinstance(second, Reason)


# what a child's codec does with a file whose name says so: it fails, and keeps memory
LEAKING = """
import client.ingest.stills as stills
kept = []
decode = stills.read_photograph
def leak(file, most):
    if b"leak" in file.read():
        kept.append(bytearray(KEPT))
        raise ValueError
    file.seek(0)
    return decode(file, most)
stills.read_photograph = leak
"""


@pytest.mark.parametrize(("kept_mib", "ends"), [(300, True), (1, False)])
def test_a_codec_that_fails_and_keeps_memory_costs_no_later_file(
    kept_mib: int, ends: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(LEAKING.replace("KEPT", str(kept_mib << 20)))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    good = tmp_path / "good.png"
    Image.fromarray(phantoms.fundus(1)).save(good)
    bad = tmp_path / "bad.png"
    bad.write_bytes(good.read_bytes() + b"leak")
    decoder = Decoder(settings(memory_bytes=1 << 30))
    try:
        for _ in range(4):
            with pytest.raises(Unusable) as refusal:
                decoder.decode(bad)
            assert refusal.value.reason is Reason.UNDECODABLE
            assert (decoder._child is None) is ends
        assert decoder.decode(good).pixels.any()
    finally:
        decoder.close()


def test_caps_hold_before_decoding(tmp_path: Path) -> None:
    path = phantoms.write_fundus(tmp_path / "a.dcm", "A", phantoms.fundus(1))
    assert list(decode_all([path], settings(max_file_bytes=1000), workers=1)) == [
        Reason.FILE_TOO_LARGE
    ]
    assert list(decode_all([path], settings(max_pixel_bytes=1000), workers=1)) == [
        Reason.DECLARED_TOO_LARGE
    ]


def cases() -> Path | None:
    """The archive of 78 DICOM cases, where the machine has it."""
    given = os.environ.get("KOHORT_DICOM_CASES")
    path = (
        Path(given)
        if given
        else Path(__file__).parents[4] / "shared" / "data" / "dicom_cases.tar.xz"
    )
    return path if path.exists() else None


# No OP among them: a study of the eye refuses what shows no field of view.
INGEST_CASES = """
import sys
from pathlib import Path
from client.ingest.build import ingest
from common.study.intake import Intake
modalities = ("CR", "DX", "MR", "CT", "US", "OT", "NM", "SM", "SEG", "RTDOSE", "")
rules = Intake.model_construct(dicom_modalities=modalities, size_px=32, channels=1, labels=("all",),
                               ordinal_labels=False, merge_labels={}, stratify_laterality=False,
                               window=None)
report = ingest(Path(sys.argv[1]), rules, bytes(32), Path(sys.argv[2]))
import json, re, resource
own = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps([report.ingested, report.quarantined, own + 2 * child]))
"""


def test_each_of_the_78_cases_ends_ingested_or_quarantined_within_500_mb(tmp_path: Path) -> None:
    archive = cases()
    if archive is None:
        pytest.skip("set KOHORT_DICOM_CASES to dicom_cases.tar.xz to run the 78 real cases")
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, filter="data")
    (manifest,) = tmp_path.rglob("MANIFEST.csv")
    manifest.unlink()
    command = [
        sys.executable,
        "-W",
        "error",
        "-c",
        INGEST_CASES,
        str(manifest.parent),
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    ingested, quarantined, used_kb = json.loads(done.stdout)
    assert ingested >= 7
    assert ingested + sum(quarantined.values()) == 78
    assert not set(quarantined) - {reason.value for reason in Reason}
    assert used_kb < 500 * 1024  # the parent, and twice the larger of its two children


@pytest.mark.parametrize(
    ("asked", "cores", "memory_gib", "expected"),
    [(0, 1, 64, 1), (0, 8, 64, 8), (0, 64, 256, 16), (0, 8, 4, 2), (0, 8, 1, 1), (40, 8, 4, 40)],
)
def test_decoders_are_one_a_core_unless_asked(
    asked: int, cores: int, memory_gib: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = {"SC_PHYS_PAGES": memory_gib << 18, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(request.os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(request.os, "sysconf", pages.__getitem__)
    assert request.count_decoders(asked) == expected
    # of volumes, whose children have twice the memory, half as many fit
    fewer = asked or max(1, min(cores, 16, memory_gib // 4))
    assert request.count_decoders(asked, request.VOLUME_CHILD_BYTES) == fewer
    assert Limits().workers == request.count_decoders(0)


def child_memory(decoder: Decoder) -> int:
    """The largest address space that the child of a decoder had so far, in bytes."""
    child = decoder._running()
    for line in Path(f"/proc/{child.pid}/status").read_text().splitlines():
        if line.startswith("VmPeak:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no VmPeak")


@pytest.mark.parametrize(("kind", "times"), [("colour.jpg", 10), ("deep.png", 6)])
def test_a_large_picture_takes_its_codecs_copy_and_its_pixels_alone(
    kind: str, times: int, tmp_path: Path
) -> None:
    """Colour: 4 bytes a pixel in Pillow and 3 here; deep: 2 and 1; and some strips."""
    side = 4000
    path = tmp_path / kind
    rows = np.arange(side)
    deep = (rows[:, None] * 7 + rows * 3).astype(np.uint16)
    picture = Image.fromarray(deep)
    if kind == "colour.jpg":
        picture = Image.fromarray((deep >> 8).astype(np.uint8)).convert("RGB")
    picture.save(path, compress_level=1)
    first = Decoder(settings(modalities=("DX",), channels=1))
    limit = child_memory(first) + times * side**2
    first.close()
    decoder = Decoder(settings(modalities=("DX",), channels=1, memory_bytes=limit))
    photograph = decoder.decode(path)
    decoder.close()
    assert photograph.pixels.std() > 10


def peak_growth(work: Callable[[], object]) -> int:
    """How far resident memory rises, at its peak, while something is done; in bytes."""

    def resident(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(field)).split()[1]) << 10

    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS:")
    work()
    return resident("VmHWM:") - before


def test_a_cohort_is_verified_and_copied_without_being_held(tmp_path: Path) -> None:
    path = tmp_path / "cohort" / "images.npy"
    path.parent.mkdir()
    shape = (1024, 512, 128, 1)  # 64 MiB
    np.lib.format.open_memmap(path, "w+", np.uint8, shape)[:, 0, 0, 0] = np.arange(1024) % 251
    images = np.load(path, mmap_mode="r")
    rows = np.arange(1, 1024, 2)
    copies: list[np.ndarray] = []
    copying = peak_growth(lambda: copies.append(cohort._copy_rows(path, images, rows)))
    reading = peak_growth(lambda: [block.sum() for block in cohort._read_blocks(path, images)])
    assert np.array_equal(copies[0][:, 0, 0, 0], rows % 251)
    assert copying < 16 << 20
    assert reading < 40 << 20  # two blocks of 256 images
    copies[0]._mmap.close()  # type: ignore[attr-defined]


def test_pages_that_were_let_go_are_read_again(tmp_path: Path) -> None:
    held = np.arange(1 << 16, dtype=np.uint8).reshape(16, 64, 64, 1)
    np.save(tmp_path / "images.npy", held)
    for images in (np.load(tmp_path / "images.npy", mmap_mode="r"), held):
        some = images[3:9]
        assert some.sum()
        cohort.release_pages(images)
        cohort.release_pages(some)
        assert (some == held[3:9]).all()
        assert (images == held).all()
