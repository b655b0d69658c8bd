"""Fetches a release over HTTPS into a folder, and verifies it.

In: the release's base URL, a folder. Out: the verified manifest.
Guarantees:
  - only names that a release may hold are written, and only below the folder;
  - no file grows larger than the signed manifest says;
  - a cut download resumes where it stopped;
  - a file loses its ending `.part` only with the signed SHA-256;
  - no redirect is followed.
Not covered: who may download; that is the web server's business.
"""

from __future__ import annotations

import hashlib
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

import httpx

from kohort import layout
from kohort.errors import ConfigurationError, PeerError, RefusedError, disk_faults_named
from kohort.files import atomic_write, file_digest
from kohort.manifest import Manifest, read_manifest
from kohort.verification import read_signed_sums, verify

TRIES = 8
TIMEOUT_S = 30.0
LONGEST_WAIT_S = 5.0
# OpenSSL's codes (X509_V_ERR_...) of a certificate, and what helps
CHECK_CLOCK = (
    "check this machine's clock; otherwise the certificate is out of date: tell the operator"
)
CHECK_ADDRESS = "the certificate is of another host: check the address"
NAME_AUTHORITY = (
    "where the consortium has an authority of its own, name its certificate: --ca FILE; "
    "take the file from another channel than this server"
)
CERTIFICATE_HINTS = {9: CHECK_CLOCK, 10: CHECK_CLOCK, 62: CHECK_ADDRESS, 64: CHECK_ADDRESS}
Progress = Callable[[int, int], None]


def pull(
    url: str,
    folder: Path,
    *,
    ca: Path | None = None,
    trust: frozenset[str] = frozenset(),
    require: int | None = None,
    digest: str = "",
    progress: Progress,
) -> Manifest:
    """Return the manifest of the release at `url`, downloaded into `folder` and verified.

    `trust` and `require` are those of `verify`. `digest`: the SHA-256 that its SHA256SUMS must
    have, as a catalogue says; "" for any.

    Raises ConfigurationError (not HTTPS), PeerError (the server is gone or sends other bytes) and
    RefusedError (the release does not verify).
    """
    with open_client(url, ca) as client:
        download = Download(client, url.rstrip("/"), folder)

        # The signed list of digests comes first; it decides about every other file.
        sums = {name: download.read_small(name) for name in layout.UNLISTED}
        digests = layout.parse_sums(sums[layout.SUMS])
        _check_expected(sums[layout.SUMS], digest)
        for name, data in sums.items():
            atomic_write(folder / name, data)
        # Another key than those trusted is refused before anything else is fetched.
        read_signed_sums(folder, sums[layout.SUMS], trust, require)

        if layout.MANIFEST not in digests:
            raise RefusedError(f"{layout.SUMS}: does not list {layout.MANIFEST}")
        download.fetch(layout.MANIFEST, digests[layout.MANIFEST], layout.TEXT_CAP_BYTES)
        _fetch_sign_offs(download)
        _fetch_listed(download, digests, progress)
    return verify(folder, trust=trust, require=require)


def _tls(ca: Path | None) -> ssl.SSLContext:
    """TLS 1.2 or newer, by this machine's authorities or by those in `ca`."""
    try:
        context = ssl.create_default_context(cafile=str(ca) if ca else None)
    except ssl.SSLError as error:
        raise ConfigurationError(
            f"--ca {ca}: holds no certificate",
            hint="expected a PEM file: -----BEGIN CERTIFICATE-----",
        ) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


@contextmanager
def open_client(url: str, ca: Path | None) -> Iterator[httpx.Client]:
    """Yield a client that follows no redirect; raises ConfigurationError for all but HTTPS."""
    if urlsplit(url).scheme != "https" or not urlsplit(url).hostname:
        raise ConfigurationError(
            f"{url}: expected an https:// address", hint="releases are only fetched over TLS"
        )
    with httpx.Client(
        verify=_tls(ca),
        timeout=TIMEOUT_S,
        follow_redirects=False,
        trust_env=True,
        headers={"Accept-Encoding": "identity"},
    ) as client:
        yield client


def _check_expected(sums: bytes, digest: str) -> None:
    """Refuse another release than the one that a catalogue names."""
    found = hashlib.sha256(sums).hexdigest()
    if digest and found != digest:
        raise RefusedError(
            f"{layout.SUMS}: SHA-256 is {found[:16]}..., the catalogue says {digest[:16]}...",
            hint="the server sends another release than its catalogue names; tell its operator",
        )


def _fetch_sign_offs(download: Download) -> None:
    """The signature of every signer that the manifest names, where there is one."""
    for signer in read_manifest(download.folder).signers:
        name = layout.sign_off_file(signer.name)
        data = download.read_small(name, may_lack=True)
        if data:
            atomic_write(download.folder / name, data)


def _fetch_listed(download: Download, digests: Mapping[str, str], progress: Progress) -> None:
    """Every file that the manifest lists."""
    entries = read_manifest(download.folder).files
    for done, entry in enumerate(entries, 1):
        if entry.path not in digests:
            raise RefusedError(f"{entry.path}: in {layout.MANIFEST} but not in {layout.SUMS}")
        download.fetch(entry.path, digests[entry.path], entry.size_bytes)
        progress(done, len(entries))


