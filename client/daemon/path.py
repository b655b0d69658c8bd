"""Admits an instruction that lies on the path which the signed plan implies.

In: a `Round`. Out: nothing, or a refusal; a line in the journal.
Rules, numbered as in common/privacy/boundary_rules.py:
  17 instructions come in the plan's order
  18 one round has one set of global weights
  15 tensors that the plan does not train are bit for bit those of its starting checkpoint
  16 the others moved by at most what the plan implies, since the start and since this site saw them
Guarantees: a refused instruction changes nothing; an admitted one is on disk with its weights.
Not covered: rounds that this site did not see; it may have been offline.
"""

from __future__ import annotations

from collections.abc import Sequence

from client.daemon.rounds import Round
from client.state.plans import Plans
from client.state.seen_weights import Place, SeenWeights
from common.privacy.boundary_rules import refuse, require
from common.privacy.global_weights import Known, check_move, check_untrained
from common.study.families import FAMILIES
from common.study.plan import Study
from common.wire.messages import Header
from common.wire.tensors import Arrays, loads

ABSENT = (
    "this site was away from that training, so it makes no images for this plan: tell the operator"
)
ORDER = "the server went back in the plan: tell the operator; nothing is spent for it"
OLDER = "the server went back to older weights: tell the operator; nothing is spent for it"


def admit(round: Round, plans: Plans) -> None:
    """Check a round against what came before it, and write it down (rules 15 to 18)."""
    header = round.header
    study = round.study
    seen = SeenWeights(plans.state, study.hash())
    parts = split(header, study, loads(round.weights, max_bytes=len(round.weights)))
    places = seen.places()
    # (17) the order of the plan
    check_turn(header, study, tuple(parts), places)
    # (18) what was admitted before is admitted again, and nothing else in its place
    if _is_known(header, places):
        return
    # (15, 16) every model's weights grew from the start, and from what was seen last
    for model, (number, arrays) in parts.items():
        check_origin(model, study, number, arrays, plans.start_weights(study, model))
        last = seen.last(model)
        if last is not None:
            check_origin(model, study, number, arrays, last)
    seen.note(header, round.weights)


def split(header: Header, study: Study, weights: Arrays) -> dict[str, tuple[int, Arrays]]:
    """Return each model's own weights, with the number of the round before which they stand.

    Synthesis gets those after a model's last round.
    """
    trained = study.models.trained()
    if header.phase == "train":
        return {header.model: (header.round, weights)}
    parts: dict[str, tuple[int, Arrays]] = {}
    for model, plan in trained.items():
        family = FAMILIES[model]
        if family.synthesis != "never" and family.select(weights):
            parts[model] = (plan.rounds, family.select(weights))
    return parts


def check_turn(
    header: Header, study: Study, models: Sequence[str], places: Sequence[Place]
) -> None:
    """Check rule 17. `models`: those whose weights came; `places`: what was admitted before.

    Rounds may be missing, because a site can be offline; none comes after a later one.
    """
    order = list(study.models.trained())
    trained = [place for place in places if place.phase == "train"]
    if header.phase == "synthesize":
        for model in models:
            began = any(place.model == model for place in trained)
            what = f"synthesis, and this site saw no training round of {model}"
            require(began, 17, what, hint=ABSENT)
        return
    synthesized = any(place.phase == "synthesize" for place in places)
    require(not synthesized, 17, "training after synthesis began", hint=ORDER)
    asked = (order.index(header.model), header.round)
    for place in trained:
        later = (order.index(place.model), place.round) > asked
        now = f"{header.model} round {header.round + 1}"
        what = f"{now} after {place.model} round {place.round + 1}"
        require(not later, 17, what, hint=ORDER)


def _is_known(header: Header, places: Sequence[Place]) -> bool:
    """Whether this round was admitted with these weights (rule 18); refuses other weights."""
    for place in places:
        here = (place.phase, place.model, place.round)
        if here != (header.phase, header.model, header.round) or not place.weights:
            continue
        if place.weights != header.digest:
            what = f"weights {header.digest[:12]}, {place.weights[:12]} came before"
            raise refuse(18, what, hint=OLDER)
        return True
    return False


def check_origin(model: str, study: Study, number: int, arrays: Arrays, known: Known) -> None:
    """Check that a model's weights before a round grew from known ones (rules 15 and 16)."""
    plan = study.models.trained()[model]
    check_untrained(arrays, known, number, FAMILIES[model], plan)
    check_move(arrays, known, number, plan)
