"""`withdraw`: a patient who no longer takes part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from client.cli.options import StateFolder
from client.cli.state_folder import open_plans
from client.cli.terminal import write_line
from client.ingest.refresh import learn_persons
from client.ingest.whose import Names
from client.ingest.withdrawal import find_in_files, name_ids, read_list, resolve
from client.ingest.withdrawal import withdraw as write_withdrawals
from client.rehearsal.scratch import remove_pictures
from client.state.config import load_site
from client.state.folder import State
from client.state.group_store import GroupStore
from client.state.people import PeopleFile
from common.errors import ConfigurationError
from common.study.intake import Intake

Patients = Annotated[
    list[str] | None, typer.Argument(metavar="[PATIENT]...", help="patient ids, as in the header")
]
Issuer = Annotated[
    str, typer.Option("--issuer", help="IssuerOfPatientID of these ids, where the files name one")
]
Files = Annotated[
    list[Path] | None, typer.Option("--file", dir_okay=False, help="an image file of the patient")
]
Lists = Annotated[
    list[Path] | None,
    typer.Option("--list", dir_okay=False, help="a text file with one patient id a line"),
]
Ahead = Annotated[
    bool, typer.Option("--ahead", help="also ids that no image has: they will not enter later")
]


def withdraw(
    state: StateFolder,
    patients: Patients = None,
    issuer: Issuer = "",
    files: Files = None,
    lists: Lists = None,
    ahead: Ahead = False,
) -> None:
    """Take patients out of everything that this site computes from now on, for good.

    The daemon may run: its next round leaves them out. What has left already cannot be called back.
    """
    config = load_site(state)
    place = State(state)
    key = place.pseudonym_bytes()

    # Whom the site knows; a cohort may be older than the persons file.
    for folder in sorted(place.root.glob("cohort-*")):
        learn_persons(folder)

    # Whom the request means; all of it, or nothing.
    asked = name_ids(patients or [], issuer, key)
    for path in lists or []:
        asked += read_list(path, issuer, key)
    if not asked and not files:
        raise ConfigurationError(
            "nobody is named", hint="give a patient id, --file or --list: kohort-site withdraw -h"
        )
    persons, unknown = resolve(asked, PeopleFile(place.people).read(), ahead=ahead)
    if files:
        persons += find_in_files(files, _intakes(state), place, config)

    # Write it down, and say what it does. Pictures of a rehearsal may show them.
    remove_pictures(state)
    for text in write_withdrawals(persons, unknown, place).lines():
        write_line(text)
    for text in _what_stays(place, persons):
        write_line(text)


def _intakes(state: Path) -> list[Intake]:
    """Return the intake rules of the approved plans, each once."""
    found: dict[str, Intake] = {}
    for study in open_plans(state).valid().values():
        found[study.intake.model_dump_json()] = study.intake
    if not found:
        raise ConfigurationError(
            "no plan is approved, so no rules say how to read an image file",
            hint="withdraw by the patient's id",
        )
    return list(found.values())


def _what_stays(place: State, persons: Sequence[Names]) -> Iterator[str]:
    """Yield what a withdrawal cannot undo."""
    answered = [entry.key for entry in place.journal.entries() if entry.state == "answered"]
    rounds = sum("/train/" in key for key in answered)
    batches = sum("/synthesize/" in key for key in answered)
    yield f"what has left stays: {rounds} training rounds and {batches} image batches of this site"
    names = {name for person in persons for name in person}
    if place.groups.is_file() and names:
        with GroupStore(place.groups) as store:
            groups = sum(not names.isdisjoint(group.members) for group in store.groups())
        if groups:
            yield f"{groups} groups that held them have left as images, and come no more"
    yield "`kohort-site ingest --refresh` also removes their images from the state folder"
