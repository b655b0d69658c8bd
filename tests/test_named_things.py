"""Every command, option, key and path that a message, hint or document names exists."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import named_things
from tests.named_things import ROOT, VALUE, wrong_in_document, wrong_in_source, wrong_names


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_every_name_in_the_sources_exists() -> None:
    found = []
    for path in named_things.sources():
        found += [f"{relative(path)}:{wrong}" for wrong in wrong_in_source(path.read_text())]
    assert found == []


def test_every_name_in_the_documents_exists() -> None:
    found = []
    for path in named_things.documents():
        # The pages of measurements name options of the benchmarks.
        own = path.parent.name != "measurements"
        wrong = wrong_in_document(path.read_text(), own_options=own)
        found += [f"{relative(path)}: {one}" for one in wrong]
    assert found == []


def test_every_name_in_the_comments_of_the_example_plans_exists() -> None:
    found = []
    for path in named_things.study_files():
        for line in path.read_text().splitlines():
            _, sign, comment = line.partition("#")
            if sign:
                wrong = wrong_names(comment.strip(), code=True)
                found += [f"{relative(path)}: {one}" for one in wrong]
    assert found == []


def test_there_is_something_to_check() -> None:
    assert len(named_things.sources()) > 100
    assert len(named_things.documents()) > 20
    assert named_things.study_files()
    assert {"init", "join", "check"} <= set(named_things.programs()["kohort-site"])
    assert {"--rehearsal", "--until-done"} <= named_things.all_options()
    assert {"policy", "network", "privacy", "synthesis", "listen"} <= named_things.sections()


MESSAGES = {
    "run `kohort-site approves BUNDLE`": "command kohort-site approves",
    "kohort-site approves BUNDLE": "command kohort-site approves",
    "no plan (kohort-site frob)": "command kohort-site frob",
    "ask for kohort-server singn": "command kohort-server singn",
    "`kohort-site run --until-closed`": "option kohort-site run --until-closed",
    "kohort-server run --portal 443": "option kohort-server run --portal",
    "`kohort-site ledger burn`": "action kohort-site ledger burn",
    "use another `server.address`": "key server.address",
    "put it at `identity.certificate`": "key identity.certificate",
    "raise `limits.max_message`": "key limits.max_message",
    "privacy.epsilom is too large": "key privacy.epsilom",
    f"models.{VALUE}.noise": f"key models.{VALUE}.noise",
    "sites[2].naam: unknown": "key sites.naam",
    "see client/egress/gates.py": "path client/egress/gates.py",
    "the steps of gates.py": "file gates.py",
    "written by client.fleet.wires": "module client.fleet.wires",
    "see docs/no-such-page.md": "path docs/no-such-page.md",
}
FINE = (
    "run `kohort-site approve BUNDLE`",
    "this version of kohort-site cannot train it",
    "another kohort-site process uses the ledger",
    "kohort demo releases images",
    "`kohort demo --study vessels --sites 3`",
    "kohort-server run --port 443",
    "`kohort-server sites revoke NAME`",
    "`kohort-site ledger verify`",
    "limits.threads",
    "kohort test vectors",
    f"models.{VALUE}.noise_multiplier is small",
    "sites[2].name: unknown",
    "the policy. It holds",
    "see client/egress/gate.py and tests/contracts/*.py",
    "/var/lib/client/x is a path of the machine",
    "data.csv and release.py",
    "common.wire.app_bundle.fab_hash of `common.errors.Bug`",
    "server.yaml and `index.html` and `os.urandom`",
)


@pytest.mark.parametrize("text", MESSAGES)
def test_a_wrong_name_in_a_message_is_found(text: str) -> None:
    assert MESSAGES[text] in list(wrong_names(text, code=True))


@pytest.mark.parametrize("text", FINE)
def test_a_right_name_in_a_message_is_not_found(text: str) -> None:
    found = [wrong for wrong in wrong_names(text, code=True) if not wrong.startswith("file ")]
    assert found == []


def test_wrong_names_are_found_in_every_kind_of_text() -> None:
    source = '"""See `kohort-site frob`."""\n# see client/none.py\nx = f"set {1} --frob"\n'
    assert list(wrong_in_source(source)) == [
        "3: option --frob",
        "1: command kohort-site frob",
        "2: path client/none.py",
    ]
    document = "`policy.max_epsilom`\n\n```sh\nkohort pull URL --into X\n```\n"
    assert list(wrong_in_document(document)) == [
        "key policy.max_epsilom",
        "option kohort pull --into",
    ]
