"""The boundary's rules as a table: what each refuses, by its code."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import RefusedError
from common.privacy import boundary
from common.privacy.boundary import check_images, check_instruction, check_update, open_payload
from common.privacy.boundary_rules import RULES
from common.wire import tensors
from common.wire.messages import Header, digest_of
from tests.studies import small_study

STUDY = small_study(models__gan__trainable=["critic.top."])
SHAPES = {"critic.top.weight": (2, 2), "critic.low.weight": (3,), "generator.weight": (4,)}
Change = Callable[[Any], Any]


def update() -> tensors.Arrays:
    """An update that every rule allows."""
    return {
        "critic.top.weight": np.full((2, 2), 0.5, np.float32),
        "critic.low.weight": np.zeros(3, np.float32),
        "generator.weight": np.full(4, -0.5, np.float32),
    }


def images() -> tensors.Arrays:
    """Images that every rule allows."""
    return {
        "images": np.zeros((3, 32, 32, 3), np.uint8),
        "labels": np.array([0, 1, 2]),
        "privatized": np.array([0, 1, 0], np.uint8),
    }


def header(kind: str, /, **fields: Any) -> Header:
    """A site's header that every rule allows, with changes."""
    model = "gan" if kind == "update" else ""
    statement = boundary.public_statement(STUDY, kind, "gan") | {
        "weights": "d" * 64,
        "head_commitment": "a" * 64,
    }
    base: dict[str, Any] = {
        "kind": kind,
        "study": STUDY.hash(),
        "phase": "train" if kind == "update" else "synthesize",
        "model": model,
        "round": 0,
        "sender": "hospital-b",
        "digest": digest_of(b""),
        "statement": statement,
    }
    return Header.model_validate(base | fields)


def code_of(call: Callable[[], object]) -> str:
    """The code of the refusal."""
    with pytest.raises(RefusedError) as refused:
        call()
    return refused.value.code


def test_what_the_rules_allow_passes() -> None:
    check_update(update(), SHAPES, header("update"), STUDY)
    assert check_images(images(), header("images"), STUDY) == 3


HEADERS: dict[str, tuple[str, dict[str, Any]]] = {
    "another study": ("E-GATE-01", {"study": "0" * 64}),
    "a site that the plan does not name": ("E-GATE-01", {"sender": "hospital-x"}),
    "the operator's name": ("E-GATE-01", {"sender": "operator"}),
    "a kind of another phase": ("E-GATE-01", {"phase": "synthesize"}),
    "an instruction in a reply's place": ("E-GATE-01", {"kind": "train"}),
    "a round after the last": ("E-GATE-01", {"round": 2}),
    "a model that is not trained": ("E-GATE-01", {"model": "wgan"}),
    "a second part of an update": ("E-GATE-01", {"part": 1, "parts": 2}),
    "receipts from a site": ("E-GATE-01", {"receipts": ("x",)}),
}


@pytest.mark.parametrize("case", HEADERS)
def test_rule_1_refuses(case: str) -> None:
    code, fields = HEADERS[case]
    assert (
        code_of(lambda: check_update(update(), SHAPES, header("update", **fields), STUDY)) == code
    )


STATEMENTS: dict[str, dict[str, Any]] = {
    "a count of patients": {"patients": 63},
    "a loss": {"loss": 0.3},
    "a file name": {"file": "mueller.dcm"},
    "another epsilon": {"epsilon": 1.0},
    "a whole number for a fraction": {"epsilon": 8},
    "a truth for a number": {"steps": True},
    "weights that are not a hash": {"weights": "start.safetensors"},
    "weights as a number": {"weights": 7},
    "a head that is not a hash": {"head_commitment": "Mueller"},
    "a commitment that is a number": {"head_commitment": 7},
    "the number of the ledger's entries": {"ledger_seq": 3},
}


@pytest.mark.parametrize("case", STATEMENTS)
def test_rule_2_refuses(case: str) -> None:
    statement = header("update").statement | STATEMENTS[case]
    assert (
        code_of(
            lambda: check_update(update(), SHAPES, header("update", statement=statement), STUDY)
        )
        == "E-GATE-02"
    )


def test_rule_2_refuses_a_statement_that_lacks_a_constant() -> None:
    statement = {k: v for k, v in header("update").statement.items() if k != "noise_multiplier"}
    assert (
        code_of(
            lambda: check_update(update(), SHAPES, header("update", statement=statement), STUDY)
        )
        == "E-GATE-02"
    )


