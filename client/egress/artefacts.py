"""Rules 23 and 28 of the gate: what may leave of a frozen group, and that it is kept.

In: a batch that passed the other rules, the group store, the policy's limit. Out: the images of
each group; RefusedError for a breach.
Guarantees: checking changes nothing; after `freeze` every group and image is on disk.
Not covered: what may leave of one group (client/state/artefacts.py decides).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from client.egress.evidence import Evidence
from client.state.artefacts import Artefact, Limit, Wanted, find_fault
from client.state.group_store import Group, GroupStore
from common.arrays import Images
from common.privacy.boundary_rules import refuse
from common.privacy.events import covers_every_image
from common.study.plan import Study
from common.wire.tensors import Arrays

Released = Mapping[Group, Sequence[Artefact]]


def check_artefacts(
    study: Study, evidence: Evidence, parts: Sequence[Arrays], groups: GroupStore, limit: Limit
) -> Released:
    """Return what leaves of each group; raises RefusedError (E-GATE-28).

    It is empty where an epsilon per patient covers every image: those groups bind no later study.
    """
    if covers_every_image(study):
        _check_noised(study, parts)
        return {}
    released = _images_by_group(study, evidence, parts)
    for group, artefacts in released.items():
        fault = find_fault(groups.released(group), artefacts, limit)
        if fault:
            raise refuse(28, fault, hint="see the job folder; nothing was sent")
    return released


def freeze(study: Study, released: Released, groups: GroupStore, limit: Limit) -> None:
    """Freeze the groups and keep their images, on disk; raises RefusedError (E-GATE-23)."""
    if study.synthesis is None or not released:
        return
    groups.release(released, study.synthesis.grouping, limit)
    # what the file says now
    frozen = {group.token for group in groups.groups()}
    for group in released:
        if group.token not in frozen:
            raise refuse(23, "an image's group is not frozen")


def _check_noised(study: Study, parts: Sequence[Arrays]) -> None:
    """Every image carries noise: by its flag, or as all averages of `anchors` do."""
    if study.privatize is None:
        return
    for part in parts:
        if not part["privatized"].all():
            raise refuse(28, "an image without noise, where the plan's epsilon covers every image")


def _images_by_group(
    study: Study, evidence: Evidence, parts: Sequence[Arrays]
) -> dict[Group, list[Artefact]]:
    """The images of each group that the evidence names, in order."""
    wanted = Wanted.of(study)
    released: dict[Group, list[Artefact]] = {group: [] for group in evidence.groups}
    for (image, privatized), place in zip(_images(parts), evidence.group_of, strict=True):
        group = evidence.groups[place]
        released[group].append(wanted.artefact(image, group.stratum.label, privatized))
    return released


def _images(parts: Sequence[Arrays]) -> Iterator[tuple[Images, bool]]:
    """All images of a batch with their flags, in order."""
    for part in parts:
        for image, flag in zip(part["images"], part["privatized"].tolist(), strict=True):
            yield image, flag == 1
