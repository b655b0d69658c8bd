"""The release builder checks every batch again; each step refuses what it must."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import KohortError, PolicyError, RefusedError
from common.privacy import boundary
from common.study.plan import Study
from common.wire import signing, tensors
from common.wire.messages import Header, digest_of, seal
from server.release import build as module
from server.release import collect
from server.release.build import build_release
from server.release.items import ReleaseInputs, SiteBatch
from tests.releases import release_inputs

OPERATOR = signing.new_key()


def forged(
    plan: Study,
    change: Callable[[tensors.Arrays], object] = lambda arrays: None,
    metadata: dict[str, str] | None = None,
    **fields: Any,
) -> SiteBatch:
    """A correctly signed batch of hospital-a with other numbers, bytes or header fields."""
    size, channels = plan.intake.size_px, plan.intake.channels
    arrays: tensors.Arrays = {
        "images": np.random.default_rng(7).integers(
            0, 255, (3, size, size, channels), dtype=np.uint8
        ),
        "labels": np.zeros(3, np.int64),
        "privatized": np.zeros(3, np.uint8),
    }
    change(arrays)
    payload = tensors.dumps(arrays, metadata)
    statement = {
        **boundary.public_statement(plan, "images"),
        "weights": "d" * 64,
        "head_commitment": "0" * 64,
    }
    header = {
        "kind": "images",
        "study": plan.hash(),
        "phase": "synthesize",
        "round": 0,
        "sender": "hospital-a",
        "digest": digest_of(payload),
        "statement": statement,
        **fields,
    }
    key = signing.new_key()
    return SiteBatch(
        "hospital-a",
        signing.public_text(key.public_key()),
        (seal(Header.model_validate(header), payload, key),),
    )


def as_update(study: Study) -> dict[str, Any]:
    statement = boundary.public_statement(study, "update", "gan") | {
        "weights": "d" * 64,
        "head_commitment": "0" * 64,
    }
    return {"kind": "update", "phase": "train", "model": "gan", "statement": statement}


def smaller_k(study: Study) -> dict[str, Any]:
    return {
        "statement": boundary.public_statement(study, "images")
        | {"k": 2, "weights": "d" * 64, "head_commitment": "0" * 64}
    }


BATCHES: dict[str, Callable[[Study], SiteBatch]] = {
    "of another site": lambda study: forged(study, sender="hospital-b"),
    "of another study": lambda study: forged(study, study="0" * 64),
    "of another purpose": lambda study: forged(study, **as_update(study)),
    "that states a smaller k": lambda study: forged(study, **smaller_k(study)),
    "with a label that is no stratum": lambda study: forged(study, lambda a: a["labels"].fill(9)),
    "with a fourth tensor": lambda study: forged(study, lambda a: a.update(losses=np.zeros(3))),
    "that another key signed": lambda study: dataclasses.replace(
        forged(study), key=signing.public_text(signing.new_key().public_key())
    ),
    "whose bytes are not canonical": lambda study: forged(study, metadata={"patient": "41"}),
}


@pytest.fixture
def inputs(tmp_path: Path) -> ReleaseInputs:
    return release_inputs(tmp_path / "plan", OPERATOR)


@pytest.mark.parametrize("sentence", BATCHES)
def test_a_batch_is_refused(sentence: str, inputs: ReleaseInputs, tmp_path: Path) -> None:
    good = dataclasses.replace(inputs, batches=[forged(inputs.study), inputs.batches[1]])
    collect.collect_images(good, OPERATOR, tmp_path / "pictures")
    batches = [BATCHES[sentence](inputs.study), inputs.batches[1]]
    bad = dataclasses.replace(inputs, batches=batches)
    with pytest.raises(RefusedError):
        collect.collect_images(bad, OPERATOR, tmp_path / "pictures")


def test_one_site_twice_is_one_site_of_the_quorum(inputs: ReleaseInputs, tmp_path: Path) -> None:
    twice = dataclasses.replace(inputs, batches=[inputs.batches[0]] * 2)
    with pytest.raises(PolicyError, match="1 sites sent images"):
        collect.collect_images(twice, OPERATOR, tmp_path / "pictures")


def test_pictures_are_mixed_across_sites_and_only_the_operators_key_explains_their_order(
    inputs: ReleaseInputs, tmp_path: Path
) -> None:
    _, one = collect.collect_images(inputs, OPERATOR, tmp_path / "one")
    _, other = collect.collect_images(inputs, signing.new_key(), tmp_path / "other")
    payload = inputs.batches[0].parts[0].payload
    sent = tensors.loads(payload, max_bytes=1 << 20)["images"]
    first = {image.tobytes() for image in sent}
    order = [image.tobytes() in first for image in one.images]
    assert order not in (sorted(order), sorted(order, reverse=True))
    assert {i.tobytes() for i in one.images} == {i.tobytes() for i in other.images}
    assert not np.array_equal(one.images, other.images)


@pytest.mark.parametrize("step", ["write_items", "write_documents", "seal_folder", "publish"])
def test_a_build_that_fails_at_any_step_leaves_nothing(
    step: str, inputs: ReleaseInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise PolicyError("no")

    monkeypatch.setattr(module, step, fail)
    with pytest.raises(KohortError):
        build_release(inputs, tmp_path / "out", OPERATOR)
    assert list((tmp_path / "out").iterdir()) == []


def test_the_build_verifies_what_it_sealed_before_it_is_seen(
    inputs: ReleaseInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = module.write_documents

    def spoiled(part: Path, *arguments: Any) -> None:
        original(part, *arguments)
        (part / "metadata.csv").write_text("file_name,label,k\n")

    monkeypatch.setattr(module, "write_documents", spoiled)
    with pytest.raises(RefusedError, match=r"metadata\.csv"):
        build_release(inputs, tmp_path / "out", OPERATOR)
    assert list((tmp_path / "out").iterdir()) == []
