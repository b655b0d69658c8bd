"""The oracle: its own account of everything that was computed, and of everything that left.

In: what the children computed (numerics.py says it at the moment of computing), what left, what was
withdrawn or restored. Out: `Broken`, with the invariant that does not hold.
Guarantees: it reads no file of the site and uses no rule of the product.
Invariants (the numbers stand at the checks and in docs/promises/sequences.md):
  1. plain averages that left show the same people, or people who differ by k or more
  2. plain averages of the same people are the same bytes
  3. the averages of one group leave plain or privatized, never both
  4. a plan that claims epsilon per patient for images lets no image leave without noise
  5. no image leaves that nobody computed, and none of fewer than k people
  6. the same question gets the same bytes
  7. nothing new leaves of a person after the withdrawal
  8. the ledger holds at least what was computed
  9. a plan's epsilon is at least that of what left under it
  10. a state that is older than what its receipts show computes nothing and sends nothing new
  11. the groups of a covered study do not depend on the store
  12. a plan whose constants do not keep its claims is not answered (machine.py)
  13. weights that no training led to are not answered (hospital.py)
  14. all noised draws of one average stay within the site's own cap
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import dataclass, field

from common.arrays import Images
from tests.sequences.composition import Loss, compose

SLACK = 1e-6


class Broken(AssertionError):
    """An invariant does not hold. `number`: which."""

    def __init__(self, number: int, what: str) -> None:
        super().__init__(f"({number}) {what}")
        self.number = number


# invariants that a run does not check, to look for the others (`python -m tests.sequences --only`)
ignored: set[int] = set()
# what was broken in this run, while Hypothesis still looks for the shortest history
found: Counter[str] = Counter()


def break_invariant(number: int, what: str) -> None:
    """Raise Broken, unless this run ignores the invariant."""
    if number not in ignored:
        found[f"({number}) {what}"] += 1
        raise Broken(number, what)


@dataclass(frozen=True)
class Plan:
    """What a plan claims. `covered`: epsilon per patient holds for images too."""

    name: str
    hash: str
    k: int
    epsilon: float
    covered: bool


@dataclass(frozen=True)
class Picture:
    """An image that was computed. `shown`: persons and photographs behind it; `noise`: if any."""

    shown: frozenset[tuple[int, int]]
    noise: Loss | None = None

    @property
    def people(self) -> frozenset[int]:
        """The persons behind it."""
        return frozenset(person for person, _ in self.shown)


@dataclass(frozen=True, eq=False)
class Work:
    """One computation on patients: when, for which plan, what it spends, who took part."""

    at: int
    plan: str
    losses: tuple[Loss, ...]
    people: frozenset[int]


@dataclass(frozen=True)
class Snapshot:
    """What the account knew when the site's state was copied."""

    at: int
    held: frozenset[Work]


