"""What may cross the hospital's line: numbered rules over values, checked by site and server.

In: a signed header's fields, the decoded tensors, the signed plan. Out: nothing, or RefusedError
with the code of the first rule that does not hold.
Guarantees: what no rule names is refused; no rule reads a clock, a file or a setting outside the
signed plan.
Not covered: whether the numbers are private (the private step and the ledger ensure that). Rules 20
to 28 need the site's own ledger, groups and staff: client/egress/gate.py.
"""

from __future__ import annotations

import re

import numpy as np

from common.privacy.boundary_rules import refuse, require
from common.privacy.price import at_most, exactly
from common.study.families import FAMILIES, Shapes
from common.study.plan import Study
from common.study.synthesis import AnchorsPlan, PrivatizePlan
from common.wire.messages import Header, digest_of
from common.wire.tensors import Arrays, dumps, loads

Statement = dict[str, str | int | float | bool]
UPDATE_CAP_BYTES = 1 << 29
PART_CAP_BYTES = 32 << 20
HEAD_COMMITMENT = "head_commitment"  # what a signed header tells of the site's state
OPERATOR_LOG = "operator_log"  # in a statement: the head of the operator's log, if it named one
WEIGHTS = "weights"  # in a statement: SHA-256 of the global weights that were used
NO_LOG = "0" * 64  # stands for an operator whose log named no head
HEX64 = re.compile(r"[0-9a-f]{64}")
LAST_SYNTHESIS_ROUND = 1  # 0 asks for the images; 1 closes the study, answered with the same images
REPLY_PHASES = {"update": "train", "images": "synthesize"}
PRIVATIZE_STATED = (
    "mechanism",
    "clip",
    "radius",
    "scale",
    "epsilon",
    "delta",
    "levels",
    "components",
    "egress",
)
NORM_SLACK = 1e-6  # of the bound: float32 deltas, float64 norm
IMAGE_DTYPES = {
    "images": np.dtype(np.uint8),
    "labels": np.dtype(np.int64),
    "privatized": np.dtype(np.uint8),
}


# --- (1) the header -------------------------------------------------------------------------------


def check_instruction(header: Header, study: Study) -> None:
    """Check an operator's header against the plan (rule 1): kind, phase, model, round, sender."""
    require(header.sender == "operator", 1, f"sender {header.sender!r} instead of the operator")
    require(header.kind in ("train", "synthesize"), 1, f"kind {header.kind!r} is no instruction")
    require(header.kind == header.phase, 1, f"kind {header.kind!r} in phase {header.phase!r}")
    _check_place(header, study)


def check_reply(header: Header, study: Study) -> None:
    """Check a site's header against the plan (rules 1 and 2)."""
    sites = {site.name for site in study.sites}
    require(header.sender in sites, 1, f"sender {header.sender!r} is no site of the plan")
    expected = REPLY_PHASES.get(header.kind, "none")
    require(header.phase == expected, 1, f"kind {header.kind!r} in phase {header.phase!r}")
    require(not (header.receipts or header.heads), 1, "a site sends no receipts")
    _check_place(header, study)
    check_statement(header, study)


def _check_place(header: Header, study: Study) -> None:
    """Rule 1: study, model, round and part are the plan's."""
    require(header.study == study.hash(), 1, "another study")
    require(0 <= header.part < header.parts, 1, f"part {header.part} of {header.parts}")
    if header.phase == "train":
        _check_training_place(header, study)
        return
    require(study.synthesis is not None, 1, "the plan synthesizes nothing")
    require(header.model == "", 1, f"model {header.model!r} in phase synthesize")
    planned = header.round <= LAST_SYNTHESIS_ROUND
    require(planned, 1, f"round {header.round} is not in the plan")


def _check_training_place(header: Header, study: Study) -> None:
    """Rule 1 in phase train: the plan trains this model in this round, in one part."""
    plan = study.models.trained().get(header.model)
    if plan is None:
        raise refuse(1, f"model {header.model!r} is not trained by the plan")
    require(header.round < plan.rounds, 1, f"round {header.round} is not in the plan")
    require(header.parts == 1, 1, "an update has one part")


# --- (2) the statement ----------------------------------------------------------------------------


