"""Targets: JSON, PEM and list files of a state folder, of the other side and of a child."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from client.cli.joining import check_membership
from client.daemon import standing
from client.egress.evidence import Evidence
from client.fleet.connection import FleetSettings, create_node_key, read_node_key
from client.fleet.expiry import ending_certificates
from client.fleet.health import read_states
from client.fleet.own_certificate import check_own_certificate
from client.fleet.session import Session
from client.ingest.finished import NAME, Finished
from client.ingest.listing import LISTING, compare_listing
from client.ingest.refused import LIST, read_refused
from client.ingest.request import Photograph, Scan, Settings
from client.ingest.withdrawal import read_list
from client.state.folder import State
from client.state.group_store import Group, Stratum
from client.state.jobs import ERROR, JOB, PROGRESS, Job, Work, read_error, read_progress
from client.state.ledger import Reservation
from client.state.membership import read_membership
from client.state.spool import INDEX, Spool
from client.state.upgrade import upgrade
from common.errors import RefusedError
from common.privacy.tally import Tally
from common.storage import heartbeat
from common.wire import signing, tensors
from common.wire.messages import canonical
from server.evaluate.canary_rehearsal import _read as read_audit
from server.evaluate.rehearsal_report import read_rehearsal
from server.flower.tasks import Claim
from server.operator.certificates import (
    check_certificate,
    create_authority,
    issue_site_certificate,
    load_authority,
    parse_site_key,
    read_certificate,
)
from server.operator.foreign import FOREIGN_FILE, foreign_runs
from server.operator.renewal import (
    NEXT_KEY,
    REQUEST,
    certify_server,
    import_certificate,
    write_request,
)
from server.operator.requests import read_request
from server.rounds.standing import _seen as seen_by_server
from tests.fuzz.harness import Parser, Target
from tests.fuzz.mutation import Maker, damaged, exchanged, noise, one_of, revalued, wrapped
from tests.fuzz.wire_targets import event_seeds, tensor_makers
from tests.studies import small_study

NAMES = (b"member-1", b"member-2", b"member-3", b"member-4", b"member-5")


def _keys(folder: Path) -> State:
    """A state folder with a node key."""
    place = State(folder)
    (folder / "keys").mkdir()
    create_node_key(place.node_key, place.node_key.with_suffix(".pub"), "hospital-a")
    return place


def _join(folder: Path) -> Parser:
    place = _keys(folder)
    authority = create_authority(folder / "ca")
    line = place.node_key.with_suffix(".pub").read_text()
    issue_site_certificate(authority, "hospital-a", line, folder / "site.crt")
    join = {
        "format": "kohort-join/1",
        "site": "hospital-a",
        "server_url": "https://127.0.0.1:9443",
        "ca": (folder / "ca" / "ca.crt").read_text(),
        "operator_key": signing.public_text(signing.new_key().public_key(), "eye"),
        "client_certificate": (folder / "site.crt").read_text(),
    }
    seed = json.dumps(join).encode()
    path = folder / "join.json"

    def call(data: bytes) -> None:
        path.write_bytes(data)
        check_membership(read_membership(path), place)

    odd = (b'"ca"', b'"site"', b'"https://h:0"', b'"https://h:99999"', b'"https://[::1]:1"')
    return Parser(call, (revalued(seed, odd=odd), exchanged(seed), damaged(seed)))


def _request(folder: Path) -> Parser:
    """Requests under a right signature by the key in them, and without."""
    place = _keys(folder)
    key = signing.new_key()
    fields = {
        "format": "kohort-request/1",
        "site": "hospital-a",
        "node_key": place.node_key.with_suffix(".pub").read_text().strip(),
        "sign_key": signing.public_text(key.public_key(), "hospital-a"),
    }
    path = folder / "request.json"

    def sign(data: bytes) -> bytes:
        try:
            found = json.loads(data)
            text = canonical(found)
        except (ValueError, RecursionError, TypeError):
            return data
        if not isinstance(found, dict):
            return data
        return json.dumps(
            {**found, "signature": signing.sign(key, signing.REQUEST, text).decode()}
        ).encode()

    def call(data: bytes) -> None:
        path.write_bytes(data)
        read_request(path)

    seed = canonical(fields)
    unsigned = revalued(seed, odd=(b'"site"', b'"node_key"', b'"sign_key"', b"ssh-rsa "))
    return Parser(call, (wrapped(unsigned, sign), damaged(sign(seed)), exchanged(sign(seed))))


def _evidence(folder: Path) -> Parser:
    members = tuple(name.decode() for name in NAMES)
    evidence = Evidence((Group(members, Stratum(0, 1), 5),), (0, -1), ("E-AUDIT",))

    def call(data: bytes) -> None:
        found = Evidence.from_json(data)
        for group in found.groups:
            group.token  # noqa: B018

    seed = evidence.to_json()
    odd = (*(b'"%s"' % name for name in NAMES), b'"k"', b'"label"', b'"members"', b"5", b"2")
    return Parser(call, (revalued(seed, odd=odd), exchanged(seed), damaged(seed)))


def _job_folder(folder: Path) -> Parser:
    """What the daemon and its child read of a job's folder."""
    job = Job("train", "gan", "/plan", "/cohort", "", 1, 0.5, "d")
    text = canonical(vars(job) | {"compute": job.compute.model_dump()})
    work = canonical(asdict(Work("gan", 3, 10, 1, 1.5)))
    seeds = (text, b"E-GROUP-SIZE", work)

    def call(data: bytes) -> None:
        name = (JOB, ERROR, PROGRESS)[min(data[0] if data else 0, 2)]
        (folder / name).write_bytes(data[1:])
        if name == JOB:
            Job.read(folder)
        read_error(folder)
        read_progress(folder)

    return Parser(call, (one_of(revalued(seeds[0]), exchanged(seeds[1]), exchanged(seeds[2])),))


