"""Puts a vessel mask, DICOM segmentation or NIfTI, on the grid of its series.

In: an open file and the `Grid` of the series.
Out: the mask as booleans [D, H, W], or a reason.
Guarantees:
  - every size is checked before anything of that size is allocated; compressed NIfTI inflates up to
    the cap and no further
  - a mask enters only if its own geometry puts each corner within a tenth of a voxel of the series
  - axes may be swapped and flipped; nothing is resampled or guessed
  - the mask marks something, with one value
Not covered: whether the marks are vessels.

DICOM SEG: binary, one segment, native transfer syntax; a slice without a frame is background (PS3.3
A.51, C.8.20). NIfTI 1 and 2 in one file: sform or qform, whichever lies on the grid; RAS becomes
LPS (nifti1.h).
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from itertools import product
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset

from client.ingest.dicom_header import bound_inflation, number_of, text_of
from client.ingest.frames import functional_groups, group_plane
from client.ingest.quarantine import Reason, Unusable
from client.ingest.series import Grid, Plane

Mask = NDArray[np.bool_]

SEGMENTATION = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99")
ALLOWED = (
    "SegmentationType SegmentSequence Rows Columns NumberOfFrames SamplesPerPixel BitsAllocated "
    "SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence PixelData"
).split()
GZIP = b"\x1f\x8b"
NIFTI_1 = b"n+1\0"
NIFTI_2 = b"n+2\0\r\n\x1a\n"
HEAD_BYTES = 540
TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_segmentation(file: BinaryIO, grid: Grid, max_bytes: int) -> Mask:
    """Return the mask in a DICOM SEG. Raises Unusable."""
    try:
        header = _read_bits(file, max_bytes)
        _check_segmentation(header)
        # frames of the series' size, at most one a slice
        shape = _shape_of_bits(header)
        if min(shape) < 1 or shape[1:] != grid.shape[1:] or shape[0] > grid.shape[0]:
            raise Unusable(Reason.MASK_GRID)
        # each frame's slice, and its marks
        depths = _depths(header, shape, grid)
        if len(set(depths)) != len(depths):
            raise Unusable(Reason.MASK_GRID)
        marks = _unpack_bits(header, shape)
    except (Unusable, MemoryError):
        raise
    except Exception as error:
        raise Unusable(Reason.DAMAGED_HEADER) from error
    mask = np.zeros(grid.shape, np.bool_)
    mask[depths] = marks
    return _check_not_empty(mask)


def lies_on(file: BinaryIO, grid: Grid, max_bytes: int) -> bool:
    """Return whether every frame of a DICOM SEG lies on a slice of `grid`, whatever it marks."""
    try:
        header = _read_bits(file, max_bytes)
        shape = _shape_of_bits(header)
        return shape[1:] == grid.shape[1:] and len(_depths(header, shape, grid)) > 0
    except MemoryError:
        raise
    except Exception:  # what cannot be placed lies nowhere
        return False


def content_of(file: BinaryIO, max_bytes: int) -> bytes:
    """Return SHA-256 of what a DICOM SEG marks and where: the same for a copy sent again."""
    header = _read_bits(file, max_bytes)
    shape = _shape_of_bits(header)
    shared, frames = functional_groups(header)
    planes = [group_plane(frame, shared, shape[1:]) for frame in frames]
    segments = len(header.get("SegmentSequence") or ())
    facts = (text_of(header, "SegmentationType"), segments, shape, planes)
    digest = hashlib.sha256(repr(facts).encode())
    digest.update(header.get("PixelData") or b"")
    return digest.digest()


def _read_bits(file: BinaryIO, max_bytes: int) -> Dataset:
    """The allow-listed attributes of a segmentation."""
    bound_inflation(file, max_bytes)
    file.seek(0)
    tags: list[Any] = list(ALLOWED)
    return dcmread(file, specific_tags=tags)


def _shape_of_bits(header: Dataset) -> tuple[int, int, int]:
    return number_of(header, "NumberOfFrames", 1), int(header.Rows), int(header.Columns)


def _check_segmentation(header: Dataset) -> None:
    """Refuse all but binary, uncompressed bits of one segment."""
    kind = text_of(header, "SegmentationType")
    if kind == "FRACTIONAL":
        raise Unusable(Reason.FRACTIONAL_MASK)
    if kind != "BINARY":
        raise Unusable(Reason.UNSUPPORTED_PIXELS)
    if number_of(header, "BitsAllocated") != 1 or number_of(header, "SamplesPerPixel", 1) != 1:
        raise Unusable(Reason.MASK_PIXELS)
    if header.file_meta.TransferSyntaxUID not in NATIVE:
        raise Unusable(Reason.UNSUPPORTED_TRANSFER_SYNTAX)
    if len(header.get("SegmentSequence") or ()) != 1:
        raise Unusable(Reason.SEGMENT_COUNT)


def _depths(header: Dataset, shape: tuple[int, int, int], grid: Grid) -> list[int]:
    """The slice of each frame, by the frame's own plane."""
    shared, frames = functional_groups(header)
    if len(frames) != shape[0]:
        raise Unusable(Reason.MASK_GRID)
    return [_depth(group_plane(frame, shared, grid.shape[1:]), grid) for frame in frames]


