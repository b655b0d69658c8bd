"""The signed header of a message between a site and the server.

It names study, phase, model, round, part, sender and the payload's SHA-256.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StrictInt

from kohort.frozen import FrozenModel

VERSION = 2  # of the headers that are sent
HEADS = 16
Hex64 = Field(pattern=r"^[0-9a-f]{64}$")
Name = Field(pattern=r"^[a-z][a-z0-9-]{0,31}$")


class Header(FrozenModel):
    """The signed description of one message.

    A whole number is written as one: neither 1.0 nor true.
    `statement` holds public constants, the SHA-256 of the global weights, and of a site's state a
    commitment alone. In an instruction, `receipts` names the site's accepted payloads of this
    study, and `heads` the newest commitments that the operator accepted from it over all studies.
    Version 1 had no `heads`, and the ledger's head and number in the statement: only releases of
    that time hold it.
    """

    version: Annotated[StrictInt, Field(ge=1, le=2)] = 2
    kind: Literal["train", "synthesize", "update", "images"]
    study: str = Hex64
    phase: Literal["train", "synthesize"]
    model: Literal["gan", "glow", "wgan", ""] = ""
    round: StrictInt = Field(ge=0, le=1_000_000)
    part: StrictInt = Field(default=0, ge=0, le=10_000)
    parts: StrictInt = Field(default=1, ge=1, le=10_000)
    sender: str = Name
    digest: str = Hex64
    statement: dict[str, str | int | float | bool] = Field(default_factory=dict, max_length=64)
    receipts: tuple[str, ...] = Field(default=(), max_length=64)
    heads: tuple[Annotated[str, Hex64], ...] = Field(default=(), max_length=HEADS)

    @property
    def key(self) -> str:
        """The journal's key: study, phase, model, round, part.

        Flower's run id is not in it, because it changes when a run is submitted again.
        """
        return f"{self.study}/{self.phase}/{self.model}/{self.round}/{self.part}"
