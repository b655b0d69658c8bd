"""catalogue.json: what a reader refuses, and what it remembers of the one before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.wire import signing
from kohort import catalogue, seen, signatures
from kohort.catalogue import Catalogue, open_catalogue
from kohort.errors import ConfigurationError, RefusedError
from kohort.seen import accept, cache_folder, read_seen, spell_address
from tests.catalogues import DAY, ENTRY, GONE, NOW, URL, catalogue_fields, sign_catalogue

TRUST_NOBODY: frozenset[str] = frozenset()


@pytest.fixture
def key() -> Ed25519PrivateKey:
    return signing.new_key()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(seen.VARIABLE, str(tmp_path / "cache"))
    return cache_folder()


def is_refused(text: bytes, signature: bytes) -> bool:
    """Whether a catalogue is refused."""
    try:
        open_catalogue(text, signature)
    except RefusedError:
        return True
    return False


def look(key: Ed25519PrivateKey, version: int = 1, **options: Any) -> seen.Seen:
    """Look at the address, which shows this version."""
    changes = options.pop("changes", {})
    text, signature = sign_catalogue(key, catalogue_fields(key, version, **changes))
    settings = {"url": URL, "trust": TRUST_NOBODY, "now": NOW, **options}
    return accept(data=text, signature=signature, **settings)


REFUSED: dict[str, dict[str, Any]] = {
    "another format": {"format": "kohort-catalogue/2"},
    "an unknown key": {"mirror": "https://example.org"},
    "a path that leads up": {"releases": [ENTRY | {"path": "releases/../../etc"}]},
    "a path of another release": {"releases": [ENTRY | {"path": "releases/other-1.0.0"}]},
    "an address as a path": {"releases": [ENTRY | {"path": "https://example.org/small-1.0.0"}]},
    "a name that is a path": {"releases": [ENTRY | {"name": "../small"}]},
    "a version that is no version": {"releases": [ENTRY | {"version": "1.0"}]},
    "a release twice": {"releases": [ENTRY, ENTRY]},
    "a release that is offered and withdrawn": {"withdrawn": [GONE | {"version": "1.0.0"}]},
    "a title that moves the cursor": {"title": "\x1b[2Jeyes"},
    "a title that is read backwards": {"title": "eyes\u202e"},
    "a sentence on two lines": {"withdrawn": [GONE | {"sentence": "a\nb"}]},
    "a reason of its own": {"withdrawn": [GONE | {"reason": "because"}]},
    "an end before the beginning": {"expires": "2026-01-01T00:00:00Z"},
    "a day that does not exist": {"created": "2026-02-31T00:00:00Z"},
    "a version below one": {"version": 0},
    "a version that is true": {"version": True},
    "an endless list": {"releases": [ENTRY] * (catalogue.MOST + 1)},
    "a number that is none": {"releases": [ENTRY | {"epsilon": float("inf")}]},
    "a key that is none": {"operator_key": "ssh-ed25519 AAAA"},
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_catalogue_with_this_is_refused(what: str, key: Ed25519PrivateKey) -> None:
    text, signature = sign_catalogue(key, catalogue_fields(key) | REFUSED[what])
    with pytest.raises(RefusedError, match=r"catalogue\.json"):
        open_catalogue(text, signature)


def test_only_the_key_inside_signs_and_only_as_a_catalogue(key: Ed25519PrivateKey) -> None:
    text, signature = sign_catalogue(key, catalogue_fields(key))
    assert isinstance(open_catalogue(text, signature), Catalogue)
    for name, wrong in {
        "another key": sign_catalogue(signing.new_key(), catalogue_fields(key))[1],
        "another purpose": signing.sign(key, signatures.RELEASE, text),
        "other bytes": sign_catalogue(key, catalogue_fields(key, 2))[1],
        "cut": signature[:-60],
        "nothing": b"",
    }.items():
        assert is_refused(text, wrong), name
    with pytest.raises(RefusedError, match="larger than"):
        open_catalogue(b" " * (catalogue.CAP_BYTES + 1), signature)


def test_an_older_catalogue_is_refused_and_the_newest_stays_known(key: Ed25519PrivateKey) -> None:
    look(key, 7)
    with pytest.raises(
        RefusedError, match=r"shows catalogue 6, and on 2026-12-01 it showed 7"
    ) as e:
        look(key, 6)
    assert e.value.code == "E-CATALOGUE-OLD"
    shown = look(key, 6, accept_old=True)
    assert shown.catalogue.version == 6 and "it showed 7" in shown.warning
    # nothing was forgotten by that
    with pytest.raises(RefusedError, match="it showed 7"):
        look(key, 6)
    assert look(key, 8).warning == ""


def test_two_catalogues_of_one_version_are_refused(key: Ed25519PrivateKey) -> None:
    look(key, 7)
    look(key, 7)
    with pytest.raises(RefusedError, match="another catalogue 7") as e:
        look(key, 7, changes={"withdrawn": []})
    assert e.value.code == "E-CATALOGUE-OLD"
    assert look(key, 7, changes={"withdrawn": []}, accept_old=True).warning
    assert read_seen()[0].catalogue.withdrawn


def test_a_catalogue_that_has_ended_is_refused(key: Ed25519PrivateKey) -> None:
    look(key, 1)
    with pytest.raises(RefusedError, match="ended on 2027-03-01") as e:
        look(key, 1, now=NOW + 90 * DAY)
    assert e.value.code == "E-CATALOGUE-EXPIRED"
    assert "ended on" in look(key, 1, now=NOW + 90 * DAY, accept_old=True).warning


def test_the_first_key_stays_unless_the_reader_names_another(key: Ed25519PrivateKey) -> None:
    other = signing.new_key()
    look(key, 7)
    with pytest.raises(RefusedError, match="before it was SHA256") as e:
        look(other, 8)
    assert e.value.code == "E-CATALOGUE-KEY"
    with pytest.raises(RefusedError, match="you trust"):
        look(other, 8, trust=frozenset({signing.fingerprint(key.public_key())}))
    # at another address it is another catalogue
    assert not look(other, 1, url=URL + "/other").trusted
    # the new key has numbers of its own
    named = look(other, 1, trust=frozenset({signing.fingerprint(other.public_key())}))
    assert named.trusted
    # what the reader has named once is known from then on
    assert look(other, 2).trusted
    assert not look(key, 8).trusted


def test_many_catalogues_are_all_remembered(key: Ed25519PrivateKey, cache: Path) -> None:
    cache.mkdir(parents=True)
    look(key, 7, url=URL + "/one")
    (first,) = cache.glob("*.json")
    text = first.read_bytes()
    for number in range(300):
        (cache / f"!{number:03}.json").write_bytes(text)
    look(key, 7)
    with pytest.raises(RefusedError, match="it showed 7"):
        look(key, 6)
    assert len(read_seen()) == 302


def test_a_damaged_cache_is_named_and_hides_nothing(key: Ed25519PrivateKey, cache: Path) -> None:
    look(key, 7)
    (file,) = cache.glob("*.json")
    assert file.stat().st_mode & 0o777 == 0o600
    good = json.loads(file.read_bytes())
    lowered = good | {"catalogue": good["catalogue"].replace('"version": 7', '"version": 1')}
    for text in (b"{", b"", b"[" * 100_000, json.dumps(lowered).encode()):
        file.write_bytes(text)
        with pytest.raises(RefusedError, match="not the catalogue that was seen") as e:
            look(key, 7)
        assert "remove this file" in e.value.hint


@pytest.mark.parametrize(
    ("typed", "address"),
    [
        ("https://Data.example.org/eyes/", "https://data.example.org/eyes"),
        ("https://data.example.org/eyes/catalogue.json", "https://data.example.org/eyes"),
        ("https://data.example.org/index.html", "https://data.example.org"),
        ("https://data.example.org:8443", "https://data.example.org:8443"),
    ],
)
def test_an_address_has_one_spelling(typed: str, address: str) -> None:
    assert spell_address(typed) == address


@pytest.mark.parametrize(
    "typed",
    ["http://x.org", "x.org", "https://", "https://a:b@x.org", "https://x.org/?a", "file:///x"],
)
def test_an_address_that_is_not_plain_https_is_refused(typed: str) -> None:
    with pytest.raises(ConfigurationError, match="https://HOST"):
        spell_address(typed)
