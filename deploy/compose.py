"""`python -m deploy.compose`: writes the compose files of deploy/containers.

In: the defaults of server.yaml, the units' paths and commands, the name of the credential.
Out: three files, which a test compares with what is committed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from common import passphrase
from common.storage.files import atomic_write
from server.front.nginx import FILE, FOLDER
from server.operator.config import Listen

CONTAINERS = Path(__file__).parent / "containers"
SITE_STATE, SERVER_STATE = "/var/lib/kohort", "/var/lib/kohort-server"
ACCOUNT = 10001  # of both Containerfiles
SECRETS = "/run/secrets"
STOP_S = 180  # as the units' TimeoutStopSec

HEAD = """\
# Written by `python -m deploy.compose`: change that, not this file. What it is told stands in
# `.env`, see README.md.
"""
# the same for every service
CLOSED = """\
    # an account without a name, which owns the volume alone
    user: "{account}:{account}"
    # nothing can be written but the volume and a /tmp in memory, from which nothing is executed
    read_only: true
    tmpfs:
      - /tmp:rw,noexec,nosuid,nodev,size={tmp}
    # no right of root, and none can be gained
    cap_drop: [ALL]
    security_opt:
      - no-new-privileges:true
    # what a loop of processes could take
    pids_limit: 512
    restart: on-failure
    stop_grace_period: {stop}s
"""
SECRET = """\
    # the passphrase of protected keys, as systemd would hand it over
    environment:
      {variable}: {secrets}
    secrets: [{credential}]
"""
HEALTH = """\
    healthcheck:
      test: [CMD, /opt/kohort/bin/{program}, probe, --state, {state}]
      interval: 60s
      timeout: 30s
      start_period: 10m
      retries: 3
"""
FOOT = """\
secrets:
  {credential}:
    file: ${{KOHORT_PASSPHRASE:-/dev/null}}
"""


def closed(tmp: str) -> str:
    """Return the switches that every service has; `tmp`: the size of its /tmp."""
    return CLOSED.format(account=ACCOUNT, tmp=tmp, stop=STOP_S)


def secret() -> str:
    """Return where a service finds the passphrase."""
    return SECRET.format(
        variable=passphrase.CREDENTIALS, secrets=SECRETS, credential=passphrase.CREDENTIAL
    )


def health(program: str, state: str) -> str:
    """Return the probe of a service."""
    return HEALTH.format(program=program, state=state)


def foot() -> str:
    """Return the secret that a file holds; an empty one counts as none."""
    return FOOT.format(credential=passphrase.CREDENTIAL)


def site() -> str:
    """Return the compose file of a hospital."""
    return (
        HEAD
        + f"""\
services:
  site:
    image: ${{KOHORT_IMAGE:-kohort-site}}
    command: [run, --state, {SITE_STATE}]
    # it only calls out: no port is opened
    volumes:
      - state:{SITE_STATE}
      # the exported images are only read
      - ${{KOHORT_DATA:?the folder of exported images}}:/srv/export:ro
"""
        + closed("2g")
        + secret()
        + health("kohort-site", SITE_STATE)
        + "volumes:\n  state: {}\n"
        + foot()
    )


def site_cuda() -> str:
    """Return what a GPU adds to a hospital's."""
    return (
        HEAD
        + """\
services:
  site:
    # every GPU of the machine, as the driver's container toolkit describes it (CDI)
    devices:
      - nvidia.com/gpu=all
"""
    )


def server() -> str:
    """Return the compose file of an operator: nginx before the server."""
    port = Listen().port
    conf = f"{SERVER_STATE}/{FOLDER}"
    return (
        HEAD
        + f"""\
services:
  server:
    image: ${{KOHORT_IMAGE:-kohort-server}}
    command:
      - run
      - {SERVER_STATE}/plans/${{KOHORT_STUDY:?the signed bundle in plans}}
      - --state
      - {SERVER_STATE}
    # sites reach it through nginx alone, over a socket in the volume
    network_mode: none
    volumes:
      - state:{SERVER_STATE}
"""
        + closed("1g")
        + secret()
        + health("kohort-server", SERVER_STATE)
        + f"""\
  front:
    image: ${{NGINX_IMAGE:?an nginx, by its digest}}
    # the configuration of `kohort-server front`, which knows the calls of a site and no other
    entrypoint: [nginx]
    command: [-p, {conf}, -c, {conf}/{FILE}, -g, "daemon off;"]
    ports:
      - "{port}:{port}"
    volumes:
      - state:{SERVER_STATE}
"""
        + closed("64m")
        + "volumes:\n  state: {}\n"
        + foot()
    )


FILES = {
    "compose.site.yaml": site,
    "compose.site.cuda.yaml": site_cuda,
    "compose.server.yaml": server,
}


def main() -> int:
    """Write every file; return the exit code."""
    for name, text in FILES.items():
        atomic_write(CONTAINERS / name, text().encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
