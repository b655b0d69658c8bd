"""A state folder that is older than what left of it spends nothing: daemon, retries, two studies.

Exports have the same tests in tests/client/single/test_export_restores.py.
"""

from __future__ import annotations

import hmac
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from client.daemon.site import Site
from client.state.chains import chain
from client.state.folder import State
from client.state.head import Heads, behind, head_of
from client.state.ledger import Ledger
from client.state.plans import Plans
from client.state.records import note_loss
from common.errors import KohortError
from common.privacy.accounting import epsilon_pld
from common.privacy.mechanisms import SubsampledGaussian
from common.storage.journal import Journal
from common.study.bundle import write_bundle
from common.study.plan import load_study
from common.wire.messages import Header, Sealed, canonical, unseal
from tests.sites import Children, Hospital, make_hospital, scripted, write_plan


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return make_hospital(tmp_path)


@pytest.fixture
def children(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> Children:
    return scripted(monkeypatch, hospital.study)


def start(hospital: Hospital) -> Site:
    """A daemon that starts on what is on disk."""
    return hospital.site(review="not_required")


def commitment(sealed: Sealed, hospital: Hospital) -> str:
    """What a signed answer tells of the state."""
    key = start(hospital).state.signing_key().public_key()
    return str(unseal(sealed, key, max_bytes=1 << 24).statement["head_commitment"])


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(KohortError) as error:
        call()
    return error.value.code


def copy(hospital: Hospital, name: str) -> Path:
    """A backup of one file or folder of a stopped daemon's state, or of all of it."""
    source = hospital.root / name
    target = hospital.root.parent / f"backup-{name or 'all'}"
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        target.mkdir()
        for part in source.parent.glob(f"{name}*"):
            shutil.copy2(part, target)
    return target


def remove(hospital: Hospital, name: str) -> None:
    """Lose one file or folder, with what SQLite keeps beside it."""
    source = hospital.root / name
    if source.is_dir():
        shutil.rmtree(source)
        return
    for part in source.parent.glob(f"{source.name}*"):
        part.unlink()


def put_back(hospital: Hospital, name: str) -> None:
    """Restore what `copy` kept."""
    remove(hospital, name)
    target = hospital.root.parent / f"backup-{name or 'all'}"
    if name and not (target / name).exists():
        shutil.copytree(target, hospital.root / name)
        return
    shutil.copytree(target, hospital.root, dirs_exist_ok=True)


def spent(hospital: Hospital) -> int:
    """How many reservations the ledger holds."""
    return sum(row.kind == "reserve" for row in start(hospital).ledger().rows())


# --- what is lost or old -------------------------------------------------------------------------

PARTS = ["ledger.sqlite", "groups.sqlite", "journal.sqlite", "canaries", "outbox", "heads.sqlite"]


@pytest.mark.parametrize("part", PARTS)
def test_nothing_is_spent_after_a_part_of_the_state_was_lost(
    hospital: Hospital, children: Children, part: str
) -> None:
    start(hospital).answer(hospital.ask("train"))
    start(hospital).answer(hospital.ask("synthesize"))
    runs = children.runs
    remove(hospital, part)
    if part == "journal.sqlite":
        start(hospital).plans.approve(hospital.bundle)
    for question in (hospital.ask("train", round=1), hospital.ask("train")):
        assert refused(lambda asked=question: start(hospital).answer(asked)) == "E-ROLLBACK"
    assert children.runs == runs


@pytest.mark.parametrize("part", PARTS)
def test_nothing_is_spent_after_a_part_of_the_state_was_put_back_from_an_old_backup(
    hospital: Hospital, children: Children, part: str
) -> None:
    start(hospital).answer(hospital.ask("train"))
    if part == "groups.sqlite":
        start(hospital).answer(hospital.ask("train", round=1))
    copy(hospital, part)
    if part in ("groups.sqlite", "canaries"):
        start(hospital).answer(hospital.ask("train", round=1))
    start(hospital).answer(hospital.ask("train", model="glow"))
    if part in ("groups.sqlite", "canaries"):
        start(hospital).answer(hospital.ask("synthesize"))
    runs = children.runs
    put_back(hospital, part)
    again = hospital.ask("train", round=1, model="gan")
    if part in ("groups.sqlite", "canaries"):
        again = hospital.ask("synthesize", round=1)
    assert refused(lambda: start(hospital).answer(again)) == "E-ROLLBACK"
    assert children.runs == runs


def test_a_state_is_compared_with_the_newest_head_not_only_with_the_oldest(
    hospital: Hospital, children: Children
) -> None:
    start(hospital).answer(hospital.ask("train"))
    copy(hospital, "ledger.sqlite")  # newer than the first head, older than the second
    start(hospital).answer(hospital.ask("train", round=1))
    put_back(hospital, "ledger.sqlite")
    asked = hospital.ask("train", model="glow")
    assert refused(lambda: start(hospital).answer(asked)) == "E-ROLLBACK"
    assert children.runs == 2


def test_a_lost_message_is_never_computed_again(hospital: Hospital, children: Children) -> None:
    asked = hospital.ask("train")
    start(hospital).answer(asked)
    (message,) = (hospital.root / "outbox").glob("*.sealed")
    message.unlink()
    assert refused(lambda: start(hospital).answer(asked)) == "E-ROLLBACK"
    assert (children.runs, spent(hospital)) == (1, 1)


def test_a_round_that_was_cleared_is_never_computed_again_even_before_it_was_answered(
    hospital: Hospital, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dies(BaseException):
        """The process ends before the message is on disk."""

    def die(*_: object, **__: object) -> None:
        raise Dies

    asked = hospital.ask("train")
    with monkeypatch.context() as patch:
        patch.setattr("client.egress.outbox.atomic_write", die)
        with pytest.raises(Dies):
            start(hospital).answer(asked)
    shutil.rmtree(hospital.root / "jobs")
    assert refused(lambda: start(hospital).answer(asked)) == "E-ROLLBACK"
    assert (children.runs, spent(hospital)) == (1, 1)


def test_other_payloads_than_those_that_were_cleared_get_no_head(hospital: Hospital) -> None:
    records = start(hospital).records
    asked = Header.model_validate_json(hospital.ask("train").header)
    first = records.note_cleared(hospital.study, asked, ["1" * 64, "2" * 64], None)
    assert records.note_cleared(hospital.study, asked, ["1" * 64, "2" * 64], None) == first
    for others in (["1" * 64], ["2" * 64, "1" * 64], ["1" * 64, "3" * 64], []):
        code = refused(lambda o=others: records.note_cleared(hospital.study, asked, o, None))
        assert code == "E-OUTBOX-SECOND"


def test_a_retry_spends_nothing_from_a_ledger_that_was_put_back_meanwhile(
    hospital: Hospital, children: Children
) -> None:
    start(hospital).answer(hospital.ask("train"))
    copy(hospital, "ledger.sqlite")
    start(hospital).answer(hospital.ask("train", round=1))
    children.script = ["crash"]
    children.on_run = lambda: put_back(hospital, "ledger.sqlite")
    asked = hospital.ask("train", model="glow")
    assert refused(lambda: start(hospital).answer(asked)) == "E-ROLLBACK"
    assert children.runs == 3


def test_another_message_in_its_place_is_not_sent(hospital: Hospital, children: Children) -> None:
    asked = hospital.ask("train")
    start(hospital).answer(asked)
    (first,) = (hospital.root / "outbox").glob("*.sealed")
    start(hospital).answer(hospital.ask("train", round=1))
    (second,) = set((hospital.root / "outbox").glob("*.sealed")) - {first}
    first.write_bytes(second.read_bytes())
    assert refused(lambda: start(hospital).answer(asked)) == "E-ROLLBACK"
    assert children.runs == 2


OLDER = ["ledger.sqlite", "journal.sqlite", "heads.sqlite", "receipts.sqlite", "canaries", "jobs"]


def test_a_message_that_was_signed_after_the_restored_state_is_not_sent_from_it(
    hospital: Hospital, children: Children
) -> None:
    start(hospital).answer(hospital.ask("train"))
    backup = hospital.root.parent / "older"
    shutil.copytree(hospital.root, backup)
    asked = hospital.ask("train", round=1)
    start(hospital).answer(asked)
    # all lists are of one old day; the outbox alone is new
    for part in OLDER:
        remove(hospital, part)
        for source in backup.glob(f"{part}*"):
            place = hospital.root / source.name
            shutil.copytree(source, place) if source.is_dir() else shutil.copy2(source, place)
    assert refused(lambda: start(hospital).answer(asked)) == "E-ROLLBACK"
    assert (children.runs, spent(hospital)) == (2, 1)


@pytest.mark.parametrize("version", ["kept", "lost"])
@pytest.mark.parametrize("left", ["outbox", "groups.sqlite", "canaries", "jobs"])
def test_a_folder_that_lost_all_its_lists_does_not_begin_anew(
    hospital: Hospital, children: Children, left: str, version: str
) -> None:
    start(hospital).answer(hospital.ask("train"))
    start(hospital).answer(hospital.ask("train", model="glow"))
    start(hospital).answer(hospital.ask("synthesize"))
    lists = [*OLDER, "outbox", "groups.sqlite", "weights"]
    if version == "lost":
        lists.append("version")
    for part in lists:
        if part != left and (hospital.root / part).exists():
            remove(hospital, part)
    code = {"kept": "E-ROLLBACK", "lost": "E-STATE-UNPROVEN"}[version]

    def begin_anew() -> None:
        Plans(State(hospital.root), hospital.operator.public_key()).approve(hospital.bundle)
        start(hospital).answer(hospital.ask("train"))

    assert refused(begin_anew) == code
    assert children.runs == 3


# --- receipts ------------------------------------------------------------------------------------


def test_a_receipt_for_an_unknown_head_spends_nothing(
    hospital: Hospital, children: Children
) -> None:
    asked = hospital.ask("train", heads=("1" * 64,))
    assert refused(lambda: start(hospital).answer(asked)) == "E-ROLLBACK"
    assert children.runs == 0


def test_ledger_journal_and_heads_deleted_and_approved_again_meet_the_operators_receipt(
    hospital: Hospital, children: Children
) -> None:
    heads = (commitment(start(hospital).answer(hospital.ask("train")), hospital),)
    for part in (*PARTS, "jobs", "receipts.sqlite"):
        if (hospital.root / part).exists():
            remove(hospital, part)
    start(hospital).plans.approve(hospital.bundle)
    asked = hospital.ask("train", round=1, heads=heads)
    assert refused(lambda: start(hospital).answer(asked)) == "E-ROLLBACK"
    # the receipt stays: an instruction without one does not help
    again = hospital.ask("train", round=1)
    assert refused(lambda: start(hospital).answer(again)) == "E-ROLLBACK"
    assert children.runs == 1


def test_a_backup_from_before_study_one_fails_study_twos_check(
    hospital: Hospital, children: Children, tmp_path: Path
) -> None:
    second = tmp_path / "second"
    second.mkdir()
    write_bundle(write_plan(second, name="second"), hospital.operator, second / "bundle")
    later = Hospital(
        hospital.root, hospital.operator, load_study(second / "study.yaml"), second / "bundle"
    )
    start(hospital).plans.approve(later.bundle)
    copy(hospital, "")
    heads = (commitment(start(hospital).answer(hospital.ask("train")), hospital),)
    put_back(hospital, "")
    # study two has no receipts of its own; the operator's receipts are over all studies
    asked = later.ask("train", heads=heads)
    assert refused(lambda: start(later).answer(asked)) == "E-ROLLBACK"
    assert (children.runs, spent(hospital)) == (1, 0)


def test_a_state_that_goes_on_passes_every_receipt(hospital: Hospital, children: Children) -> None:
    taken: tuple[str, ...] = ()
    questions = [("train", "gan", 0), ("train", "gan", 1), ("train", "glow", 0)]
    for kind, model, number in questions:
        asked = hospital.ask(kind, model=model, round=number, heads=taken)
        taken = (*taken, commitment(start(hospital).answer(asked), hospital))
    images = start(hospital).answer(hospital.ask("synthesize", heads=taken))
    taken = (*taken, commitment(images, hospital))
    closing = hospital.ask("synthesize", round=1, heads=taken, statement={"done": True})
    assert start(hospital).answer(closing) == images
    assert (children.runs, len(set(taken))) == (4, 4)


# --- what a commitment tells ---------------------------------------------------------------------


def test_a_commitment_is_fresh_for_each_message_over_one_state(hospital: Hospital) -> None:
    heads = Heads(start(hospital).state)
    first = heads.take("one")
    assert heads.take("one") == first
    others = {heads.take(f"key {number}") for number in range(20)}
    assert len(others | {first}) == 21


def test_a_commitment_opens_to_its_key_its_head_and_a_nonce_of_its_own(hospital: Hospital) -> None:
    """So the site can prove later what it committed to, and for which message."""
    state = start(hospital).state
    taken = {key: Heads(state).take(key) for key in ("one", "two", "three")}
    secret = hmac.digest(state.pseudonym_bytes(), b"kohort-head-key", "sha256")
    entries = Journal(state.heads).entries()
    for entry in entries:
        opened = {"key": entry.key, "head": entry.data["head"], "nonce": entry.data["nonce"]}
        assert hmac.digest(secret, canonical(opened), "sha256").hex() == taken[entry.key]
    assert len({entry.data["nonce"] for entry in entries}) == 3
    assert all(len(bytes.fromhex(entry.data["nonce"])) == 16 for entry in entries)


def test_a_commitment_needs_the_sites_secret(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who knows the head and the nonce, but not the secret, cannot tell whose it is."""
    monkeypatch.setattr("client.state.head.secrets.token_hex", lambda size: "00" * size)
    state = start(hospital).state
    first = Heads(state).take("one")
    remove(hospital, "heads.sqlite")
    assert Heads(state).take("one") == first  # the same head, nonce and secret
    state.pseudonym_key.write_bytes(bytes(32))
    remove(hospital, "heads.sqlite")
    assert Heads(state).take("one") != first


def test_no_number_that_depends_on_the_ledger_leaves(
    hospital: Hospital, children: Children
) -> None:
    site = start(hospital)
    reply = site.answer(hospital.ask("train"))
    header = Header.model_validate_json(reply.header)
    assert not [name for name in header.statement if "ledger" in name or "seq" in name]
    assert site.ledger().head.split(":")[1].encode() not in b"".join(reply)


# --- the rule itself -----------------------------------------------------------------------------

BEHIND = {
    "one entry more": ({"a": [b"1", b"2"]}, {"a": [b"1", b"2", b"3"]}, ""),
    "the same": ({"a": [b"1"]}, {"a": [b"1"]}, ""),
    "a new part": ({"a": [b"1"]}, {"a": [b"1"], "b": [b"1"]}, ""),
    "one entry fewer": ({"a": [b"1", b"2"]}, {"a": [b"1"]}, "a"),
    "another last entry": ({"a": [b"1", b"2"]}, {"a": [b"1", b"3", b"4"]}, "a"),
    "another first entry": ({"a": [b"1", b"2"]}, {"a": [b"0", b"2", b"3"]}, "a"),
    "entries in another order": ({"a": [b"1", b"2"]}, {"a": [b"2", b"1"]}, "a"),
    "a part lost": ({"a": [b"1"], "b/x": [b"1"]}, {"a": [b"1"]}, "b"),
    "an empty part lost": ({"a": []}, {}, ""),
}


@pytest.mark.parametrize("case", BEHIND, ids=lambda case: case.replace(" ", "-"))
def test_a_state_extends_a_head_or_is_behind_it(case: str) -> None:
    then, now, part = BEHIND[case]
    older = {name: chain(entries) for name, entries in then.items()}
    newer = {name: chain(entries) for name, entries in now.items()}
    assert behind(head_of(older), newer) == part


# where a process may end between a durable write and the next
CRASHES = [
    "client.state.head.Heads.take",
    "client.egress.outbox.atomic_write",
    "client.egress.outbox.digest_of_sealed",
]


@pytest.mark.parametrize("place", CRASHES)
@pytest.mark.parametrize("kind", ["train", "synthesize"])
def test_a_crash_anywhere_is_no_rollback_and_the_same_bytes_leave(
    hospital: Hospital,
    children: Children,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    kind: str,
) -> None:
    class Dies(BaseException):
        """Stands for `kill -9`."""

    def die(*_: object, **__: object) -> None:
        raise Dies

    asked = hospital.ask(kind)
    with monkeypatch.context() as patch:
        patch.setattr(place, die)
        with pytest.raises(Dies):
            start(hospital).answer(asked)
    stored = list((hospital.root / "outbox").glob("*.sealed"))
    kept = [path.read_bytes() for path in stored]
    reply = start(hospital).answer(asked)
    assert [path.read_bytes() for path in stored] == kept
    assert start(hospital).answer(asked) == reply
    assert children.runs == 1


# --- the way out ---------------------------------------------------------------------------------


def test_a_new_site_after_a_loss_begins_with_the_lost_epsilon_as_spent(
    hospital: Hospital, children: Children
) -> None:
    note_loss(State(hospital.root), 10.0)
    asked = hospital.ask("train")
    assert refused(lambda: start(hospital).answer(asked)) == "E-POLICY-CAP"
    assert children.runs == 0
    report = start(hospital).ledger().report(prv=False)
    assert (report.lost, report.remaining) == (10.0, 0.0)
    assert "before a loss: epsilon 10, delta 1e-05 at most" in report.to_text()
    # the hospital decides on more, over both sites together
    more = hospital.site(review="not_required", max_epsilon=30.0)
    more.answer(asked)
    assert more.ledger().report(prv=False).remaining < 20.0
    # and images that rest on k alone stay here: what left before is unknown
    images = hospital.ask("synthesize")
    assert refused(lambda: more.answer(images)) == "E-AFTER-LOSS"
    assert children.runs == 1


@pytest.mark.parametrize(("slack", "code"), [(0.1, ""), (-0.1, "E-CAP")])
def test_the_lost_epsilon_counts_in_every_reservation(
    tmp_path: Path, slack: float, code: str
) -> None:
    event = SubsampledGaussian(0.1, 2.0, 20, 1000, "gan")
    lost = 10.0 - epsilon_pld([event], 1e-5) - slack
    opening = {"delta": 1e-5, "filter_order": 9.0}
    ledger = Ledger.open(tmp_path / "ledger", cap_epsilon=10.0, lost=lost, **opening)
    if code:
        assert refused(lambda: ledger.reserve(event, "0" * 64)) == code
    else:
        found = refused(lambda: ledger.reserve(event, "0" * 64))
        assert found == "E-FILTER"  # a later plan, by Rényi DP: what was lost was a plan too
        Ledger.open(tmp_path / "ledger", cap_epsilon=20.0, **opening).reserve(event, "0" * 64)
    # a loss is marked once, in a new ledger alone
    assert Ledger.open(tmp_path / "ledger", cap_epsilon=20.0, lost=5.0, **opening).lost() == lost
