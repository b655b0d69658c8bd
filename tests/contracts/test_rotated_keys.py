"""What an earlier signing key of a site signed counts after a rotation, and nothing else does."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.egress.review import open_reviews
from client.fleet.renewal import finish_rotation
from client.state.config import load_site
from client.state.folder import State
from client.state.signers import keep_handover, signing_keys
from common.errors import KohortError, RefusedError
from common.wire import signing
from common.wire.handover import write_handover
from tests.sites import SITE, Hospital, make_hospital, scripted


@pytest.fixture
def hospital(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hospital:
    """A hospital whose images wait for a person."""
    made = make_hospital(tmp_path)
    scripted(monkeypatch, made.study)
    site = made.site()
    site.stop.set()
    with pytest.raises(KohortError) as stopped:
        site.answer(made.ask("synthesize"))
    assert stopped.value.code == "E-STOPPED"
    return made


def rotate(place: State) -> None:
    """A new signing key takes over, as between two messages of the daemon."""
    signing.save_private(place.next_sign_key, signing.new_key())
    place.next_sign_known.touch()
    assert finish_rotation(place, SITE)


def test_a_batch_that_was_approved_before_the_key_changed_leaves(hospital: Hospital) -> None:
    place = State(hospital.root)
    reviews = open_reviews(place, load_site(hospital.root))
    reviews.decide("", approve=True, reviewer="Dr. A")
    for _ in range(2):
        rotate(place)
    assert len(signing_keys(place)) == 3
    assert reviews.verify()[0] == 2
    assert hospital.site().answer(hospital.ask("synthesize")).payload
    reviews.close()


def test_a_key_that_nobody_handed_over_from_signs_no_approval(hospital: Hospital) -> None:
    """A forger may write to the folder, but holds no key of the site."""
    place = State(hospital.root)
    rotate(place)
    forger = signing.new_key()
    # towards a key of their own: it does not lead to the site's
    statement = write_handover("site", SITE, forger, signing.new_key())
    place.handovers.write_bytes(place.handovers.read_bytes() + statement + b"\n")
    assert len(signing_keys(place)) == 2
    reviews = open_reviews(place, load_site(hospital.root))
    reviews._key = lambda: forger
    reviews.decide("", approve=True, reviewer="Dr. A")
    reviews.close()
    with pytest.raises(RefusedError) as refused:
        hospital.site().answer(hospital.ask("synthesize"))
    assert refused.value.code == "E-GATE-25"


def test_a_statement_that_was_altered_is_named(hospital: Hospital) -> None:
    place = State(hospital.root)
    old = signing.public_text(place.signing_key().public_key())
    rotate(place)
    other = signing.public_text(signing.new_key().public_key())
    place.handovers.write_bytes(place.handovers.read_bytes().replace(old.encode(), other.encode()))
    with pytest.raises(RefusedError) as refused:
        signing_keys(place)
    assert refused.value.code == "E-HANDOVER"


def test_a_rotation_that_was_killed_between_its_writes_goes_on(hospital: Hospital) -> None:
    place = State(hospital.root)
    new = signing.new_key()
    signing.save_private(place.next_sign_key, new)
    keep_handover(place, SITE, new)
    place.next_sign_known.touch()
    assert finish_rotation(place, SITE)
    assert len(place.handovers.read_text().splitlines()) == 1
    newest = signing.public_text(signing_keys(place)[0])
    assert newest == signing.public_text(new.public_key())
