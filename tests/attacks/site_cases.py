"""One attack of a hostile site, and the pieces that attacks are made of.

A `Case` changes the toy site `hospital-b`, or what its node answers; hostile_sites.py plays it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Error, Message, RecordDict

from common.wire import signing, tensors
from common.wire.messages import Sealed, canonical, digest_of
from tests.federation import Fate, Federation

Scripts = dict[str, list[Fate]]
Prepare = Callable[[Federation], Scripts]
Forge = Callable[[dict[str, Any], tensors.Arrays], object]
Spoil = Callable[[Sealed, signing.Ed25519PrivateKey], Sealed]
HOSTILE = "hospital-b"
FOR_EVER = 400  # instructions


@dataclass(frozen=True)
class Case:
    """One attack: how it is prepared, the codes that may name it, changes of the plan.

    Without a code nothing tells the site from a slow hospital: it is not waited for.
    """

    attack: str
    prepare: Prepare
    codes: tuple[str, ...] = ()
    changes: dict[str, Any] = field(default_factory=dict)


def forged(forge: Forge, phase: str = "train") -> Prepare:
    """The site changes fields or tensors of one phase before it signs."""

    def act(fields: dict[str, Any], arrays: tensors.Arrays) -> None:
        if fields["phase"] == phase:
            forge(fields, arrays)

    def prepare(federation: Federation) -> Scripts:
        federation.sites[HOSTILE].forge = act
        return {}

    return prepare


def tensor(name: str, make: Callable[[Any], Any]) -> Prepare:
    """One tensor of every update is another one, where the model has it."""

    def forge(fields: dict[str, Any], arrays: tensors.Arrays) -> None:
        if name in arrays:
            arrays[name] = make(arrays[name])

    return forged(forge)


def says(**changes: Any) -> Prepare:
    """Header fields of the updates are others."""
    return forged(lambda fields, arrays: fields.update(changes))


def states(**changes: Any) -> Prepare:
    """Keys of the updates' statement are others."""
    return forged(lambda fields, arrays: fields.update(statement=fields["statement"] | changes))


def batch(make: Callable[[tensors.Arrays], tensors.Arrays]) -> Prepare:
    """The tensors of the images are others."""
    return forged(lambda fields, arrays: arrays.update(make(arrays)), "synthesize")


def spoiled(spoil: Spoil) -> Prepare:
    """The site changes the sealed bytes; it has its own key to sign them again."""

    def prepare(federation: Federation) -> Scripts:
        site = federation.sites[HOSTILE]
        site.spoil = lambda sealed: spoil(sealed, site.key)
        return {}

    return prepare


def payload(make: Callable[[bytes], bytes]) -> Prepare:
    """Another payload, signed as it should be."""

    def spoil(sealed: Sealed, key: signing.Ed25519PrivateKey) -> Sealed:
        made = make(sealed.payload)
        return sealed_with(sealed, key, made, digest=digest_of(made))

    return spoiled(spoil)


def header(**changes: Any) -> Prepare:
    """Header fields that no honest program can even write, signed all the same."""
    return spoiled(lambda sealed, key: sealed_with(sealed, key, sealed.payload, **changes))


def sealed_with(
    sealed: Sealed, key: signing.Ed25519PrivateKey, payload: bytes, **changes: Any
) -> Sealed:
    """A sealed message with another header, signed by the site itself."""
    text = canonical(json.loads(sealed.header) | changes)
    return Sealed(text, payload, signing.sign(key, signing.MESSAGE, text))


def raw_header(text: bytes) -> Prepare:
    """These bytes as a header, signed."""
    return spoiled(
        lambda sealed, key: Sealed(text, sealed.payload, signing.sign(key, signing.MESSAGE, text))
    )


def signature(make: Callable[[bytes], bytes]) -> Prepare:
    """Another signature."""
    return spoiled(lambda sealed, _: Sealed(sealed.header, sealed.payload, make(sealed.signature)))


def node(fate: Fate) -> Prepare:
    """The site's node does the same to every instruction."""
    return lambda federation: {HOSTILE: [fate] * FOR_EVER}


def record(make: Callable[[RecordDict], RecordDict]) -> Prepare:
    """Another Flower record than one sealed message."""

    def fate(message: Message, answer: Callable[[], Message]) -> list[tuple[float, Message]]:
        return [(0.0, Message(make(answer().content), reply_to=message))]

    return node(fate)


def errors(*pairs: tuple[int, str]) -> Prepare:
    """Flower errors, one after the other, for ever."""
    fates = [error(*pairs[number % len(pairs)]) for number in range(FOR_EVER)]
    return lambda federation: {HOSTILE: list(fates)}


def error(code: int, reason: str) -> Fate:
    """One Flower error."""
    return lambda message, answer: [(0.0, Message(Error(code, reason), reply_to=message))]