def _depth(plane: Plane, grid: Grid) -> int:
    """The slice on which a plane lies, corner by corner. Raises Unusable (mask-grid)."""
    step = grid.affine[:3, 2]
    depth = round(float((np.array(plane.origin) - grid.affine[:3, 3]) @ step / (step @ step)))
    if not 0 <= depth < grid.shape[0]:
        raise Unusable(Reason.MASK_GRID)
    offsets = np.linalg.norm(plane.corners() - grid.plane(depth).corners(), axis=1)
    if offsets.max() > grid.tolerance_mm:
        raise Unusable(Reason.MASK_GRID)
    return depth


def _unpack_bits(header: Dataset, shape: tuple[int, int, int]) -> Mask:
    """The marks: one bit a pixel, the first in the lowest bit, no gap between frames.

    (DICOM PS3.5 8.1.1)
    """
    count = shape[0] * shape[1] * shape[2]
    if len(header.get("PixelData") or b"") < (count + 7) // 8:
        raise Unusable(Reason.TRUNCATED)
    bits = np.unpackbits(np.frombuffer(header.PixelData, np.uint8), count=count, bitorder="little")
    return bits.reshape(shape).view(np.bool_)


def is_nifti(file: BinaryIO) -> bool:
    """Return whether an open file is a NIfTI file, plain or compressed, by its first bytes."""
    file.seek(0)
    head = file.read(2 * HEAD_BYTES)
    if head.startswith(GZIP):
        try:
            head = zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(head, HEAD_BYTES)
        except zlib.error:
            return False
    return head[344:348] == NIFTI_1 or head[4:12] == NIFTI_2


def read_nifti(file: BinaryIO, grid: Grid, max_bytes: int) -> Mask:
    """Return the mask in a NIfTI file. Raises Unusable."""
    import nibabel  # takes a second, and most hospitals have no NIfTI

    try:
        # the header: sizes within the cap, all voxels there, a geometry of its own
        data = _inflate(file, max_bytes)
        kind: Any = nibabel.Nifti1Image
        if data[4:12] == NIFTI_2:
            kind = nibabel.Nifti2Image
        header = kind.header_class(data[: kind.header_class.sizeof_hdr])
        shape = _shape(header, max_bytes)
        voxel_bytes = int(np.prod(shape)) * header.get_data_dtype().itemsize
        if len(data) < int(header["vox_offset"]) + voxel_bytes:
            raise Unusable(Reason.TRUNCATED)
        # how its axes lie on the series' grid, and the voxels
        turn = _turn_onto(header, shape, grid)
        stored = np.asanyarray(kind.from_bytes(data).dataobj).reshape(shape)
    except (Unusable, MemoryError):
        raise
    except Exception as error:
        raise Unusable(Reason.UNDECODABLE) from error
    # one value beside zero
    if stored.dtype.kind not in "biuf":
        raise Unusable(Reason.MASK_PIXELS)
    marked = stored != 0
    if marked.any() and stored.min(where=marked, initial=stored.max()) != stored.max():
        raise Unusable(Reason.NOT_BINARY)
    return _check_not_empty(np.ascontiguousarray(_reorient(marked, turn)))


def _inflate(file: BinaryIO, max_bytes: int) -> bytes:
    """The plain bytes of the file; never more than the cap is inflated."""
    file.seek(0)
    plain = file
    if file.read(2) == GZIP:
        file.seek(0)
        plain = gzip.GzipFile(fileobj=file, mode="rb")  # type: ignore[assignment]
    else:
        file.seek(0)
    data = plain.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise Unusable(Reason.DECLARED_TOO_LARGE)
    return data


