"""Attacks on released images when it is known who took part: membership inference and links.

In: released images with labels, public people of whom it is known who took part, public reference
images, the released networks.
Out: `Inference`, `Links`.
Guarantees: a person is scored by released images of their label alone, and compared with people of
their stratum; no image of a hospital is read.
Not covered: a bound for other attackers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.arrays import Flags, Floats, Images, Integers, Labels
from common.measure import attack_scores, attacks
from common.measure.attacks import Inference, Links
from common.models import glow_pixels
from common.models.draws import device_of, draw_normal
from common.models.images import to_levels
from common.models.stylegan import Generator
from server.evaluate.attack_spaces import AT_ONCE, CPU, Networks, spaces

NEAREST = 5


@dataclass(frozen=True)
class People:
    """Images uint8 [N, S, S, C] of people, each with label and stratum (label, or label and side).

    `person_of` [N] numbers the persons from 0; `member` [N]: the person took part.
    """

    images: Images
    labels: Labels
    stratum: Labels
    person_of: Labels
    member: Flags

    def of_persons(self, values: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return what each person's first image has."""
        return values[np.unique(self.person_of, return_index=True)[1]]


def people(members: tuple[Images, Labels, Labels], others: tuple[Images, Labels, Labels]) -> People:
    """Return those who took part and those who did not, one image a person.

    Both are given as images, labels and strata.
    """
    images = np.concatenate([members[0], others[0]])
    labels = np.concatenate([members[1], others[1]])
    stratum = np.concatenate([members[2], others[2]])
    person_of = np.arange(len(images))
    return People(images, labels, stratum, person_of, person_of < len(members[0]))


class Battery:
    """All attackers, with what they know of `who` and of public `reference` images.

    Without a reference, the people who took no part are the reference.
    """

    def __init__(
        self, who: People, networks: Networks = Networks(), reference: Images | None = None
    ) -> None:
        self.who = who
        self.networks = networks
        self.targets = spaces(who.images, networks)
        self.public: dict[str, Floats] | None = None
        if reference is not None:
            self.public = spaces(reference, networks)

    def membership(
        self, released: Images, labels: Labels, seen: Mapping[str, Floats] | None = None
    ) -> Inference | None:
        """Return what the attackers find out about who took part; None for too few people.

        `released` is uint8 [R, S, S, C] with `labels` [R]; `seen` are its spaces, where known.
        """
        if seen is None:
            seen = spaces(released, self.networks)
        scores = score_people(seen, labels, self.targets, self.who, self.public)
        member = np.asarray(self.who.of_persons(self.who.member), bool)
        stratum = np.asarray(self.who.of_persons(self.who.stratum), np.int64)
        return attacks.infer(scores, member, stratum)

    def control(self, labels: Labels, seed: int = 0) -> Inference | None:
        """Return the same attack on samples of the generator or the flow; None without either.

        None of these people is in the samples. So an AUC above 1/2 says that members differ from
        the others in kind, not that the samples tell who took part.
        """
        random = torch.Generator().manual_seed(seed)
        if self.networks.generator is not None:
            drawn = _draw_samples(self.networks.generator, len(labels), random)
            return self.membership(drawn, labels)
        flow = self.networks.flow
        if flow is not None:
            latents = flow.prior(len(labels), self.networks.temperature, random)
            return self.membership(glow_pixels.to_uint8(flow.decode(latents)), labels)
        return None


def _draw_samples(generator: Generator, count: int, random: torch.Generator) -> Images:
    """Images of the generator, uint8 [count, S, S, C]."""
    parts: list[Tensor] = []
    with torch.no_grad():
        z = draw_normal((count, generator.latent), random, device_of(generator))
        w = generator.mapping(z)
        for part in w.split(AT_ONCE):
            image = generator.synthesis(generator.broadcast(part), noise=random)
            parts.append(to_levels(image))
    return np.asarray(torch.cat(parts).cpu())


def linkage(
    released: Images,
    labels: Labels,
    who: People,
    count: int = NEAREST,
    device: torch.device = CPU,
) -> Links | None:
    """Return the share of people who took part among the `count` images nearest to each release.

    Images are compared at equal contrast; only those of the release's label are candidates.
    """
    nothing = Networks(device=device)
    ours = spaces(released, nothing)["contrast"]
    theirs = spaces(who.images, nothing)["contrast"]
    possible = labels[:, None] == who.labels[None]
    apart = np.where(possible, attack_scores.distances(ours, theirs), np.inf)
    return attacks.links(apart, np.broadcast_to(who.member, apart.shape), count)


# --- scores -------------------------------------------------------------------------------


def score_people(
    released: Mapping[str, Floats],
    labels: Labels,
    targets: Mapping[str, Floats],
    who: People,
    reference: Mapping[str, Floats] | None,
) -> dict[str, Floats]:
    """Return each attacker's score of each person, [persons].

    `released`, `targets` and `reference` are spaces of released, people's and reference images.
    Without a reference, the people who did not take part are the reference; each is left out of
    their own estimate.
    """
    # who can be scored: people of a label of which something was released
    comparable = who.labels[:, None] == labels[None]
    known = comparable.any(1)

    # the rows of the reference that are left out of a person's estimate
    outsiders = np.flatnonzero(~who.member)
    own_rows = np.where(who.member, -1, np.cumsum(~who.member) - 1)
    left_out = None
    if reference is None:
        left_out = own_rows[known]

    # two attackers in each space
    sets = _gather_sets(released, targets, reference, outsiders)
    scores: dict[str, Floats] = {}
    for name, (ours, candidates, public) in sets.items():
        theirs = candidates[known]
        near = attack_scores.nearness(theirs, ours, comparable[known])
        scores[f"nearest release, {name}"] = _fill(near, known)
        ratio = attack_scores.density_ratio(theirs, ours, public, left_out, comparable[known])
        scores[f"density ratio, {name}"] = _fill(ratio, known)

    # the best score of each person's images, and one attacker who combines all
    by_person = {name: attack_scores.best_by_person(x, who.person_of) for name, x in scores.items()}
    return {**by_person, "all together": attack_scores.combine(by_person)}


def _fill(scores: Floats, known: Flags) -> Floats:
    """The scores of all: people of whose label nothing was released get the lowest."""
    found = np.full(len(known), scores.min() if len(scores) else 0.0)
    found[known] = scores
    return found


def _gather_sets(
    released: Mapping[str, Floats],
    targets: Mapping[str, Floats],
    reference: Mapping[str, Floats] | None,
    outsiders: Integers,
) -> dict[str, tuple[Floats, Floats, Floats]]:
    """Released, people's and reference features by space.

    The reference standardises texture; codes stand twice, as they are and whitened by it.
    """
    found = {}
    for name in released:
        # without a reference, the people who took no part are it
        public = targets[name][outsiders]
        if reference is not None:
            public = reference[name]
        sets = {"released": released[name], "people": targets[name], "reference": public}
        if name == "texture":
            sets = _standardise(sets)
        found[name] = (sets["released"], sets["people"], sets["reference"])
        if name == "codes":
            white = attack_scores.whiten(sets, "reference")
            found["whitened codes"] = (white["released"], white["people"], white["reference"])
    return found


def _standardise(sets: Mapping[str, Floats]) -> dict[str, Floats]:
    """Each feature with the reference's mean 0 and deviation 1."""
    middle = sets["reference"].mean(0)
    scale = sets["reference"].std(0) + 1e-6
    return {name: (x - middle) / scale for name, x in sets.items()}
