"""The embedded front as a process, before a stand-in for the SuperLink that keeps what it gets."""

from __future__ import annotations

import json
import os
import shutil
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer

import httpx
import pytest

from client.fleet.connection import create_node_key
from common.process import free_port
from common.wire import signing
from server.front.nginx import config_path, nginx_conf
from server.front.port import open_port
from server.front.sites import header_of
from server.front.sockets import FLEET, FRONT, SOCKETS, SocketFolder
from server.operator.certificates import (
    create_authority,
    issue_server_certificate,
    issue_site_certificate,
    load_authority,
    parse_site_key,
)
from server.operator.config import Listen, ServerConfig
from server.operator.requests import Request
from server.operator.sites import Registry
from server.operator.state import ServerState
from tests.transport import until

PULL = "/v1/fleet/pull-messages"
PUSH = "/v1/fleet/push-object"
PROTOBUF = {"content-type": "application/protobuf"}


class Upstream(ThreadingMixIn, UnixStreamServer):
    """Answers every call with its size and remembers paths and headers."""

    daemon_threads = True

    def __init__(self, path: str) -> None:
        self.seen: list[tuple[str, dict[str, str], int]] = []
        self.away = False
        self.wait_s = 0.0  # before each answer
        super().__init__(path, handler(self))


def handler(upstream_of: Upstream) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            size = int(self.headers["content-length"])
            body = self.rfile.read(size)
            if upstream_of.away:
                self.close_connection = True
                return
            time.sleep(upstream_of.wait_s)
            headers = {name.lower(): value for name, value in self.headers.items()}
            upstream_of.seen.append((self.path, headers, len(body)))
            answer = json.dumps({"size": len(body)}).encode()
            self.send_response(200)
            self.send_header("content-type", "application/protobuf")
            self.send_header("content-length", str(len(answer)))
            self.send_header("x-inside", "secret")
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@dataclass
class Member:
    """An enrolled site: its certificate, its key, the header that Flower would send."""

    name: str
    certificate: Path
    key: Path
    header: str


@dataclass
class Door:
    """A running front with its state folder, its port and what lies behind it."""

    state: ServerState
    port: int
    upstream: Upstream
    process: subprocess.Popen[bytes]
    kind: str
    members: dict[str, Member] = field(default_factory=dict)

    def member(self, name: str, *, enrolled: bool = True) -> Member:
        """Return a site with a certificate of the consortium's CA, made once."""
        if name not in self.members:
            self.members[name] = self._new_member(name, enrolled)
        return self.members[name]

    def _new_member(self, name: str, enrolled: bool) -> Member:
        folder = self.state.root.parent / "sites" / name
        create_node_key(folder / "node.key", folder / "node.pub", name)
        public = (folder / "node.pub").read_text()
        authority = load_authority(self.state.authority)
        issue_site_certificate(authority, name, public, folder / "node.crt")
        if enrolled:
            sign_key = signing.public_text(signing.new_key().public_key())
            request = Request(
                format="kohort-request/1",
                site=name,
                node_key=public,
                sign_key=sign_key,
                signature="",
            )
            registry = Registry(self.state.sites)
            registry.enrol(request)
            registry.close()
        header = header_of(parse_site_key(public)).decode()
        return Member(name, folder / "node.crt", folder / "node.key", header)

    def context(self, member: Member | None) -> ssl.SSLContext:
        """TLS 1.3 of a client, with a member's certificate or none."""
        context = ssl.create_default_context(cafile=str(self.state.authority / "ca.crt"))
        if member is not None:
            context.load_cert_chain(member.certificate, member.key)
        return context

    def client(self, member: Member | None) -> httpx.Client:
        """A client of the front."""
        url = f"https://127.0.0.1:{self.port}"
        return httpx.Client(
            base_url=url, verify=self.context(member), trust_env=False, timeout=20.0
        )

    def memory_mb(self) -> float:
        """Resident memory of the front's process and its workers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        total = 0
        for pid in (str(self.process.pid), *children.split()):
            status = Path(f"/proc/{pid}/status").read_text()
            total += int(next(row for row in status.splitlines() if "VmRSS" in row).split()[1])
        return total / 1024


@pytest.fixture(scope="module", params=["embedded", "nginx"])
def door(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Door]:
    folder = tmp_path_factory.mktemp("front")
    state = ServerState(folder / "server")
    issue_server_certificate(create_authority(state.authority), state.tls)
    Registry(state.sites).close()
    sockets = SocketFolder(state.superlink / SOCKETS)
    upstream = Upstream(sockets.path(FLEET))
    threading.Thread(target=upstream.serve_forever, args=(0.05,), daemon=True).start()
    start = {"embedded": embedded, "nginx": behind_nginx}[request.param]
    try:
        with start(state) as (port, process):
            yield Door(state, port, upstream, process, request.param)
    finally:
        upstream.shutdown()
        upstream.server_close()
        sockets.close()


@contextmanager
def embedded(state: ServerState) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """The front that `kohort-server run` starts: its port and its process."""
    with open_port("127.0.0.1", 0) as listener:
        number = listener.fileno()
        command = [sys.executable, "-P", "-m", "server.front.process", str(state.root), str(number)]
        process = subprocess.Popen(command, pass_fds=(number,))
        try:
            yield listener.getsockname()[1], process
        finally:
            process.terminate()
            process.wait(20)


@contextmanager
def behind_nginx(state: ServerState) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """nginx with the configuration of `kohort-server front`, and the front's process behind it."""
    nginx = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if nginx is None:
        pytest.skip("nginx is not installed")
    listen = Listen(front="nginx", host="127.0.0.1", port=free_port())
    config = ServerConfig(name="demo", url="https://127.0.0.1:1", listen=listen)
    path = config_path(state)
    path.parent.mkdir(parents=True)
    path.write_text(nginx_conf(state, config))
    behind = subprocess.Popen(
        [sys.executable, "-P", "-m", "server.front.process", str(state.root), "nginx"]
    )
    command = [nginx, "-p", str(path.parent), "-c", str(path), "-g", "daemon off; user root;"]
    process = subprocess.Popen(command)
    try:
        until((state.superlink / SOCKETS / FRONT).exists)
        until((path.parent / "nginx.pid").exists)
        yield listen.port, process
    finally:
        for one in (process, behind):
            one.terminate()
            one.wait(20)
