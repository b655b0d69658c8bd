"""The task that the executor holds, on disk before it runs.

In: Flower's answers. Out: a `Claim`, after any restart the same.
Guarantees: the file is whole, and only its owner reads it; it holds the task's token and its input
without the bundle.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path

from common.errors import RefusedError, damage_named
from common.storage.files import atomic_write, read_capped

CLAIM_CAP_BYTES = 60_000  # a pipe takes 65,536 bytes at once, so that no writer waits for a child
TOO_LARGE = "E-CLAIM-SIZE"


@dataclass(frozen=True)
class Claim:
    """A task of the plan `pin`: its token, its ids, and its input as Flower's bytes."""

    pin: str
    token: str
    task_id: int
    run_id: int
    answer: bytes

    def to_json(self) -> bytes:
        """Return the text of the claim's file, which a child gets as well."""
        data = {
            "pin": self.pin,
            "token": self.token,
            "task_id": self.task_id,
            "run_id": self.run_id,
            "answer": base64.b64encode(self.answer).decode(),
        }
        return json.dumps(data).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Claim:
        """Return the claim in `to_json`'s text; raises RefusedError for anything else."""
        with damage_named(RefusedError("claim: expected pin, token, task_id, run_id, answer")):
            data = json.loads(text)
            answer = base64.b64decode(data["answer"], validate=True)
            claim = cls(data["pin"], data["token"], data["task_id"], data["run_id"], answer)
        if {type(claim.pin), type(claim.token)} != {str} or {
            type(claim.task_id),
            type(claim.run_id),
        } != {int}:
            raise RefusedError("claim: expected two texts and two whole numbers")
        return claim


class ClaimFile:
    """The claim of one executor, in one file."""

    def __init__(self, path: Path, pin: str) -> None:
        self._path = path
        self._pin = pin

    def read(self) -> Claim | None:
        """Return the claim of an earlier start for the same plan, if it is there and whole."""
        if not self._path.exists():
            return None
        try:
            claim = Claim.from_json(read_capped(self._path, CLAIM_CAP_BYTES))
        except RefusedError:
            claim = None
        if claim is None or claim.pin != self._pin:
            self.drop()
            return None
        return claim

    def write(self, claim: Claim) -> None:
        """Store the claim; on disk when this returns. Raises RefusedError (E-CLAIM-SIZE)."""
        text = claim.to_json()
        if len(text) > CLAIM_CAP_BYTES:
            raise RefusedError(
                f"run {claim.run_id}: a task of {len(text)} bytes, at most {CLAIM_CAP_BYTES} "
                "expected",
                hint="a run of `kohort-server run` has two thousand: see who else submits runs",
                code=TOO_LARGE,
            )
        atomic_write(self._path, text, mode=0o600)

    def drop(self) -> None:
        """Forget the claim."""
        self._path.unlink(missing_ok=True)
