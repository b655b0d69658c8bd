"""Targets: Flower's messages and objects on both sides, the front, and whole rounds."""

from __future__ import annotations

import base64
import hashlib
import io
import time
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PullMessagesResponse, PushMessagesRequest
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree

from client.fleet.app import reply_to
from client.fleet.app import sealed_of as sealed_on_site
from client.fleet.client import FleetClient
from client.fleet.connection import FleetSettings
from client.fleet.failures import CallFailed, classify
from client.fleet.health import Health
from client.fleet.inbox import Inbox, _read_objects
from client.fleet.messages import (
    MessageRefused,
    check_object,
    inflate,
    is_expired,
    object_ids,
)
from client.fleet.preview import read_preview
from client.fleet.sending import Sender
from client.fleet.wire import PulledMessage, Reply
from common.privacy import boundary
from common.wire import signing, tensors
from common.wire.messages import Header, Sealed, canonical, digest_of, seal
from server.flower.announcements import is_one_reply
from server.front import rules
from server.front.behind import certificate_in
from server.front.nginx import CERTIFICATE_HEADER
from server.front.requests import judge
from server.front.sites import Sites, read_visitor
from server.operator.certificates import create_authority, issue_site_certificate
from server.operator.sites import Registry
from server.rounds.exchange import Reply as ServerReply
from server.rounds.exchange import public_code
from server.rounds.gathering import Gathering
from server.rounds.intake import Instruction, accept, check_repeated
from server.rounds.record import read_sealed, store_sealed
from server.rounds.records import sealed_of
from tests.federation import Federation
from tests.fleet_server import NODE_ID, instruction
from tests.fuzz.harness import Parser, Target
from tests.fuzz.mutation import Maker, damaged, exchanged, revalued, wrapped
from tests.fuzz.wire_targets import ODD_HEADERS, tensor_makers

CAP = 1 << 18
REFUSED = (MessageRefused, CallFailed)
KINDS = ("Array", "ArrayChunk", "ArrayRecord", "ConfigRecord", "RecordDict", "Message")


def _pulled(message: Message) -> tuple[PullMessagesResponse, dict[str, bytes]]:
    """A message as the server announces it, and its objects in order."""
    objects = {name: one.deflate() for name, one in get_all_nested_objects(message).items()}
    response = PullMessagesResponse(
        messages_list=[message_to_proto(message)],
        message_object_trees=[get_object_tree(message)],
    )
    return response, objects


def _messages(folder: Path) -> Parser:
    """What a server announces, as the site keeps it in its inbox."""
    response, _ = _pulled(instruction())

    def call(data: bytes) -> None:
        pulled = PulledMessage.parse(data)
        object_ids(pulled, 64)
        is_expired(pulled.metadata)
        pulled.shell()
        is_expired(Reply.parse(data).metadata)

    return Parser(call, (damaged(response.SerializeToString()),), REFUSED)


def reassembled(message: Message, make: dict[str, Maker]) -> Maker:
    """Objects of which one is damaged and all above it name its new digest: a hostile sender's.

    The input is the list of objects from the leaves to the message, as the inbox stores them.
    """
    _, objects = _pulled(message)
    order = list(objects)

    def build(rng: Random) -> bytes:
        hit = order[int(rng.random() * len(order))]
        renamed: dict[str, bytes] = {}
        out = []
        for name in order:
            content = objects[name]
            for old, new in renamed.items():
                content = content.replace(old.encode(), new)
            if name == hit:
                content = make[name](rng)
            digest = hashlib.sha256(content).hexdigest().encode()
            renamed[name] = digest
            out.append(digest + len(content).to_bytes(8, "little") + content)
        return b"".join(out)

    return build


