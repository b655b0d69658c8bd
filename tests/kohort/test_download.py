"""`kohort pull`: resumes, verifies, refuses what a release does not hold."""

import hashlib
import http.server
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest
import trustme

from common.errors import ConfigurationError, KohortError, PeerError, RefusedError
from common.wire import signing
from kohort import download, layout
from tests.releases import proposal, sign_off, small_release


class Mirror(http.server.SimpleHTTPRequestHandler):
    """Static files with Range; it cuts every first answer to a picture in half."""

    cut: ClassVar[set[str]] = set()
    seen: ClassVar[list[tuple[str, str]]] = []
    lies: ClassVar[dict[str, bytes]] = {}
    deaf: ClassVar[bool] = False  # to Range: it sends the whole file again

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "")
        self.seen.append((self.path, asked))
        path = Path(self.directory) / self.path.lstrip("/")
        if not path.is_file():
            return self.send_error(404)
        data = self.lies.get(self.path) or path.read_bytes()
        asked = "" if self.deaf else asked
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if start >= len(data):
            return self.send_error(416)
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.path.endswith(".png") and self.path not in self.cut:
            self.cut.add(self.path)
            self.wfile.write(data[start : start + (len(data) - start) // 2])
            self.close_connection = True
            return None
        self.wfile.write(data[start:])
        return None


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[tuple[str, Path, Path]]:
    release, _ = small_release(tmp_path / "made")
    with serving(release, tmp_path) as url:
        yield url, tmp_path / "ca.pem", release


@contextmanager
def serving(release: Path, tmp_path: Path) -> Iterator[str]:
    """The address of a release that a mirror serves; its authority is in ca.pem."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    Mirror.cut, Mirror.seen, Mirror.lies, Mirror.deaf = set(), [], {}, False
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0),
        lambda *a: Mirror(*a, directory=str(release)),  # type: ignore[misc]
    )
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"https://localhost:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def nothing(done: int, total: int) -> None:
    pass


def test_a_cut_download_continues_with_a_range_request_and_verifies(
    mirror: tuple[str, Path, Path], tmp_path: Path
) -> None:
    url, ca, _ = mirror
    assert download.pull(url, tmp_path / "got", ca=ca, progress=nothing).images == 12
    assert any(path.endswith(".png") and asked.startswith("bytes=") for path, asked in Mirror.seen)
    assert not list((tmp_path / "got").rglob("*.part"))


def test_a_second_pull_fetches_no_picture_again(
    mirror: tuple[str, Path, Path], tmp_path: Path
) -> None:
    url, ca, _ = mirror
    download.pull(url, tmp_path / "got", ca=ca, progress=nothing)
    Mirror.seen.clear()
    download.pull(url, tmp_path / "got", ca=ca, progress=nothing)
    assert not [path for path, _ in Mirror.seen if path.endswith(".png")]


def test_bytes_that_nobody_signed_never_get_their_name(
    mirror: tuple[str, Path, Path], tmp_path: Path
) -> None:
    url, ca, release = mirror
    Mirror.lies["/README.md"] = b"x" * (release / "README.md").stat().st_size
    with pytest.raises(PeerError, match=r"README\.md: the server's bytes"):
        download.pull(url, tmp_path / "got", ca=ca, progress=nothing)
    assert not (tmp_path / "got" / "README.md").exists()


def test_an_endless_file_stops_at_its_signed_size(
    mirror: tuple[str, Path, Path], tmp_path: Path
) -> None:
    url, ca, _ = mirror
    Mirror.lies["/README.md"] = b"x" * 10_000_000
    with pytest.raises(RefusedError, match="sends more than"):
        download.pull(url, tmp_path / "got", ca=ca, progress=nothing)


def test_a_mirror_that_sends_whole_files_again_does_no_harm(
    mirror: tuple[str, Path, Path], tmp_path: Path
) -> None:
    url, ca, _ = mirror
    Mirror.deaf = True
    assert download.pull(url, tmp_path / "got", ca=ca, progress=nothing).images == 12
    asked = [path for path, _ in Mirror.seen if path.endswith(".png")]
    assert len(asked) == 2 * len(set(asked))  # cut once, and then whole in one request


def lie_signed(sums: str) -> None:
    """The mirror's own SHA256SUMS, signed by a key of its own."""
    key = signing.new_key()
    line = layout.signers_line("operator@small", signing.public_text(key.public_key()))
    Mirror.lies["/SHA256SUMS"] = sums.encode()
    Mirror.lies["/SHA256SUMS.sig"] = signing.sign(key, signing.RELEASE, sums.encode())
    Mirror.lies["/allowed_signers"] = line.encode()


def test_a_mirrors_own_files_are_not_believed(
    mirror: tuple[str, Path, Path], tmp_path: Path
) -> None:
    """It signs by a key of its own; even then nothing unlisted is fetched."""
    url, ca, release = mirror
    manifest = json.loads((release / "manifest.json").read_text())
    manifest["files"].append({"path": "data/train/none/99999.png", "size_bytes": 5})
    text = json.dumps(manifest).encode()
    sums = (release / "SHA256SUMS").read_text()
    digest = hashlib.sha256((release / "manifest.json").read_bytes()).hexdigest()
    Mirror.lies["/manifest.json"] = text
    lie_signed(sums.replace(digest, hashlib.sha256(text).hexdigest()))
    with pytest.raises(RefusedError, match=r"99999\.png: in manifest\.json but not in SHA256SUMS"):
        download.pull(url, tmp_path / "one", ca=ca, progress=nothing)
    Mirror.lies.clear()
    Mirror.lies["/SHA256SUMS"] = ("0" * 64 + "  evil.py\n" + sums).encode()
    with pytest.raises(RefusedError, match="SHA256SUMS"):
        download.pull(url, tmp_path / "two", ca=ca, progress=nothing)
    assert not (tmp_path / "two").exists()
    kept = [line for line in sums.splitlines(keepends=True) if "manifest.json" not in line]
    lie_signed("".join(kept))
    with pytest.raises(RefusedError, match=r"SHA256SUMS: does not list manifest\.json"):
        download.pull(url, tmp_path / "three", ca=ca, progress=nothing)


def test_what_was_pulled_is_verified_against_the_key_that_the_reader_trusts(
    mirror: tuple[str, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, ca, release = mirror
    with pytest.raises(RefusedError, match="you trust"):
        download.pull(
            url, tmp_path / "got", ca=ca, trust=frozenset({"SHA256:" + "A" * 43}), progress=nothing
        )
    Mirror.lies["/SHA256SUMS.sig"] = (release / "SHA256SUMS.sig").read_bytes().replace(b"A", b"B")
    with pytest.raises(RefusedError, match=r"SHA256SUMS\.sig"):
        download.pull(url, tmp_path / "got", ca=ca, progress=nothing)
    monkeypatch.setattr(download.layout, "TEXT_CAP_BYTES", 100)
    with pytest.raises(RefusedError, match="more than a release may hold"):
        download.pull(url, tmp_path / "other", ca=ca, progress=nothing)


def test_an_unknown_certificate_plain_http_or_a_wrong_path_are_told(
    mirror: tuple[str, Path, Path], tmp_path: Path
) -> None:
    url, ca, _ = mirror
    download.TRIES, tries = 1, download.TRIES
    try:
        with pytest.raises(PeerError, match="certificate verify failed"):
            download.pull(url, tmp_path / "got", progress=nothing)
    finally:
        download.TRIES = tries
    with pytest.raises(ConfigurationError, match="https"):
        download.pull(url.replace("https", "http"), tmp_path / "got", progress=nothing)
    with pytest.raises(KohortError, match="404"):
        download.pull(url + "/nowhere", tmp_path / "got", ca=ca, progress=nothing)


def test_the_sign_offs_come_with_the_release_and_one_that_is_held_back_is_missed(
    tmp_path: Path,
) -> None:
    release, _, keys = proposal(tmp_path / "made", 1, "hospital-a", "hospital-b")
    first = sign_off(release, "hospital-a", keys["hospital-a"])
    with serving(release, tmp_path) as url:
        ca = tmp_path / "ca.pem"
        download.pull(url, tmp_path / "got", ca=ca, progress=nothing)
        assert (tmp_path / "got" / first.name).read_bytes() == first.read_bytes()
        with pytest.raises(RefusedError, match="1 of 2 sign-offs"):
            download.pull(url, tmp_path / "got", ca=ca, require=2, progress=nothing)
        second = sign_off(release, "hospital-b", keys["hospital-b"])
        download.pull(url, tmp_path / "got", ca=ca, require=2, progress=nothing)
        assert (tmp_path / "got" / second.name).exists()
        first.unlink()
        second.unlink()
        with pytest.raises(RefusedError, match="0 of 1 sign-offs"):
            download.pull(url, tmp_path / "anew", ca=ca, progress=nothing)
