"""Attacks on released images when it is known who took part: membership inference, links, re-identification; as findings.

In: released images with labels; people who took part and people who did not, both public (a rehearsal, or a benchmark); what
the attacker has besides: public reference images, the released networks. Out: `Inference`, `Links` and findings for the report.
Guaranteed: an attacker scores a person by released images of the person's label alone; members are compared with non-members of
their stratum; the worst of all attackers is reported, beside what chance gives the worst of so many; no image of a hospital is
needed or read. Not: a bound for attackers that are not here. Features see 32 px pixels, equal contrast, texture, the released
critic, and the codes of the public encoder, raw and whitened; each with the nearest release and the density ratio.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from common.arrays import Floats, Images, Labels
from common.measure import attacks
from common.measure.attacks import Inference, Links
from common.models import glow_pixels
from common.models.encoder import Encoder
from common.models.glow import Glow
from common.models.images import to_uint8, to_unit
from common.models.stylegan import Critic, Generator
from server.evaluate.extractors import Texture
from server.evaluate.findings import NOT_EVALUATED, Finding

PIXELS_PX, CRITIC_CELLS, AT_ONCE, NEAREST = 32, 4, 64, 5
MEMBERSHIP, MEMBERSHIP_CHANCE = (
    "membership inference, AUC of the worst attacker",
    "membership inference, AUC by chance",
)
MEMBERSHIP_CONTROL = "membership inference, AUC of the worst attacker on samples of the generator"
MEMBERSHIP_RATE = "membership inference, true positives at 1 % false positives"
LINKS = "linkage, share of the nearest people who took part"


@dataclass(frozen=True)
class Networks:
    """What a release, or the plan's public checkpoints, give to an attacker."""

    generator: Generator | None = None
    critic: Critic | None = None
    encoder: Encoder | None = None
    iterations: int = 3  # of the encoder; one is enough for a look
    flow: Glow | None = None  # where a flow makes the images
    temperature: float = 1.0  # of the flow's prior