def _object_makers(message: Message) -> dict[str, Maker]:
    """For every object of a message: its bytes damaged, or the tokens of its texts exchanged."""
    makers = {}
    for name, content in _pulled(message)[1].items():
        broken = damaged(content)
        odd = (*(kind.encode() for kind in KINDS), b"arraychunk_ids", b"|", b"numpy.ndarray")
        texts = exchanged(content[:2000], odd=odd)
        makers[name] = lambda rng, b=broken, t=texts: b(rng) if rng.random() < 0.5 else t(rng)
    return makers


def small_instruction() -> Message:
    """An instruction of few bytes."""
    content = RecordDict(
        {
            "sealed": ConfigRecord({"header": b"h", "signature": b"s"}),
            "payload": ArrayRecord({"payload": Array(np.arange(6, dtype=np.uint8))}),
        }
    )
    message = instruction()
    message.content = content
    return message


def _objects(folder: Path) -> Parser:
    """Objects under right digests, inflated and handed to the daemon's door."""
    message = small_instruction()
    response, _ = _pulled(message)
    inbox = folder / "objects"

    def answer(sealed: Sealed) -> Sealed:
        return sealed

    def call(data: bytes) -> None:
        inbox.write_bytes(data)
        objects = _read_objects(inbox)
        for name, content in objects.items():
            check_object(name, content)
        if not objects:
            return
        response.message_object_trees[0].object_id = list(objects)[-1]
        found = inflate(PulledMessage(response), objects, NODE_ID, CAP)
        assert reply_to(found, answer) is not None

    makers = _object_makers(message)
    whole = b"".join(
        name.encode() + len(content).to_bytes(8, "little") + content
        for name, content in _pulled(message)[1].items()
    )
    build = reassembled(message, makers)
    return Parser(call, (build, build, build, damaged(whole)), REFUSED)


def _record_of(data: bytes, sealed: Sealed) -> RecordDict:
    """A record that a hostile node sends: its fields, types and array as `data` says."""
    parts = data.split(b"\0--\0")
    header, signature, shape, payload = (*parts, b"", b"", b"", b"")[:4]
    numbers = [int(byte) for byte in shape[:4]]
    dtype = ("uint8", "float32", "O", "uint8", "V8", "not a type")[shape[4] % 6 if shape[4:] else 0]
    stype = "numpy.ndarray" if not shape[5:] or shape[5] % 4 else "torch.Tensor"
    array = Array(dtype=dtype, shape=tuple(numbers), stype=stype, data=payload)
    head = ConfigRecord({"header": header, "signature": signature})
    return RecordDict({"sealed": head, "payload": ArrayRecord({"payload": array})})


def _records(folder: Path) -> Parser:
    """Records as Flower hands them over, on both sides."""
    sealed = Sealed(b"h", b"p", b"s")
    out = io.BytesIO()
    np.save(out, np.arange(3, dtype=np.uint8))
    seed = b"\0--\0".join([b"header", b"signature", b"\3", out.getvalue()])

    def answer(one: Sealed) -> Sealed:
        return one

    def call(data: bytes) -> None:
        record = _record_of(data, sealed)
        message = instruction()
        message.content = record
        assert reply_to(message, answer) is not None
        both = sealed_of(record), sealed_on_site(record)
        assert both[0] == both[1]

    return Parser(call, (damaged(seed), exchanged(seed)))


def _failures(folder: Path) -> Parser:
    """Error answers of whatever stands between the site and the server."""
    seeds = (b'401 {"code":2007,"message":"m"} Sun, 29 Nov 2026 23:44:43 GMT', b"302 x y")

    def call(data: bytes) -> None:
        status, _, rest = data.partition(b" ")
        body, _, date = rest.partition(b"} ")
        number = int(status) if status.isdigit() and len(status) == 3 else 500
        try:
            headers = {"date": date.decode("latin-1"), "location": "x"}
            response = httpx.Response(number, content=body + b"}", headers=headers)
        except (ValueError, UnicodeError):
            return
        request = httpx.Request("POST", "https://h")
        classify(httpx.HTTPStatusError("", request=request, response=response))
        public_code(date.decode("latin-1"), number)

    return Parser(call, (exchanged(*seeds), damaged(*seeds)))


