"""What intake of volumes promises, as theorems over whole ingests of an invented MR hospital.

With real child processes and real files.
"""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client.ingest import dicom_header, frames, masks, scanning
from client.ingest.build import IngestReport, ingest
from client.ingest.cohort import Cohort
from client.ingest.decode import Decoder
from client.ingest.quarantine import Reason, Unusable
from client.ingest.request import Limits, Settings, VolumeFiles
from common.errors import ConfigurationError
from common.study.intake import Intake
from server.demo.export import Truth
from server.demo.vessel_hospitals import write_vessel_hospital
from server.public_data.phantoms import STYLES, volume
from tests import phantoms
from tests import volume_phantoms as made

KEY = bytes(range(32))
RULES = Intake.model_validate(
    {
        "dicom_modalities": ["MR"],
        "size_px": 32,
        "channels": 1,
        "labels": ["vessels"],
        "volumes": {"patches_per_patient": 4},
    }
)
PATIENTS = 5
SHAPE = (6, 64, 64)


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> tuple[Truth, Path, IngestReport]:
    """A demo hospital of five persons, its cohort and its report."""
    folder = tmp_path_factory.mktemp("hospital")
    made_up = [volume(np.random.default_rng(n), STYLES["hospital"], SHAPE) for n in range(PATIENTS)]
    truth = write_vessel_hospital(made_up, folder / "export", 1)
    report = ingest(
        truth.folder,
        RULES,
        KEY,
        folder / "cohort",
        labels_csv=truth.labels_csv,
        limits=Limits(workers=1),
    )
    return truth, folder / "cohort", report


def everything(folder: Path) -> bytes:
    return b"\n".join(
        path.name.encode() + path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    )


def test_every_file_enters_or_has_a_reason(hospital: tuple[Truth, Path, IngestReport]) -> None:
    truth, folder, report = hospital
    assert report.ingested + sum(report.quarantined.values()) == truth.files
    assert {"missing-slice", "no-mask", "mask-grid", "truncated", "unknown-format"} < set(
        report.quarantined
    )
    lines = (folder / "quarantine.csv").read_text().splitlines()[1:]
    assert len(lines) == len(set(lines)) == sum(report.quarantined.values())


def test_a_volume_under_two_ids_is_one_patient(hospital: tuple[Truth, Path, IngestReport]) -> None:
    truth, folder, report = hospital
    with open(truth.labels_csv, encoding="utf-8") as file:
        ids = len({row["patient"] for row in csv.DictReader(file)})
    cohort = Cohort.open(folder)
    assert (ids, cohort.patient_count, report.merged) == (PATIENTS + 1 + 5, PATIENTS, 1)
    assert sorted(map(len, cohort.aliases)) == [1] * (PATIENTS - 1) + [2]
    assert [len(cohort.images_of(p)) for p in range(PATIENTS)] == [
        4
    ] * PATIENTS  # also with a second scan


def test_no_header_text_uid_or_file_name_reaches_the_cohort(
    hospital: tuple[Truth, Path, IngestReport],
) -> None:
    truth, folder, report = hospital
    stored = everything(folder) + repr(report).encode()
    planted = everything(truth.folder)
    assert sum(text.encode() in planted for text in truth.identifiers) > 150
    assert [
        text
        for text in truth.identifiers
        if text.encode() in stored or text.encode("utf-16-le") in stored
    ] == []


def test_no_planted_marker_reaches_the_cohort_a_report_or_an_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / phantoms.MARKERS[1]
    series, mask = made.patient(1, patient_id=f"ID-{phantoms.MARKERS[4]}", uid=phantoms.MARKERS[8])
    slices = made.write_series(source, series, phantoms.MARKERS[0])
    with pytest.raises(ConfigurationError) as nothing:
        ingest(source, RULES, KEY, tmp_path / "none", limits=Limits(workers=1))
    image = made.nifti(series, mask)
    image.header["descrip"] = phantoms.MARKERS[4].encode()
    made.write_nifti(source / f"{phantoms.MARKERS[0]}.nii.gz", image)
    (source / "broken.dcm").write_bytes(slices[0].read_bytes()[:700])
    rows = [(f"ID-{phantoms.MARKERS[4]}", "vessels", f"{phantoms.MARKERS[0]}.nii.gz")]
    labels = phantoms.write_labels(tmp_path / "labels.csv", rows, "patient,label,mask")
    report = ingest(
        source, RULES, KEY, tmp_path / "cohort", labels_csv=labels, limits=Limits(workers=1)
    )
    assert (report.ingested, report.patients) == (6, 1)
    stated = (
        repr(report) + "".join(capfd.readouterr()) + repr(nothing.value) + str(nothing.value.hint)
    )
    stored = everything(tmp_path / "cohort") + stated.encode()
    assert [marker for marker in phantoms.MARKERS if marker.encode() in stored] == []


