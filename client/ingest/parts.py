"""Chooses the part of an MR series that makes its volume: rules over values, without files.

In: a `Frame` for each slice of one series, and what the plan takes (`Take`).
Out: `Chosen`: one frame for each place, the copies of chosen frames, a reason for each other frame.
Guarantees:
  - the outcome follows from what the headers state, never from names or the order of files
  - echoes, diffusion weights and time points are told apart only where frames lie at the same
    place, and a choice never loses a place
  - where nothing tells frames at one place apart, they are copies: whoever reads the pixels checks
    that these are the same (volumes.py)
Not covered: what only private attributes, dates or times tell apart.

  1. leave out projections, and components that the plan does not take
  2. of a series that makes no single stack, leave out derived images where there are originals
  3. where places are doubled: the plan's echo, the lowest diffusion weight, the plan's time point
  4. refuse one SOPInstanceUID at two places, unless all slices share it
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from client.ingest.quarantine import Reason, Unusable
from client.ingest.request import Take
from client.ingest.series import PLACE_TOLERANCE, Plane, are_alike

# what tells frames at one place apart, in this order; its reason; whose choice it is
ECHO = ("echo_ms", "echo_number")
DIFFUSION = ("b_value",)
TIME = ("time_point", "trigger_ms", "acquisition")


@dataclass(frozen=True)
class Part:
    """What a frame shows, as its header states it.

    `component`: magnitude, phase, real or imaginary; empty where the header is silent. A number
    that is not stated is None. `echo_ms`, `trigger_ms`: times after excitation and trigger.
    """

    is_projection: bool = False
    is_derived: bool = False
    component: str = ""
    echo_ms: float | None = None
    echo_number: float | None = None
    b_value: float | None = None
    time_point: float | None = None
    trigger_ms: float | None = None
    acquisition: float | None = None


@dataclass(frozen=True)
class Frame:
    """One slice of a series: frame `index` of file number `file`.

    `instance`: the SOPInstanceUID of a file of one slice, else empty. `rescale`: slope and
    intercept of a frame that has its own.
    """

    file: int
    index: int
    plane: Plane
    part: Part = Part()
    instance: str = ""
    rescale: tuple[float, float] | None = None


@dataclass(frozen=True)
class Chosen:
    """Positions of frames.

    `kept`: one a place. `copies`: each copy, and the kept frame that it should equal. `left_out`:
    the reason of every other frame.
    """

    kept: list[int]
    copies: dict[int, int] = field(default_factory=dict)
    left_out: dict[int, Reason] = field(default_factory=dict)


def choose_part(frames: Sequence[Frame], take: Take) -> Chosen:
    """Return which of a series' frames make its volume.

    Raises Unusable: altered-copy, or the commonest reason where no frame is left.
    """
    # (1) leave out what is no slice, and other components
    left_out: dict[int, Reason] = {}
    for position, frame in enumerate(frames):
        reason = _unwanted(frame.part, take)
        if reason is not None:
            left_out[position] = reason
    rest = [position for position in range(len(frames)) if position not in left_out]
    if not rest:
        raise Unusable(Counter(left_out.values()).most_common(1)[0][0])

    # (2) leave out derived images where the originals are there
    if not _is_one_stack(frames, rest):
        rest = _narrow(rest, _originals(frames, rest), Reason.DERIVED_PART, left_out)

    # (3) choose an echo, a diffusion weight and a time point
    for name, reason, last in _choices(take):
        rest = _narrow(rest, _choose_value(frames, rest, name, last=last), reason, left_out)

    # (4) of frames at one place the first stays; whether the others are its copies, pixels show
    _check_instances(frames, rest)
    kept: list[int] = []
    copies: dict[int, int] = {}
    for together in _places(frames, rest):
        kept.append(together[0])
        copies.update(dict.fromkeys(together[1:], together[0]))
    return Chosen(kept, copies, left_out)


def _unwanted(part: Part, take: Take) -> Reason | None:
    """Why the plan never takes such a frame; an unstated component counts as magnitude."""
    if part.is_projection:
        return Reason.PROJECTION
    if (part.component or "magnitude") != take.component:
        return Reason.OTHER_COMPONENT
    return None


def _choices(take: Take) -> Iterator[tuple[str, Reason, bool]]:
    """What may tell doubled places apart: the attribute, the reason of the rest, last or first."""
    for name in ECHO:
        yield name, Reason.OTHER_ECHO, take.echo == "last"
    for name in DIFFUSION:
        yield name, Reason.OTHER_DIFFUSION, False
    for name in TIME:
        yield name, Reason.OTHER_TIME, take.time == "last"


def _narrow(
    rest: list[int], chosen: list[int], reason: Reason, left_out: dict[int, Reason]
) -> list[int]:
    """The chosen frames; those that were not get the reason."""
    stay = set(chosen)
    for position in rest:
        if position not in stay:
            left_out[position] = reason
    return chosen


def _originals(frames: Sequence[Frame], rest: list[int]) -> list[int]:
    """The frames that are not derived, or all where each is."""
    originals = [position for position in rest if not frames[position].part.is_derived]
    return originals or rest


def _is_one_stack(frames: Sequence[Frame], rest: list[int]) -> bool:
    """Whether all frames are alike in geometry, and no place is doubled."""
    first = frames[rest[0]].plane
    alike = all(are_alike(first, frames[position].plane) for position in rest)
    return alike and len(_places(frames, rest)) == len(rest)


def _choose_value(frames: Sequence[Frame], rest: list[int], name: str, *, last: bool) -> list[int]:
    """The frames with the first (or last) value of an attribute that is there at every place.

    All frames, where no place is doubled, a frame states no value, or no value is everywhere.
    """
    places = _places(frames, rest)
    values = {position: getattr(frames[position].part, name) for position in rest}
    if len(places) == len(rest) or None in values.values():
        return rest

    # how many places each value has
    present: Counter[float] = Counter()
    for together in places:
        present.update({values[position] for position in together})
    everywhere = sorted(value for value in present if present[value] == len(places))
    if not everywhere:
        return rest
    wanted = everywhere[-1] if last else everywhere[0]
    return [position for position in rest if values[position] == wanted]


def _places(frames: Sequence[Frame], rest: list[int]) -> list[list[int]]:
    """The frames at each place, in the order of the normal of the first frame."""
    first = frames[rest[0]].plane
    normal = np.cross(first.row, first.column)
    tolerance_mm = PLACE_TOLERANCE * min(first.spacing)
    along = [float(np.dot(frames[position].plane.origin, normal)) for position in rest]
    places: list[list[int]] = []
    for _, position in sorted(zip(along, rest, strict=True)):
        if places and _is_same_place(frames[places[-1][0]], frames[position], tolerance_mm):
            places[-1].append(position)
        else:
            places.append([position])
    return places


def _is_same_place(one: Frame, other: Frame, tolerance_mm: float) -> bool:
    """Whether two frames lie at the same place, in the same orientation and size."""
    apart = np.linalg.norm(np.subtract(one.plane.origin, other.plane.origin))
    return bool(apart <= tolerance_mm) and are_alike(one.plane, other.plane)


def _check_instances(frames: Sequence[Frame], rest: list[int]) -> None:
    """Refuse one SOPInstanceUID at two places; one that all slices share says nothing."""
    if len({frames[position].instance for position in rest}) == 1:
        return
    seen: dict[str, int] = {}
    for place, together in enumerate(_places(frames, rest)):
        for position in together:
            instance = frames[position].instance
            if instance and seen.setdefault(instance, place) != place:
                raise Unusable(Reason.ALTERED_COPY)
