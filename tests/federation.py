"""Both sides of a federation in memory: a Flower `Grid` without network and sites without data.

- `LocalGrid` hands an instruction to a node's ClientApp at once and keeps the reply until it is
  pulled. The ClientApp may be the real one or a toy's.
- Misbehaviour is scripted: a list of `Fate`s for each node, one an instruction, honest afterwards.
- `ToySite` answers as a site does, with made-up numbers. `forge` changes an answer before it is
  signed or after.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from client.fleet.app import build_app
from common.privacy import boundary
from common.storage import files
from common.study.bundle import write_bundle
from common.study.families import FAMILIES
from common.study.plan import Study
from common.wire import signing, tensors
from common.wire.messages import Header, Sealed, digest_of, seal, unseal
from server.operator.config import Limits
from server.operator.requests import Request
from server.operator.sites import Registry
from server.operator.state import ServerState
from server.rounds.loop import run_study
from server.rounds.record import StudyRecord
from server.rounds.study_run import StudyRun
from tests.invented import spare_invented_weights
from tests.studies import small_plan, vessels_plan

spare_invented_weights()
Fate = Callable[[Message, Callable[[], Message]], list[tuple[float, Message]]]
QUICK = Limits(poll_s=0.01, reask_s=0.3, retry_first_s=0.02, retry_cap_s=0.1, goodbye_s=1.0)


# --- what can happen to an instruction -----------------------------------------------------------


def honest(message: Message, answer: Callable[[], Message]) -> list[tuple[float, Message]]:
    """It is answered at once."""
    return [(0.0, answer())]


def dropped(message: Message, answer: Callable[[], Message]) -> list[tuple[float, Message]]:
    """It never arrives."""
    return []


def crashed(message: Message, answer: Callable[[], Message]) -> list[tuple[float, Message]]:
    """The site does the work and dies before it sends anything."""
    answer()
    return []


def delayed(seconds: float) -> Fate:
    """The answer comes late."""
    return lambda message, answer: [(seconds, answer())]


def failed(code: int, reason: str) -> Fate:
    """Flower or the site answers with an error."""
    return lambda message, answer: [(0.0, Message(Error(code, reason), reply_to=message))]


# --- the grid ------------------------------------------------------------------------------------


class LocalGrid(Grid):
    """Holds nodes by id; each instruction uses up one fate of `scripts[node id]`.

    It is safe in threads, and a node gets one instruction at a time.
    """

    def __init__(
        self, apps: Mapping[int, ClientApp], scripts: Mapping[int, Iterable[Fate]] | None = None
    ) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self.apps = dict(apps)
        self.online = set(apps)
        self.scripts = {node: list(fates) for node, fates in (scripts or {}).items()}
        self.pushed: list[tuple[int, str]] = []
        self._replies: dict[str, list[tuple[float, Message]]] = {}
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._busy = {node: threading.Lock() for node in apps}

    def set_run(self, run: Run) -> None:
        """Not needed."""

    @property
    def run(self) -> Run:
        """Not needed."""
        raise NotImplementedError

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """As Flower's own."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """The nodes that are online."""
        return sorted(self.online)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Deliver each message to its node's app, unless the script says otherwise."""
        return [self._deliver(message) for message in messages]

    def _deliver(self, message: Message) -> str:
        node = message.metadata.dst_node_id
        with self._lock:
            message_id = f"message-{next(self._ids)}"
            message.metadata.__dict__["_message_id"] = message_id
            self.pushed.append((node, message.metadata.message_type))
            fates = self.scripts.get(node, [])
            fate = fates.pop(0) if fates else honest
        with self._busy[node]:
            replies = fate(message, lambda: self._answer(node, message))
        with self._lock:
            now = time.monotonic()
            self._replies[message_id] = [(now + delay, reply) for delay, reply in replies]
        return message_id

    def _answer(self, node: int, message: Message) -> Message:
        context = Context(run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={})
        reply = self.apps[node](message, context)
        assert isinstance(reply, Message)
        return reply

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are due, each once."""
        found = []
        with self._lock:
            for message_id in message_ids:
                waiting = self._replies.get(message_id, [])
                found += [reply for due, reply in waiting if due <= time.monotonic()]
                self._replies[message_id] = [
                    (due, r) for due, r in waiting if due > time.monotonic()
                ]
        return found

    def deliver_held(self) -> None:
        """Let every reply come that is still under way, however late it is."""
        with self._lock:
            for message_id, waiting in self._replies.items():
                self._replies[message_id] = [(0.0, reply) for _, reply in waiting]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Not used by kohort: it would aggregate whatever came."""
        raise NotImplementedError


