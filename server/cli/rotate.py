"""`rotate`: the operator's next key."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from common.errors import ConfigurationError
from common.storage.files import atomic_write
from common.storage.lock import FolderLock
from common.wire import signing
from server.cli.options import StateFolder
from server.cli.output import check_folder
from server.cli.state_folder import load_operator_key
from server.cli.terminal import write
from server.operator import authorities, hand_over
from server.operator.config import load_config
from server.operator.state import ServerState

Which = Annotated[str, typer.Argument(metavar="operator", help="the key that signs")]
Finish = Annotated[bool, typer.Option("--finish", help="let the next key take over")]
Out = Annotated[Path | None, typer.Option(help="hand-over to write; default: in the state folder")]


def rotate(state: StateFolder, which: Which, finish: Finish = False, out: Out = None) -> None:
    """Make the operator's next key, and the hand-over that every hospital joins.

    --finish lets it take over, once they all have; the server must be stopped for it. A site that
    has not joined the hand-over refuses the new key's instructions.
    """
    if which != "operator":
        raise ConfigurationError(
            f"rotate {which}: unknown; expected operator", hint="kohort-server rotate --help"
        )
    place = ServerState(state)
    old = load_operator_key(place).public_key()
    name = load_config(place.config).name
    if finish:
        with FolderLock(place.lock, "kohort-server"):
            key = hand_over.finish(place, name)
            authorities.state_again(place, key)
        write(f"the operator's key is now {signing.fingerprint(key.public_key())}\n")
        return
    path = out or place.root / "operator.handover.json"
    check_folder("--out", path.parent)
    text = hand_over.begin(place, name)
    atomic_write(path, text)
    new = signing.load_private(place.next_operator_key).public_key()
    write(f"the operator's key is   {signing.fingerprint(old)}\n")
    write(f"the next one will be    {signing.fingerprint(new)}\n")
    write(f"send {path} to every hospital: kohort-site join {path.name}\n")
    write("once all have joined it: kohort-server rotate operator --finish\n")