def _spool(folder: Path) -> Parser:
    """The index of a spool, over files that are there."""
    place = folder / "job.spool"
    Spool.open(place, "b").append({"codes": np.ones((2, 3), np.float32), "errors": np.ones(2)})
    files = {path: path.read_bytes() for path in place.iterdir()}
    seed = files[place / INDEX]

    def call(data: bytes) -> None:
        place.mkdir(exist_ok=True)
        for path, content in files.items():
            path.write_bytes(content)
        (place / INDEX).write_bytes(data)
        spool = Spool.open(place, "b")
        if spool.count:
            spool.arrays()

    return Parser(call, (revalued(seed), exchanged(seed), damaged(seed)))


def _reservation(folder: Path) -> Parser:
    seeds = [b'{"id":3,"steps":2,"event":' + event + b"}" for event in event_seeds()]

    def call(data: bytes) -> None:
        Reservation.from_json(data.decode("utf-8", "surrogateescape"))

    return Parser(call, (revalued(*seeds), exchanged(*seeds), damaged(*seeds)))


def _tally(folder: Path) -> Parser:
    heard = {
        "included": np.zeros(2, np.uint8),
        "scores": np.zeros(2),
        "squares": np.zeros(2),
        "drawn": np.zeros(2, np.int64),
        "drawn_scores": np.zeros(2),
    }
    arrays: tensors.Arrays = {
        "sizes": np.ones(1, np.int64),
        "released": np.ones(1),
        "signal": np.ones(1),
        "steps": np.ones(1, np.int64),
    }
    for kind in ("own", "inside"):
        arrays |= {f"{kind}.{name}": array for name, array in heard.items()}

    def call(data: bytes) -> None:
        found = Tally.from_arrays(tensors.loads(data, max_bytes=1 << 18))
        assert found + found

    return Parser(call, tensor_makers(tensors.dumps(arrays)))


def _status(folder: Path) -> Parser:
    states = [{"code": "CONNECTED", "facts": "", "since": 1.0}]
    error = {"code": "E-CAP", "time": 2.0}
    facts = {"states": states, "contact": 3.0, "last_error": error, "seen": {"a": 1.0}}
    beat = {"pid": 7, "started": 1.0, "time": 2.0, "stage": "running", "facts": facts}
    seed = json.dumps(beat).encode()

    def call(data: bytes) -> None:
        (folder / heartbeat.FILE).write_bytes(data)
        life = heartbeat.life_of(folder)
        assert life.words() and life.to_dict()
        assert read_states(life.facts) is not None
        assert standing._last_error(life) is None or life.facts
        assert isinstance(seen_by_server(life), dict)

    return Parser(call, (revalued(seed), exchanged(seed), damaged(seed)))


def _small_files(folder: Path) -> Parser:
    """Files of one line that a state folder holds: node id, layout, pseudonym key."""
    place = State(folder)

    def call(data: bytes) -> None:
        which = data[0] % 3 if data else 0
        if which == 0:
            (folder / "node-id").write_bytes(data[1:])
            _session(folder).load()
        elif which == 1:
            place.version.write_bytes(data[1:])
            upgrade(place)
        else:
            place.pseudonym_key.parent.mkdir(exist_ok=True)
            place.pseudonym_key.write_bytes(data[1:])
            place.pseudonym_bytes()

    makers = (exchanged(b"123456\n"), exchanged(b"2\n", b"1"), damaged(bytes(32)))
    return Parser(call, (one_of(*makers),))


def _session(folder: Path) -> Session:
    """A session that is not connected."""
    from client.fleet.connection import FleetSettings
    from client.fleet.health import Health

    settings = FleetSettings("https://h:1", folder, folder, folder)
    return Session(settings, Health())


