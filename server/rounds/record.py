"""What the server remembers of one study: its files, its journal, and the views on them.

In: a study's folder. Out: the weights of a round, accepted replies, round records, progress.
Guarantees: a round is closed if and only if its journal entry says so, and then its new weights are
on disk with the SHA-256 in that entry; an accepted reply is on disk before it is journaled.
Not covered: decisions (intake.py, gathering.py).
Files:
  bundle/                           the signed plan
  journal.sqlite
  weights/MODEL-ROUND.safetensors   before that round; the last two of a model
  rounds/MODEL-ROUND/SITE.sealed    until the round is closed
  evidence/MODEL/SITE.json          of a model's last round: the signed header without payload
  images/SITE/PART.sealed
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from common.errors import Bug, RefusedError, damage_named, disk_faults_named
from common.storage import files
from common.storage.files import file_digest
from common.storage.journal import Entry, Journal
from common.study.families import FAMILIES
from common.study.fields import CHECKPOINT_CAP_BYTES
from common.study.plan import Study
from common.study.round_names import round_name
from common.study.shapes import starting_weights
from common.wire import tensors
from common.wire.messages import Sealed
from kohort.statements import statement_json
from server.rounds.history import CODE, Absence, DeclaredCode, History

WEIGHTS_CAP_BYTES = CHECKPOINT_CAP_BYTES
SEALED_CAP_BYTES = (1 << 29) + (1 << 20)
STATEMENT_CAP_BYTES = 1 << 20
RECEIPTS = 64
MOST_CODES = 16  # of one site in one round: a site that invents codes fills no journal


@dataclass(frozen=True)
class Batch:
    """One site's accepted images: its signing key at that time and the sealed parts."""

    site: str
    key: str
    parts: Sequence[Sealed]


