"""What the child of a site is at: its round, its phase, and how long it will take.

In: the state folder. Out: lines for the site's own staff; nothing of them leaves the site.
Guarantees: where `counts` is off, no line holds a number of images or patients, or a share of one.
Not covered: how long a step takes, which grows with the cohort.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from client.state.folder import State
from client.state.jobs import Work, is_finished, read_work
from common.study.plan import Study
from common.study.round_names import name_of_key

# Phases whose steps are the cohort's images or groups; those of the others are the plan's.
OF_IMAGES = ("invert", "align")


@dataclass(frozen=True)
class AtWork:
    """A round that was begun and not answered, by its name, and how far its child is."""

    round: str
    work: Work

    def to_dict(self, now: float) -> dict[str, object]:
        """Return round, phase, step and seconds left as JSON; for this site alone."""
        left_s = self.work.seconds_left(now)
        return {
            "round": self.round,
            "phase": self.work.phase,
            "done": self.work.done,
            "total": self.work.total,
            "seconds_left": None if left_s is None else round(left_s),
        }

    def line(self, now: float, *, counts: bool) -> str:
        """Return phase, step of steps and time left in one line; with `counts`, the time of day."""
        parts = [f"{self.round}: {self.work.phase or 'at work'}"]
        # a share, or the time that is left, would tell how many images there are
        if self.work.total and (counts or self.work.phase not in OF_IMAGES):
            parts.append(self._step())
            left_s = self.work.seconds_left(now)
            if left_s is not None:
                parts.append(f"{spell_duration(left_s)} left")
        line = ", ".join(parts)
        if not counts:
            return line
        return f"{line} ({datetime.fromtimestamp(now).strftime('%H:%M:%S')})"

    def _step(self) -> str:
        """How far the phase is."""
        if self.work.phase not in OF_IMAGES:
            return f"step {self.work.done} of {self.work.total}"
        unit = "image" if self.work.phase == "invert" else "group"
        return f"{unit} {self.work.done} of {self.work.total}"


def at_work(state: State, plan_hash: str, study: Study) -> Iterator[AtWork]:
    """Yield the rounds of a plan that a child has begun and that are not answered."""
    begun: dict[str, str] = {}
    for entry in state.journal.entries(f"{plan_hash}/"):
        if entry.state == "started":
            begun[entry.key] = str(entry.data["folder"])
        elif entry.state in ("answered", "cleared", "dropped", "reserved"):
            begun.pop(entry.key, None)
    for key, name in begun.items():
        folder = state.jobs / name
        if folder.is_dir() and not is_finished(folder):
            yield AtWork(name_of_key(study, key), read_work(folder))


def spell_duration(seconds: float) -> str:
    """Seconds, minutes or hours in words."""
    if seconds < 90:
        return f"about {seconds:.0f} s"
    if seconds < 5400:
        return f"about {seconds / 60:.0f} min"
    return f"about {seconds / 3600:.1f} h"