def _withdrawal(folder: Path) -> Parser:
    path = folder / "list.txt"
    seed = b"\xef\xbb\xbfP-0001\n\nP-0002 \nUNKNOWN\n"

    def call(data: bytes) -> None:
        path.write_bytes(data)
        read_list(path, "issuer", bytes(32))

    return Parser(call, (exchanged(seed), damaged(seed)))


def _listing(folder: Path) -> Parser:
    seed = b"file,stamp\n" + b"a" * 16 + b"," + b"b" * 16 + b"\nc,d\n"

    def call(data: bytes) -> None:
        (folder / LISTING).write_bytes(data)
        compare_listing(folder, {"c": "d"}, {})

    return Parser(call, (exchanged(seed), damaged(seed)))


def _refused(folder: Path) -> Parser:
    seed = b"file,code\n" + b"0" * 32 + b",no-label\n" + b"a" * 32 + b",unknown-format\n"

    def call(data: bytes) -> None:
        (folder / LIST).write_bytes(data)
        read_refused(folder / LIST)

    return Parser(call, (exchanged(seed), damaged(seed)))


def _finished(folder: Path) -> Parser:
    settings = Settings(8, 3, ("OP",), None, 1 << 20, 1 << 20, 1 << 30, 30.0)
    path = folder / NAME
    work = Finished(path, bytes(32), settings)
    work.note("0" * 32, Photograph(np.zeros((8, 8, 3), np.uint8), bytes(32), True, "id", "", 1))
    work.note("1" * 32, Scan("slice", "00", "id", "", "1.2", "1.3"))
    work.close()
    seed = path.read_bytes()

    def call(data: bytes) -> None:
        path.write_bytes(data)
        work = Finished(path, bytes(32), settings)
        found = [work.find(entry) for entry in ("0" * 32, "1" * 32) if entry in work]
        work.close()
        if len(found) < 2:
            raise RefusedError("not whole")

    return Parser(call, (exchanged(seed), damaged(seed)))


def _claim(folder: Path) -> Parser:
    claim = Claim("p" * 64, "token", 2**63, 5, b"\x0a\x02ab")

    def call(data: bytes) -> None:
        Claim.from_json(data)
        (folder / FOREIGN_FILE).write_bytes(data)
        foreign_runs(folder)

    rows = json.dumps([{"time": "2026-11-21", "run": 1, "bundle": "b"}]).encode()
    text = claim.to_json()
    return Parser(call, (revalued(text, rows), exchanged(text, rows), damaged(text, rows)))


def _pem(folder: Path) -> Parser:
    """Certificates and private keys of the operator and of a site."""
    authority = create_authority(folder / "ca")
    create_node_key(folder / "node.key", folder / "node.pub", "hospital-a")
    line = (folder / "node.pub").read_text()
    issue_site_certificate(authority, "hospital-a", line, folder / "site.crt")
    seeds = [(folder / name).read_bytes() for name in ("site.crt", "ca/ca.crt", "node.key")]
    path = folder / "ca" / "ca.crt"
    ca = path.read_bytes()
    settings = FleetSettings("https://h:1", path, folder, folder, client_certificate=folder / "x")

    def call(data: bytes) -> None:
        which = data[0] % 3 if data else 0
        (folder / "x").write_bytes(data[1:])
        if which == 0:
            ending_certificates(settings)
            check_certificate(folder / "x", authority.certificate)
            check_own_certificate(settings)
        elif which == 1:
            path.write_bytes(data[1:])
            try:
                load_authority(folder / "ca")
            finally:
                path.write_bytes(ca)
        else:
            read_node_key(folder / "x")
        read_certificate(folder / "x")

    return Parser(call, (one_of(*(_pem_maker(seed) for seed in seeds)),))


def _pem_maker(seed: bytes) -> Maker:
    """PEM text: damaged as text, or its DER damaged under a right armour."""
    import base64
    import re

    lines = seed.decode().strip().splitlines()
    der = base64.b64decode("".join(lines[1:-1]))

    def armour(data: bytes) -> bytes:
        text = base64.encodebytes(data).decode()
        return f"{lines[0]}\n{re.sub(r'[^A-Za-z0-9+/=]', '', text)}\n{lines[-1]}\n".encode()

    inner = wrapped(damaged(der), armour)
    outer = damaged(seed)
    return lambda rng: inner(rng) if rng.random() < 0.8 else outer(rng)


def _csr(folder: Path) -> Parser:
    """The request for a server's certificate, and the certificate that comes back."""
    authority = create_authority(folder / "ca")
    tls = folder / "tls"
    tls.mkdir()
    request = write_request(tls, ["kohort.example.org"], None).read_bytes()
    key = (tls / NEXT_KEY).read_bytes()
    certificate, _ = certify_server(authority, tls / REQUEST)
    path = folder / "x"

    def call(data: bytes) -> None:
        path.write_bytes(data[1:])
        if data[:1] == b"\0":
            certify_server(authority, path)
            return
        (tls / NEXT_KEY).write_bytes(key)
        import_certificate(tls, authority.certificate, path, "kohort.example.org")

    makers = (one_of(_pem_maker(request), _pem_maker(certificate)),)
    return Parser(call, makers, good=b"\1" + certificate)


