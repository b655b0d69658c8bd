"""`verify`, `pull` and `list` say by whom a release is signed, and whether the reader knows."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from kohort import download, signatures
from kohort.commands import app
from kohort.console import run_typer
from kohort.manifest import read_manifest
from tests.kohort.test_download import serving
from tests.releases import proposal, sign_off, small_release

UNCHECKED = "consistent, but signed by a key that you have not checked"


@dataclass(frozen=True)
class Said:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


Kohort = Callable[..., Said]


@pytest.fixture
def kohort(capsys: pytest.CaptureFixture[str]) -> Kohort:
    def call(*arguments: object) -> Said:
        words = [str(word) for word in arguments]
        code = run_typer("kohort", lambda: app(words, standalone_mode=False))
        return Said(code, *capsys.readouterr())

    return call


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_release(tmp_path_factory.mktemp("made"))[0]


@pytest.fixture(scope="module")
def key(release: Path) -> str:
    """The operator's fingerprint."""
    line = read_manifest(release).operator_key
    return signatures.fingerprint(signatures.parse_public(line))


def test_a_key_that_nobody_checked_is_a_warning_with_its_fingerprint(
    kohort: Kohort, release: Path, key: str
) -> None:
    said = kohort("verify", release)
    assert said.code == 0
    assert re.match(rf"{release}: {UNCHECKED}: \d+ files as signed\n", said.out)
    assert f"signed by {key}, dated 2026-11-21 (not checked by you)" in said.out
    assert "verified" not in said.out
    warning, hint = said.err.splitlines()
    assert warning == f"kohort: warning: {release}: {UNCHECKED}: {key}"
    assert hint.startswith("kohort: hint: take the fingerprint from the consortium's own page")
    assert f"kohort verify {release} --trust SHA256:..." in hint


def test_strict_refuses_a_key_that_nobody_checked(kohort: Kohort, release: Path, key: str) -> None:
    for more in ((), ("--json",)):
        said = kohort("verify", release, "--strict", *more)
        assert (said.code, said.out) == (1, "")
        assert said.err.startswith(f"kohort: error: {release}: {UNCHECKED}: {key}\n")
        assert "kohort: hint: take the fingerprint" in said.err


def test_with_trust_it_says_who_signed_and_when(kohort: Kohort, release: Path, key: str) -> None:
    said = kohort("verify", release, "--trust", key, "--strict")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith(f"{release}: verified, signed by whom you trust: ")
    assert f"signed by {key}, dated 2026-11-21 (a key that you trust)" in said.out
    assert "sign-offs: none; its operator alone vouches for it" in said.out


def test_json_carries_whether_the_key_is_trusted(kohort: Kohort, release: Path, key: str) -> None:
    said = kohort("verify", release, "--json")
    facts = json.loads(said.out)
    assert (facts["trusted"], facts["fingerprint"]) == (False, key)
    assert "kohort: warning:" in said.err
    facts = json.loads(kohort("verify", release, "--json", "--trust", key).out)
    assert facts["trusted"] is True


def test_list_says_whether_each_key_is_trusted(kohort: Kohort, release: Path, key: str) -> None:
    folder = release.parent
    assert f"small 1.0.0, 12 images: {UNCHECKED}\n" in kohort("list", "--folder", folder).out
    said = kohort("list", "--folder", folder, "--trust", key)
    assert "12 images: verified, signed by whom you trust\n" in said.out
    other = "SHA256:" + "A" * 43
    for trust, expected in ((key, True), (other, False)):
        said = kohort("list", "--folder", folder, "--json", "--trust", trust)
        assert json.loads(said.out)["trusted"] is expected
    assert "NOT verified: " in json.loads(said.out)["state"]


def test_sign_offs_are_counted_and_each_key_is_named(kohort: Kohort, tmp_path: Path) -> None:
    names = ("hospital-a", "hospital-b", "hospital-c")
    folder, _, keys = proposal(tmp_path, 1, *names)
    for name in names[:2]:
        sign_off(folder, name, keys[name])
    lines = {signer.name: signer.key for signer in read_manifest(folder).signers}
    said = kohort("verify", folder, "--require", 1, "--trust", lines["hospital-b"])
    assert said.code == 0
    words = {line.split()[3]: line for line in said.out.splitlines() if "signed off by" in line}
    assert words["hospital-a"].endswith("(not checked by you)")
    assert words["hospital-b"].endswith("(a key that you trust)")
    assert "dated 2026-11-21 (not checked by you)" in said.out
    assert "sign-offs: 2 are there; the release needs 1 of 3\n" in said.out


def test_pull_warns_refuses_and_trusts_as_verify_does(
    kohort: Kohort, release: Path, key: str, tmp_path: Path
) -> None:
    with serving(release, tmp_path) as url:
        given = ("pull", url, tmp_path / "got", "--ca", tmp_path / "ca.pem")
        said = kohort(*given)
        assert said.code == 0
        assert f"kohort: warning: {tmp_path / 'got'}: {UNCHECKED}: {key}\n" in said.err
        assert kohort(*given, "--strict").code == 1
        said = kohort(*given, "--strict", "--trust", key)
        assert (said.code, said.err) == (0, "")


def test_pull_refuses_another_key_before_it_fetches_a_file(
    kohort: Kohort, release: Path, tmp_path: Path
) -> None:
    other = "SHA256:" + "A" * 43
    with serving(release, tmp_path) as url:
        got = tmp_path / "got"
        said = kohort("pull", url, got, "--ca", tmp_path / "ca.pem", "--trust", other)
    assert said.code == 1
    assert f"you trust {other}" in said.err
    assert {path.name for path in got.iterdir()} == set(download.layout.UNLISTED)


def test_a_certificate_that_nobody_knows_hints_at_ca_and_is_tried_once(
    kohort: Kohort, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "LONGEST_WAIT_S", 3600.0)
    with serving(release, tmp_path) as url:
        said = kohort("pull", url, tmp_path / "got")
        assert said.code == 4
        assert "certificate verify failed: unable to get local issuer certificate" in said.err
        assert "name its certificate: --ca FILE" in said.err
        there = url.replace("localhost", "127.0.0.1")
        said = kohort("pull", there, tmp_path / "got", "--ca", tmp_path / "ca.pem")
        assert said.code == 4
        assert "the certificate is of another host: check the address" in said.err
        assert "--ca" not in said.err


def test_a_ca_file_without_a_certificate_is_named(kohort: Kohort, tmp_path: Path) -> None:
    empty = tmp_path / "ca.pem"
    empty.write_text("none")
    said = kohort("pull", "https://localhost:1", tmp_path / "got", "--ca", empty)
    assert said.code == 2
    assert f"--ca {empty}: holds no certificate" in said.err
    assert "BEGIN CERTIFICATE" in said.err
