"""The invented hospitals of the demo."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common.errors import ConfigurationError
from common.study.plan import load_study
from server.demo import hospitals as demo_hospitals
from server.public_data.pairs import read_pairs
from tests.leaks import leaked


@pytest.mark.parametrize("study", ["fundus", "vessels", "chest"])
def test_studies_with_photographs_or_phantoms_have_a_preset(study: str) -> None:
    found = load_study(demo_hospitals.preset_of(study))
    assert (found.modality, found.name) == (study, f"{study}-demo")


@pytest.mark.parametrize(
    "study", ["chest-demo", "vessels-consortium", "nothing", "../studies/fundus"]
)
def test_a_study_without_public_images_is_refused_with_the_names_of_the_others(study: str) -> None:
    with pytest.raises(ConfigurationError, match="no public images or phantoms") as caught:
        demo_hospitals.preset_of(study)
    assert caught.value.hint == "expected one of: chest, fundus, vessels"


def test_any_number_of_hospitals_of_phantoms_with_nobody_twice(tmp_path: Path) -> None:
    done: list[tuple[int, int]] = []
    names = [f"hospital-{i}" for i in range(4)]
    truth = demo_hospitals.phantom_hospitals(
        tmp_path, names, lambda *now: done.append(now), patients=1
    )
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [(t.persons, t.persons_by_label) for t in truth.values()] == [(1, {"vessels": 1})] * 4
    everyone = [text for t in truth.values() for text in t.identifiers if text.startswith("MRN-")]
    assert len(everyone) > 4
    assert len(everyone) == len(set(everyone))


def test_photographs_are_enough_for_some_hospitals_only(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="enough for 2 to"):
        demo_hospitals.photograph_hospitals(
            tmp_path, [f"hospital-{i}" for i in range(26)], lambda *_: None
        )


def test_everybody_with_a_radiograph_is_at_one_hospital_and_nobody_of_the_reference_is(
    tmp_path: Path,
) -> None:
    people = demo_hospitals.radiographed_people()
    assert {name: len(some) for name, some in people.items()} == {
        f"hospital-{x}": 190 for x in "abc"
    }
    shown = [
        picture.tobytes() for some in people.values() for one in some for picture in one.radiographs
    ]
    assert len(shown) == len(set(shown)) == 621
    assert sum(len(one.radiographs) == 2 for some in people.values() for one in some) == 51
    reference = demo_hospitals.radiograph_reference(tmp_path, 32)
    with np.load(reference.path, allow_pickle=False) as file:
        images, labels = file["images"], file["labels"]
    assert images.shape == (300, 32, 32, 1) and set(labels) == {"normal", "pneumonia"}
    patients = {
        demo_hospitals.as_ingested(picture, 32).tobytes()
        for some in people.values() for one in some for picture in one.radiographs
    }  # fmt: skip
    assert not patients & {image.tobytes() for image in images}
    assert reference.heldout == reference.path and reference.members is not None
    with np.load(reference.members, allow_pickle=False) as file:
        played, names = file["images"], file["names"]
    assert len(played) == len(set(names.tolist())) == 3 * 190
    assert {image.tobytes() for image in played} <= patients


def test_the_listed_members_are_the_people_at_the_hospitals(tmp_path: Path) -> None:
    """Fewer hospitals share the people anew, and a limit leaves some out: the members follow."""
    dealt = demo_hospitals._deal(["hospital-a", "hospital-b"], 5)
    assert [len(some) for some in dealt.values()] == [5, 5]
    assert all({one.label for one in some} == {"normal", "pneumonia"} for some in dealt.values()), (
        "a limit keeps labels"
    )
    reference = demo_hospitals.radiograph_reference(tmp_path, 32, ["hospital-a", "hospital-b"], 5)
    assert reference.members is not None
    with np.load(reference.members, allow_pickle=False) as file:
        found = [image.tobytes() for image in file["images"]]
    assert found == [
        demo_hospitals.as_ingested(one.radiographs[0], 32).tobytes()
        for some in dealt.values()
        for one in some
    ]


def test_any_number_of_chest_hospitals_with_nobody_twice_and_not_too_many(tmp_path: Path) -> None:
    names = [f"hospital-{i}" for i in range(2)]
    truth = demo_hospitals.radiograph_hospitals(tmp_path, names, lambda *_: None, patients=4)
    assert [t.persons for t in truth.values()] == [4, 4]
    everyone = [text for t in truth.values() for text in t.identifiers if text.startswith("MRN-")]
    assert len(everyone) == len(set(everyone))
    with pytest.raises(ConfigurationError, match="radiographs are enough for 2 to 19"):
        demo_hospitals.radiograph_hospitals(
            tmp_path, [f"hospital-{i}" for i in range(26)], lambda *_: None
        )


def test_the_reference_of_phantoms_can_be_read_and_is_at_no_hospital(tmp_path: Path) -> None:
    reference = demo_hospitals.phantom_reference(tmp_path, 64, patients=2)
    assert "phantoms" in reference.name
    found = read_pairs(reference.path, 64)
    assert found.pairs.shape == (2 * demo_hospitals.REFERENCE_PATCHES, 64, 64, 2)
    assert np.unique(found.patient_of).tolist() == [0, 1]
    hospitals = [[demo_hospitals.HOSPITAL_STREAM, i] for i in range(26)]
    streams = [
        np.random.default_rng(seed) for seed in (0, demo_hospitals.REFERENCE_STREAM, *hospitals)
    ]
    assert len({int(stream.integers(2**62)) for stream in streams}) == 28


@pytest.mark.parametrize("hide", ["plain", "utf-16", "hex", "base64-0", "base64-1", "base64-2"])
def test_the_leak_search_finds_a_string_in_every_spelling(hide: str) -> None:
    import base64

    name = "ZANPES^LUNMER"
    hidden = {
        "plain": name.encode(),
        "utf-16": name.encode("utf-16-le"),
        "hex": name.encode().hex().encode(),
        **{f"base64-{n}": base64.b64encode(b"x" * n + name.encode() + b"yz") for n in range(3)},
    }[hide]
    assert leaked([name, "JAKVELTOR^GORHIN"], b"\1before" + hidden + b"after\2") == [name]
    assert leaked([name], b"nothing here") == []
