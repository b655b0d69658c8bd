"""Every command says what is wrong with its arguments, and ends with that fault's exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from client.state.private import close_to_others
from common.storage import heartbeat
from common.storage.lock import FolderLock
from tests.client.cli.typing_commands import Cli


@dataclass(frozen=True)
class Place:
    """A site that has joined, and files to give to its commands."""

    root: Path
    state: Path
    bundle: Path

    def file(self, name: str, data: bytes) -> Path:
        """Write a file."""
        path = self.root / name
        path.write_bytes(data)
        return path

    def join_file(self, **changes: object) -> Path:
        """Write this site's join file with other fields."""
        fields = json.loads((self.state / "membership.json").read_text())
        return self.file("changed.join.json", json.dumps(fields | changes).encode())

    def init(self, site: str = "hospital-b", state: object = "", **options: object) -> list[object]:
        """`init` with one thing changed."""
        given: dict[str, object] = {"data": self.root / "data", **options}
        command: list[object] = ["init", "--state", state or self.root / "new", "--site", site]
        for name, value in given.items():
            command += [f"--{name}", value]
        return command

    def site_yaml(self, old: str, new: str) -> None:
        """Change site.yaml."""
        path = self.state / "site.yaml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))


@pytest.fixture
def place(joined: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("USER", "")
    # as the program itself leaves it: these tests call its commands inside their own process
    close_to_others(joined[0])
    return Place(tmp_path, *joined)


Case = tuple[Callable[[Place], list[object]], int, str]
# what is wrong -> the command, its exit code, what its error says
WRONG: dict[str, Case] = {
    "a name with a blank": (lambda p: p.init("A B"), 2, "--site 'A B': expected a-z"),
    "no name": (lambda p: p.init(""), 2, "--site '': expected a-z"),
    "a name that is a path": (lambda p: p.init("../x"), 2, "--site '../x': expected a-z"),
    "a data folder that is not there": (
        lambda p: p.init(data=p.root / "gone"),
        2,
        "no such folder",
    ),
    "a data folder that is a file": (
        lambda p: p.init(data=p.file("f", b"x")),
        2,
        "no such folder",
    ),
    "labels that are not there": (
        lambda p: p.init(labels=p.root / "gone.csv"),
        2,
        "gone.csv: no such file",
    ),
    "a state folder that is a file": (
        lambda p: p.init(state=p.file("f", b"x")),
        2,
        "is a file",
    ),
    "a state folder below a file": (
        lambda p: p.init(state=p.file("f", b"x") / "state"),
        5,
        "cannot create",
    ),
    "a state folder where nothing can be written": (
        lambda p: p.init(state="/proc/kohort"),
        5,
        "cannot create",
    ),
    "no option": (lambda p: ["init"], 2, "Missing option"),
    "a join file that is not there": (
        lambda p: ["join", "--state", p.state, p.root / "gone"],
        2,
        "gone: no such file",
    ),
    "a join file that is a folder": (
        lambda p: ["join", "--state", p.state, p.root],
        2,
        "is a directory",
    ),
    "an empty join file": (
        lambda p: ["join", "--state", p.state, p.file("f", b"")],
        2,
        "not a join file",
    ),
    "a join file of bytes": (
        lambda p: ["join", "--state", p.state, p.file("f", bytes(range(256)))],
        2,
        "not a join file",
    ),
    "a join file of another shape": (
        lambda p: ["join", "--state", p.state, p.file("f", b"[1, 2]")],
        2,
        "not a join file",
    ),
    "a huge join file": (
        lambda p: ["join", "--state", p.state, p.file("f", b" " * (3 << 20))],
        1,
        "larger than",
    ),
    "a join file whose server has no port": (
        lambda p: ["join", "--state", p.state, p.join_file(server_url="https://kohort.test")],
        2,
        "server address 'https://kohort.test': it names no port; expected https://HOST:PORT",
    ),
    "an address without TLS": (
        lambda p: ["join", "--state", p.state, p.join_file(server_url="http://a")],
        2,
        "server_url: expected https://HOST:PORT without a path, got 'http://a'",
    ),
    "an address with a wrong port": (
        lambda p: ["join", "--state", p.state, p.join_file(server_url="https://a:99999")],
        2,
        "expected https://HOST:PORT",
    ),
    "an address that is none": (
        lambda p: ["join", "--state", p.state, p.join_file(server_url="https://[x")],
        2,
        "expected https://HOST:PORT",
    ),
    "an operator's key that is none": (
        lambda p: ["join", "--state", p.state, p.join_file(operator_key="ssh-ed25519 AAAA")],
        2,
        "operator_key is not a public key",
    ),
    "a CA that is none": (
        lambda p: ["join", "--state", p.state, p.join_file(ca="")],
        2,
        "ca is not a certificate",
    ),
    "a certificate that is none": (
        lambda p: ["join", "--state", p.state, p.join_file(client_certificate="é")],
        2,
        "client_certificate is not a certificate",
    ),
    "a join file of another site": (
        lambda p: ["join", "--state", p.state, p.join_file(site="hospital-z")],
        2,
        "is for site hospital-z",
    ),
    "a plan folder that is not there": (
        lambda p: ["approve", "--state", p.state, p.root / "gone"],
        2,
        "expected a plan bundle",
    ),
    "a plan folder that is a file": (
        lambda p: ["approve", "--state", p.state, p.file("f", b"x")],
        2,
        "expected a plan bundle",
    ),
    "a plan folder without a plan": (
        lambda p: ["approve", "--state", p.state, p.root],
        2,
        "expected a plan bundle",
    ),
    "ingest before a plan": (lambda p: ["ingest", "--state", p.state], 3, "no plan is approved"),
    "run before a plan": (lambda p: ["run", "--state", p.state], 3, "no plan is approved"),
    "a decision without a name": (
        lambda p: ["review", "--state", p.state, "aa", "--approve"],
        2,
        "needs the reviewer's name",
    ),
    "a decision with a blank name": (
        lambda p: ["review", "--state", p.state, "--reject", "--reviewer", " "],
        2,
        "needs the reviewer's name",
    ),
    "a batch that is not there": (
        lambda p: ["review", "--state", p.state, "aa", "--approve", "--reviewer", "R"],
        2,
        "0 batches match 'aa'",
    ),
    "both decisions": (
        lambda p: ["review", "--state", p.state, "--approve", "--reject"],
        2,
        "not both",
    ),
    "a ledger before the first round": (
        lambda p: ["ledger", "--state", p.state],
        2,
        "there is no ledger",
    ),
    "a ledger command that is none": (
        lambda p: ["ledger", "--state", p.state, "burn"],
        2,
        "expected `verify`",
    ),
    "a release folder that is not there": (
        lambda p: ["utility", "--state", p.state, p.root / "gone"],
        2,
        "gone: no such folder",
    ),
    "a release folder that is none": (
        lambda p: ["utility", "--state", p.state, p.root / "data"],
        1,
        "not a file that a release may hold",
    ),
    "privatize before a plan": (
        lambda p: ["privatize", "--state", p.state, p.root / "data", p.root / "out"],
        2,
        "0 approved plans with a flow",
    ),
    "a number that is none": (
        lambda p: ["privatize", "--state", p.state, "in", "out", "--epsilon", "much"],
        2,
        "--epsilon",
    ),
    "a command that is none": (lambda p: ["frobnicate"], 2, "No such command"),
    "an option that is none": (lambda p: ["status", "--frobnicate"], 2, "No such option"),
}


def assert_words(ended: tuple[int, str, str], code: int, words: str) -> None:
    """The command ended with the code, and named the fault and what to do."""
    found, _, errors = ended
    assert found == code, errors
    assert words in errors
    assert errors.startswith("kohort-site: error: ")
    assert "kohort-site: hint: " in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_argument_is_named(case: str, place: Place, cli: Cli) -> None:
    command, code, words = WRONG[case]
    assert_words(cli(*command(place)), code, words)
    assert not (place.root / "new" / "site.yaml").exists()


COMMANDS = {
    "join": ["x.json"],
    "approve": ["bundle"],
    "ingest": [],
    "run": [],
    "review": [],
    "utility": ["release"],
    "privatize": ["in", "out"],
    "ledger": [],
    "status": [],
    "check": ["--offline"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_is_no_site_is_named_by_every_command(
    command: str, cli: Cli, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    for state, words in (
        (tmp_path / "nowhere", "not the state folder of a site"),
        (tmp_path, "not the state folder of a site"),
        (file, "is a file"),
    ):
        assert_words(cli(command, "--state", state, *COMMANDS[command]), 2, words)
    assert not (tmp_path / "nowhere").exists()


# file of the state folder -> the command that reads it first, its exit code, what its error names
DAMAGED = {
    "site.yaml": (["status"], 2, "site.yaml"),
    "membership.json": (["status"], 2, "membership.json: not a join file"),
    "journal.sqlite": (["status"], 5, "journal.sqlite"),
    "keys/node.key": (["check", "--offline"], 2, "node.key: not an unencrypted private key"),
    "keys/sign.key": (["check", "--offline"], 2, "sign.key: not an unencrypted"),
    "keys/pseudonym.key": (["check", "--offline"], 2, "pseudonym.key"),
    "ca.crt": (["check", "--offline"], 2, "ca.crt"),
    "node.crt": (["check", "--offline"], 2, "node.crt"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_of_the_state_folder_is_named(name: str, place: Place, cli: Cli) -> None:
    (command, *options), code, words = DAMAGED[name]
    (place.state / name).write_bytes(b"\xffnot what it was\n" * 40)
    # a database that was not closed yet would be read from its side file
    for side in ("-wal", "-shm"):
        (place.state / (name + side)).unlink(missing_ok=True)
    found, _, errors = cli(command, "--state", place.state, *options)
    assert found == code, errors
    assert words in errors


def test_a_damaged_heartbeat_of_a_running_daemon_counts_as_none(place: Place, cli: Cli) -> None:
    (place.state / heartbeat.FILE).write_bytes(b"\xffnot what it was\n" * 40)
    with FolderLock(place.state / heartbeat.LOCK, "kohort-site run"):
        found, said, _ = cli("status", "--state", place.state)
    assert found == 0
    assert "UNRESPONSIVE" in said
    # of one that does not run, nothing is read
    found, said, _ = cli("status", "--state", place.state)
    assert found == 0
    assert "daemon not running" in said


@pytest.mark.parametrize("proxy", ["foo", "http://", "http://a:999999", "ftp://a", "http://u:p@"])
def test_a_proxy_that_is_no_address_is_named_without_its_password(
    proxy: str, place: Place, cli: Cli
) -> None:
    place.site_yaml("network:\n  proxy: null", f'network:\n  proxy: "{proxy}"')
    found, _, errors = cli("check", "--state", place.state)
    assert found == 2
    assert "site.yaml: network.proxy: expected http://HOST:PORT" in errors
    assert "u:p" not in errors


def test_a_data_folder_and_labels_that_have_gone_are_named(place: Place, cli: Cli) -> None:
    place.site_yaml("/data", "/gone")
    place.site_yaml("labels.csv", "no-labels.csv")
    found, _, errors = cli("check", "--state", place.state, "--offline")
    assert found == 2
    assert "gone: no such folder" in errors
    assert "no-labels.csv: no such file" in errors
