"""A rehearsal speaks for its plan and no other; its figures come from the people who played."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from common.errors import ConfigurationError, RefusedError
from common.study.plan import Study, load_study
from common.wire import signing
from server.cli.publish import read_people
from server.demo import hospitals as demo_hospitals
from server.demo.rehearsal import DEPLOY
from server.evaluate import attacks
from server.evaluate import rehearsal_report as played
from server.evaluate.downstream import Labelled
from server.public_data import images as public_images
from server.release.build import build_release
from tests.releases import release_inputs
from tests.studies import small_plan


def study(folder: Path, **changes: object) -> Study:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(small_plan(**changes)))))
    return load_study(path)


def people(folder: Path, count: int, seed: int, labels: tuple[str, ...]) -> Path:
    """A folder of invented photographs with its table."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    rows = [("file", "label", "laterality")]
    for i in range(count):
        coarse = rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((40, 40), Image.Resampling.BICUBIC).save(
            folder / f"{i:02d}.png"
        )
        rows.append((f"{i:02d}.png", labels[i % len(labels)], "LR"[i // 3 % 2]))
    with open(folder / "labels.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return folder


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return study(tmp_path_factory.mktemp("plan"))


@pytest.fixture(scope="module")
def cast(plan: Study, tmp_path_factory: pytest.TempPathFactory) -> played.Cast:
    folder, labels = tmp_path_factory.mktemp("people"), plan.strata()
    return played.read_cast(
        people(folder / "in", 36, 0, labels), people(folder / "out", 24, 1, labels), plan
    )


@pytest.fixture(scope="module")
def copies(plan: Study, cast: played.Cast) -> played.Rehearsal:
    """The rehearsal of a release that is the photographs themselves."""
    return played.rehearse(cast.members, cast, plan, attacks.Networks())


def test_a_rehearsal_of_copies_says_that_they_leak(copies: played.Rehearsal) -> None:
    found = {one.name: one for one in copies.findings}
    assert found[attacks.MEMBERSHIP].value == 1.0
    assert found[attacks.MEMBERSHIP_RATE].value == 1.0
    assert found[attacks.LINKS].value > 0.6  # type: ignore[operator]
    assert "36 public people" in found[attacks.MEMBERSHIP].evidence
    assert found["downstream kappa"].status == "shown"


def test_a_rehearsal_of_strangers_says_that_nobody_is_found(plan: Study, cast: played.Cast) -> None:
    rng = np.random.default_rng(9)
    strangers = np.stack([
        np.asarray(Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)).resize((32, 32), Image.Resampling.BICUBIC))
        for _ in range(24)
    ])  # fmt: skip
    labels = np.arange(24) % len(plan.strata())
    found = {
        one.name: one
        for one in played.rehearse(
            Labelled(strangers, labels), cast, plan, attacks.Networks()
        ).findings
    }
    chance, worst = found[attacks.MEMBERSHIP_CHANCE].value, found[attacks.MEMBERSHIP].value
    assert worst is not None and chance is not None and worst < chance + 0.05


def test_the_file_is_read_back_as_it_was_and_carries_no_image(
    copies: played.Rehearsal, plan: Study, tmp_path: Path
) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text(
        json.dumps({"reference": None, "findings": [], "rehearsal": copies.model_dump(mode="json")})
    )
    assert played.read_rehearsal(path, plan) == copies
    assert path.stat().st_size < 20_000
    utility, attacked = played.findings(copies)
    assert len(utility) + len(attacked) == len(copies.findings)
    assert attacks.MEMBERSHIP in {f.name for f in attacked}


SAME = {"name": "another-name", "title": "Another title", "quorum": 3, "round_deadline_s": 10.0}


@pytest.mark.parametrize("key", SAME)
def test_what_differs_between_studies_of_one_plan_does_not_matter(key: str, plan: Study) -> None:
    changed = plan.model_copy(update={key: SAME[key]})
    assert played.digest(changed) == played.digest(plan)
    assert changed.hash() != plan.hash()


def test_a_rehearsal_of_another_plan_is_refused(
    copies: played.Rehearsal, plan: Study, tmp_path: Path
) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps({"rehearsal": copies.model_dump(mode="json")}))
    assert plan.synthesis is not None
    for update in (
        {"synthesis": plan.synthesis.model_copy(update={"k": plan.synthesis.k + 1})},
        {"privacy": plan.privacy.model_copy(update={"epsilon": plan.privacy.epsilon + 0.5})},
        {"intake": plan.intake.model_copy(update={"size_px": 64})},
        {"modality": "chest"},
    ):
        with pytest.raises(RefusedError, match="another plan"):
            played.read_rehearsal(path, plan.model_copy(update=update))


BROKEN = {
    "no rehearsal in it": {"findings": []},
    "not an object": [],
    "an unknown key": {"rehearsal": {"format": "kohort-rehearsal/1", "plan": "0" * 64, "cast": "", "findings": [], "extra": 1}},
    "a number that is none": {"rehearsal": {"format": "kohort-rehearsal/1", "plan": "0" * 64, "cast": "",
        "findings": [{"name": "a", "value": float("nan"), "unit": "", "evidence": "", "status": "shown"}]}},
    "another format": {"rehearsal": {"format": "kohort-rehearsal/2", "plan": "0" * 64, "cast": "", "findings": []}},
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_files_that_hold_no_rehearsal_are_refused(name: str, plan: Study, tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(BROKEN[name]))
    with pytest.raises(RefusedError, match="holds no rehearsal"):
        played.read_rehearsal(path, plan)


def test_people_without_a_table_or_with_a_label_of_no_stratum_are_refused(
    plan: Study, tmp_path: Path
) -> None:
    folder = people(tmp_path / "x", 4, 0, ("green",))
    with pytest.raises(ConfigurationError, match="label is 'green', expected one of"):
        played.read_cast(folder, folder, plan)
    (folder / "labels.csv").unlink()
    with pytest.raises(ConfigurationError, match="missing"):
        played.read_cast(folder, folder, plan)


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


def test_people_in_an_npz_are_read_like_those_in_a_folder(plan: Study, tmp_path: Path) -> None:
    strata = plan.strata()
    names = np.array([strata[0], strata[-1]] * 3)
    side = np.array([False, True, True, False, False, False])
    given = arrays(tmp_path / "in.npz", labels=names, laterality=side)
    found = played.read_cast(given, arrays(tmp_path / "out.npz", labels=names), plan)
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
        played.read_cast(path, path, plan)


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
        played.read_cast(path, path, plan)


def test_an_npz_that_unpacks_to_more_than_the_cap_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, images=np.zeros((4, 32, 32, 3), np.uint8))
    monkeypatch.setattr(public_images, "SOURCE_CAP_BYTES", 4096)
    assert path.stat().st_size < 4096
    with pytest.raises(ConfigurationError, match="unpacks to"):
        public_images.read_source(path, 32, 3)


def test_the_chest_demos_casts_are_the_hospitals_people_and_the_reference(tmp_path: Path) -> None:
    chest = load_study(DEPLOY / "studies" / "chest-demo.yaml")
    reference = demo_hospitals.make_reference(chest, tmp_path)
    assert reference.members is not None and reference.heldout == reference.path
    found = played.read_cast(reference.members, reference.heldout, chest)
    assert (len(found.members.images), len(found.heldout.images)) == (3 * 190, 300)
    shown = {image.tobytes() for image in found.members.images}
    assert not shown & {image.tobytes() for image in found.heldout.images}
    assert set(found.members.labels) == set(found.heldout.labels) == {0, 1}


def test_a_flows_own_samples_say_how_far_members_differ_in_kind(tmp_path: Path) -> None:
    chest = load_study(DEPLOY / "studies" / "chest-demo.yaml")
    checkpoints = DEPLOY / "checkpoints" / "chest-32"
    known = played.networks(chest, {}, checkpoints)
    assert known.flow is not None and known.temperature == 0.7
    assert played.networks(chest, {}, tmp_path) == attacks.Networks(iterations=1)
    random = np.random.default_rng(0)

    def crowd(bright: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        images = random.integers(bright, bright + 60, (40, 32, 32, 1), dtype=np.uint8)
        return images, np.zeros(40, np.int64), np.zeros(40, np.int64)

    who = attacks.people(
        crowd(90), crowd(0)
    )  # members alone are of the samples' brightness: different in kind
    found = attacks.Battery(who, known).control(np.zeros(20, np.int64))
    assert found is not None and found.worst.auc > 0.9
    assert attacks.Battery(who).control(np.zeros(20, np.int64)) is None


def test_the_demos_two_casts_are_different_people() -> None:
    plan = load_study(DEPLOY / "studies" / "fundus.yaml")
    found = played.read_cast(DEPLOY / "demo" / "fundus", DEPLOY / "demo" / "fundus-heldout", plan)
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


def test_a_release_shows_its_rehearsal_and_says_where_there_is_none(
    copies: played.Rehearsal, tmp_path: Path
) -> None:
    operator = signing.new_key()
    inputs = release_inputs(tmp_path / "a", operator)
    given = copies.model_copy(update={"plan": played.digest(inputs.study)})
    for name, one, words in (
        ("with", given, "36 public people"),
        ("without", None, "no rehearsal of this plan was given"),
    ):
        folder = build_release(replace(inputs, rehearsal=one), tmp_path / name, operator)
        report = json.loads((folder / "evaluation.json").read_text())
        values = {f["name"]: f["value"] for f in report["findings"]}
        assert values.get(attacks.MEMBERSHIP) == (1.0 if one else None)
        assert ("membership inference" in values) == (one is None)
        assert report["rehearsal"] == (one and one.model_dump(mode="json"))
        for file in ("README.md", "index.html"):
            assert words in (folder / file).read_text()


def test_half_a_cast_two_sources_or_pairs_are_refused(plan: Study, tmp_path: Path) -> None:
    assert read_people(None, None, None, plan) is None
    for given in ((tmp_path, None, None), (None, tmp_path, None), (tmp_path, tmp_path, tmp_path)):
        with pytest.raises(ConfigurationError, match="give --members with --heldout"):
            read_people(*given, plan)
    with pytest.raises(ConfigurationError, match="this one releases pairs"):
        read_people(None, None, tmp_path, plan.model_copy(update={"synthesis": None}))
