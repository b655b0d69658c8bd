"""`kohort-server release --propose`, `sign-off`, `release --publish`, as people type them."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from common.errors import ConfigurationError, RefusedError
from common.wire import signing
from kohort.manifest import read_manifest
from kohort.summary import as_line
from kohort.verdict import judge
from kohort.verification import verify
from tests.federation import Federation
from tests.releases import proposal
from tests.server.cli.reports import Kohort

NAMES = ("hospital-a", "hospital-b", "hospital-c")


def new_key(kohort: Kohort, folder: Path, name: str) -> str:
    """Make a signer's key and return its line of server.yaml."""
    code, output, errors = kohort("sign-off", name, "--key", folder / f"{name}.key", "--new-key")
    assert code == 0, errors
    (line,) = [one.strip() for one in output.splitlines() if one.startswith("    ")]
    assert (folder / f"{name}.key.pub").read_text().strip() == line.partition(": ")[2]
    assert oct((folder / f"{name}.key").stat().st_mode & 0o777) == "0o600"
    return line


def list_signers(state: Path, needed: int, lines: list[str]) -> None:
    """Write the signers into server.yaml."""
    text = (
        (state / "server.yaml")
        .read_text()
        .replace("  sign_offs: 0", f"  sign_offs: {needed}")
        .replace("  signers: {}", "  signers:\n    " + "\n    ".join(lines) + "\n   ")
    )
    (state / "server.yaml").write_text(text)


