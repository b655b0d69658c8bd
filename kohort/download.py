"""Fetch a release over HTTPS into a folder: resumes, checks every file's SHA-256 before it gets its name.

In: the release's base URL, a folder. Out: the verified manifest. Guaranteed: only names that a release may hold are written,
below the folder, nothing larger than the signed manifest says; a cut download continues where it was; a file is renamed from
`.part` only with the right digest; no redirect is followed. Not covered: who may download (the web server's business).
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, urlsplit

import httpx

from common.errors import ConfigurationError, PeerError, RefusedError, disk_faults_named
from common.storage.files import atomic_write
from kohort import manifest as release

TRIES, TIMEOUT_S, BLOCK_BYTES = 8, 30.0, 1 << 16
Progress = Callable[[int, int], None]


def pull(
    url: str, folder: Path, *, ca: Path | None = None, trust: str | None = None, progress: Progress
) -> release.Manifest:
    """Return the manifest of the release at `url`, downloaded into `folder` and verified.

    Raises ConfigurationError (not HTTPS), PeerError (server gone, gives other bytes), RefusedError (does not verify).
    """
    if urlsplit(url).scheme != "https" or not urlsplit(url).hostname:
        raise ConfigurationError(
            f"{url}: expected an https:// address", hint="releases are only fetched over TLS"
        )
    context = ssl.create_default_context(cafile=str(ca) if ca else None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    with httpx.Client(
        verify=context, timeout=TIMEOUT_S, follow_redirects=False, trust_env=True
    ) as client:
        base = url.rstrip("/")
        sums = {name: _small(client, base, name) for name in release.UNLISTED}
        digests = release.parse_sums(sums[release.SUMS])
        for name, data in sums.items():
            atomic_write(folder / name, data)
        _fetch(
            client,
            base,
            release.MANIFEST,
            digests[release.MANIFEST],
            release.TEXT_CAP_BYTES,
            folder,
        )
        entries = release.read_manifest(folder).files
        for done, entry in enumerate(entries, 1):
            if entry.path not in digests:
                raise RefusedError(f"{entry.path}: in {release.MANIFEST} but not in {release.SUMS}")
            _fetch(client, base, entry.path, digests[entry.path], entry.size_bytes, folder)
            progress(done, len(entries))
    return release.verify(folder, trust=trust)


def _small(client: httpx.Client, base: str, name: str) -> bytes:
    """A small file as a whole, with retries."""
    for attempt in range(TRIES):
        try:
            with client.stream("GET", f"{base}/{quote(name)}") as response:
                _expect(response, name, (200,))
                data = b""
                for block in response.iter_bytes(BLOCK_BYTES):
                    data += block
                    if len(data) > release.TEXT_CAP_BYTES:
                        raise RefusedError(f"{name}: the server sends more than a release may hold")
                return data
        except httpx.TransportError as error:
            _wait_or_give_up(error, base, attempt)
    raise AssertionError("unreachable")


def _expect(response: httpx.Response, name: str, statuses: tuple[int, ...]) -> None:
    """Refuse any other answer."""
    if response.status_code not in statuses:
        raise PeerError(
            f"{name}: the server answered {response.status_code}, expected {statuses[0]}",
            hint="is the address the release's own folder?",
        )


def _wait_or_give_up(error: httpx.TransportError, base: str, attempt: int) -> None:
    """Wait longer after every failure; the last one is told."""
    if attempt + 1 == TRIES:
        raise PeerError(
            f"{base}: {type(error).__name__}: {error}",
            hint="check the address and the network; run again to resume",
        ) from error
    time.sleep(min(0.2 * 2**attempt, 5.0))


def _fetch(
    client: httpx.Client, base: str, name: str, digest: str, size_cap_bytes: int, folder: Path
) -> None:
    """One file: keep what is right, continue a `.part`, start anew once if the bytes turn out wrong."""
    if not release.allowed_name(name):
        raise RefusedError(f"{name}: not a file that a release may hold")
    target, part = folder / name, folder / f"{name}.part"
    if target.is_file() and release.file_digest(target) == digest:
        return
    with disk_faults_named("cannot write", target):
        target.parent.mkdir(parents=True, exist_ok=True)
    for fresh in (False, True):
        if fresh:
            part.unlink(missing_ok=True)
        _download(client, f"{base}/{quote(name)}", name, part, size_cap_bytes)
        if release.file_digest(part) == digest:
            part.replace(target)
            return
    part.unlink(missing_ok=True)
    raise PeerError(
        f"{name}: the server's bytes do not have the signed SHA-256",
        hint="the release changed or is damaged",
    )


def _download(client: httpx.Client, url: str, name: str, part: Path, size_cap_bytes: int) -> None:
    """Append to `part` until the server has no more; a cut connection continues with a Range request."""
    tag = ""
    for attempt in range(TRIES):
        have = part.stat().st_size if part.exists() else 0
        headers = {"Range": f"bytes={have}-"} if have else {}
        if have and tag:
            headers["If-Range"] = tag
        try:
            with client.stream("GET", url, headers=headers) as response:
                if have and response.status_code == 416:  # everything is here already
                    return
                _expect(response, name, (200, 206))
                tag = response.headers.get("etag", "")
                _append(response, part, name, size_cap_bytes, anew=response.status_code == 200)
                return
        except httpx.TransportError as error:
            _wait_or_give_up(error, url, attempt)


def _append(
    response: httpx.Response, part: Path, name: str, size_cap_bytes: int, *, anew: bool
) -> None:
    """Write the body behind what is there, or over it when the server sent the whole file."""
    with disk_faults_named("cannot write", part), open(part, "wb" if anew else "ab") as file:
        for block in response.iter_raw():
            if file.tell() + len(block) > size_cap_bytes:
                raise RefusedError(
                    f"{name}: the server sends more than the {size_cap_bytes} bytes of the signed manifest"
                )
            file.write(block)
