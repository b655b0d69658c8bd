"""One site with its operator, as a history plays it: the real daemon over a real state folder.

In: what happens (a question, a kill, a restore, an export, a withdrawal).
Out: the code of a refusal, or "" where something left; the oracle hears of all that left.
Guarantees: nothing of the daemon is replaced but the child's numerics and the decoder.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar
from unittest.mock import patch

import numpy as np

from client.cli.withdraw import withdraw
from client.daemon.site import Site
from client.single.request import Request
from client.single.single import privatize_images
from client.state.config import load_site
from client.state.folder import KEY_BYTES, State
from client.state.ledger_file import of_kind
from client.state.membership import Membership
from client.state.plans import Plans
from client.state.sample import sample as site_sample
from common.errors import Bug, ConfigurationError, KohortError
from common.privacy.boundary import HEAD_COMMITMENT
from common.study.plan import Study
from common.wire import signing, tensors
from common.wire.messages import Header, Sealed, digest_of, seal, unseal
from kohort.header import HEADS
from tests.sequences.accounts import count_ledger, install_accounts, parse_once
from tests.sequences.child import Child
from tests.sequences.composition import Loss
from tests.sequences.courses import QUESTIONS, Course, Question
from tests.sequences.exports import SingleFlow, read_exports
from tests.sequences.faults import Faults, Killed
from tests.sequences.numerics import Numerics
from tests.sequences.oracle import Oracle, Snapshot, break_invariant
from tests.sequences.studies import DELTA, K, make_study
from tests.sequences.world import World
from tests.sites import SITE

T = TypeVar("T")
NONE_COUNT = 14  # patients of each label in the beginning
SEVERE_COUNT = 4
CAP_BYTES = 1 << 26
CAP_EPSILON = 16.0
CAP_AVERAGE = 3.0  # of all draws of one average: one of 2.0 and one of 2.5 are within it
SHARE = 1 / 3  # of the site, in every average
RECEIPTS = 64
# how a question ends whose receipts the site may not have read
UNREAD = ("killed", "E-PLAN-UNAPPROVED", "E-POLICY-PLAN", "E-GATE-01")
FAR = 1e6  # times the weights that training led to
DATABASES = (
    "ledger",
    "journal",
    "groups",
    "heads",
    "receipts",
    "people",
)  # the files of a state folder


class Hospital:
    """A site, its disk, its patients and its operator."""

    def __init__(self, folder: Path, stack: ExitStack, review: bool) -> None:
        self.folder = folder
        self.operator = signing.new_key()
        self.world = World(folder / "data")
        self.oracle = Oracle(DELTA, CAP_AVERAGE)
        self.faults = Faults()
        self.numerics = Numerics(self.world, self.oracle)
        self.child = Child(self.numerics, self.faults)
        self.courses: list[Course] = []
        self.copies: list[tuple[Path, Snapshot]] = []
        self.heads: list[str] = []  # the commitments that the operator has, over all studies
        self._exports = 0
        for _ in range(NONE_COUNT):
            self.world.arrive("none")
        for _ in range(SEVERE_COUNT):
            self.world.arrive("severe", ids=2)
        self._install(stack)
        self._init_state(review)
        self.site = self._start()

    def _install(self, stack: ExitStack) -> None:
        """Replace numerics, decoder and children, and count durable points."""
        self.numerics.install(stack)
        self.faults.install(stack)
        stack.enter_context(patch("client.daemon.jobs.run_child", self.child))
        # the few files of a history are parsed once each: they are frozen values
        stack.enter_context(patch("common.config.parse_yaml", parse_once))
        for decoder in ("client.ingest.decode.decode_all", "client.single.inputs.decode_all"):
            stack.enter_context(patch(decoder, self.world.decode_all))
        stack.enter_context(patch("client.single.single.load_flow", self._flow))
        stack.enter_context(patch("client.cli.withdraw.write_line", lambda _: None))
        install_accounts(stack)

    def _init_state(self, review: bool) -> None:
        """Make the state folder; the pseudonym key is the same in every history."""
        state = State(self.folder / "state")
        state.root.mkdir(parents=True)
        labels = str(self.world.labels_csv)
        text = site_sample(SITE, str(self.world.folder), labels)
        changes = {
            "send_slot_s: 2.0": "send_slot_s: 0",
            "max_epsilon: 10.0": f"max_epsilon: {CAP_EPSILON}",
            "max_epsilon_average: 1000.0": f"max_epsilon_average: {CAP_AVERAGE}",
            "min_k: 5": f"min_k: {K}",
            'single_images: "never"': 'single_images: "allowed"',
        }
        if not review:
            changes['review: "required"'] = 'review: "not_required"'
        for old, new in changes.items():
            assert old in text, old
            text = text.replace(old, new)
        (state.root / "site.yaml").write_text(text)
        state.pseudonym_key.parent.mkdir(parents=True)
        state.pseudonym_key.write_bytes(bytes(range(KEY_BYTES)))
        signing.save_private(state.sign_key, signing.new_key())

    def _start(self) -> Site:
        """A freshly started daemon over the state on disk, which never waits for a person."""
        state = State(self.folder / "state")
        membership = Membership(
            format="kohort-join/1",
            site=SITE,
            server_url="https://127.0.0.1:1",
            ca="",
            operator_key=signing.public_text(self.operator.public_key()),
            client_certificate="",
        )
        site = Site(state, load_site(state.root), membership)
        site.stop.set()
        return site

    def restart(self) -> None:
        """End the daemon, and start another one."""
        self.close()
        self.site = self._start()

    # --- studies ----------------------------------------------------------------------------------

    def approve(self, kind: str) -> Course:
        """Let the operator write a study and the staff approve it, whatever it claims."""
        folder = self.folder / f"plan-{len(self.courses)}"
        study, plan = make_study(folder, kind, len(self.courses), self.operator)
        course = Course(study, plan, folder / "bundle")
        self.courses.append(course)
        self.approve_again(course)
        return course

    def approve_again(self, course: Course) -> None:
        """Approve a study's bundle, also where the journal lost it."""
        Plans(self.site.state, self.operator.public_key()).approve(course.bundle)

    def play(self, kind: str) -> str:
        """Approve a study, and ask its questions until one is refused; return its code."""
        try:
            course = self.approve(kind)
        except ConfigurationError as error:
            return error.code
        code = ""
        while not code and course.next < len(QUESTIONS):
            code = self.ask(course, QUESTIONS[course.next])
        return code

    def ask(self, course: Course, question: Question, *, far: bool = False) -> str:
        """Ask one question; return the code of a refusal, "killed", or "".

        `far`: with weights that no training led to.
        """
        sealed = self._instruct(course, question, far)
        before = set(self.oracle.sent)
        met = self.oracle.met
        self.oracle.met = True
        reply, code = self._try(lambda: self.site.answer(sealed))
        if code in UNREAD:
            self.oracle.met = met
        if reply is not None:
            self._receive(course, question, reply)
        if far and set(self.oracle.sent) - before:
            break_invariant(13, f"{course.plan.name}: an answer to weights that are off the path")
        return code

    def _try(self, action: Callable[[], T]) -> tuple[T | None, str]:
        """What the site answers, or the code of its refusal; after a kill it starts anew."""
        try:
            with self.faults.running():
                return action(), ""
        except Bug:
            raise
        except KohortError as error:
            return None, error.code
        except Killed:
            self.restart()
            return None, "killed"

    def _instruct(self, course: Course, question: Question, far: bool) -> Sealed:
        """The signed instruction, with the operator's newest receipts."""
        arrays = course.weights.get(question.model) or {
            **course.weights["gan"],
            **course.weights["glow"],
        }
        if far:
            arrays = {name: array * np.float32(FAR) for name, array in arrays.items()}
        payload = tensors.dumps(arrays)
        statement = {"done": True} if question.closes else {}
        header = Header(
            kind=question.kind,
            phase=question.kind,
            study=course.study.hash(),
            model=question.model,
            round=question.round,
            sender="operator",
            digest=digest_of(payload),
            statement=statement,
            receipts=tuple(course.receipts[-RECEIPTS:]),
            heads=tuple(self.heads[-HEADS:]),
        )
        return seal(header, payload, self.operator)

    def _receive(self, course: Course, question: Question, reply: Sealed) -> None:
        """Verify what left, tell the oracle, and take the step as an honest operator does."""
        public = self.site.state.signing_key().public_key()
        header = unseal(reply, public, max_bytes=CAP_BYTES)
        arrays = tensors.loads(reply.payload, max_bytes=CAP_BYTES)
        if header.kind == "update":
            self.oracle.leave_update(header.key, course.plan, reply.payload)
        else:
            images = list(arrays["images"])
            self.oracle.leave_images(header.key, course.plan, reply.payload, images)
        course.receipts.append(header.digest)
        commitment = str(header.statement[HEAD_COMMITMENT])
        if commitment not in self.heads:
            self.heads.append(commitment)
        position = QUESTIONS.index(question)
        if position == course.next:
            course.next += 1
            if header.kind == "update":
                self._step(course, question.model, arrays)

    def _step(self, course: Course, model: str, update: tensors.Arrays) -> None:
        """Add the site's share of its update to the global weights."""
        weights = course.weights[model]
        for name, delta in update.items():
            weights[name] = (weights[name] + np.float32(SHARE) * delta).astype(np.float32)

    # --- exports and people -----------------------------------------------------------------------

    def export(self, course: Course, persons: list[int]) -> str:
        """Hand over privatized photographs of some persons; return as `ask` does."""
        self._exports += 1
        source = self.folder / f"chosen-{self._exports}"
        source.mkdir()
        for person in persons:
            for name in self.world.patients[person].files:
                shutil.copy(self.world.folder / name, source)
        target = self.folder / f"handed-over-{self._exports}"
        request = Request(source, target, export=True)
        _, code = self._try(lambda: privatize_images(self.site, course.study, request))
        for image in read_exports(target):
            self.oracle.leave_export(course.plan, image)
        return code

    def withdraw(self, person: int, which: int) -> str:
        """Let staff withdraw a person by one of the person's ids; return as `ask` does."""
        ids = self.world.patients[person].ids
        root = self.site.state.root
        named = [ids[which % len(ids)]]
        _, code = self._try(lambda: withdraw(root, named, "", None, None, ahead=True))
        if not code:
            self.oracle.withdraw(person, self._sealed_payloads())
        return code

    def _sealed_payloads(self) -> set[bytes]:
        """The payloads that are signed, and may still be sent."""
        found: set[bytes] = set()
        for path in self.site.state.outbox.glob("*.sealed"):
            found.add(tensors.read(path, max_bytes=CAP_BYTES)["payload"].tobytes())
        return found

    def refresh(self, course: Course) -> str:
        """Take the files in anew, by a study's rules; return as `ask` does."""
        return self._try(lambda: self.site.refresh(course.study))[1]

    def _flow(self, site: Site, study: Study, request: Request) -> SingleFlow:
        """The flow of a plan with egress `single`, without its numerics."""
        return SingleFlow(study, self.numerics)

    # --- the disk ---------------------------------------------------------------------------------

    def copy(self) -> None:
        """Keep a copy of the whole state folder."""
        target = self.folder / f"copy-{len(self.copies)}"
        shutil.copytree(self.site.state.root, target)
        self.copies.append((target, self.oracle.snapshot()))

    def put_back(self, number: int, part: str) -> None:
        """Replace the state, or one of its files, by what a copy has."""
        source, snapshot = self.copies[number]
        root = self.site.state.root
        self.close()
        if part == "all":
            shutil.rmtree(root)
            shutil.copytree(source, root)
            self.oracle.restore(snapshot, whole=True)
        else:
            self._replace_file(f"{part}.sqlite", source)
            if part == "ledger":
                self.oracle.restore(snapshot, whole=False)
        self.site = self._start()

    def lose(self, part: str) -> None:
        """Delete one file of the state."""
        self.close()
        if part == "outbox":
            shutil.rmtree(self.site.state.outbox, ignore_errors=True)
        else:
            self._replace_file(f"{part}.sqlite", None)
        if part == "ledger":
            self.oracle.restore(None, whole=False)
        self.site = self._start()

    def waiting(self) -> list[str]:
        """Return the batches that wait for a person."""
        batches = self.site.reviews.batches()
        return [batch.digest for batch in batches if batch.state == "waiting"]

    def review(self, approve: bool) -> None:
        """Let a person decide on every batch that waits."""
        for digest in self.waiting():
            self.site.reviews.decide(digest, approve=approve, reviewer="somebody")

    def exporting(self) -> list[Course]:
        """Return the studies that allow single images."""
        return [course for course in self.courses if course.plan.name.startswith("single")]

    def close(self) -> None:
        """End the daemon."""
        heads = self.site.records.heads
        for journal in (self.site.state.journal, heads._heads, heads._receipts):
            journal.close()
        self.site.reviews.close()

    def _replace_file(self, name: str, source: Path | None) -> None:
        """Replace a database with its side files."""
        for suffix in ("", "-wal", "-shm", "-journal"):
            path = self.site.state.root / (name + suffix)
            path.unlink(missing_ok=True)
            if source is not None and (source / (name + suffix)).is_file():
                shutil.copyfile(source / (name + suffix), path)

    # --- the ledger -------------------------------------------------------------------------------

    def check_ledger(self) -> None:
        """Compare the ledger with the oracle's account."""
        steps, epsilon = self._read_ledger()
        if steps is not None:
            self.oracle.check_ledger(steps, epsilon)

    def _read_ledger(self) -> tuple[Counter[Loss] | None, float]:
        """What the ledger holds, and its epsilon; None where the daemon refuses to read it."""
        if not self.site.state.ledger.exists():
            return Counter(), 0.0
        try:
            ledger = self.site.ledger()
            rows = of_kind(ledger.rows(), "reserve")
            return count_ledger(rows), ledger.report(prv=False).spent.pld
        except KohortError:
            return None, 0.0
