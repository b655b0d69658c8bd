"""Targets: what crosses between site and server, and what is signed."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import numpy as np
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import ValidationError

from common.privacy import boundary
from common.privacy.mechanisms import mechanism_from
from common.wire import signing, tensors
from common.wire.messages import Header, Sealed, canonical, digest_of, seal, unseal
from kohort.signatures import verify
from tests.fuzz.harness import Parser, Target
from tests.fuzz.mutation import Maker, damaged, exchanged, noise, revalued, wrapped
from tests.studies import small_study

CAP = 1 << 18
DTYPES = (b'"F32"', b'"F64"', b'"I64"', b'"I32"', b'"U8"', b'"F16"', b'"BOOL"')
SHAPES = (b"[]", b"[0]", b"[1]", b"[0,549755813888]", b"[1048576,1048576]", b"[2,2]", b"[-1]")
OFFSETS = (b'"__metadata__"', b'"shape"', b'"dtype"', b'"data_offsets"', b"[1,1,1,1,1,1,1,1,1]")
ODD_TENSORS = (*DTYPES, *SHAPES, *OFFSETS, b"[" + b"1," * 70 + b"1]", b"549755813888")


def _arrays() -> tensors.Arrays:
    """A few small arrays of every dtype."""
    return {
        "a": np.ones((2, 3), np.float32),
        "b.c": np.arange(3, dtype=np.int64),
        "e": np.zeros((0, 4), np.float64),
        "u": np.array([[1]], np.uint8),
    }


def with_length(header: bytes, body: bytes = bytes(64)) -> bytes:
    """A safetensors file whose first eight bytes are its header's real length."""
    return len(header).to_bytes(8, "little") + header + body


def tensor_makers(*seeds: bytes) -> tuple[Maker, ...]:
    """Damaged files, and files whose header's tokens are exchanged under a right length."""
    parts = []
    for seed in seeds:
        size = int.from_bytes(seed[:8], "little")
        parts.append((seed[8 : 8 + size], seed[8 + size :]))
    heads = [head for head, _ in parts]
    makers = (exchanged(*heads, odd=ODD_TENSORS), revalued(*heads, odd=ODD_TENSORS))

    def framed(rng: Random) -> bytes:
        header = makers[rng.random() < 0.5]
        return with_length(header(rng), parts[int(rng.random() * len(parts))][1])

    return (damaged(*seeds), framed, framed)


def _tensors(folder: Path) -> Parser:
    def call(data: bytes) -> None:
        for array in tensors.loads(data, max_bytes=CAP).values():
            array.sum()

    seeds = (tensors.dumps(_arrays()), tensors.dumps({}), tensors.dumps({"u": np.ones(3, "u1")}))
    return Parser(call, (*tensor_makers(*seeds), noise()))


def _tensor_shapes(folder: Path) -> Parser:
    path = folder / "weights.safetensors"

    def call(data: bytes) -> None:
        path.write_bytes(data)
        tensors.shapes(path, max_bytes=CAP)

    return Parser(call, tensor_makers(tensors.dumps(_arrays(), {"rotations": "0" * 64})))


def header_of(payload: bytes, **fields: object) -> Header:
    """A site's header over a payload."""
    study = small_study()
    data: dict[str, object] = {
        "kind": "update",
        "study": study.hash(),
        "phase": "train",
        "model": "gan",
        "round": 0,
        "sender": "hospital-a",
        "digest": digest_of(payload),
        "statement": boundary.public_statement(study, "update", "gan")
        | {"weights": "0" * 64, "head_commitment": "1" * 64},
    }
    return Header.model_validate(data | fields)


ODD_HEADERS = (
    *(b'"version"', b'"kind"', b'"study"', b'"phase"', b'"model"', b'"round"', b'"part"'),
    *(b'"parts"', b'"sender"', b'"digest"', b'"statement"', b'"receipts"', b'"heads"', b'"images"'),
    *(b'"gan"', b'"glow"', b'"synthesize"', b'"train"', b'"operator"', b"2", b"3", b"1.0"),
)


def _header(folder: Path) -> Parser:
    key = signing.new_key()
    payload = tensors.dumps(_arrays())
    public = key.public_key()

    def call(data: bytes) -> None:
        unseal(
            Sealed(data, payload, signing.sign(key, signing.MESSAGE, data)), public, max_bytes=CAP
        )

    update = canonical(header_of(payload).model_dump(mode="json"))
    order = {"kind": "train", "sender": "operator", "heads": ["2" * 64], "statement": {}}
    small = canonical(header_of(payload, **order).model_dump(mode="json"))
    makers = (revalued(update, small, odd=ODD_HEADERS), exchanged(update, small), damaged(small))
    return Parser(call, makers)


def _sealed(folder: Path) -> Parser:
    """The three parts of a message in a row, each damaged without a new signature."""
    key = signing.new_key()
    payload = tensors.dumps(_arrays())
    sealed = seal(header_of(payload), payload, key)

    def call(data: bytes) -> None:
        parts = data[1:].split(b"\0--\0")
        header, body, signature = (*parts, b"", b"", b"")[:3]
        unseal(Sealed(header, body, signature), key.public_key(), max_bytes=CAP)

    whole = b"\0" + b"\0--\0".join(sealed)
    return Parser(call, (damaged(whole), exchanged(whole)))


