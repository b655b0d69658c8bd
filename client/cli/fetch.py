"""`fetch`: images of a DICOMweb server, into the sealed data folder.

In: site.yaml. Out: sealed files, and counts on this screen.
Guarantees: the credential stands on no command line; nothing is written to the server, nothing is
logged.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from client.cli.options import StateFolder
from client.cli.terminal import phase_bar, write_line
from client.dicomweb.credential import read_credential
from client.dicomweb.fetch import fetch_images
from client.state.config import load_site
from client.state.folder import State

CredentialDescriptor = Annotated[
    int | None,
    typer.Option(
        "--credential-fd",
        min=0,
        help="descriptor of what the server asks for, one line: USER:PASSWORD or `Bearer TOKEN`",
    ),
]


def fetch(state: StateFolder, credential_fd: CredentialDescriptor = None) -> None:
    """Fetch the images that `dicomweb` of site.yaml asks for, sealed, into data.folder.

    Only reads from the server. What is there already is not fetched again. `ingest` comes next.
    """
    config = load_site(state)
    credential = read_credential(credential_fd)
    with phase_bar(lines=True) as phases:
        found = fetch_images(
            config, State(state).pseudonym_bytes(), credential, partial(phases, "images fetched")
        )
    for line in found.lines():
        write_line(line)
