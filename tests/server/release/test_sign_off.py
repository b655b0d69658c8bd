"""A proposed release: built for its signers, published once enough of them have signed it off."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.errors import RefusedError
from common.wire import signing
from kohort import layout
from kohort.verification import verify
from server.operator.config import ReleaseSigning
from server.release.sign_off import publish_proposal
from tests.releases import proposal, sign_off

NAMES = ("hospital-a", "hospital-b", "hospital-c")


class Case:
    """A proposal that needs two of three signers, below releases/proposed."""

    def __init__(
        self, folder: Path, operator: Ed25519PrivateKey, keys: dict[str, Ed25519PrivateKey]
    ):
        self.folder = folder
        self.out = folder.parents[1]
        self.operator = signing.fingerprint(operator.public_key())
        self.keys = keys
        lines = {name: signing.public_text(key.public_key(), name) for name, key in keys.items()}
        self.signers = ReleaseSigning(sign_offs=2, signers=lines)

    def sign(self, *names: str) -> None:
        for name in names:
            sign_off(self.folder, name, self.keys[name])

    def publish(self) -> Path:
        return publish_proposal(self.folder, self.out, self.signers, self.operator)


Made = tuple[Path, Ed25519PrivateKey, dict[str, Ed25519PrivateKey]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return proposal(tmp_path_factory.mktemp("made"), 2, *NAMES)


@pytest.fixture
def case(made: Made, tmp_path: Path) -> Case:
    folder, operator, keys = made
    copy = tmp_path / "releases" / "proposed" / folder.name
    return Case(Path(shutil.copytree(folder, copy)), operator, keys)


def test_a_proposal_waits_apart_and_says_who_must_sign(case: Case) -> None:
    assert case.folder.parent.name == "proposed"
    manifest = json.loads((case.folder / layout.MANIFEST).read_text())
    assert manifest["sign_offs"] == 2
    assert [one["name"] for one in manifest["signers"]] == list(NAMES)
    assert (case.folder / layout.SIGNERS).read_text().count("\n") == 4
    for file in ("index.html", "README.md"):
        text = (case.folder / file).read_text()
        assert "2 of these signers vouch for this release: " + ", ".join(NAMES) in text
    with pytest.raises(RefusedError) as caught:
        verify(case.folder)
    assert caught.value.code == "E-SIGN-OFF"


def test_enough_sign_offs_publish_it_and_later_ones_are_added(case: Case, tmp_path: Path) -> None:
    late = Path(shutil.copytree(case.folder, tmp_path / "late"))
    case.sign("hospital-a", "hospital-c")
    published = case.publish()
    assert published == case.out / case.folder.name and not case.folder.exists()
    verify(published, require=2)
    assert oct(published.stat().st_mode & 0o777) == "0o755"
    # a third signer was on holiday
    case.folder = late
    case.sign(*NAMES)
    assert publish_proposal(late, case.out, case.signers, case.operator) == published
    verify(published, require=3)


def with_one_sign_off(case: Case) -> None:
    case.sign("hospital-b")


def with_two_of_one_person(case: Case) -> None:
    case.sign("hospital-a")
    sign_off(case.folder, "hospital-b", case.keys["hospital-a"])


def with_a_changed_byte(case: Case) -> None:
    case.sign("hospital-a", "hospital-b")
    (case.folder / "README.md").write_text("changed")


def after_a_signer_was_struck_off(case: Case) -> None:
    case.sign("hospital-a", "hospital-b")
    kept = {name: key for name, key in case.signers.signers.items() if name != "hospital-b"}
    case.signers = ReleaseSigning(sign_offs=1, signers=kept)


def after_a_signer_changed_its_key(case: Case) -> None:
    case.sign("hospital-a", "hospital-b")
    other = signing.public_text(signing.new_key().public_key())
    signers = {**case.signers.signers, "hospital-b": other}
    case.signers = ReleaseSigning(sign_offs=2, signers=signers)


def after_more_sign_offs_were_asked(case: Case) -> None:
    case.sign("hospital-a", "hospital-b")
    case.signers = ReleaseSigning(sign_offs=3, signers=case.signers.signers)


def of_another_operator(case: Case) -> None:
    case.sign("hospital-a", "hospital-b")
    case.operator = signing.fingerprint(signing.new_key().public_key())


def beside_a_release_of_other_bytes(case: Case) -> None:
    case.sign("hospital-a", "hospital-b")
    other = case.out / case.folder.name
    other.mkdir()
    (other / layout.SUMS).write_text("other bytes")


REFUSED: dict[Callable[[Case], None], str] = {
    with_one_sign_off: "1 of 2 sign-offs are there: hospital-b",
    with_two_of_one_person: "made by another key",
    with_a_changed_byte: "README.md: altered",
    after_a_signer_was_struck_off: "server.yaml says other signers now",
    after_a_signer_changed_its_key: "server.yaml says other signers now",
    after_more_sign_offs_were_asked: "server.yaml says other signers now",
    of_another_operator: "you trust",
    beside_a_release_of_other_bytes: "with other bytes",
}


@pytest.mark.parametrize("spoil", REFUSED, ids=lambda spoil: spoil.__name__)
def test_a_proposal_is_not_published(case: Case, spoil: Callable[[Case], None]) -> None:
    spoil(case)
    before = {path.name for path in case.out.iterdir()}
    with pytest.raises(RefusedError, match=REFUSED[spoil]):
        case.publish()
    assert {path.name for path in case.out.iterdir()} == before
    assert case.folder.is_dir()


def test_the_same_proposal_again_keeps_its_signatures(tmp_path: Path) -> None:
    from server.release.build import build_release
    from tests.releases import release_inputs

    operator, signer = signing.new_key(), signing.new_key()
    lines = {"hospital-a": signing.public_text(signer.public_key())}
    inputs = replace(
        release_inputs(tmp_path, operator),
        signers=ReleaseSigning(sign_offs=1, signers=lines),
        proposed=True,
    )
    folder = build_release(inputs, tmp_path / "releases", operator)
    signature = sign_off(folder, "hospital-a", signer)
    assert build_release(inputs, tmp_path / "releases", operator) == folder
    assert signature.exists()
    verify(folder)
    # and none is made of what everybody can see
    published = publish_proposal(
        folder, tmp_path / "releases", inputs.signers, signing.fingerprint(operator.public_key())
    )
    with pytest.raises(RefusedError, match="published already"):
        build_release(inputs, tmp_path / "releases", operator)
    verify(published)
    assert not folder.exists()