def _signature(folder: Path) -> Parser:
    key = signing.new_key()
    text = signing.sign(key, signing.MESSAGE, b"what was said")

    def call(data: bytes) -> None:
        verify(key.public_key(), signing.MESSAGE, b"what was said", data)

    other = signing.sign(signing.new_key(), signing.PLAN, b"what was said")
    return Parser(call, (damaged(text, other), exchanged(text, other), noise(200)))


def _key_line(folder: Path) -> Parser:
    lines = [signing.public_text(signing.new_key().public_key(), "operator").encode()]
    for curve in (ec.SECP256R1(), ec.SECP384R1()):
        public = ec.generate_private_key(curve).public_key()
        form = serialization.PublicFormat.OpenSSH
        lines.append(public.public_bytes(serialization.Encoding.OpenSSH, form))

    def call(data: bytes) -> None:
        signing.fingerprint(signing.parse_public(data.decode("utf-8", "surrogateescape")))

    makers = (damaged(*lines), exchanged(*lines, odd=(b"ssh-rsa ", b"ssh-ed25519 ", b"sk-ssh-")))
    return Parser(call, makers)


def _private_key(folder: Path) -> Parser:
    path = folder / "key"
    signing.save_private(path, signing.new_key())
    seed = path.read_bytes()

    def call(data: bytes) -> None:
        path.write_bytes(data)
        signing.load_private(path)

    return Parser(call, (damaged(seed), exchanged(seed)))


EVENTS = (
    {"mechanism": "subsampled_gaussian", "q": 0.1, "noise_multiplier": 2.0, "steps": 4}
    | {"dimension": 100, "model": "gan"},
    {"mechanism": "latent_laplace", "clip": 1.0, "scale": 0.5, "k": 5, "dimension": 16}
    | {"levels": "all", "egress": "average", "grouping": "similar"},
    {"mechanism": "noisy_anchors", "noise_multiplier": 3.0, "components": 4, "cells": 2},
)


def event_seeds() -> tuple[bytes, ...]:
    """Events as a ledger writes them: one of each mechanism, whatever its fields are."""
    from dataclasses import fields

    from common.privacy.mechanisms import KINDS

    seeds = [json.dumps(event).encode() for event in EVENTS]
    for name, kind in KINDS.items():
        data: dict[str, object] = {field.name: 1 for field in fields(kind)}
        seeds.append(json.dumps({"mechanism": name} | data).encode())
        data = {field.name: "random" for field in fields(kind)}
        seeds.append(json.dumps({"mechanism": name} | data).encode())
    return tuple(seeds)


def _event(folder: Path) -> Parser:
    odd = (b'"random"', b'"anchors"', b'"top"', b'"all"', b'"single"', b'"group"', b"0.25", b"16")

    def call(data: bytes) -> None:
        mechanism = mechanism_from(data.decode("utf-8", "surrogateescape"))
        mechanism.event()
        mechanism.describe()
        mechanism.statement()

    seeds = event_seeds()
    return Parser(call, (revalued(*seeds, odd=odd), exchanged(*seeds), damaged(*seeds)))


def _release_header(folder: Path) -> Parser:
    """The model of a header alone, without a signature: the fastest look at its fields."""
    payload = tensors.dumps(_arrays())
    update = canonical(header_of(payload).model_dump(mode="json"))

    def call(data: bytes) -> str:
        return Header.model_validate_json(data).key

    makers = (revalued(update, odd=ODD_HEADERS), exchanged(update), damaged(update))
    return Parser(call, makers, allowed=(ValidationError,))


def resealed(make: Maker, key: signing.Ed25519PrivateKey) -> Maker:
    """Payloads of a maker under an honest header and signature, as one file."""

    def wrap(payload: bytes) -> bytes:
        sealed = seal(header_of(payload), payload, key)
        fields = {name: np.frombuffer(part, np.uint8) for name, part in sealed._asdict().items()}
        return tensors.dumps(fields)

    return wrapped(make, wrap)


TARGETS = (
    Target("tensors", ("common.wire.tensors:_parse_header", "common.wire.tensors:read"), _tensors),
    Target("tensor-shapes", ("common.wire.tensors:shapes",), _tensor_shapes),
    Target(
        "message-header",
        ("common.wire.messages:open_header", "common.wire.messages:_check_version"),
        _header,
    ),
    Target("header-fields", ("kohort.header:Header",), _release_header),
    Target("sealed-message", ("common.wire.messages:open_header",), _sealed),
    Target("signature", ("kohort.signatures:verify", "kohort.signatures:_unarmour"), _signature),
    Target("key-line", ("kohort.signatures:parse_public",), _key_line),
    Target(
        "private-key",
        ("common.wire.signing:load_private", "common.wire.signing:_load_open"),
        _private_key,
    ),
    Target("mechanism-event", ("common.privacy.mechanisms:mechanism_from",), _event),
)
