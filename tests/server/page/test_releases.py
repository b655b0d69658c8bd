"""What the page believes of a folder of releases: what is signed, and nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.wire import signing
from kohort import layout
from server.page.releases import ReleaseRow, read_releases
from tests.releases import proposal, sign_off

Made = tuple[Path, Ed25519PrivateKey, dict[str, Ed25519PrivateKey]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return proposal(tmp_path_factory.mktemp("made"), 1, "hospital-a", "hospital-b")


@pytest.fixture
def out(made: Made, tmp_path: Path) -> Path:
    """A folder with a proposal, and the same release published."""
    folder = tmp_path / "releases"
    shutil.copytree(made[0], folder / "proposed" / made[0].name)
    shutil.copytree(made[0], folder / made[0].name)
    return folder


def rows(out: Path, made: Made) -> tuple[ReleaseRow, ...]:
    return read_releases(out, [made[1].public_key()])


def test_a_proposal_is_followed_from_its_first_sign_off_to_the_published_release(
    out: Path, made: Made
) -> None:
    proposed, published = rows(out, made)
    assert (proposed.state, proposed.missing, proposed.waiting) == (
        "proposed", 1, ("hospital-a", "hospital-b"),
    )  # fmt: skip
    assert published.state == "published, sign-offs are missing"
    sign_off(proposed.folder, "hospital-b", made[2]["hospital-b"])
    sign_off(published.folder, "hospital-b", made[2]["hospital-b"])
    proposed, published = rows(out, made)
    assert (proposed.state, proposed.signed) == ("ready to publish", ("hospital-b",))
    assert (published.state, published.title) == ("published", "small 1.0.0")


def claim_more(folder: Path) -> None:
    manifest = json.loads((folder / layout.MANIFEST).read_text())
    manifest["images"] = 9999
    (folder / layout.MANIFEST).write_text(json.dumps(manifest))


def sign_by_nobody(folder: Path) -> None:
    sign_off(folder, "hospital-a", signing.new_key())


def lose_the_signature(folder: Path) -> None:
    (folder / layout.SIGNATURE).unlink()


def sign_with_another_key(folder: Path) -> None:
    sums = (folder / layout.SUMS).read_bytes()
    (folder / layout.SIGNATURE).write_bytes(signing.sign(signing.new_key(), signing.RELEASE, sums))


def damage_the_sums(folder: Path) -> None:
    (folder / layout.SUMS).write_bytes(b"\xff" * 100)


ALTERED: list[Callable[[Path], None]] = [
    claim_more, sign_by_nobody, sign_with_another_key, lose_the_signature, damage_the_sums,
]  # fmt: skip


@pytest.mark.parametrize("alter", ALTERED, ids=lambda alter: alter.__name__)
def test_nothing_is_shown_of_a_release_that_is_not_as_signed(
    out: Path, made: Made, alter: Callable[[Path], None]
) -> None:
    alter(out / made[0].name)
    _, published = rows(out, made)
    assert published.problem.startswith("E-")
    assert (published.name, published.images, published.signed) == ("", 0, ())
    assert published.state == "not as signed"
    assert published.title == made[0].name


def test_a_release_by_another_key_is_named(out: Path, made: Made) -> None:
    other = signing.fingerprint(made[1].public_key())
    present = signing.new_key().public_key()
    for row in read_releases(out, [present]):
        assert row.other_key == other
    # a key from which the operator has moved on is its own still
    for row in read_releases(out, [present, made[1].public_key()]):
        assert row.other_key == ""
    assert [row.other_key for row in rows(out, made)] == ["", ""]


def test_a_folder_without_releases_has_none(tmp_path: Path, made: Made) -> None:
    (tmp_path / "a").mkdir()
    assert rows(tmp_path, made) == rows(tmp_path / "nowhere", made) == ()
