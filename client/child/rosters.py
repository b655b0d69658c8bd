"""Who is grouped, and into which groups: the rosters and groups of one image batch.

Guarantees: a frozen group comes again whole or not at all; `random` groups are formed without
looking at a pixel.
Not covered: how groups are formed (client/synthesize/group.py); the daemon freezes what is only
proposed here.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from client.child.inputs import Batch
from client.egress.evidence import EVIDENCE_CAP_BYTES, Evidence
from client.ingest.cohort import Cohort
from client.state.group_store import Group, Grouping, GroupStore
from client.state.jobs import GROUPS
from client.synthesize.group import Roster, patient_codes, regroup, roster
from client.synthesize.invert import Inversion
from client.synthesize.metric import make_metric_cells, make_points
from client.synthesize.reference import Reference
from common.errors import PolicyError
from common.storage.files import read_capped

STORE = "groups.sqlite"  # in the job folder: a copy, for this batch alone


def group_patients(
    batch: Batch, inverted: tuple[Reference, Inversion] | None
) -> tuple[Grouping, Roster]:
    """Return frozen groups that come again and new groups of at least k, and who was grouped.

    Raises PolicyError (E-GROUP-SIZE).
    """
    frozen = frozen_groups(batch)
    mode = batch.synthesis.grouping
    names = person_names(batch.cohort, frozen)
    codes = None
    cells = None
    with GroupStore(batch.folder / STORE) as store:
        # frozen groups come again exactly
        store.freeze(Grouping(frozen, ()))
        if mode == "random" or inverted is None:
            who = roster_of(batch, names, None)
        else:
            known, found = inverted
            who = roster_of(batch, names, found.accepted)
            codes = patient_codes(make_points(known, found, batch.synthesis.group_by), who)
            if mode == "cells":
                cells = make_metric_cells(known, batch.synthesis.group_by)
        # new groups among patients of no frozen group
        k = batch.synthesis.k
        grouping = regroup(store, who, k, mode, key=batch.secret, codes=codes, cells=cells)
    if not grouping.groups:
        raise PolicyError("no stratum has k patients", code="E-GROUP-SIZE")
    return grouping, who


def frozen_groups(batch: Batch) -> tuple[Group, ...]:
    """Return the site's frozen groups, as the daemon wrote them into the job folder."""
    return Evidence.from_json(read_capped(batch.folder / GROUPS, EVIDENCE_CAP_BYTES)).groups


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
    intake = batch.study.intake
    strata = batch.study.strata()
    # the stratum of each of the cohort's labels
    merged: list[int] = []
    for label in batch.cohort.label_names:
        merged.append(strata.index(intake.merge_labels.get(label, label)))
    # a label of -1, unknown, takes the last entry, which is -1
    labels = np.array([*merged, -1], np.int64)[batch.cohort.labels]
    sides = None
    if intake.stratify_laterality:
        sides = batch.cohort.laterality
    return roster(
        names, batch.cohort.patient_of, labels, key=batch.secret, laterality_of=sides, usable=usable
    )


def keep_accepted(who: Roster, accepted: NDArray[np.bool_]) -> Roster:
    """Return the roster with accepted images alone; a patient without one is not on it."""
    images = [tuple(row for row in rows if accepted[row]) for rows in who.images]
    kept = [position for position, rows in enumerate(images) if rows]
    return Roster(
        tuple(who.pseudonyms[position] for position in kept),
        tuple(who.strata[position] for position in kept),
        tuple(images[position] for position in kept),
    )


def choose_privatized(batch: Batch, grouping: Grouping) -> tuple[Group, ...]:
    """Return the groups whose image is privatized: a public share of them, at least one.

    They are chosen by keyed hash and by nothing in the images.
    """
    plan = batch.synthesis.privatize
    if plan is None or not batch.synthesis.privatizes_averages:
        return ()
    count = max(round(plan.share * len(grouping.groups)), 1)
    ranked = sorted(
        grouping.groups, key=lambda group: keyed_digest(batch.secret, "privatize", group.token)
    )
    return tuple(ranked[:count])


def keyed_digest(secret: bytes, purpose: str, token: str) -> bytes:
    """Return a digest that nobody without the site's secret can predict."""
    return hmac.digest(secret, f"kohort-batch-{purpose}\0{token}".encode(), hashlib.sha256)