def _certificates(folder: Path) -> bytes:
    """A site's certificate as DER."""
    from client.fleet.connection import create_node_key

    authority = create_authority(folder / "ca")
    create_node_key(folder / "node.key", folder / "node.pub", "hospital-a")
    line = (folder / "node.pub").read_text()
    issue_site_certificate(authority, "hospital-a", line, folder / "site.crt")
    pem = (folder / "site.crt").read_bytes()
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


def _visitors(folder: Path) -> Parser:
    """Certificates of whoever connects, and those in nginx's header."""
    der = _certificates(folder)
    Registry(folder / "sites.sqlite").close()
    sites = Sites(folder / "sites.sqlite")
    now = datetime(2026, 11, 29, tzinfo=UTC)

    def call(data: bytes) -> None:
        read_visitor(data)
        if data[:1] != b"0":
            sites.visitor(certificate_in([(CERTIFICATE_HEADER.encode(), data)]) or data, now)

    pem = quote((folder / "site.crt").read_text()).encode()

    def armour(data: bytes) -> bytes:
        text = base64.encodebytes(data).decode()
        return quote(f"-----BEGIN CERTIFICATE-----\n{text}-----END CERTIFICATE-----\n").encode()

    makers = (damaged(der), wrapped(damaged(der), armour), damaged(pem), exchanged(pem))
    return Parser(call, makers)


def _announcements(folder: Path) -> Parser:
    """What a site announces before it pushes a reply."""
    response, _ = _pulled(small_instruction())
    request = PushMessagesRequest(
        messages_list=response.messages_list, message_object_trees=response.message_object_trees
    )
    request.messages_list[0].metadata.message_id = response.message_object_trees[0].object_id
    seed = request.SerializeToString()
    deep = ObjectTree(object_id="0" * 64)
    for _ in range(90):
        deep = ObjectTree(object_id="0" * 64, children=[deep])
    request.message_object_trees[0].CopyFrom(deep)
    seeds = (seed, request.SerializeToString())

    def call(data: bytes) -> None:
        assert is_one_reply(data) in (True, False)

    return Parser(call, (damaged(*seeds),))


def _heads(folder: Path) -> Parser:
    """Heads of requests, as HTTP's parser hands them over."""
    key = base64.b64encode(b"-----BEGIN PUBLIC KEY-----")
    lines = [b"POST /v1/fleet/push-object?", b"content-type: application/protobuf"]
    lines += [b"flwr-public-key: " + key, b"content-length: 12", b"transfer-encoding: chunked"]
    seed = b"\n".join(lines)
    paths = tuple(path.encode() for path in rules.CALLS)

    def call(data: bytes) -> None:
        first, *rest = data.split(b"\n")
        method, _, target = first.partition(b" ")
        path, _, query = target.partition(b"?")
        headers = []
        for line in rest:
            name, _, value = line.partition(b": ")
            headers.append((name.lower(), value))
        status, size = judge(method.decode("latin-1"), path, query, headers, key)
        assert status or 0 <= size <= max(rules.CALLS.values())

    odd = (*paths, b"POST", b"GET", b"%70ull", b"content-length", b"expect: x", b"\xb2", b"0012")
    return Parser(call, (exchanged(seed, odd=odd), damaged(seed)))


# --- whole replies and instructions -----------------------------------------------------------