def _shape(header: Any, max_bytes: int) -> tuple[int, int, int]:
    """The three sizes; further axes must have length one."""
    axes = min(max(int(header["dim"][0]), 0), 7)
    sizes = [int(n) for n in header["dim"][1 : 1 + axes]]
    if len(sizes) < 3 or min(sizes) < 1 or any(n != 1 for n in sizes[3:]):
        raise Unusable(Reason.MASK_GRID)
    if sizes[0] * sizes[1] * sizes[2] > max_bytes:
        raise Unusable(Reason.DECLARED_TOO_LARGE)
    return sizes[0], sizes[1], sizes[2]


def _turn_onto(header: Any, shape: tuple[int, int, int], grid: Grid) -> NDArray[np.int64]:
    """How the file's axes become (w, h, d), by whichever of its transforms lies on the grid.

    One may lead to a template or be left over from another tool; two that both fit must agree.
    Raises Unusable (mask-without-place, mask-grid, contradictory-mask).
    """
    fitting = []
    for affine in _transforms(header):
        try:
            fitting.append(_axes_onto(TO_LPS @ affine, shape, grid))
        except Unusable:
            continue
    if not (header["sform_code"] > 0 or header["qform_code"] > 0):
        raise Unusable(Reason.MASK_NOWHERE)
    if not fitting:
        raise Unusable(Reason.MASK_GRID)
    if any((turn != fitting[0]).any() for turn in fitting):
        raise Unusable(Reason.CONTRADICTORY_MASK)
    return fitting[0]


def _transforms(header: Any) -> Iterator[NDArray[np.float64]]:
    """The transforms that a NIfTI header says are set: sform, then qform, in RAS."""
    for read in (header.get_sform, header.get_qform):
        try:
            affine, code = read(coded=True)
        except Exception:  # a quaternion that is none
            continue
        if affine is not None and code > 0:
            yield np.asarray(affine, np.float64)


def _axes_onto(
    affine: NDArray[np.float64], shape: tuple[int, int, int], grid: Grid
) -> NDArray[np.int64]:
    """How the file's axes become (w, h, d): a signed permutation [3, 3].

    The file's voxels must be the grid's: the same box, every corner in its place. Raises Unusable
    (mask-grid).
    """
    # the file's axes in the grid's: rounded, a permutation with signs
    if not np.isfinite(affine).all():
        raise Unusable(Reason.MASK_GRID)
    between = np.linalg.inv(grid.affine) @ affine
    turn = np.rint(np.clip(between[:3, :3], -2, 2)).astype(np.int64)
    if not (np.abs(turn).sum(0) == 1).all() or not (np.abs(turn).sum(1) == 1).all():
        raise Unusable(Reason.MASK_GRID)
    size = np.array(grid.shape[::-1])
    if tuple(np.abs(turn) @ np.array(shape)) != tuple(size):
        raise Unusable(Reason.MASK_GRID)

    # where the grid puts the file's eight corners, and where the file says that they are
    ends = np.array(list(product((0, 1), repeat=3))) * (np.array(shape) - 1)
    start = np.where(turn.sum(1) < 0, size - 1, 0)
    meant = grid.affine[:3, :3] @ ((turn @ ends.T) + start[:, None]) + grid.affine[:3, 3:]
    said = affine[:3, :3] @ ends.T + affine[:3, 3:]
    if np.linalg.norm(meant - said, axis=0).max() > grid.tolerance_mm:
        raise Unusable(Reason.MASK_GRID)
    return turn


def _reorient(marked: Mask, turn: NDArray[np.int64]) -> Mask:
    """Reorder voxels [i, j, k] of the file to [D, H, W]."""
    source = np.abs(turn).argmax(1)  # the file's axis that becomes w, h, d
    turned = marked.transpose(source)
    steps = np.where(turn.sum(1) < 0, -1, 1)
    turned = turned[tuple(slice(None, None, step) for step in steps.tolist())]
    return turned.transpose(2, 1, 0)


def _check_not_empty(mask: Mask) -> Mask:
    if not mask.any():
        raise Unusable(Reason.EMPTY_MASK)
    return mask
