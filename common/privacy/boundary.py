"""What may cross the hospital's line: numbered rules over values, the same for the site's gate and the server's intake.

In: a signed header's fields, the decoded tensors, the signed plan. Out: nothing, or RefusedError with the code of the first
rule that does not hold. Guaranteed: what no rule names is refused; no rule reads a clock, a file or a setting outside the
signed plan. Not covered: whether the numbers are private (the private step and the ledger see to that); the rules 20-27
need the site's own ledger, groups and staff and live in client/egress/gate.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from common.errors import RefusedError
from common.study.families import FAMILIES, Shapes
from common.study.plan import Study
from common.wire.messages import Header, digest_of
from common.wire.tensors import Arrays, dumps, loads

Statement = dict[str, str | int | float | bool]
UPDATE_CAP_BYTES = 1 << 29
PART_CAP_BYTES = 32 << 20
HEX64 = re.compile(r"[0-9a-f]{64}")
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


@dataclass(frozen=True)
class Rule:
    """One numbered rule; `side` says who checks it."""

    number: int
    sentence: str
    side: str = "site and server"

    @property
    def code(self) -> str:
        """The stable code under which a breach is reported."""
        return f"E-GATE-{self.number:02d}"


RULES: dict[int, Rule] = {
    rule.number: rule
    for rule in (
        Rule(
            1,
            "the header names this study, a kind, phase, model and round that the plan has, and a site of the plan",
        ),
        Rule(
            2,
            "the statement is the plan's own public constants, the ledger's head and its sequence number, no more",
        ),
        Rule(3, "the payload has the header's SHA-256 and is no larger than the limit of its kind"),
        Rule(4, "the payload is canonical: one spelling of the same tensors, without metadata"),
        Rule(5, "an update has exactly the tensors of the global weights, by name"),
        Rule(6, "every tensor of an update is float32 and has the shape of its global weight"),
        Rule(7, "every number of an update is finite"),
        Rule(8, "a tensor that the plan does not train is zero throughout"),
        Rule(9, "the update's L2 norm over all tensors is at most the plan's max_update_norm"),
        Rule(
            10,
            "an image batch has exactly `images` uint8, `labels` int64 and `privatized` uint8, one entry an image",
        ),
        Rule(11, "every image has the plan's size and channels"),
        Rule(
            12,
            "a site's images, over all parts, are at least one and at most the plan's max_images_per_site",
        ),
        Rule(13, "every label is the index of one of the study's strata"),
        Rule(14, "a privatized flag is 0 or 1, and is 1 only where the plan privatizes"),
        Rule(
            20,
            "the site's own staff approved this plan, and it is within the site's policy",
            "site",
        ),
        Rule(
            21,
            "the ledger holds a reservation of the plan's own event, committed to no other artefact",
            "site",
        ),
        Rule(
            22,
            "each image aggregates at least k distinct patients of the cohort, k of the plan and of the policy",
            "site",
        ),
        Rule(
            23,
            "each image's group is frozen in the group store, and its label is the image's",
            "site",
        ),
        Rule(24, "the audit of the batch passed", "site"),
        Rule(
            25,
            "a person of the site approved exactly this batch, where the policy asks for it",
            "site",
        ),
        Rule(
            26,
            "the canaries heard noise as loud as the plan says, and no more of themselves than was spent",
            "site",
        ),
        Rule(
            27,
            "an image of one patient leaves only if plan and policy say so, at an epsilon per image within the policy's cap, and "
            "never in a batch",
            "site",
        ),
    )
}


def refuse(number: int, what: str, *, hint: str = "") -> RefusedError:
    """Return the error for a breach of rule `number`; `what` says expected against got and stays on this side."""
    rule = RULES[number]
    return RefusedError(f"rule {number} ({rule.sentence}): {what}", hint=hint, code=rule.code)


def _require(holds: bool, number: int, what: str) -> None:
    if not holds:
        raise refuse(number, what)


# 1 --- the header


def check_instruction(header: Header, study: Study) -> None:
    """Check an operator's header against the plan (rule 1): kind, phase, model, round, sender."""
    _require(header.sender == "operator", 1, f"sender {header.sender!r} instead of the operator")
    _require(header.kind in ("train", "synthesize"), 1, f"kind {header.kind!r} is no instruction")
    _require(header.kind == header.phase, 1, f"kind {header.kind!r} in phase {header.phase!r}")
    _check_place(header, study)


