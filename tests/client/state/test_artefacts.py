"""What a later study may release of a group, case by case."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from client.state.artefacts import Artefact, Limit, Wanted, choose_use, epsilon_of, find_fault
from common.errors import PolicyError
from common.privacy.latent_mechanisms import LatentLaplace
from tests.studies import small_study, vessels_plan

ONE = LatentLaplace("l1_ball", 0.4, 48, 5, "similar", 0.5)
OTHER = replace(ONE, scale=0.6)
EVENT = ONE.event()
SPENT = ONE.epsilon_per_image
LIMIT = Limit(SPENT * 1.5, 1e-5)
WANTED = Wanted("2" * 64, 8, 3, "fundus", ("none", "mild"), EVENT, True, 1)


def artefact(value: int = 0, event: str = "", size: int = 8, label: str = "mild") -> Artefact:
    """An image of one shade."""
    image = np.full((size, size, 3), value, np.uint8)
    return Artefact(image, label, "fundus", event, "1" * 64)


PLAIN = artefact(1)
NOISED = artefact(2, EVENT)

MAY: dict[str, tuple[object, ...]] = {
    "the first release of a new group": (None, [PLAIN]),
    "several images of a new group": (None, [PLAIN, artefact(3)]),
    "the first draw of a new group": (None, [NOISED]),
    "the same bytes": ((PLAIN,), [PLAIN]),
    "the same bytes in another study": ((PLAIN,), [replace(PLAIN, study="3" * 64)]),
    "the same draw": ((NOISED,), [NOISED]),
    "nothing": ((PLAIN,), []),
    "a draw within the cap": ((NOISED,), [artefact(4, replace(ONE, scale=5.0).event())]),
}
MAY_NOT: dict[str, tuple[object, ...]] = {
    "another plain image": ((PLAIN,), [artefact(9)]),
    "one more plain image beside the same": ((PLAIN,), [PLAIN, artefact(9)]),
    "another size": ((PLAIN,), [artefact(1, size=16)]),
    "a plain image of a privatized group": ((NOISED,), [PLAIN]),
    "a draw of a plain group": ((PLAIN,), [NOISED]),
    "both kinds at once": (None, [PLAIN, NOISED]),
    "the stored plain image as if it had noise": ((PLAIN,), [artefact(1, EVENT)]),
    "a stored draw as if it had none": ((NOISED,), [artefact(2)]),
    "a second draw of the same mechanism": ((NOISED,), [artefact(4, EVENT)]),
    "a second draw of another mechanism": ((NOISED,), [artefact(4, OTHER.event())]),
    "two draws at once": (None, [NOISED, artefact(4, EVENT)]),
    "anything of a group of which nothing is known": ((), [PLAIN]),
    "a draw of a group of which nothing is known": ((), [NOISED]),
}


@pytest.mark.parametrize("case", MAY, ids=lambda case: case.replace(" ", "-"))
def test_a_group_may_release(case: str) -> None:
    assert find_fault(*MAY[case], LIMIT) == ""  # type: ignore[arg-type]


@pytest.mark.parametrize("case", MAY_NOT, ids=lambda case: case.replace(" ", "-"))
def test_a_group_may_not_release(case: str) -> None:
    assert find_fault(*MAY_NOT[case], LIMIT) != ""  # type: ignore[arg-type]


USES: dict[str, tuple[object, ...]] = {
    "a plain image that fits": ((PLAIN,), WANTED, "again"),
    "a draw that fits": ((NOISED,), WANTED, "again"),
    "a plain image where all are privatized": ((PLAIN,), replace(WANTED, plain=False), "hold"),
    "a draw where none is": ((NOISED,), replace(WANTED, event=""), "hold"),
    "a draw of another mechanism above the cap": (
        (NOISED,),
        replace(WANTED, event=OTHER.event()),
        "hold",
    ),
    "a draw of another mechanism below the cap": (
        (NOISED,),
        replace(WANTED, event=replace(ONE, scale=5.0).event()),
        "draw",
    ),
    "another size": ((PLAIN,), replace(WANTED, size_px=16), "hold"),
    "other channels": ((PLAIN,), replace(WANTED, channels=1), "hold"),
    "another modality": ((PLAIN,), replace(WANTED, modality="chest"), "hold"),
    "a label of another name": ((PLAIN,), replace(WANTED, labels=("none", "severe")), "hold"),
    "a label that the study has not": ((PLAIN,), replace(WANTED, labels=("mild",)), "hold"),
    "a group of which nothing is known": ((), WANTED, "hold"),
}


@pytest.mark.parametrize("case", USES, ids=lambda case: case.replace(" ", "-"))
def test_a_study_uses_a_frozen_group(case: str) -> None:
    stored, wanted, expected = USES[case]
    use, again = choose_use(stored, 1, wanted, LIMIT)  # type: ignore[arg-type]
    assert use == expected
    assert again == (stored if expected == "again" else ())


def test_as_many_stored_images_come_again_as_the_plan_makes_of_a_group() -> None:
    stored = (PLAIN, artefact(3), artefact(4))
    assert choose_use(stored, 1, WANTED, LIMIT)[1] == stored[:1]
    assert choose_use(stored, 1, replace(WANTED, outputs=2), LIMIT)[1] == stored[:2]


def test_plain_images_count_for_nothing_in_the_cap() -> None:
    assert epsilon_of(["", EVENT, EVENT], 1e-5) == pytest.approx(2 * SPENT)
    assert epsilon_of(["", ""], 1e-5) == 0.0


def test_a_limit_that_is_no_number_allows_nothing() -> None:
    assert not Limit(float("nan"), 1e-5).allows([EVENT])


def test_a_plan_says_what_it_wants_of_a_group() -> None:
    wanted = Wanted.of(small_study())
    assert (wanted.size_px, wanted.channels, wanted.modality) == (32, 3, "fundus")
    assert wanted.plain and "latent_laplace" in wanted.event
    assert not Wanted.of(small_study(synthesis__privatize__share=1.0)).plain
    assert Wanted.of(small_study(synthesis__privatize=None)).event == ""
    single = Wanted.of(small_study(synthesis__privatize__egress="single"))
    assert single.plain and single.event == ""
    with pytest.raises(PolicyError):
        Wanted.of(type(small_study()).model_validate(vessels_plan()))
