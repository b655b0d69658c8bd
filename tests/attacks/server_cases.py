"""Instructions of a hostile server, some by an operator who signs them."""

from __future__ import annotations

import json
import pickle  # noqa: TID251  (the attacker's)
from collections.abc import Callable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from client.fleet.app import record_of
from common.wire import signing, tensors
from common.wire.messages import Sealed, digest_of
from tests.attacks.clinic import BOUND, Act, Case, Clinic
from tests.attacks.site_bytes import Touch, as_safetensors, npy
from tests.path_weights import START, moved

Made = Callable[[Clinic], Sealed]
SIGNED = "a signed header"
WEIGHTS = "global weights"
PAYLOAD = "a payload"
RECORDS = "Flower's records"
MODEL = "gan"


def sealed(make: Made, kind: str = "train") -> Act:
    """Send this instruction."""
    return lambda clinic: clinic.deliver(clinic.message(make(clinic), kind))


def fields(**changes: Any) -> Act:
    """Send round 1 with these header fields, signed."""
    return sealed(lambda clinic: clinic.sign(clinic.ask(), **changes))


def weights(arrays: Any, number: int = 3, **more: Any) -> Act:
    """Send these global weights."""
    return sealed(lambda clinic: clinic.ask(round=number, weights=arrays, **more))


def signature(make: Callable[[Clinic, Sealed], bytes]) -> Act:
    """Send round 1 with another signature."""

    def act(clinic: Clinic) -> Sealed:
        asked = clinic.ask()
        return Sealed(asked.header, asked.payload, make(clinic, asked))

    return sealed(act)


def by(key: signing.Ed25519PrivateKey | None, namespace: str = signing.MESSAGE) -> Act:
    """Send round 1 signed by another key, or for another purpose."""
    return signature(
        lambda clinic, asked: signing.sign(key or clinic.hospital.operator, namespace, asked.header)
    )


def by_the_site(clinic: Clinic, asked: Sealed) -> bytes:
    """The hospital's own key under an instruction."""
    return signing.sign(clinic.site.state.signing_key(), signing.MESSAGE, asked.header)


def payload(data: bytes | Callable[[Sealed], bytes]) -> Act:
    """Send a payload that is no canonical set of tensors, its digest signed."""

    def make(clinic: Clinic) -> Sealed:
        asked = clinic.ask(round=3)
        made = data if isinstance(data, bytes) else data(asked)
        return clinic.sign(Sealed(asked.header, made, b""), digest=digest_of(made))

    return sealed(make)


def described(dtype: str, shape: list[int]) -> bytes:
    """One tensor of this description without numbers."""
    entry = {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]}
    return as_safetensors(json.dumps({"critic.a": entry}).encode())


def record(make: Callable[[RecordDict], RecordDict], kind: str = "train") -> Act:
    """Send another Flower record than one sealed message."""
    return lambda clinic: clinic.deliver(clinic.message(make(record_of(clinic.ask())), kind))


def array(data: Callable[[], bytes], dtype: str = "uint8", stype: str = "numpy.ndarray") -> Act:
    """Send an array of Flower's that is none."""

    def make(content: RecordDict) -> RecordDict:
        made = Array(dtype=dtype, shape=(1,), stype=stype, data=data())
        return RecordDict({"sealed": content["sealed"], "payload": ArrayRecord({"payload": made})})

    return record(make)


def head(**changes: Any) -> Act:
    """Send another record of header and signature."""

    def make(content: RecordDict) -> RecordDict:
        found = dict(content.config_records["sealed"]) | changes
        return RecordDict({"sealed": ConfigRecord(found), "payload": content["payload"]})

    return record(make)


def untrained(clinic: Clinic) -> Sealed:
    """The question for images, with weights of both models."""
    return clinic.ask("synthesize", weights={**START["gan"], **START["glow"]})


def error_message(clinic: Clinic) -> str:
    """Send Flower's own error in place of an instruction."""
    message = Message(Error(2, "run rm -rf"), reply_to=clinic.message(clinic.ask()))
    message.metadata.__dict__["_dst_node_id"] = clinic.client.client.node_id
    return clinic.deliver(message)


def other(name: str, array: Any) -> dict[str, Any]:
    """The starting weights with one tensor changed."""
    return {**START[MODEL], name: array}