class SealedFiles(Sequence[Sealed]):
    """Sealed messages on disk; each is read when it is asked for, and not kept."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = tuple(paths)

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, at: int) -> Sealed: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Sealed]: ...

    def __getitem__(self, at: int | slice) -> Sealed | Sequence[Sealed]:
        if isinstance(at, slice):
            return SealedFiles(self._paths[at])
        return read_sealed(self._paths[at])


@dataclass(frozen=True)
class Progress:
    """How far a study is. `done` of `total` rounds (all models' rounds and one of images).

    `code` and `since` of a study that is paused: why, and since when (UTC).
    """

    done: int
    total: int
    phase: str
    waiting: str
    complete: bool
    code: str = ""
    since: str = ""
    abandoned: bool = False


class StudyRecord:
    """The folder of one study."""

    def __init__(self, root: Path, study: Study) -> None:
        self.root = root
        self.study = study
        self.journal = Journal(root / "journal.sqlite")
        self._hash = study.hash()
        self._history = History(self.journal, self._hash)

    # --- weights

    def weights_file(self, model: str, round_: int) -> Path:
        """Where the weights before round `round_` lie."""
        return self.root / "weights" / f"{model}-{round_:06d}.safetensors"

    def weights(self, model: str, round_: int) -> tensors.Arrays:
        """Return the global weights before a round; round 0 is the plan's starting checkpoint."""
        path = self.weights_file(model, round_)
        if round_ == 0 and not path.exists():
            self.write_weights(model, 0, self._start(model))
        arrays = tensors.read(path, max_bytes=WEIGHTS_CAP_BYTES)
        entry = None
        if round_:
            entry = self.closing_entry("train", model, round_ - 1)
        if entry and entry.data["weights"] != file_digest(path):
            raise Bug(f"{path}: does not have the SHA-256 that the journal names")
        return arrays

    def write_weights(
        self, model: str, round_: int, weights: Mapping[str, NDArray[np.generic]]
    ) -> Path:
        """Write the weights before a round and return their file.

        They carry the metadata of the starting checkpoint.
        """
        metadata = tensors.metadata(self._start_file(model))
        path = self.weights_file(model, round_)
        tensors.write(path, weights, metadata)
        return path

    def _start_file(self, model: str) -> Path:
        """The starting checkpoint in the bundle."""
        start = self.study.models.trained()[model].start
        if start is None:
            raise Bug(f"the plan was signed without a starting checkpoint for {model}")
        return self.root / "bundle" / "checkpoints" / start.name

    def _start(self, model: str) -> tensors.Arrays:
        """The model's part of the starting checkpoint, as float32."""
        return starting_weights(self._start_file(model), FAMILIES[model])

    def final_weights(self) -> dict[str, Path]:
        """Return the files of the final weights by model, once every round is closed."""
        trained = self.study.models.trained()
        return {model: self.weights_file(model, plan.rounds) for model, plan in trained.items()}

    # --- rounds

    def place(self, phase: str, model: str, round_: int) -> str:
        """The journal key of a round."""
        return f"{self._hash}/{phase}/{model}/{round_}"

    def closing_entry(self, phase: str, model: str, round_: int) -> Entry | None:
        """Return the entry that closed a round, or None."""
        entry = self.journal.latest(self.place(phase, model, round_))
        if entry is None or entry.state != "closed":
            return None
        return entry

    def silent_sites(self, rounds: int) -> frozenset[str]:
        """Return the sites that were missing in each of the last closed rounds, so many of them."""
        missing = self._history.read().missing[-rounds:]
        if len(missing) < rounds:
            return frozenset()
        return frozenset.intersection(*missing)

    def close_round(self, phase: str, model: str, round_: int, data: Mapping[str, Any]) -> None:
        """Journal a round as closed, then drop what it no longer needs.

        Of a model's last round the signed headers stay.
        """
        if phase == "train" and round_ == self.study.models.trained()[model].rounds - 1:
            self._keep_evidence(model, round_, data["accepted"])
        entry = {**data, "time": _now()}
        self.journal.append(self.place(phase, model, round_), "closed", entry)
        if phase == "train":
            shutil.rmtree(self.round_folder(model, round_), ignore_errors=True)
            if round_:
                remove_file(self.weights_file(model, round_ - 1))

    def round_folder(self, model: str, round_: int) -> Path:
        """Where the accepted updates of an open round lie."""
        return self.root / "rounds" / f"{model}-{round_:06d}"

    def reply_file(self, phase: str, model: str, round_: int, site: str, part: int) -> Path:
        """Where an accepted reply lies."""
        if phase == "train":
            return self.round_folder(model, round_) / f"{site}.sealed"
        return self.root / "images" / site / f"{part:05d}.sealed"

    # --- replies

    def note_accepted(self, key: str, site: str, digest: str, sign_key: str) -> None:
        """Journal that the reply to `key` (a header's) was accepted from a site."""
        self.journal.append(
            f"{key}/{site}", "accepted", {"digest": digest, "site": site, "key": sign_key}
        )

    def accepted_digest(self, key: str, site: str) -> str | None:
        """Return the payload digest that was accepted for a key, or None."""
        entry = self.journal.latest(f"{key}/{site}")
        if entry is None or entry.state != "accepted":
            return None
        return str(entry.data["digest"])

    def note_refused(self, key: str, site: str, code: str) -> None:
        """Journal that a site's reply was refused; an earlier acceptance for the key is void."""
        self.journal.append(f"{key}/{site}", "refused", {"code": code, "site": site})

    def note_code(self, key: str, site: str, code: str) -> bool:
        """Journal the code that a site answers in place of a result; False where nothing is new.

        A site that gives the same code again keeps the time of the first one.
        """
        place = f"{key}/{site}/{CODE}"
        before = self.journal.entries(place)
        if len(before) >= MOST_CODES:
            return False
        known = self.last_code(site)
        if known is not None and before and before[-1].data["code"] == known.code == code:
            return False
        self.journal.append(place, CODE, {"site": site, "code": code, "since": _now()})
        return True

    def last_code(self, site: str) -> DeclaredCode | None:
        """Return what a site answers now in place of a result; None once it has answered."""
        return self._history.read().codes.get(site)

    def receipts(self, site: str, sign_keys: Sequence[str]) -> tuple[str, ...]:
        """Return the payload digests of a site's newest accepted replies, oldest first.

        `sign_keys`: its key and those that handed over to it, newest first. What it signed with
        another key is of a state that it no longer has.
        """
        accepted = self._history.read().accepted
        found = [one for key in reversed(sign_keys) for one in accepted.get((site, key), {})]
        return tuple(found)[-RECEIPTS:]

    def newest_answer(self, site: str) -> tuple[str, str, int] | None:
        """Return phase, model and round of the newest accepted reply of a site, or None."""
        key = self._history.read().newest.get(site)
        if key is None:
            return None
        _, phase, model, number, *_ = key.split("/")
        return phase, model, int(number)

    def refusals(self, phase: str, model: str, round_: int) -> dict[str, str]:
        """Return the sites whose reply in a round was refused, with the code."""
        entries = self.journal.entries(self.place(phase, model, round_) + "/")
        codes = {}
        for entry in entries:
            if entry.state == "refused":
                codes[entry.data["site"]] = entry.data["code"]
        return codes

    def _keep_evidence(self, model: str, round_: int, sites: Sequence[str]) -> None:
        """Write the signed headers of the accepted updates."""
        for site in sites:
            sealed = read_sealed(self.reply_file("train", model, round_, site, 0))
            entry = self.journal.latest(f"{self.place('train', model, round_)}/0/{site}")
            assert entry is not None
            line = statement_json(site, str(entry.data["key"]), sealed.header, sealed.signature)
            files.atomic_write(self.root / "evidence" / model / f"{site}.json", line)

    # --- views

    def evidence(self, model: str) -> dict[str, bytes]:
        """Return each site's statement of its update in a model's closed last round.

        A statement is one of kohort/statements.py, as JSON.
        """
        entry = self.closing_entry("train", model, self.study.models.trained()[model].rounds - 1)
        sites = _accepted_sites(entry)
        folder = self.root / "evidence" / model
        return {
            site: files.read_capped(folder / f"{site}.json", STATEMENT_CAP_BYTES) for site in sites
        }

    def batches(self) -> tuple[Batch, ...]:
        """Return the complete image batches of the closed synthesis round, in order of site."""
        entry = self.closing_entry("synthesize", "", 0)
        sites = _accepted_sites(entry)
        return tuple(self._batch(site) for site in sites)

    def _batch(self, site: str) -> Batch:
        files = sorted((self.root / "images" / site).glob("*.sealed"))
        entry = self.journal.latest(f"{self.place('synthesize', '', 0)}/0/{site}")
        assert entry is not None
        return Batch(site, str(entry.data["key"]), SealedFiles(files))

    def missing_sites(self) -> tuple[str, ...]:
        """Return the sites of which the round that was closed last has nothing."""
        missing = self._history.read().missing
        return tuple(sorted(missing[-1])) if missing else ()

    def absences(self) -> dict[str, Absence]:
        """Return how long each site has been missing of which the last closed round has nothing."""
        return dict(sorted(self._history.read().absent.items()))

    def any_closed(self) -> bool:
        """Whether a round of the study is closed."""
        return bool(self._history.read().closed)

    def complete(self) -> bool:
        """Whether everything that the plan asks for is done."""
        return self._end() == "complete"

    def abandoned(self) -> bool:
        """Whether the operator has ended the study before it was complete."""
        return self._end() in ("abandoned", "stopped")

    def ended(self) -> bool:
        """Whether nothing is left to do: complete, or abandoned and its sites told."""
        return self._end() in ("complete", "stopped")

    def _end(self) -> str:
        entry = self.journal.latest(self._hash)
        return "" if entry is None else entry.state

    def progress(self) -> Progress:
        """Return how far the study is, from the journal alone."""
        rounds = self._rounds()
        still_open = self._open_rounds()
        found = Progress(
            done=len(rounds) - len(still_open),
            total=len(rounds),
            phase=still_open[0][0] if still_open else "closing",
            waiting="",
            complete=self.complete(),
            abandoned=self.abandoned(),
        )
        state = self.journal.latest(self._hash + "/state")
        if not still_open or state is None or found.abandoned:
            return found
        return replace(
            found,
            waiting=str(state.data.get("text", "")),
            code=str(state.data.get("code", "")),
            since=str(state.data.get("since", "")),
        )

    def round_name(self, place: str) -> str:
        """Return a round's name by its journal key; the key's own end for one of no plan."""
        names = {key: name for name, key in self._rounds()}
        return names.get(place, place.partition("/")[2])

    def open_round(self) -> tuple[str, str] | None:
        """Return the name and the journal key of the first round that is not closed, or None."""
        still_open = self._open_rounds()
        return still_open[0] if still_open else None

    def note_waiting(self, text: str) -> None:
        """Journal what the open round waits for."""
        self.journal.append(self._hash + "/state", "waiting", {"text": text})

    def note_paused(self, place: str, code: str, text: str) -> None:
        """Journal that the round at `place` is below the quorum; `since` stays while it is."""
        before = self.journal.latest(self._hash + "/state")
        since = _now()
        if before is not None and before.state == "paused" and before.data["place"] == place:
            since = str(before.data["since"])
        data = {"place": place, "code": code, "text": text, "since": since}
        self.journal.append(self._hash + "/state", "paused", data)

    def _open_rounds(self) -> list[tuple[str, str]]:
        """The name and the journal key of every round that is not closed, in order."""
        closed = self._history.read().closed
        return [(name, key) for name, key in self._rounds() if key not in closed]

    def _rounds(self) -> list[tuple[str, str]]:
        """The name and the journal key of every round of the plan."""
        rounds = []
        for model, plan in self.study.models.trained().items():
            for number in range(plan.rounds):
                name = round_name(self.study, "train", model, number)
                rounds.append((name, self.place("train", model, number)))
        if self.study.synthesis:
            name = round_name(self.study, "synthesize", "", 0)
            rounds.append((name, self.place("synthesize", "", 0)))
        return rounds

    def close(self) -> None:
        """Close the journal."""
        self.journal.close()


def _accepted_sites(entry: Entry | None) -> list[str]:
    """The accepted sites of a closed round, in order of name; none of an open one."""
    if entry is None:
        return []
    return sorted(entry.data["accepted"])


def _now() -> str:
    """The time of this machine, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def remove_file(path: Path) -> None:
    """Remove a file that may be gone; raises EnvironmentFault where the disk refuses."""
    with disk_faults_named("cannot remove", path):
        path.unlink(missing_ok=True)


def store_sealed(path: Path, sealed: Sealed) -> None:
    """Write a sealed message as one safetensors file, atomically."""
    tensors.write(
        path, {name: np.frombuffer(value, np.uint8) for name, value in sealed._asdict().items()}
    )


def read_sealed(path: Path) -> Sealed:
    """Return the sealed message in a file that `store_sealed` wrote."""
    fields = tensors.read(path, max_bytes=SEALED_CAP_BYTES)
    with damage_named(RefusedError(f"{path}: not a sealed message")):
        return Sealed(*(fields[name].tobytes() for name in Sealed._fields))
