"""What an image batch is made from: plan, cohort, final weights, job folder, secret."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from client.child.practice import practice_noise
from client.ingest.cohort import Cohort
from client.learn import train_glow
from client.state.jobs import Progress, write_progress
from client.state.ledger import PracticeReservation, Reservation
from common.devices import CPU
from common.errors import ConfigurationError
from common.models.basis import Basis
from common.models.basis import load as load_basis
from common.models.glow import Glow
from common.models.glow_checkpoint import load_weights as load_glow
from common.models.stylegan import Critic, Generator, load_critic, load_generator
from common.privacy.noise import NoiseSource, SeededNoiseSource
from common.study.families import GLOW
from common.study.plan import Study
from common.study.synthesis import Synthesis
from common.wire.tensors import Arrays


@dataclass(frozen=True)
class Batch:
    """The inputs of one image batch, and the device that makes it.

    `reserved`: the ledger's text, "" for none. `practice`: of a rehearsal, whose noise is of the
    same size and NOT PRIVATE; `reserved` is then the mechanism's text.
    """

    study: Study
    cohort: Cohort
    weights: Arrays
    plan_folder: Path
    folder: Path
    secret: bytes
    reserved: str = ""
    device: torch.device = CPU
    practice: bool = False

    @property
    def synthesis(self) -> Synthesis:
        """The plan's synthesis; raises ConfigurationError without one."""
        if self.study.synthesis is None:
            raise ConfigurationError("the plan synthesizes nothing")
        return self.study.synthesis

    def generator(self) -> Generator:
        """Return the study's generator with the final global weights."""
        assert self.study.models.gan is not None
        intake = self.study.intake
        plan = self.study.models.gan
        generator = load_generator(self.weights, plan, intake.size_px, intake.channels)
        return generator.to(self.device)

    def critic(self) -> Critic:
        """Return the study's critic with the final global weights."""
        assert self.study.models.gan is not None
        intake = self.study.intake
        plan = self.study.models.gan
        critic = load_critic(self.weights, plan, intake.size_px, intake.channels)
        return critic.to(self.device)

    def glow(self) -> Glow:
        """Return the study's flow with the final global weights."""
        model = train_glow.build(self.study)
        load_glow(model, GLOW.select(self.weights))
        return model.to(self.device)

    def basis(self) -> Basis | None:
        """Return the first `components` of the public basis of the plan's latents, or None."""
        plan = self.synthesis.privatize
        if plan is None or plan.basis is None or plan.components is None:
            return None
        return load_basis(self.plan_folder / "checkpoints" / plan.basis.name).first(plan.components)

    def code_basis(self) -> Basis | None:
        """Return the first `components` of the public basis of `anchors`, or None."""
        plan = self.synthesis.anchors
        if plan is None or plan.basis is None:
            return None
        return load_basis(self.plan_folder / "checkpoints" / plan.basis.name).first(plan.components)

    def reservation(self) -> Reservation | PracticeReservation:
        """Return what the ledger holds as spent for this batch; raises RefusedError for nothing."""
        if self.practice:
            return PracticeReservation.from_event(self.reserved)
        return Reservation.from_json(self.reserved)

    def noise(self) -> NoiseSource | SeededNoiseSource:
        """Return a source of privacy noise; practice noise in a rehearsal."""
        return practice_noise() if self.practice else NoiseSource()

    def report(self, phase: str) -> Progress:
        """Return what writes how far a phase of the batch is."""
        return lambda done, total: write_progress(self.folder, done, total, phase)

    def begin(self, phase: str) -> None:
        """Write that a phase has begun whose steps are not counted."""
        self.report(phase)(0, 0)
