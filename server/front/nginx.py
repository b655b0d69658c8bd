"""The front by nginx: a whole configuration for an instance of its own, made from the rules.

In: the operator's state folder and server.yaml. Out: nginx.conf in the state folder.
nginx speaks TLS, knows the paths, and caps bodies, headers, rates and times. Behind it the front's
own process (`front.sock`) judges certificate, registry and key: one piece of code for both fronts.
Not covered: starting nginx; it runs as the user that runs the server.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from common.errors import ConfigurationError
from server.front import rules
from server.front.port import EVERY, spell, wildcard
from server.front.sockets import FRONT, LONGEST_PATH, SOCKETS
from server.operator.config import ServerConfig
from server.operator.state import ServerState

FOLDER = "front"
FILE = "nginx.conf"
TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
CERTIFICATE_HEADER = "x-kohort-certificate"
WORKER_CONNECTIONS = 4096


def config_path(state: ServerState) -> Path:
    """Return where the configuration lies."""
    return state.root.resolve() / FOLDER / FILE


def start_command(path: Path) -> str:
    """Return the command that starts nginx with the configuration at `path`.

    Its workers run as the server's account, for nobody else enters the folder of the socket; only
    root has to say so.
    """
    command = f"nginx -p {path.parent} -c {path}"
    if os.geteuid() == 0:
        command += " -g 'user root;'"
    return command


def nginx_conf(state: ServerState, config: ServerConfig) -> str:
    """Return the configuration of nginx for this server.

    Raises ConfigurationError for a state folder whose path is too long for a socket, or holds a
    character that nginx would read as its own.
    """
    root = state.root.resolve()
    folder = root / FOLDER
    _check_path(root / state.superlink.name / SOCKETS / FRONT)
    lines = [
        "# kohort: written by `kohort-server front`; changes are lost.",
        f"pid {folder}/nginx.pid;",
        # nothing that a peer causes: the file has no cap
        f"error_log {folder}/error.log emerg;",
        "worker_processes auto;",
        f"worker_rlimit_nofile {4 * WORKER_CONNECTIONS};",
        f"events {{ worker_connections {WORKER_CONNECTIONS}; }}",
        "http {",
        "  server_tokens off;",
        "  access_log off;",
    ]
    lines += [f"  {name}_temp_path {folder}/{name};" for name in TEMPORARY]
    lines += _limits()
    lines += _calls()
    lines += [
        "  upstream front {",
        f"    server unix:{root}/{state.superlink.name}/{SOCKETS}/{FRONT};",
        "    keepalive 16;",
        "  }",
    ]
    lines += _server(root / state.tls.name, config)
    lines.append("}")
    return "\n".join(lines) + "\n"


def _check_path(path: Path) -> None:
    """Refuse a path that nginx cannot use."""
    if len(str(path).encode()) > LONGEST_PATH or not re.fullmatch(r"[\w./-]+", str(path)):
        raise ConfigurationError(
            f"{path}: expected at most {LONGEST_PATH} letters, digits, and _ . - /",
            hint="move the state folder to a shorter path, for example /var/lib/kohort-server",
        )


def _limits() -> list[str]:
    """Zones for rates and connections of each certificate, and times."""
    return [
        f"  limit_req_zone $ssl_client_fingerprint zone=requests:2m rate={rules.RATE_PER_S}r/s;",
        "  limit_conn_zone $ssl_client_fingerprint zone=connections:2m;",
        "  limit_req_status 429;",
        "  limit_conn_status 429;",
        f"  client_header_timeout {rules.HEADER_S:g}s;",
        "  client_body_timeout 15s;",
        f"  send_timeout {rules.REQUEST_S:g}s;",
        f"  keepalive_timeout {rules.IDLE_S}s;",
        "  client_header_buffer_size 4k;",
        f"  large_client_header_buffers 2 {rules.HEADER_CAP_BYTES // 2};",
        "  reset_timedout_connection on;",
    ]


def _calls() -> list[str]:
    """The calls as they are spelled: no query and no escape passes."""
    lines = ["  map $request_uri $call {", "    default 0;"]
    lines += [f"    {path} 1;" for path in rules.CALLS]
    return [*lines, "  }"]


def _server(tls: Path, config: ServerConfig) -> list[str]:
    """The one server: TLS 1.3, a client certificate, the declared calls."""
    host = wildcard(config.listen.host)
    both = " ipv6only=off" if host == EVERY else ""
    lines = [
        "  server {",
        f"    listen {spell(host, config.listen.port)} ssl{both};",
        f"    ssl_certificate {tls}/server.crt;",
        f"    ssl_certificate_key {tls}/server.key;",
        f"    ssl_client_certificate {tls}/ca.crt;",
        "    ssl_verify_client on;",
        "    ssl_verify_depth 1;",
        "    ssl_protocols TLSv1.3;",
        "    ssl_session_tickets off;",
        "    client_max_body_size 4k;",
        "    location / { return 404; }",
    ]
    for path, cap in rules.CALLS.items():
        lines += _location(path, cap)
    return [*lines, "  }"]


def _location(path: str, cap: int) -> list[str]:
    """One call: its refusals, its cap, its way on."""
    return [
        f"    location = {path} {{",
        "      if ($call = 0) { return 404; }",
        "      if ($request_method != POST) { return 405; }",
        '      if ($http_transfer_encoding != "") { return 400; }',
        '      if ($http_expect != "") { return 400; }',
        f"      client_max_body_size {cap};",
        f"      limit_req zone=requests burst={rules.BURST} nodelay;",
        f"      limit_conn connections {rules.CONNECTIONS_EACH};",
        "      proxy_http_version 1.1;",
        '      proxy_set_header Connection "";',
        f"      proxy_set_header {CERTIFICATE_HEADER} $ssl_client_escaped_cert;",
        f"      proxy_read_timeout {rules.REQUEST_S:g}s;",
        "      proxy_pass http://front;",
        "    }",
    ]
