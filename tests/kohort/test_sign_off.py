"""Sign-offs (step 7): who counts, who does not, and what refuses the release."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from common.errors import ConfigurationError, RefusedError
from common.wire import signing
from kohort import layout
from kohort.commands import app
from kohort.sign_off import read_sign_offs
from kohort.trust import read_trust
from kohort.verification import verify
from tests.kohort.test_resealed import reseal
from tests.releases import proposal, sign_off, small_release

NAMES = ("hospital-a", "hospital-b", "hospital-c")


@dataclass(frozen=True)
class Case:
    """A proposal that needs two of three signers, and everybody's key."""

    folder: Path
    operator: Ed25519PrivateKey
    keys: dict[str, Ed25519PrivateKey]

    def sign(self, *names: str) -> Case:
        for name in names:
            sign_off(self.folder, name, self.keys[name])
        return self

    def fingerprint(self, name: str) -> str:
        return signing.fingerprint(self.keys[name].public_key())

    def trust(self, *names: str) -> frozenset[str]:
        return frozenset(self.fingerprint(name) for name in names)


@pytest.fixture(scope="module")
def proposed(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(*proposal(tmp_path_factory.mktemp("proposed"), 2, *NAMES))


@pytest.fixture
def case(proposed: Case, tmp_path: Path) -> Case:
    folder = Path(shutil.copytree(proposed.folder, tmp_path / "copy"))
    return Case(folder, proposed.operator, proposed.keys)


# who signed, --require, --trust, whether it verifies
COUNTS: dict[str, tuple[tuple[str, ...], int | None, tuple[str, ...] | None, bool]] = {
    "nobody has signed": ((), None, None, False),
    "one of the two that the release needs": (("hospital-a",), None, None, False),
    "the two that the release needs": (("hospital-a", "hospital-c"), None, None, True),
    "all three": (NAMES, None, None, True),
    "a signer looks at the proposal": ((), 0, None, True),
    "the reader needs fewer": (("hospital-b",), 1, None, True),
    "the reader needs more": (("hospital-a", "hospital-b"), 3, None, False),
    "two trusted": (("hospital-a", "hospital-b"), 2, NAMES, True),
    "one of the two is not trusted": (
        ("hospital-a", "hospital-b"), 2, ("hospital-a", "hospital-c"), False,
    ),
    "one trusted is enough for one": (("hospital-a", "hospital-b"), 1, ("hospital-b",), True),
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTS)
def test_distinct_sign_offs_are_counted(case: Case, name: str) -> None:
    signed, require, trusted, verifies = COUNTS[name]
    case.sign(*signed)
    trust = frozenset() if trusted is None else case.trust(*trusted)
    if verifies:
        verify(case.folder, trust=trust, require=require)
        return
    with pytest.raises(RefusedError) as caught:
        verify(case.folder, trust=trust, require=require)
    assert caught.value.code == "E-SIGN-OFF"


def test_what_is_missing_is_named(case: Case) -> None:
    case.sign("hospital-b")
    with pytest.raises(RefusedError, match=r"1 of 2 sign-offs are there: hospital-b") as caught:
        verify(case.folder)
    assert caught.value.hint == "not signed off by hospital-a, hospital-c"
    with pytest.raises(RefusedError) as caught:
        verify(case.folder, trust=case.trust("hospital-a"), require=1)
    assert f"not in --trust: hospital-b {case.fingerprint('hospital-b')}" in caught.value.hint


def test_the_operators_own_signature_is_no_sign_off(case: Case) -> None:
    case.sign("hospital-a")
    operator = signing.fingerprint(case.operator.public_key())
    with pytest.raises(RefusedError) as caught:
        verify(case.folder, trust=frozenset({operator}) | case.trust(*NAMES), require=2)
    assert caught.value.code == "E-SIGN-OFF"


def test_with_trusted_signers_the_operator_need_not_be_trusted(case: Case) -> None:
    case.sign("hospital-a", "hospital-b")
    trust = case.trust("hospital-a", "hospital-b")
    verify(case.folder, trust=trust, require=2)
    with pytest.raises(RefusedError, match="you trust"):
        verify(case.folder, trust=trust)


def by_a_stranger(case: Case) -> None:
    sign_off(case.folder, "hospital-z", signing.new_key())


def by_another_key(case: Case) -> None:
    sign_off(case.folder, "hospital-c", signing.new_key())


def by_one_person_twice(case: Case) -> None:
    sign_off(case.folder, "hospital-c", case.keys["hospital-a"])


def by_the_operator(case: Case) -> None:
    sign_off(case.folder, "operator", case.operator)


def for_another_purpose(case: Case) -> None:
    sign_off(case.folder, "hospital-c", case.keys["hospital-c"], signing.PLAN)


def over_other_bytes(case: Case) -> None:
    target = case.folder / layout.sign_off_file("hospital-c")
    target.write_bytes(signing.sign(case.keys["hospital-c"], signing.RELEASE, b"other bytes"))


def in_another_spelling(case: Case) -> None:
    target = sign_off(case.folder, "hospital-c", case.keys["hospital-c"])
    target.write_bytes(target.read_bytes() + b"\n")


def that_is_none(case: Case) -> None:
    (case.folder / layout.sign_off_file("hospital-c")).write_bytes(b"\xff")


WRONG: list[Callable[[Case], None]] = [
    by_a_stranger, by_another_key, by_one_person_twice, by_the_operator, for_another_purpose,
    over_other_bytes, in_another_spelling, that_is_none,
]  # fmt: skip


@pytest.mark.parametrize("put", WRONG, ids=lambda put: put.__name__)
def test_a_wrong_signature_refuses_the_release_though_enough_others_hold(
    case: Case, put: Callable[[Case], None]
) -> None:
    case.sign("hospital-a", "hospital-b")
    put(case)
    for require in (None, 0, 1):
        with pytest.raises(RefusedError, match=r"SHA256SUMS\.[a-z-]+\.sig") as caught:
            verify(case.folder, require=require)
        assert caught.value.code == "E-SIGNER"


@pytest.mark.parametrize(
    "name", ["SHA256SUMS.A.sig", "SHA256SUMS..sig", "data/SHA256SUMS.hospital-a.sig", "a.sig"]
)
def test_no_other_file_passes_as_a_signature(case: Case, name: str) -> None:
    case.sign("hospital-a", "hospital-b")
    (case.folder / name).write_bytes(b"x")
    with pytest.raises(RefusedError, match="not a file that a release may hold"):
        verify(case.folder)


def test_sums_never_list_a_signature(case: Case) -> None:
    case.sign("hospital-a", "hospital-b")
    line = "0" * 64 + "  SHA256SUMS.hospital-a.sig\n"
    with pytest.raises(RefusedError, match="a line is not"):
        layout.parse_sums(line.encode())


def test_a_release_without_signers_takes_no_signature(tmp_path: Path) -> None:
    folder, _ = small_release(tmp_path)
    assert "signers" not in json.loads((folder / layout.MANIFEST).read_text())
    assert (folder / layout.SIGNERS).read_text().count("\n") == 1
    verify(folder)
    with pytest.raises(RefusedError, match="0 of 1 sign-offs"):
        verify(folder, require=1)
    sign_off(folder, "hospital-a", signing.new_key())
    with pytest.raises(RefusedError, match="names no signer hospital-a; known: none"):
        verify(folder)


def signer(name: str, key: Ed25519PrivateKey) -> dict[str, str]:
    return {"name": name, "key": signing.public_text(key.public_key())}


def lists(case: Case) -> dict[str, list[dict[str, str]]]:
    a, b = case.keys["hospital-a"], case.keys["hospital-b"]
    return {
        "one key under two names": [signer("hospital-a", a), signer("hospital-b", a)],
        "one name twice": [
            signer("hospital-a", a),
            signer("hospital-a", b),
            signer("hospital-c", case.keys["hospital-c"]),
        ],
        "the operator's key": [signer("hospital-a", a), signer("hospital-b", case.operator)],
        "the operator's name": [signer("hospital-a", a), signer("operator", b)],
        "fewer than are needed": [signer("hospital-a", a)],
        "a line that is no key": [
            signer("hospital-a", a),
            {"name": "hospital-b", "key": "ssh-ed25519 AAAA"},
        ],
    }


LISTS = {
    "one key under two names": "hospital-b: expected a name and a key of its own",
    "one name twice": "names a signer twice",
    "the operator's key": "hospital-b: expected a name and a key of its own, got those of operator",
    "the operator's name": "operator: expected a name and a key of its own",
    "fewer than are needed": "needs 2 sign-offs, names 1 signers",
    "a line that is no key": "signer hospital-b: not an OpenSSH public key line",
}


@pytest.mark.parametrize("name", LISTS)
def test_a_manifest_whose_signers_are_not_distinct_people_is_refused(case: Case, name: str) -> None:
    listed = lists(case)[name]
    reseal(case.folder, case.operator, lambda folder: None, signers=listed)
    manifest = layout.signers_text(
        "small",
        signing.public_text(case.operator.public_key()),
        {one["name"]: one["key"] for one in listed},
    )
    (case.folder / layout.SIGNERS).write_text(manifest)
    with pytest.raises(RefusedError, match=LISTS[name]) as caught:
        verify(case.folder, require=0)
    assert caught.value.code == "E-SIGNER"


def test_openssh_signs_and_checks_a_sign_off(case: Case, tmp_path: Path) -> None:
    program = shutil.which("ssh-keygen")
    if program is None:
        pytest.skip("no ssh-keygen here")
    key = tmp_path / "key"
    signing.save_private(key, case.keys["hospital-a"])
    sums = (case.folder / layout.SUMS).read_bytes()
    made = subprocess.run(
        [program, "-Y", "sign", "-n", signing.RELEASE, "-f", str(key)],
        input=sums, capture_output=True, check=True,
    )  # fmt: skip
    target = case.folder / layout.sign_off_file("hospital-a")
    target.write_bytes(made.stdout)
    verify(case.folder, require=1)
    subprocess.run(
        [program, "-Y", "verify", "-f", str(case.folder / layout.SIGNERS), "-I",
         "hospital-a@small", "-n", signing.RELEASE, "-s", str(target)],
        input=sums, capture_output=True, check=True,
    )  # fmt: skip


def test_sign_offs_are_read_in_order_of_name(case: Case) -> None:
    case.sign("hospital-c", "hospital-a")
    manifest = verify(case.folder)
    found = read_sign_offs(case.folder, manifest, (case.folder / layout.SUMS).read_bytes())
    assert [one.name for one in found] == ["hospital-a", "hospital-c"]


def test_verify_says_who_signed_and_what_is_missing(case: Case, tmp_path: Path) -> None:
    trusted = tmp_path / "signers"
    lines = [signing.public_text(case.keys[name].public_key(), name) for name in NAMES]
    trusted.write_text("# from the consortium's web page\n" + "\n".join(lines) + "\n")
    command = ["verify", str(case.folder), "--require", "2", "--trust", str(trusted)]
    case.sign("hospital-a")
    refused = CliRunner().invoke(app, command)
    assert isinstance(refused.exception, RefusedError)
    case.sign("hospital-b")
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0
    assert f"signed off by hospital-a {case.fingerprint('hospital-a')}" in done.stdout
    assert "sign-offs: 2 are there; the release needs 2 of 3" in done.stdout
    done = CliRunner().invoke(app, [*command, "--json"])
    assert json.loads(done.stdout)["signed_off"] == ["hospital-a", "hospital-b"]


def trust_lines(case: Case) -> dict[str, str]:
    key = signing.public_text(case.keys["hospital-a"].public_key())
    return {
        "a fingerprint": case.fingerprint("hospital-a"),
        "a key line": key,
        "a key line with a name": f"{key} somebody",
        "a line of allowed_signers": layout.signers_line("hospital-a@small", key).strip(),
        "what ssh-keygen -l prints": f"256 {case.fingerprint('hospital-a')} a (ED25519)",
    }


def test_a_trusted_key_is_given_in_any_usual_form(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "trusted"
    for name, text in trust_lines(case).items():
        path.write_text(f"\n# {name}\n{text}\n")
        assert read_trust([text]) == read_trust([str(path)]) == case.trust("hospital-a"), name


@pytest.mark.parametrize(
    "text", ["", "# nobody\n", "ssh-rsa AAAA\n", "SHA256:short\n", "ssh-ed25519 !\n", "\xff\n"]
)
def test_a_file_that_names_nobody_is_no_trust(tmp_path: Path, text: str) -> None:
    path = tmp_path / "trusted"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigurationError):
        read_trust([str(path)])
    with pytest.raises(ConfigurationError):
        read_trust([str(tmp_path / "nowhere")])
