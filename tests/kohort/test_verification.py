"""`kohort verify`: one altered byte anywhere is found, and the file is named."""

import shutil
from pathlib import Path

import pytest

from common.errors import RefusedError
from common.wire import signing
from kohort.trust import read_trust
from kohort.verification import verify
from tests.releases import small_release


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_release(tmp_path_factory.mktemp("good"))[0]


@pytest.fixture
def release(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "copy"))


def test_an_untouched_release_verifies(release: Path) -> None:
    manifest = verify(release)
    assert manifest.images == 12
    assert verify(release, trust=read_trust([manifest.operator_key]))


def test_one_altered_byte_in_any_file_is_found_and_the_file_named(release: Path) -> None:
    for path in sorted(p for p in release.rglob("*") if p.is_file()):
        name = path.relative_to(release).as_posix()
        original = path.read_bytes()
        for at in (
            {len(original) // 2}
            if name.startswith("data/")
            else {0, len(original) // 2, len(original) - 1}
        ):
            path.write_bytes(original[:at] + bytes([original[at] ^ 1]) + original[at + 1 :])
            with pytest.raises(RefusedError) as caught:
                verify(release)
            assert name in str(caught.value), f"byte {at} of {name}: {caught.value}"
        path.write_bytes(original)
    verify(release)


def test_every_byte_of_signature_and_signers_line_counts(release: Path) -> None:
    for name in ("SHA256SUMS.sig", "allowed_signers"):
        original = (release / name).read_bytes()
        for at in range(len(original)):
            (release / name).write_bytes(
                original[:at] + bytes([original[at] ^ 1]) + original[at + 1 :]
            )
            with pytest.raises(RefusedError, match=name):
                verify(release)
        (release / name).write_bytes(original)


@pytest.mark.parametrize(
    "name",
    [
        "extra.txt",
        "data/train/none/evil.py",
        "data/train/none/99999.png",
        "models/x.pkl",
        ".hidden",
    ],
)
def test_a_file_that_nobody_signed_is_refused(release: Path, name: str) -> None:
    (release / name).parent.mkdir(exist_ok=True)
    (release / name).write_bytes(b"x")
    with pytest.raises(RefusedError, match=name):
        verify(release)


def test_a_missing_file_is_named(release: Path) -> None:
    (release / "index.html").unlink()
    with pytest.raises(RefusedError, match=r"index\.html: missing"):
        verify(release)


def test_a_link_is_refused(release: Path) -> None:
    (release / "index.html").unlink()
    (release / "index.html").symlink_to("README.md")
    with pytest.raises(RefusedError, match=r"index\.html: a release holds plain files"):
        verify(release)


def test_another_trusted_key_is_refused(release: Path) -> None:
    other = signing.public_text(signing.new_key().public_key())
    with pytest.raises(RefusedError, match="you trust"):
        verify(release, trust=read_trust([other]))
    with pytest.raises(RefusedError, match="you trust"):
        verify(release, trust=frozenset({signing.fingerprint(signing.parse_public(other))}))
