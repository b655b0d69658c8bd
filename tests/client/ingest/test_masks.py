"""client/ingest/masks.py.

A mask lies where its own geometry says, in any axes, or it is refused with its reason.
"""

from __future__ import annotations

import gzip
import io
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from pydicom.dataset import Dataset

from client.ingest.masks import is_nifti, read_nifti, read_segmentation
from client.ingest.quarantine import Reason, Unusable
from client.ingest.request import Caps
from client.ingest.series import Grid, arrange_slices, plane_of
from client.ingest.stack import read_stack, read_values
from tests import volume_phantoms as made

CAP = 1 << 24
TILTED = (0.9961947, 0.0, -0.0871557, 0.0075961, 0.9961947, 0.0868241)
SERIES, MASK = made.patient(1, orientation=TILTED)


def grid_of(series: made.Series = SERIES) -> Grid:
    planes = [
        plane_of(series.place(d), series.orientation, series.spacing, series.values.shape[1:])
        for d in range(len(series.values))
    ]
    return arrange_slices(planes)[1]


def seg(mask: Any = MASK, series: made.Series = SERIES, **attributes: Any) -> io.BytesIO:
    buffer = io.BytesIO()
    made.segmentation(series, mask, **attributes).save_as(buffer, enforce_file_format=True)
    return buffer


def nii(image: Any) -> io.BytesIO:
    return io.BytesIO(image.to_bytes())


def reason(read: Any, file: io.BytesIO, cap: int = CAP) -> Reason:
    with pytest.raises(Unusable) as refusal:
        read(file, grid_of(), cap)
    return refusal.value.reason


def test_a_segmentation_lies_where_its_frames_say() -> None:
    file = seg()
    frames = made.segmentation(SERIES, MASK)
    assert frames.NumberOfFrames == 4  # the empty slice has none
    np.testing.assert_array_equal(read_segmentation(file, grid_of(), CAP), MASK != 0)
    order = [2, 0, 3, 1]  # frames in another order
    shuffled = made.segmentation(SERIES, MASK)
    shuffled.PerFrameFunctionalGroupsSequence = [
        frames.PerFrameFunctionalGroupsSequence[i] for i in order
    ]
    shuffled.PixelData = np.packbits(MASK[1:][order].ravel(), bitorder="little").tobytes()
    buffer = io.BytesIO()
    shuffled.save_as(buffer, enforce_file_format=True)
    np.testing.assert_array_equal(read_segmentation(buffer, grid_of(), CAP), MASK != 0)


@pytest.mark.parametrize("flips", [(), (0,), (1,), (2,), (0, 1, 2)])
@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
def test_a_nifti_mask_lies_the_same_in_any_axes(
    flips: tuple[int, ...], axes: tuple[int, int, int]
) -> None:
    file = nii(made.nifti(SERIES, MASK, flips=flips, axes=axes))
    np.testing.assert_array_equal(read_nifti(file, grid_of(), CAP), MASK != 0)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32, np.float64])
def test_a_nifti_mask_may_be_of_any_type_and_of_version_2_or_compressed(kind: type) -> None:
    image = made.nifti(
        SERIES, MASK.astype(kind) * kind(255 if kind is np.uint8 else 1), kind=nibabel.Nifti2Image
    )
    file = io.BytesIO(gzip.compress(image.to_bytes()))
    assert is_nifti(file)
    np.testing.assert_array_equal(read_nifti(file, grid_of(), CAP), MASK != 0)


def test_a_nifti_mask_may_have_only_a_quaternion() -> None:
    image = made.nifti(SERIES, MASK, flips=(0,))
    image.set_sform(None, 0)
    image.set_qform(made.nifti(SERIES, MASK, flips=(0,)).affine, 1)
    np.testing.assert_array_equal(read_nifti(nii(image), grid_of(), CAP), MASK != 0)


TEMPLATE = np.diag([2.0, 2.0, 2.0, 1.0])


@pytest.mark.parametrize("code", [1, 3, 4, 5])
@pytest.mark.parametrize("right", ["sform", "qform"])
def test_of_two_transforms_the_one_that_lies_on_the_grid_counts(code: int, right: str) -> None:
    image = made.nifti(SERIES, MASK, flips=(0,))
    affine = image.affine.copy()
    image.set_sform(TEMPLATE if right == "qform" else affine, code)
    image.set_qform(TEMPLATE if right == "sform" else affine, 1)
    np.testing.assert_array_equal(read_nifti(nii(image), grid_of(), CAP), MASK != 0)


