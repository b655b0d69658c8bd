"""`kohort-site init` and `join`, as typed."""

from __future__ import annotations

import base64
import json
import re
import shutil
from pathlib import Path

import pytest

from client.fleet.health import STATES
from client.state.folder import State
from client.state.membership import Membership
from client.state.records import epsilon_lost
from common.wire import signing
from tests.client.cli.typing_commands import Cli


def test_keys_are_readable_by_their_owner_alone(joined: tuple[Path, Path], cli: Cli) -> None:
    state, _ = joined
    for name in ("node.key", "sign.key", "pseudonym.key"):
        assert (state / "keys" / name).stat().st_mode & 0o077 == 0
    (state / "keys" / "sign.key").chmod(0o644)
    code, _, err = cli("check", "--state", state)
    assert code == 2
    assert "readable by others" in err


def test_an_existing_folder_is_closed_to_others(cli: Cli, tmp_path: Path) -> None:
    state = tmp_path / "open"
    state.mkdir(mode=0o755)
    (tmp_path / "data").mkdir(exist_ok=True)
    code = cli("init", "--state", state, "--site", "hospital-z", "--data", tmp_path / "data")[0]
    assert code == 0
    assert state.stat().st_mode & 0o777 == 0o700


def test_a_second_init_changes_nothing(joined: tuple[Path, Path], cli: Cli, tmp_path: Path) -> None:
    state, _ = joined
    before = {path: path.read_bytes() for path in state.rglob("*") if path.is_file()}
    code, _, err = cli("init", "--state", state, "--site", "other", "--data", tmp_path / "data")
    assert code == 2
    assert "is a site already" in err
    assert {path: path.read_bytes() for path in state.rglob("*") if path.is_file()} == before


def test_a_join_file_for_another_site_or_key_is_refused(
    joined: tuple[Path, Path], cli: Cli, tmp_path: Path
) -> None:
    state, _ = joined
    data = json.loads((state / "membership.json").read_text())
    other = tmp_path / "other.json"
    other.write_text(json.dumps(data | {"site": "hospital-b"}))
    assert cli("join", "--state", state, other)[0] == 2
    assert (
        cli(
            "init", "--state", tmp_path / "two", "--site", "hospital-a", "--data", tmp_path / "data"
        )[0]
        == 0
    )
    code, _, err = cli("join", "--state", tmp_path / "two", state / "membership.json")
    assert code == 2
    assert "another key" in err
    other.write_text(json.dumps(data | {"server_url": "http://plain"}))
    assert "server_url" in cli("join", "--state", state, other)[2]
    # a certificate of a version or a key that the library refuses in its own way
    for field in ("ca", "client_certificate"):
        other.write_text(json.dumps(data | {field: of_version_9(data[field])}))
        code, _, err = cli("join", "--state", state, other)
        assert code == 2
        assert f"{field} is not a certificate" in err


def of_version_9(pem: str) -> str:
    """A certificate whose version does not exist."""
    begin, *lines, end = pem.strip().splitlines()
    der = base64.b64decode("".join(lines)).replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x08")
    return "\n".join([begin, base64.b64encode(der).decode(), end])


def test_every_file_and_field_that_a_health_state_names_is_in_the_state_folder(
    joined: tuple[Path, Path],
) -> None:
    text = "\n".join(f"{state.text} {state.fix}" for state in STATES.values())
    files = re.findall(r"[\w/]+\.(?:key|crt|json|pub|yaml)\b", text)
    assert {"keys/node.key", "ca.crt", "node.crt", "membership.json"} <= set(files)
    for name in files:
        assert (joined[0] / name).is_file(), name
    assert set(re.findall(r"\b[a-z]+_url\b", text)) <= set(Membership.model_fields)


def test_a_new_site_after_a_loss_says_what_counts_as_spent(cli: Cli, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    state = tmp_path / "new"
    words = ("init", "--state", state, "--site", "hospital-a", "--data", data, "--after-loss")
    for wrong in (0, -1, 101, "nan"):
        code, _, err = cli(*words, wrong)
        assert (code, state.exists()) == (2, False)
        assert "largest policy.max_epsilon" in err
    code, out, _ = cli(*words, 10)
    assert code == 0
    assert "epsilon 10 counts as spent before the loss" in out
    assert epsilon_lost(State(state)) == 10.0
    assert (state / "version").read_text() == "2\n"


def test_another_operators_join_file_is_refused_until_a_person_says_replace(
    joined: tuple[Path, Path], cli: Cli, tmp_path: Path
) -> None:
    state, _ = joined
    before = (state / "membership.json").read_bytes()
    # the same file again changes nothing
    assert cli("join", "--state", state, state / "membership.json")[0] == 0
    fields = json.loads(before)
    other = signing.new_key().public_key()
    fields["operator_key"] = signing.public_text(other, "other")
    file = tmp_path / "other.join.json"
    file.write_text(json.dumps(fields))
    code, _, err = cli("join", "--state", state, file)
    assert code == 3
    assert signing.fingerprint(other) in err and "--replace" in err
    old = signing.parse_public(json.loads(before)["operator_key"])
    assert signing.fingerprint(old) in err
    assert (state / "membership.json").read_bytes() == before
    assert cli("join", "--state", state, file, "--replace")[0] == 0
    assert json.loads((state / "membership.json").read_text())["operator_key"] != old


@pytest.mark.parametrize("left", range(4))
def test_an_init_that_was_cut_short_is_completed_with_the_keys_that_it_made(
    left: int, joined: tuple[Path, Path], cli: Cli, tmp_path: Path
) -> None:
    made = joined[0]
    state = tmp_path / "cut"
    keys = ("pseudonym.key", "node.pub", "node.key", "sign.key")[:left]
    (state / "keys").mkdir(parents=True)
    for name in keys:
        shutil.copyfile(made / "keys" / name, state / "keys" / name)
        (state / "keys" / name).chmod(0o600)
    code = cli("init", "--state", state, "--site", "hospital-a", "--data", tmp_path / "data")[0]
    assert code == 0
    # a public key without its private one is made again
    for name in set(keys) - ({"node.pub"} if "node.key" not in keys else set()):
        assert (state / "keys" / name).read_bytes() == (made / "keys" / name).read_bytes()


def test_half_a_pseudonym_key_is_refused(cli: Cli, tmp_path: Path) -> None:
    state = tmp_path / "half"
    (state / "keys").mkdir(parents=True)
    (state / "keys" / "pseudonym.key").write_bytes(b"half")
    (tmp_path / "data").mkdir()
    code, _, err = cli("init", "--state", state, "--site", "a", "--data", tmp_path / "data")
    assert code == 2
    assert "4 bytes, expected 32" in err
    assert not (state / "site.yaml").exists()
