"""What was released of a group, and what a later study may release of it.

In: the stored images of a group, what a study wants (`Wanted`), what the site allows (`Limit`).
Out: how the group is used, or what is wrong with a release.
Guarantees:
1. A plain average is released once: later studies get the same bytes or nothing.
2. A group has plain images or privatized ones, never both.
3. All noised draws of one average together stay within the policy's max_epsilon_average.
4. Nothing is released of a group of which it is not known what left before.
Not covered: storing (group_store.py), who is in the group today (client/synthesize/group.py), and
studies whose epsilon covers every patient: they take no frozen group.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from common.arrays import Images
from common.errors import PolicyError
from common.privacy.draws import compose_draws
from common.privacy.events import image_event
from common.privacy.latent_mechanisms import Latent, LatentGaussian, LatentLaplace, PrivUnit
from common.privacy.mechanisms import mechanism_from
from common.study.plan import Study

# what a study does with a frozen group
Use = Literal["hold", "again", "draw"]
USES: tuple[Use, ...] = ("hold", "again", "draw")


@dataclass(frozen=True)
class Artefact:
    """One released image of a group: uint8 [H, W, C], and what it is.

    `label`, `modality`: names, not positions. `event`: the mechanism's canonical JSON, "" where the
    image is plain. `study`: hash of the plan that released it first; it does not make another
    artefact of the same image.
    """

    image: Images = field(compare=False, repr=False)
    label: str
    modality: str
    event: str
    study: str = field(compare=False)
    size_px: int = field(init=False)
    channels: int = field(init=False)
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size_px", int(self.image.shape[0]))
        object.__setattr__(self, "channels", int(self.image.shape[2]))
        object.__setattr__(self, "sha256", hashlib.sha256(self.image.tobytes()).hexdigest())

    @property
    def privatized(self) -> bool:
        """Whether noise was added to its latent."""
        return bool(self.event)


@dataclass(frozen=True)
class Limit:
    """The policy's largest epsilon of all draws of one group's average, and its delta."""

    epsilon: float
    delta: float

    def allows(self, events: Sequence[str]) -> bool:
        """Return whether all these draws together stay within it; a NaN does not."""
        return epsilon_of(events, self.delta) <= self.epsilon


@dataclass(frozen=True)
class Wanted:
    """What a study makes of a group. `event`: of its privatized images, "" for none."""

    study: str
    size_px: int
    channels: int
    modality: str
    labels: tuple[str, ...]
    event: str
    plain: bool
    outputs: int

    @classmethod
    def of(cls, study: Study) -> Wanted:
        """Return what a plan wants; raises PolicyError for a plan without synthesis."""
        synthesis = study.synthesis
        if synthesis is None:
            raise PolicyError("the plan synthesizes nothing")
        event = image_event(study)
        share = 0.0
        if synthesis.privatize is not None and synthesis.privatizes_averages:
            share = synthesis.privatize.share
        return cls(
            study=study.hash(),
            size_px=study.intake.size_px,
            channels=study.intake.channels,
            modality=study.modality,
            labels=study.strata(),
            event="" if event is None else event.event(),
            plain=share < 1,
            outputs=synthesis.outputs_per_group,
        )

    def artefact(self, image: Images, label: int, privatized: bool) -> Artefact:
        """Return an image of this study as an artefact."""
        event = self.event if privatized else ""
        return Artefact(image, self.labels[label], self.modality, event, self.study)

    def fits(self, artefact: Artefact, label: int) -> bool:
        """Return whether the study may send this stored image as its own."""
        if not 0 <= label < len(self.labels) or artefact.label != self.labels[label]:
            return False
        if artefact.modality != self.modality:
            return False
        if (artefact.size_px, artefact.channels) != (self.size_px, self.channels):
            return False
        if artefact.privatized:
            return artefact.event == self.event
        return self.plain


def choose_use(
    stored: Sequence[Artefact], label: int, wanted: Wanted, limit: Limit
) -> tuple[Use, tuple[Artefact, ...]]:
    """Return how a study uses a frozen group, and the stored images that it sends again."""
    # the same bytes again
    fitting = tuple(artefact for artefact in stored if wanted.fits(artefact, label))
    if fitting:
        return "again", fitting[: wanted.outputs]
    # a further draw of an average that only ever left with noise
    if wanted.event and not find_event_fault(stored, (wanted.event,), limit):
        return "draw", ()
    return "hold", ()


def find_fault(
    stored: Sequence[Artefact] | None, proposed: Sequence[Artefact], limit: Limit
) -> str:
    """Return why these images of one group may not leave, or "" where they may.

    `stored`: what was released of the group before; None for a group that is not frozen.
    """
    known = stored or ()
    new = [artefact.event for artefact in proposed if artefact not in known]
    if not new:
        return ""
    if stored is None:
        return find_kind_fault((), new, limit)
    return find_event_fault(stored, new, limit)


def find_event_fault(stored: Sequence[Artefact], new: Sequence[str], limit: Limit) -> str:
    """Return why a frozen group may not release new images with these events ("": plain)."""
    # (4) what left before is known
    if not stored:
        return "it is not known what was released of this group before"
    # (1) a plain average is released once
    if "" in new:
        return "another plain image of a group that was released before"
    return find_kind_fault([artefact.event for artefact in stored], new, limit)


def find_kind_fault(before: Sequence[str], new: Sequence[str], limit: Limit) -> str:
    """Return why images with these events may not stand beside those before, or ""."""
    # (2) plain or privatized
    everything = [*before, *new]
    draws = [event for event in everything if event]
    if draws and len(draws) < len(everything):
        return "plain and privatized images of one group"
    # (3) all draws together
    if not limit.allows(draws):
        return "all noised draws of this average together exceed policy.max_epsilon_average"
    return ""


def epsilon_of(events: Sequence[str], delta: float) -> float:
    """Return epsilon per average of all these draws; plain images ("") count for nothing."""
    draws: list[Latent] = []
    for event in events:
        mechanism = mechanism_from(event) if event else None
        if isinstance(mechanism, LatentLaplace | LatentGaussian | PrivUnit):
            draws.append(mechanism)
    return compose_draws(draws, delta)
