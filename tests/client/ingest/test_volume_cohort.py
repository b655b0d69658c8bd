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

from client.ingest.build import COMPARING, READING, WRITING, IngestReport, ingest
from client.ingest.cohort import Cohort
from client.ingest.likeness import near_duplicates
from client.ingest.quarantine import Reason
from client.ingest.request import Limits
from client.ingest.volume_source import deal_patches
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
    seen: list[tuple[str, int, int]] = []
    report = taken(tmp_path, key, phases=lambda *at: seen.append(at))
    assert (report.ingested, report.patients, dict(report.quarantined)) == (18, 3, {})
    read = [(done, total) for name, done, total in seen if name == READING]
    assert read == sorted(read) and read[-1] == (36, 36)  # scanned and read
    assert seen[-2:] == [(COMPARING, 3, 3), (WRITING, 30, 30)]
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


def other(series: made.Series) -> made.Series:
    """Other images of the same places, under UIDs of their own."""
    return replace(series, values=made.image(77), uid="2.25.11")


def with_more(
    change: Callable[[made.Series], made.Series], slices: int = 5, **attributes: Any
) -> Callable[[Path], None]:
    """A patient with more slices in the series; a pair of values is that of the first and these."""

    def write(folder: Path) -> None:
        pairs = {name: value for name, value in attributes.items() if isinstance(value, tuple)}
        of_first = {name: pair[0] for name, pair in pairs.items()}
        of_more = attributes | {name: pair[1] for name, pair in pairs.items()}
        series, mask = bare(folder)
        made.write_series(folder, series, "x", **of_first)
        made.write_segmentation(folder / "x-mask.dcm", series, mask)
        changed = change(series)
        for depth in range(slices):
            dataset = made.slice_of(changed, depth, InstanceCreationTime="101112", **of_more)
            dataset.SeriesInstanceUID = series.uid
            phantoms.save(dataset, folder / f"more-{depth}.dcm")

    return write


def two_series_for_a_mask(folder: Path) -> None:
    series, mask = bare(folder)
    made.write_series(folder, replace(other(series), uid="2.25.12"), "y")
    made.write_segmentation(folder / "x-mask.dcm", series, mask, ReferencedSeriesSequence=[])


def no_frame_of_reference(folder: Path) -> None:
    series, mask = bare(folder, frame="")
    made.write_segmentation(folder / "x-mask.dcm", series, mask, ReferencedSeriesSequence=[])


def mask_sent_again(folder: Path) -> None:
    series, mask = bare(folder)
    made.write_segmentation(folder / "x-mask.dcm", series, mask)
    made.write_segmentation(folder / "y-mask.dcm", series, mask, InstanceCreationTime="101112")


