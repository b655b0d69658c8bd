"""What the node of a hostile site does, and the images that it sends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from flwr.app import Message

from common.wire import tensors
from common.wire.messages import Sealed
from tests.attacks.site_cases import HOSTILE, Case, Prepare, Scripts, batch, errors, node
from tests.federation import Federation, delayed, dropped

QUICK: dict[str, Any] = {"round_deadline_s": 0.6}
LATER_S = 5.0
TRAINING_ROUNDS = 3
HONEST = ("hospital-a", "hospital-c")
FIRST_NODE = 100


def replayed(federation: Federation) -> Scripts:
    """Every answer is the one to the first instruction."""
    sent: list[Sealed] = []

    def spoil(sealed: Sealed) -> Sealed:
        sent.append(sealed)
        return sent[0]

    federation.sites[HOSTILE].spoil = spoil
    return {}


def twice(federation: Federation) -> Scripts:
    """Asked twice, the site sends two different answers, while the others still compute."""
    federation.sites[HOSTILE].forget = True
    slow = [delayed(1.5), *[dropped] * 9]
    return {HOSTILE: [delayed(0.5)], **{name: list(slow) for name in HONEST}}


def changed_at_the_end(federation: Federation) -> Scripts:
    """The closing message is answered with another batch than the accepted one."""
    site = federation.sites[HOSTILE]
    honest = site.images

    def images(part: int) -> tensors.Arrays:
        made = honest(part)
        if len(site.asked) > TRAINING_ROUNDS + 1:
            made["labels"] = made["labels"][::-1].copy()
        return made

    site.images = images  # type: ignore[method-assign]
    site.forget = True
    return {}


def in_parts(count: int) -> Prepare:
    """Images in so many parts."""

    def prepare(federation: Federation) -> Scripts:
        federation.sites[HOSTILE].image_parts = count
        return {}

    return prepare


def another_node(message: Message, answer: Callable[[], Message]) -> list[tuple[float, Message]]:
    """The reply says that it comes from another node."""
    reply = answer()
    reply.metadata.__dict__["_src_node_id"] = FIRST_NODE
    return [(0.0, reply)]


def repeated(message: Message, answer: Callable[[], Message]) -> list[tuple[float, Message]]:
    """The same reply three times."""
    return [(0.0, answer()), (0.0, answer()), (0.05, answer())]


def many(arrays: tensors.Arrays, count: int) -> tensors.Arrays:
    """A batch with another number of images."""
    return {name: np.resize(a, (count, *a.shape[1:])).astype(a.dtype) for name, a in arrays.items()}


def one_label(arrays: tensors.Arrays) -> tensors.Arrays:
    """More images than the plan allows, all of one label."""
    return {**many(arrays, 60), "labels": np.zeros(60, np.int64)}


NODES = [
    Case(
        "an error with free text, for ever",
        errors((2, "Doe^Jane 1931-05-05"), (8, "e-doe")),
        (),
        QUICK,
    ),
    Case("error codes without end", errors(*((2, f"E-X{n}") for n in range(50))), (), QUICK),
    Case("an error of 100,000 letters", errors((-(1 << 31), "E-" + "X" * 100_000)), (), QUICK),
    Case("messages lost for ever", errors((3, ""), (4, ""), (5, "")), (), QUICK),
    Case("silence for ever", node(dropped), (), QUICK),
    Case("answers that come after the round", node(delayed(LATER_S)), (), QUICK),
    Case("answers in the name of another node", node(another_node), (), QUICK),
    Case("the first answer again in every round", replayed, ("E-INTAKE-ANSWER",)),
    Case("two different answers to one question", twice, ("E-INTAKE-SECOND",)),
    Case("another batch for the closing message", changed_at_the_end, ("E-INTAKE-SECOND",)),
]
IMAGES = [
    Case(
        "images of another size",
        batch(lambda a: {"images": a["images"][:, :16, :16].copy()}),
        ("E-GATE-11",),
    ),
    Case(
        "images of two channels",
        batch(lambda a: {"images": a["images"][..., :2].copy()}),
        ("E-GATE-11",),
    ),
    Case("images as floats", batch(lambda a: {"images": a["images"].astype("f4")}), ("E-GATE-10",)),
    Case("images of one label, more than allowed", batch(one_label), ("E-GATE-12",)),
    Case("no image", batch(lambda a: many(a, 0)), ("E-GATE-12",)),
    Case(
        "a label fewer than images", batch(lambda a: {"labels": a["labels"][:-1]}), ("E-GATE-10",)
    ),
    Case(
        "a label that no stratum has",
        batch(lambda a: {"labels": a["labels"] + 900}),
        ("E-GATE-13",),
    ),
    Case("a negative label", batch(lambda a: {"labels": a["labels"] - 9}), ("E-GATE-13",)),
    Case(
        "a flag of 7",
        batch(lambda a: {"privatized": a["privatized"] + np.uint8(7)}),
        ("E-GATE-14",),
    ),
    Case(
        "file names beside the images",
        batch(lambda a: {"names": np.zeros(4, np.uint8)}),
        ("E-GATE-10",),
    ),
    Case("eight parts, together too many images", in_parts(8), ("E-GATE-12",)),
    Case("10,000 parts", in_parts(10_000), ("E-GATE-12",)),
]
# no attack: Flower itself may deliver a reply more than once
HARMLESS = Case("the same answer many times", node(repeated))