@dataclass(frozen=True)
class People:
    """Images uint8 [N, S, S, C] with label [N], stratum [N] (label, or label and eye), person [N] from 0, took part [N]."""

    images: Images
    labels: Labels
    stratum: Labels
    person_of: Labels
    member: NDArray[np.bool_]

    def of_persons(self, values: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return what each person's first image has."""
        return values[np.unique(self.person_of, return_index=True)[1]]


def people(members: tuple[Images, Labels, Labels], others: tuple[Images, Labels, Labels]) -> People:
    """Return those who took part and those who did not, each given as images, labels and strata, one image a person."""
    images = np.concatenate([members[0], others[0]])
    labels, stratum = (np.concatenate([members[i], others[i]]) for i in (1, 2))
    return People(
        images, labels, stratum, np.arange(len(images)), np.arange(len(images)) < len(members[0])
    )


def spaces(images: Images, networks: Networks) -> dict[str, Floats]:
    """Return features [N, D] by name of space; those that need a network only where it is given."""
    x = to_unit(images)
    small = F.avg_pool2d(x, max(1, x.shape[2] // PIXELS_PX))
    level = (small - small.mean((2, 3), keepdim=True)) / (small.std((2, 3), keepdim=True) + 1e-3)
    found = {
        "pixels": _rows(small), "contrast": _rows(level), "texture": Texture(24).features(images)
    }  # fmt: skip
    with torch.no_grad():
        if networks.critic is not None:
            found["critic"] = np.concatenate(
                [_critic(networks.critic, part) for part in torch.split(x, AT_ONCE)]
            )
        if networks.encoder is not None and networks.generator is not None:
            found["codes"] = np.concatenate([
                _rows(networks.encoder.invert(part, networks.generator, networks.iterations).codes)
                for part in torch.split(x, AT_ONCE)
            ])  # fmt: skip
    return found


def _rows(x: Tensor) -> Floats:
    return np.asarray(x.flatten(1).double().numpy())


def _critic(critic: Critic, x: Tensor) -> Floats:
    """The critic's last two activations on a 4×4 grid."""
    taps = [F.adaptive_avg_pool2d(tap, CRITIC_CELLS) for tap in critic.features(x)[-2:]]
    return np.concatenate([_rows(F.normalize(tap.flatten(1), dim=1)) for tap in taps], axis=1)


def scored(
    released: Mapping[str, Floats],
    labels: Labels,
    targets: Mapping[str, Floats],
    who: People,
    reference: Mapping[str, Floats] | None,
) -> dict[str, Floats]:
    """Return each attacker's score of each person, [persons], from the spaces of released, people's and reference images.

    Without a reference those who did not take part are it, each left out of the own estimate.
    """
    comparable = who.labels[:, None] == labels[None]
    known = comparable.any(1)  # a label of which nothing was released: nobody can say anything
    rows = np.flatnonzero(~who.member)
    own = None if reference is not None else np.where(who.member, -1, np.cumsum(~who.member) - 1)
    found: dict[str, Floats] = {}
    for name, (ours, theirs, public) in _sets(released, targets, reference, rows).items():
        left_out = None if own is None else own[known]
        found[f"nearest release, {name}"] = _filled(
            attacks.nearness(theirs[known], ours, comparable[known]), known
        )
        ratio = attacks.density_ratio(theirs[known], ours, public, left_out, comparable[known])
        found[f"density ratio, {name}"] = _filled(ratio, known)
    by_person = {name: attacks.by_person(x, who.person_of) for name, x in found.items()}
    return {**by_person, "all together": attacks.together(by_person)}


def _filled(scores: Floats, known: NDArray[np.bool_]) -> Floats:
    """The scores of those of whose label something was released; the others get the lowest."""
    found = np.full(len(known), scores.min() if len(scores) else 0.0)
    found[known] = scores
    return found


def _sets(
    released: Mapping[str, Floats],
    targets: Mapping[str, Floats],
    reference: Mapping[str, Floats] | None,
    outsiders: Labels,
) -> dict[str, tuple[Floats, Floats, Floats]]:
    """Released, people's and reference features by space; texture standardised, codes also whitened, by the reference."""
    found = {}
    for name in released:
        sets = {"released": released[name], "people": targets[name],
                "reference": targets[name][outsiders] if reference is None else reference[name]}  # fmt: skip
        if name == "texture":
            middle, scale = sets["reference"].mean(0), sets["reference"].std(0) + 1e-6
            sets = {key: (x - middle) / scale for key, x in sets.items()}
        found[name] = (sets["released"], sets["people"], sets["reference"])
        if name == "codes":
            white = attacks.whitened(sets, "reference")
            found["whitened codes"] = (white["released"], white["people"], white["reference"])
    return found


class Battery:
    """All attackers with what they know of `who` and of public `reference` images (None: those who took no part are it)."""

    def __init__(
        self, who: People, networks: Networks = Networks(), reference: Images | None = None
    ) -> None:
        self.who, self.networks = who, networks
        self.targets = spaces(who.images, networks)
        self.public = None if reference is None else spaces(reference, networks)

    def membership(
        self, released: Images, labels: Labels, seen: Mapping[str, Floats] | None = None
    ) -> Inference | None:
        """Return what the attackers find out about who took part; None where there are too few people.

        `released` uint8 [R, S, S, C] with `labels` [R]; `seen` their spaces, where they are known already.
        """
        ours = spaces(released, self.networks) if seen is None else seen
        scores = scored(ours, labels, self.targets, self.who, self.public)
        member, stratum = (
            self.who.of_persons(values) for values in (self.who.member, self.who.stratum)
        )
        return attacks.infer(scores, np.asarray(member, bool), np.asarray(stratum, np.int64))

    def control(self, labels: Labels, seed: int = 0) -> Inference | None:
        """Return the same attack on the generator's (or the flow's) own samples, which nobody here is in: above 1/2, members
        merely differ from the others in kind. None without either."""
        generator, flow = self.networks.generator, self.networks.flow
        random = torch.Generator().manual_seed(seed)
        if generator is not None:
            with torch.no_grad():
                w = generator.mapping(torch.randn(len(labels), generator.latent, generator=random))
                parts = [
                    to_uint8(generator.synthesis(generator.broadcast(one), noise=random))
                    for one in w.split(AT_ONCE)
                ]
            return self.membership(np.concatenate(parts), labels)
        if flow is not None:
            drawn = glow_pixels.to_uint8(
                flow.decode(flow.prior(len(labels), self.networks.temperature, random))
            )
            return self.membership(drawn, labels)
        return None


def linkage(released: Images, labels: Labels, who: People, count: int = NEAREST) -> Links | None:
    """Return the share of people who took part among the `count` images nearest to each release, of equal contrast.

    Only images of the release's label are candidates.
    """
    ours, theirs = (spaces(images, Networks())["contrast"] for images in (released, who.images))
    possible = labels[:, None] == who.labels[None]
    apart = np.where(possible, attacks.distances(ours, theirs), np.inf)
    return attacks.links(apart, np.broadcast_to(who.member, apart.shape), count)


def findings(
    found: Inference | None, control: Inference | None, linked: Links | None, how: str
) -> list[Finding]:
    """Return the statements of a report; `how` says who took part in which rehearsal."""
    if found is None:
        names = (MEMBERSHIP, MEMBERSHIP_CHANCE, MEMBERSHIP_CONTROL, MEMBERSHIP_RATE, LINKS)
        return [_silent(name, "too few people on either side") for name in names]
    worst = found.worst
    said = f"{how}; {len(found.attackers)} attackers, the worst: {worst.attacker}"
    return [
        _ranged(MEMBERSHIP, worst.auc, worst.auc_interval, "AUC; 0.5 is a guess", said),
        Finding(MEMBERSHIP_CHANCE, round(found.chance, 4), "AUC that the worst exceeds by luck in 1 of 20 cases",
                f"{how}; members and others dealt anew within each label"),
        _silent(MEMBERSHIP_CONTROL, "no generator and no flow was given") if control is None else
        _ranged(MEMBERSHIP_CONTROL, control.worst.auc, control.worst.auc_interval, "AUC; above 0.5: other kinds of people", how),
        _ranged(MEMBERSHIP_RATE, worst.tpr, worst.tpr_interval, "share; 0.01 is a guess", said),
        _silent(LINKS, "too few people of a label") if linked is None else
        _ranged(LINKS, linked.precision, linked.interval, f"of {linked.count} nearest; {linked.chance:.4f} is a guess", how),
    ]  # fmt: skip


def _ranged(name: str, value: float, interval: tuple[float, float], unit: str, how: str) -> Finding:
    low, high = (round(end, 4) for end in interval)
    return Finding(
        name, round(value, 4), f"{unit}; 95 % interval {low} to {high}", how, interval=(low, high)
    )


def _silent(name: str, why: str) -> Finding:
    return Finding(name, None, "", why, NOT_EVALUATED)
