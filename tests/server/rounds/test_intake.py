"""The intake's checks in their order, on single sealed replies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import Bug, RefusedError
from common.study.plan import Study
from common.wire import signing
from common.wire.messages import Header, Sealed
from server.rounds.intake import Instruction, accept, check_repeated
from tests.federation import Federation, ToySite


@pytest.fixture
def setting(tmp_path: Path) -> tuple[ToySite, Instruction, str]:
    federation = Federation.create(tmp_path)
    site = federation.sites["hospital-a"]
    weights = federation.open().record.weights("gan", 0)
    shapes = {name: a.shape for name, a in weights.items()}
    asked = Instruction(federation.study, "train", "gan", 0, shapes=shapes, weights="0" * 64)
    return site, asked, signing.public_text(site.key.public_key())


def reply(site: ToySite, asked: Instruction) -> Sealed:
    question = Header(
        kind="train",
        study=asked.study.hash(),
        phase="train",
        model="gan",
        round=0,
        sender="operator",
        digest="0" * 64,
    )
    import numpy as np

    return site._made(
        question, {name: np.zeros(shape, np.float32) for name, shape in asked.shapes.items()}
    )


def test_an_honest_reply_is_accepted_with_its_bytes(
    setting: tuple[ToySite, Instruction, str],
) -> None:
    site, asked, line = setting
    sealed = reply(site, asked)
    accepted = accept(sealed, "hospital-a", line, asked)
    assert accepted.sealed == sealed and set(accepted.arrays) == set(asked.shapes)
    with pytest.raises(Bug):
        accepted.arrays = {}


def test_size_comes_first_even_for_a_wrong_signature(
    setting: tuple[ToySite, Instruction, str],
) -> None:
    site, asked, line = setting
    sealed = reply(site, asked)
    with pytest.raises(RefusedError) as caught:
        accept(Sealed(b"x" * 70_000, sealed.payload, b""), "hospital-a", line, asked)
    assert caught.value.code == "E-SIZE"


def test_another_key_of_the_same_name_is_refused(setting: tuple[ToySite, Instruction, str]) -> None:
    site, asked, _ = setting
    with pytest.raises(RefusedError) as caught:
        accept(
            reply(site, asked),
            "hospital-a",
            signing.public_text(signing.new_key().public_key()),
            asked,
        )
    assert caught.value.code == "E-INTAKE-SIGNATURE"


def test_a_site_cannot_answer_for_another_node(setting: tuple[ToySite, Instruction, str]) -> None:
    site, asked, line = setting
    with pytest.raises(RefusedError) as caught:
        accept(reply(site, asked), "hospital-b", line, asked)
    assert caught.value.code == "E-INTAKE-SENDER"


def test_a_reply_made_with_other_weights_is_refused(
    setting: tuple[ToySite, Instruction, str],
) -> None:
    site, asked, line = setting
    with pytest.raises(RefusedError) as caught:
        accept(reply(site, asked), "hospital-a", line, replace(asked, weights="1" * 64))
    assert caught.value.code == "E-INTAKE-WEIGHTS"


def test_the_number_of_parts_may_not_change(setting: tuple[ToySite, Instruction, str]) -> None:
    site, asked, line = setting
    other = replace(asked, parts=2)
    with pytest.raises(RefusedError) as caught:
        accept(reply(site, asked), "hospital-a", line, other)
    assert caught.value.code == "E-INTAKE-PARTS"


def second_part(site: ToySite, study: Study) -> tuple[Sealed, Instruction]:
    """A site's second part of its images, where there were two."""
    question = Header(
        kind="synthesize",
        study=study.hash(),
        phase="synthesize",
        round=0,
        part=1,
        parts=2,
        sender="operator",
        digest="0" * 64,
    )
    asked = Instruction(study, "synthesize", "", 0, part=1, parts=2, weights="0" * 64)
    return site._made(question, {}), asked


@pytest.mark.parametrize("parts", [2, 3])
def test_the_number_of_parts_of_images_may_not_grow(
    setting: tuple[ToySite, Instruction, str], parts: int
) -> None:
    site, first, line = setting
    site.image_parts = parts
    sealed, asked = second_part(site, first.study)
    if parts == 2:
        assert accept(sealed, "hospital-a", line, asked).header.part == 1
        return
    with pytest.raises(RefusedError) as caught:
        accept(sealed, "hospital-a", line, asked)
    assert caught.value.code == "E-INTAKE-PARTS"


def test_a_later_part_under_another_sites_name_is_refused(
    setting: tuple[ToySite, Instruction, str],
) -> None:
    site, first, line = setting
    site.image_parts = 2
    site.forge = lambda fields, arrays: fields.update(sender="hospital-b")
    sealed, asked = second_part(site, first.study)
    with pytest.raises(RefusedError) as caught:
        accept(sealed, "hospital-a", line, asked)
    assert caught.value.code == "E-INTAKE-SENDER"


@pytest.mark.parametrize("place", [0, 31, 32, 63])
def test_a_repeated_reply_is_compared_to_its_last_digit(
    setting: tuple[ToySite, Instruction, str], place: int
) -> None:
    site, asked, line = setting
    sealed = reply(site, asked)
    digest = accept(sealed, "hospital-a", line, asked).header.digest
    check_repeated(sealed, "hospital-a", line, digest)
    other = "f" if digest[place] == "0" else "0"
    with pytest.raises(RefusedError) as caught:
        check_repeated(sealed, "hospital-a", line, digest[:place] + other + digest[place + 1 :])
    assert caught.value.code == "E-INTAKE-SECOND"
