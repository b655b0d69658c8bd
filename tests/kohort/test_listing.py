"""`list URL`, `pull NAME` and `notices` against a server that lies."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
import trustme

from common.wire import signing
from kohort import download, layout, listing, seen
from kohort.errors import ConfigurationError, PeerError, RefusedError
from kohort.from_catalogue import find_source
from kohort.listing import fetch_catalogue, find_entry
from kohort.manifest import read_manifest
from kohort.notices import known_notices
from tests.catalogues import DAY, NOW, SENTENCE, Operator, operator, sign_catalogue

KOHORT = str(Path(sys.executable).parent / "kohort")


class Server(http.server.SimpleHTTPRequestHandler):
    """Static files, and what a test lets it say in place of one."""

    lies: ClassVar[dict[str, bytes]] = {}
    moved: ClassVar[dict[str, str]] = {}

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path in self.moved:
            self.send_response(302)
            self.send_header("Location", self.moved[self.path])
            self.end_headers()
        elif self.path in self.lies:
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.lies[self.path])))
            self.end_headers()
            self.wfile.write(self.lies[self.path])
        else:
            super().do_GET()


@pytest.fixture(scope="module")
def eyes(tmp_path_factory: pytest.TempPathFactory) -> Operator:
    """An operator whose catalogue offers two versions, and withdrew none."""
    made = operator(tmp_path_factory.mktemp("eyes") / "o", "1.0.0", "1.1.0")
    made.publish()
    return made


@pytest.fixture(scope="module")
def served(eyes: Operator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of its site, and the certificate of the site's authority."""
    authority = trustme.CA()
    ca = tmp_path_factory.mktemp("tls") / "ca.pem"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(ca))
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0),
        lambda *a: Server(*a, directory=str(eyes.web)),  # type: ignore[misc]
    )
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"https://localhost:{server.server_port}", ca
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of this test's own, an honest server, and no patience with a dead one."""
    monkeypatch.setenv(seen.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(download, "TRIES", 1)
    Server.lies, Server.moved = {}, {}


def lie(text: bytes, signature: bytes) -> None:
    Server.lies = {"/catalogue.json": text, "/catalogue.json.sig": signature}


def withdrawn(eyes: Operator, tmp_path: Path) -> Operator:
    """The same operator a day later: 1.1.0 is withdrawn."""
    later = eyes.copy(tmp_path / "later")
    later.withdraw("small", "1.1.0", NOW + DAY)
    return later


def show(later: Operator) -> None:
    """Let the server show another state of the catalogue."""
    lie(*((later.web / name).read_bytes() for name in ("catalogue.json", "catalogue.json.sig")))


def test_a_catalogue_is_fetched_once_and_a_name_means_its_newest_version(
    served: tuple[str, Path],
) -> None:
    url, ca = served
    found = fetch_catalogue(url + "/index.html", ca=ca, now=NOW)
    assert found.url == url and not found.trusted
    assert find_entry(found, "small").version == "1.1.0"
    assert find_entry(found, "small@1.0.0").superseded_by == "1.1.0"
    with pytest.raises(ConfigurationError, match="offers small"):
        find_entry(found, "large")
    with pytest.raises(ConfigurationError, match="NAME@VERSION"):
        find_entry(found, "../small")


def test_an_old_index_after_a_withdrawal_is_refused(
    served: tuple[str, Path], eyes: Operator, tmp_path: Path
) -> None:
    url, ca = served
    show(withdrawn(eyes, tmp_path))
    found = fetch_catalogue(url, ca=ca, now=NOW + 2 * DAY)
    with pytest.raises(RefusedError, match=f"was withdrawn on 2026-12-02: .*{SENTENCE}") as gone:
        find_entry(found, "small@1.1.0")
    assert gone.value.code == "E-WITHDRAWN"
    assert find_entry(found, "small").version == "1.0.0"
    # the server goes back to what it showed before
    Server.lies = {}
    with pytest.raises(RefusedError, match=r"shows catalogue 1, and .* it showed 2") as old:
        fetch_catalogue(url, ca=ca, now=NOW + 3 * DAY)
    assert old.value.code == "E-CATALOGUE-OLD"
    assert "2" in fetch_catalogue(url, ca=ca, now=NOW + 3 * DAY, accept_old=True).warning


def test_a_server_that_stands_still_is_refused_when_its_catalogue_ends(
    served: tuple[str, Path],
) -> None:
    url, ca = served
    with pytest.raises(RefusedError, match="ended on 2027-03-01") as ended:
        fetch_catalogue(url, ca=ca, now=NOW + 91 * DAY)
    assert ended.value.code == "E-CATALOGUE-EXPIRED"


def test_what_is_cut_huge_moved_missing_or_anothers_is_refused(
    served: tuple[str, Path], eyes: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, ca = served
    text, signature = (
        (eyes.web / n).read_bytes() for n in ("catalogue.json", "catalogue.json.sig")
    )
    # another operator's catalogue where the first was seen
    fetch_catalogue(url, ca=ca, now=NOW)
    stranger = signing.new_key()
    theirs = json.loads(text) | {"operator_key": signing.public_text(stranger.public_key())}
    lie(*sign_catalogue(stranger, theirs))
    with pytest.raises(RefusedError, match="before it was"):
        fetch_catalogue(url, ca=ca, now=NOW)
    # cut, and of two moments
    lie(text[:-100], signature)
    with pytest.raises(RefusedError, match=r"catalogue\.json"):
        fetch_catalogue(url, ca=ca, now=NOW)
    lie(text.replace(b"small-1.1.0", b"small-1.2.0"), signature)
    with pytest.raises(RefusedError, match=r"catalogue\.json"):
        fetch_catalogue(url, ca=ca, now=NOW)
    # larger than any catalogue, and a signature without end
    monkeypatch.setattr(listing, "CAP_BYTES", 1000)
    lie(text + b" " * 10_000, signature)
    with pytest.raises(RefusedError, match="sends more than"):
        fetch_catalogue(url, ca=ca, now=NOW)
    monkeypatch.undo()
    lie(text, signature + b"\n" * 100_000)
    with pytest.raises(RefusedError, match="sends more than"):
        fetch_catalogue(url, ca=ca, now=NOW)
    # a redirect, to a place where an honest one is
    Server.lies = {}
    Server.moved = {"/catalogue.json": f"{url}/other.json"}
    with pytest.raises(PeerError, match="answered 302"):
        fetch_catalogue(url, ca=ca, now=NOW)
    with pytest.raises(PeerError, match="answered 404"):
        fetch_catalogue(url + "/nowhere", ca=ca, now=NOW)


def test_a_catalogue_that_changes_between_two_answers_is_read_again(
    served: tuple[str, Path], eyes: Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, ca = served
    later = withdrawn(eyes, tmp_path)
    Server.lies = {"/catalogue.json.sig": (later.web / "catalogue.json.sig").read_bytes()}
    real = download.Download.read_small
    asked: list[str] = []

    def count(self: download.Download, name: str, **options: object) -> bytes:
        asked.append(name)
        if len(asked) == 3:
            show(later)
        return real(self, name, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(download.Download, "read_small", count)
    assert fetch_catalogue(url, ca=ca, now=NOW + DAY).catalogue.version == 2


def test_the_release_behind_a_name_must_be_the_one_that_the_catalogue_names(
    served: tuple[str, Path], eyes: Operator, tmp_path: Path
) -> None:
    url, ca = served
    trusted = frozenset({signing.fingerprint(eyes.key.public_key())})
    source = find_source("small@1.0.0", tmp_path / "got", url, trusted, ca, accept_old=True)
    assert source.url == f"{url}/releases/small-1.0.0" and source.trust == trusted
    # the same operator's other version in its place: signed, and not what was named
    other = eyes.web / "releases/small-1.1.0"
    for name in layout.UNLISTED:
        Server.lies[f"/releases/small-1.0.0/{name}"] = (other / name).read_bytes()
    with pytest.raises(RefusedError, match="the catalogue says"):
        download.pull(
            source.url, source.folder, ca=ca, trust=source.trust, digest=source.digest,
            progress=lambda *_: None,
        )  # fmt: skip
    assert not (tmp_path / "got").exists()


def run(folder: Path, *typed: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, seen.VARIABLE: str(folder / "cache")}
    return subprocess.run(
        [KOHORT, *typed], capture_output=True, text=True, check=False, env=environment, cwd=folder
    )


def test_a_reader_lists_pulls_and_hears_of_a_withdrawal(
    served: tuple[str, Path], eyes: Operator, tmp_path: Path
) -> None:
    url, ca = served
    fingerprint = signing.fingerprint(eyes.key.public_key())
    listed = run(tmp_path, "list", url, "--ca", str(ca), "--accept-old", "--trust", fingerprint)
    assert listed.returncode == 0, listed.stderr
    assert "small 1.0.0: 12 images, k = 5" in listed.stdout
    assert "superseded by 1.1.0" in listed.stdout
    # the address is remembered, and so is whom the reader trusts
    pulled = run(tmp_path, "pull", "small", "--ca", str(ca), "--accept-old")
    assert pulled.returncode == 0, pulled.stderr
    manifest = read_manifest(tmp_path / "small-1.1.0")
    assert manifest.version == "1.1.0"
    assert run(tmp_path, "notices", "--ca", str(ca)).stdout == "nothing is known against them\n"
    # the server's clock is not this test's: what follows is seen in the cache alone
    show(withdrawn(eyes, tmp_path))
    fetch_catalogue(url, ca=ca, now=NOW + 2 * DAY)
    (notice,) = known_notices(tmp_path / "small-1.1.0", manifest)
    assert notice.kind == "withdrawn" and SENTENCE in notice.line and "2026-12-03" in notice.line
    verified = run(tmp_path, "verify", "small-1.1.0")
    assert verified.returncode == 0
    assert "was WITHDRAWN on 2026-12-02" in verified.stderr
    strict = run(tmp_path, "verify", "small-1.1.0", "--strict", "--trust", fingerprint)
    assert strict.returncode == RefusedError.exit_code
    assert "error: small-1.1.0: small 1.1.0 was WITHDRAWN" in strict.stderr
    Server.lies = {}
    told = run(tmp_path, "notices", "--ca", str(ca))
    assert told.returncode == 1
    assert "was WITHDRAWN on 2026-12-02" in told.stdout
    assert "what follows of it was seen on 2026-12-03" in told.stderr
    # the other version is superseded by nothing any more, and nothing is known of an unknown copy
    shutil.copytree(eyes.releases / "small-1.0.0", tmp_path / "old")
    assert known_notices(tmp_path / "old", read_manifest(tmp_path / "old")) == []
