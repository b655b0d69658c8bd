"""Flower records carry sealed messages unchanged; any other content is refused."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from common.errors import RefusedError
from common.wire.messages import Sealed
from server.rounds.records import record_of, sealed_of

RECORDS = {
    "empty": RecordDict(),
    "only a header": RecordDict({"sealed": ConfigRecord({"header": b"", "signature": b""})}),
    "a text for a signature": RecordDict(
        {
            "sealed": ConfigRecord({"header": b"", "signature": "x"}),
            "payload": ArrayRecord({"payload": Array(np.zeros(1, np.uint8))}),
        }
    ),
    "one more entry": RecordDict(
        {
            "sealed": ConfigRecord({"header": b"", "signature": b"", "loss": 1.0}),
            "payload": ArrayRecord({"payload": Array(np.zeros(1, np.uint8))}),
        }
    ),
    "floats": RecordDict(
        {
            "sealed": ConfigRecord({"header": b"", "signature": b""}),
            "payload": ArrayRecord({"payload": Array(np.zeros(1, np.float32))}),
        }
    ),
    "bytes that are no array": RecordDict(
        {
            "sealed": ConfigRecord({"header": b"", "signature": b""}),
            "payload": ArrayRecord(
                {"payload": Array(dtype="uint8", shape=(1,), stype="numpy.ndarray", data=b"no")}
            ),
        }
    ),
}


@pytest.mark.parametrize("sentence", RECORDS)
def test_a_record_is_refused_that_is(sentence: str) -> None:
    with pytest.raises(RefusedError) as caught:
        sealed_of(RECORDS[sentence])
    assert caught.value.code == "E-RECORD"


def test_records_carry_sealed_messages_unchanged() -> None:
    sealed = Sealed(b"header", bytes(range(256)), b"signature")
    assert sealed_of(record_of(sealed)) == sealed