def public_statement(study: Study, kind: str, model: str = "") -> Statement:
    """Return the constants that a statement holds besides weights and commitment.

    `kind`: `update` or `images`.
    """
    if kind == "update":
        return _update_statement(study, model)
    synthesis = study.synthesis
    if kind != "images" or synthesis is None:
        raise refuse(2, f"no statement is known for kind {kind!r}")
    statement: Statement = {
        "unit": study.privacy.unit,
        "k": synthesis.k,
        "grouping": synthesis.grouping,
    }
    if synthesis.anchors is not None:
        statement |= _anchors_statement(synthesis.anchors, study.cells_per_stratum)
    if synthesis.privatize is not None:
        statement |= _privatize_statement(synthesis.privatize)
    return statement


def _update_statement(study: Study, model: str) -> Statement:
    """The promise for updates, and the constants of one round of a model."""
    plan = study.models.trained()[model]
    return {
        "unit": study.privacy.unit,
        "adjacency": "zero-out",
        "epsilon": study.privacy.epsilon,
        "delta": study.privacy.delta,
        "sampling_rate": study.sampling_rate(plan),
        "noise_multiplier": plan.noise_multiplier,
        "clip": plan.clip,
        "steps": plan.local_steps,
    }


def _anchors_statement(plan: AnchorsPlan, cells_per_stratum: int) -> Statement:
    """The constants of grouping `anchors`."""
    return {
        "anchors_noise_multiplier": plan.noise_multiplier,
        "anchors_components": plan.components,
        "anchors_cells_per_stratum": cells_per_stratum,
        "anchors_threshold_delta": plan.threshold_delta,
    }


def _privatize_statement(plan: PrivatizePlan) -> Statement:
    """The constants of the latent mechanism that the plan sets."""
    found: Statement = {}
    for name in PRIVATIZE_STATED:
        value = getattr(plan, name)
        if value is not None:
            found[f"privatize_{name}"] = value
    return found


def check_statement(header: Header, study: Study) -> None:
    """Check a statement (rule 2): the plan's constants, the weights' SHA-256, a commitment.

    It may hold the head of the operator's log as well, repeated from the instruction. Anything else
    in it is refused.
    """
    statement = dict(header.statement)
    require(is_digest(statement.pop(WEIGHTS, None)), 2, f"{WEIGHTS} is not a SHA-256 in hex")
    head = statement.pop(HEAD_COMMITMENT, None)
    require(is_digest(head), 2, f"{HEAD_COMMITMENT} is not 64 hex digits")
    operator_log = statement.pop(OPERATOR_LOG, NO_LOG)
    require(is_digest(operator_log), 2, f"{OPERATOR_LOG} is not 64 hex digits")
    expected = public_statement(study, header.kind, header.model)
    unknown = sorted(set(statement) - set(expected))
    require(not unknown, 2, f"{len(unknown)} keys that no rule names")
    for name, value in expected.items():
        got = statement.get(name)
        same = type(got) is type(value) and got == value
        require(same, 2, f"{name} is not the plan's {value!r}")


def is_digest(value: object) -> bool:
    """Return whether a value of a statement is a SHA-256 in lower-case hex."""
    return isinstance(value, str) and HEX64.fullmatch(value) is not None


# --- (3, 4) the payload's bytes -------------------------------------------------------------------


def open_payload(payload: bytes, header: Header, max_bytes: int) -> Arrays:
    """Return the tensors of a payload whose bytes are what the header says (rules 3 and 4)."""
    require(len(payload) <= max_bytes, 3, f"{len(payload)} bytes, at most {max_bytes} allowed")
    require(digest_of(payload) == header.digest, 3, "SHA-256 differs")
    arrays = loads(payload, max_bytes=max_bytes)
    require(dumps(arrays) == payload, 4, "the bytes differ from the canonical ones")
    return arrays


# --- (5 to 9) updates and global weights ----------------------------------------------------------


