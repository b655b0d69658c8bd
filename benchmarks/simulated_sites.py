"""Many hospitals in one process: the site's own Fleet client, with invented updates, no training.

    python -m benchmarks.simulated_sites FOLDER

In: FOLDER/sites.json, which real_server.py writes. Out: honest answers until SIGTERM.
The transport, its polls, its inbox and its signatures are the product's (client/fleet). An update
is noise of the plan's shapes, a tenth of the plan's norm cap long, and made again on demand.
Fates of a site:
  honest    answers after a pause drawn at random, so that the order of answers is random
  silent    takes every instruction and answers none
  twice     pushes its reply, then another reply of the same payload
  restarts  is stopped while it has an answer to make, and started again on the same folder
  drips     pushes each object so slowly that the front just waits for it
"""

from __future__ import annotations

import json
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from flwr.app import Context, Message
from numpy.typing import NDArray

from client.fleet.app import build_app
from client.fleet.client import FleetClient
from client.fleet.connection import FleetSettings
from client.fleet.health import Health
from client.fleet.wire import Wire, deflate
from client.state.jobs import Stopped
from common.privacy import boundary
from common.study.bundle import open_bundle
from common.study.families import FAMILIES
from common.study.plan import Study
from common.study.planned import planned_shapes
from common.wire import signing, tensors
from common.wire.messages import Header, Sealed, digest_of, seal, unseal

POLL_S = 0.5  # the default of network.poll_s in site.yaml
LENGTH = 0.1  # of the plan's norm cap
MOST_BYTES = 1 << 30
DOWN_S = 3.0  # a site that restarts is away for so long
DRIP_S = 50.0  # one object of a site that drips; the front waits 60 s
DRIPS = 50
LARGE_BYTES = 100_000


@dataclass
class Hospital:
    """Answers one site's instructions; the same instruction gets the same bytes."""

    name: str
    number: int
    study: Study
    operator: signing.Ed25519PublicKey
    key: signing.Ed25519PrivateKey
    noise: NDArray[np.float32]
    fate: str
    spread_s: float
    stop: threading.Event = field(default_factory=threading.Event)
    restarted: bool = False

    def answer(self, sealed: Sealed) -> Sealed:
        """Return the sealed update to a sealed instruction."""
        asked = unseal(sealed, self.operator, max_bytes=MOST_BYTES)
        boundary.check_instruction(asked, self.study)
        if self.fate == "silent":
            self.stop.wait()
        if self.fate == "restarts" and not self.restarted and asked.round:
            self.restarted = True
            self.stop.set()
        if self.stop.wait(random.uniform(0.0, self.spread_s)):
            raise Stopped("this site is stopped")
        return self._update(asked)

    def _update(self, asked: Header) -> Sealed:
        """The update of a round."""
        plan = self.study.models.trained()[asked.model]
        family = FAMILIES[asked.model]
        shapes = planned_shapes(self.study, family)
        shift = 7919 * (self.number + 1) + 104_729 * asked.round
        numbers = np.roll(self.noise, shift) * np.float32(LENGTH * plan.max_update_norm)
        arrays: tensors.Arrays = {}
        start = 0
        for name, shape in shapes.items():
            count = int(np.prod(shape))
            changes = np.float32(family.may_change(name, plan.trainable))
            arrays[name] = (numbers[start : start + count] * changes).reshape(shape)
            start += count
        payload = tensors.dumps(arrays)
        statement = boundary.public_statement(self.study, "update", asked.model)
        place = f"{self.name} {asked.model} {asked.round}".encode()
        statement |= {"weights": asked.digest, "head_commitment": digest_of(place)}
        header = Header.model_validate(
            {
                "kind": "update", "study": asked.study, "phase": asked.phase,
                "model": asked.model, "round": asked.round, "part": 0, "parts": 1,
                "sender": self.name, "digest": digest_of(payload), "statement": statement,
            }
        )  # fmt: skip
        return seal(header, payload, self.key)


