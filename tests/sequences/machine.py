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

from tests.sequences.hospital import DATABASES, QUESTIONS, Course, Hospital
from tests.sequences.oracle import break_invariant
from tests.sequences.studies import KINDS, REFUSED

MEMORY = Path("/dev/shm")
FEW = 4  # studies of one history
SOME = st.integers(0, 99)  # an index, taken modulo what there is
NONE_COUNT = 14  # patients of each label in the beginning
SEVERE_COUNT = 4

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

    @initialize(review=st.sampled_from([False, False, True]), kind=st.sampled_from(sorted(KINDS)))
    def begin(self, review: bool, kind: str) -> None:
        """A hospital with its first patients, and its first study."""
        self.site = Hospital(self.folder, self.stack, review)
        for _ in range(NONE_COUNT):
            self.site.world.arrive("none")
        for _ in range(SEVERE_COUNT):
            self.site.world.arrive("severe", ids=2)
        self.play_a_study(kind)

    # --- studies ----------------------------------------------------------------------------------

    @precondition(lambda self: len(self.site.courses) < FEW)
    @rule(kind=st.sampled_from(sorted(KINDS)))
    def play_a_study(self, kind: str) -> None:
        """Approve a study, and ask all its questions in order."""
        course = self._approve(kind)
        if course is not None:
            self._finish(course)

    @precondition(lambda self: len(self.site.courses) < FEW)
    @rule(kind=st.sampled_from(sorted(KINDS)), steps=st.integers(0, 3))
    def begin_a_study(self, kind: str, steps: int) -> None:
        """Approve a study, and ask its first questions."""
        course = self._approve(kind)
        for _ in range(steps if course is not None else 0):
            self._ask(course, course.next)

    @precondition(lambda self: self.site.courses)
    @rule(which=SOME)
    def finish_a_study(self, which: int) -> None:
        """Ask what is left of a study."""
        self._finish(self._course(which))

    @precondition(lambda self: self.site.courses)
    @rule(which=SOME, position=st.integers(0, len(QUESTIONS) - 1))
    def ask_out_of_order(self, which: int, position: int) -> None:
        """Ask any question of a study: an old one again, or one that is not its turn."""
        self._ask(self._course(which), position)

    @precondition(lambda self: self.site.courses)
    @rule(which=SOME)
    def approve_again(self, which: int) -> None:
        """Approve a known plan once more."""
        self.site.approve_again(self._course(which))

    # --- faults -----------------------------------------------------------------------------------

    @rule(points=st.integers(1, 60))
    def kill_soon(self, points: int) -> None:
        """Kill the daemon at a durable point of the next question."""
        self.site.faults.planned = points

    @rule(how=st.sampled_from(["crash before", "crash after"]))
    def crash_a_child(self, how: str) -> None:
        """Let the next child crash, before or after it computed."""
        self.site.child.script.append(how)

    @rule()
    def restart(self) -> None:
        """End the daemon and start another one."""
        self.site.restart()

    # --- the disk ---------------------------------------------------------------------------------

    @precondition(lambda self: len(self.site.copies) < FEW)
    @rule()
    def back_up(self) -> None:
        """Keep a copy of the state."""
        self.site.copy()

    @precondition(lambda self: self.site.copies)
    @rule(which=SOME, part=st.sampled_from(["all", "all", *DATABASES]))
    def put_back(self, which: int, part: str) -> None:
        """Put an older state back, or one file of it, and keep what was there."""
        copies = self.site.copies
        number = which % len(copies)
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

    @rule(label=st.sampled_from(["none", "severe"]), count=st.integers(1, 4))
    def arrive(self, label: str, count: int) -> None:
        """New patients."""
        for _ in range(count):
            self.site.world.arrive(label)

    @rule(who=SOME)
    def photograph_again(self, who: int) -> None:
        """A patient's photograph is replaced."""
        self.site.world.photograph_again(who % len(self.site.world.patients))

    @precondition(lambda self: any("single" in one.plan.name for one in self.site.courses))
    @rule(who=st.lists(SOME, min_size=1, max_size=3), which=SOME)
    def export(self, who: list[int], which: int) -> None:
        """Staff hand over privatized photographs."""
        fitting = [one for one in self.site.courses if "single" in one.plan.name]
        count = len(self.site.world.patients)
        persons = sorted({number % count for number in who})
        self._note(self.site.export(fitting[which % len(fitting)], persons))

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

    def _approve(self, kind: str) -> Course | None:
        """Approve a study of a kind, unless the operator cannot even write it."""
        return self.site.approve(kind)

    def _course(self, which: int) -> Course:
        """One of the studies."""
        return self.site.courses[which % len(self.site.courses)]

    def _finish(self, course: Course) -> None:
        """Ask until something is refused or nothing is left."""
        while course.next < len(QUESTIONS):
            before = course.next
            if self._ask(course, course.next) or course.next == before:
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
