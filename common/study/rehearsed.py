"""What a rehearsal of a plan shares with the study itself: `plan_digest`."""

from __future__ import annotations

import hashlib

from common.study.plan import Study
from common.wire.messages import canonical

# what may differ between two studies of the same plan
OTHER_IN_EVERY_STUDY = {"name", "title", "sites", "quorum", "round_deadline_s", "release"}


def plan_digest(study: Study) -> str:
    """Return the SHA-256 of all fields of a plan that a rehearsal must share with it."""
    fields = study.model_dump(mode="json", exclude=OTHER_IN_EVERY_STUDY)
    return hashlib.sha256(canonical(fields)).hexdigest()