# Two models that differ in every constant, as (rate, sigma, clip, steps a round).
CONSTANTS = {"gan": (0.16, 4.0, 1.0, 2), "glow": (0.08, 2.5, 0.5, 7)}
DIFFERENT = small_study(
    models__glow__noise_multiplier=2.5,
    models__glow__clip=0.5,
    models__glow__patients_per_step=8,
    models__glow__local_steps=7,
)


@pytest.mark.parametrize("model", CONSTANTS)
def test_the_statement_of_an_update_has_the_constants_of_its_own_model(model: str) -> None:
    said = boundary.public_statement(DIFFERENT, "update", model)
    names = ("sampling_rate", "noise_multiplier", "clip", "steps")
    assert tuple(said[name] for name in names) == CONSTANTS[model]


@pytest.mark.parametrize(("model", "other"), [("gan", "glow"), ("glow", "gan")])
def test_rule_2_refuses_an_update_that_states_another_models_noise(model: str, other: str) -> None:
    of_other = boundary.public_statement(DIFFERENT, "update", other)
    statement = of_other | {"ledger_head": "a" * 64, "ledger_seq": 3}
    fields = {"study": DIFFERENT.hash(), "model": model, "statement": statement}
    found = header("update", **fields)
    assert code_of(lambda: boundary.check_reply(found, DIFFERENT)) == "E-GATE-02"


def test_rules_3_and_4_hold_for_bytes() -> None:
    payload = tensors.dumps(update())
    head = header("update", digest=digest_of(payload))
    assert set(open_payload(payload, head, 1 << 20)) == set(SHAPES)
    assert code_of(lambda: open_payload(payload, head, len(payload) - 1)) == "E-GATE-03"
    assert code_of(lambda: open_payload(payload, header("update"), 1 << 20)) == "E-GATE-03"
    named = tensors.dumps(update(), {"patient": "Mueller"})
    assert (
        code_of(lambda: open_payload(named, header("update", digest=digest_of(named)), 1 << 20))
        == "E-GATE-04"
    )
    spaced = payload.replace(b'"dtype":', b'"dtype" :', 1)
    spaced = (int.from_bytes(payload[:8], "little") + 1).to_bytes(8, "little") + spaced[8:]
    assert (
        code_of(lambda: open_payload(spaced, header("update", digest=digest_of(spaced)), 1 << 20))
        == "E-GATE-04"
    )


UPDATES: dict[str, tuple[str, Change]] = {
    "a tensor more": ("E-GATE-05", lambda a: a | {"critic.extra": np.zeros(1, np.float32)}),
    "a tensor fewer": ("E-GATE-05", lambda a: {"generator.weight": a["generator.weight"]}),
    "half precision's big brother": (
        "E-GATE-06",
        lambda a: {n: v.astype(np.float64) for n, v in a.items()},
    ),
    "whole numbers": ("E-GATE-06", lambda a: {n: v.astype(np.int32) for n, v in a.items()}),
    "a transposed tensor": (
        "E-GATE-06",
        lambda a: a | {"critic.top.weight": np.zeros((4,), np.float32)},
    ),
    "not a number": (
        "E-GATE-07",
        lambda a: a | {"generator.weight": np.array([np.nan] * 4, np.float32)},
    ),
    "infinity": (
        "E-GATE-07",
        lambda a: a | {"generator.weight": np.array([np.inf] * 4, np.float32)},
    ),
    "a frozen tensor that moved": (
        "E-GATE-08",
        lambda a: a | {"critic.low.weight": np.array([0, 1e-30, 0], np.float32)},
    ),
    "a frozen tensor that moved and sums to zero": (
        "E-GATE-08",
        lambda a: a | {"critic.low.weight": np.array([0.5, 0, -0.5], np.float32)},
    ),
    "a vector that is a hair too long": (
        "E-GATE-09",
        lambda a: (
            {n: np.zeros_like(v) for n, v in a.items()}
            | {"generator.weight": np.full(4, 5.0001, np.float32)}
        ),
    ),
    "tensors that are too long together": (
        "E-GATE-09",
        lambda a: (
            a
            | {
                "critic.top.weight": np.full((2, 2), 4.0, np.float32),
                "generator.weight": np.full(4, 4.0, np.float32),
            }
        ),
    ),
    "too long a vector": (
        "E-GATE-09",
        lambda a: a | {"generator.weight": np.full(4, 5.0, np.float32)},
    ),
    "huge numbers": ("E-GATE-09", lambda a: {n: v * np.float32(1e38) for n, v in a.items()}),
}


@pytest.mark.parametrize("case", UPDATES)
def test_an_update_is_refused_with(case: str) -> None:
    code, change = UPDATES[case]
    assert code_of(lambda: check_update(change(update()), SHAPES, header("update"), STUDY)) == code