def test_two_transforms_of_which_none_fits_or_that_contradict_each_other_are_refused() -> None:
    image = made.nifti(SERIES, MASK)
    affine = image.affine.copy()
    image.set_sform(TEMPLATE, 4)
    image.set_qform(TEMPLATE, 1)
    assert reason(read_nifti, nii(image)) is Reason.MASK_GRID
    # both fill the same box, one from the other side
    image.set_sform(affine, 1)
    image.set_qform(made.nifti(SERIES, MASK, flips=(0,)).affine, 1)
    assert reason(read_nifti, nii(image)) is Reason.CONTRADICTORY_MASK


def test_a_mask_of_another_grid_is_refused() -> None:
    moved = made.patient(1, orientation=TILTED, origin=(-20.0, 10.2, 30.0))[0]
    coarser = made.patient(1, orientation=TILTED, spacing=(0.5, 0.41))[0]
    straight = made.patient(1)[0]
    thicker = made.patient(1, orientation=TILTED, gap=0.8)[0]
    for other in (moved, coarser, straight, thicker):
        assert reason(read_segmentation, seg(series=other)) is Reason.MASK_GRID
        assert reason(read_nifti, nii(made.nifti(other, MASK))) is Reason.MASK_GRID
    assert reason(read_segmentation, seg(MASK[:, :-1])) is Reason.MASK_GRID
    assert reason(read_nifti, nii(made.nifti(SERIES, MASK[:-1]))) is Reason.MASK_GRID
    assert (
        reason(read_nifti, nii(made.nifti(SERIES, np.stack([MASK, MASK])[0:2].reshape(10, 40, 48))))
        is Reason.MASK_GRID
    )
    nowhere = made.nifti(SERIES, MASK)
    nowhere.set_sform(None, 0)
    nowhere.set_qform(None, 0)
    assert reason(read_nifti, nii(nowhere)) is Reason.MASK_NOWHERE
    four = nibabel.Nifti1Image(
        np.stack([MASK.transpose(2, 1, 0)] * 2, -1), made.nifti(SERIES, MASK).affine
    )
    assert reason(read_nifti, nii(four)) is Reason.MASK_GRID


def test_two_frames_on_one_slice_are_refused() -> None:
    dataset = made.segmentation(SERIES, MASK)
    groups = dataset.PerFrameFunctionalGroupsSequence
    groups[1].PlanePositionSequence = groups[0].PlanePositionSequence
    assert (
        reason(read_segmentation, seg(PerFrameFunctionalGroupsSequence=list(groups)))
        is Reason.MASK_GRID
    )


def test_each_other_fault_of_a_segmentation_has_its_reason() -> None:
    assert reason(read_segmentation, seg(SegmentationType="FRACTIONAL")) is Reason.FRACTIONAL_MASK
    assert reason(read_segmentation, seg(SegmentationType="LABELMAP")) is Reason.UNSUPPORTED_PIXELS
    assert (
        reason(read_segmentation, seg(SegmentSequence=[Dataset(), Dataset()]))
        is Reason.SEGMENT_COUNT
    )
    assert reason(read_segmentation, seg(SegmentSequence=[])) is Reason.SEGMENT_COUNT
    assert reason(read_segmentation, seg(BitsAllocated=8)) is Reason.MASK_PIXELS
    assert reason(read_segmentation, seg(PixelData=b"\1\0")) is Reason.TRUNCATED
    blank = made.segmentation(SERIES, MASK)
    assert (
        reason(read_segmentation, seg(PixelData=bytes(len(blank.PixelData)))) is Reason.EMPTY_MASK
    )
    assert reason(read_segmentation, io.BytesIO(seg().getvalue()[:600])) is not None