def test_two_of_three_signers_release_a_study(tmp_path: Path, kohort: Kohort) -> None:
    federation = Federation.create(tmp_path)
    federation.run()
    state = federation.state.root
    if not (state / "server.yaml").exists():
        (state / "server.yaml").write_text(
            "name: demo\nurl: https://localhost:9443\nrelease:\n  sign_offs: 0\n  signers: {}\n"
        )
    list_signers(state, 2, [new_key(kohort, tmp_path, name) for name in NAMES])
    out = ("--state", state, "--out", tmp_path / "out")

    # nothing is published without them
    code, _, errors = kohort("release", tmp_path / "bundle", *out)
    assert code == ConfigurationError.exit_code and "--propose" in errors
    code, output, errors = kohort("release", tmp_path / "bundle", *out, "--propose")
    assert code == 0, errors
    (folder,) = (tmp_path / "out" / "proposed").iterdir()
    digest = output.split("digest ")[1].split()[0]

    # the first signer checks the digest that the operator printed
    def sign(name: str, *more: object) -> tuple[int, str, str]:
        return kohort(
            "sign-off", name, "--release", folder, "--key", tmp_path / f"{name}.key", *more
        )

    code, _, errors = sign("hospital-a", "--digest", "0" * 64)
    assert code == RefusedError.exit_code and "expected 0000" in errors
    code, output, _ = sign("hospital-a", "--digest", digest)
    assert code == 0 and "1 of 2 sign-offs are here" in output
    code, _, errors = kohort("release", "--publish", folder, *out)
    assert code == RefusedError.exit_code
    assert "1 of 2 sign-offs are there: hospital-a" in errors
    assert "not signed off by hospital-b, hospital-c" in errors

    # the second one releases it
    assert sign("hospital-c")[0] == 0
    code, output, errors = kohort("release", "--publish", folder, *out)
    assert code == 0, errors
    released = tmp_path / "out" / folder.name
    assert f"released {released}" in output
    verify(released, require=2)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A proposal and the key file of hospital-a."""
    root = tmp_path_factory.mktemp("made")
    folder, operator, keys = proposal(root, 1, *NAMES)
    signing.save_private(root / "key", keys["hospital-a"])
    signing.save_private(root / "operator", operator)
    return folder, root / "key"


def test_a_signer_signs_what_verifies_under_its_own_name_and_key_alone(
    made: tuple[Path, Path], kohort: Kohort
) -> None:
    folder, key = made
    table = {
        "another signer's name": ("hospital-b", key, "not that of a signer hospital-b"),
        "an unknown name": ("hospital-z", key, "not that of a signer hospital-z"),
        "the operator's key": ("hospital-a", key.with_name("operator"), "not that of a signer"),
    }
    for name, (who, file, said) in table.items():
        code, _, errors = kohort("sign-off", who, "--release", folder, "--key", file)
        assert code == RefusedError.exit_code and said in errors, name
        assert not list(folder.glob("SHA256SUMS.*.sig")), name
    stranger = "SHA256:" + "A" * 43
    code, _, errors = kohort(
        "sign-off", "hospital-a", "--release", folder, "--key", key, "--trust", stranger
    )
    assert code == RefusedError.exit_code and "you trust" in errors
    readme = folder / "README.md"
    text = readme.read_text()
    readme.write_text("changed")
    code, _, errors = kohort("sign-off", "hospital-a", "--release", folder, "--key", key)
    readme.write_text(text)
    assert code == RefusedError.exit_code and "README.md: altered" in errors
    assert not list(folder.glob("SHA256SUMS.*.sig"))
    code, output, errors = kohort("sign-off", "hospital-a", "--release", folder, "--key", key)
    assert code == 0, errors
    assert "12 images of 2 sites" in output
    assert "it claims k = 5 (similar); epsilon 8, delta 1e-05 for updates" in output
    verify(folder)


def test_wrong_arguments_end_with_2_and_a_hint(
    made: tuple[Path, Path], state: Path, tmp_path: Path, kohort: Kohort
) -> None:
    _, key = made
    out = ("--state", state, "--out", tmp_path / "out")
    for arguments in (
        ("sign-off", "hospital-a", "--key", key),
        ("sign-off", "hospital-a", "--key", key, "--release", tmp_path / "nowhere"),
        ("release", *out),
        ("release", tmp_path / "bundle", *out, "--propose"),
    ):
        code, _, errors = kohort(*arguments)
        assert code == ConfigurationError.exit_code, arguments
        assert "hint:" in errors, arguments


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="no ssh-keygen here")
def test_a_key_with_a_passphrase_is_left_to_openssh(
    made: tuple[Path, Path], tmp_path: Path, kohort: Kohort
) -> None:
    folder, _ = made
    path = tmp_path / "closed"
    make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", str(path)]
    subprocess.run(make, check=True)
    code, _, errors = kohort("sign-off", "hospital-a", "--release", folder, "--key", path)
    assert code == ConfigurationError.exit_code
    assert "ssh-keygen -Y sign -n kohort-release-v1" in errors


def test_a_key_is_never_overwritten(tmp_path: Path, kohort: Kohort) -> None:
    new_key(kohort, tmp_path, "hospital-a")
    before = (tmp_path / "hospital-a.key").read_bytes()
    code, _, _ = kohort("sign-off", "hospital-a", "--key", tmp_path / "hospital-a.key", "--new-key")
    assert code != 0
    assert (tmp_path / "hospital-a.key").read_bytes() == before


def test_signers_in_server_yaml_are_distinct_people(
    tmp_path: Path, state: Path, kohort: Kohort
) -> None:
    line = new_key(kohort, tmp_path, "hospital-a").partition(": ")[2]
    own = (state / "keys" / "operator.pub").read_text().strip()
    out = ("--state", state, "--out", tmp_path / "out")
    original = (state / "server.yaml").read_text()
    table = {
        "one key twice": ([f"hospital-a: {line}", f"hospital-b: {line}"], "those of hospital-a"),
        "the operator's": ([f"hospital-a: {own}"], "those of operator"),
        "no key": (["hospital-a: ssh-rsa AAAA"], "release.signers.hospital-a"),
        "too few": (["hospital-a: " + line], "at most as many as the 1 signers"),
    }
    for name, (lines, said) in table.items():
        (state / "server.yaml").write_text(original)
        list_signers(state, 2 if name in ("too few", "one key twice") else 1, lines)
        code, _, errors = kohort("release", "--publish", tmp_path, *out)
        assert code == ConfigurationError.exit_code and said in errors, (name, errors)


def test_json_of_verify_names_the_signers(made: tuple[Path, Path]) -> None:
    folder, _ = made
    facts = json.loads(as_line(judge(folder, read_manifest(folder), frozenset())))
    assert [one["name"] for one in facts["signers"]] == list(NAMES)
