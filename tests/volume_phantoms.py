"""Tiny MR series, DICOM segmentations and NIfTI masks with known truth.

They are written independently of the demo's writer. Everything is small, seeded and invented, and
headers carry `phantoms.MARKERS`.
"""

from __future__ import annotations

import gzip
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from tests import phantoms

SEG = UID("1.2.840.10008.5.1.4.1.1.66.4")
ENHANCED = UID("1.2.840.10008.5.1.4.1.1.4.1")
SHAPE = (5, 40, 48)
STRAIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


@contextmanager
def peak_bytes() -> Iterator[Callable[[], int]]:
    """Yield a function that returns the peak memory of Python and numpy since the block began."""
    tracemalloc.start()
    try:
        yield lambda: tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def image(seed: int, shape: tuple[int, int, int] = SHAPE) -> NDArray[np.int64]:
    """A volume of 12-bit levels, no two slices alike."""
    chance = np.random.default_rng(seed)
    coarse = chance.integers(200, 1500, (shape[0], *(n // 8 for n in shape[1:])))
    return np.asarray(
        coarse.repeat(8, 1).repeat(8, 2) + chance.integers(0, 200, shape), dtype=np.int64
    )


def vessels(seed: int, shape: tuple[int, int, int] = SHAPE) -> NDArray[np.uint8]:
    """A lopsided mask: no flip or turn maps it onto itself; the first slice is empty."""
    chance = np.random.default_rng(1000 + seed)
    mask = np.zeros(shape, np.uint8)
    for depth in range(1, shape[0]):
        row, column = chance.integers(2, shape[1] - 6), chance.integers(2, shape[2] - 12)
        mask[depth, row : row + 3, column : column + 9] = 1
        mask[depth, row : row + depth, column] = 1
    return mask


@dataclass(frozen=True, eq=False)
class Series:
    """One series as it will be written.

    `values` are int [D, H, W] as stored; `spacing` of rows and columns and `gap` between slices are
    in mm.
    """

    patient_id: str
    values: NDArray[np.int64]
    uid: str = "2.25.1001"
    frame: str = "2.25.2001"
    origin: tuple[float, float, float] = (-20.0, 10.0, 30.0)
    orientation: tuple[float, ...] = STRAIGHT
    spacing: tuple[float, float] = (0.5, 0.4)
    gap: float = 0.7
    attributes: tuple[tuple[str, Any], ...] = ()

    def affine(self) -> NDArray[np.float64]:
        """LPS place of voxel (w, h, d, 1)."""
        row, column = np.array(self.orientation[:3]), np.array(self.orientation[3:])
        affine = np.eye(4)
        affine[:3, 0], affine[:3, 1] = row * self.spacing[1], column * self.spacing[0]
        affine[:3, 2], affine[:3, 3] = np.cross(row, column) * self.gap, self.origin
        return affine

    def place(self, depth: float) -> list[float]:
        """ImagePositionPatient of a slice."""
        return [round(float(v), 6) for v in self.affine()[:3, 3] + depth * self.affine()[:3, 2]]


def slice_of(series: Series, depth: int, **attributes: Any) -> Dataset:
    """The data set of one slice; `attributes` are set last, even where they break it."""
    dataset = phantoms.header("MR", series.patient_id)
    signed = bool((series.values < 0).any())
    phantoms.with_pixels(
        dataset, series.values[depth].astype("<i2" if signed else "<u2"), "MONOCHROME2"
    )
    dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = series.uid, series.frame
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = UID(
        f"{series.uid}.{depth + 1}"
    )
    dataset.ImagePositionPatient = series.place(depth)
    dataset.ImageOrientationPatient, dataset.PixelSpacing = (
        list(series.orientation),
        list(series.spacing),
    )
    dataset.InstanceNumber = depth + 1
    for name, value in (*series.attributes, *attributes.items()):
        setattr(dataset, name, value)
    return dataset


def write_series(folder: Path, series: Series, name: str = "s", **attributes: Any) -> list[Path]:
    """Write every slice of `series` as `folder`/`name`-d.dcm."""
    depths = range(len(series.values))
    return [
        phantoms.save(slice_of(series, d, **attributes), folder / f"{name}-{d}.dcm") for d in depths
    ]


def enhanced(
    series: Series,
    groups: Sequence[tuple[int, dict[str, Dataset]]] | None = None,
    **attributes: Any,
) -> Dataset:
    """An enhanced MR object with a frame for each of `groups`: (depth, further groups by name).

    By default all slices, once each. Positions stand by the frame, the rest is shared.
    """
    frames = groups or [(depth, {}) for depth in range(len(series.values))]
    dataset = phantoms.header("MR", series.patient_id)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = ENHANCED
    values = np.stack([series.values[depth] for depth, _ in frames]).astype("<u2")
    phantoms.with_pixels(dataset, values, "MONOCHROME2", frames=len(frames))
    dataset.NumberOfFrames = len(frames)
    dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = series.uid, series.frame
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = UID(f"{series.uid}.9")
    dataset.SharedFunctionalGroupsSequence = [
        item(
            PixelMeasuresSequence=[item(PixelSpacing=list(series.spacing))],
            PlaneOrientationSequence=[item(ImageOrientationPatient=list(series.orientation))],
        )
    ]
    own = []
    for depth, more in frames:
        group = item(PlanePositionSequence=[item(ImagePositionPatient=series.place(depth))])
        for name, one in more.items():
            setattr(group, name, [one])
        own.append(group)
    dataset.PerFrameFunctionalGroupsSequence = own
    for name, value in attributes.items():
        setattr(dataset, name, value)
    return dataset


def segmentation(series: Series, mask: NDArray[np.uint8], **attributes: Any) -> Dataset:
    """A binary DICOM SEG of `mask` on the grid of `series`; slices without a mark have no frame."""
    dataset = phantoms.header("MR", series.patient_id)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = SEG
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = UID(f"{series.uid}.99")
    dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "2.25.77", series.frame
    dataset.Modality, dataset.SegmentationType, dataset.SegmentSequence = (
        "SEG",
        "BINARY",
        [Dataset()],
    )
    dataset.ReferencedSeriesSequence = [item(SeriesInstanceUID=series.uid)]
    depths = [d for d in range(len(mask)) if mask[d].any()]
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = *mask.shape[1:], len(depths)
    dataset.BitsAllocated = dataset.BitsStored = dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation, dataset.HighBit, dataset.PixelRepresentation = (
        "MONOCHROME2",
        0,
        0,
    )
    measures, turn = (
        item(PixelSpacing=list(series.spacing)),
        item(ImageOrientationPatient=list(series.orientation)),
    )
    dataset.SharedFunctionalGroupsSequence = [
        item(PixelMeasuresSequence=[measures], PlaneOrientationSequence=[turn])
    ]
    places = [item(ImagePositionPatient=series.place(d)) for d in depths]
    dataset.PerFrameFunctionalGroupsSequence = [
        item(PlanePositionSequence=[place]) for place in places
    ]
    bits = np.packbits(mask[depths].ravel(), bitorder="little").tobytes()
    dataset.PixelData = bits + b"\0" * (len(bits) % 2)
    dataset["PixelData"].VR = "OB"
    for name, value in attributes.items():
        setattr(dataset, name, value)
    return dataset


def item(**attributes: Any) -> Dataset:
    """A data set of `attributes`, as it stands in a sequence."""
    dataset = Dataset()
    for name, value in attributes.items():
        setattr(dataset, name, value)
    return dataset


def write_segmentation(
    path: Path, series: Series, mask: NDArray[np.uint8], **attributes: Any
) -> Path:
    """Write `segmentation` to `path`."""
    return phantoms.save(segmentation(series, mask, **attributes), path)


def nifti(
    series: Series,
    mask: NDArray[Any],
    *,
    flips: tuple[int, ...] = (),
    axes: tuple[int, int, int] = (0, 1, 2),
    kind: Any = nibabel.Nifti1Image,
) -> Any:
    """Return a NIfTI image of `mask` [D, H, W] in RAS.

    Its axes (w, h, d) are reordered to `axes`, then those in `flips` are reversed.
    """
    data = mask.transpose(2, 1, 0)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ series.affine()
    data, affine = data.transpose(axes), affine[:, [*axes, 3]]
    for axis in flips:
        back = np.eye(4)
        back[axis, axis], back[axis, 3] = -1, data.shape[axis] - 1
        data, affine = np.flip(data, axis), affine @ back
    return kind(np.ascontiguousarray(data), affine)


def write_nifti(path: Path, image: Any) -> Path:
    """Write a NIfTI image to `path`, compressed if its name says so."""
    raw = image.to_bytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(raw, mtime=0) if path.suffix == ".gz" else raw)
    return path


def patient(number: int, **changes: Any) -> tuple[Series, NDArray[np.uint8]]:
    """A series and its mask, different for each patient."""
    series = Series(
        f"VESSEL-{number:04d}", image(number), uid=f"2.25.10{number}", frame=f"2.25.20{number}"
    )
    return replace(series, **changes), vessels(number)
