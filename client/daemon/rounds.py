"""The values that are carried through the daemon: Round -> Reserved -> Output.

Each step takes the value before it and returns the next one. The gate then makes `Cleared` of an
`Output` (client/egress/gate.py), and the outbox makes `Sealed` of that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from client.state.ledger import Reservation
from client.state.plans import Plans
from common.errors import PolicyError, RefusedError
from common.privacy.boundary import check_weights, open_payload
from common.privacy.mechanisms import Mechanism
from common.study.families import FAMILIES, Shapes
from common.study.plan import Study
from common.wire.messages import Header
from common.wire.tensors import Arrays

NUMBER_BYTES = 8  # the widest type of a weight
FRAME_BYTES = 1 << 20  # names and shapes in the file


@dataclass(frozen=True)
class Round:
    """An instruction that the plan allows. `expected`: names and shapes of its global weights."""

    header: Header
    study: Study
    weights: bytes
    expected: Shapes


@dataclass(frozen=True)
class _Charged:
    """A round and what it costs: its mechanism, the ledger's entry, the folder of its one child.

    `event` is None where nothing is spent or declared, `reservation` where nothing is spent.
    """

    round: Round
    event: Mechanism | None
    reservation: Reservation | None
    folder: Path


@dataclass(frozen=True)
class Reserved(_Charged):
    """A round that the ledger holds. `finished`: the child of an earlier start left its output."""

    finished: bool


@dataclass(frozen=True)
class Output(_Charged):
    """A round whose folder holds a whole output; only client/daemon/jobs.py makes one."""


def open_round(header: Header, study: Study, payload: bytes, plans: Plans) -> Round:
    """Return the round that an instruction asks for (6: its weights fit the plan's model).

    Raises PolicyError (E-PART-UNKNOWN), RefusedError with the code of a rule of the boundary.
    """
    # the images are made once, for round 0, and their parts are stored together
    if header.kind != "train" and (header.part or header.round):
        raise PolicyError("the first part of the images was never asked for", code="E-PART-UNKNOWN")
    weights = open_payload(payload, header, len(payload))
    if header.kind == "train":
        expected = plans.start_shapes(study, header.model)
    else:
        expected = _shapes_for_images(study, weights, plans)
    # (6) the global weights fit the plan's model
    check_weights(weights, expected)
    return Round(header, study, payload, expected)


def check_size(header: Header, study: Study, size_bytes: int, plans: Plans) -> None:
    """Raise RefusedError (E-SIZE) if a payload is larger than any weights of the plan's models.

    A plan that pins no checkpoint says nothing of sizes: the site's own limit holds alone.
    """
    trained = study.models.trained()
    models = [header.model] if header.kind == "train" else list(trained)
    most = FRAME_BYTES
    for model in models:
        if trained[model].start is None:
            return
        for shape in plans.start_shapes(study, model).values():
            most += NUMBER_BYTES * math.prod(shape)
    if size_bytes > most:
        raise RefusedError(
            f"instruction: a payload of {size_bytes} bytes, at most {most} expected", code="E-SIZE"
        )


def _shapes_for_images(study: Study, weights: Arrays, plans: Plans) -> Shapes:
    """Names and shapes of the weights that synthesis gets, family by family."""
    expected: dict[str, tuple[int, ...]] = {}
    privatizes = study.synthesis is not None and study.synthesis.privatizes_averages
    for model in study.models.trained():
        family = FAMILIES[model]
        sent = family.select(weights)
        needed = family.synthesis == "always" or (family.synthesis != "never" and privatizes)
        if needed or (family.synthesis != "never" and sent):
            expected |= plans.start_shapes(study, model)
    return expected
