"""`persons`: which ids of the data folder are one person, and why; on this screen alone."""

from __future__ import annotations

from client.cli.options import StateFolder
from client.cli.state_folder import open_plans
from client.cli.terminal import write_line
from client.ingest.joins_now import list_joins
from client.ingest.refresh import Intakes
from client.state.config import load_site
from client.state.folder import State
from common.errors import PolicyError


def persons(state: StateFolder) -> None:
    """List the ids that count as one person, with the cause of each join; on this screen alone.

    Read from headers and the labels file; no picture is opened. persons.csv undoes or adds joins.
    """
    config = load_site(state)
    studies = open_plans(state).valid()
    if not studies:
        raise PolicyError(
            "no plan is approved here, so no rules say which files count",
            hint="kohort-site approve BUNDLE",
        )
    study = next(iter(studies.values()))
    lines = list_joins(Intakes(State(state), config), study.intake)
    for text in lines:
        write_line(f"one person: {text}")
    write_line(f"{len(lines)} joins; data.persons_csv of site.yaml names the file that undoes them")