def _site_key(folder: Path) -> Parser:
    create_node_key(folder / "node.key", folder / "node.pub", "hospital-a")
    seed = (folder / "node.pub").read_bytes()

    def call(data: bytes) -> None:
        parse_site_key(data.decode("utf-8", "surrogateescape"))

    odd = (b"ecdsa-sha2-nistp384 ", b"ssh-rsa ", b"sk-ecdsa-sha2-nistp256@openssh.com ")
    return Parser(call, (damaged(seed), exchanged(seed, odd=odd), noise()))


def _audits(folder: Path) -> Parser:
    """The audit files of a rehearsal's sites, and the rehearsal of an earlier release."""
    from common.study.rehearsed import plan_digest

    study = small_study()
    counts = {"canaries": 90, "steps": 4, "guesses": 44, "correct": 25, "draws": 400}
    counts |= {"noise_ratio": 1.0, "release_ratio": 1.0, "length": 1.0}  # type: ignore[dict-item]
    plan = plan_digest(study)
    models: dict[str, Any] = {"gan": counts, "glow": counts | {"steps": 2}}
    audit = {"format": "kohort-audit/1", "plan": plan, "site": "hospital-a", "models": models}
    finding = {"name": "n", "value": 0.5, "unit": "u", "evidence": "e", "status": "shown"}
    rehearsal = {"format": "kohort-rehearsal/1", "plan": plan, "cast": "c", "findings": [finding]}
    seeds = [json.dumps(audit).encode(), json.dumps({"rehearsal": rehearsal}).encode()]
    path = folder / "file.json"

    def call(data: bytes) -> None:
        path.write_bytes(data[1:])
        if data[:1] == b"\1":
            read_rehearsal(path, study)
        else:
            read_audit(path, study)

    return Parser(call, (one_of(*map(revalued, seeds)), one_of(*map(exchanged, seeds))))


TARGETS = (
    Target("join-file", ("client.state.membership", "client.cli.joining:check_membership"), _join),
    Target("request-file", ("server.operator.requests:read_request",), _request),
    Target("evidence", ("client.egress.evidence:Evidence",), _evidence),
    Target(
        "job-folder",
        (
            "client.state.jobs:Job",
            "client.state.jobs:read_error",
            "client.state.jobs:read_progress",
            "client.state.jobs:read_work",
        ),
        _job_folder,
    ),
    Target("spool", ("client.state.spool:Spool._load",), _spool),
    Target("reservation", ("client.state.ledger:Reservation.from_json",), _reservation),
    Target("tally", ("client.daemon.training:_tallies",), _tally),
    Target(
        "status-file",
        (
            "common.storage.heartbeat:read_beat",
            "client.fleet.health:read_states",
            "client.daemon.standing:_last_error",
            "server.rounds.standing:_seen",
        ),
        _status,
    ),
    Target(
        "small-files",
        (
            "client.fleet.session:Session.load",
            "client.state.upgrade:upgrade",
            "client.state.folder:State.pseudonym_bytes",
        ),
        _small_files,
    ),
    Target("withdrawal-list", ("client.ingest.withdrawal:read_list",), _withdrawal),
    Target("listing", ("client.ingest.listing:read_listing",), _listing),
    Target(
        "finished-work",
        ("client.ingest.finished:Finished", "client.ingest.outcomes:unpack"),
        _finished,
    ),
    Target("refused-files", ("client.ingest.refused:read_refused",), _refused),
    Target(
        "task-files",
        (
            "server.flower.tasks:ClaimFile",
            "server.flower.tasks:Claim",
            "server.operator.foreign:foreign_runs",
        ),
        _claim,
    ),
    Target(
        "pem-files",
        (
            "server.operator.certificates:read_certificate",
            "server.operator.certificates:_is_chain",
            "common.wire.keys:from_pem",
            "server.operator.certificates:read_key",
            "client.fleet.connection:read_node_key",
            "client.fleet.connection:_load_open",
            "client.fleet.expiry",
            "client.fleet.own_certificate",
        ),
        _pem,
    ),
    Target("certificate-requests", ("server.operator.renewal",), _csr),
    Target("site-key-line", ("server.operator.certificates:parse_site_key",), _site_key),
    Target(
        "rehearsal-files",
        (
            "server.evaluate.canary_rehearsal:_read",
            "server.evaluate.rehearsal_report:read_rehearsal",
        ),
        _audits,
    ),
)