def check_weights(arrays: Arrays, expected: Shapes) -> None:
    """Check global weights or an update against the expected shapes by name (rules 5, 6 and 7)."""
    missing = set(expected) - set(arrays)
    unknown = set(arrays) - set(expected)
    counts = f"{len(missing)} tensors missing, {len(unknown)} unknown"
    require(not missing and not unknown, 5, counts)
    for name, array in arrays.items():
        shape = tuple(expected[name])
        require(array.dtype == np.float32, 6, f"{name} is {array.dtype}")
        require(array.shape == shape, 6, f"{name} is {array.shape}, expected {shape}")
        require(bool(np.isfinite(array).all()), 7, f"{name} has numbers that are not finite")


def check_update(arrays: Arrays, expected: Shapes, header: Header, study: Study) -> None:
    """Check an update (rules 1, 2 and 5 to 9).

    `expected`: the shapes of the global weights that it answers.
    """
    check_reply(header, study)
    require(header.kind == "update", 1, f"kind {header.kind!r} instead of an update")
    plan = study.models.trained()[header.model]
    family = FAMILIES[header.model]
    strangers = [name for name in expected if not family.owns(name)]
    require(not strangers, 5, f"{len(strangers)} tensors do not belong to {header.model}")
    check_weights(arrays, expected)
    for name, array in arrays.items():
        allowed = family.may_change(name, plan.trainable) or not array.any()
        require(allowed, 8, f"{name} is not trained by the plan")
    norm = norm_of(arrays)
    bounded = norm <= plan.max_update_norm * (1 + NORM_SLACK)
    require(bounded, 9, f"norm {norm:.6g}, at most {plan.max_update_norm:g}")


def norm_of(arrays: Arrays) -> float:
    """Return the L2 norm over all tensors, in float64."""
    squares = (float(np.square(array, dtype=np.float64).sum()) for array in arrays.values())
    return float(np.sqrt(sum(squares)))


# --- (10 to 14) images ----------------------------------------------------------------------------


def check_images(arrays: Arrays, header: Header, study: Study) -> int:
    """Check one part of a site's images (rules 1, 2 and 10 to 14); returns how many images it has.

    `images` uint8 [n, H, W, C], `labels` int64 [n] (index into `study.strata()`), `privatized`
    uint8 [n] of 0 and 1. The caller checks the sum over parts: `check_total`.
    """
    check_reply(header, study)
    asked = header.kind == "images" and study.synthesis is not None
    require(asked, 1, f"kind {header.kind!r} instead of images")
    dtypes = {name: array.dtype for name, array in arrays.items()}
    mismatch = f"{len(dtypes)} tensors with other names or dtypes than the three"
    require(dtypes == IMAGE_DTYPES, 10, mismatch)
    images = arrays["images"]
    labels = arrays["labels"]
    privatized = arrays["privatized"]
    size = study.intake.size_px
    planned = (size, size, study.intake.channels)
    require(images.shape[1:] == planned, 11, f"{images.shape[1:]} instead of {planned}")
    count = len(images)
    one_each = labels.shape == privatized.shape == (count,)
    require(one_each, 10, "labels, flags and images differ in number")
    check_total(count, study)
    in_range = bool(np.isin(labels, np.arange(len(study.strata()))).all())
    require(in_range, 13, "a label is out of range")
    largest = int(study.synthesis is not None and study.synthesis.privatizes_averages)
    flagged = bool(np.isin(privatized, np.arange(largest + 1)).all())
    require(flagged, 14, f"a flag is above {largest}")
    return count


def check_total(count: int, study: Study) -> None:
    """Check how many images a site sends over all parts (rule 12)."""
    limit = study.synthesis.max_images_per_site if study.synthesis else 0
    require(1 <= count <= limit, 12, f"{count} images, expected 1 to {limit}")


# --- (27) single images ---------------------------------------------------------------------------


def check_single(study: Study, allowed: bool, epsilon: float, most: float) -> None:
    """Check that a privatized image of one patient may be handed over at all (rule 27).

    `allowed`, `most`: whether the site's policy lets single images leave, and its cap.
    `epsilon`: per image, not per coordinate.
    """
    single = study.privatize is not None and study.privatize.egress == "single"
    require(single, 27, "synthesis.privatize.egress of the plan is not single")
    require(allowed, 27, "policy.single_images of this site is never")
    over = f"epsilon per image is {at_most(epsilon)}, policy.max_epsilon_image is {exactly(most)}"
    require(epsilon <= most, 27, over)
