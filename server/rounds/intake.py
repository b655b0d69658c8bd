"""The intake: checks one reply, and is the only maker of `Accepted`.

In: a sealed reply, the site behind the node that sent it, the instruction.
Out: `Accepted`, or RefusedError with the code of the first check that does not hold.
The checks:
  (1) size; the site's own signature over the header; the payload has the signed SHA-256
  (2) the sender named in the header is the site behind the node
  (3) the header answers this instruction: study, kind, phase, model, round, part; it names the
      weights that were sent
  (4) the payload's bytes are canonical: boundary rules 3 and 4
  (5) the statement holds the plan's constants and nothing else: boundary rules 1 and 2;
      updates: rules 5 to 9, images: rules 10 to 14
  (6) images have contrast (pictures.py)
Guarantees: nothing is written here, and no site is put in quarantine.
Not covered: whether an update is useful, or poisoned within its public bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from common.errors import Bug, RefusedError
from common.privacy import boundary
from common.study import families
from common.study.plan import Study
from common.wire import signing
from common.wire.messages import Header, Sealed, unseal
from common.wire.tensors import Arrays
from server.operator.sites import Site
from server.rounds.pictures import check_contrast

_TOKEN = object()
REPLIES: Mapping[str, Literal["update", "images"]] = {"train": "update", "synthesize": "images"}


@dataclass(frozen=True)
class Instruction:
    """What one instruction asks of a site, and so what its reply must be.

    `parts`: 0 where the reply says how many there are. `images_before`: images in earlier parts.
    `shapes`: those of the global weights (train). `weights`: SHA-256 of the payload that was sent.
    """

    study: Study
    phase: Literal["train", "synthesize"]
    model: str
    round: int
    part: int = 0
    parts: int = 0
    images_before: int = 0
    shapes: families.Shapes = field(default_factory=dict)
    weights: str = ""

    @property
    def cap_bytes(self) -> int:
        """The largest payload of a reply."""
        return boundary.UPDATE_CAP_BYTES if self.phase == "train" else boundary.PART_CAP_BYTES


class Accepted:
    """A checked reply: its header, its tensors and its sealed bytes. Only `accept` can make one."""

    __slots__ = ("arrays", "header", "sealed")
    header: Header
    arrays: Arrays
    sealed: Sealed

    def __init__(self, token: object, header: Header, arrays: Arrays, sealed: Sealed) -> None:
        if token is not _TOKEN:
            raise Bug("only the intake makes an Accepted", hint="call server.rounds.intake.accept")
        object.__setattr__(self, "header", header)
        object.__setattr__(self, "arrays", arrays)
        object.__setattr__(self, "sealed", sealed)

    def __setattr__(self, name: str, value: object) -> None:
        raise Bug(f"an Accepted cannot be changed ({name})")


def accept(sealed: Sealed, site: str, sign_key: str, asked: Instruction) -> Accepted:
    """Return the accepted reply of `site`; raises RefusedError.

    `sign_key`: the line of the site's signing key.
    """
    # (1) size, signature, payload digest and (2) the sender
    header = open_header(sealed, site, sign_key, asked.cap_bytes)
    # (3) the header answers this instruction
    _check_answer(header, asked)
    # (4) the payload's bytes are canonical
    arrays = boundary.open_payload(sealed.payload, header, asked.cap_bytes)
    # (5) statement and content
    if asked.phase == "train":
        boundary.check_update(arrays, asked.shapes, header, asked.study)
    else:
        images = boundary.check_images(arrays, header, asked.study)
        boundary.check_total(asked.images_before + images, asked.study)
        # (6) no image is flat
        check_contrast(arrays["images"], arrays["privatized"])
    return Accepted(_TOKEN, header, arrays, sealed)


def signer_of(sealed: Sealed, site: Site) -> str:
    """Return the line of the site's key that signed a message; its present one where none did.

    An answer that a site signed before its key changed is sent again as it was.
    """
    for line in site.earlier_sign_keys:
        try:
            key = signing.parse_public(line)
            signing.verify(key, signing.MESSAGE, sealed.header, sealed.signature)
        except RefusedError:
            continue
        return line
    return site.sign_key


def open_header(sealed: Sealed, site: str, sign_key: str, max_bytes: int) -> Header:
    """Return the header that `site` itself signed (checks (1) and (2)); raises RefusedError."""
    try:
        header = unseal(sealed, signing.parse_public(sign_key), max_bytes=max_bytes)
    except RefusedError as error:
        code = "E-INTAKE-SIGNATURE" if error.code == RefusedError.default_code else error.code
        raise RefusedError(str(error), code=code) from error
    if header.sender != site:
        raise RefusedError(
            f"signed as {header.sender}, sent by the node of {site}", code="E-INTAKE-SENDER"
        )
    return header


def check_repeated(sealed: Sealed, site: str, sign_key: str, digest: str) -> None:
    """Check that one more reply to an answered instruction has the accepted payload.

    Raises RefusedError (E-INTAKE-SECOND).
    """
    header = open_header(sealed, site, sign_key, boundary.UPDATE_CAP_BYTES)
    if header.digest != digest:
        raise RefusedError(
            "a second, different payload for one instruction", code="E-INTAKE-SECOND"
        )


def _check_answer(header: Header, asked: Instruction) -> None:
    """Check (3)."""
    got = (header.study, header.kind, header.phase, header.model, header.round, header.part)
    kind = REPLIES[asked.phase]
    expected = (asked.study.hash(), kind, asked.phase, asked.model, asked.round, asked.part)
    if got != expected:
        raise RefusedError(
            f"answers {got[1:]} where {expected[1:]} was asked", code="E-INTAKE-ANSWER"
        )
    if header.statement.get("weights") != asked.weights:
        raise RefusedError("made with other global weights than were sent", code="E-INTAKE-WEIGHTS")
    if asked.parts and header.parts != asked.parts:
        raise RefusedError(
            f"says {header.parts} parts, said {asked.parts} before", code="E-INTAKE-PARTS"
        )
