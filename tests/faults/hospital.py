"""A hospital under faults: the real daemon, gate, outbox, ledger, group store and journals.

In: the kind of a study and the steps of its people. Out: `Scenario`s, whose `play` is one life of
the daemon: it starts over what is on disk, and does every step again.
Guarantees: only numerics, decoder and children are replaced (tests/sequences/numerics.py).
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from client.cli.joining import check_membership, init, join
from client.cli.withdraw import withdraw
from client.daemon.jobs import Ending
from client.daemon.site import Site
from client.ingest.cohort import Cohort
from client.single.request import Request
from client.single.single import privatize_images
from client.state.config import FILE, load_site
from client.state.folder import KEY_BYTES, State
from client.state.jobs import ERROR, Job, Stopped
from client.state.ledger import Reservation
from client.state.ledger_file import of_kind
from client.state.membership import Membership, read_membership
from client.state.plans import Plans
from client.state.sample import sample as site_sample
from common.storage.files import atomic_write
from common.study.bundle import write_bundle
from common.study.plan import load_study
from common.wire import signing, tensors
from common.wire.messages import Header, Sealed, digest_of, seal, unseal
from kohort.header import HEADS
from server.operator.certificates import create_authority
from server.operator.config import new_config
from server.operator.enrolment import enrol
from server.operator.state import ServerState
from tests.faults.lives import Folders, Log
from tests.sequences.accounts import count_ledger, install_accounts, parse_once
from tests.sequences.child import try_work
from tests.sequences.composition import Loss
from tests.sequences.exports import SingleFlow
from tests.sequences.numerics import Numerics
from tests.sequences.oracle import Work
from tests.sequences.studies import K, make_study
from tests.sequences.world import World
from tests.sites import SITE, WEIGHTS, write_plan

CAP_BYTES = 1 << 26
RECEIPTS = 64
NONE_COUNT, SEVERE_COUNT = 14, 4  # patients of each label
SETTINGS = {
    "send_slot_s: 2.0": "send_slot_s: 0",
    "max_epsilon: 10.0": "max_epsilon: 80.0",
    "max_delta: 1e-05": "max_delta: 0.0001",
    "min_k: 5": f"min_k: {K}",
    'single_images: "never"': 'single_images: "allowed"',
}


@dataclass
class Account:
    """Hears of every computation in the moment in which it is made, and logs what it spends."""

    log: Log

    def note_work(self, plan: str, losses: Sequence[Loss], people: frozenset[int]) -> Work:
        """Log what a computation spends."""
        self.log.note("spent", losses=[list(loss) for loss in losses])
        return Work(0, plan, tuple(losses), people)

    def note_picture(self, *_: Any) -> None:
        """What is in a picture is not asked here."""

    note_payload = note_picture


@dataclass
class Life:
    """One life of the daemon, with its operator and its staff."""

    scenario: Hospital
    site: Site
    home: Path
    log: Log
    receipts: list[str] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        # the operator did not die: it has what it got before
        for entry in self.log.read("sent"):
            if "receipt" in entry:
                self._keep(entry["receipt"], entry["head"])

    def _keep(self, receipt: str, head: str) -> None:
        """Keep the receipt for a message."""
        if receipt not in self.receipts:
            self.receipts.append(receipt)
            self.heads.append(head)

    def ask(self, kind: str, model: str, number: int, *, done: bool = False) -> None:
        """Ask one question and log what was sent; a person approves what waits."""
        sealed = self.instruct(kind, model, number, done)
        try:
            reply = self.site.answer(sealed)
        except Stopped:
            for batch in self.site.reviews.batches():
                if batch.state == "waiting":
                    self.site.reviews.decide(batch.digest, approve=True, reviewer="somebody")
            reply = self.site.answer(sealed)
        self.receive(reply)

    def instruct(self, kind: str, model: str, number: int, done: bool = False) -> Sealed:
        """The signed instruction, with receipts for all that this operator has."""
        arrays = WEIGHTS[model] if model else {**WEIGHTS["gan"], **WEIGHTS["glow"]}
        payload = tensors.dumps(arrays)
        header = Header(
            kind=kind,
            phase=kind,
            study=self.scenario.study.hash(),
            model=model,
            round=number,
            sender="operator",
            digest=digest_of(payload),
            statement={"done": True} if done else {},
            receipts=tuple(self.receipts[-RECEIPTS:]),
            heads=tuple(self.heads[-HEADS:]),
        )
        return seal(header, payload, self.scenario.operator)

    def receive(self, reply: Sealed) -> None:
        """Verify what left and log it."""
        header = unseal(reply, self.site.state.signing_key().public_key(), max_bytes=CAP_BYTES)
        digest = hashlib.sha256(b"".join(reply)).hexdigest()
        head = str(header.statement["head_commitment"])
        self.log.note("sent", key=header.key, digest=digest, receipt=header.digest, head=head)
        self._keep(header.digest, head)


Step = Callable[[Life], None]


def question(kind: str, model: str = "", number: int = 0, *, done: bool = False) -> Step:
    """A step in which the operator asks."""
    return lambda life: life.ask(kind, model, number, done=done)


def approve(life: Life) -> None:
    """Staff approve the plan."""
    operator = life.scenario.operator.public_key()
    Plans(life.site.state, operator).approve(life.scenario.bundle)


def leave(life: Life) -> None:
    """A patient withdraws."""
    named = [life.scenario.world.patients[3].ids[0]]
    withdraw(life.site.state.root, named, "", None, None, ahead=True)


def refresh(life: Life) -> None:
    """Staff take the files in anew."""
    life.site.refresh(life.scenario.study)


def export(life: Life) -> None:
    """Staff carry single images out; the same pictures again, in another folder."""
    number = len(list(life.home.glob("handed-over-*")))
    target = life.home / f"handed-over-{number}"
    request = Request(life.home / "chosen", target, export=True)
    try:
        privatize_images(life.site, life.scenario.study, request)
    finally:
        for path in sorted(target.glob("*.png")):
            life.log.note("sent", key=f"export/{path.name}", digest=digest_of(path.read_bytes()))


TRAINING = (question("train", "gan"), question("train", "gan", 1), question("train", "glow"))
IMAGES = (question("synthesize"), question("synthesize", "", 1, done=True))


@dataclass
class Hospital:
    """One scenario. `before`: steps of an earlier life without faults.

    `left_open`: parts that come back from a backup and that nothing on site tells from new ones.
    """

    name: str
    kind: str
    steps: Sequence[Step]
    before: Sequence[Step] = ()
    review: bool = False
    side: str = "site"
    watched: Sequence[str] = ("state",)
    left_open: Sequence[str] = ()

    def prepare(self, folders: Folders) -> None:
        """Make the hospital, its plan and its operator, and live the life before."""
        home = folders.home
        self.operator = signing.new_key()
        self.world = World(home / "data")
        for _ in range(NONE_COUNT):
            self.world.arrive("none")
        for _ in range(SEVERE_COUNT):
            self.world.arrive("severe", ids=2)
        self._make_state(home / "state")
        self.study, _ = make_study(home / "plan", self.kind, 0, self.operator)
        self.bundle = home / "plan" / "bundle"
        (home / "chosen").mkdir()
        for person in (0, 1):
            for name in self.world.patients[person].files:
                shutil.copy(self.world.folder / name, home / "chosen")

    def _make_state(self, root: Path) -> None:
        """A state folder as `init` leaves it, with quick settings."""
        root.mkdir(parents=True)
        text = site_sample(SITE, str(self.world.folder), str(self.world.labels_csv))
        changes = dict(SETTINGS)
        if not self.review:
            changes['review: "required"'] = 'review: "not_required"'
        for old, new in changes.items():
            assert old in text, old
            text = text.replace(old, new)
        (root / "site.yaml").write_text(text)
        state = State(root)
        state.pseudonym_key.parent.mkdir(parents=True)
        state.pseudonym_key.write_bytes(bytes(range(KEY_BYTES)))
        signing.save_private(state.sign_key, signing.new_key())

    def play(self, home: Path, log: Log) -> None:
        """One life of the daemon."""
        self._live(home, log, self.steps)

    def play_before(self, home: Path, log: Log) -> None:
        """The life before, without faults."""
        self._live(home, log, self.before)

    def _live(self, home: Path, log: Log, steps: Sequence[Step]) -> None:
        """Start over what is on disk, and do every step."""
        numerics = Numerics(self.world, self.account(log))
        with ExitStack() as stack:
            self._install(stack, numerics, log)
            site = self._start(home / "state")
            life = Life(self, site, home, log)
            for step in steps:
                step(life)

    def account(self, log: Log) -> Any:
        """Who hears of every computation."""
        return Account(log)

    def _install(self, stack: ExitStack, numerics: Numerics, log: Log) -> None:
        """Replace numerics, decoder and children."""
        numerics.install(stack)
        install_accounts(stack)
        child = Child(numerics, log)
        replaced: dict[str, Any] = {
            "client.daemon.jobs.run_child": child,
            "common.config.parse_yaml": parse_once,
            "client.ingest.decode.decode_all": self.world.decode_all,
            "client.single.inputs.decode_all": self.world.decode_all,
            "client.cli.withdraw.write_line": lambda _: None,
            "client.single.single.load_flow": lambda *_: SingleFlow(self.study, numerics),
        }
        for name, value in replaced.items():
            stack.enter_context(patch(name, value))

    def _start(self, root: Path) -> Site:
        """A freshly started daemon, which never waits for a person."""
        membership = Membership(
            format="kohort-join/1",
            site=SITE,
            server_url="https://127.0.0.1:1",
            ca="",
            operator_key=signing.public_text(self.operator.public_key()),
            client_certificate="",
        )
        site = Site(State(root), load_site(root), membership)
        site.stop.set()
        return site

    # --- what must hold afterwards ----------------------------------------------------------------

    def faults(self, folders: Folders) -> list[str]:
        """Return what does not hold of the state and of everything that was logged."""
        return [*resent(folders.log), *self._overspent(folders), *drawn_twice(folders.log)]

    def _overspent(self, folders: Folders) -> list[str]:
        """What was computed and does not stand in the ledger."""
        wanted: Counter[Loss] = Counter()
        for entry in folders.log.read("spent"):
            for loss in entry["losses"]:
                one = Loss(*loss)
                wanted[one._replace(steps=1)] += one.steps
        if not wanted:
            return []
        site = self._start(folders.home / "state")
        held = count_ledger(of_kind(site.ledger().rows(), "reserve"))
        return [f"the ledger lacks {dict(wanted - held)}"] if wanted - held else []


def resent(log: Log) -> list[str]:
    """Return the keys under which two different messages were sent."""
    sent: dict[str, set[str]] = {}
    for entry in log.read("sent"):
        sent.setdefault(entry["key"], set()).add(entry["digest"])
    return [f"other bytes for {key}" for key, digests in sorted(sent.items()) if len(digests) > 1]


def drawn_twice(log: Log) -> list[str]:
    """Return the reservations that more than one child used."""
    used = Counter(entry["reservation"] for entry in log.read("ran") if entry["reservation"])
    return [
        f"reservation {number} drawn {count} times" for number, count in used.items() if count > 1
    ]


@dataclass
class Child:
    """The child process in this one: the product's own job, with cheap numerics."""

    numerics: Numerics
    log: Log

    def __call__(self, folder: Path, threads: int, secret: bytes, *_: Any) -> Ending:
        job = Job.read(folder)
        reservation = 0
        if job.reservation:
            reservation = Reservation.from_json(job.reservation).id
        self.log.note("ran", reservation=reservation)
        study = load_study(Path(job.plan) / "study.yaml")
        self.numerics.begin(study, np.asarray(Cohort.open(Path(job.cohort)).images))
        code = try_work(job, folder, secret)
        if code:
            atomic_write(folder / ERROR, code.encode())
            return Ending(False, code)
        return Ending(True)


