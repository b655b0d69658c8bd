"""`publish` and `withdraw`: the catalogue of releases, a signed list and a static site."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import TypeAdapter, ValidationError

from common.errors import ConfigurationError
from kohort.catalogue import REASONS, Line, Reason
from server.cli.options import StateFolder
from server.cli.output import check_folder
from server.cli.state_folder import load_operator_key
from server.cli.terminal import write
from server.operator.config import CatalogueSettings, load_config
from server.operator.state import ServerState

if TYPE_CHECKING:  # it imports Pillow and numpy, which no other command should wait for
    from server.catalogue.publish import Office, Told

Out = Annotated[
    Path, typer.Option(help="the site's folder; a web server serves the folder `web` in it")
]
Releases = Annotated[
    Path | None,
    typer.Option(help="the folder of published releases; without it those of the site stay"),
]
Renew = Annotated[bool, typer.Option("--renew", help="sign it anew though nothing has changed")]
Why = Annotated[str, typer.Option(help="one of " + ", ".join(REASONS))]
Sentence = Annotated[str, typer.Option(help="one sentence that readers see, without names")]


def publish(state: StateFolder, out: Out, releases: Releases = None, renew: Renew = False) -> None:
    """Write the catalogue: a signed list of releases, and a static site around it.

    Each published release is verified and enters the site. The list is signed anew when something
    has changed, or half of its time has gone; otherwise every byte stays.
    """
    from server.catalogue.publish import publish as publish_all

    office = _office(state, out)
    if releases is not None and not releases.is_dir():
        raise ConfigurationError(
            f"--releases {releases}: no such folder",
            hint="give the folder that `kohort-server release --out` wrote",
        )
    told = publish_all(office, releases, renew=renew)
    for title in told.added:
        write(f"new in the catalogue: {title}\n")
    for title in told.held_back:
        write(f"withdrawn, and stays out: {title}\n")
    _note(office, told)
    _say(office, told)


def withdraw(
    name: Annotated[str, typer.Argument(help="the release's name")],
    version: Annotated[str, typer.Argument(help="its version, three numbers with dots")],
    state: StateFolder,
    out: Out,
    reason: Why,
    sentence: Sentence,
) -> None:
    """Withdraw a release: it stays listed as withdrawn, and its files leave the site.

    Copies that people have stay; `kohort verify`, `list` and `notices` name the withdrawal to them.
    It cannot be taken back.
    """
    from server.catalogue.publish import withdraw_release

    office = _office(state, out)
    told = withdraw_release(office, name, version, _reason(reason), _line(sentence))
    with office.place.open_log() as log:
        log.note("release-withdrawn", once=True, release=f"{name}-{version}", reason=reason)
    _note(office, told)
    write(f"withdrawn {name} {version}\n")
    _say(office, told)


def _office(state: Path, out: Path) -> Office:
    """Who publishes: the operator of this state folder, now."""
    from server.catalogue.document import Words
    from server.catalogue.publish import Office

    place = ServerState(state)
    key = load_operator_key(place)
    check_folder("--out", out)
    name, settings = "kohort", CatalogueSettings()
    if place.config.is_file():
        config = load_config(place.config)
        name, settings = config.name, config.catalogue
    words = Words(name, settings.title or name, settings.contact, settings.days)
    return Office(place, out, words, settings.url, key, datetime.now(UTC))


def _reason(text: str) -> Reason:
    """The code of a reason."""
    for known in REASONS:
        if text == known:
            return known
    listed = ", ".join(f"{known} ({words})" for known, words in REASONS.items())
    raise ConfigurationError(f"--reason {text}: expected one of {listed}")


def _line(text: str) -> str:
    """A sentence that a catalogue may hold."""
    try:
        return TypeAdapter(Line).validate_python(text)
    except ValidationError as error:
        raise ConfigurationError(
            "--sentence: expected at most 300 printable characters on one line",
            hint='for example --sentence "Two labels were exchanged."',
        ) from error


def _note(office: Office, told: Told) -> None:
    """Note in the log which catalogue is shown."""
    digest = hashlib.sha256(told.signed.text).hexdigest()
    with office.place.open_log() as log:
        version = str(told.signed.catalogue.version)
        log.note("catalogue-published", once=True, version=version, digest=digest)


def _say(office: Office, told: Told) -> None:
    """Say what is shown now."""
    found = told.signed.catalogue
    verb = "shows" if told.changed else "still shows"
    write(
        f"{office.out}/web {verb} catalogue {found.version}: {len(found.releases)} releases, "
        f"{len(found.withdrawn)} withdrawn; renew it before {found.expires[:10]}\n"
    )
