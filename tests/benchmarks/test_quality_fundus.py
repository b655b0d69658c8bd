"""The quality benchmark's own rules: its parts, equal counts, and a curve without real images."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import (
    average_figures,
    average_makers,
    average_people,
    average_prepared,
    chest_split,
)
from benchmarks import quality_fundus as q
from benchmarks.curve import curve
from client.synthesize.invert import Inversion
from common.privacy.accounting import epsilon_pld
from common.privacy.anchors import NoisyAnchors


def test_a_patient_has_one_role_whatever_else_is_listed() -> None:
    names = np.array([f"nih:{i:04d}" for i in range(200)])
    roles = chest_split.role_of(names)
    assert {role: list(roles.values()).count(role) for role in chest_split.ROLES} == {
        "public": 100,
        "members": 60,
        "heldout": 40,
    }
    assert chest_split.role_of(np.repeat(names[::-1], 3)) == roles


def test_members_are_dealt_with_the_same_share_of_each_label() -> None:
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    member = average_people.deal_members(labels, 50)
    assert [int(member[labels == label].sum()) for label in range(3)] == [30, 15, 5]
    assert np.array_equal(member, average_people.deal_members(labels, 50))


def test_as_many_real_images_as_there_are_groups_of_each_label() -> None:
    labels = np.repeat([0, 1], [23, 9])
    rows = average_figures.some(labels, np.arange(32), 5, seed=0)
    assert np.bincount(labels[rows]).tolist() == [4, 1]
    assert len(set(rows.tolist())) == 5


def some_people(persons: list[int]) -> average_people.Set:
    """Images of one label, told apart by their level."""
    levels = np.arange(len(persons), dtype=np.uint8)[:, None, None, None]
    images = np.broadcast_to(levels, (len(persons), 4, 4, 1)).copy()
    return average_people.Set(images, np.zeros(len(persons), np.int64), np.array(persons))


def inverted(accepted: list[int]) -> Inversion:
    """An inversion of which only acceptance counts."""
    count = len(accepted)
    return Inversion(
        np.zeros((count, 1)),
        np.zeros((count, 1)),
        np.zeros((count, 1, 1), np.float32),
        np.zeros(count),
        np.array(accepted, bool),
        np.zeros((count, 2, 1), np.float32),
        np.zeros((count, 2, 1, 1), np.float32),
    )


def test_the_attacked_people_are_those_whose_images_a_site_accepts() -> None:
    ready = object.__new__(average_prepared.PreparedPart)
    members, heldout = some_people([0, 0, 1, 2]), some_people([0, 1, 2])
    ready.part = average_people.Part(
        "fundus", ("a",), members, heldout, heldout, members, average_people.ROOT, 1, True
    )
    ready.__dict__["seen"] = inverted([1, 0, 0, 1])
    ready.__dict__["seen_heldout"] = inverted([0, 1, 1])
    people = ready.people
    assert people.person_of.tolist() == [0, 1, 2, 3]
    assert people.member.tolist() == [True, True, False, False]
    assert people.images[:, 0, 0, 0].tolist() == [0, 3, 1, 2]
    assert ready.numbers.tolist() == [0, -1, 1]

    # person 2 of the members is in the only average, and is the nearest
    released = average_makers.Released(
        people.images[1:2], np.zeros(1, np.int64), np.zeros(1, np.int64), ((2,),)
    )
    features = people.images[..., 0].reshape(4, -1).astype(float)
    found = average_figures.linkage(
        people, ready.numbers, {"pixels": features}, released, {"pixels": features[1:2]}, 1
    )
    assert found is not None and found["precision"] == 1


def test_only_images_of_a_persons_highest_label_count() -> None:
    given = average_people.Set(
        np.zeros((4, 2, 2, 1), np.uint8), np.array([0, 1, 0, 0]), np.array([0, 0, 1, 1])
    )
    found = average_people.one_label(given)
    assert found.labels.tolist() == [1, 0, 0] and found.person_of.tolist() == [0, 1, 1]


def test_the_curve_is_a_small_picture_with_a_panel_a_part() -> None:
    rows = [
        {
            "row": name,
            "k": k,
            "membership": {"worst": {"auc": 0.5 + 1 / k}},
            "utility": {"kappa": 0.4 - 1 / k},
        }
        for name in ("similar", "cells")
        for k in (5, 10)
    ]
    part = {"rows": rows, "real": {"all": {"kappa": 0.45}}}
    one, two = (curve(found) for found in ({"fundus": part}, {"fundus": part, "chest": part}))
    sizes = [Image.open(io.BytesIO(data)).size for data in (one, two)]
    assert sizes[1] == (sizes[0][0], 2 * sizes[0][1]) and len(two) < 50_000


def test_a_release_without_labels_stands_in_the_table_with_its_attacks_and_not_in_the_curve() -> (
    None
):
    attacked = {
        "worst": {"auc": 0.52, "auc_interval": (0.4, 0.6), "tpr": 0.01, "attacker": "x"},
        "chance": 0.6,
        "all": {},
    }
    far = {"kernel": 0.5, "frechet": None}
    blind = {
        "row": average_makers.ANCHORS,
        "k": 10,
        "images": 6,
        "distances": far,
        "utility": None,
        "membership": attacked,
        "linkage": None,
        "reidentified": None,
    }
    worth = {"kappa": 0.4, "kappa_95": 0.1, "accuracy": 0.5, "macro_f1": 0.4, "recall": [0.5]}
    plain = blind | {"row": "similar", "utility": worth}
    real = {
        "all": worth,
        "floor": far,
        "inverted_floor": far,
        "real 10": worth,
        "inverted 10": worth,
        "real floor 10": far,
        "inverted floor 10": far,
    }
    images = average_people.Set(
        np.zeros((2, 2, 2, 1), np.uint8), np.zeros(2, np.int64), np.arange(2)
    )
    part = average_people.Part(
        "fundus", ("a",), images, images, images, images, average_people.ROOT, 1, True
    )
    line = next(
        line
        for line in q.table(part, [blind, plain], real, [10]).markdown().splitlines()
        if average_makers.ANCHORS in line
    )
    assert line.split(" | ")[5:10] == [""] * 5 and "0.520 (0.40-0.60)" in line
    assert line.count("|") == len(q.COLUMNS) + 1
    assert curve({"fundus": {"rows": [blind, plain], "real": real}}) == curve(
        {"fundus": {"rows": [plain], "real": real}}
    )


def test_a_distance_stands_with_its_interval() -> None:
    found = {"kernel": 0.5, "kernel_95": [0.25, 0.75], "frechet": 2.0, "frechet_95": [1.5, 2.5]}
    assert q.far(found) == ("0.500 (0.250-0.750)", "2.00 (1.50-2.50)")
    assert q.far({"kernel": 0.5, "frechet": None}) == ("0.500", "")


def test_figures_are_kept_by_generator_and_encoder(tmp_path: Path) -> None:
    digests = set()
    for gan, encoder in ((b"a", b"a"), (b"a", b"b"), (b"b", b"a")):
        (tmp_path / "gan.safetensors").write_bytes(gan)
        (tmp_path / "encoder.safetensors").write_bytes(encoder)
        digests.add(average_prepared.digest_of(tmp_path))
    assert len(digests) == 3


def test_the_noise_of_the_anchors_row_is_worth_the_epsilon_that_the_table_states() -> None:
    mechanism = NoisyAnchors(
        average_makers.ANCHORS_NOISE,
        average_makers.ANCHORS_COMPONENTS,
        6,
        10,
        average_makers.ANCHORS_THRESHOLD_DELTA,
    )
    assert 7.9 < epsilon_pld([mechanism], 1e-5) <= 8.0