@dataclass
class Joining:
    """`init`, `join` and `approve`: typed again after a kill."""

    name: str = "init, join, approve"
    side: str = "site"
    watched: Sequence[str] = ("state",)

    def prepare(self, folders: Folders) -> None:
        """Make the operator, and the plan."""
        home = folders.home
        for name in ("data", "plan"):
            (home / name).mkdir()
        self.operator = signing.new_key()
        self.server = ServerState(home / "server")
        self.config = new_config("test", "https://127.0.0.1:4433", self.server.config)
        create_authority(self.server.authority)
        self.study = write_bundle(write_plan(home / "plan"), self.operator, home / "bundle")

    def play_before(self, home: Path, log: Log) -> None:
        """Nothing."""

    def play(self, home: Path, log: Log) -> None:
        """One evening of the hospital's IT; the operator enrols whom it asks for."""
        state = State(home / "state")
        with patch("client.cli.joining.write_line", lambda _: None):
            if not (state.root / FILE).exists():
                init(state.root, SITE, home / "data")
            line = signing.public_text(self.operator.public_key())
            text = enrol(state.root / f"{SITE}.request.json", self.server, self.config, line)
            (home / "join.json").write_bytes(text)
            join(state.root, home / "join.json")
        Plans(state, self.operator.public_key()).approve(home / "bundle")
        log.note("sent", key="request", digest=digest_of(state.signing_key().sign(b"site")))

    def faults(self, folders: Folders) -> list[str]:
        """What is not there, or is of another key."""
        state = State(folders.home / "state")
        check_membership(read_membership(state.membership), state)
        plans = Plans(state, self.operator.public_key())
        found = [] if list(plans.valid()) == [self.study.hash()] else ["the plan is not approved"]
        state.journal.close()
        certificate = (state.root / "node.crt").read_text()
        if certificate != read_membership(state.membership).client_certificate:
            found.append("the certificate is not the membership's")
        return found + resent(folders.log)


def scenarios() -> list[Any]:
    """Return all of them."""
    trained = (approve, *TRAINING)
    return [
        Joining(),
        Hospital("rounds", "similar", (approve, *TRAINING)),
        Hospital("similar images", "similar", IMAGES, trained, review=True),
        Hospital("anchors", "anchors", IMAGES, trained),
        Hospital("privatized averages", "similar-half", IMAGES, trained),
        Hospital("withdrawal", "similar", (leave, refresh, *IMAGES), trained),
        Hospital(
            "export",
            "single",
            (export,),
            trained,
            watched=("state", "handed-over-0"),
            left_open=("all",),  # policy allowed: countersigned closes it (client/single/export.py)
        ),
        Hospital("random noised averages", "random-noised", IMAGES, trained, review=True),
    ]