@dataclass
class Oracle:
    """The account. `clock` counts what happened; `held`: work that the ledger must hold."""

    delta: float
    cap_average: float = math.inf
    clock: int = 0
    pictures: dict[bytes, Picture] = field(default_factory=dict)
    work_of: dict[bytes, Work] = field(default_factory=dict)
    held: set[Work] = field(default_factory=set)
    sent: dict[str, bytes] = field(default_factory=dict)
    sent_by: dict[str, list[Work]] = field(default_factory=dict)
    withdrawals: dict[int, int] = field(default_factory=dict)
    withdrawn: set[int] = field(default_factory=set)
    sealed: set[bytes] = field(default_factory=set)
    last_sent: int = -1
    exported: dict[Work, int] = field(default_factory=dict)
    plain: dict[frozenset[int], tuple[int, set[bytes]]] = field(default_factory=dict)
    draws: dict[frozenset[int], dict[bytes, Loss]] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)
    old: bool = False
    rest_old: bool = False
    met: bool = True

    # --- what was computed ------------------------------------------------------------------------

    def note_work(self, plan: str, losses: tuple[Loss, ...], people: frozenset[int]) -> Work:
        """Note a computation on patients, before its result is known."""
        self.clock += 1
        if self.behind and losses:
            break_invariant(10, f"{plan}: a state that is older than its receipts spends")
        work = Work(self.clock, plan, losses, people)
        if losses:
            self.held.add(work)
        return work

    def note_picture(self, image: Images, picture: Picture, work: Work | None = None) -> None:
        """Note who is behind an image, and the computation that it came from."""
        key = digest(image)
        self.pictures[key] = picture
        if work is not None:
            self.work_of[key] = work

    def note_payload(self, payload: bytes, work: Work) -> None:
        """Note which computation an update came from."""
        self.work_of[hashlib.sha256(payload).digest()] = work

    def note_groups(self, plan: str, here: object, elsewhere: object) -> None:
        """Compare a covered study's groups with those that an empty store gives (11)."""
        if here != elsewhere:
            break_invariant(11, f"{plan}: covered groups depend on the store")

    # --- what left --------------------------------------------------------------------------------

    def leave_update(self, key: str, plan: Plan, payload: bytes) -> None:
        """Check an update that left."""
        if not self._is_new(key, payload):
            return
        work = self.work_of.get(hashlib.sha256(payload).digest())
        if work is None:
            break_invariant(5, f"{key}: an update that nobody computed")
            return
        self._check_withdrawn(key, payload, work.people)
        self._charge(plan, work)
        self.seen["update"] += 1

    def leave_images(self, key: str, plan: Plan, payload: bytes, images: list[Images]) -> None:
        """Check a batch of images that left."""
        if not self._is_new(key, payload):
            return
        for image in images:
            picture = self.pictures.get(digest(image))
            if picture is None:
                break_invariant(5, f"{key}: an image that nobody computed")
                continue
            self._check_withdrawn(key, payload, picture.people)
            self._check_image(plan, image, picture)
        self._charge_images(plan, images)
        self.seen["covered" if plan.covered else "images"] += 1

    def leave_export(self, plan: Plan, image: Images) -> None:
        """Check a single image that staff handed over."""
        self.clock += 1
        picture = self.pictures.get(digest(image))
        if picture is None or picture.noise is None:
            break_invariant(5, f"{plan.name}: an export that nobody privatized")
            return
        key = f"{plan.hash}/{sorted(picture.shown)}"
        if self.sent.setdefault(key, digest(image)) != digest(image):
            break_invariant(6, f"{plan.name}: the same photograph was drawn twice")
        if picture.people & self.withdrawn:
            break_invariant(7, f"{plan.name}: an export of a withdrawn person")
        work = self.work_of[digest(image)]
        self.exported.setdefault(work, self.clock)
        self.held.add(work)
        self.seen["export"] += 1

    def _is_new(self, key: str, payload: bytes) -> bool:
        """Whether a question is answered for the first time; checks (6) and (10)."""
        self.clock += 1
        if key in self.sent:
            if self.sent[key] != payload:
                break_invariant(6, f"{key}: another answer to the same question")
            self.seen["again"] += 1
            return False
        if self.behind:
            break_invariant(10, f"{key}: a state that is older than its receipts sends new bytes")
        self.sent[key] = payload
        self.last_sent = self.clock
        return True

    def _check_withdrawn(self, key: str, payload: bytes, people: frozenset[int]) -> None:
        """Invariant 7."""
        if people & self.withdrawn and payload not in self.sealed:
            break_invariant(7, f"{key}: new bytes of a withdrawn person")

    def _check_image(self, plan: Plan, image: Images, picture: Picture) -> None:
        """Invariants 1 to 5 for one image that leaves."""
        people = picture.people
        if len(people) < plan.k:
            break_invariant(5, f"{plan.name}: an image of {len(people)} people")
        if picture.noise is not None:
            if not plan.covered:
                self._check_draws(plan, image, people, picture.noise)
            return
        if plan.covered:
            break_invariant(4, f"{plan.name}: a plain image of a plan that claims epsilon")
        if people in self.draws:
            break_invariant(3, f"{plan.name}: the plain average of a privatized group")
        for other, (k, _) in self.plain.items():
            apart = len(other ^ people)
            if 0 < apart < max(k, plan.k):
                break_invariant(1, f"{plan.name}: plain averages {apart} people apart")
        known = self.plain.setdefault(people, (plan.k, set()))[1]
        if known and digest(image) not in known:
            break_invariant(2, f"{plan.name}: one group averaged twice")
        known.add(digest(image))
        self.seen["plain"] += 1

    def _check_draws(self, plan: Plan, image: Images, people: frozenset[int], noise: Loss) -> None:
        """Invariants 3 and 14 for a privatized average that claims no epsilon per patient."""
        if people in self.plain:
            break_invariant(3, f"{plan.name}: a privatized average of a group that left plain")
        drawn = self.draws.setdefault(people, {})
        drawn[digest(image)] = noise
        self.seen["drawn again"] += len(drawn) > 1
        spent = compose(drawn.values(), self.delta)
        if not spent <= self.cap_average + SLACK:
            break_invariant(14, f"{plan.name}: draws of one average spent {spent:.3f}")

    def _charge_images(self, plan: Plan, images: list[Images]) -> None:
        """Add what a batch spent, once a computation."""
        found = {self.work_of.get(digest(image)) for image in images}
        for work in found - {None}:
            assert work is not None
            self._charge(plan, work)

    def _charge(self, plan: Plan, work: Work) -> None:
        """Add a computation to what left under a plan; checks (9)."""
        left = self.sent_by.setdefault(plan.hash, [])
        if work in left:
            return
        left.append(work)
        if work.losses:
            self.held.add(work)
        losses = [loss for one in left for loss in one.losses]
        spent = compose(losses, self.delta)
        if losses and not spent <= plan.epsilon + SLACK:
            break_invariant(9, f"{plan.name}: claims {plan.epsilon:g}, spent {spent:.3f}")

    # --- what staff and disks do ------------------------------------------------------------------

    def withdraw(self, person: int, sealed: set[bytes]) -> None:
        """Note a withdrawal; `sealed`: payloads that were signed before it, and may still leave."""
        self.clock += 1
        self.withdrawals.setdefault(person, self.clock)
        self.withdrawn.add(person)
        self.sealed |= sealed

    def snapshot(self) -> Snapshot:
        """Return what must be known again when this moment's state is put back."""
        self.clock += 1
        return Snapshot(self.clock, frozenset(self.held))

    def restore(self, snapshot: Snapshot | None, whole: bool) -> None:
        """Note that an older state, or only its ledger, was put back; None: it is gone."""
        held = set(snapshot.held) if snapshot else set()
        at = snapshot.at if snapshot else -1
        left = {work for works in self.sent_by.values() for work in works if work.losses}
        left |= set(self.exported)
        lost = {work for work in left - held if self._is_shown(work)}
        if whole:
            self.rest_old = self.last_sent > at
            self.met = False
            # a withdrawal that was restored away, and that nothing sent since can show
            known = {one for one, when in self.withdrawals.items() if when <= at}
            self.withdrawn = known | {
                one for one, when in self.withdrawals.items() if when < self.last_sent
            }
        self.old = bool(lost) or self.rest_old
        self.held = held

    @property
    def behind(self) -> bool:
        """Whether the state is older than what the site can know of.

        A whole folder that is restored knows nothing newer until it meets the operator.
        """
        return self.old and (self.met or not self.rest_old)

    def _is_shown(self, work: Work) -> bool:
        """Whether the operator has a receipt that is newer than this work.

        What staff carried out by hand has none of its own.
        """
        if work not in self.exported:
            return True
        return self.last_sent > self.exported[work]

    # --- the ledger -------------------------------------------------------------------------------

    def check_ledger(self, steps: Counter[Loss], epsilon: float) -> None:
        """Check what the ledger holds: single applications by kind, and epsilon (8)."""
        if self.old:
            return
        losses = [loss for work in self.held for loss in work.losses]
        wanted: Counter[Loss] = Counter()
        for loss in losses:
            wanted[loss._replace(steps=1)] += loss.steps
        if wanted - steps:
            break_invariant(8, f"the ledger lacks {dict(wanted - steps)}")
        if not compose(losses, self.delta) <= epsilon + SLACK:
            break_invariant(
                8, f"the ledger says {epsilon:.3f}, spent {compose(losses, self.delta)}"
            )


def digest(image: Images) -> bytes:
    """Return what an image is known by."""
    return hashlib.sha256(str(image.shape).encode() + image.tobytes()).digest()
