"""`enrol`, `sites`: who takes part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from common.errors import ConfigurationError, KohortError
from common.storage.files import atomic_write
from common.wire import signing
from server.cli.options import StateFolder
from server.cli.output import check_folder
from server.cli.state_folder import load_operator_public, open_registry
from server.cli.terminal import write
from server.operator import enrolment
from server.operator.config import load_config
from server.operator.revoked import write_revoked
from server.operator.sites import Registry
from server.operator.state import ServerState


def enrol(
    request: Annotated[Path, typer.Argument(help="the site's NAME.request.json")],
    state: StateFolder,
    out: Annotated[
        Path | None, typer.Option(help="join file to write; default: NAME.join.json beside it")
    ] = None,
    certificate: Annotated[
        Path | None,
        typer.Option(help="the site's, from `certify`, where the authority's key is elsewhere"),
    ] = None,
) -> None:
    """Enrol a site from its request file and write its join file. Works while the server runs."""
    place = ServerState(state)
    key = load_operator_public(place)
    if out is not None:
        check_folder("--out", out.parent)
    config = load_config(place.config)
    line = signing.public_text(key, config.name)
    join = enrolment.enrol(request, place, config, line, certificate)
    name = str(json.loads(join)["site"])
    target = out or request.parent / f"{name}.join.json"
    atomic_write(target, join)
    with open_registry(place) as registry:
        write(f"enrolled {name}, signing key {registry.get(name).fingerprint}\n")
    write(f"read this fingerprint to the hospital over another channel, then send it {target}\n")


def sites(
    state: StateFolder,
    action: Annotated[str | None, typer.Argument(help="revoke or release")] = None,
    name: Annotated[str | None, typer.Argument(help="the site")] = None,
) -> None:
    """List the sites.

    `sites revoke NAME` excludes one for good, `sites release NAME` ends its quarantine.
    """
    place = ServerState(state)
    with open_registry(place) as registry:
        if action is not None:
            change(registry, action, name)
        if action == "revoke":
            list_revoked(place, registry)
        for site in registry.sites().values():
            write(f"{site.name:<24} {site.state:<12} {site.code:<24} {site.fingerprint}\n")


def list_revoked(place: ServerState, registry: Registry) -> None:
    """Write the revocation list; the front refuses the site from its next request on without it."""
    try:
        path = write_revoked(place, registry)
    except KohortError as error:
        write(f"the site is refused; the revocation list was not written: {error}\n")
        return
    if path is not None:
        write(f"written {path}\n")


def change(registry: Registry, action: str, name: str | None) -> None:
    """Revoke or release one site."""
    if name is None or action not in ("revoke", "release"):
        raise ConfigurationError(
            f"sites {action}: expected `revoke NAME` or `release NAME`",
            hint="`kohort-server sites` without them lists the names",
        )
    if action == "revoke":
        registry.revoke(name)
    else:
        registry.release(name)
