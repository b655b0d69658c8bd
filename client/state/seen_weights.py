"""Which instructions of a plan the site took up, and the global weights that it saw last.

In: instructions that the daemon admits. Out: their order, the last weights of each model.
Guarantees: an instruction is in the journal before anything is spent on it; its weights are on
disk before that, in a file that only the site's account can read; after `kill -9` the journal
names the weights that are there, or the instruction counts as not seen.
Not covered: what may follow (client/daemon/path.py); a restored backup.

Entries: the key of the instruction, state `seen`, {weights: SHA-256 of the payload}.
Files: weights/<plan>/<model>-<round>.safetensors, the last of each model that still trains.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from client.state.folder import State
from common.errors import PolicyError
from common.privacy.global_weights import Known
from common.storage.files import atomic_write, read_capped
from common.study.fields import CHECKPOINT_CAP_BYTES
from common.wire.messages import Header, digest_of
from common.wire.tensors import loads

SEEN = "seen"
KEY_PARTS = 5  # plan, phase, model, round, part


@dataclass(frozen=True)
class Place:
    """One instruction that the site took up. `weights`: their SHA-256, "" where it is unknown."""

    phase: str
    model: str
    round: int
    weights: str


@dataclass(frozen=True)
class SeenWeights:
    """What one plan's instructions have shown to the site."""

    state: State
    plan: str

    def places(self) -> tuple[Place, ...]:
        """Return the instructions of the plan that the site took up, oldest first.

        One that an earlier version took up has no digest.
        """
        places: dict[str, Place] = {}
        for entry in self.state.journal.entries(f"{self.plan}/"):
            parts = entry.key.split("/")
            if len(parts) != KEY_PARTS:
                continue
            _, phase, model, number, _ = parts
            known = places.get(entry.key)
            weights = known.weights if known else ""
            if entry.state == SEEN:
                weights = str(entry.data["weights"])
            places[entry.key] = Place(phase, model, int(number), weights)
        return tuple(places.values())

    def last(self, model: str) -> Known | None:
        """Return the weights of a model that the site saw last, or None.

        Raises PolicyError (E-WEIGHTS-LOST) where the journal names others than are on disk.
        """
        seen = [place for place in self.places() if place.model == model and place.weights]
        if not seen:
            return None
        path = self._file(model, seen[-1].round)
        payload = b""
        if path.is_file():
            payload = read_capped(path, CHECKPOINT_CAP_BYTES)
        if digest_of(payload) != seen[-1].weights:
            raise PolicyError(
                f"{path}: not the weights that this site saw last",
                hint="put the newest copy of the whole state folder back",
                code="E-WEIGHTS-LOST",
            )
        return Known(seen[-1].round, loads(payload, max_bytes=len(payload), where=str(path)))

    def note(self, header: Header, payload: bytes) -> None:
        """Write down that this instruction was admitted, with its weights."""
        if header.phase == "train":
            atomic_write(self._file(header.model, header.round), payload, mode=0o600)
        self.state.journal.append(header.key, SEEN, {"weights": header.digest})
        self._drop_older(header)

    def _drop_older(self, header: Header) -> None:
        """Remove weights that nothing will be compared with."""
        if header.phase != "train":
            shutil.rmtree(self._folder, ignore_errors=True)
            return
        newest = self._file(header.model, header.round)
        for path in self._folder.glob(f"{header.model}-*.safetensors"):
            if path != newest:
                path.unlink(missing_ok=True)

    @property
    def _folder(self) -> Path:
        """The folder of the plan's weights."""
        return self.state.weights / self.plan

    def _file(self, model: str, number: int) -> Path:
        """The file of the weights before a round."""
        return self._folder / f"{model}-{number:06d}.safetensors"
