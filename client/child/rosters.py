"""Who is grouped, and into which groups: the rosters and groups of one image batch.

Guarantees: a frozen group comes again with its stored images, or not at all; `random` groups are
formed without looking at a pixel; where an epsilon per patient covers every image, the daemon names
no frozen group (client/egress/frozen.py).
Not covered: how groups are formed (client/synthesize/group.py); the daemon freezes what is only
proposed here.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.child.checks import Candidate
from client.child.inputs import Batch
from client.egress.evidence import EVIDENCE_CAP_BYTES, Evidence
from client.ingest.cohort import CHUNK_ROWS, Cohort, release_pages
from client.state.artefacts import USES
from client.state.group_store import Group, Grouping
from client.state.jobs import GROUPS, OUTPUT_CAP_BYTES, STORED
from client.synthesize import strata
from client.synthesize.group import Roster, patient_codes, regroup, roster, strata_of
from client.synthesize.invert import Inversion
from client.synthesize.metric import make_metric_cells, make_points
from client.synthesize.privatize import encode_released
from client.synthesize.reference import Reference
from common.arrays import Labels
from common.errors import PolicyError
from common.storage.files import read_capped
from common.wire.tensors import read


@dataclass(frozen=True)
class FrozenGroups:
    """The site's frozen groups, and what this batch may do with each.

    `again`: the stored images to send again, by the group's token; `draws`: tokens of groups whose
    average may be drawn once more. The others are held back.
    """

    groups: tuple[Group, ...] = ()
    again: Mapping[str, tuple[Candidate, ...]] = field(default_factory=dict)
    draws: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Formed:
    """The groups of one batch: all of them disjoint, none with a patient of another frozen group.

    `again`: images that were released before; nothing is computed for them. `draws`: groups whose
    average was released with noise alone, and is privatized once more. `new`: groups that are not
    frozen. `who`: the roster of those whose images count.
    """

    again: tuple[Candidate, ...]
    draws: tuple[Group, ...]
    new: tuple[Group, ...]
    who: Roster


def group_patients(batch: Batch, inverted: tuple[Reference, Inversion] | None) -> Formed:
    """Return what frozen groups give again, new groups of at least k, and who was grouped.

    Raises PolicyError: E-GROUP-SIZE, or E-GROUP-ARTEFACT where every group is held back.
    """
    frozen = read_frozen(batch.folder)
    mode = batch.synthesis.grouping
    names = person_names(batch.cohort, frozen.groups)
    codes = None
    cells = None
    if mode == "random" or inverted is None:
        who = roster_of(batch, names, None)
    else:
        known, found = inverted
        who = roster_of(batch, names, found.accepted & find_contributing(batch))
        codes = patient_codes(make_points(found, batch.synthesis.group_by), who)
        if mode == "cells":
            cells = make_metric_cells(known, batch.synthesis.group_by)
    # frozen groups as they are; new groups among patients of no frozen group
    grouping = regroup(
        frozen.groups,
        who,
        batch.synthesis.k,
        mode,
        key=batch.secret,
        codes=codes,
        cells=cells,
        present=strata_of(names, batch.cohort.patient_of, *labels_and_sides(batch)),
    )
    if not grouping.groups:
        raise PolicyError("no stratum has k patients", code="E-GROUP-SIZE")
    return sort_by_use(grouping, frozen, who)


def sort_by_use(grouping: Grouping, frozen: FrozenGroups, who: Roster) -> Formed:
    """Return the groups by what may be done with them; the others are held back."""
    old = {group.token for group in frozen.groups}
    on_roster = set(who.pseudonyms)
    again: list[Candidate] = []
    draws: list[Group] = []
    new: list[Group] = []
    for group in grouping.groups:
        counted = set(group.members) <= on_roster
        again += frozen.again.get(group.token, ())
        if group.token in frozen.draws and counted:
            draws.append(group)
        if group.token not in old:
            new.append(group)
    if not (again or draws or new):
        raise PolicyError(
            "every group of this site was released before, in another size, kind or mechanism; "
            "a new release of the same people is refused",
            hint="ask for a plan with the size, share and mechanism of the earlier study, or for "
            "one whose epsilon per patient covers every image",
            code="E-GROUP-ARTEFACT",
        )
    return Formed(tuple(again), tuple(draws), tuple(new), who)


def read_frozen(folder: Path) -> FrozenGroups:
    """Return the frozen groups of a job folder; without stored.safetensors all are held back."""
    evidence = Evidence.from_json(read_capped(folder / GROUPS, EVIDENCE_CAP_BYTES))
    if not (folder / STORED).is_file():
        return FrozenGroups(evidence.groups)
    arrays = read(folder / STORED, max_bytes=OUTPUT_CAP_BYTES)
    # the images that may be sent again, by group
    again: dict[str, tuple[Candidate, ...]] = {}
    for row, place in enumerate(evidence.group_of):
        group = evidence.groups[place]
        image = np.asarray(arrays["images"][row], np.uint8)
        stored = Candidate(image, group, bool(arrays["privatized"][row]))
        again[group.token] = (*again.get(group.token, ()), stored)
    # the groups by use
    tokens: dict[str, set[str]] = {use: set() for use in USES}
    for group, number in zip(evidence.groups, arrays["uses"].tolist(), strict=True):
        tokens[USES[number]].add(group.token)
    return FrozenGroups(evidence.groups, again, frozenset(tokens["draw"]))


def person_names(cohort: Cohort, frozen: Sequence[Group]) -> tuple[str, ...]:
    """Return one name a person: that under which a group is frozen, else the cohort's own."""
    taken = {member for group in frozen for member in group.members}
    names: list[str] = []
    for name, aliases in zip(cohort.pseudonyms, cohort.aliases, strict=True):
        frozen_names = [alias for alias in aliases if alias in taken]
        if frozen_names:
            name = frozen_names[0]
        names.append(name)
    return tuple(names)


