"""Whether a batch of images gives away which of the site's patients are in a group.

In: released images, the site's real ones, who is in a group. Out: yes, no, or None.
Guarantees: it says yes when the 95 % interval of the worst attacker's AUC lies above `MEMBERS_AUC`,
and nothing with fewer than `LEAST_OTHERS` patients in no group, where the interval is too wide
(docs/decisions/0020-attacks-from-rehearsals.md). Attackers: nearness in three spaces (spaces.py).
Not covered: attacks with a trained classifier, finer leaks, sites where nearly every patient is in
a group. The operator's rehearsal measures these.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from client.egress.nearest import find_nearest
from client.egress.spaces import check_images
from common.arrays import Flags, Floats, Images, Labels
from common.measure import attack_scores, attacks

LEAST_OTHERS = 20  # patients in no group: with fewer the interval is too wide to say anything
MEMBERS_AUC = 0.65
UNSURE_AUC = 0.005  # nearer to it than this, float32 decides nothing


def gives_away_members(
    released: Images, real: Images, patient_of: NDArray[np.integer], member: NDArray[np.bool_]
) -> bool | None:
    """Return whether the batch gives away who is in a group; None where too few are in none.

    `real` uint8 [N, H, W, C] of patients `patient_of` int [N]. `member` bool [N]: the image's
    patient is in a released group. Raises ConfigurationError as `audit` does. The answer stays on
    site: only what the caller does about a yes may be seen outside.
    """
    check_images(released, real, patient_of)
    persons, first, person_of = np.unique(patient_of, return_index=True, return_inverse=True)
    inside = member[first]
    if min(inside.sum(), len(persons) - inside.sum()) < LEAST_OTHERS:
        return None
    people = person_of.astype(np.int64)
    low = _worst_auc(released, real, people, inside, np.float32)
    # where rounding could decide, in float64
    if abs(low - MEMBERS_AUC) < UNSURE_AUC:
        low = _worst_auc(released, real, people, inside, np.float64)
    return low > MEMBERS_AUC


def _worst_auc(
    released: Images, real: Images, person_of: Labels, inside: Flags, dtype: type[np.floating]
) -> float:
    """The lower end of the worst attacker's interval; 0 where no attack was possible."""
    # attackers: nearness to the release, the highest of a person's images, in each space
    each = np.arange(len(released))
    scores: dict[str, Floats] = {}
    for name, found in find_nearest(real, released, each, dtype=dtype).items():
        scores[name] = attack_scores.best_by_person(-np.sqrt(found.least), person_of)
    inferred = attacks.infer(scores, inside)
    return 0.0 if inferred is None else inferred.worst.auc_interval[0]