@dataclass(frozen=True)
class Download:
    """One release's address and the folder that it is fetched into."""

    client: httpx.Client
    base: str
    folder: Path

    def read_small(
        self, name: str, *, may_lack: bool = False, size_cap_bytes: int | None = None
    ) -> bytes:
        """Return a small file as a whole, with retries; empty where it may lack and does.

        `size_cap_bytes`: the most that is read; None: what a text of a release may have.
        """
        for attempt in range(TRIES):
            try:
                return self._read_small_once(name, may_lack, size_cap_bytes)
            except httpx.TransportError as error:
                _wait_or_give_up(error, self.base, attempt)
        raise AssertionError("unreachable")

    def fetch(self, name: str, digest: str, size_cap_bytes: int) -> None:
        """Put one file in place: keep a right one, resume a `.part`, start over at most once."""
        if not layout.is_allowed_name(name):
            raise RefusedError(f"{name}: not a file that a release may hold")
        target = self.folder / name
        part = self.folder / f"{name}.part"
        if target.is_file() and file_digest(target) == digest:
            return
        with disk_faults_named("cannot write", target):
            target.parent.mkdir(parents=True, exist_ok=True)
        for anew in (False, True):
            if anew:
                part.unlink(missing_ok=True)
            self._append_rest(name, part, size_cap_bytes)
            if file_digest(part) == digest:
                part.replace(target)
                return
        part.unlink(missing_ok=True)
        raise PeerError(
            f"{name}: the server's bytes do not have the signed SHA-256",
            hint="the release changed or is damaged",
        )

    def _read_small_once(self, name: str, may_lack: bool, cap: int | None) -> bytes:
        """A small file, in one attempt."""
        with self.client.stream("GET", f"{self.base}/{quote(name)}") as response:
            if may_lack and response.status_code == 404:
                return b""
            _expect_status(response, name, (200,))
            data = b""
            for block in response.iter_raw():
                data += block
                if len(data) > (layout.TEXT_CAP_BYTES if cap is None else cap):
                    raise RefusedError(f"{name}: the server sends more than a release may hold")
            return data

    def _append_rest(self, name: str, part: Path, size_cap_bytes: int) -> None:
        """Append to `part` what is missing; a cut connection continues with a Range request."""
        url = f"{self.base}/{quote(name)}"
        tag = ""
        for attempt in range(TRIES):
            have = part.stat().st_size if part.exists() else 0
            headers = {"Range": f"bytes={have}-"} if have else {}
            if have and tag:
                headers["If-Range"] = tag
            try:
                with self.client.stream("GET", url, headers=headers) as response:
                    if have and response.status_code == 416:  # nothing is missing
                        return
                    _expect_status(response, name, (200, 206))
                    tag = response.headers.get("etag", "")
                    _append_body(response, part, name, size_cap_bytes)
                    return
            except httpx.TransportError as error:
                _wait_or_give_up(error, url, attempt)


def _expect_status(response: httpx.Response, name: str, statuses: tuple[int, ...]) -> None:
    """Refuse an answer with any other status, and one that would grow when it is unpacked."""
    if response.headers.get("content-encoding", "identity") != "identity":
        raise PeerError(
            f"{name}: the server packs what it sends, expected the file's own bytes",
            hint="serve releases without Content-Encoding",
        )
    if response.status_code not in statuses:
        raise PeerError(
            f"{name}: the server answered {response.status_code}, expected {statuses[0]}",
            hint="is the address the release's own folder?",
        )


def _wait_or_give_up(error: httpx.TransportError, address: str, attempt: int) -> None:
    """Wait, longer after every failure; after the last attempt raise PeerError.

    A certificate that does not verify now will not do so later.
    """
    refused = _certificate_fault(error)
    if refused is not None:
        raise PeerError(
            f"{address}: certificate verify failed: {refused.verify_message}",
            hint=CERTIFICATE_HINTS.get(refused.verify_code, NAME_AUTHORITY),
        ) from error
    if attempt + 1 == TRIES:
        raise PeerError(
            f"{address}: {type(error).__name__}: {error}",
            hint="check the address and the network; run again to resume",
        ) from error
    time.sleep(min(0.2 * 2**attempt, LONGEST_WAIT_S))


def _certificate_fault(error: BaseException | None) -> ssl.SSLCertVerificationError | None:
    """The refused certificate among an error's causes, where there is one."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _append_body(response: httpx.Response, part: Path, name: str, size_cap_bytes: int) -> None:
    """Append the body to `part`; replace `part` where the server sent the whole file."""
    mode = "wb" if response.status_code == 200 else "ab"
    with disk_faults_named("cannot write", part), open(part, mode) as file:
        for block in response.iter_raw():
            if file.tell() + len(block) > size_cap_bytes:
                raise RefusedError(
                    f"{name}: the server sends more than the {size_cap_bytes} bytes "
                    "of the signed manifest"
                )
            file.write(block)
