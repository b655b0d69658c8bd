"""Reads where each frame of an MR file lies and what it shows, from the header alone.

In: the header of a file of one slice, or of an enhanced object of many frames.
Out: a `Frame` for each (parts.py).
Guarantees: every size is checked before a frame is looked at; of functional groups only the
attributes named here are asked for.
Not covered: private attributes; dates and times.

DICOM PS3.3 C.7.6.16 (functional groups), C.8.13 (enhanced MR), C.8.3.1.1.1 and C.8.13.3.1.1 (image
and frame type, complex component).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from pydicom.dataset import Dataset

from client.ingest import dicom_header
from client.ingest.content import check_content
from client.ingest.dicom import is_inverted
from client.ingest.origin import check_origin
from client.ingest.parts import Frame, Part
from client.ingest.quarantine import Reason, Unusable
from client.ingest.request import Caps
from client.ingest.series import Plane, plane_of

ENHANCED = (
    "1.2.840.10008.5.1.4.1.1.4.1",
    "1.2.840.10008.5.1.4.1.1.4.4",  # converted from slices
)
GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
MOST_FRAMES = 20_000
# of a file of one slice: its place, and what tells it from others at that place; the times are
# milliseconds after excitation or trigger
GEOMETRY = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
PARTS = {
    "echo_ms": "EchoTime",
    "echo_number": "EchoNumbers",
    "b_value": "DiffusionBValue",
    "time_point": "TemporalPositionIdentifier",
    "trigger_ms": "TriggerTime",
    "acquisition": "AcquisitionNumber",
}
# the same in the functional groups of an enhanced object
GROUP_PARTS: dict[str, tuple[tuple[str, str], ...]] = {
    "echo_ms": (("MREchoSequence", "EffectiveEchoTime"),),
    "echo_number": (),
    "b_value": (("MRDiffusionSequence", "DiffusionBValue"),),
    "time_point": (
        ("FrameContentSequence", "TemporalPositionIndex"),
        ("TemporalPositionSequence", "TemporalPositionTimeOffset"),
    ),
    "trigger_ms": (("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),),
    "acquisition": (("FrameContentSequence", "FrameAcquisitionNumber"),),
}
# what was converted from single slices keeps their attributes here
CONVERTED = "UnassignedPerFrameConvertedAttributesSequence"
UIDS = ("SOPClassUID", "SOPInstanceUID")  # these tell objects and copies apart and are dropped
ATTRIBUTES = (*UIDS, *GEOMETRY, *PARTS.values(), *GROUPS, "ComplexImageComponent")

PROJECTIONS = {"PROJECTION IMAGE", "MIP", "MINIP", "MNIP", "MAX_IP", "MIN_IP", "CSA MIP", "VRT"}
# a word of the image type that names the component, and else how such a word begins
COMPONENTS = {
    **dict.fromkeys(("M", "MAG", "MAGNITUDE"), "magnitude"),
    **dict.fromkeys(("P", "PHASE"), "phase"),
    **dict.fromkeys(("R", "REAL"), "real"),
    **dict.fromkeys(("I", "IMAG", "IMAGINARY"), "imaginary"),
}
BEGINNINGS = {
    "M_": "magnitude",
    "P_": "phase",
    "PHASE MAP": "phase",
    "VELOCITY": "phase",
    "R_": "real",
    "I_": "imaginary",
}


def frames_of(header: Dataset, caps: Caps, file: int = 0) -> list[Frame]:
    """Return the frames of file number `file`.

    Raises Unusable: no grey pixels within the caps, or frames of which nothing says where they lie.
    """
    # the rules of one image
    dicom_header.check_rules(header, caps.modalities)
    check_origin(header, accept_derived=caps.choices.accept_derived)
    check_content(header, caps.wanted, refuse_silent=caps.choices.refuse_silent)
    count = dicom_header.count_frames(header)
    is_enhanced = header.get("SOPClassUID") in ENHANCED
    if count > 1 and not is_enhanced:
        raise Unusable(Reason.MULTI_FRAME)
    if header.PhotometricInterpretation not in dicom_header.GREY:
        raise Unusable(Reason.COLOUR_SLICE)
    dicom_header.check_size(header, caps.max_pixel_bytes)
    if count > MOST_FRAMES:
        raise Unusable(Reason.DECLARED_TOO_LARGE)

    # the place of each frame, and what must be the same in all of a series
    kind = (is_inverted(header), header.BitsAllocated, header.PixelRepresentation)
    shape = (int(header.Rows), int(header.Columns))
    if is_enhanced:
        return _enhanced_frames(header, count, shape, kind, file)
    position, orientation, spacing = (header.get(name) for name in GEOMETRY)
    plane = plane_of(position, orientation, spacing, shape, kind)
    numbers = {name: header.get(attribute) for name, attribute in PARTS.items()}
    part = _part(_words(header.get("ImageType")), header.get("ComplexImageComponent"), numbers)
    instance = dicom_header.text_of(header, "SOPInstanceUID")
    return [Frame(file, 0, plane, part, instance)]


def _enhanced_frames(
    header: Dataset, count: int, shape: tuple[int, int], kind: tuple[Any, ...], file: int
) -> list[Frame]:
    """The frames of an enhanced object, each by its own functional groups."""
    shared, groups = functional_groups(header)
    if len(groups) != count:
        raise Unusable(Reason.MULTI_FRAME)
    of_object = _words(header.get("ImageType"))
    frames = []
    for index, group in enumerate(groups):
        types = "MRImageFrameTypeSequence"
        words = _words(group_value(group, shared, types, "FrameType")) or of_object
        component = group_value(group, shared, types, "ComplexImageComponent")
        component = component or header.get("ComplexImageComponent")
        numbers = {name: _group_number(group, shared, name) for name in PARTS}
        plane = group_plane(group, shared, shape, kind)
        part = _part(words, component, numbers)
        frames.append(Frame(file, index, plane, part, rescale=_rescale(group, shared)))
    return frames


def functional_groups(header: Dataset) -> tuple[Dataset, Any]:
    """Return the shared functional groups of a multi-frame object, and those of its frames."""
    shared = (header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    return shared, header.get("PerFrameFunctionalGroupsSequence") or ()


def group_value(frame: Dataset, shared: Dataset, sequence: str, name: str) -> Any:
    """Return a value of a frame's own functional groups, else of the shared ones; None if absent.

    A sequence stands in one of the two (PS3.3 C.7.6.16.1.1).
    """
    found = frame.get(sequence) or shared.get(sequence)
    if not found:
        return None
    return found[0].get(name)


def group_plane(
    frame: Dataset, shared: Dataset, shape: tuple[int, int], kind: tuple[Any, ...] = ()
) -> Plane:
    """Return a frame's plane by its functional groups. Raises Unusable (no-geometry)."""
    position = group_value(frame, shared, "PlanePositionSequence", "ImagePositionPatient")
    turn = group_value(frame, shared, "PlaneOrientationSequence", "ImageOrientationPatient")
    spacing = group_value(frame, shared, "PixelMeasuresSequence", "PixelSpacing")
    return plane_of(position, turn, spacing, shape, kind)