def check_reply(header: Header, study: Study) -> None:
    """Check a site's header against the plan (rules 1 and 2)."""
    _require(
        header.sender in {site.name for site in study.sites},
        1,
        f"sender {header.sender!r} is no site of the plan",
    )
    expected = {"update": "train", "images": "synthesize"}.get(header.kind, "none")
    _require(header.phase == expected, 1, f"kind {header.kind!r} in phase {header.phase!r}")
    _require(not header.receipts, 1, "a site sends no receipts")
    _check_place(header, study)
    check_statement(header, study)


def _check_place(header: Header, study: Study) -> None:
    """Rule 1: study, model, round and part are the plan's."""
    _require(header.study == study.hash(), 1, "another study")
    _require(0 <= header.part < header.parts, 1, f"part {header.part} of {header.parts}")
    if header.phase == "train":
        plan = study.models.trained().get(header.model)
        _require(plan is not None, 1, f"model {header.model!r} is not trained by the plan")
        _require(
            plan is not None and header.round < plan.rounds,
            1,
            f"round {header.round} is not in the plan",
        )
        _require(header.parts == 1, 1, "an update has one part")
        return
    _require(study.synthesis is not None, 1, "the plan synthesizes nothing")
    _require(header.model == "", 1, f"model {header.model!r} in phase synthesize")
    _require(header.round <= LAST_SYNTHESIS_ROUND, 1, f"round {header.round} is not in the plan")


LAST_SYNTHESIS_ROUND = (
    1  # 0 asks for the images; 1 closes the study and is answered with the same images
)


# 2 --- the statement


def public_statement(study: Study, kind: str, model: str = "") -> Statement:
    """Return the constants that the statement of an `update` or of `images` holds besides the ledger's head."""
    if kind == "update":
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
    synthesis = study.synthesis
    if kind != "images" or synthesis is None:
        raise refuse(2, f"no statement is known for kind {kind!r}")
    statement: Statement = {
        "unit": study.privacy.unit,
        "k": synthesis.k,
        "grouping": synthesis.grouping,
    }
    if synthesis.anchors is not None:
        noise = synthesis.anchors
        statement |= {
            "anchors_noise_multiplier": noise.noise_multiplier,
            "anchors_components": noise.components,
            "anchors_cells_per_stratum": study.cells_per_stratum,
            "anchors_threshold_delta": noise.threshold_delta,
        }
    if synthesis.privatize is not None:
        given = synthesis.privatize
        stated = {name: getattr(given, name) for name in PRIVATIZE_STATED}
        statement |= {
            f"privatize_{name}": value for name, value in stated.items() if value is not None
        }
    return statement


def check_statement(header: Header, study: Study) -> None:
    """Check that a statement says the plan's constants, the ledger's head and sequence number, and nothing else (rule 2)."""
    statement = dict(header.statement)
    head, seq = statement.pop("ledger_head", None), statement.pop("ledger_seq", None)
    _require(
        isinstance(head, str) and HEX64.fullmatch(head) is not None,
        2,
        "ledger_head is not 64 hex digits",
    )
    _require(type(seq) is int and 0 <= seq < 1 << 40, 2, "ledger_seq is not a whole number")
    expected = public_statement(study, header.kind, header.model)
    unknown = sorted(set(statement) - set(expected))
    _require(not unknown, 2, f"{len(unknown)} keys that no rule names")
    for name, value in expected.items():
        got = statement.get(name)
        _require(
            type(got) is type(value) and got == value, 2, f"{name} is not the plan's {value!r}"
        )


# 3, 4 --- the payload's bytes


def open_payload(payload: bytes, header: Header, max_bytes: int) -> Arrays:
    """Return the tensors of a payload whose bytes are what the header says (rules 3 and 4)."""
    _require(len(payload) <= max_bytes, 3, f"{len(payload)} bytes, at most {max_bytes} allowed")
    _require(digest_of(payload) == header.digest, 3, "SHA-256 differs")
    arrays = loads(payload, max_bytes=max_bytes)
    _require(dumps(arrays) == payload, 4, "the bytes differ from the canonical ones")
    return arrays


# 27 --- single images


