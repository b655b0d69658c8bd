"""Small hospitals for tests.

Each has a state folder, an operator, an approved plan, invented patients and scripted children.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.daemon.jobs import Ending
from client.daemon.site import Site
from client.egress.evidence import Evidence
from client.ingest.cohort import FORMAT
from client.ingest.cohort_files import SCHEMA
from client.state.config import load_site
from client.state.folder import State, new_pseudonym_key
from client.state.group_store import Group, Stratum
from client.state.jobs import CANARIES, TALLY, Job, Progress
from client.state.ledger import Reservation
from client.state.membership import Membership
from client.state.plans import Plans
from client.state.sample import sample as site_sample
from client.state.seen_weights import SeenWeights
from common.privacy.accounting import Spent, spend
from common.privacy.canaries import Secret
from common.privacy.mechanisms import Mechanism, SubsampledGaussian
from common.privacy.noise import NoiseSource
from common.privacy.tally import Tally
from common.storage.files import atomic_write
from common.study.bundle import write_bundle
from common.study.plan import Study, load_study
from common.wire import signing, tensors
from common.wire.messages import Header, Sealed, canonical, digest_of, seal
from tests.heard import honest_tally
from tests.invented import spare_invented_weights
from tests.studies import small_plan

spare_invented_weights()
SITE = "hospital-a"
WEIGHTS: dict[str, tensors.Arrays] = {
    "gan": {"generator.a": np.ones((2, 3), np.float32), "critic.a": np.ones((4,), np.float32)},
    "glow": {"glow.a": np.ones((5,), np.float32)},
}


def write_plan(
    folder: Path, weights: dict[str, tensors.Arrays] | None = None, **changes: Any
) -> Path:
    """The small plan with starting checkpoints for the given weights, as a file."""
    data = small_plan(**changes)
    for model, arrays in (WEIGHTS if weights is None else weights).items():
        tensors.write(folder / f"{model}.safetensors", arrays)
        sha256 = hashlib.sha256((folder / f"{model}.safetensors").read_bytes()).hexdigest()
        data["models"][model]["start"] = {"file": f"{model}.safetensors", "sha256": sha256}
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(data))))
    return path


def write_cohort(folder: Path, study: Study, patients: int = 16, seed: int = 0) -> None:
    """A cohort of invented patients, one picture each, all right eyes of label 0 or 1."""
    folder.mkdir(parents=True)
    size, channels = study.intake.size_px, study.intake.planes
    blobs = np.random.default_rng(seed).integers(0, 255, (patients, 4, 4, channels))
    images = np.repeat(np.repeat(blobs, size // 4, 1), size // 4, 2).astype(np.uint8)
    np.save(folder / "images.npy", images)
    with closing(sqlite3.connect(folder / "index.sqlite")) as index, index:
        index.executescript(SCHEMA)
        for patient in range(patients):
            name = pseudonym(patient)
            index.execute("INSERT INTO patient VALUES (?, ?)", (patient, name))
            index.execute("INSERT INTO alias VALUES (?, ?)", (name, patient))
            row = (patient, patient, patient * 2 // patients, 2, f"{patient:064x}")
            index.execute("INSERT INTO image VALUES (?, ?, ?, ?, ?)", row)
    facts = {
        "format": FORMAT,
        "size_px": size,
        "channels": channels,
        "label_names": list(study.intake.labels),
        "digest": "0" * 64,
    }
    (folder / "cohort.json").write_text(json.dumps(facts))


def pseudonym(patient: int) -> str:
    """The pseudonym of an invented patient."""
    return hashlib.sha256(f"patient {patient}".encode()).hexdigest()


@dataclass
class Hospital:
    """A site with its operator: what a test needs to ask and to look."""

    root: Path
    operator: Ed25519PrivateKey
    study: Study
    bundle: Path

    def site(self, **policy: Any) -> Site:
        """A freshly started daemon over the state on disk."""
        state = State(self.root)
        config = load_site(self.root)
        config = config.model_copy(update={"policy": config.policy.model_copy(update=policy)})
        membership = Membership(
            format="kohort-join/1",
            site=SITE,
            server_url="https://127.0.0.1:1",
            ca="",
            operator_key=signing.public_text(self.operator.public_key()),
            client_certificate="",
        )
        return Site(state, config, membership)

    def ask(
        self,
        kind: str,
        *,
        key: Ed25519PrivateKey | None = None,
        weights: Any = None,
        trained: bool = True,
        **fields: Any,
    ) -> Sealed:
        """A signed instruction; `fields` change its header.

        Before it asks for images the site has seen training, unless not `trained`.
        """
        if kind == "synthesize" and trained:
            self.see_training()
        model = fields.setdefault("model", "gan" if kind == "train" else "")
        arrays = weights or (WEIGHTS[model] if model else {**WEIGHTS["gan"], **WEIGHTS["glow"]})
        payload = tensors.dumps(arrays)
        header = {
            "kind": kind,
            "phase": kind,
            "study": self.study.hash(),
            "round": 0,
            "sender": "operator",
        }
        header |= {"digest": digest_of(payload), **fields}
        return seal(Header.model_validate(header), payload, key or self.operator)

    def see_training(self) -> None:
        """Write down that the site saw round 0 of every model, as if it had taken part."""
        state = State(self.root)
        plans = Plans(state, self.operator.public_key())
        seen = SeenWeights(state, self.study.hash())
        known = {place.model for place in seen.places()}
        for model, plan in self.study.models.trained().items():
            if model not in known and plan.start is not None:
                payload = tensors.dumps(plans.start_weights(self.study, model).arrays)
                sealed = self.ask(
                    "train", model=model, weights=tensors.loads(payload, max_bytes=len(payload))
                )
                seen.note(Header.model_validate_json(sealed.header), payload)


def make_hospital(
    root: Path, *, approve: bool = True, weights: Any = None, **changes: Any
) -> Hospital:
    """A hospital whose staff approved the small plan, with a cohort; `changes` go into the plan."""
    plans, state = root / "operator", root / "state"
    plans.mkdir(parents=True)
    operator = signing.new_key()
    plan = write_plan(plans, weights, **changes)
    write_bundle(plan, operator, plans / "bundle")
    study = load_study(plan)
    (root / "data").mkdir()
    state.mkdir()
    text = site_sample(SITE, str(root / "data")).replace("send_slot_s: 2.0", "send_slot_s: 0")
    (state / "site.yaml").write_text(text.replace("threads: 0", "threads: 1"))
    place = State(state)
    new_pseudonym_key(place.pseudonym_key)
    signing.save_private(place.sign_key, signing.new_key())
    write_cohort(place.cohort(study.intake), study)
    if approve:
        Plans(place, operator.public_key()).approve(plans / "bundle")
    return Hospital(state, operator, study, plans / "bundle")


@dataclass
class Children:
    """Replaces `run_child`: writes what a child would write, counts, and misbehaves as scripted."""

    study: Study
    script: list[str] = field(default_factory=list)
    reservations: list[int] = field(default_factory=list)
    runs: int = 0
    change: Callable[[tensors.Arrays], tensors.Arrays] = lambda arrays: arrays
    evidence: Callable[[Evidence], Evidence] = lambda evidence: evidence
    tally: Callable[[Tally], Tally] = lambda tally: tally
    on_run: Callable[[], None] = lambda: None
    _seeds: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def __call__(
        self, folder: Path, threads: int, secret: bytes, stop: threading.Event, progress: Progress
    ) -> Ending:
        job = Job.read(folder)
        self.runs += 1
        self.on_run()
        if job.reservation:
            self.reservations.append(Reservation.from_json(job.reservation).id)
        what = self.script.pop(0) if self.script else "finish"
        if what == "crash":
            return Ending(False)
        if what == "fault":
            return Ending(False, again=False)
        if what == "refuse":
            return Ending(False, "E-GROUP-SIZE")
        if what == "die":
            raise Killed
        output = self._update(folder) if job.kind == "train" else self._images(folder)
        if (folder / CANARIES).is_file():
            atomic_write(
                folder / TALLY, tensors.dumps(self.tally(self._heard(job, folder)).arrays())
            )
        tensors.write(folder / "out.safetensors", self.change(output))
        if what == "die after":
            raise Killed
        return Ending(True)

    def _update(self, folder: Path) -> tensors.Arrays:
        weights = tensors.read(folder / "in.safetensors", max_bytes=1 << 20)
        # another result each time, also of sites at once: a second computation would be seen
        rng = np.random.default_rng(next(self._seeds))
        return {
            name: rng.normal(0, 0.1, array.shape).astype(np.float32)
            for name, array in weights.items()
        }

    def _heard(self, job: Job, folder: Path) -> Tally:
        """What canaries hear in an honest round."""
        plan, event = (
            self.study.models.trained()[job.model],
            Reservation.from_json(job.reservation).event,
        )
        assert isinstance(event, SubsampledGaussian)
        secret = Secret.from_arrays(tensors.read(folder / CANARIES, max_bytes=1 << 24))
        return honest_tally(secret, event, plan.clip, plan.patients_per_step, NoiseSource())

    def _images(self, folder: Path) -> tensors.Arrays:
        groups = tuple(
            Group(
                tuple(pseudonym(p) for p in range(8 * label, 8 * label + 8)), Stratum(label, 2), 5
            )
            for label in (0, 1)
        )
        (folder / "evidence.json").write_bytes(
            self.evidence(Evidence(groups, (0, 1), ())).to_json()
        )
        (folder / "contact_sheet.png").write_bytes(b"sheet")
        size = self.study.intake.size_px
        images = np.random.default_rng(next(self._seeds)).integers(
            0, 255, (2, size, size, 3), dtype=np.uint8
        )
        return {
            "images": images,
            "labels": np.array([0, 1]),
            "privatized": np.array([0, 1], np.uint8),
        }


class Killed(BaseException):
    """Stands for `kill -9`: nothing catches it, and the next start sees only what is on disk."""


@functools.cache
def _spent(mechanisms: tuple[Mechanism, ...], delta: float, prv: bool) -> Spent:
    return spend(mechanisms, delta, prv=prv)


def spend_once(mechanisms: Iterable[Mechanism], delta: float, *, prv: bool = False) -> Spent:
    """Ask the real accountants once for each history, because the same few plans come again."""
    return _spent(tuple(mechanisms), delta, prv)


def scripted(monkeypatch: pytest.MonkeyPatch, study: Study, *script: str) -> Children:
    """Let the daemon's children follow a script; after its end every child finishes."""
    children = Children(study, list(script))
    monkeypatch.setattr("client.daemon.jobs.run_child", children)
    for module in ("client.state.price", "client.state.ledger", "common.privacy.plan_report"):
        monkeypatch.setattr(f"{module}.spend", spend_once)
    return children


def request_text(fields: dict[str, str], key: Ed25519PrivateKey) -> str:
    """A signed request as `kohort-site init` writes it."""
    return json.dumps(
        fields | {"signature": signing.sign(key, signing.REQUEST, canonical(fields)).decode()}
    )