def unit_noise(study: Study) -> NDArray[np.float32]:
    """Return noise for every number of the plan's one model; its L2 norm is 1."""
    (model,) = study.models.trained()
    shapes = planned_shapes(study, FAMILIES[model])
    count = sum(int(np.prod(shape)) for shape in shapes.values())
    noise = np.random.default_rng(1).standard_normal(count, dtype=np.float32)
    return noise / np.float32(np.linalg.norm(noise))


# --- fates of the wire ----------------------------------------------------------------------------


class Dripping(httpx.BaseTransport):
    """A transport that sends a large body in many small pieces, with pauses."""

    def __init__(self, transport: httpx.BaseTransport) -> None:
        self._transport = transport

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        body = request.read()
        if len(body) > LARGE_BYTES:
            request.stream = _Drops(body)
        return self._transport.handle_request(request)

    def close(self) -> None:
        self._transport.close()


class _Drops(httpx.SyncByteStream):
    """A body, a piece a second."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        size = -(-len(self._body) // DRIPS)
        for start in range(0, len(self._body), size):
            yield self._body[start : start + size]
            time.sleep(DRIP_S / DRIPS)


class DrippingWire(Wire):
    """The site's connection with such a transport."""

    def _open(self) -> Any:
        client = super()._open()
        client._client._transport = Dripping(client._client._transport)
        return client


def push_first(
    client: FleetClient, handle: Callable[[Message, Context], Message]
) -> Callable[[Message, Context], Message]:
    """Return a handler that pushes one reply itself before it returns another."""

    def answer(message: Message, context: Context) -> Message:
        reply, objects = deflate(handle(message, context))
        wire = Wire(client.settings)
        node = client.node_id or 0
        pushed = wire.push_reply(node, reply)
        for name in pushed.objects_to_push:
            run_id = reply.metadata.run_id
            wire.push_object(node, run_id, name, pushed.session_id, objects[name])
        wire.close()
        return handle(message, context)

    return answer


# --- all of them ----------------------------------------------------------------------------------


def make_client(hospital: Hospital, spec: dict[str, Any], folder: Path) -> FleetClient:
    """Return a site's Fleet client as `kohort-site run` makes it."""
    settings = FleetSettings(
        url=spec["url"],
        ca_file=Path(spec["ca"]),
        node_key_file=folder / "node.key",
        state_dir=folder / "fleet",
        client_certificate=folder / "node.crt",
        poll_s=POLL_S,
    )
    handle: Any = build_app(hospital.answer)
    client = FleetClient(settings, lambda: {spec["pin"]}, handle, Health(), admit=lambda *_: None)
    if hospital.fate == "twice":
        client._handle = push_first(client, handle)
    if hospital.fate == "drips":
        session = client._session
        session.new_wire = lambda: DrippingWire(settings, lambda: session.generation)
    return client


def live(hospital: Hospital, spec: dict[str, Any], folder: Path, end: threading.Event) -> None:
    """Run a site's client until the end, again after a restart."""
    while not end.is_set():
        make_client(hospital, spec, folder).run(hospital.stop)
        if end.wait(DOWN_S):
            return
        hospital.stop.clear()


def main() -> None:
    """Run the sites that the folder names."""
    folder = Path(sys.argv[1])
    spec = json.loads((folder / "sites.json").read_text())
    operator = signing.parse_public(spec["operator"])
    study = open_bundle(Path(spec["bundle"]), operator)
    noise = unit_noise(study)
    end = threading.Event()
    hospitals = []
    threads = []
    for number, (name, fate) in enumerate(spec["sites"].items()):
        place = folder / name
        key = signing.load_private(place / "sign.key")
        hospital = Hospital(name, number, study, operator, key, noise, fate, spec["spread_s"])
        hospitals.append(hospital)
        thread = threading.Thread(target=live, args=(hospital, spec, place, end), daemon=True)
        threads.append(thread)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: end.set())
    for thread in threads:
        thread.start()
    end.wait()
    for hospital in hospitals:
        hospital.stop.set()
    for thread in threads:
        thread.join(5)


if __name__ == "__main__":
    main()
