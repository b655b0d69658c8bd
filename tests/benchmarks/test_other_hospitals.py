"""Other cameras' sources as hospitals: who plays whom, what is refused, and what is asked for."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import average_figures, average_makers, average_people, hospital_people
from benchmarks import other_hospitals as o
from benchmarks.average_prepared import PreparedPart
from benchmarks.fundus_sources import Photographs
from client.state.group_store import Group, Stratum
from client.synthesize.nearer import MeanFeatures
from common.study.plan import load_study
from tests.flat_networks import Colours, Plain

CLASSES = hospital_people.CLASSES["odir"]


def photographs(people: int = 30) -> Photographs:
    """Both eyes of each person: left ones lit on the right, right ones on the left."""
    count = 2 * people
    images = np.zeros((count, 4, 4, 3), np.uint8)
    images[0::2, :, 3] = 200  # a mirrored left eye is lit as a right one is
    images[1::2, :, 0] = 200
    names = np.array([f"{i:03d}" for i in range(count)])
    patients = np.array([f"odir:{i // 2:03d}" for i in range(count)])
    labels = np.array([CLASSES[i // 2 % 3] for i in range(count)])
    return Photographs(images, names, patients, labels, np.arange(count) % 2 == 1)


def part_of(found: Photographs, people: int | None = None) -> average_people.Part:
    return hospital_people.make_part("odir", found, average_people.ROOT, people)


def test_two_thirds_of_each_label_are_members_and_both_eyes_have_one_role() -> None:
    part = part_of(photographs())
    assert np.bincount(part.members.labels).tolist() == [7, 7, 7]
    assert np.bincount(part.heldout.labels).tolist() == [6, 6, 6]  # both eyes of three each
    assert np.unique(part.heldout.person_of, return_counts=True)[1].tolist() == [2] * 9
    assert not len(part.public.images)
    again = part_of(photographs())
    assert np.array_equal(part.members.labels, again.members.labels)


def test_of_a_members_two_eyes_one_is_averaged_and_the_other_kept_for_the_attacker() -> None:
    part = part_of(photographs())
    assert part.members.person_of.tolist() != sorted(part.members.person_of.tolist())
    assert sorted(part.members.person_of.tolist()) == list(range(21))
    assert sorted(part.queries.person_of.tolist()) == list(range(21))
    label_of = dict(zip(part.members.person_of, part.members.labels, strict=True))
    assert part.queries.labels.tolist() == [label_of[person] for person in part.queries.person_of]


def test_eyes_are_shown_as_right_eyes_where_the_side_is_known() -> None:
    found = photographs()
    assert (hospital_people.as_right_eyes(found)[:, :, 0] == 200).all()
    unknown = Photographs(found.images, found.names, found.patients, found.labels, None)
    assert np.array_equal(hospital_people.as_right_eyes(unknown), found.images)


def test_a_limit_takes_whole_people() -> None:
    part = part_of(photographs(), people=9)
    assert len(part.members.images) == len(part.queries.images)
    assert len(part.members.images) + len(part.heldout.images) // 2 == 9


def test_a_source_without_labels_has_one_class_and_teaches_no_classifier() -> None:
    part = hospital_people.make_part("eyepacs", photographs(), average_people.ROOT)
    assert part.classes == ("unlabelled",) and not part.members.labels.any()
    ready: Any = SimpleNamespace(part=part)
    assert average_figures.utility(ready, []) is None


def test_as_in_the_product_an_average_stays_where_alignment_leads_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    group = Group(("0", "1"), Stratum(0), 2)
    average = torch.full((1, 3), 0.1)
    nearer = torch.full((1, 3), 0.05)
    away = torch.full((1, 3), 0.9)
    statistics = [SimpleNamespace(centroid=average)] * 2
    shown = SimpleNamespace(complete=lambda made: (made, None), field=torch.ones(1, 16, 16))
    stubs = {
        "form_row_groups": (group, group),
        "measure_patients": {},
        "gather_statistics": statistics,
        "align": SimpleNamespace(codes=torch.stack([nearer, away])),
        "load_features": Colours(),
        "gather_appearances": [shown] * 2,
        "gather_features": [MeanFeatures(group, torch.zeros(3), 2)] * 2,
    }
    for name, value in stubs.items():
        monkeypatch.setattr(average_makers, name, lambda *_, given=value, **__: given)
    rendered = []
    monkeypatch.setattr(
        average_makers, "render_groups", lambda _, codes, *__: rendered.append(codes)
    )
    ready: Any = SimpleNamespace(
        networks=SimpleNamespace(generator=Plain(), critic=object()),
        part=SimpleNamespace(members=SimpleNamespace(images=None)),
        known=SimpleNamespace(look_on=lambda: None, spread=1.0),
        alignment_plan=None,
        seen=None,
        who=None,
    )
    average_makers.MAKERS["similar"](ready, 2)
    assert torch.equal(rendered[0], torch.stack([nearer, average]))


def test_figures_with_another_coarse_grid_are_kept_apart(tmp_path: Path) -> None:
    study = load_study(average_people.ROOT / "deploy" / "studies" / "fundus.yaml")
    checkpoint = average_people.ROOT / "deploy" / "checkpoints" / "fundus-64"
    part = hospital_people.make_part("odir", photographs(), checkpoint)
    ready = [PreparedPart(part, tmp_path, o.with_cells(study, cells)) for cells in (0, 8)]
    assert ready[1].inversion_plan.coarse_cells == 8
    assert ready[0].work != ready[1].work


def levels(values: list[int]) -> average_people.Set:
    """One grey picture for each value, of one label, each of another person."""
    images = np.zeros((len(values), 2, 2, 3), np.uint8) + np.array(values, np.uint8).reshape(
        -1, 1, 1, 1
    )
    return average_people.Set(images, np.zeros(len(values), np.int64), np.arange(len(values)))


def test_re_identification_is_that_of_the_better_attacker_beside_real_images() -> None:
    members, queries = levels([10, 20, 30]), levels([11, 21, 31])
    nobody = levels([])
    part = average_people.Part(
        "odir", ("a",), members, nobody, nobody, queries, average_people.ROOT, 3, True
    )
    ready: Any = SimpleNamespace(
        part=part,
        recognisers={
            "blind": lambda images: np.zeros((len(images), 1)),
            "seeing": lambda images: images.reshape(len(images), -1).astype(float),
        },
    )
    among_real = average_figures.recognise(ready)
    assert among_real is not None
    assert among_real["precision"] == 1 and among_real["attacker"] == "seeing"
    assert among_real["chance"] == pytest.approx(1 / 3)
    # persons 0 and 1 are in one average, person 2 in the other
    released = average_makers.Released(
        levels([15, 30]).images, np.zeros(2, np.int64), np.arange(2), ((0, 1), (2,))
    )
    found = average_figures.reidentify(ready, released)
    assert found is not None and found["precision"] == 1 and found["chance"] == 0.5


def row_of(name: str, k: int, frechet: float, kappa: float, linked: float, again: float) -> Any:
    """Figures of one row."""
    return {
        "row": name,
        "k": k,
        "images": 4,
        "distances": {"kernel": 0.5, "frechet": frechet, "frechet_95": [frechet, frechet]},
        "utility": {"kappa": kappa, "kappa_95": None},
        "linkage": {"precision": linked, "chance": 0.05},
        "reidentified": {"precision": again, "chance": 0.1},
    }


def results(aligned: float = 1.0) -> dict[str, Any]:
    """One source that meets everything at `aligned` 1."""
    none = {"kernel": None, "frechet": None}
    real = {"floor": none, "all": None, "real floor 10": none, "real 10": None}
    rows = [
        row_of("cells", 10, aligned, 0.39, 0.2, 0.2),
        row_of("cells, centroid", 10, 1.0, 0.39, 0.2, 0.2),
        row_of("same-pixel", 10, 1.0, 0.4, 0.4, 0.5),
    ]
    hospital = {
        "photographs": 20,
        "without_field": 1,
        "members": 13,
        "heldout": 6,
        "accepted": 0.95,
        "by_label": {"normal": 1.0, "glaucoma": 0.96},
        "error": 0.2,
        "error_90": 0.3,
    }
    return {"odir": {"hospital": hospital, "real": {**real, "recognised": None}, "rows": rows}}


def test_each_target_is_met_where_every_source_meets_it() -> None:
    assert [target.met for target in o.targets(results())] == [True] * 7
    worse = results() | {"palm": results(aligned=1.6)["odir"]}
    met = [target.met for target in o.targets(worse)]
    assert met == [True, True, False, False, True, True, True]
    assert "odir 1.00, palm 1.60" in [target.measured for target in o.targets(worse)]


def test_what_was_not_measured_is_not_met() -> None:
    found = results()
    found["odir"]["rows"] = []
    assert [target.met for target in o.targets(found)][2:] == [False] * 5


def test_a_line_stands_beside_k_same_pixel() -> None:
    found = results(aligned=1.25)
    assert "| odir | 20 | 1 | 13 | 6 | 0.950 |" in o.list_hospitals(found).markdown()
    lines = o.list_averages("odir", found["odir"]).markdown().splitlines()
    (cells,) = (line for line in lines if "| cells |" in line)
    assert "| 1.25 (1.25-1.25) | 1.25 | 0.390 | 0.97 | 0.20 (0.05) | 0.50 | 0.20 (0.10) |" in cells


def test_a_photograph_without_a_field_counts_as_refused() -> None:
    part = part_of(photographs())
    members, heldout = len(part.members.images), len(part.heldout.images)

    def seen(count: int) -> SimpleNamespace:
        return SimpleNamespace(accepted=np.ones(count, bool), errors=np.full(count, 0.2))

    ready: Any = SimpleNamespace(part=part, seen=seen(members), seen_heldout=seen(heldout))
    found = o.describe(ready, without_field=13)
    assert found["accepted"] == pytest.approx((members + heldout) / (members + heldout + 13))
    assert set(found["by_label"].values()) == {1.0}


def test_a_line_of_the_sheet_is_black_where_there_are_fewer_pictures() -> None:
    line = o.draw_line(levels([200, 210]).images)
    assert line.shape == (2, 2 * o.PICTURES, 3)
    assert line[:, :4].min() == 200 and line[:, 4:].max() == 0
