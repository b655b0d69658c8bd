"""`kohort-server log`: what the consortium did, countersigned by the sites."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from client.fleet.connection import create_node_key
from common.audit_log.log import FILE
from common.errors import PolicyError, RefusedError
from common.privacy.boundary import OPERATOR_LOG
from common.wire import signing, tensors
from common.wire.handover import open_handover, write_handover
from server.operator.certificates import create_authority, load_authority, site_certificate
from server.operator.log import FILE as REPLIES
from server.operator.log import OperatorLog
from server.operator.opening import load_operator_public, open_registry
from server.operator.renewals import keep_certificate
from server.operator.state import ServerState
from server.rounds.loop import run_study, train_round
from tests.federation import Federation, failed
from tests.server.cli.reports import Kohort


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation.create(tmp_path)


def keys(federation: Federation) -> list[Any]:
    return [federation.key.public_key()]


def log_of(federation: Federation) -> OperatorLog:
    return OperatorLog(federation.state.root)


def events(federation: Federation) -> list[str]:
    return [entry.event for entry in log_of(federation).entries()]


def change(path: Path, *statements: str) -> None:
    """Do to a file what nothing in the product does."""
    with closing(sqlite3.connect(path)) as database, database:
        for trigger in ("no_update", "no_delete"):
            database.execute(f"DROP TRIGGER IF EXISTS {trigger}")
        for statement in statements:
            database.execute(statement)


def test_a_study_is_told_from_enrolment_to_its_end_and_countersigned(
    federation: Federation, kohort: Kohort
) -> None:
    federation.run()
    root = federation.state.root
    expected = ["site-enrolled"] * 3 + ["round-closed"] * 4 + ["study-complete"]
    assert events(federation) == expected
    code, output, _ = kohort("log", "--state", root)
    assert code == 0 and len(output.splitlines()) == len(expected)
    code, output, _ = kohort("log", "--state", root, "verify")
    assert code == 0 and "8 entries, each as it was written" in output
    # each round's instructions name the head over all rounds before it
    for name in federation.sites:
        assert f"{name} has countersigned the first 6 of them" in output
    facts = json.loads(kohort("log", "--state", root, "verify", "--json")[1])
    assert (facts["entries"], set(facts["countersigned"])) == (8, set(federation.sites))
    rows = [json.loads(line) for line in kohort("log", "--state", root, "--json")[1].splitlines()]
    assert [row["event"] for row in rows] == expected
    assert kohort("log", "--state", root, "burn")[0] == 2


def test_an_interrupted_study_notes_each_round_once(federation: Federation) -> None:
    run = federation.open()
    train_round(run, federation.grid(), "gan", 0)
    run_study(federation.open(), federation.grid())
    assert events(federation).count("round-closed") == 4


def test_orders_and_decisions_on_sites_are_noted(federation: Federation, kohort: Kohort) -> None:
    root = federation.state.root
    kohort("study", "extend", "small", "--state", root, "--by", "600")
    federation.open().registry.quarantine("hospital-a", "E-GATE-07")
    kohort("sites", "release", "hospital-a", "--state", root)
    kohort("sites", "revoke", "hospital-b", "--state", root)
    assert kohort("sites", "revoke", "hospital-b", "--state", root)[0] == 3
    kohort("study", "abandon", "small", "--state", root)
    kohort("study", "abandon", "small", "--state", root)
    assert events(federation)[3:] == [
        "study-extended",
        "site-quarantined",
        "site-released",
        "site-revoked",
        "study-abandoned",
    ]


def test_a_site_of_a_version_without_the_log_is_asked_without_the_head(
    federation: Federation,
) -> None:
    site = federation.sites["hospital-b"]

    def refuse_head(fields: dict[str, Any], arrays: tensors.Arrays) -> None:
        assert OPERATOR_LOG not in site.asked[-1].statement

    site.forge = refuse_head
    federation.run({"hospital-b": [failed(1000, "E-STATEMENT")]})
    assert "study-complete" in events(federation)
    assert set(log_of(federation).countersigned()) == {"hospital-a", "hospital-c"}
    # nobody is told of a code that mends itself
    codes = federation.open().record.journal.entries()
    assert not [entry for entry in codes if entry.data.get("code") == "E-STATEMENT"]


def test_a_log_that_is_older_than_what_a_site_countersigned_is_refused(
    federation: Federation,
) -> None:
    run = federation.open()
    train_round(run, federation.grid(), "gan", 0)
    old = federation.state.root.parent / "old"
    source = sqlite3.connect(federation.state.root / FILE)
    with closing(source), closing(sqlite3.connect(old)) as target:
        source.backup(target)
    run_study(run, federation.grid())
    for path in federation.state.root.glob("log*"):
        path.unlink()
    shutil.copy(old, federation.state.root / FILE)
    with pytest.raises(PolicyError, match=r"countersigned the head .* never had") as refused:
        log_of(federation).verify(keys(federation))
    assert refused.value.code == "E-ROLLBACK"


@pytest.mark.parametrize(
    "statement",
    [
        """UPDATE entry SET data = replace(data, '"signature": "', '"signature": "x')""",
        "UPDATE entry SET data = '{}'",
        "UPDATE entry SET key = replace(key, 'hospital-', 'hospital-x')",
        "UPDATE entry SET key = (CASE WHEN key LIKE '5%' THEN 6 ELSE 5 END) || substr(key, 2)",
    ],
    ids=["signature", "fields", "another site", "another head"],
)
def test_a_countersignature_that_nobody_gave_is_named(
    federation: Federation, statement: str
) -> None:
    run = federation.open()
    train_round(run, federation.grid(), "gan", 0)
    run.registry.close()
    change(federation.state.root / REPLIES, statement)
    with pytest.raises(RefusedError, match="countersignature of") as refused:
        log_of(federation).verify(keys(federation))
    assert refused.value.code == "E-LOG"


def test_a_log_without_an_end_is_named_by_its_first_missing_entry(
    federation: Federation, kohort: Kohort
) -> None:
    federation.run().registry.close()
    change(federation.state.root / FILE, "DELETE FROM entry WHERE seq > 5")
    code, _, errors = kohort("log", "--state", federation.state.root, "verify")
    assert code == 1 and "entry 6: missing" in errors


def test_no_log_is_no_fault(state: Path, kohort: Kohort) -> None:
    assert "nothing was done here yet" in kohort("log", "--state", state)[1]
    assert kohort("log", "--state", state, "verify")[0] == 0


def test_certificates_authorities_and_keys_are_noted_as_they_change(
    state: Path, kohort: Kohort
) -> None:
    place = ServerState(state)
    for command in (
        ("renew",),
        ("rotate", "operator"),
        ("rotate", "operator", "--finish"),
        ("rotate", "operator", "--finish"),
        ("rollover",),
        ("rollover", "--finish"),
    ):
        code, _, errors = kohort(*command, "--state", state)
        assert code == 0, errors
    with place.open_log() as log:
        entries = log.entries()
    expected = ["certificate-issued", "key-changed", "authority-made", "authority-dropped"]
    assert [entry.event for entry in entries[:4]] == expected
    facts = [entry.facts for entry in entries]
    assert facts[0]["of"] == "server" and facts[0]["ends"].endswith("Z")
    assert facts[1]["new"].split()[:2] == signing.public_text(load_operator_public(place)).split()
    assert facts[2]["authority"] != facts[3]["authority"]
    assert kohort("log", "--state", state, "verify")[0] == 0


def test_a_sites_certificate_and_its_next_signing_key_are_noted(federation: Federation) -> None:
    create_authority(federation.state.authority)
    authority = load_authority(federation.state.authority)
    create_node_key(federation.state.root / "n.key", federation.state.root / "n.pub", "hospital-a")
    public = (federation.state.root / "n.pub").read_text()
    keep_certificate(
        federation.state, "hospital-a", site_certificate(authority, "hospital-a", public)
    )
    old, new = federation.sites["hospital-a"].key, signing.new_key()
    text = write_handover("site", "hospital-a", old, new)
    with open_registry(federation.state) as registry:
        assert registry.hand_over("hospital-a", open_handover(text, "site"))
        assert not registry.hand_over("hospital-a", open_handover(text, "site"))
    assert events(federation)[3:] == ["certificate-issued", "site-key-changed"]
    assert log_of(federation).entries()[3].facts["of"] == "site:hospital-a"


@pytest.mark.parametrize(
    ("statements", "what"),
    [
        (["DELETE FROM entry WHERE seq > 5"], "entry 6: missing"),
        (["UPDATE entry SET data = replace(data, 'gan', 'gun') WHERE seq = 4"], "entry 4: it is"),
    ],
    ids=["without its end", "changed"],
)
def test_a_server_does_not_start_with_a_damaged_log(
    federation: Federation, kohort: Kohort, statements: list[str], what: str
) -> None:
    federation.run().registry.close()
    bundle, root = federation.state.root.parent / "bundle", federation.state.root
    # without a configuration it stops right behind the check
    code, _, errors = kohort("run", bundle, "--state", root)
    assert "server.yaml" in errors and "E-LOG" not in errors
    change(root / FILE, *statements)
    code, _, errors = kohort("run", bundle, "--state", root)
    assert code == 1 and what in errors and "hint: put the newest copy" in errors


def test_a_server_does_not_start_with_a_log_that_is_older_than_a_countersignature(
    federation: Federation, kohort: Kohort
) -> None:
    federation.run().registry.close()
    root = federation.state.root
    for path in root.glob("log*"):
        path.unlink()
    code, _, errors = kohort("run", root.parent / "bundle", "--state", root)
    assert code == PolicyError.exit_code and "which this log never had" in errors
