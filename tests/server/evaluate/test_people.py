"""Public people are read from folders and archives; who has no label or name is refused."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from common.errors import ConfigurationError
from common.study.plan import Study, load_study
from server.demo import hospitals as demo_hospitals
from server.demo.rehearsal import DEPLOY
from server.evaluate.people import read_public_people
from tests.public_people import write_people
from tests.studies import small_plan


def study(folder: Path, **changes: object) -> Study:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(small_plan(**changes)))))
    return load_study(path)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return study(tmp_path_factory.mktemp("plan"))


def arrays(path: Path, count: int = 6, **changes: object) -> Path:
    """An .npz of invented people."""
    found: dict[str, object] = {
        "images": np.random.default_rng(0).integers(0, 255, (count, 32, 32, 3), dtype=np.uint8),
        "names": np.array([f"{i:02d}" for i in range(count)]),
        "labels": np.array(["0", "2"] * (count // 2)),
    }
    np.savez(
        path, **{name: value for name, value in (found | changes).items() if value is not None}
    )  # type: ignore[arg-type]
    return path


def test_people_without_a_table_or_with_a_label_of_no_stratum_are_refused(
    plan: Study, tmp_path: Path
) -> None:
    folder = write_people(tmp_path / "x", 4, 0, ("green",))
    with pytest.raises(ConfigurationError, match="label is 'green', expected one of"):
        read_public_people(folder, folder, plan)
    (folder / "labels.csv").unlink()
    with pytest.raises(ConfigurationError, match="missing"):
        read_public_people(folder, folder, plan)


def test_people_in_an_npz_are_read_like_those_in_a_folder(plan: Study, tmp_path: Path) -> None:
    strata = plan.strata()
    names = np.array([strata[0], strata[-1]] * 3)
    side = np.array([False, True, True, False, False, False])
    given = arrays(tmp_path / "in.npz", labels=names, laterality=side)
    found = read_public_people(given, arrays(tmp_path / "out.npz", labels=names), plan)
    last = len(strata) - 1
    assert found.members.labels.tolist() == [0, last] * 3
    expected = np.where(side, 2, 1) if plan.intake.stratify_laterality else 0
    assert (found.members_strata - 3 * found.members.labels == expected).all()
    assert (found.heldout_strata == 3 * found.heldout.labels).all()
    assert found.name.startswith("6 public people of in.npz")


LACKING = {
    "no labels": {"labels": None},
    "no names": {"names": None},
    "labels of fewer people": {"labels": np.array(["0", "2"])},
    "sides of fewer people": {"laterality": np.array([True])},
    "one name twice": {"names": np.array(["00", "00", "01", "02", "03", "04"])},
}


@pytest.mark.parametrize("what", LACKING)
def test_an_npz_that_does_not_say_who_is_who_is_refused(
    what: str, plan: Study, tmp_path: Path
) -> None:
    path = arrays(tmp_path / "x.npz", **LACKING[what])
    with pytest.raises(ConfigurationError, match="expected `images`, `names` and `labels`"):
        read_public_people(path, path, plan)


@pytest.mark.parametrize("what", ["no archive", "half an archive", "objects"])
def test_a_file_that_is_no_npz_of_arrays_is_refused_in_words(
    what: str, plan: Study, tmp_path: Path
) -> None:
    path = arrays(
        tmp_path / "x.npz", labels=np.array([{}] * 6) if what == "objects" else np.array(["0"] * 6)
    )
    if what != "objects":
        path.write_bytes(b"people" if what == "no archive" else path.read_bytes()[:900])
    with pytest.raises(
        ConfigurationError, match=r"x\.npz: expected an \.npz of arrays without Python objects"
    ):
        read_public_people(path, path, plan)


def test_the_chest_demos_members_are_the_hospitals_people_and_the_reference_is_held_out(
    tmp_path: Path,
) -> None:
    chest = load_study(DEPLOY / "studies" / "chest-demo.yaml")
    reference = demo_hospitals.make_reference(chest, tmp_path)
    assert reference.members is not None and reference.heldout == reference.path
    found = read_public_people(reference.members, reference.heldout, chest)
    assert (len(found.members.images), len(found.heldout.images)) == (3 * 190, 300)
    shown = {image.tobytes() for image in found.members.images}
    assert not shown & {image.tobytes() for image in found.heldout.images}
    assert set(found.members.labels) == set(found.heldout.labels) == {0, 1}


def test_the_demos_members_and_held_out_people_are_different() -> None:
    plan = load_study(DEPLOY / "studies" / "fundus.yaml")
    found = read_public_people(DEPLOY / "demo" / "fundus", DEPLOY / "demo" / "fundus-heldout", plan)
    assert (len(found.members.images), len(found.heldout.images)) == (189, 60)
    assert np.bincount(found.heldout.labels).tolist() == [20, 20, 20]
    assert set(found.heldout_strata) <= set(found.members_strata)
    tables = [
        list(csv.DictReader((DEPLOY / "demo" / name / "labels.csv").read_text().splitlines()))
        for name in ("fundus", "fundus-heldout")
    ]
    names = [{row["idrid"] for row in table} for table in tables]
    assert not names[0] & names[1]
    apart = np.abs(
        found.members.images[:, None, ::8, ::8].astype(int)
        - found.heldout.images[None, :, ::8, ::8]
    ).mean((2, 3, 4))
    assert apart.min() > 1.5  # nobody is in both