def test_each_other_fault_of_a_nifti_mask_has_its_reason() -> None:
    graded = MASK.astype(np.float32)
    graded[2, 5, 5], graded[3, 5, 5] = 0.5, np.nan
    assert reason(read_nifti, nii(made.nifti(SERIES, graded))) is Reason.NOT_BINARY
    assert reason(read_nifti, nii(made.nifti(SERIES, MASK * 0))) is Reason.EMPTY_MASK
    assert reason(read_nifti, nii(made.nifti(SERIES, MASK * 1j))) is Reason.MASK_PIXELS
    negative = MASK.astype(np.int16)
    negative[2, 5, 5] = -1
    assert reason(read_nifti, nii(made.nifti(SERIES, negative))) is Reason.NOT_BINARY
    raw = made.nifti(SERIES, MASK).to_bytes()
    assert reason(read_nifti, io.BytesIO(raw[:-3000])) is Reason.TRUNCATED
    assert reason(read_nifti, io.BytesIO(gzip.compress(raw)[:-40])) is Reason.UNDECODABLE
    assert reason(read_nifti, io.BytesIO(raw[:345])) is not None


def test_a_gzip_bomb_inflates_no_further_than_the_cap() -> None:
    header = made.nifti(SERIES, MASK).to_bytes()[:352]
    bomb = io.BytesIO(gzip.compress(header + bytes(60 << 20), 6))
    assert len(bomb.getvalue()) < 1 << 17
    with made.peak_bytes() as peak:
        assert reason(read_nifti, bomb, cap=1 << 20) is Reason.DECLARED_TOO_LARGE
        assert peak() < 8 << 20


def test_nifti_is_known_by_its_content() -> None:
    assert is_nifti(nii(made.nifti(SERIES, MASK)))
    assert not is_nifti(io.BytesIO(gzip.compress(b"hello")))
    assert not is_nifti(io.BytesIO(b"\x1f\x8bnot gzip at all"))
    assert not is_nifti(io.BytesIO(b""))


def test_a_segmentation_by_highdicom_lies_where_it_says() -> None:
    """An independent writer of the standard, on slices handed over in another order."""
    hd = pytest.importorskip("highdicom")
    slices = [
        made.slice_of(
            SERIES,
            d,
            StudyTime="",
            AccessionNumber="",
            StudyID="",
            PatientSex="O",
            SliceThickness=0.7,
        )
        for d in range(5)
    ]
    meaning = hd.sr.CodedConcept("59820001", "SCT", "Blood vessel")
    description = hd.seg.SegmentDescription(
        1, "vessels", meaning, meaning, hd.seg.SegmentAlgorithmTypeValues.MANUAL
    )
    order = [3, 0, 4, 1, 2]
    dataset = hd.seg.Segmentation(
        [slices[d] for d in order],
        MASK[order],
        hd.seg.SegmentationTypeValues.BINARY,
        [description],
        "2.25.1",
        1,
        "2.25.2",
        1,
        "kohort tests",
        "none",
        "0",
        "0",
    )
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    np.testing.assert_array_equal(read_segmentation(buffer, grid_of(), CAP), MASK != 0)
    assert dataset.ReferencedSeriesSequence[0].SeriesInstanceUID == SERIES.uid


def test_slices_that_highdicom_converted_to_an_enhanced_object_are_read(tmp_path: Path) -> None:
    """An independent writer of the standard; two echoes of each slice in one object."""
    legacy = pytest.importorskip("highdicom.legacy")
    more: dict[str, Any] = {"StudyTime": "", "AccessionNumber": "", "StudyID": ""}
    more |= {"PatientSex": "O", "SliceThickness": 0.7, "SeriesNumber": 1, "Manufacturer": "x"}
    more |= {"RescaleSlope": 1, "RescaleIntercept": 0, "WindowCenter": 600, "WindowWidth": 900}
    slices = []
    for echo, series in (
        (9.0, replace(SERIES, values=made.image(77), uid="2.25.5")),
        (4.0, SERIES),
    ):
        slices += [made.slice_of(series, d, EchoTime=echo, **more) for d in range(5)]
    dataset = legacy.LegacyConvertedEnhancedMRImage(slices, "2.25.55", 1, "2.25.56", 1)
    dataset.save_as(tmp_path / "e.dcm")
    caps = Caps(32, ("MR",), None, 1 << 22, 1 << 22, 1 << 22)
    stack = read_stack([str(tmp_path / "e.dcm")], caps)
    values, _ = read_values([str(tmp_path / "e.dcm")], stack, caps)
    np.testing.assert_array_equal(values, SERIES.values)
