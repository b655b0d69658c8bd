"""Ingest of MR volumes as a whole.

Every file enters or has its own reason, whatever the files' names and order.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from client.ingest.build import IngestReport, ingest
from client.ingest.cohort import Cohort
from client.ingest.likeness import near_duplicates
from client.ingest.quarantine import Reason
from client.ingest.request import Limits
from client.ingest.sources import deal_patches
from common.study.intake import Intake
from tests import phantoms
from tests import volume_phantoms as made

RULES = Intake.model_validate(
    {
        "dicom_modalities": ["MR"],
        "size_px": 32,
        "channels": 1,
        "labels": ["vessels"],
        "volumes": {"patches_per_patient": 10},
    }
)
LIMITS = Limits(workers=1)
COLUMNS = "patient,label,mask"


def write_patient(folder: Path, number: int, **changes: Any) -> made.Series:
    """Five slices and their segmentation."""
    series, mask = made.patient(number, **changes)
    made.write_series(folder, series, f"p{number}")
    made.write_segmentation(folder / f"p{number}-mask.dcm", series, mask)
    return series


def taken(
    tmp_path: Path,
    key: bytes,
    rows: list[tuple[str, ...]] | None = None,
    columns: str = COLUMNS,
    **rest: Any,
) -> IngestReport:
    """Ingest tmp_path/s."""
    labels = None if rows is None else phantoms.write_labels(tmp_path / "labels.csv", rows, columns)
    out = tmp_path / f"c{len(list(tmp_path.glob('c*')))}"
    return ingest(
        tmp_path / "s", rest.pop("rules", RULES), key, out, labels_csv=labels, limits=LIMITS, **rest
    )


pytestmark = pytest.mark.usefixtures("in_process")


def test_a_clean_folder_enters_whole(tmp_path: Path, key: bytes) -> None:
    for number in (1, 2, 3):
        write_patient(tmp_path / "s", number)
    seen: list[tuple[int, int]] = []
    report = taken(tmp_path, key, progress=lambda *at: seen.append(at))
    assert (report.ingested, report.patients, dict(report.quarantined)) == (18, 3, {})
    assert seen[-1] == (72, 72)  # scanned, read, compared, written
    assert seen == sorted(seen)
    cohort = Cohort.open(tmp_path / "c0")
    cohort.verify()
    assert (cohort.images.shape, cohort.images.dtype) == ((30, 32, 32, 2), np.uint8)
    assert [len(cohort.images_of(p)) for p in range(3)] == [10, 10, 10]
    assert set(np.unique(cohort.images[..., 1]).tolist()) == {0, 255}
    marked = (cohort.images[..., 1] == 255).any(axis=(1, 2))
    assert all(
        marked[cohort.images_of(p)[:5]].all() for p in range(3)
    )  # the half that is centred on vessels comes first


def test_the_digest_depends_on_the_pixels_and_the_key_alone(tmp_path: Path, key: bytes) -> None:
    for number in (1, 2):
        write_patient(tmp_path / "s", number)
    first = taken(tmp_path, key)
    for number, path in enumerate(sorted((tmp_path / "s").iterdir(), reverse=True)):
        path.rename(tmp_path / "s" / f"{number * 7 % 13:02d}")
    assert taken(tmp_path, key).digest == first.digest
    assert taken(tmp_path, bytes(32)).digest != first.digest


def test_a_nifti_mask_in_turned_axes_gives_the_patches_of_the_segmentation(
    tmp_path: Path, key: bytes
) -> None:
    for number in (1, 2):
        write_patient(tmp_path / "s", number)
    taken(tmp_path, key)
    rows = [("VESSEL-0001", "vessels", "m1.nii.gz"), ("VESSEL-0002", "vessels", "sub/m2.nii")]
    for number, (_, _, name) in enumerate(rows, 1):
        series, mask = made.patient(number)
        image = made.nifti(
            series, mask, flips=(0, 2)[:number], axes=((1, 0, 2), (2, 0, 1))[number - 1]
        )
        made.write_nifti(tmp_path / "s" / name, image)
        (tmp_path / "s" / f"p{number}-mask.dcm").unlink()
    report = taken(tmp_path, key, rows)
    assert dict(report.quarantined) == {}
    one, other = Cohort.open(tmp_path / "c0"), Cohort.open(tmp_path / "c1")
    assert one.images.tobytes() == other.images.tobytes()
    assert one.pseudonyms == other.pseudonyms


def test_a_row_with_a_slice_names_the_series_of_a_mask(tmp_path: Path, key: bytes) -> None:
    for number in (1, 2):
        series, mask = made.patient(number, patient_id="VESSEL-0001")
        made.write_series(tmp_path / "s", series, f"p{number}")
        made.write_nifti(tmp_path / "s" / f"m{number}.nii", made.nifti(series, mask))
    rows = [(f"p{n}-3.dcm", "VESSEL-0001", "vessels", f"m{n}.nii") for n in (1, 2)]
    report = taken(tmp_path, key, rows, "file,patient,label,mask")
    assert (report.ingested, report.patients, dict(report.quarantined)) == (12, 1, {})


@pytest.mark.parametrize(
    ("volumes", "patches"), [(1, 10), (2, 10), (3, 10), (4, 10), (3, 9), (12, 10), (5, 2)]
)
def test_a_persons_patches_are_dealt_half_and_half(volumes: int, patches: int) -> None:
    shares = list(deal_patches(patches, volumes))
    assert tuple(map(sum, zip(*shares, strict=True))) == ((patches + 1) // 2, patches // 2)
    each = [a + b for a, b in shares]
    assert all(n >= 1 for n in each) if volumes <= patches else sum(n >= 1 for n in each) == patches
    assert max(each) - min(each) <= 2


def test_several_series_of_one_person_share_the_persons_patches(tmp_path: Path, key: bytes) -> None:
    for number in (1, 2, 3):
        write_patient(tmp_path / "s", number, patient_id="VESSEL-0001")
    report = taken(tmp_path, key)
    assert (report.ingested, report.patients) == (18, 1)
    assert len(Cohort.open(tmp_path / "c0").images) == 10
    few = RULES.model_copy(
        update={"volumes": RULES.volumes.model_copy(update={"patches_per_patient": 2})}
    )  # type: ignore[union-attr]
    report = taken(tmp_path, key, rules=few)
    assert (report.ingested, dict(report.quarantined)) == (
        12,
        {"series-refused": 1, "spare-series-of-person": 5},
    )


def test_one_volume_under_two_ids_is_one_person(tmp_path: Path, key: bytes) -> None:
    write_patient(tmp_path / "s", 1)
    series, mask = made.patient(1)
    again = replace(series, patient_id="ALIAS-77", uid="2.25.9", frame="2.25.8")
    made.write_series(tmp_path / "s", again, "again")
    made.write_segmentation(tmp_path / "s" / "again-mask.dcm", again, mask)
    report = taken(tmp_path, key)
    assert (report.patients, report.merged, report.most_ids) == (1, 1, 2)
    assert dict(report.quarantined) == {"duplicate-image": 5, "series-refused": 1}


@pytest.mark.parametrize("kind", ["brighter", "cropped", "without-mask"])
def test_a_changed_copy_of_a_volume_under_another_id_is_the_same_person(
    tmp_path: Path, key: bytes, kind: str
) -> None:
    write_patient(tmp_path / "s", 1)
    series, mask = made.patient(1)
    other = replace(series, patient_id="ALIAS-77", uid="2.25.9", frame="2.25.8")
    if kind == "brighter":
        other = replace(other, values=series.values + 7)
    elif kind == "cropped":
        other, mask = replace(other, values=series.values[1:4]), mask[1:4]
    made.write_series(tmp_path / "s", other, "again")
    if kind != "without-mask":
        made.write_segmentation(tmp_path / "s" / "again-mask.dcm", other, mask)
    report = taken(tmp_path, key)
    assert (report.patients, report.merged, report.most_ids) == (1, 1, 2)


def test_near_duplicates_of_96_px_images_are_found() -> None:
    one, other = (phantoms.fundus(n, 96) for n in (1, 2))
    assert list(near_duplicates(np.stack([one, other, one]))) == [(0, 2)]


def bare(folder: Path, **changes: Any) -> tuple[made.Series, Any]:
    """A tenth patient whose mask is still to be written."""
    series, mask = made.patient(10, **changes)
    made.write_series(folder, series, "x")
    return series, mask


def with_mask(change: Callable[[made.Series, Any], Any]) -> Callable[[Path], None]:
    """A patient with a changed segmentation."""

    def write(folder: Path) -> None:
        phantoms.save(change(*bare(folder)), folder / "x-mask.dcm")

    return write


def with_slices(change: Callable[[Path], None], **changes: Any) -> Callable[[Path], None]:
    """A patient whose slices x-0.dcm to x-4.dcm are changed after writing."""

    def write(folder: Path) -> None:
        series, mask = bare(folder, **changes)
        made.write_segmentation(folder / "x-mask.dcm", series, mask)
        change(folder)

    return write


def rewrite(**attributes: Any) -> Callable[[Path], None]:
    """All slices with other attributes."""

    def write(folder: Path) -> None:
        series, mask = bare(folder)
        made.write_series(folder, series, "x", **attributes)
        made.write_segmentation(folder / "x-mask.dcm", series, mask)

    return write


def rewrite_one(**attributes: Any) -> Callable[[Path], None]:
    """One slice with other attributes."""

    def write(folder: Path) -> None:
        series, mask = bare(folder)
        phantoms.save(made.slice_of(series, 2, **attributes), folder / "x-2.dcm")
        made.write_segmentation(folder / "x-mask.dcm", series, mask)

    return write


def two_masks(folder: Path) -> None:
    series, mask = bare(folder)
    made.write_segmentation(folder / "x-mask.dcm", series, mask)
    made.write_segmentation(folder / "x-other.dcm", series, mask[:, ::-1])


def two_patients(folder: Path) -> None:
    series, mask = bare(folder)
    made.write_series(
        folder, replace(series, patient_id="ANOTHER-1"), "x", ImageType=["ORIGINAL", "PRIMARY", "2"]
    )
    phantoms.save(made.slice_of(series, 0), folder / "x-0.dcm")
    made.write_segmentation(folder / "x-mask.dcm", series, mask)


def nifti_only(folder: Path) -> None:
    series, mask = bare(folder)
    made.write_nifti(folder / "stray.nii", made.nifti(series, mask))


def photograph(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(phantoms.fundus(1, 64)).save(folder / "x.png")


def copies(folder: Path) -> None:
    write_patient(folder, 10)
    for path in sorted(folder.glob("p10*")):
        shutil.copy(path, folder / f"copy of {path.name}")


def small(folder: Path) -> None:
    shape = (5, 24, 48)
    series = replace(made.patient(10)[0], values=made.image(10, shape))
    made.write_series(folder, series, "x")
    made.write_segmentation(folder / "x-mask.dcm", series, made.vessels(10, shape))


def even(folder: Path) -> None:
    series, mask = made.patient(10)
    made.write_series(folder, replace(series, values=series.values * 0 + 5), "x")
    made.write_segmentation(folder / "x-mask.dcm", series, mask)


SERIES_FAULT = {"series-refused": 1}
MASK_FAULT = {"mask-refused": 5}
ENHANCED = "1.2.840.10008.5.1.4.1.1.4.1"
CASES: dict[str, tuple[Callable[[Path], None], dict[str, int]]] = {
    "no mask": (lambda folder: bare(folder) and None, {"no-mask": 5}),
    "a mask of nothing here": (
        with_mask(lambda s, m: made.segmentation(replace(s, uid="2.25.5"), m)),
        {"mask-without-series": 1, "no-mask": 5},
    ),
    "a mask in another frame of reference": (
        with_mask(lambda s, m: made.segmentation(replace(s, frame="2.25.5"), m)),
        {"mask-without-series": 1, "no-mask": 5},
    ),
    "a mask that references no series": (
        with_mask(lambda s, m: made.segmentation(s, m, ReferencedSeriesSequence=[])),
        {"mask-without-series": 1, "no-mask": 5},
    ),
    "a mask of another patient": (
        with_mask(lambda s, m: made.segmentation(replace(s, patient_id="ANOTHER-1"), m)),
        {"mask-of-other-patient": 1, **MASK_FAULT},
    ),
    "two masks": (two_masks, {"two-masks": 2, **MASK_FAULT}),
    "an empty mask": (
        with_mask(lambda s, m: made.segmentation(s, m, PixelData=bytes(960))),
        {"empty-mask": 1, **MASK_FAULT},
    ),
    "a mask on another grid": (
        with_mask(lambda s, m: made.segmentation(replace(s, origin=(-20.0, 10.5, 30.0)), m)),
        {"mask-grid": 1, **MASK_FAULT},
    ),
    "a fractional mask": (
        with_mask(lambda s, m: made.segmentation(s, m, SegmentationType="FRACTIONAL")),
        {"fractional-mask": 1, **MASK_FAULT},
    ),
    "two segments": (
        with_mask(
            lambda s, m: made.segmentation(s, m, SegmentSequence=[made.Dataset(), made.Dataset()])
        ),
        {"segment-count": 1, **MASK_FAULT},
    ),
    "a truncated mask": (
        with_mask(lambda s, m: made.segmentation(s, m, PixelData=b"\1\0")),
        {"truncated": 1, **MASK_FAULT},
    ),
    "a NIfTI mask that no row names": (nifti_only, {"unnamed-mask": 1, "no-mask": 5}),
    "a missing slice": (
        with_slices(lambda f: (f / "x-2.dcm").unlink()),
        {"missing-slice": 4, **SERIES_FAULT},
    ),
    "a slice too many": (
        with_slices(
            lambda f: phantoms.save(
                made.slice_of(made.patient(10)[0], 2, InstanceNumber=9), f / "x-9.dcm"
            )
        ),
        {"duplicate-slice": 6, **SERIES_FAULT},
    ),
    "an uneven slice": (
        rewrite_one(ImagePositionPatient=made.patient(10)[0].place(2.3)),
        {"uneven-slices": 5, **SERIES_FAULT},
    ),
    "a truncated slice": (
        with_slices(
            lambda f: (f / "x-2.dcm").write_bytes((f / "x-2.dcm").read_bytes()[:-900]) and None
        ),
        {"truncated": 1, "incomplete-series": 4, **SERIES_FAULT},
    ),
    "two slices": (
        with_slices(lambda f: [(f / f"x-{d}.dcm").unlink() for d in (2, 3, 4)] and None),
        {"volume-too-small": 2, **SERIES_FAULT},
    ),
    "slices smaller than a patch": (small, {"volume-too-small": 5, **SERIES_FAULT}),
    "an even volume": (even, {"blank-image": 5, **SERIES_FAULT}),
    "another orientation": (
        rewrite_one(ImageOrientationPatient=[0.99619, 0.08716, 0, -0.08716, 0.99619, 0]),
        {"mixed-series": 5, **SERIES_FAULT},
    ),
    "another spacing": (rewrite_one(PixelSpacing=[0.5, 0.5]), {"mixed-series": 5, **SERIES_FAULT}),
    "sagittal slices": (
        with_slices(lambda f: None, orientation=(0.0, 1.0, 0.0, 0.0, 0.0, -1.0)),
        {"not-axial": 5, **SERIES_FAULT},
    ),
    "no position": (
        rewrite(ImagePositionPatient=None),
        {"no-geometry": 5, "mask-without-series": 1},
    ),
    "no series": (rewrite(SeriesInstanceUID=""), {"no-series": 5, "mask-without-series": 1}),
    "enhanced MR": (
        rewrite(SOPClassUID=ENHANCED),
        {"multi-frame-object": 5, "mask-without-series": 1},
    ),
    "several frames": (
        rewrite(NumberOfFrames=2),
        {"multi-frame-object": 5, "mask-without-series": 1},
    ),
    "another modality": (rewrite(Modality="CT"), {"wrong-modality": 5, "mask-without-series": 1}),
    "colour": (
        rewrite(PhotometricInterpretation="RGB", SamplesPerPixel=3),
        {"unsupported-pixels": 5, "mask-without-series": 1},
    ),
    "one series of two patients": (two_patients, {"mixed-patients": 5, **SERIES_FAULT}),
    "nobody": (
        with_slices(lambda f: None, patient_id="ANONYMOUS"),
        {"no-patient-id": 5, **SERIES_FAULT},
    ),
    "a photograph": (photograph, {"not-a-volume": 1}),
    "copies of all files": (copies, {"duplicate-image": 6}),
}


@pytest.mark.parametrize("name", CASES)
def test_every_file_that_does_not_enter_has_its_reason(
    tmp_path: Path, key: bytes, name: str
) -> None:
    write, expected = CASES[name]
    write_patient(tmp_path / "s" / "good", 1)
    write(tmp_path / "s" / "bad")
    report = taken(tmp_path, key)
    assert dict(report.quarantined) == expected
    assert report.ingested == (12 if name == "copies of all files" else 6)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([("VESSEL-0010", "vessels", "")], {"unnamed-mask": 1, "no-mask": 5}),
        (
            [("VESSEL-0010", "vessels", "m.nii"), ("VESSEL-0001", "vessels", "m.nii")],
            {"ambiguous-mask": 1, "no-mask": 5},
        ),
        (
            [("NOBODY-9", "vessels", "m.nii"), ("VESSEL-0010", "vessels", "")],
            {"mask-without-series": 1, "no-mask": 5},
        ),
        ([("VESSEL-0010", "other", "m.nii")], {"unknown-label": 5, "series-refused": 1}),
        ([("NOBODY-9", "vessels", "m.nii")], {"mask-without-series": 1, "no-label": 5}),
        ([("VESSEL-0010", "vessels", "m.nii")], {"not-binary-mask": 1, "mask-refused": 5}),
    ],
)
def test_every_row_that_does_not_fit_gives_its_reason(
    tmp_path: Path, key: bytes, rows: list[tuple[str, ...]], expected: dict[str, int]
) -> None:
    write_patient(tmp_path / "s", 1)
    series, mask = bare(tmp_path / "s")
    graded = mask * 3
    graded[2, 0, 0] = 1 if "not-binary-mask" in expected else 3
    made.write_nifti(tmp_path / "s" / "m.nii", made.nifti(series, graded))
    report = taken(tmp_path, key, [("VESSEL-0001", "vessels", ""), *rows])
    assert dict(report.quarantined) == expected
    assert report.ingested == 6


def test_every_reason_of_volumes_is_tested() -> None:
    names = [reason.value for reason in Reason]
    own = names[names.index("not-a-volume") : names.index("no-patient-id")]
    here = Path(__file__).read_text()
    assert [code for code in own if f'"{code}"' not in here] == []
    assert len(own) == 26


def test_links_are_not_followed(tmp_path: Path, key: bytes) -> None:
    write_patient(tmp_path / "s", 1)
    os.symlink(tmp_path / "s" / "p1-0.dcm", tmp_path / "s" / "link.dcm")
    assert dict(taken(tmp_path, key).quarantined) == {"not-a-regular-file": 1}