def contradictory(folder: Path) -> None:
    series, mask = bare(folder)
    image = made.nifti(series, mask)
    image.set_qform(made.nifti(series, mask, flips=(0,)).affine, 1)
    made.write_nifti(folder / "m.nii", image)


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
ENTERING = {"duplicate-image", "other-component", "projection-image", "derived-of-series"}
ENTERING |= {"other-echo", "other-diffusion-weight", "other-time-point"}
CASES: dict[str, tuple[Callable[[Path], None], dict[str, int]]] = {
    "no mask": (lambda folder: bare(folder) and None, {"no-mask": 5}),
    "a mask of nothing here": (
        with_mask(lambda s, m: made.segmentation(replace(s, uid="2.25.5"), m)),
        {"mask-without-series": 1, "no-mask": 5},
    ),
    "a mask in another frame of reference": (
        with_mask(lambda s, m: made.segmentation(replace(s, frame="2.25.5"), m)),
        {"mask-of-other-frame": 1, "no-mask": 5},
    ),
    "a mask that references no series and lies on another grid": (
        with_mask(
            lambda s, m: made.segmentation(replace(s, gap=0.9), m, ReferencedSeriesSequence=[])
        ),
        {"mask-fits-no-series": 1, "no-mask": 5},
    ),
    "a mask that references no series and is another patient's": (
        with_mask(
            lambda s, m: made.segmentation(
                replace(s, patient_id="ANOTHER-1"), m, ReferencedSeriesSequence=[]
            )
        ),
        {"mask-fits-no-series": 1, "no-mask": 5},
    ),
    "a mask that references no series and no frame of reference": (
        with_mask(
            lambda s, m: made.segmentation(replace(s, frame=""), m, ReferencedSeriesSequence=[])
        ),
        {"mask-fits-no-series": 1, "no-mask": 5},
    ),
    "a mask and a series, both without a frame of reference": (
        no_frame_of_reference,
        {"mask-fits-no-series": 1, "no-mask": 5},
    ),
    "a mask that references no series and lies on two": (
        two_series_for_a_mask,
        {"mask-fits-several-series": 1, "no-mask": 10},
    ),
    "a mask sent again": (mask_sent_again, {"duplicate-image": 1}),
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
    "a mask of bytes": (
        with_mask(lambda s, m: made.segmentation(s, m, BitsAllocated=8)),
        {"mask-pixel-type": 1, **MASK_FAULT},
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
        with_more(lambda s: replace(s, values=s.values + 1, uid="2.25.11"), slices=1),
        {"duplicate-slice": 6, **SERIES_FAULT},
    ),
    "an altered copy of a slice": (
        with_more(lambda s: replace(s, values=s.values + 1), slices=1),
        {"altered-copy": 6, **SERIES_FAULT},
    ),
    "slices sent again": (with_more(lambda s: s, slices=2), {"duplicate-image": 2}),
    "slices sent again under other UIDs": (
        with_more(lambda s: replace(s, uid="2.25.11"), slices=5),
        {"duplicate-image": 5},
    ),
    "phase images": (
        with_more(other, ImageType=["ORIGINAL", "PRIMARY", "P", "FFE"]),
        {"other-component": 5},
    ),
    "projections": (
        with_more(
            lambda s: replace(other(s), orientation=(1.0, 0.0, 0.0, 0.0, 0.0, -1.0)),
            ImageType=["DERIVED", "PRIMARY", "PROJECTION IMAGE"],
        ),
        {"projection-image": 5},
    ),
    "derived images": (
        with_more(other, ImageType=["DERIVED", "PRIMARY", "OTHER"]),
        {"derived-of-series": 5},
    ),
    "a second echo": (with_more(other, **{"EchoTime": (4.0, 9.0)}), {"other-echo": 5}),
    "a second diffusion weight": (
        with_more(other, **{"DiffusionBValue": (0.0, 800.0)}),
        {"other-diffusion-weight": 5},
    ),
    "a second time point": (
        with_more(other, **{"TemporalPositionIdentifier": (1, 2)}),
        {"other-time-point": 5},
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
        {"colour-slice": 5, "mask-without-series": 1},
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
    # where only more files than needed were refused, the patient enters
    enters = set(expected) <= ENTERING
    assert report.ingested == (12 if enters else 6)


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
        ([("VESSEL-0010", "vessels", "m.nii")], {"contradictory-mask": 1, "mask-refused": 5}),
        ([("VESSEL-0010", "vessels", "m.nii")], {"mask-without-place": 1, "mask-refused": 5}),
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
    if "contradictory-mask" in expected:
        contradictory(tmp_path / "s")
    if "mask-without-place" in expected:
        nowhere = made.nifti(series, mask)
        nowhere.set_sform(None, 0)
        made.write_nifti(tmp_path / "s" / "m.nii", nowhere)
    report = taken(tmp_path, key, [("VESSEL-0001", "vessels", ""), *rows])
    assert dict(report.quarantined) == expected
    assert report.ingested == 6


def test_every_reason_of_volumes_is_tested() -> None:
    names = [reason.value for reason in Reason]
    own = names[names.index("not-a-volume") : names.index("no-patient-id")]
    here = Path(__file__).read_text()
    assert [code for code in own if f'"{code}"' not in here] == []
    assert len(own) == 40


def test_what_enters_of_a_series_that_holds_several_things_are_its_own_slices(
    tmp_path: Path, key: bytes
) -> None:
    write_patient(tmp_path / "s", 10)
    alone = taken(tmp_path, key).digest
    shutil.rmtree(tmp_path / "s")
    for name in ("phase images", "a second echo", "slices sent again", "projections"):
        CASES[name][0](tmp_path / "s")
        assert taken(tmp_path, key).digest == alone
        shutil.rmtree(tmp_path / "s")


def test_a_plan_may_take_the_last_echo(tmp_path: Path, key: bytes) -> None:
    CASES["a second echo"][0](tmp_path / "s")
    first = taken(tmp_path, key)
    rules = RULES.model_dump(mode="json")
    rules["volumes"]["take"] = {"echo": "last"}
    last = taken(tmp_path, key, rules=Intake.model_validate(rules))
    assert dict(first.quarantined) == dict(last.quarantined) == {"other-echo": 5}
    assert first.digest != last.digest


def test_an_enhanced_object_and_its_masks_are_read_as_its_slices_are(
    tmp_path: Path, key: bytes
) -> None:
    write_patient(tmp_path / "s", 1)
    slices = taken(tmp_path, key).digest
    series, mask = made.patient(1)
    for kind in ("segmentation", "nifti"):
        shutil.rmtree(tmp_path / "s")
        phantoms.save(made.enhanced(series), tmp_path / "s" / "e.dcm")
        if kind == "segmentation":
            made.write_segmentation(tmp_path / "s" / "m.dcm", series, mask)
            report = taken(tmp_path, key)
        else:
            made.write_nifti(tmp_path / "s" / "m.nii", made.nifti(series, mask))
            rows = [("e.dcm", "VESSEL-0001", "vessels", "m.nii")]
            report = taken(tmp_path, key, rows, "file,patient,label,mask")
        assert (report.ingested, dict(report.quarantined)) == (2, {})
        assert report.digest == slices


def test_a_mask_that_names_no_series_belongs_to_the_one_on_whose_grid_it_lies(
    tmp_path: Path, key: bytes
) -> None:
    write_patient(tmp_path / "s", 1)
    named = Cohort.open(tmp_path / "c0") if taken(tmp_path, key) else None
    series, mask = made.patient(1)
    thinner = replace(series, uid="2.25.12", spacing=(0.45, 0.4), values=made.image(5))
    made.write_series(tmp_path / "s", thinner, "thinner")
    unnamed = {"no series": [], "two series": [made.item(SeriesInstanceUID=series.uid)] * 2}
    unnamed["two series"][1] = made.item(SeriesInstanceUID=thinner.uid)
    for number, references in enumerate(unnamed.values(), 1):
        made.write_segmentation(
            tmp_path / "s" / "p1-mask.dcm", series, mask, ReferencedSeriesSequence=references
        )
        assert dict(taken(tmp_path, key).quarantined) == {"no-mask": 5}
        assert named is not None
        found = Cohort.open(tmp_path / f"c{number}")
        assert found.images.tobytes() == named.images.tobytes()


def test_links_are_not_followed(tmp_path: Path, key: bytes) -> None:
    write_patient(tmp_path / "s", 1)
    os.symlink(tmp_path / "s" / "p1-0.dcm", tmp_path / "s" / "link.dcm")
    assert dict(taken(tmp_path, key).quarantined) == {"not-a-regular-file": 1}
