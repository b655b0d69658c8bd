"""The Flower app of a site: records in, codes out."""

from __future__ import annotations

import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict

from client.fleet.app import build_app, record_of, reply_to, sealed_of
from client.state.jobs import Stopped
from common.errors import PolicyError, RefusedError
from common.wire.messages import Sealed


def message_of(content: RecordDict) -> Message:
    """A Flower message without a Flower process."""

    class Bare:
        def __init__(self) -> None:
            self.content = content

    return Bare()  # type: ignore[return-value]


def test_a_sealed_message_survives_the_record() -> None:
    sealed = Sealed(b"header", bytes(range(256)), b"signature")
    assert sealed_of(record_of(sealed)) == sealed


def test_any_other_record_is_refused() -> None:
    whole = record_of(Sealed(b"h", b"p", b"s"))
    for name in ("sealed", "payload"):
        part = RecordDict({key: value for key, value in whole.items() if key != name})
        with pytest.raises(RefusedError):
            sealed_of(part)
    more = RecordDict({**whole, "more": whole["sealed"]})
    with pytest.raises(RefusedError):
        sealed_of(more)


@pytest.mark.parametrize(
    ("data", "stype"), [(b"no array", "numpy.ndarray"), (b"\x80\x04.", "cpickle")]
)
def test_a_damaged_array_is_refused(data: bytes, stype: str) -> None:
    whole = record_of(Sealed(b"h", b"p", b"s"))
    array = Array(dtype="uint8", shape=(1,), stype=stype, data=data)
    damaged = RecordDict({**whole, "payload": ArrayRecord({"payload": array})})
    with pytest.raises(RefusedError) as refused:
        sealed_of(damaged)
    assert refused.value.code == "E-RECORD"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PolicyError("patient Mueller", code="E-POLICY-CAP"), "E-POLICY-CAP"),
        (RefusedError("patient Mueller", code="patient Mueller"), "E-BUG"),
        (ValueError("/data/Mueller.dcm"), "E-BUG"),
    ],
)
def test_an_error_leaves_as_a_code_alone(
    monkeypatch: pytest.MonkeyPatch, error: Exception, code: str
) -> None:
    sent: list[object] = []
    monkeypatch.setattr("client.fleet.app.Message", lambda content, reply_to: sent.append(content))

    def answer(_: Sealed) -> Sealed:
        raise error

    reply_to(message_of(record_of(Sealed(b"h", b"p", b"s"))), answer)
    assert (sent[0].code, sent[0].reason) == (2, code)  # type: ignore[attr-defined]


def test_a_stop_is_no_answer() -> None:
    def answer(_: Sealed) -> Sealed:
        raise Stopped("stopped")

    with pytest.raises(Stopped):
        reply_to(message_of(record_of(Sealed(b"h", b"p", b"s"))), answer)
    assert build_app(answer) is not None
