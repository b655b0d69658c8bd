"""Sealed messages: what was signed is what is read."""

import json

import pytest
from pydantic import ValidationError

from common.errors import RefusedError
from common.wire import signing
from common.wire.messages import Header, Sealed, canonical, digest_of, seal, unseal

KEY = signing.new_key()
PAYLOAD = b"payload"


def header(**changes: object) -> Header:
    fields = {
        "kind": "update",
        "study": "a" * 64,
        "phase": "train",
        "model": "gan",
        "round": 1,
        "sender": "hospital-a",
        "digest": digest_of(PAYLOAD),
    }
    return Header.model_validate({**fields, **changes})


def test_a_sealed_message_gives_its_header_back() -> None:
    sealed = seal(header(statement={"k": 5}), PAYLOAD, KEY)
    assert unseal(sealed, KEY.public_key(), max_bytes=100) == header(statement={"k": 5})
    assert seal(header(), PAYLOAD, KEY) == seal(header(), PAYLOAD, KEY)


def test_changed_bytes_foreign_keys_and_large_payloads_are_refused() -> None:
    sealed = seal(header(), PAYLOAD, KEY)
    for bad in (
        sealed._replace(payload=b"other"),
        sealed._replace(header=sealed.header.replace(b"hospital-a", b"hospital-b")),
        sealed._replace(signature=signing.sign(signing.new_key(), signing.MESSAGE, sealed.header)),
        sealed._replace(signature=signing.sign(KEY, signing.PLAN, sealed.header)),
    ):
        with pytest.raises(RefusedError):
            unseal(bad, KEY.public_key(), max_bytes=100)
    with pytest.raises(RefusedError, match="at most 3"):
        unseal(sealed, KEY.public_key(), max_bytes=3)


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "metrics"},
        {"loss": 0.3},
        {"round": -1},
        {"sender": "../x"},
        {"statement": {"a": [1]}},
    ],
)
def test_an_unknown_field_or_kind_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        header(**changes)
    text = canonical({**json.loads(canonical(header().model_dump(mode="json"))), **changes})
    sealed = Sealed(text, PAYLOAD, signing.sign(KEY, signing.MESSAGE, text))
    with pytest.raises(RefusedError, match="unknown or damaged"):
        unseal(sealed, KEY.public_key(), max_bytes=100)


@pytest.mark.parametrize("version", [1, 3])
def test_a_message_of_another_version_is_refused_as_such(version: int) -> None:
    text = canonical(
        {**json.loads(canonical(header().model_dump(mode="json"))), "version": version}
    )
    sealed = Sealed(text, PAYLOAD, signing.sign(KEY, signing.MESSAGE, text))
    with pytest.raises(RefusedError, match=f"version {version}, expected 2") as refused:
        unseal(sealed, KEY.public_key(), max_bytes=100)
    assert refused.value.code == "E-VERSION"


NO_WHOLE_NUMBERS = {
    "a fraction without a fraction": "1.0",
    "an exponent": "1e0",
    "true": "true",
    "false": "false",
    "text": '"1"',
    "a list": "[1]",
    "nothing": "null",
    "an endless number": "1e999",
}


@pytest.mark.parametrize("field", ["version", "round", "part", "parts"])
@pytest.mark.parametrize("value", NO_WHOLE_NUMBERS.values(), ids=NO_WHOLE_NUMBERS.keys())
def test_whole_numbers_of_a_header_are_written_as_whole_numbers(field: str, value: str) -> None:
    fields = json.loads(canonical(header().model_dump(mode="json"))) | {field: "HERE"}
    text = canonical(fields).replace(b'"HERE"', value.encode())
    sealed = Sealed(text, PAYLOAD, signing.sign(KEY, signing.MESSAGE, text))
    with pytest.raises(RefusedError, match="unknown or damaged"):
        unseal(sealed, KEY.public_key(), max_bytes=100)
    with pytest.raises(ValidationError):
        header(**{field: True})


@pytest.mark.parametrize("value", [5, 5.0, True, "5"])
def test_a_value_of_a_statement_keeps_its_type(value: object) -> None:
    sealed = seal(header(statement={"k": value}), PAYLOAD, KEY)
    found = unseal(sealed, KEY.public_key(), max_bytes=100).statement["k"]
    assert (type(found), found) == (type(value), value)


def test_the_key_never_depends_on_a_run() -> None:
    assert header().key == f"{'a' * 64}/train/gan/1/0"
