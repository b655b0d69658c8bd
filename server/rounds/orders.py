"""The operator's orders about a study that is not at its end: abandon it, or extend its open round.

In: a study's record. Out: journal entries, which the round loop reads again while it runs.
Guarantees: an order is on disk before it counts; an order given twice counts once; no order lowers
the quorum or undoes a closed round.
Not covered: what an order leads to (gathering.py, loop.py, closing.py).
"""

from __future__ import annotations

from common.errors import PolicyError
from common.storage.journal import Entry
from server.rounds.record import StudyRecord

LONGEST_S = 30 * 86400.0  # as of a plan's round_deadline_s


class Abandoned(Exception):
    """The operator has abandoned the study that is running."""


def abandon(record: StudyRecord) -> bool:
    """Journal the end of a study; False where it was abandoned before.

    What it released stays. Raises PolicyError (E-STUDY-ENDED) for a complete study.
    """
    if record.abandoned():
        return False
    if record.complete():
        raise _at_its_end(record, "complete")
    record.journal.append(record.study.hash(), "abandoned")
    return True


def extend(record: StudyRecord, seconds: float) -> str:
    """Give the open round a new deadline, `seconds` from now; returns the round's name.

    Raises PolicyError: E-STUDY-ENDED for a study at its end, E-STUDY-EXTEND where no round is open
    or for a time that no round may have.
    """
    if record.abandoned() or record.complete():
        raise _at_its_end(record, "abandoned" if record.abandoned() else "complete")
    if not 0 < seconds <= LONGEST_S:
        raise PolicyError(
            f"{seconds:g} seconds: expected more than 0 and at most {LONGEST_S:g}, 30 days",
            hint="kohort-server study extend NAME --by SECONDS",
            code="E-STUDY-EXTEND",
        )
    opened = record.open_round()
    if opened is None:
        raise PolicyError(
            f"study {record.study.name}: every round is closed, there is nothing to extend",
            hint="kohort-server run ends it",
            code="E-STUDY-EXTEND",
        )
    name, place = opened
    record.journal.append(f"{place}/deadline", "extended", {"seconds": seconds})
    return name


def extension(record: StudyRecord, place: str) -> Entry | None:
    """Return the newest extension of a round, or None."""
    return record.journal.latest(f"{place}/deadline")


def _at_its_end(record: StudyRecord, how: str) -> PolicyError:
    return PolicyError(
        f"study {record.study.name} is {how} already",
        hint="kohort-server status shows the studies",
        code="E-STUDY-ENDED",
    )
