"""client/ingest/parts.py and frames.py.

Of a series that holds several things one enters, by what headers say and never by names or order.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from client.ingest.frames import frames_of
from client.ingest.parts import Chosen, Frame, Part, choose_part
from client.ingest.quarantine import Reason, Unusable
from client.ingest.request import Caps, Take
from client.ingest.series import plane_of
from tests import volume_phantoms as made

STRAIGHT = (1, 0, 0, 0, 1, 0)
FRONTAL = (1, 0, 0, 0, 0, -1)
CAPS = Caps(8, ("MR",), None, 1 << 20, 1 << 22, 1 << 22)
SERIES = made.patient(1)[0]


def frame(depth: float, orientation: tuple[float, ...] = STRAIGHT, **part: Any) -> Frame:
    """A slice of 8 x 8 pixels of 1 mm."""
    instance = part.pop("instance", "")
    plane = plane_of((0, 0, depth), orientation, (1, 1), (8, 8))
    return Frame(0, 0, plane, Part(**part), instance)


def stack(depths: int = 4, **part: Any) -> list[Frame]:
    return [frame(depth, **part) for depth in range(depths)]


def chosen(*frames: Frame, **take: str) -> Chosen:
    return choose_part(frames, Take(**take))


@pytest.mark.parametrize(
    ("others", "reason"),
    [
        (stack(is_projection=True), Reason.PROJECTION),
        ([frame(n, FRONTAL, is_projection=True) for n in range(3)], Reason.PROJECTION),
        (stack(component="phase"), Reason.OTHER_COMPONENT),
        (stack(component="real"), Reason.OTHER_COMPONENT),
        (stack(is_derived=True), Reason.DERIVED_PART),
        ([frame(n, FRONTAL, is_derived=True) for n in range(3)], Reason.DERIVED_PART),
    ],
)
def test_source_slices_enter_and_other_images_of_the_series_do_not(
    others: list[Frame], reason: Reason
) -> None:
    for frames, first in ((stack() + others, 0), (others + stack(), len(others))):
        found = chosen(*frames)
        assert found.kept == list(range(first, first + 4))
        assert set(found.left_out.values()) == {reason}
        assert len(found.left_out) == len(others)


@pytest.mark.parametrize(
    ("name", "key", "reason"),
    [
        ("echo_ms", "echo", Reason.OTHER_ECHO),
        ("echo_number", "echo", Reason.OTHER_ECHO),
        ("b_value", "", Reason.OTHER_DIFFUSION),
        ("time_point", "time", Reason.OTHER_TIME),
        ("trigger_ms", "time", Reason.OTHER_TIME),
        ("acquisition", "time", Reason.OTHER_TIME),
    ],
)
def test_of_doubled_places_the_plans_echo_and_time_point_enter(
    name: str, key: str, reason: Reason
) -> None:
    parts = [stack(**{name: value}) for value in (7.0, 2.0, 5.0)]
    for order in itertools.permutations(range(3)):
        frames = [one for at in order for one in parts[at]]
        found = chosen(*frames)
        assert {getattr(frames[at].part, name) for at in found.kept} == {2.0}
        assert (len(found.kept), set(found.left_out.values())) == (4, {reason})
        if key:
            last = chosen(*frames, **{key: "last"})
            assert {getattr(frames[at].part, name) for at in last.kept} == {7.0}


def test_echoes_and_time_points_at_once_are_told_apart_one_after_the_other() -> None:
    frames = [
        frame(depth, echo_ms=echo, time_point=time)
        for depth, echo, time in itertools.product(range(4), (3.0, 9.0), (1.0, 2.0, 3.0))
    ]
    found = chosen(*frames, time="last")
    assert {frames[at].part for at in found.kept} == {Part(echo_ms=3.0, time_point=3.0)}
    assert list(found.left_out.values()).count(Reason.OTHER_ECHO) == 12
    assert list(found.left_out.values()).count(Reason.OTHER_TIME) == 8


def test_a_choice_never_loses_a_place() -> None:
    # slabs with numbers of their own are one stack
    slabs = [frame(depth, acquisition=float(depth // 2)) for depth in range(6)]
    assert chosen(*slabs).kept == list(range(6))
    # the first time point lacks a slice: the next one that is whole enters
    cut_short = stack(time_point=1.0)[:3] + stack(time_point=2.0) + stack(time_point=3.0)
    assert chosen(*cut_short).kept == [3, 4, 5, 6]
    # no time point is whole: nothing tells the slices apart
    ragged = stack(time_point=1.0)[:3] + stack(time_point=2.0)[1:]
    assert len(chosen(*ragged).copies) == 2


def test_what_is_stated_of_some_slices_alone_tells_nothing_apart() -> None:
    found = chosen(*stack(echo_ms=3.0), *stack())
    assert (found.kept, found.left_out) == ([0, 1, 2, 3], {})
    assert found.copies == {4: 0, 5: 1, 6: 2, 7: 3}


def test_a_plan_may_take_phase() -> None:
    found = chosen(*stack(component="magnitude"), *stack(component="phase"), component="phase")
    assert found.kept == [4, 5, 6, 7]
    # images that name no component count as magnitude
    assert chosen(*stack(), *stack(component="phase"), component="phase").kept == [4, 5, 6, 7]


def test_frames_of_another_size_or_direction_are_no_copies() -> None:
    turned = [frame(depth, FRONTAL) for depth in range(4)]
    assert chosen(*stack(), *turned).copies == {}


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ({"component": "phase"}, Reason.OTHER_COMPONENT),
        ({"is_projection": True}, Reason.PROJECTION),
    ],
)
def test_a_series_of_nothing_that_the_plan_takes_is_refused(
    part: dict[str, Any], reason: Reason
) -> None:
    with pytest.raises(Unusable) as refusal:
        chosen(*stack(**part))
    assert refusal.value.reason is reason


def test_one_instance_at_two_places_is_refused_unless_all_slices_share_it() -> None:
    frames = [frame(depth, instance=f"1.{depth}") for depth in range(4)]
    assert chosen(*frames, frames[2]).copies == {4: 2}
    moved = [*frames, frame(4, instance="1.2")]
    with pytest.raises(Unusable) as refusal:
        chosen(*moved)
    assert refusal.value.reason is Reason.ALTERED_COPY
    assert chosen(*stack(instance="1.1")).kept == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["ORIGINAL", "PRIMARY", "M", "ND"], Part(component="magnitude")),
        (["ORIGINAL", "PRIMARY", "M_FFE", "M", "FFE"], Part(component="magnitude")),
        (["ORIGINAL", "PRIMARY", "PHASE CONTRAST M", "P", "FFE"], Part(component="phase")),
        (["ORIGINAL", "PRIMARY", "VELOCITY MAP", "PCA"], Part(component="phase")),
        (["ORIGINAL", "PRIMARY", "R_IR"], Part(component="real")),
        (["ORIGINAL", "PRIMARY", "I"], Part(component="imaginary")),
        (["ORIGINAL", "PRIMARY", "OTHER"], Part()),
        (["DERIVED", "PRIMARY", "OTHER"], Part(is_derived=True)),
        (["DERIVED", "PRIMARY", "PROJECTION IMAGE"], Part(is_derived=True, is_projection=True)),
        (["DERIVED", "PRIMARY", "MIP"], Part(is_derived=True, is_projection=True)),
        ("ORIGINAL", Part()),
        (None, Part()),
    ],
)
def test_the_image_type_says_what_a_slice_shows(words: Any, part: Part) -> None:
    (found,) = frames_of(made.slice_of(SERIES, 0, ImageType=words), CAPS)
    assert found.part == part


def test_the_numbers_of_a_slice_are_read_and_what_is_no_number_counts_as_unstated() -> None:
    numbers = {"EchoTime": 4.5, "EchoNumbers": 2, "DiffusionBValue": 800.0}
    times = {"TemporalPositionIdentifier": 3, "TriggerTime": 120.0, "AcquisitionNumber": 4}
    (found,) = frames_of(made.slice_of(SERIES, 0, **numbers, **times), CAPS)
    assert found.part == Part(False, False, "", 4.5, 2.0, 800.0, 3.0, 120.0, 4.0)
    for odd in ([1, 2], None):
        (found,) = frames_of(made.slice_of(SERIES, 0, EchoNumbers=odd), CAPS)
        assert found.part == Part()
    (found,) = frames_of(made.slice_of(SERIES, 0, ComplexImageComponent="PHASE"), CAPS)
    assert found.part == Part(component="phase")


def test_a_frame_of_an_enhanced_object_has_its_own_place_part_and_rescale() -> None:
    first = {
        "MRImageFrameTypeSequence": made.item(
            FrameType=["ORIGINAL", "PRIMARY", "ANGIO", "NONE"], ComplexImageComponent="MAGNITUDE"
        ),
        "MREchoSequence": made.item(EffectiveEchoTime=3.5),
        "FrameContentSequence": made.item(TemporalPositionIndex=2, FrameAcquisitionNumber=1),
        "PixelValueTransformationSequence": made.item(RescaleSlope=2, RescaleIntercept=-7),
    }
    second = {
        "MRImageFrameTypeSequence": made.item(FrameType=["DERIVED", "PRIMARY", "ANGIO", "MAX_IP"]),
        "MRDiffusionSequence": made.item(DiffusionBValue=700.0),
        "CardiacSynchronizationSequence": made.item(NominalCardiacTriggerDelayTime=55.0),
    }
    converted = made.item(EchoTime=8.0, EchoNumbers=2, TemporalPositionIdentifier=4)
    third = {"UnassignedPerFrameConvertedAttributesSequence": converted}
    offset = {"TemporalPositionSequence": made.item(TemporalPositionTimeOffset=1.5)}
    more = frames_of(made.enhanced(SERIES, [(3, third), (1, offset)]), CAPS)
    assert more[0].part == Part(echo_ms=8.0, echo_number=2.0, time_point=4.0)
    assert more[1].part == Part(time_point=1.5)
    one, other = frames_of(made.enhanced(SERIES, [(3, first), (1, second)]), CAPS, file=6)
    assert one.part == Part(component="magnitude", echo_ms=3.5, time_point=2.0, acquisition=1.0)
    assert other.part == Part(True, True, b_value=700.0, trigger_ms=55.0)
    assert [one.plane.origin, other.plane.origin] == [tuple(SERIES.place(d)) for d in (3, 1)]
    assert [(f.file, f.index, f.rescale) for f in (one, other)] == [(6, 0, (2, -7)), (6, 1, None)]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"PerFrameFunctionalGroupsSequence": []}, Reason.MULTI_FRAME),
        ({"NumberOfFrames": 4}, Reason.MULTI_FRAME),
        ({"SharedFunctionalGroupsSequence": []}, Reason.NO_GEOMETRY),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.4"}, Reason.MULTI_FRAME),
        ({"NumberOfFrames": 1 << 20}, Reason.DECLARED_TOO_LARGE),
        ({"Rows": 60_000, "Columns": 60_000}, Reason.DECLARED_TOO_LARGE),
        ({"NumberOfFrames": 20_001, "Rows": 1, "Columns": 1}, Reason.DECLARED_TOO_LARGE),
    ],
)
def test_an_enhanced_object_that_does_not_place_its_frames_is_refused(
    change: dict[str, Any], reason: Reason
) -> None:
    with pytest.raises(Unusable) as refusal:
        frames_of(made.enhanced(SERIES, **change), CAPS)
    assert refusal.value.reason is reason
