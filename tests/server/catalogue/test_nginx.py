"""deploy/catalogue/nginx.conf, run by nginx: what it serves, with which headers, and what not."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trustme

from common.process import free_port
from kohort import download, seen
from kohort.listing import fetch_catalogue, find_entry
from tests.catalogues import NOW, Operator
from tests.transport import until

CONF = Path(__file__).parents[3] / "deploy" / "catalogue" / "nginx.conf"
pytestmark = pytest.mark.skipif(shutil.which("nginx") is None, reason="needs the package nginx")


@pytest.fixture(scope="module")
def served(
    built: Operator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path, Operator]]:
    """The address of a site that nginx serves, the authority's certificate, the operator."""
    folder = tmp_path_factory.mktemp("nginx")
    eyes = built.copy(folder / "eyes")
    eyes.publish()
    authority = trustme.CA()
    pair = authority.issue_cert("localhost")
    pair.private_key_pem.write_to_path(str(folder / "key.pem"))
    pair.cert_chain_pems[0].write_to_path(str(folder / "fullchain.pem"))
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    port = free_port()
    text = CONF.read_text()
    for old, new in {
        "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
        "/etc/kohort-catalogue": str(folder),
        "/srv/catalogue/web": str(eyes.web),
    }.items():
        assert old in text
        text = text.replace(old, new)
    temporary = "".join(
        f"{name}_temp_path {folder}/{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        f"{user} daemon off; pid {folder}/pid; error_log {folder}/error.log;"
        f"events {{}} http {{ types {{ text/html html; }} {temporary} access_log off; {text} }}"
    )
    process = subprocess.Popen(
        ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")], stderr=subprocess.DEVNULL
    )
    address = f"https://localhost:{port}"
    try:
        with client(folder / "ca.pem", address) as ask:
            until(lambda: answers(ask), 20)
        yield address, folder / "ca.pem", eyes
    finally:
        process.terminate()
        process.wait(10)


def client(ca: Path, address: str) -> httpx.Client:
    return httpx.Client(base_url=address, verify=ssl.create_default_context(cafile=str(ca)))


def answers(ask: httpx.Client) -> bool:
    try:
        return ask.get("/").status_code == 200
    except httpx.TransportError:
        return False


def test_a_reader_fetches_list_and_release(
    served: tuple[str, Path, Operator], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, ca, _ = served
    monkeypatch.setenv(seen.VARIABLE, str(tmp_path / "cache"))
    entry = find_entry(fetch_catalogue(address, ca=ca, now=NOW), "small")
    manifest = download.pull(
        f"{address}/{entry.path}", tmp_path / "got", ca=ca, digest=entry.sums,
        progress=lambda *_: None,
    )  # fmt: skip
    assert manifest.version == "1.1.0"


def test_every_answer_has_the_headers_and_lists_are_never_kept(
    served: tuple[str, Path, Operator],
) -> None:
    address, ca, _ = served
    kept = {
        "/": "no-cache",
        "/catalogue.json": "no-cache",
        "/catalogue.json.sig": "no-cache",
        "/small-1.0.0.html": "no-cache",
        "/releases/small-1.0.0/": "public, max-age=604800",
        "/releases/small-1.0.0/metadata.csv": "public, max-age=604800",
        "/releases/small-1.0.0/SHA256SUMS": "no-cache",
    }
    with client(ca, address) as ask:
        for path, words in kept.items():
            answer = ask.get(path)
            assert answer.status_code == 200, path
            assert answer.headers["cache-control"] == words, path
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
        part = ask.get("/releases/small-1.0.0/metadata.csv", headers={"Range": "bytes=5-9"})
        assert (part.status_code, len(part.content)) == (206, 5)


def test_nothing_else_is_served(served: tuple[str, Path, Operator]) -> None:
    address, ca, eyes = served
    hidden = eyes.site / "releases" / ".small-9.0.0.part"
    hidden.mkdir()
    (hidden / "README.md").write_text("half")
    with client(ca, address) as ask:
        for path in (
            "/releases/",
            "/releases/.small-9.0.0.part/README.md",
            "/../releases/small-1.0.0/README.md/",
            "/%2e%2e/state/catalogue.json",
            "/releases/small-1.0.0/data/",
        ):
            assert ask.get(path).status_code in (400, 403, 404), path
        assert ask.post("/catalogue.json").status_code == 405