def test_a_patient_keeps_the_pseudonym_and_the_patches_under_the_same_key_alone(
    hospital: tuple[Truth, Path, IngestReport], tmp_path: Path
) -> None:
    truth, folder, report = hospital
    again = ingest(
        truth.folder,
        RULES,
        KEY,
        tmp_path / "a",
        labels_csv=truth.labels_csv,
        limits=Limits(workers=2),
    )
    assert again == report
    ingest(
        truth.folder,
        RULES,
        bytes(32),
        tmp_path / "b",
        labels_csv=truth.labels_csv,
        limits=Limits(workers=1),
    )
    one, other = Cohort.open(folder), Cohort.open(tmp_path / "b")
    assert not set(one.pseudonyms) & set(other.pseudonyms)
    patches = [{image.tobytes() for image in cohort.images} for cohort in (one, other)]
    assert len(patches[0] & patches[1]) < len(patches[0]) / 2


def test_the_allow_lists_name_no_date_name_or_free_text_and_uids_that_tell_series_apart_alone() -> (
    None
):
    names = (*dicom_header.ALLOWED, *masks.ALLOWED, *scanning.SERIES, *frames.ATTRIBUTES)
    forbidden = "Name|Date|Time|Comment|Description|Address|Institution|Serial|Physician|UID"
    uids = {"SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"}
    uids |= {"EchoTime", "TriggerTime"}  # milliseconds of the sequence, no time of day
    assert [name for name in names if re.search(forbidden, name) and name not in uids] == []


def test_the_child_learns_no_key_and_a_lost_child_costs_one_volume(tmp_path: Path) -> None:
    series, mask = made.patient(1)
    files = VolumeFiles(
        tuple(made.write_series(tmp_path, series)),
        ("segmentation", made.write_segmentation(tmp_path / "mask.dcm", series, mask)),
    )
    settings = Settings(32, 1, ("MR",), None, 1 << 24, 1 << 24, 2 << 30, 20.0, patches=4)
    decoder = Decoder(settings)
    asked: list[bytes] = []

    def seed_of(digest: bytes) -> bytes:
        asked.append(digest)
        return b"s" * 32

    def killing(digest: bytes) -> bytes:
        assert decoder._child is not None
        decoder._child.kill()
        decoder._child.wait()
        return b"s" * 32

    try:
        first = decoder.cut(files, seed_of)
        assert (first.patches.shape, asked) == ((4, 32, 32, 2), [first.digest])
        with pytest.raises(Unusable) as refusal:
            decoder.cut(files, killing)
        assert refusal.value.reason is Reason.DECODER_DIED
        assert (decoder.cut(files, seed_of).patches == first.patches).all()
        with pytest.raises(Unusable) as refusal:
            decoder.cut(replace(files, slices=files.slices[:2]), seed_of)
        assert refusal.value.reason is Reason.VOLUME_TOO_SMALL
    finally:
        decoder.close()


def test_a_volume_over_the_cap_is_refused_and_the_next_one_is_read(tmp_path: Path) -> None:
    for number, shape in ((1, made.SHAPE), (2, (9, 40, 48))):
        series = replace(made.patient(number)[0], values=made.image(number, shape))
        made.write_series(tmp_path / "s", series, f"{3 - number}")
        made.write_segmentation(
            tmp_path / "s" / f"m{number}.dcm", series, made.vessels(number, shape)
        )
    limits = Limits(workers=1, max_volume_bytes=4 * 5 * 40 * 48)
    report = ingest(tmp_path / "s", RULES, KEY, tmp_path / "c", limits=limits)
    assert report.patients == 1
    assert dict(report.quarantined) == {"declared-too-large": 9, "series-refused": 1}