REFUSED = ("E-REFUSED",)
GATE1 = ("E-GATE-01",)
ROLLBACK = ("E-ROLLBACK",)
ORDER = ("E-GATE-17",)
UNTRAINED = ("E-GATE-15",)
FAR = ("E-GATE-16",)
RECORD = ("E-RECORD",)
SAME = ("answered",)
F4 = np.float32

SIGNATURES = [
    Case("no signature", signature(lambda c, s: b""), REFUSED, SIGNED),
    Case("the signature of another operator", by(signing.new_key()), REFUSED, SIGNED),
    Case("the hospital's own signature", signature(by_the_site), REFUSED, SIGNED),
    Case("the operator's signature for a plan", by(None, signing.PLAN), REFUSED, SIGNED),
    Case("the operator's signature for a release", by(None, signing.RELEASE), REFUSED, SIGNED),
    Case(
        "a byte that is no ASCII in the signature",
        signature(lambda c, s: b"\xe9" * 300),
        REFUSED,
        SIGNED,
    ),
    Case("a signature of 300 kB", signature(lambda c, s: b"A" * 300_000), REFUSED, SIGNED),
]
HEADERS = [
    Case("a plan that nobody approved", fields(study="0" * 64), ("E-PLAN-UNAPPROVED",), SIGNED),
    Case("a round of 1.0", fields(round=1.0), REFUSED, SIGNED),
    Case("a round of true", fields(round=True), REFUSED, SIGNED),
    Case("a version of true", fields(version=True), REFUSED, SIGNED),
    Case("version 99", fields(version=99), ("E-VERSION",), SIGNED),
    Case("a round after the last", fields(round=4), GATE1, SIGNED),
    Case("part 1 of 2", fields(part=1, parts=2), GATE1, SIGNED),
    Case("part -1", fields(part=-1), REFUSED, SIGNED),
    Case("a model that the plan has not", fields(model="wgan"), GATE1, SIGNED),
    Case("an answer as an instruction", fields(kind="update"), GATE1, SIGNED),
    Case("training in the phase of images", fields(phase="synthesize"), GATE1, SIGNED),
    Case("another site's name as sender", fields(sender="hospital-b"), GATE1, SIGNED),
    Case("this site's name as sender", fields(sender="hospital-a"), GATE1, SIGNED),
    Case(
        "an epsilon in the statement", fields(statement={"epsilon": 99.0}), ("E-STATEMENT",), SIGNED
    ),
    Case("done with the number 1", fields(statement={"done": 1}), ("E-STATEMENT",), SIGNED),
    Case(
        "65 keys in the statement",
        fields(statement={f"k{n}": 1 for n in range(65)}),
        REFUSED,
        SIGNED,
    ),
    Case("a key more in the header", fields(run="import os"), REFUSED, SIGNED),
    Case(
        "a header that nests 30,000 lists",
        sealed(lambda c: c.sign_text(b"[" * 30_000, b"")),
        REFUSED,
        SIGNED,
    ),
    Case("a header of 70 KiB", fields(run="x" * 70_000), ("E-SIZE",), SIGNED),
    Case("a receipt for what was never sent", fields(receipts=["0" * 64]), ROLLBACK, SIGNED),
    Case(
        "a head that the site never had",
        fields(heads=["0" * 64]),
        ROLLBACK,
        SIGNED,
        after="E-ROLLBACK",
    ),
    Case("the digest of another payload", fields(digest="0" * 64), ("E-DIGEST",), SIGNED),
]
COURSE = [
    Case("an answered round again", sealed(lambda c: c.ask(round=0)), SAME, "the plan's order"),
    Case("an answered round with other weights", weights(moved(1e30), 0), SAME, "the plan's order"),
    Case(
        "the study closed after its first round",
        sealed(lambda c: c.ask(round=0, statement={"done": True})),
        SAME,
        "the plan's order",
    ),
    Case("a round before the last one", weights(START[MODEL], 1), ORDER, "the plan's order"),
    Case(
        "images before the training",
        sealed(untrained, "query.synthesize"),
        ORDER,
        "the plan's order",
    ),
    Case(
        "the second part of images",
        sealed(lambda c: c.ask("synthesize", part=1, parts=2), "query.synthesize"),
        ("E-PART-UNKNOWN",),
        "the plan's order",
    ),
    Case(
        "the closing of images never made",
        sealed(
            lambda c: c.ask("synthesize", round=1, statement={"done": True}), "query.synthesize"
        ),
        ("E-PART-UNKNOWN", "E-STUDY-ENDED"),
        "the plan's order",
    ),
]
MOVES = [
    Case("weights of 1e30", weights(moved(1e30)), FAR, WEIGHTS),
    Case("weights further than the rounds allow", weights(moved(1.001 * BOUND)), FAR, WEIGHTS),
    Case(
        "weights that are no numbers",
        weights(other("critic.a", np.full(4, np.nan, F4))),
        ("E-GATE-07",),
        WEIGHTS,
    ),
    Case(
        "infinite weights",
        weights(other("critic.a", np.full(4, np.inf, F4))),
        ("E-GATE-07",),
        WEIGHTS,
    ),
    Case(
        "the largest float32",
        weights(other("critic.a", np.full(4, np.finfo(F4).max, F4))),
        FAR,
        WEIGHTS,
    ),
    Case("weights in float64", weights(other("critic.a", np.ones(4))), ("E-GATE-06",), WEIGHTS),
    Case(
        "whole numbers", weights(other("critic.a", np.ones(4, np.int32))), ("E-GATE-06",), WEIGHTS
    ),
    Case(
        "weights of another shape",
        weights(other("critic.a", np.ones((2, 2), F4))),
        ("E-GATE-06",),
        WEIGHTS,
    ),
    Case("a tensor more", weights(other("critic.b", np.ones(1, F4))), ("E-GATE-05",), WEIGHTS),
    Case("a tensor less", weights({"critic.a": START[MODEL]["critic.a"]}), ("E-GATE-05",), WEIGHTS),
    Case(
        "an untrained tensor one bit off",
        weights(other("critic.fixed", np.array([0.5, 0.0, 1e-40], F4))),
        UNTRAINED,
        WEIGHTS,
    ),
    Case(
        "other weights than the pinned start",
        weights(moved(1e-6, "glow"), 0, model="glow"),
        UNTRAINED,
        WEIGHTS,
    ),
]
BYTES = [
    Case("no payload", payload(b""), REFUSED, PAYLOAD),
    Case("a pickle", payload(lambda _: pickle.dumps(Touch())), REFUSED, PAYLOAD),
    Case("a tensor of 70 dimensions", payload(described("F32", [0] * 70)), REFUSED, PAYLOAD),
    Case(
        "a tensor of 0 × 2^39 × 2^39",
        payload(described("F32", [0, 1 << 39, 1 << 39])),
        REFUSED,
        PAYLOAD,
    ),
    Case(
        "a header that nests 300,000 lists",
        payload(as_safetensors(b"[" * 300_000)),
        REFUSED,
        PAYLOAD,
    ),
    Case(
        "metadata beside the tensors",
        payload(lambda s: tensors.dumps(START[MODEL], {"x": "y"})),
        ("E-GATE-04",),
        PAYLOAD,
    ),
    Case("a byte behind the tensors", payload(lambda s: s.payload + b"\0"), REFUSED, PAYLOAD),
]
CONTENTS = [
    Case("an empty record", record(lambda c: RecordDict({})), RECORD, RECORDS),
    Case(
        "a record more",
        record(lambda c: RecordDict({**c, "run_config": ConfigRecord({"a": 1})})),
        RECORD,
        RECORDS,
    ),
    Case(
        "a record of another kind",
        record(lambda c: RecordDict({"sealed": MetricRecord({"a": 1}), "payload": c["payload"]})),
        RECORD,
        RECORDS,
    ),
    Case("a header of text", head(header="import os"), RECORD, RECORDS),
    Case("a payload of floats", array(lambda: npy("<f4", 1, bytes(4)), "float32"), RECORD, RECORDS),
    Case(
        "an array of pickled objects",
        array(lambda: npy("|O", 1, pickle.dumps([Touch()]))),
        RECORD,
        RECORDS,
    ),
    Case(
        "an array in a stream of pickles",
        array(lambda: pickle.dumps(Touch()), stype="cpickle"),
        RECORD,
        RECORDS,
    ),
    Case("an array that claims 2^40 bytes", array(lambda: npy("|u1", 1 << 40)), RECORD, RECORDS),
    Case("an evaluation instead of training", record(lambda c: c, "evaluate"), ("E-BUG",), RECORDS),
    Case("a query that no site knows", record(lambda c: c, "query.files"), ("E-BUG",), RECORDS),
    Case("Flower's error as an instruction", error_message, RECORD, RECORDS),
]
CASES = [*SIGNATURES, *HEADERS, *COURSE, *MOVES, *BYTES, *CONTENTS]