def check_single(study: Study, allowed: bool, epsilon: float, most: float) -> None:
    """Check that a privatized image of one patient may be handed over at all (rule 27).

    `allowed`, `most`: whether the site's policy lets single images leave, and its cap; `epsilon`: per image, not per coordinate.
    """
    plan = study.synthesis.privatize if study.synthesis else None
    _require(
        plan is not None and plan.egress == "single",
        27,
        "synthesis.privatize.egress of the plan is not single",
    )
    _require(allowed, 27, "policy.single_images of this site is never")
    _require(
        epsilon <= most,
        27,
        f"epsilon per image is {epsilon:g}, policy.max_epsilon_image is {most:g}",
    )


# 5-9 --- updates and global weights


def check_weights(arrays: Arrays, expected: Shapes) -> None:
    """Check global weights or an update against the expected names and shapes (rules 5, 6 and 7)."""
    missing, unknown = sorted(set(expected) - set(arrays)), sorted(set(arrays) - set(expected))
    _require(
        not missing and not unknown, 5, f"{len(missing)} tensors missing, {len(unknown)} unknown"
    )
    for name, array in arrays.items():
        _require(array.dtype == np.float32, 6, f"{name} is {array.dtype}")
        _require(
            array.shape == tuple(expected[name]),
            6,
            f"{name} is {array.shape}, expected {tuple(expected[name])}",
        )
        _require(bool(np.isfinite(array).all()), 7, f"{name} has numbers that are not finite")


def norm_of(arrays: Arrays) -> float:
    """Return the L2 norm over all tensors, in float64."""
    return float(
        np.sqrt(sum(float(np.square(array, dtype=np.float64).sum()) for array in arrays.values()))
    )


def check_update(arrays: Arrays, expected: Shapes, header: Header, study: Study) -> None:
    """Check an update (rules 1, 2 and 5 to 9); `expected` are the shapes of the global weights it answers."""
    check_reply(header, study)
    _require(header.kind == "update", 1, f"kind {header.kind!r} instead of an update")
    plan = study.models.trained()[header.model]
    family = FAMILIES[header.model]
    strangers = [name for name in expected if not family.owns(name)]
    _require(not strangers, 5, f"{len(strangers)} tensors do not belong to {header.model}")
    check_weights(arrays, expected)
    for name, array in arrays.items():
        changed = family.may_change(name, plan.trainable) or not array.any()
        _require(changed, 8, f"{name} is not trained by the plan")
    norm = norm_of(arrays)
    _require(
        norm <= plan.max_update_norm * (1 + NORM_SLACK),
        9,
        f"norm {norm:.6g}, at most {plan.max_update_norm:g}",
    )


# 10-14 --- images


def check_images(arrays: Arrays, header: Header, study: Study) -> int:
    """Check one part of a site's images (rules 1, 2 and 10 to 14); returns how many images it has.

    `images` uint8 [n, H, W, C], `labels` int64 [n] (index into `study.strata()`), `privatized` uint8 [n] of 0 and 1.
    The sum over parts is for the caller: `check_total`.
    """
    check_reply(header, study)
    _require(
        header.kind == "images" and study.synthesis is not None,
        1,
        f"kind {header.kind!r} instead of images",
    )
    dtypes = {name: array.dtype for name, array in arrays.items()}
    wanted = {
        "images": np.dtype(np.uint8),
        "labels": np.dtype(np.int64),
        "privatized": np.dtype(np.uint8),
    }
    _require(
        dtypes == wanted, 10, f"{len(dtypes)} tensors with other names or dtypes than the three"
    )
    images, labels, privatized = arrays["images"], arrays["labels"], arrays["privatized"]
    size, channels = study.intake.size_px, study.intake.channels
    _require(
        images.shape[1:] == (size, size, channels),
        11,
        f"{images.shape[1:]} instead of {(size, size, channels)}",
    )
    count = len(images)
    _require(
        labels.shape == privatized.shape == (count,),
        10,
        "labels, flags and images differ in number",
    )
    check_total(count, study)
    strata = np.arange(len(study.strata()))
    _require(bool(np.isin(labels, strata).all()), 13, "a label is out of range")
    allowed = 1 if study.synthesis and study.synthesis.privatizes_averages else 0
    _require(
        bool(np.isin(privatized, np.arange(allowed + 1)).all()), 14, f"a flag is above {allowed}"
    )
    return count


def check_total(count: int, study: Study) -> None:
    """Check how many images a site sends over all parts (rule 12)."""
    limit = study.synthesis.max_images_per_site if study.synthesis else 0
    _require(1 <= count <= limit, 12, f"{count} images, expected 1 to {limit}")
