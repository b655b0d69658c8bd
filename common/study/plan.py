"""The study plan: one YAML file that both sides read and hash; the operator signs the hash.

Guarantees: every privacy parameter is a public constant of the file. The hash covers every field
and every checkpoint's SHA-256.
Not covered: whether a site agrees (its own policy decides), or whether the constants keep the
stated epsilon (common/privacy/accounting.py computes it; signing refuses otherwise).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from common.config import FrozenModel, load_yaml
from common.study import rules
from common.study.fields import Checkpoint, Identifier
from common.study.intake import Intake
from common.study.sections import Aggregation, Continues, Privacy, Release, SitePlan
from common.study.synthesis import MOST_CELLS, PrivatizePlan, Synthesis
from common.study.training import Models, TrainedModel
from common.wire.messages import canonical

LATER = frozenset({"aggregation", "continues"})  # keys that came after the first signed plans
LATER_OF_FLOW = frozenset({"doublings"})  # likewise, of models.glow


class Study(FrozenModel):
    """A study plan. Every number in it is public and signed."""

    format: Literal["kohort-study/1"] = Field(description="version of this file")
    name: Identifier = Field(
        description="the study's name: lower-case letters, digits and hyphens, at most 32 "
        "characters"
    )
    title: str = Field(
        min_length=1, max_length=200, description="title for people; it stands in the release"
    )
    modality: Literal["fundus", "chest", "vessels"] = Field(
        description="kind of images: fundus photographs, chest radiographs, or MR patches of "
        "vessels"
    )
    sites: tuple[SitePlan, ...] = Field(
        min_length=2, max_length=1000, description="hospitals that may take part"
    )
    quorum: int = Field(
        ge=2, description="fewest sites whose answers close a round; at most the number of sites"
    )
    aggregation: Aggregation = Field(
        default=Aggregation(), description="how a round's updates become one step"
    )
    round_deadline_s: float = Field(
        default=3600,
        gt=0,
        le=30 * 86400,
        description="time in seconds after which a round closes with the sites that have answered",
    )
    intake: Intake = Field(description="which images enter a cohort, and how they look there")
    models: Models = Field(description="which models are trained")
    privacy: Privacy = Field(description="the promise for model updates")
    synthesis: Synthesis | None = Field(
        default=None,
        description="how images are made on site; without it the sites send updates alone",
    )
    continues: Continues | None = Field(
        default=None,
        description="the earlier version of this study that this one goes on from; "
        "`kohort-server study next` writes it",
    )
    release: Release = Field(description="what the released set says of itself")

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        problems = list(self._problems())
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _problems(self) -> Iterator[str]:
        """What fits no single section."""
        yield from rules.site_problems(self.sites, self.quorum)
        yield from rules.aggregation_problems(self.aggregation, self.quorum)
        yield from rules.model_problems(self.models, self.intake, self.privacy)
        yield from rules.privacy_problems(self.privacy)
        yield from rules.continues_problems(self.continues, self.models)
        if self.synthesis:
            yield from rules.synthesis_problems(
                self.synthesis, self.models, self.intake, self.privacy
            )

    @property
    def privatize(self) -> PrivatizePlan | None:
        """The section `synthesis.privatize`, where the plan has it."""
        return None if self.synthesis is None else self.synthesis.privatize

    @property
    def cells_per_stratum(self) -> int:
        """How many cells a stratum has.

        As stated; by default so many that each has 3k of the planned patients.
        """
        if self.synthesis is None or self.synthesis.anchors is None:
            return 0
        stated = self.synthesis.anchors.cells_per_stratum
        eyes = 2 if self.intake.stratify_laterality else 1
        patients_for_a_cell_each = 3 * self.synthesis.k * len(self.strata()) * eyes
        fitting = self.privacy.planned_patients // patients_for_a_cell_each
        return stated or max(1, min(MOST_CELLS, fitting))

    def sides(self) -> tuple[int, ...]:
        """Return the lateralities that are strata of their own; (0,) where none counts.

        0 unknown, 1 left, 2 right.
        """
        return (0, 1, 2) if self.intake.stratify_laterality else (0,)

    def counted_rounds(self, model: str) -> int:
        """Return the rounds of a model that its epsilon covers: those of earlier versions too."""
        earlier = {} if self.continues is None else self.continues.rounds
        return self.models.trained()[model].rounds + earlier.get(model, 0)

    @property
    def latent_dimension(self) -> int:
        """D, the coordinates of a whole latent code: pixels times channels of an image."""
        return self.intake.value_count

    def strata(self) -> tuple[str, ...]:
        """Return the released label names: labels after merging, in order of first appearance."""
        merged = (self.intake.merge_labels.get(label, label) for label in self.intake.labels)
        return tuple(dict.fromkeys(merged))

    def sampling_rate(self, model: TrainedModel) -> float:
        """Return q: the probability that a step draws a given patient. A public constant."""
        return model.patients_per_step / self.privacy.planned_patients

    def weight_of(self, site: str) -> float:
        """Return a site's public share of every average (all shares sum to 1)."""
        total = sum(s.weight for s in self.sites)
        return next(s.weight for s in self.sites if s.name == site) / total

    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """Return every public file of the plan: starting checkpoints and bases."""
        files = [plan.start for plan in self.models.trained().values()]
        if self.models.encoder:
            files.append(self.models.encoder.start)
        if self.privatize:
            files.append(self.privatize.basis)
        if self.synthesis and self.synthesis.anchors:
            files.append(self.synthesis.anchors.basis)
        return tuple(file for file in files if file is not None)

    def hash(self) -> str:
        """Return the SHA-256 of the plan's canonical JSON, in hex.

        A key of LATER, here, in `intake` or of the flow, counts only where it is not its default.
        So a plan that an earlier version signed keeps its hash, its signature, its approvals and
        its place in every state folder.
        """
        fields = self.model_dump(mode="json", exclude=_unused(self, LATER))
        if self.models.glow is not None:
            for name in _unused(self.models.glow, LATER_OF_FLOW):
                del fields["models"]["glow"][name]
        fields["intake"] = self.intake.hashed_fields()
        return hashlib.sha256(canonical(fields)).hexdigest()


def _unused(model: FrozenModel, later: frozenset[str]) -> set[str]:
    """The keys of `later` that hold their default."""
    fields = type(model).model_fields
    return {name for name in later if getattr(model, name) == fields[name].default}


def load_study(path: Path) -> Study:
    """Return the validated plan in a YAML file.

    Raises ConfigurationError with every problem at once.
    """
    return load_yaml(path, Study)
