"""The outbox: on disk first, the same bytes again, never a second payload."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.egress import gate
from client.egress.gate import Cleared
from client.egress.outbox import Outbox
from common.errors import EnvironmentFault, KohortError, PolicyError
from common.wire import signing
from common.wire.messages import Header, digest_of, unseal
from common.wire.tensors import dumps

KEY = signing.new_key()


def cleared(payload: bytes, round_: int = 0) -> Cleared:
    """A cleared message, made with the gate's own token."""
    header = Header(
        kind="update",
        study="0" * 64,
        phase="train",
        model="gan",
        round=round_,
        sender="a",
        digest=digest_of(payload),
    )
    return Cleared(gate._TOKEN, header, payload)


def test_a_stored_message_is_signed_and_comes_back_byte_for_byte(tmp_path: Path) -> None:
    sealed = Outbox(tmp_path).store(cleared(b"numbers"), KEY)
    header = unseal(sealed, KEY.public_key(), max_bytes=100)
    assert Outbox(tmp_path).get(header.key) == sealed
    assert Outbox(tmp_path).get("another key") is None


def test_storing_again_gives_the_first_bytes_even_under_a_new_key(tmp_path: Path) -> None:
    first = Outbox(tmp_path).store(cleared(b"numbers"), KEY)
    assert Outbox(tmp_path).store(cleared(b"numbers"), signing.new_key()) == first


def test_a_second_payload_for_a_round_is_refused(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    first = outbox.store(cleared(b"numbers"), KEY)
    with pytest.raises(PolicyError) as refused:
        outbox.store(cleared(b"other numbers"), KEY)
    assert refused.value.code == "E-OUTBOX-SECOND"
    assert outbox.get(cleared(b"numbers").header.key) == first


@pytest.mark.parametrize("place", [0, 15, 16, 31, 32, 99])
def test_a_second_payload_is_compared_as_a_whole_payload(tmp_path: Path, place: int) -> None:
    first = bytes(range(100))
    second = bytearray(first)
    second[place] ^= 1
    outbox = Outbox(tmp_path)
    outbox.store(cleared(first), KEY)
    for other in (bytes(second), first[:-1], first + b"\0"):
        with pytest.raises(PolicyError) as refused:
            outbox.store(cleared(other), KEY)
        assert refused.value.code == "E-OUTBOX-SECOND"


def test_receipts_are_kept_beside_the_message(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    outbox.store(cleared(b"one", 0), KEY)
    outbox.store(cleared(b"two", 1), KEY)
    key = cleared(b"one", 0).header.key
    outbox.acknowledge(key)
    assert outbox.is_acknowledged(key)
    assert not outbox.is_acknowledged(cleared(b"two", 1).header.key)
    assert outbox.get(key) is not None


def test_nothing_half_written_survives_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("common.wire.tensors.os.replace", full)
    with pytest.raises(EnvironmentFault) as fault:
        Outbox(tmp_path).store(cleared(b"numbers"), KEY)
    assert fault.value.code == "E-DISK-FULL"
    assert not list(tmp_path.iterdir())


def test_a_damaged_message_is_not_the_one_that_was_signed(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    message = cleared(b"numbers")
    outbox.store(message, KEY)
    key = message.header.key
    path = outbox._path(key)
    whole = path.read_bytes()
    for damaged in (b"", whole[:-1], whole.replace(b'"payload"', b'"payloat"'), dumps({})):
        path.write_bytes(damaged)
        with pytest.raises(KohortError):
            outbox.get(key)
    # readable, and yet no header
    path.write_bytes(whole.replace(b'"sender":"a"', b'"sendor":"a"'))
    with pytest.raises(PolicyError) as refused:
        outbox.digests(key)
    assert refused.value.code == "E-ROLLBACK"