# --- sites ---------------------------------------------------------------------------------------


@dataclass
class ToySite:
    """Answers instructions as a site does.

    `forge(header, arrays)` may change both before signing; `spoil` may change the sealed bytes.
    """

    name: str
    study: Study
    operator: signing.Ed25519PublicKey
    seed: int = 0
    size: float = 0.01
    image_parts: int = 1
    key: signing.Ed25519PrivateKey = field(default_factory=signing.new_key)
    forge: Callable[[dict[str, Any], tensors.Arrays], None] | None = None
    spoil: Callable[[Sealed], Sealed] | None = None
    forget: bool = False
    asked: list[Header] = field(default_factory=list)
    stored: dict[str, Sealed] = field(default_factory=dict)

    def app(self) -> ClientApp:
        """The real ClientApp around this toy."""
        return build_app(self.answer)

    def answer(self, sealed: Sealed) -> Sealed:
        """The stored answer of a place, or a new one."""
        header = unseal(sealed, self.operator, max_bytes=1 << 30)
        boundary.check_instruction(header, self.study)
        self.asked.append(header)
        number = 0 if header.phase == "synthesize" else header.round
        place = f"{header.phase}/{header.model}/{number}/{header.part}"
        if place not in self.stored or self.forget:
            self.stored[place] = self._made(
                header, tensors.loads(sealed.payload, max_bytes=1 << 30)
            )
        return self.stored[place]

    def _made(self, asked: Header, weights: tensors.Arrays) -> Sealed:
        kind = "update" if asked.kind == "train" else "images"
        arrays = self.update(asked, weights) if kind == "update" else self.images(asked.part)
        fields: dict[str, Any] = {
            "kind": kind,
            "study": asked.study,
            "phase": asked.phase,
            "model": asked.model,
            "round": 0 if kind == "images" else asked.round,
            "part": asked.part,
            "parts": self.image_parts if kind == "images" else 1,
            "sender": self.name,
            "statement": boundary.public_statement(self.study, kind, asked.model)
            | {
                "weights": asked.digest,
                "head_commitment": digest_of(f"{self.name} {len(self.stored)}".encode()),
            },
        }
        if boundary.OPERATOR_LOG in asked.statement:
            fields["statement"] |= {boundary.OPERATOR_LOG: asked.statement[boundary.OPERATOR_LOG]}
        if self.forge:
            self.forge(fields, arrays)
        payload = tensors.dumps(arrays)
        sealed = seal(
            Header.model_validate({"digest": digest_of(payload), **fields}), payload, self.key
        )
        return self.spoil(sealed) if self.spoil else sealed

    def update(self, asked: Header, weights: tensors.Arrays) -> tensors.Arrays:
        """Made-up deltas of the right shapes."""
        rng = np.random.default_rng(
            [self.seed, asked.round, len(self.stored) if self.forget else 0]
        )
        plan = self.study.models.trained()[asked.model]
        family = FAMILIES[asked.model]
        return {
            name: (
                self.size * rng.standard_normal(a.shape) * family.may_change(name, plan.trainable)
            ).astype(np.float32)
            for name, a in weights.items()
        }

    def images(self, part: int) -> tensors.Arrays:
        """Made-up pictures."""
        rng = np.random.default_rng([self.seed, part])
        size, channels = self.study.intake.size_px, self.study.intake.channels
        return {
            "images": rng.integers(0, 255, (6, size, size, channels), dtype=np.uint8),
            "labels": np.arange(6, dtype=np.int64) % len(self.study.strata()),
            "privatized": np.zeros(6, np.uint8),
        }


# --- a consortium --------------------------------------------------------------------------------


