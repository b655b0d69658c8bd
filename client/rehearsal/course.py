"""The course of a rehearsal: every phase of a plan at one site, alone on its machine.

In: a verified plan, the site's cohort, a scratch folder. Out: an `Outcome`.
Steps:
  1 train every model, round by round; the global step is that of a study with one site
  2 make the image batch from the final weights, with the groups that were released before; or draw
    pairs, where the plan releases those
Guarantees: the ledger, the journal, the outbox and the site's stores are not opened for writing,
and no key signs. Noise is of the plan's own size and NOT PRIVATE. The children write a mark into
whatever they make, which the gate refuses.
Not covered: other sites' updates: with them the models have seen more patients.
"""

from __future__ import annotations

import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from client.daemon import jobs
from client.egress.contact_sheet import count_pages
from client.egress.frozen import NO_GROUPS, frozen_groups
from client.egress.review import SHEET, page_name
from client.rehearsal.meter import Meter
from client.state.canaries import CanaryFile
from client.state.config import SiteConfig
from client.state.folder import State
from client.state.jobs import (
    LOG,
    OUTPUT,
    OUTPUT_CAP_BYTES,
    PRACTICE,
    Job,
    Progress,
    read_work,
)
from client.state.plans import Plans
from client.state.records import Records
from common.errors import Bug, EnvironmentFault, PolicyError
from common.privacy.events import image_event, round_event
from common.storage.files import read_capped
from common.study.averaging import step_of_one
from common.study.families import FAMILIES
from common.study.plan import Study
from common.study.shapes import starting_weights
from common.wire.tensors import Arrays, dumps, read

LOG_CAP_BYTES = 1 << 26


@dataclass(frozen=True)
class Outcome:
    """What would leave: the sheets that a person would look at, and the images of each label.

    `images` is empty for a plan whose sites send updates alone.
    """

    sheets: tuple[Path, ...]
    images: dict[str, int]


@dataclass(frozen=True)
class Course:
    """One rehearsal.

    `plan`: folder of the practice plan. `cohort`: the site's own, which is only read. `own`: the
    state of the rehearsal, with copies of the site's stores. `secret`: orders patients, as in a
    study.
    """

    study: Study
    plan: Path
    cohort: Path
    own: State
    config: SiteConfig
    plans: Plans
    secret: bytes
    meter: Meter
    show: Progress
    stop: threading.Event

    def play(self) -> Outcome:
        """Do steps 1 and 2; raises PolicyError or EnvironmentFault with the code of a child."""
        # (1) train every model
        weights: Arrays = {}
        for model in self.study.models.trained():
            weights |= self._train(model)
        # (2) make what a person would look at
        if self.study.synthesis is not None:
            outcome = self._synthesize(weights)
        elif self.study.models.wgan is not None:
            folder = self._compute("pairs", "pairs", "wgan", weights)
            outcome = Outcome((folder / SHEET,), {})
        else:
            outcome = Outcome((), {})
        self.meter.end()
        return outcome

    def _train(self, model: str) -> Arrays:
        """Return a model's weights after all its rounds at this one site."""
        plan = self.study.models.trained()[model]
        family = FAMILIES[model]
        assert plan.start is not None
        weights = starting_weights(self.plan / "checkpoints" / plan.start.name, family)
        shapes = {name: array.shape for name, array in weights.items()}
        dimension = family.private_dimension(shapes, plan.trainable)
        canaries = self.study.privacy.canaries
        event = round_event(self.study, model, dimension + canaries)
        secret = b""
        if canaries:
            file = CanaryFile(self.own.canaries, self.study.hash(), model, canaries)
            secret = dumps(file.secret(dimension).arrays())
        for number in range(plan.rounds):
            name = f"{model} round {number + 1} of {plan.rounds}"
            folder = self._compute(name, "train", model, weights, event.event(), secret)
            weights = step_of_one(weights, self._made(folder))
            shutil.rmtree(folder)
        return weights

    def _synthesize(self, weights: Arrays) -> Outcome:
        """Make the image batch, with what an earlier study froze."""
        frozen, stored = frozen_groups(Records(self.own, self.config, self.plans), self.study)
        event = image_event(self.study)
        reserved = event.event() if event is not None and event.covers_patient else ""
        sent: Arrays = {}
        for model in self.study.models.trained():
            if FAMILIES[model].synthesis != "never":
                sent |= FAMILIES[model].select(weights)
        folder = self._compute("synthesis", "synthesize", "", sent, reserved, b"", frozen, stored)
        made = self._made(folder)
        strata = self.study.strata()
        counts = np.bincount(made["labels"], minlength=len(strata))
        pages = count_pages(len(made["images"]), *made["images"].shape[1:3])
        sheets = tuple(folder / page_name(SHEET, page) for page in range(pages))
        return Outcome(sheets, dict(zip(strata, counts.tolist(), strict=True)))

    def _compute(
        self,
        name: str,
        kind: Literal["train", "synthesize", "pairs"],
        model: str,
        weights: Arrays,
        reserved: str = "",
        canaries: bytes = b"",
        frozen: bytes = NO_GROUPS[0],
        stored: bytes = NO_GROUPS[1],
    ) -> Path:
        """Let a child do one job; return its folder."""
        limits = self.config.limits
        job = Job(
            kind=kind,
            model=model,
            plan=str(self.plan.resolve()),
            cohort=str(self.cohort.resolve()),
            reservation=reserved,
            threads=limits.threads,
            memory_gib=limits.child_memory_gib,
            ways=str(self.own.ways.resolve()),
            compute=self.config.compute.shared,
            processes=self.config.compute.processes,
            practice=True,
        )
        folder = self.own.jobs / f"{kind}-{model or 'images'}-0"
        job.write(folder, dumps(weights), frozen, canaries, stored)

        def watch(done: int, total: int) -> None:
            phase = read_work(folder).phase
            # rounds have one phase each, under the round's own name
            self.meter.look(name if kind == "train" or not phase else phase)
            self.show(done, total)

        watch(0, 0)
        ending = jobs.run_child(folder, job.threads_each, self.secret, self.stop, watch)
        if not ending.finished:
            self.meter.end()
            raise refusal(name, folder, ending.code)
        return folder

    def _made(self, folder: Path) -> Arrays:
        """What a child left, without its mark."""
        arrays = read(folder / OUTPUT, max_bytes=OUTPUT_CAP_BYTES)
        if arrays.pop(PRACTICE, None) is None:
            raise Bug("a rehearsal's child left what is not marked as practice")
        return arrays


def refusal(name: str, folder: Path, code: str) -> PolicyError | EnvironmentFault:
    """Return why a child left nothing: its own last words, which stay on this screen."""
    log = folder / LOG
    words = ""
    if log.is_file() and log.stat().st_size <= LOG_CAP_BYTES:
        lines = read_capped(log, LOG_CAP_BYTES).decode("utf-8", "replace").splitlines()
        words = next((line for line in reversed(lines) if line.strip()), "")
    if code:
        text = words.removeprefix(f"{code}: ") or "the child refused"
        return PolicyError(
            f"{name}: {code}: {text}",
            hint="in the study it would end here too; nothing was spent and nothing was sent",
            code=code,
        )
    return EnvironmentFault(
        f"{name}: the child crashed: {words or 'it said nothing'}",
        hint="too little memory? In the study this would be tried again, and spend again",
        code="E-WORK-CRASHED",
    )
