"""What the child of an image batch learns of frozen groups, and may release of them.

In: the group store, the plan, the policy. Out: groups.json and stored.safetensors of a job folder.
Guarantees: where an epsilon per patient covers every image, the child learns nothing of the store,
so no earlier study decides who takes part; elsewhere it gets stored images to send again, and
learns which groups may be drawn once more.
Not covered: the rules (client/state/artefacts.py); the gate checks what the child made.
"""

from __future__ import annotations

import numpy as np

from client.egress.evidence import Evidence
from client.state.artefacts import USES, Wanted, choose_use
from client.state.group_store import Group, GroupStore
from client.state.records import Records
from common.arrays import Images
from common.privacy.events import covers_every_image
from common.study.plan import Study
from common.wire.tensors import Arrays, dumps

NO_GROUPS = (Evidence((), (), ()).to_json(), b"")


def frozen_groups(records: Records, study: Study) -> tuple[bytes, bytes]:
    """Return the two files; the second one is empty where there are no frozen groups."""
    if study.synthesis is None or covers_every_image(study):
        return NO_GROUPS
    wanted = Wanted.of(study)
    limit = records.config.policy.average_limit
    groups: list[Group] = []
    uses: list[int] = []
    images: list[Images] = []
    image_of: list[int] = []
    privatized: list[bool] = []
    with GroupStore(records.state.groups) as store:
        for place, group in enumerate(store.groups()):
            stored = store.released(group) or ()
            use, again = choose_use(stored, group.stratum.label, wanted, limit)
            groups.append(group)
            uses.append(USES.index(use))
            for artefact in again:
                images.append(artefact.image)
                image_of.append(place)
                privatized.append(artefact.privatized)
    evidence = Evidence(tuple(groups), tuple(image_of), ())
    if not groups:
        return NO_GROUPS
    tensors: Arrays = {
        "uses": np.array(uses, np.int64),
        "privatized": np.array(privatized, np.uint8),
    }
    if images:
        tensors["images"] = np.stack(images)
    return evidence.to_json(), dumps(tensors)
