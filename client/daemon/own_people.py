"""How many people of this site each stratum of a plan has, for the forecast of images.

In: the state folder, a plan. Out: `OwnPeople`. ON SITE ONLY: it holds counts, for a screen.
Guarantees: people are put into strata as the grouping does it (client/synthesize/group.py); whoever
withdrew counts nowhere; nothing is computed or changed.
Not covered: which images will invert, which only the inversion tells.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from client.daemon.jobs import group_key
from client.ingest.cohort import Cohort
from client.state.folder import State
from client.state.group_store import GroupStore
from client.synthesize.group import roster
from client.synthesize.strata import labels_and_sides
from common.privacy.events import covers_every_image
from common.study.plan import Study


@dataclass(frozen=True)
class OwnPeople:
    """People by label, one number a side; beside them `released`: in groups that left before."""

    by_label: Mapping[str, tuple[int, ...]]
    released: int


def own_people(state: State, study: Study) -> OwnPeople | None:
    """Return who can be grouped here; None before `kohort-site ingest`.

    Raises RefusedError for a cohort that cannot be read.
    """
    folder = state.cohort(study.intake)
    if not folder.is_dir():
        return None
    cohort = Cohort.open(folder)
    labels, sides = labels_and_sides(cohort, study)
    who = roster(
        cohort.pseudonyms, cohort.patient_of, labels, key=group_key(state), laterality_of=sides
    )
    aliases = dict(zip(cohort.pseudonyms, cohort.aliases, strict=True))
    frozen = _released(state, study)
    counts: Counter[tuple[int, int]] = Counter()
    released = 0
    for name, stratum in zip(who.pseudonyms, who.strata, strict=True):
        if frozen.isdisjoint(aliases[name]):
            counts[stratum.label, stratum.laterality] += 1
        else:
            released += 1
    by_label = {}
    for place, label in enumerate(study.strata()):
        by_label[label] = tuple(counts[place, side] for side in study.sides())
    return OwnPeople(by_label, released)


def _released(state: State, study: Study) -> set[str]:
    """Everybody in a group that left before; nobody where epsilon covers every image."""
    if covers_every_image(study) or not state.groups.is_file():
        return set()
    with GroupStore(state.groups) as store:
        return {member for group in store.groups() for member in group.members}