@dataclass
class Federation:
    """An operator's state folder with a signed plan, and enrolled and registered toy sites."""

    state: ServerState
    study: Study
    key: signing.Ed25519PrivateKey
    sites: dict[str, ToySite]
    limits: Limits = QUICK

    @classmethod
    def of_pairs(cls, folder: Path, **changes: Any) -> Federation:
        """A small study of image + mask pairs without synthesis.

        Its starting weights are real networks, untrained.
        """
        key, state = signing.new_key(), ServerState(folder / "server")
        signing.save_private(state.operator_key, key)
        return cls.of(folder, pairs_plan(folder / "plan", **changes), key, state)

    @classmethod
    def create(cls, folder: Path, **changes: Any) -> Federation:
        """A small study with tiny checkpoints and its three sites."""
        key = signing.new_key()
        state = ServerState(folder / "server")
        signing.save_private(state.operator_key, key)
        return cls.of(folder, tiny_plan(folder / "plan", **changes), key, state)

    @classmethod
    def of(
        cls, folder: Path, plan: Path, key: signing.Ed25519PrivateKey, state: ServerState
    ) -> Federation:
        """The federation of a written plan."""
        study = write_bundle(plan, key, folder / "bundle")
        root = state.study(study.hash())
        write_bundle(folder / "plan" / "study.yaml", key, root / "bundle")
        names = [site.name for site in study.sites]
        sites = {
            name: ToySite(name, study, key.public_key(), seed) for seed, name in enumerate(names)
        }
        federation = cls(state, study, key, sites)
        registry = Registry(state.sites)
        for seed, (name, site) in enumerate(sites.items()):
            registry.enrol(federation.request(name, site))
            registry.note_registered(name, 100 + seed)
        registry.close()
        return federation

    def request(self, name: str, site: ToySite) -> Request:
        """Return the request that a toy would send.

        Its node key is a placeholder, because nothing here speaks TLS.
        """
        line = signing.public_text(site.key.public_key())
        return Request(
            format="kohort-request/1",
            site=name,
            node_key=f"node {name}-{id(site)}",
            sign_key=line,
            signature="",
        )

    def grid(self, scripts: Mapping[str, Iterable[Fate]] | None = None) -> LocalGrid:
        """A fresh grid over all sites; scripts by site name."""
        node = {name: 100 + seed for seed, name in enumerate(self.sites)}
        apps = {node[name]: site.app() for name, site in self.sites.items()}
        return LocalGrid(apps, {node[name]: fates for name, fates in (scripts or {}).items()})

    def open(self) -> StudyRun:
        """A study run on the state as it lies on disk: what a new process would see."""
        record = StudyRecord(self.state.study(self.study.hash()), self.study)
        return StudyRun(self.study, record, Registry(self.state.sites), self.key, self.limits)

    def run(self, scripts: Mapping[str, Iterable[Fate]] | None = None) -> StudyRun:
        """Run the study to its end; returns the finished run."""
        study_run = self.open()
        run_study(study_run, self.grid(scripts))
        return study_run


def tiny_plan(folder: Path, **changes: Any) -> Path:
    """Write a plan of two GAN rounds, one flow round and images, and return its path.

    Its checkpoints hold a few numbers each.
    """
    import hashlib
    import json

    rng = np.random.default_rng(1)
    arrays = {
        "gan": {"generator.a": (4, 3), "critic.a": (5,), "critic.b": (2, 2)},
        "glow": {"glow.a": (7,)},
    }
    data = small_plan(**{"round_deadline_s": 20.0, **changes})
    for model, shapes in arrays.items():
        if model not in data["models"]:
            continue
        path = folder / f"{model}.safetensors"
        tensors.write(
            path,
            {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()},
        )
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        data["models"][model]["start"] = {"file": path.name, "sha256": digest}
    files.atomic_write(folder / "study.yaml", json.dumps(data).encode())
    return folder / "study.yaml"


def pairs_plan(folder: Path, **changes: Any) -> Path:
    """Write a plan without synthesis and return its path (imports torch).

    The weights of its generator and critic are untrained.
    """
    import hashlib
    import json

    import torch

    from common.models.wgan import build, parameters_by_name
    from common.study.training import WganPlan

    data = vessels_plan(**{"round_deadline_s": 20.0, **changes})
    torch.manual_seed(1)
    generator, critic = build(
        WganPlan.model_validate(data["models"]["wgan"]), data["intake"]["size_px"]
    )
    path = folder / "wgan.safetensors"
    tensors.write(
        path,
        {
            name: p.detach().numpy()
            for name, p in parameters_by_name(generator, generator, critic).items()
        },
    )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    data["models"]["wgan"]["start"] = {"file": path.name, "sha256": digest}
    files.atomic_write(folder / "study.yaml", json.dumps(data).encode())
    return folder / "study.yaml"