def _group_number(frame: Dataset, shared: Dataset, name: str) -> Any:
    """A number of a frame by its functional groups, or as its single slice had it."""
    for sequence, attribute in GROUP_PARTS[name]:
        value = group_value(frame, shared, sequence, attribute)
        if value is not None:
            return value
    return group_value(frame, shared, CONVERTED, PARTS[name])


def _rescale(frame: Dataset, shared: Dataset) -> tuple[float, float] | None:
    """Slope and intercept of a frame; None where it has none."""
    sequence = "PixelValueTransformationSequence"
    slope = group_value(frame, shared, sequence, "RescaleSlope")
    intercept = group_value(frame, shared, sequence, "RescaleIntercept")
    if slope is None or intercept is None:
        return None
    return float(slope), float(intercept)


def _part(words: tuple[str, ...], component: Any, numbers: Mapping[str, Any]) -> Part:
    """What a frame shows, by its image type, its complex component and its numbers."""
    stated = COMPONENTS.get(str(component or "").upper(), "")
    return Part(
        is_projection=not PROJECTIONS.isdisjoint(words),
        is_derived=words[:1] == ("DERIVED",),
        component=stated or _component(words[2:]),
        **{name: _number(value) for name, value in numbers.items()},
    )


def _component(words: Iterable[str]) -> str:
    """The component that the words behind the first two of an image type name; empty for none."""
    named = [COMPONENTS[word] for word in words if word in COMPONENTS]
    for word in words:
        named += [name for start, name in BEGINNINGS.items() if word.startswith(start)]
    return next(iter(named), "")


def _words(kinds: Any) -> tuple[str, ...]:
    """The words of an image or frame type."""
    if isinstance(kinds, str):
        kinds = (kinds,)
    return tuple(str(word).strip().upper() for word in kinds or ())


def _number(value: Any) -> float | None:
    """One finite number; None for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    if not math.isfinite(number):
        return None
    return number
