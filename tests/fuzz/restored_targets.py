"""Targets: files of a state folder that somebody put back, or that a disk damaged."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import numpy as np

from client.egress.outbox import Outbox
from client.ingest.cohort import Cohort
from client.state.canaries import CanaryFile, history
from client.state.group_store import Group, Grouping, GroupStore, Stratum
from client.state.ledger_file import GENESIS, _digest, _verify_row, append, transaction
from client.state.people import PeopleFile, Spelling
from common.models.glow import Glow
from common.models.glow_checkpoint import load as load_flow
from common.models.glow_checkpoint import save as save_flow
from common.storage.journal import Journal
from common.wire import signing, tensors
from common.wire.messages import seal
from server.rounds.record import read_sealed
from tests.fuzz.harness import Parser, Target
from tests.fuzz.mutation import Maker, damaged, exchanged, one_of, revalued
from tests.fuzz.wire_targets import header_of, tensor_makers
from tests.sites import write_cohort
from tests.studies import small_study

FILES_SHARE = 0.2  # of the inputs that damage the file, not a row of it


def _rows_or_file(rows: Maker, file: Maker) -> Maker:
    """Rows of a table mostly; now and then the file itself, which takes longer."""
    both = one_of(rows), one_of(rows, file)
    return lambda rng: both[rng.random() < FILES_SHARE](rng)


def _journal(folder: Path) -> Parser:
    """Rows and files of a journal, and the persons file, which is one."""
    path = folder / "journal.sqlite"
    journal = Journal(path)
    journal.append("a/0", "answered", {"sealed": ["0" * 64], "site": "hospital-a"})
    journal.close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA journal_mode=DELETE")
        db.execute("PRAGMA synchronous=OFF")
        for trigger in ("no_update", "no_delete"):
            db.execute(f"DROP TRIGGER IF EXISTS {trigger}")
    db.close()
    whole = path.read_bytes()
    rows = sqlite3.connect(":memory:", isolation_level=None)
    journal._db = rows
    rows.execute("CREATE TABLE entry (seq INTEGER PRIMARY KEY, key, state, data)")
    rows.execute("INSERT INTO entry VALUES (1, 'a', 'stated', '{}')")

    def call(data: bytes) -> None:
        if data[:1] == b"\0":
            rows.execute("UPDATE entry SET data = CAST(? AS TEXT)", (data[1:],))
            journal.latest("a")
            journal.entries()
            return
        for side in path.parent.glob("journal.sqlite-*"):
            side.unlink()
        path.write_bytes(data[1:])
        PeopleFile(path).read()
        other = Journal(path)
        other.entries()
        other.close()

    seeds = (b'{"sealed": ["a"], "site": "b"}', b'{"persons": [["a", "b"]], "plain": {"c": "d"}}')
    return Parser(
        call,
        (
            _rows_or_file(revalued(*seeds), damaged(whole)),
            _rows_or_file(exchanged(*seeds), damaged(whole)),
        ),
    )


def _people(folder: Path) -> Parser:
    """Entries of the persons file."""
    file = PeopleFile(folder / "people.sqlite")
    file.state([["a", "b"]], {"c": "d"}, {"a": Spelling(("1",), ("2",))})
    file.decide([("a", "c")], [("a", "b")])
    file.withdraw(["a"])
    entries = file._entries()
    seeds = [json.dumps([entry.state, entry.data]).encode() for entry in entries]

    def call(data: bytes) -> None:
        try:
            state, fields = json.loads(data)
        except (ValueError, TypeError, RecursionError):
            return
        if not isinstance(state, str) or not isinstance(fields, dict):
            return
        entry = type(entries[0])(1, "people", state, fields)
        file._entries = lambda: [entry]  # type: ignore[method-assign]
        found = file.read()
        found.has_withdrawn(["a"])
        found.called("a", Spelling(("2",), ("1",)))
        found.still_one()

    odd = (b'"stated"', b'"withdrawn"', b'"persons"', b'"plain"', b'"names"', b'"forms"')
    odd = (*odd, b'"decided"', b'"same"', b'"different"')
    return Parser(call, (revalued(*seeds, odd=odd),))


def _ledger(folder: Path) -> Parser:
    """Rows of the ledger under a right hash, and the damaged file."""
    path = folder / "ledger.sqlite"
    with transaction(path) as (connection, entries):
        append(connection, entries, "opening", {"format": "f", "delta": 1e-5})
    whole = path.read_bytes()

    def call(data: bytes) -> None:
        if data[:1] == b"\1":
            for side in path.parent.glob("ledger.sqlite-*"):
                side.unlink()
            path.write_bytes(data[1:])
            with transaction(path):
                return
        kind, _, body = data[1:].partition(b" ")
        digest = _digest(GENESIS, 1, kind, body).encode()
        _verify_row(1, (1, kind, body, GENESIS.encode(), digest), GENESIS)

    seed = b'reserved {"event":{"q":0.5},"steps":3}'
    return Parser(call, (_rows_or_file(exchanged(seed), damaged(whole)),))


def _outbox(folder: Path) -> Parser:
    key = signing.new_key()
    payload = tensors.dumps({"a": np.ones(2, np.float32)})
    header = header_of(payload)
    sealed = seal(header, payload, key)
    seed = tensors.dumps(
        {name: np.frombuffer(part, np.uint8) for name, part in sealed._asdict().items()}
    )
    outbox = Outbox(folder)
    path = outbox._path(header.key)
    path.parent.mkdir(parents=True, exist_ok=True)

    def call(data: bytes) -> None:
        path.write_bytes(data)
        outbox.get(header.key)
        read_sealed(path)
        outbox.digests(header.key)

    odd = (b'"header"', b'"payload"', b'"signature"', b'"F32"', b'"parts":2')
    return Parser(call, (*tensor_makers(seed), exchanged(seed, odd=odd)))


def _canaries(folder: Path) -> Parser:
    """The secret of the canaries and the sum of the rounds that count."""
    file = CanaryFile(folder, "p" * 16, "gan", 4)
    file.secret(64)
    seed = file._path.read_bytes()

    def call(data: bytes) -> None:
        file._path.write_bytes(data)
        history(file._path)
        file.secret(64)
        file.counted()

    odd = (b'"rounds"', b'"canaries"', b'"I32"', b"[2]", b"[3]")
    return Parser(call, (*tensor_makers(seed), exchanged(seed, odd=odd)))


def _flow(folder: Path) -> Parser:
    model = Glow(8, 1, 1, 1, 4)
    path = folder / "flow.safetensors"
    save_flow(model, path)
    seed = path.read_bytes()

    def call(data: bytes) -> None:
        path.write_bytes(data)
        tensors.metadata(path)
        load_flow(model, path)

    odd = (b'"rotations"', b'"__metadata__"', b'{"rotations":1}')
    return Parser(call, (*tensor_makers(seed), exchanged(seed, odd=odd)))


def _cohort(folder: Path) -> Parser:
    """The three files of a cohort."""
    write_cohort(folder / "cohort", small_study(), patients=4)
    names = ("cohort.json", "images.npy", "index.sqlite")
    good = [(folder / "cohort" / name).read_bytes() for name in names]

    def call(data: bytes) -> None:
        number = min(data[0] if data else 0, 2)
        path = folder / "cohort" / names[number]
        path.write_bytes(data[1:])
        try:
            Cohort.read_whole(folder / "cohort")
        finally:
            path.write_bytes(good[number])

    head = exchanged(good[1][:128])
    makers = (revalued(good[0]), lambda rng: head(rng) + good[1][128:], damaged(good[2]))
    return Parser(call, (one_of(*makers),))


def _groups(folder: Path) -> Parser:
    """The damaged file of frozen groups."""
    path = folder / "groups.sqlite"
    with GroupStore(path) as store:
        store.freeze(Grouping((Group(("a", "b", "c"), Stratum(0), 3),), ()), "random")
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA journal_mode=DELETE")
    db.close()
    seed = path.read_bytes()

    def call(data: bytes) -> None:
        for side in path.parent.glob("groups.sqlite-*"):
            side.unlink()
        path.write_bytes(data)
        with GroupStore(path) as store:
            store.frozen()

    return Parser(call, (damaged(seed),))


TARGETS = (
    Target(
        "journal",
        ("common.storage.journal:Journal", "common.storage.journal:_entry"),
        _journal,
        few=300,
    ),
    Target("persons-file", ("client.state.people",), _people),
    Target("ledger-file", ("client.state.ledger_file:_verify_row",), _ledger, few=300),
    Target(
        "outbox",
        ("client.egress.outbox:Outbox.get", "client.egress.outbox:Outbox.digests"),
        _outbox,
    ),
    Target("canary-file", ("client.state.canaries",), _canaries),
    Target(
        "flow-checkpoint",
        ("common.models.glow_checkpoint:load", "common.wire.tensors:metadata"),
        _flow,
        few=500,
    ),
    Target("cohort", ("client.ingest.cohort:Cohort.read_whole",), _cohort, few=300),
    Target("group-store", ("client.state.group_store:GroupStore._read",), _groups, few=100),
)