def _reply_makers(site: Any, asked: Instruction, payload: bytes, kind: str) -> tuple[Maker, ...]:
    """Replies under the site's own right signature: other headers, other payloads."""
    statement = boundary.public_statement(asked.study, kind, asked.model)
    statement |= {"weights": asked.weights, "head_commitment": "1" * 64}
    fields: dict[str, Any] = {
        "kind": kind,
        "study": asked.study.hash(),
        "phase": asked.phase,
        "model": asked.model,
        "round": asked.round,
        "sender": site.name,
        "digest": digest_of(payload),
        "statement": statement,
    }
    header = canonical(Header.model_validate(fields).model_dump(mode="json"))

    def sign(text: bytes) -> bytes:
        return _packed(Sealed(text, payload, signing.sign(site.key, signing.MESSAGE, text)))

    def under(body: bytes) -> bytes:
        named = Header.model_validate(fields | {"digest": digest_of(body)})
        return _packed(seal(named, body, site.key))

    payloads = [wrapped(make, under) for make in tensor_makers(payload)]
    return (wrapped(revalued(header, odd=ODD_HEADERS), sign), *payloads)


def _packed(sealed: Sealed) -> bytes:
    """A sealed message as the server keeps it on disk."""
    return tensors.dumps(
        {name: np.frombuffer(part, np.uint8) for name, part in sealed._asdict().items()}
    )


def _unpacked(data: bytes) -> Sealed:
    """The three parts of `_packed`, without any check."""
    found = tensors.loads(data, max_bytes=1 << 20)
    return Sealed(*(found[name].tobytes() for name in Sealed._fields))


def _asked(federation: Federation) -> dict[str, tuple[Instruction, bytes]]:
    """What is asked for an update and for images, with an honest payload."""
    site = federation.sites["hospital-a"]
    run = federation.open()
    weights = run.record.weights("gan", 0)
    shapes = {name: array.shape for name, array in weights.items()}
    train = Instruction(federation.study, "train", "gan", 0, shapes=shapes, weights="0" * 64)
    update = {name: np.zeros(array.shape, np.float32) for name, array in weights.items()}
    images = Instruction(federation.study, "synthesize", "", 0, weights="0" * 64)
    pictures = {name: array[:1] for name, array in site.images(0).items()}
    return {"update": (train, tensors.dumps(update)), "images": (images, tensors.dumps(pictures))}


def _intake(folder: Path, kind: str) -> Parser:
    federation = Federation.create(folder)
    site = federation.sites["hospital-a"]
    asked, payload = _asked(federation)[kind]
    line = signing.public_text(site.key.public_key())

    def call(data: bytes) -> None:
        sealed = _unpacked(data)
        check_repeated_quietly(sealed, site.name, line)
        accept(sealed, site.name, line, asked)

    return Parser(call, _reply_makers(site, asked, payload, kind))


def check_repeated_quietly(sealed: Sealed, site: str, line: str) -> None:
    """The check of a second reply: it may refuse, and nothing else."""
    from common.errors import RefusedError

    try:
        check_repeated(sealed, site, line, "0" * 64)
    except RefusedError:
        return


def _updates(folder: Path) -> Parser:
    return _intake(folder, "update")


def _images(folder: Path) -> Parser:
    return _intake(folder, "images")


def _stored(folder: Path) -> Parser:
    """A reply on the server's disk, in a folder that was restored."""
    path = folder / "reply.sealed"
    store_sealed(path, Sealed(b"header", b"payload", b"signature"))
    seed = path.read_bytes()

    def call(data: bytes) -> None:
        path.write_bytes(data)
        read_sealed(path)

    odd = (b'"header"', b'"payload"', b'"signature"', b'"F32"', b"[1]")
    return Parser(call, (*tensor_makers(seed), exchanged(seed, odd=odd)))


def _rounds(folder: Path) -> Parser:
    """Whole replies through the gathering of a round: the site is at fault, the round goes on."""
    federation = Federation.create(folder)
    site = federation.sites["hospital-a"]
    run = federation.open()
    asked, payload = _asked(federation)["update"]
    gathering = Gathering(run, federation.grid(), asked, b"")
    makers = _reply_makers(site, asked, payload, "update")

    def call(data: bytes) -> None:
        sealed = _unpacked(data)
        head = ConfigRecord({"header": sealed.header, "signature": sealed.signature})
        array = Array(np.frombuffer(sealed.payload, np.uint8))
        if data[-1:] == b"\0":
            array.shape = (2**40, 3)
        record = RecordDict({"sealed": head, "payload": ArrayRecord({"payload": array})})
        gathering._take(ServerReply(site.name, 0, record=record))
        state = run.registry.get(site.name).state
        assert state in ("registered", "quarantined")
        if state == "quarantined":
            run.registry.release(site.name)
            run.registry.note_registered(site.name, 100)

    return Parser(call, makers)


