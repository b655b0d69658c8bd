"""A rehearsal from a signed bundle to the pictures that would leave, in a scratch folder.

In: the state folder's configuration, a verified bundle. Out: an `Outcome`, the measured phases.
Steps:
  1 the plan fits its checkpoints, this site's policy and this machine, as for `approve`
  2 the site's own cohort; without one, a cohort of these intake rules in the scratch folder
  3 the course (course.py)
Guarantees: nothing is spent or sent; nothing of the state folder changes but `rehearsal/`.
Not covered: that a person who looks at the pictures decides by them whether the site takes part.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from client.daemon.jobs import group_key
from client.ingest.build import ingest
from client.ingest.refresh import Intakes
from client.rehearsal.course import Course, Outcome
from client.rehearsal.meter import Meter
from client.rehearsal.practice_plan import Shorter, make_practice_plan, write_practice_plan
from client.rehearsal.scratch import copy_store
from client.state.config import SiteConfig
from client.state.folder import State
from client.state.jobs import Progress
from client.state.machine import check_memory, read_room
from client.state.people import PeopleFile
from client.state.plan_check import check_plan
from client.state.plans import Plans
from common.errors import PolicyError
from common.study.fit import check_checkpoints
from common.study.plan import Study


@dataclass(frozen=True)
class Rehearsal:
    """What is rehearsed, where, and who hears of it. `bundle`: the verified folder of the plan."""

    state: State
    config: SiteConfig
    plans: Plans
    study: Study
    bundle: Path
    shorter: Shorter
    meter: Meter
    show: Progress
    stop: threading.Event

    def play(self, scratch: Path) -> Outcome:
        """Do steps 1 to 3 in an empty folder.

        Raises PolicyError, EnvironmentFault, ConfigurationError, and Stopped on `stop`.
        """
        # (1) the checks of `approve` that a rehearsal depends on
        practice = make_practice_plan(self.study, self.shorter)
        self._check(practice)
        write_practice_plan(practice, self.bundle / "checkpoints", scratch / "plan")
        # (2) the cohort, and copies of what the site froze
        own = State(scratch)
        copy_store(self.state.groups, own.groups)
        cohort = self._cohort(own)
        # (3) the course
        course = Course(
            study=practice,
            plan=scratch / "plan",
            cohort=cohort,
            own=own,
            config=self.config,
            plans=self.plans,
            secret=group_key(self.state),
            meter=self.meter,
            show=self.show,
            stop=self.stop,
        )
        return course.play()

    def _check(self, practice: Study) -> None:
        """Refuse what could not run here as a study."""
        check_plan(practice, self.config.policy, self.config.site)
        check_checkpoints(practice, self.bundle / "checkpoints")
        check_memory(practice, read_room(self.config.limits, self.config.compute))
        trained = practice.models.trained()
        missing = [f"models.{name}.start" for name, plan in trained.items() if plan.start is None]
        if missing:
            raise PolicyError(
                f"plan {practice.name}: {', '.join(missing)}: names no checkpoint",
                hint="ask the operator for a plan that `kohort-server sign` made",
                code="E-PLAN-START",
            )

    def _cohort(self, own: State) -> Path:
        """Return the folder of the site's cohort of these rules, or of one in the scratch."""
        intake = self.study.intake
        if self.state.cohort(intake).is_dir():
            return self.state.cohort(intake)
        copy_store(self.state.people, own.people)
        intakes = Intakes(self.state, self.config)
        self.meter.look("ingest")
        ingest(
            Path(self.config.data.folder),
            intake,
            self.state.pseudonym_bytes(),
            own.cohort(intake),
            labels_csv=intakes.labels(),
            wording=intakes.wording(),
            limits=intakes.limits(intake),
            people=PeopleFile(own.people),
            word=intakes.word(),
            phases=lambda name, done, total: self.show(done, total),
        )
        return own.cohort(intake)
