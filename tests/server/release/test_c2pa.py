"""A release's C2PA manifest: valid offline, of this release alone, and the same bytes each time."""

import io
import shutil
from pathlib import Path
from typing import Any

import c2pa
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from common.errors import ConfigurationError, RefusedError
from common.wire import signing
from kohort import credentials
from kohort.credentials import OFFLINE, check_credentials
from kohort.layout import CONTACT_SHEET, PROVENANCE
from kohort.manifest import Manifest
from kohort.marks import SOURCE_TYPE
from kohort.verification import verify
from server.release.boxes import Tagged, cbor
from server.release.c2pa import c2pa_manifest, root_certificate
from tests.releases import small_release

Built = tuple[Path, signing.Ed25519PrivateKey, Manifest]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    release, key = small_release(tmp_path_factory.mktemp("built"))
    return release, key, verify(release)


@pytest.fixture
def copy(built: Built, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built[0], tmp_path / "copy"))


def read(data: bytes, sheet: bytes, root: str = "") -> Any:
    """State and codes of failure, as c2pa-python has them; `root` is PEM text to trust."""
    settings: dict[str, Any] = dict(OFFLINE)
    if root:
        settings["trust"] = {"trust_anchors": root}
    context = c2pa.Context(c2pa.Settings.from_dict(settings))
    with c2pa.Reader("image/png", io.BytesIO(sheet), data, context) as reader:
        results = reader.get_validation_results()["activeManifest"]
        return reader.get_validation_state(), [one["code"] for one in results["failure"]]


def test_it_is_valid_and_trusted_by_whoever_trusts_the_operators_root(built: Built) -> None:
    release, key, manifest = built
    data, sheet = (release / PROVENANCE).read_bytes(), (release / CONTACT_SHEET).read_bytes()
    assert read(data, sheet) == ("Valid", ["signingCredential.untrusted"])
    root = root_certificate(key).public_bytes(Encoding.PEM).decode()
    assert read(data, sheet, root) == ("Trusted", [])
    other = root_certificate(signing.new_key()).public_bytes(Encoding.PEM).decode()
    assert read(data, sheet, other) == ("Valid", ["signingCredential.untrusted"])
    names = [name.value for name in root_certificate(key).subject]
    assert names == ["kohort", f"kohort {signing.fingerprint(key.public_key())}"]
    check_credentials(release, manifest)


def test_the_signature_of_the_release_covers_it(copy: Path) -> None:
    data = (copy / PROVENANCE).read_bytes()
    (copy / PROVENANCE).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(RefusedError, match=r"provenance\.c2pa: altered"):
        verify(copy)


def test_the_same_release_and_key_give_the_same_bytes(built: Built) -> None:
    sheet, key = b"sheet", built[1]
    facts = {"name": "a"}
    data = c2pa_manifest("a", sheet, facts, key)
    assert data == c2pa_manifest("a", sheet, facts, key)
    assert data != c2pa_manifest("a", sheet, facts, signing.new_key())
    assert data != c2pa_manifest("a", b"other", facts, key)


@pytest.mark.parametrize("name", [CONTACT_SHEET, "metadata.csv", "reports/pixels.json"])
def test_it_is_of_one_release_alone(name: str, built: Built, copy: Path) -> None:
    data = (copy / name).read_bytes()
    (copy / name).write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    with pytest.raises(RefusedError, match=r"provenance\.c2pa: (does not hold|about another)"):
        check_credentials(copy, built[2])


def test_another_version_is_another_release(built: Built) -> None:
    release, _, manifest = built
    with pytest.raises(RefusedError, match="about another release"):
        check_credentials(release, manifest.model_copy(update={"version": "9.9.9"}))


@pytest.mark.parametrize("word", [SOURCE_TYPE.encode()[-23:], b"small", b"kohort SHA256"])
def test_no_word_of_it_can_be_changed(word: bytes, built: Built, copy: Path) -> None:
    data = (copy / PROVENANCE).read_bytes()
    assert word in data
    (copy / PROVENANCE).write_bytes(data.replace(word, word.swapcase()))
    with pytest.raises(RefusedError, match=r"provenance\.c2pa: "):
        check_credentials(copy, built[2])


def test_a_manifest_that_calls_a_release_a_photograph_is_refused(built: Built, copy: Path) -> None:
    _, key, manifest = built
    sheet = (copy / CONTACT_SHEET).read_bytes()
    facts = credentials.release_facts(copy, manifest.name, manifest.version, manifest.study)
    with pytest.MonkeyPatch.context() as patch:
        camera = SOURCE_TYPE.replace("trainedAlgorithmicMedia", "digitalCapture")
        patch.setattr("server.release.c2pa.SOURCE_TYPE", camera)
        (copy / PROVENANCE).write_bytes(c2pa_manifest("small", sheet, facts, key))
    with pytest.raises(RefusedError, match="does not say that the release is synthetic"):
        check_credentials(copy, manifest)


@pytest.mark.parametrize("data", [b"", b"x" * 100, b"\xff" * 4000])
def test_bytes_that_are_no_manifest_are_refused(data: bytes, built: Built, copy: Path) -> None:
    (copy / PROVENANCE).write_bytes(data)
    with pytest.raises(RefusedError, match=r"provenance\.c2pa: not a C2PA manifest"):
        check_credentials(copy, built[2])


def test_without_c2pa_python_the_message_names_the_extra(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(credentials.importlib, "import_module", absent)
    with pytest.raises(ConfigurationError, match="needs c2pa-python") as caught:
        check_credentials(built[0], built[2])
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("pip install './kohort/kohort[c2pa]'")


# RFC 8949, appendix A
CBOR = {
    0: "00", 23: "17", 24: "1818", 1000: "1903e8", 1000000: "1a000f4240",
    1000000000000: "1b000000e8d4a51000", -1: "20", -1000: "3903e7", None: "f6",
    "": "60", "IETF": "6449455446", b"\1\2\3\4": "4401020304",
}  # fmt: skip


@pytest.mark.parametrize(("value", "expected"), CBOR.items())
def test_cbor_is_that_of_the_standard(value: object, expected: str) -> None:
    assert cbor(value).hex() == expected


def test_cbor_of_nested_values_is_that_of_the_standard() -> None:
    assert cbor([1, [2, 3], [4, 5]]).hex() == "8301820203820405"
    assert cbor({"a": 1, "b": [2, 3]}).hex() == "a26161016162820203"
    assert cbor(Tagged(1, 1363896240)).hex() == "c11a514b67b0"
    for refused in (1.5, True):
        with pytest.raises(TypeError):
            cbor(refused)
