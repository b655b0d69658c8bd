"""Short histories that once ended wrong, one for each way: nothing of the kind leaves any more.

What the oracle's numbers mean stands in oracle.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.sequences.courses import QUESTIONS
from tests.sequences.hospital import Hospital


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Hospital]:
    """A hospital where nobody has to look at images."""
    with ExitStack() as stack:
        hospital = Hospital(tmp_path, stack, review=False)
        yield hospital
        hospital.close()


def same_groups_averaged_again(site: Hospital) -> None:
    """Broke (2): the difference of two averages of one group is one patient's new photograph."""
    site.play("similar")
    site.world.photograph_again(0)
    site.play("similar-larger")


def plain_after_privatized(site: Hospital) -> None:
    """Broke (3): a changed share lets the plain average of a privatized group leave."""
    site.play("similar-half")
    site.play("similar")


def an_average_drawn_too_often(site: Hospital) -> None:
    """Broke (14): every study drew the same average with fresh noise, against no cap."""
    site.play("similar-half")
    site.play("similar-half-again")
    assert site.oracle.seen["drawn again"]
    site.play("similar-half-more")


def frozen_groups_in_a_covered_study(site: Hospital) -> None:
    """Broke (11): groups that the images formed came again in a study of `random` groups."""
    site.play("similar")
    site.play("random-noised")


def frozen_people_missing_in_anchors(site: Hospital) -> None:
    """Broke (11): who is frozen decided who takes part."""
    site.play("similar")
    site.play("anchors")


def claim_beside_plain_averages(site: Hospital) -> None:
    """Broke (4): a plan claims epsilon for all averages, and noises half of them."""
    site.play("random-half")


def more_spent_than_promised(site: Hospital) -> None:
    """Broke (9): a plan's constants spend more than its epsilon."""
    site.play("overspent")


def group_store_lost(site: Hospital) -> None:
    """Broke (1): averages of three and of four of the same people."""
    site.play("similar")
    site.lose("groups")
    site.play("similar-wider")


def group_store_older(site: Hospital) -> None:
    """Broke (1): the same with an old copy of the file."""
    site.copy()
    site.play("cells")
    site.put_back(0, "groups")
    site.play("similar-wider")


def outbox_lost(site: Hospital) -> None:
    """Broke (6): the same question got other bytes."""
    site.play("similar")
    site.lose("outbox")
    for question in QUESTIONS:
        site.ask(site.courses[0], question)


def journal_and_ledger_lost(site: Hospital) -> None:
    """Broke (10): approved again, the site had a full budget."""
    site.play("similar")
    site.lose("journal")
    site.lose("ledger")
    site.play("cells")


def backup_from_before_study_one(site: Hospital) -> None:
    """Broke (10): study two knew no receipts of study one."""
    site.copy()
    site.play("similar")
    site.put_back(0, "all")
    site.play("cells")


def ledger_older_than_an_export(site: Hospital) -> None:
    """Broke (10): an export charged an old ledger without a look at what was sent since."""
    course = site.approve("single")
    site.copy()
    site.export(course, [0])
    site.play("similar")
    site.put_back(0, "ledger")
    site.export(course, [1])


def two_ids_of_one_person(site: Hospital) -> None:
    """Broke (8): an export charged by id where the cohort knows two ids as one person."""
    person = site.world.arrive("none", ids=2)
    site.world.add_view(person)
    site.play("similar")
    course = site.approve("single")
    site.export(course, [person])
    site.check_ledger()


def a_withdrawn_patient(site: Hospital) -> None:
    """Broke (7): nobody could withdraw; the cohort was frozen for good."""
    site.play("similar")
    site.withdraw(0, 0)
    site.play("cells")
    site.play("random-noised")
    assert site.oracle.seen["update"] == 9


def withdrawn_under_one_of_two_ids(site: Hospital) -> None:
    """Whoever withdraws under one id is out under the other, also one that comes later."""
    person = site.world.arrive("none", ids=2)
    site.play("similar")
    site.withdraw(person, 1)
    site.world.add_id(person)
    site.refresh(site.courses[0])
    site.play("cells")


def withdrawn_while_images_wait(site: Hospital) -> None:
    """A batch that was computed, and not signed, is not sent after the withdrawal."""
    course = site.approve("similar")
    for question in QUESTIONS[:3]:
        site.ask(course, question)
    site.faults.planned = 30
    assert site.ask(course, QUESTIONS[3]) == "killed"
    site.withdraw(0, 0)
    site.ask(course, QUESTIONS[3])


def every_question_again(site: Hospital) -> None:
    """A question that was answered gets its stored bytes, also after a restart."""
    site.play("similar")
    site.restart()
    again = site.oracle.seen["again"]
    for question in QUESTIONS:
        assert not site.ask(site.courses[0], question)
    assert site.oracle.seen["again"] == again + len(QUESTIONS)


def a_child_that_crashed(site: Hospital) -> None:
    """What a crashed child had computed stays spent, beside what the next one spends."""
    site.child.script.append("crash after")
    assert not site.play("similar")
    site.check_ledger()
    assert len(site.oracle.held) == 4


def weights_off_the_path(site: Hospital) -> None:
    """Broke (13): images of whatever weights the server sent."""
    site.ask(site.approve("similar"), QUESTIONS[3], far=True)


HISTORIES: tuple[Callable[[Hospital], None], ...] = (
    same_groups_averaged_again,
    plain_after_privatized,
    an_average_drawn_too_often,
    frozen_groups_in_a_covered_study,
    frozen_people_missing_in_anchors,
    claim_beside_plain_averages,
    more_spent_than_promised,
    group_store_lost,
    group_store_older,
    outbox_lost,
    journal_and_ledger_lost,
    backup_from_before_study_one,
    ledger_older_than_an_export,
    two_ids_of_one_person,
    a_withdrawn_patient,
    withdrawn_under_one_of_two_ids,
    withdrawn_while_images_wait,
    every_question_again,
    a_child_that_crashed,
    weights_off_the_path,
)


@pytest.mark.parametrize("history", HISTORIES, ids=lambda history: history.__name__)
def test_a_history_that_once_ended_wrong_ends_well(
    history: Callable[[Hospital], None], site: Hospital
) -> None:
    history(site)
    site.check_ledger()
