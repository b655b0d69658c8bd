"""Updates of a hostile site: their numbers, their header, their statement."""

from __future__ import annotations

from typing import Any

import numpy as np

from common.wire import tensors
from tests.attacks.site_cases import (
    HOSTILE,
    Case,
    Scripts,
    forged,
    header,
    raw_header,
    says,
    states,
    tensor,
)
from tests.federation import Federation

BOUND = 10.0  # the plan's max_update_norm
SIGNATURE = ("E-INTAKE-SIGNATURE",)
ANSWER = ("E-INTAKE-ANSWER",)
SENDER = ("E-INTAKE-SENDER",)
STATEMENT = ("E-GATE-02",)


def glow_instead(fields: dict[str, Any], arrays: tensors.Arrays) -> None:
    """The tensors of the other model."""
    arrays.clear()
    arrays["glow.b"] = np.zeros(7, np.float32)


def without_head(fields: dict[str, Any], arrays: tensors.Arrays) -> None:
    """A statement without the commitment to the site's head."""
    fields["statement"] = dict(fields["statement"])
    del fields["statement"]["head_commitment"]


def borrowed(federation: Federation) -> Scripts:
    """The name, the key and the numbers of another hospital."""
    other = federation.sites["hospital-a"]
    hostile = federation.sites[HOSTILE]
    hostile.key = other.key
    hostile.name = other.name
    hostile.seed = other.seed
    return {}


def just_above(a: Any) -> Any:
    """An update one percent above the bound."""
    return np.full(a.shape, 1.01 * BOUND / np.sqrt(a.size), np.float32)


NUMBERS = [
    Case(
        "a number that is none", tensor("critic.a", lambda a: a * np.float32("nan")), ("E-GATE-07",)
    ),
    Case("an infinite number", tensor("critic.a", lambda a: a + np.float32("inf")), ("E-GATE-07",)),
    Case(
        "an update a million times too large",
        tensor("critic.a", lambda a: a * np.float32(1e6)),
        ("E-GATE-09",),
    ),
    Case("an update of 1e30", tensor("critic.a", lambda a: a + np.float32(1e30)), ("E-GATE-09",)),
    Case("a norm one percent above the bound", tensor("generator.a", just_above), ("E-GATE-09",)),
    Case("a tensor on its side", tensor("generator.a", lambda a: a.T.copy()), ("E-GATE-06",)),
    Case("a tensor in float64", tensor("critic.a", lambda a: a.astype("f8")), ("E-GATE-06",)),
    Case("a tensor of whole numbers", tensor("critic.a", lambda a: a.astype("i8")), ("E-GATE-06",)),
    Case("a tensor without an element", tensor("critic.a", lambda a: a[:0]), ("E-GATE-06",)),
    Case("one tensor more", forged(lambda f, a: a.update(loss=np.zeros(1, "f4"))), ("E-GATE-05",)),
    Case("one tensor less", forged(lambda f, a: a.pop("critic.a", None)), ("E-GATE-05",)),
    Case("no tensor at all", forged(lambda f, a: a.clear()), ("E-GATE-05",)),
    Case("tensors of another model", forged(glow_instead), ("E-GATE-05",)),
]
HEADERS = [
    Case("the answer to another round", says(round=1), ANSWER),
    Case("the answer of another model", says(model="glow"), ANSWER),
    Case(
        "images where an update was asked",
        says(kind="images", phase="synthesize", model=""),
        ANSWER,
    ),
    Case("the answer to another study", says(study="0" * 64), ANSWER),
    Case("an instruction instead of an answer", says(kind="train"), ANSWER),
    Case("the second of two parts", says(part=1, parts=2), ANSWER),
    Case("another hospital's name", says(sender="hospital-a"), SENDER),
    Case("the operator's name", says(sender="operator"), SENDER),
    Case("another hospital's name, key and answer", borrowed, SIGNATURE),
    Case("2^31 parts", header(parts=1 << 31), SIGNATURE),
    Case("part -1", header(part=-1), SIGNATURE),
    Case("a round of 0.0", header(round=0.0), SIGNATURE),
    Case("a round of false", header(round=False), SIGNATURE),
    Case("a header of version 99", header(version=99), ("E-VERSION",)),
    Case("a header of version true", header(version=True), SIGNATURE),
    Case("a header with a key more", header(note="Doe^Jane"), SIGNATURE),
    Case("ten thousand receipts", header(receipts=["000"] * 10_000), SIGNATURE),
    Case("a receipt from a site", header(receipts=["0" * 64]), ("E-GATE-01",)),
    Case("a header of 70 KiB", header(note="x" * 70_000), ("E-SIZE",)),
    Case("a header that nests 30,000 lists", raw_header(b"[" * 30_000), SIGNATURE),
    Case("a header that is no text", raw_header(b"\xff\xfe\x00"), SIGNATURE),
    Case("a header without a byte", raw_header(b""), SIGNATURE),
    Case("a number of 60,000 digits", raw_header(b'{"version":' + b"9" * 60_000 + b"}"), SIGNATURE),
]
STATEMENTS = [
    Case("a statement that tells a loss", states(loss=0.25), STATEMENT),
    Case("a statement with a smaller epsilon", states(epsilon=0.1), STATEMENT),
    Case("a clip of true", states(clip=True), STATEMENT),
    Case("no word of the site's head", forged(without_head), STATEMENT),
    Case("a head that is no digest", states(head_commitment="Doe^Jane"), STATEMENT),
    Case("other weights than were sent", states(weights="0" * 64), ("E-INTAKE-WEIGHTS",)),
    Case("no statement", says(statement={}), ("E-INTAKE-WEIGHTS",)),
]