def _previews(folder: Path) -> Parser:
    """The small objects of a message, before anything of its payload is pulled."""
    message = small_instruction()

    def call(data: bytes) -> None:
        objects = _objects_in(data)
        for name, content in objects.items():
            check_object(name, content)
        preview = read_preview(list(objects)[-1], objects.keys(), objects.__getitem__)
        assert preview.most_bytes > 0

    return Parser(call, (reassembled(message, _object_makers(message)),), REFUSED)


def _objects_in(data: bytes) -> dict[str, bytes]:
    """The objects that `reassembled` packed."""
    found = {}
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at + 64 : at + 72], "little")
        found[data[at : at + 64].decode()] = data[at + 72 : at + 72 + size]
        at += 72 + size
    return found


def _loops(folder: Path) -> Parser:
    """Whole instructions through the site's work loop: each is answered or dropped."""
    settings = FleetSettings(
        "https://h:1", folder, folder, folder, max_message_bytes=CAP, max_objects=64
    )

    def handle(message: Message, context: Any) -> Message:
        return reply_to(message, lambda sealed: sealed)

    health = Health()
    client = FleetClient(settings, set, handle, health, admit=lambda *_: None)
    client._inbox = Inbox(folder / "inbox", 1 << 30)
    client._sender = Sender(settings, client._session, client._inbox, health)
    client._session.node_id = NODE_ID
    whole = small_instruction()
    response, _ = _pulled(whole)
    response.messages_list[0].metadata.created_at = time.time() + 1e6

    def call(data: bytes) -> None:
        found = _objects_in(data)
        message_id = list(found)[-1] if found else "0" * 64
        response.message_object_trees[0].object_id = message_id
        client._inbox.store(message_id, response.SerializeToString(), found.items())
        client._handle_one(message_id)
        assert client._inbox.reply(message_id) is not None
        client._inbox.drop(message_id)

    return Parser(call, (reassembled(whole, _object_makers(whole)),))


TARGETS = (
    Target(
        "flower-messages", ("client.fleet.wire:PulledMessage", "client.fleet.wire:Reply"), _messages
    ),
    Target(
        "flower-objects",
        ("client.fleet.messages:inflate", "client.fleet.messages:count_inflated_bytes"),
        _objects,
        few=500,
    ),
    Target("message-preview", ("client.fleet.preview",), _previews, few=500),
    Target(
        "flower-records",
        ("client.fleet.app:sealed_of", "server.rounds.records:sealed_of"),
        _records,
        few=500,
    ),
    Target("error-answers", ("client.fleet.failures:_flower_code",), _failures),
    Target(
        "certificates",
        ("server.front.sites:read_visitor", "server.front.behind:certificate_in"),
        _visitors,
    ),
    Target("announcements", ("server.flower.announcements",), _announcements),
    Target("request-heads", ("server.front.requests:judge",), _heads),
    Target("intake-updates", ("server.rounds.intake:accept",), _updates, few=600),
    Target("intake-images", ("server.rounds.intake:accept",), _images, few=400),
    Target("stored-replies", ("server.rounds.record:read_sealed",), _stored),
    Target("round-replies", ("server.rounds.gathering:Gathering._take",), _rounds, few=100),
    Target(
        "site-instructions",
        ("client.fleet.client:FleetClient", "client.fleet.inbox:Inbox"),
        _loops,
        few=150,
    ),
)