def roster_of(batch: Batch, names: Sequence[str], usable: NDArray[np.bool_] | None) -> Roster:
    """Return the patients with merged labels as strata, and the eye where the plan says so.

    `usable` bool [images]: False leaves an image out; None uses every image.
    """
    labels, sides = labels_and_sides(batch)
    return roster(
        names, batch.cohort.patient_of, labels, key=batch.secret, laterality_of=sides, usable=usable
    )


def find_contributing(batch: Batch) -> NDArray[np.bool_]:
    """Return bool [images]: True where an image adds something to an average of latents.

    The flow counts an image that it cannot encode as the zero latent, so a patient of such images
    alone would count in k and add nothing. Groups that images choose leave the patient out.
    `random` groups never ask: an epsilon per patient covers every image, and no image decides.
    """
    images = batch.cohort.images
    if not batch.synthesis.privatizes_averages:
        return np.ones(len(images), np.bool_)
    model = batch.glow()
    found = np.zeros(len(images), np.bool_)
    for start in range(0, len(images), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        latents = encode_released(np.asarray(images[rows]), model, model.dimension)
        found[rows] = latents.any(axis=1)
        release_pages(images)
    return found


def labels_and_sides(batch: Batch) -> tuple[Labels, Labels | None]:
    """Return each image's merged label (-1: unknown), and its side where the plan says so."""
    return strata.labels_and_sides(batch.cohort, batch.study)


def keep_accepted(who: Roster, accepted: NDArray[np.bool_]) -> Roster:
    """Return the roster with accepted images alone; a patient without one is not on it."""
    images = [tuple(row for row in rows if accepted[row]) for rows in who.images]
    kept = [position for position, rows in enumerate(images) if rows]
    return Roster(
        tuple(who.pseudonyms[position] for position in kept),
        tuple(who.strata[position] for position in kept),
        tuple(images[position] for position in kept),
    )


def choose_privatized(batch: Batch, formed: Formed) -> tuple[Group, ...]:
    """Return the groups whose image is privatized: of all groups a public share, at least one.

    A frozen group keeps its kind, so the share is filled up with groups to draw once more and with
    new ones. Those are chosen by keyed hash and by nothing in the images.
    """
    plan = batch.synthesis.privatize
    if plan is None or not batch.synthesis.privatizes_averages:
        return ()
    before = {candidate.group.token for candidate in formed.again}
    noised = {candidate.group.token for candidate in formed.again if candidate.privatized}
    groups = len(before) + len(formed.draws) + len(formed.new)
    count = max(round(plan.share * groups), 1) - len(noised)
    ranked = sorted(
        formed.new, key=lambda group: keyed_digest(batch.secret, "privatize", group.token)
    )
    return (*formed.draws, *ranked)[: max(count, 0)]


def keyed_digest(secret: bytes, purpose: str, token: str) -> bytes:
    """Return a digest that nobody without the site's secret can predict."""
    return hmac.digest(secret, f"kohort-batch-{purpose}\0{token}".encode(), hashlib.sha256)
