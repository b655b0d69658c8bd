"""Puts the frames of one MR series on a grid, and reads their values.

In: all files of one series, in any order.
Out: a `Stack` by the headers alone; then the values, float32 [D, H, W], NaN for padding.
Guarantees:
  - of a series that holds several things, one enters (parts.py); copies are compared by pixels
  - slices lie as geometry says (series.py); every size is checked before it is allocated
  - a file that is no part of the volume has its reason, and a file at fault is named
Not covered: what the values show (volumes.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from client.ingest import dicom, dicom_header
from client.ingest.files import open_regular
from client.ingest.frames import ATTRIBUTES, frames_of
from client.ingest.parts import Chosen, Frame, choose_part
from client.ingest.patterns import count_values, map_values
from client.ingest.quarantine import Reason, Unusable
from client.ingest.request import Caps
from client.ingest.series import Grid, arrange_slices


@dataclass(frozen=True, eq=False)
class Stack:
    """A series before its pixels are read: its frames, those that make the volume, its grid.

    `depths`: the slice of each kept frame and of each copy, by the frame's position.
    """

    frames: Sequence[Frame]
    chosen: Chosen
    depths: Mapping[int, int]
    grid: Grid


class BadSlice(Unusable):
    """One file, number `at`, makes its series unusable."""

    def __init__(self, reason: Reason, at: int) -> None:
        super().__init__(reason)
        self.at = at


def read_stack(paths: Sequence[str], caps: Caps) -> Stack:
    """Return the stack of the files at `paths`, by their headers alone.

    Raises Unusable when they make no volume, BadSlice when one of them is at fault.
    """
    # read the headers
    frames: list[Frame] = []
    for at, path in enumerate(paths):
        with _blame_file(at):
            frames += _read_frames(path, caps, at)

    # choose a part and order its slices
    chosen = choose_part(frames, caps.take)
    order, grid = arrange_slices([frames[position].plane for position in chosen.kept])
    if 4 * int(np.prod(grid.shape)) > caps.max_volume_bytes:
        raise Unusable(Reason.DECLARED_TOO_LARGE)
    if min(grid.shape[1:]) < caps.size_px:
        raise Unusable(Reason.VOLUME_TOO_SMALL)
    depths = {chosen.kept[at]: depth for depth, at in enumerate(order)}
    for copy, original in chosen.copies.items():
        depths[copy] = depths[original]
    return Stack(frames, chosen, depths, grid)


def read_values(
    paths: Sequence[str], stack: Stack, caps: Caps
) -> tuple[NDArray[np.float32], dict[int, Reason]]:
    """Return the values of the grid, float32 [D, H, W], and the reason of each file beside it.

    A slice that cannot be read may have a copy that can. Raises BadSlice where it has none, and
    Unusable (altered-copy, duplicate-slice) where two frames at one place differ.
    """
    values = np.empty(stack.grid.shape, np.float32)
    first: dict[int, int] = {}  # the frame that gave each slice
    refused: dict[int, BadSlice] = {}
    for file, own in _by_file(stack):
        try:
            with _blame_file(file):
                altered = _read_file(paths[file], stack, own, caps, values, first)
        except BadSlice as refusal:
            refused[file] = refusal
            continue
        # whichever of the two is right, the series is refused as a whole
        if altered:
            raise Unusable(_why_altered(stack, *altered[0]))

    # a slice that no file gave
    for position, depth in stack.depths.items():
        if depth not in first:
            raise refused[stack.frames[position].file]
    left_out = _files_left_out(stack, {stack.frames[position].file for position in first.values()})
    left_out |= {file: refusal.reason for file, refusal in refused.items()}
    return values, left_out


def _by_file(stack: Stack) -> Iterator[tuple[int, list[int]]]:
    """Each file with its frames that are slices of the volume or copies, by position."""
    found: dict[int, list[int]] = {}
    for position in stack.depths:
        found.setdefault(stack.frames[position].file, []).append(position)
    yield from sorted(found.items())


def _read_file(
    path: str,
    stack: Stack,
    own: Sequence[int],
    caps: Caps,
    values: NDArray[np.float32],
    first: dict[int, int],
) -> list[tuple[int, int]]:
    """Fill in the slices that are not there yet; return the pairs that differ at one place."""
    altered = []
    for position, plane in _values(path, stack, own, caps):
        depth = stack.depths[position]
        if depth not in first:
            first[depth] = position
            values[depth] = plane
        elif not np.array_equal(values[depth], plane, equal_nan=True):
            altered.append((first[depth], position))
    return altered


def _why_altered(stack: Stack, one: int, other: int) -> Reason:
    """The reason for two frames that differ at one place."""
    instance = stack.frames[one].instance
    if instance and instance == stack.frames[other].instance:
        return Reason.ALTERED_COPY
    return Reason.DUPLICATE_SLICE


def _files_left_out(stack: Stack, used: set[int]) -> dict[int, Reason]:
    """The reason of each file of which no frame is in the volume.

    Its frames are copies, or what the plan does not take; the commonest reason counts.
    """
    reasons: dict[int, list[Reason]] = {}
    for position, frame in enumerate(stack.frames):
        if frame.file not in used:
            reason = stack.chosen.left_out.get(position, Reason.DUPLICATE)
            reasons.setdefault(frame.file, []).append(reason)
    return {file: max(found, key=found.count) for file, found in reasons.items()}


@contextmanager
def _blame_file(at: int) -> Iterator[None]:
    """Turn what fails inside into a refusal that names file `at`."""
    try:
        yield
    except MemoryError:
        raise
    except Unusable as refusal:
        raise BadSlice(refusal.reason, at) from refusal
    except Exception as error:
        raise BadSlice(Reason.UNDECODABLE, at) from error


def _read_frames(path: str, caps: Caps, at: int) -> list[Frame]:
    """The frames of the file at `path`, number `at` of its series."""
    with open_regular(path, caps.max_file_bytes) as file:
        dicom_header.bound_inflation(file, caps.max_pixel_bytes)
        header = dicom_header.read_header(file, pixels=False, more=ATTRIBUTES)
        return frames_of(header, caps, at)


def _values(
    path: str, stack: Stack, own: Sequence[int], caps: Caps
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield the position of each own frame of a file, and its values, float32 [H, W]."""
    # the file as it is now, which must still be within the caps
    with open_regular(path, caps.max_file_bytes) as file:
        dicom_header.bound_inflation(file, caps.max_pixel_bytes)
        header = dicom_header.read_header(file, pixels=False)
        dicom_header.check_size(header, caps.max_pixel_bytes)
        full = dicom_header.read_header(file, pixels=True)
    count = dicom_header.count_frames(header)
    full.NumberOfFrames = count

    for position in own:
        frame = stack.frames[position]
        if frame.index >= count:
            raise Unusable(Reason.TRUNCATED)
        stored = dicom.read_frame(full, frame.index, count)
        if stored.shape != stack.grid.shape[1:]:
            raise Unusable(Reason.UNDECODABLE)
        if frame.rescale is not None:
            full.RescaleSlope, full.RescaleIntercept = frame.rescale
        yield position, _values_meant(full, stored)


def _values_meant(full: Dataset, stored: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
    """The values that stored ones mean, float32 [H, W]; padding is NaN."""
    # one table over all stored patterns: modality values, NaN for padding
    raw = stored.view(f"u{stored.dtype.itemsize}")
    counts = count_values(raw)
    bits = min(int(full.BitsStored), 8 * stored.dtype.itemsize)
    patterns = dicom.stored_values(len(counts), bits, stored.dtype.kind == "i")
    with np.errstate(over="ignore", invalid="ignore"):
        table = dicom.modality_values(full, patterns, counts).astype(np.float32)
    table[dicom.padding_of(full, patterns, counts)] = np.nan
    if np.isinf(table).any():
        raise Unusable(Reason.RESCALE)
    return map_values(raw, table)
