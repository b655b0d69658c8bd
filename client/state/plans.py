"""The plans that the site's own staff approved.

In: signed plan bundles. Out: verified plans.
Guarantees: a plan counts as approved only if a journal line says so; every opening checks the
operator's signature, the pinned checkpoints and the approved hash again.
Not covered: the site's policy (client/state/config.py).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from client.state.folder import State
from common.errors import ConfigurationError, KohortError, PolicyError, RefusedError
from common.privacy.global_weights import Known
from common.storage.files import read_capped
from common.storage.heartbeat import spell_json, spell_time
from common.study.bundle import Keys, copy_bundle, open_bundle
from common.study.families import FAMILIES, Shapes
from common.study.plan import Study
from common.study.shapes import starting_weights
from common.wire import signing, tensors
from common.wire.app_bundle import fab_hash

PLAN_CAP_BYTES = 1 << 20

log = logging.getLogger(__name__)


@contextmanager
def log_refusal(state: State, plan_hash: str) -> Iterator[None]:
    """Note in the log, once for each code, that this site refuses a plan in the block."""
    try:
        yield
    except KohortError as error:
        # whatever the log meets, the refusal is what a person must read
        with suppress(KohortError):
            state.log.note("plan-refused", once=True, plan=plan_hash, code=error.code)
        raise


@dataclass(frozen=True)
class Approval:
    """Who allowed a plan to run here, and when; `by` is "" where no name was recorded."""

    by: str
    at: datetime | None

    def words(self) -> str:
        """Return both in words."""
        by = f"by {self.by}" if self.by else "(no name was recorded)"
        return f"{by}, {spell_time(self.at)}"


@dataclass(frozen=True)
class Plans:
    """The approved plans of a site, each a verified bundle in plans/<hash>/."""

    state: State
    operator: Keys  # that signed the approved plans, newest first
    approving: Keys | None = None  # that may sign a plan which is approved now; None: the same

    @property
    def signers(self) -> Keys:
        """The keys that may sign a plan which is approved now."""
        return self.operator if self.approving is None else self.approving

    def fingerprints(self) -> frozenset[str]:
        """Return the fingerprints of the keys that signed the approved plans."""
        keys = self.operator if isinstance(self.operator, tuple) else (self.operator,)
        return frozenset(signing.fingerprint(key) for key in keys)

    def approve(self, bundle: Path, by: str = "", at: datetime | None = None) -> Study:
        """Keep a copy of the bundle and record the approval: who it was, and when.

        The log tells it first. The caller has checked the policy and asked a person.
        """
        study = open_bundle(bundle, self.signers)
        copy_bundle(bundle, self.signers, self.folder(study.hash()))
        self.state.log.note("plan-approved", plan=study.hash(), by=by)
        record = {"name": study.name, "by": by, "at": spell_json(at)}
        self.state.journal.append(f"plan/{study.hash()}", "approved", record)
        return study

    def approval(self, plan_hash: str) -> Approval | None:
        """Return who allowed a plan last, and when; None for a plan that nobody did."""
        latest = self.state.journal.latest(f"plan/{plan_hash}")
        if latest is None or latest.state != "approved":
            return None
        return Approval(str(latest.data.get("by", "")), _moment(latest.data.get("at")))

    def last_named(self, name: str) -> Study | None:
        """Return the plan of this name that was approved last, of those that are valid now."""
        named = {key: study for key, study in self.valid().items() if study.name == name}
        latest = None
        for entry in self.state.journal.entries("plan/"):
            latest = named.get(entry.key.removeprefix("plan/"), latest)
        return latest

    def is_approved(self, plan_hash: str) -> bool:
        """Return whether the site's staff approved this hash."""
        latest = self.state.journal.latest(f"plan/{plan_hash}")
        return latest is not None and latest.state == "approved"

    def open(self, plan_hash: str) -> Study:
        """Return an approved plan, its bundle verified again.

        Raises PolicyError (E-PLAN-UNAPPROVED) or RefusedError.
        """
        if not self.is_approved(plan_hash):
            raise PolicyError(
                f"plan {plan_hash[:12]}: nobody at this site approved it",
                hint="read the plan, then `kohort-site approve BUNDLE`",
                code="E-PLAN-UNAPPROVED",
            )
        # signature and pinned checkpoints, then the hash that was approved
        study = open_bundle(self.folder(plan_hash), self.operator)
        if study.hash() != plan_hash:
            raise RefusedError(
                f"plan {plan_hash[:12]}: the stored plan is another one", code="E-PLAN-ALTERED"
            )
        return study

    def valid(self) -> dict[str, Study]:
        """Return the approved plans that this version can read, by hash.

        A plan that an older version allowed may be none now: it is refused where it is asked for.
        """
        found = {}
        for plan_hash in self.hashes():
            try:
                found[plan_hash] = self.open(plan_hash)
            except ConfigurationError as error:
                if not error.problems:  # a file is missing
                    raise
                log.warning("plan %s is not valid: %s", plan_hash[:12], error.code)
        return found

    def hashes(self) -> tuple[str, ...]:
        """Return the hashes of all approved plans, oldest first."""
        hashes: dict[str, None] = {}  # in the order of the first approval
        for entry in self.state.journal.entries("plan/"):
            hashes[entry.key.removeprefix("plan/")] = None
        return tuple(filter(self.is_approved, hashes))

    def pins(self) -> set[str]:
        """Return the app hashes that Flower reports for the approved plans."""
        pins: set[str] = set()
        for plan_hash in self.hashes():
            pins.add(fab_hash(read_capped(self.folder(plan_hash) / "study.yaml", PLAN_CAP_BYTES)))
        return pins

    def folder(self, plan_hash: str) -> Path:
        """Return the folder of a plan's bundle."""
        return self.state.root / "plans" / plan_hash

    def checkpoints(self, study: Study) -> Path:
        """Return the folder of a plan's starting checkpoints."""
        return self.folder(study.hash()) / "checkpoints"

    def start_shapes(self, study: Study, model: str) -> Shapes:
        """Return names and shapes in a model's starting checkpoint; raises as `start_file`."""
        found = tensors.shapes(self.start_file(study, model))
        return FAMILIES[model].select({name: shape for name, (_, shape) in found.items()})

    def start_weights(self, study: Study, model: str) -> Known:
        """Return the weights with which a model's training starts; raises as `start_file`."""
        return Known(0, starting_weights(self.start_file(study, model), FAMILIES[model]))

    def start_file(self, study: Study, model: str) -> Path:
        """Return a model's starting checkpoint.

        Raises PolicyError (E-PLAN-START) where the plan pins none.
        """
        start = study.models.trained()[model].start
        if start is None:
            raise PolicyError(
                f"plan {study.name}: models.{model}.start names no checkpoint, so nothing says "
                "which weights are the agreed ones",
                hint="ask the operator for a plan that `kohort-server sign` made",
                code="E-PLAN-START",
            )
        return self.checkpoints(study) / start.name


def _moment(text: object) -> datetime | None:
    """The time in a record; None for what is none, as in records of an earlier version."""
    try:
        return datetime.fromisoformat(str(text))
    except ValueError:
        return None
