"""Which instructions the daemon lets into the inbox, by their header alone."""

from __future__ import annotations

import pytest

from client.daemon.rounds import FRAME_BYTES
from common.errors import KohortError
from common.wire import signing
from common.wire.messages import HEADER_CAP_BYTES, Sealed
from tests.sites import Hospital, make_hospital


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    return make_hospital(tmp_path_factory.mktemp("admit"))


def refuse(hospital: Hospital, sealed: Sealed, size_bytes: int) -> str:
    """The code of the refusal."""
    with pytest.raises(KohortError) as refused:
        hospital.site().admit(sealed.header, sealed.signature, size_bytes)
    return refused.value.code


def test_an_honest_instruction_is_admitted(hospital: Hospital) -> None:
    for sealed in (hospital.ask("train"), hospital.ask("synthesize")):
        hospital.site().admit(sealed.header, sealed.signature, len(sealed.payload))


def test_what_the_operator_did_not_sign_is_refused(hospital: Hospital) -> None:
    sealed = hospital.ask("train")
    assert refuse(hospital, sealed._replace(signature=b""), 1) == "E-REFUSED"
    assert refuse(hospital, sealed._replace(header=sealed.header + b" "), 1) == "E-REFUSED"
    assert refuse(hospital, hospital.ask("train", key=signing.new_key()), 1) == "E-REFUSED"


def test_a_huge_header_is_refused_before_its_signature_is_read(hospital: Hospital) -> None:
    header = b" " * (HEADER_CAP_BYTES + 1)
    assert refuse(hospital, Sealed(header, b"", b""), 1) == "E-SIZE"


def test_a_plan_that_nobody_approved_is_refused(hospital: Hospital) -> None:
    assert refuse(hospital, hospital.ask("train", study="0" * 64), 1) == "E-PLAN-UNAPPROVED"


def test_a_round_that_the_plan_does_not_have_is_refused(hospital: Hospital) -> None:
    assert refuse(hospital, hospital.ask("train", round=999_999), 1).startswith("E-")


@pytest.mark.parametrize("kind", ["train", "synthesize"])
def test_a_payload_larger_than_the_plans_weights_is_refused(hospital: Hospital, kind: str) -> None:
    assert refuse(hospital, hospital.ask(kind), 2 * FRAME_BYTES) == "E-SIZE"
