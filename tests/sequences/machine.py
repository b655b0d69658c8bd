"""Random histories of one site, played by Hypothesis over the real daemon.

A history mixes studies of every grouping, questions in and out of order, kills at durable points,
crashed children, restores of the state or of one of its files, exports, withdrawals, new patients
and new photographs. After every step the oracle compares.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from tests.sequences.courses import QUESTIONS, Course
from tests.sequences.hospital import DATABASES, Hospital
from tests.sequences.oracle import break_invariant
from tests.sequences.studies import KINDS, PLAIN, REFUSED
from tests.sequences.world import LABELS

MEMORY = Path("/dev/shm")
FEW = 4  # studies of one history
SOME = st.integers(0, 99)  # an index, taken modulo what there is
POINTS = st.integers(1, 60)
HOW = ("", "approved again", "far")
PEOPLE = ("arrive", "photograph", "second id", "view", "withdraw", "withdraw")
REVIEWS = ("none", "none", "at once", "later")  # when a person looks at images

# what all histories of one run saw: a run that refuses everything proves nothing
seen: Counter[str] = Counter()


class Histories(RuleBasedStateMachine):
    """One site over time."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        home = MEMORY if MEMORY.is_dir() else None
        self.folder = Path(tempfile.mkdtemp(prefix="kohort-sequence-", dir=home))
        self.site: Hospital | None = None

    @initialize(review=st.sampled_from(REVIEWS), kind=st.sampled_from(sorted(KINDS)))
    def begin(self, review: str, kind: str) -> None:
        """A hospital with its first patients, and its first study."""
        self.at_once = review == "at once"
        self.site = Hospital(self.folder, self.stack, review != "none")
        self.play_a_study(kind)

    # --- studies ----------------------------------------------------------------------------------

    @precondition(lambda self: len(self.site.courses) < FEW)
    @rule(kind=st.sampled_from(sorted(KINDS)))
    def play_a_study(self, kind: str) -> None:
        """Approve a study, and ask all its questions in order."""
        self._finish(self.site.approve(kind))

    @precondition(lambda self: len(self.site.courses) < FEW)
    @rule(kind=st.sampled_from(PLAIN))
    def play_a_plain_study(self, kind: str) -> None:
        """The same, of the kinds whose averages leave without noise: these can be subtracted."""
        self._finish(self.site.approve(kind))

    @precondition(lambda self: len(self.site.courses) < FEW)
    @rule(kind=st.sampled_from(sorted(KINDS)), steps=st.integers(0, 3))
    def begin_a_study(self, kind: str, steps: int) -> None:
        """Approve a study, and ask its first questions."""
        course = self.site.approve(kind)
        for _ in range(steps):
            self._ask(course, course.next)

    @precondition(lambda self: self.site.courses)
    @rule(which=SOME)
    def finish_a_study(self, which: int) -> None:
        """Ask what is left of a study."""
        self._finish(self._course(which))

    @precondition(lambda self: self.site.courses)
    @rule(which=SOME, position=st.integers(0, len(QUESTIONS) - 1), how=st.sampled_from(HOW))
    def ask_out_of_order(self, which: int, position: int, how: str) -> None:
        """Ask any question: an old one, one that is not its turn, or one with other weights."""
        course = self._course(which)
        if how == "approved again":
            self.site.approve_again(course)
        if how == "far":
            self._note(self.site.ask(course, QUESTIONS[position], far=True))
        else:
            self._ask(course, position)

    # --- faults and disks -------------------------------------------------------------------------

    @rule(how=st.sampled_from(["kill", "crash before", "crash after"]), points=POINTS)
    def disturb(self, how: str, points: int) -> None:
        """Kill the daemon at a durable point of the next question, or let its next child crash."""
        if how == "kill":
            self.site.faults.planned = points
        else:
            self.site.child.script.append(how)

    @precondition(lambda self: len(self.site.copies) < FEW)
    @rule()
    def back_up(self) -> None:
        """Keep a copy of the state."""
        self.site.copy()

    @precondition(lambda self: self.site.copies)
    @rule(which=SOME, part=st.sampled_from(["all", "all", *DATABASES]))
    def put_back(self, which: int, part: str) -> None:
        """Put an older state back, or one file of it, and keep what was there."""
        number = which % len(self.site.copies)
        self.site.copy()
        self.site.put_back(number, part)

    @rule(part=st.sampled_from([*DATABASES, "outbox"]))
    def lose(self, part: str) -> None:
        """Lose one file of the state, and keep a copy of what was there."""
        self.site.copy()
        self.site.lose(part)

    @precondition(lambda self: self.site.copies)
    @rule()
    def put_back_the_newest(self) -> None:
        """Put the newest copy back."""
        self.site.put_back(len(self.site.copies) - 1, "all")

    # --- people -----------------------------------------------------------------------------------

    @rule(what=st.sampled_from(PEOPLE), who=SOME, label=st.sampled_from(LABELS))
    def change_people(self, what: str, who: int, label: str) -> None:
        """A patient arrives, withdraws, gets a new or a further photograph, or a further id."""
        world = self.site.world
        person = who % len(world.patients)
        if what == "arrive":
            world.arrive(label)
        elif what == "photograph":
            world.photograph_again(person)
        elif what == "view":
            world.add_view(person)
        elif what == "withdraw":
            self._note(self.site.withdraw(person, who))
        else:
            world.add_id(person)

    @precondition(lambda self: self.site.courses)
    @rule(which=SOME)
    def refresh(self, which: int) -> None:
        """Staff take the files in anew."""
        self._note(self.site.refresh(self._course(which)))

    @precondition(lambda self: self.site.exporting())
    @rule(who=st.lists(SOME, min_size=1, max_size=3), which=SOME)
    def export(self, who: list[int], which: int) -> None:
        """Staff hand over privatized photographs."""
        fitting = self.site.exporting()
        count = len(self.site.world.patients)
        persons = sorted({number % count for number in who})
        self._note(self.site.export(fitting[which % len(fitting)], persons))

    @precondition(lambda self: self.site.waiting())
    @rule(approve=st.booleans())
    def review(self, approve: bool) -> None:
        """A person decides on every batch that waits."""
        self.site.review(approve)

    # --- what holds -------------------------------------------------------------------------------

    @invariant()
    def the_ledger_holds_at_least_what_was_computed(self) -> None:
        """Invariant 8; the others are checked when something leaves."""
        if self.site is not None:
            self.site.check_ledger()

    def teardown(self) -> None:
        """Remove the site."""
        self.stack.close()
        if self.site is not None:
            seen.update(self.site.oracle.seen)
            seen["kill"] += self.site.faults.kills
            self.site.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- helpers ----------------------------------------------------------------------------------

    def _course(self, which: int) -> Course:
        """One of the studies."""
        return self.site.courses[which % len(self.site.courses)]

    def _finish(self, course: Course) -> None:
        """Ask until something is refused or nothing is left; images may be approved at once."""
        while course.next < len(QUESTIONS):
            before = course.next
            code = self._ask(course, before)
            if code == "E-STOPPED" and self.at_once and self.site.waiting():
                self.site.review(approve=True)
                code = self._ask(course, before)
            if code or course.next == before:
                break

    def _ask(self, course: Course, position: int) -> str:
        """Ask one question, and count how it ended."""
        position = min(position, len(QUESTIONS) - 1)
        code = self.site.ask(course, QUESTIONS[position])
        kind = course.plan.name.rpartition("-")[0]
        if not code and kind in REFUSED:
            break_invariant(12, f"{kind}: a plan that claims more than it keeps was answered")
        self._note(code)
        return code

    def _note(self, code: str) -> None:
        """Count a refusal."""
        if code:
            seen[code] += 1