def test_rule_5_refuses_global_weights_of_another_model() -> None:
    shapes = {"glow.a": (2,)}
    arrays: tensors.Arrays = {"glow.a": np.zeros(2, np.float32)}
    assert code_of(lambda: check_update(arrays, shapes, header("update"), STUDY)) == "E-GATE-05"


def test_rule_9_allows_the_bound_itself() -> None:
    at_bound = update() | {
        "critic.top.weight": np.zeros((2, 2), np.float32),
        "generator.weight": np.full(4, 5.0, np.float32),
    }
    check_update(at_bound, SHAPES, header("update"), STUDY)


IMAGES: dict[str, tuple[str, Change]] = {
    "a fourth tensor": ("E-GATE-10", lambda a: a | {"groups": np.arange(3)}),
    "no labels": ("E-GATE-10", lambda a: {n: v for n, v in a.items() if n != "labels"}),
    "floats": ("E-GATE-10", lambda a: a | {"images": a["images"].astype(np.float32)}),
    "a label too few": ("E-GATE-10", lambda a: a | {"labels": a["labels"][:2]}),
    "labels in two dimensions": ("E-GATE-10", lambda a: a | {"labels": a["labels"][:, None]}),
    "grey images": ("E-GATE-11", lambda a: a | {"images": a["images"][..., :1]}),
    "one flat image": ("E-GATE-11", lambda a: a | {"images": a["images"].reshape(3, -1)}),
    "no image": ("E-GATE-12", lambda a: {n: v[:0] for n, v in a.items()}),
    "more than the plan's number": (
        "E-GATE-12",
        lambda a: {n: np.repeat(v, 14, 0) for n, v in a.items()},
    ),
    "a negative label": ("E-GATE-13", lambda a: a | {"labels": np.array([-1, 0, 0])}),
    "a label beyond the strata": ("E-GATE-13", lambda a: a | {"labels": np.array([0, 0, 3])}),
    "a flag of two": ("E-GATE-14", lambda a: a | {"privatized": np.array([2, 0, 0], np.uint8)}),
}


@pytest.mark.parametrize("case", IMAGES)
def test_images_are_refused_with(case: str) -> None:
    code, change = IMAGES[case]
    assert code_of(lambda: check_images(change(images()), header("images"), STUDY)) == code


def test_rule_14_refuses_flags_where_the_plan_privatizes_nothing() -> None:
    study = small_study(synthesis__privatize=None)
    statement = boundary.public_statement(study, "images") | {
        "weights": "d" * 64,
        "head_commitment": "a" * 64,
    }
    head = header("images", study=study.hash(), statement=statement)
    assert code_of(lambda: check_images(images(), head, study)) == "E-GATE-14"


INSTRUCTIONS: dict[str, dict[str, Any]] = {
    "a site as sender": {"sender": "hospital-a"},
    "a reply's kind": {"kind": "update"},
    "a third synthesis": {"kind": "synthesize", "phase": "synthesize", "model": "", "round": 2},
    "synthesis of a model": {"kind": "synthesize", "phase": "synthesize", "model": "gan"},
    "a part beyond the parts": {
        "kind": "synthesize",
        "phase": "synthesize",
        "model": "",
        "part": 2,
        "parts": 2,
    },
}


@pytest.mark.parametrize("case", INSTRUCTIONS)
def test_an_instruction_is_refused_with(case: str) -> None:
    fields = {"kind": "train", "sender": "operator", "statement": {}} | INSTRUCTIONS[case]
    assert code_of(lambda: check_instruction(header("update", **fields), STUDY)) == "E-GATE-01"


def test_synthesis_is_refused_where_the_plan_has_none() -> None:
    study = small_study(synthesis=None)
    fields = {
        "kind": "synthesize",
        "phase": "synthesize",
        "model": "",
        "sender": "operator",
        "study": study.hash(),
    }
    assert code_of(lambda: check_instruction(header("update", **fields), study)) == "E-GATE-01"


def test_every_code_in_use_is_in_the_table_and_every_rule_is_used() -> None:
    files = (
        "common/privacy/boundary.py",
        "common/privacy/global_weights.py",
        "client/daemon/path.py",
        "client/egress/gate.py",
        "client/egress/artefacts.py",
    )
    source = "".join((Path(boundary.__file__).parents[2] / file).read_text() for file in files)
    used = {int(n) for n in re.findall(r",\s+(\d+),\s+f?\"", source)} | {
        int(n) for n in re.findall(r"refuse\(\s*(\d+),", source)
    }
    assert used == set(RULES)
    assert [rule.code for rule in RULES.values()] == [f"E-GATE-{n:02d}" for n in RULES]
