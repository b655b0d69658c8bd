"""A rehearsal counts for its own plan alone; its figures come from public people."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from common.errors import ConfigurationError, RefusedError
from common.study.plan import Study, load_study
from common.study.rehearsed import plan_digest
from common.wire import signing
from kohort import layout
from server.cli.publish import read_people
from server.evaluate import attack_findings, attack_spaces, rehearsal_report
from server.evaluate.downstream import Labelled
from server.evaluate.people import PublicPeople, read_public_people
from server.release.build import build_release
from tests.public_people import write_people
from tests.releases import release_inputs
from tests.studies import small_plan


def study(folder: Path, **changes: object) -> Study:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(small_plan(**changes)))))
    return load_study(path)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return study(tmp_path_factory.mktemp("plan"))


@pytest.fixture(scope="module")
def people(plan: Study, tmp_path_factory: pytest.TempPathFactory) -> PublicPeople:
    folder, labels = tmp_path_factory.mktemp("people"), plan.strata()
    return read_public_people(
        write_people(folder / "in", 36, 0, labels),
        write_people(folder / "out", 24, 1, labels),
        plan,
    )


@pytest.fixture(scope="module")
def copies(plan: Study, people: PublicPeople) -> rehearsal_report.Rehearsal:
    """The rehearsal of a release that is the photographs themselves."""
    return rehearsal_report.rehearse(people.members, people, plan, attack_spaces.Networks())


def test_a_rehearsal_of_copies_says_that_they_leak(copies: rehearsal_report.Rehearsal) -> None:
    found = {one.name: one for one in copies.findings}
    assert found[attack_findings.MEMBERSHIP].value == 1.0
    assert found[attack_findings.MEMBERSHIP_RATE].value == 1.0
    assert found[attack_findings.LINKS].value > 0.6  # type: ignore[operator]
    assert "36 public people" in found[attack_findings.MEMBERSHIP].evidence
    assert found["downstream kappa"].status == "shown"


def test_a_rehearsal_of_strangers_says_that_nobody_is_found(
    plan: Study, people: PublicPeople
) -> None:
    rng = np.random.default_rng(9)
    strangers = np.stack(
        [
            np.asarray(
                Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)).resize(
                    (32, 32), Image.Resampling.BICUBIC
                )
            )
            for _ in range(24)
        ]
    )
    labels = np.arange(24) % len(plan.strata())
    found = {
        one.name: one
        for one in rehearsal_report.rehearse(
            Labelled(strangers, labels), people, plan, attack_spaces.Networks()
        ).findings
    }
    chance, worst = (
        found[attack_findings.MEMBERSHIP_CHANCE].value,
        found[attack_findings.MEMBERSHIP].value,
    )
    assert worst is not None and chance is not None and worst < chance + 0.05


def test_the_file_is_read_back_as_it_was_and_carries_no_image(
    copies: rehearsal_report.Rehearsal, plan: Study, tmp_path: Path
) -> None:
    path = tmp_path / "findings.json"
    path.write_text(
        json.dumps({"reference": None, "findings": [], "rehearsal": copies.model_dump(mode="json")})
    )
    assert rehearsal_report.read_rehearsal(path, plan) == copies
    assert path.stat().st_size < 20_000
    utility, attacked = rehearsal_report.findings(copies)
    assert len(utility) + len(attacked) == len(copies.findings)
    assert attack_findings.MEMBERSHIP in {f.name for f in attacked}


SAME = {"name": "another-name", "title": "Another title", "quorum": 3, "round_deadline_s": 10.0}


@pytest.mark.parametrize("key", SAME)
def test_what_differs_between_studies_of_one_plan_does_not_matter(key: str, plan: Study) -> None:
    changed = plan.model_copy(update={key: SAME[key]})
    assert plan_digest(changed) == plan_digest(plan)
    assert changed.hash() != plan.hash()


def test_a_rehearsal_of_another_plan_is_refused(
    copies: rehearsal_report.Rehearsal, plan: Study, tmp_path: Path
) -> None:
    path = tmp_path / "findings.json"
    path.write_text(json.dumps({"rehearsal": copies.model_dump(mode="json")}))
    assert plan.synthesis is not None
    for update in (
        {"synthesis": plan.synthesis.model_copy(update={"k": plan.synthesis.k + 1})},
        {"privacy": plan.privacy.model_copy(update={"epsilon": plan.privacy.epsilon + 0.5})},
        {"intake": plan.intake.model_copy(update={"size_px": 64})},
        {"modality": "chest"},
    ):
        with pytest.raises(RefusedError, match="another plan"):
            rehearsal_report.read_rehearsal(path, plan.model_copy(update=update))


BROKEN = {
    "no rehearsal in it": {"findings": []},
    "not an object": [],
    "an unknown key": {
        "rehearsal": {
            "format": "kohort-rehearsal/1",
            "plan": "0" * 64,
            "cast": "",
            "findings": [],
            "extra": 1,
        }
    },
    "a number that is none": {
        "rehearsal": {
            "format": "kohort-rehearsal/1",
            "plan": "0" * 64,
            "cast": "",
            "findings": [
                {"name": "a", "value": float("nan"), "unit": "", "evidence": "", "status": "shown"}
            ],
        }
    },
    "another format": {
        "rehearsal": {"format": "kohort-rehearsal/2", "plan": "0" * 64, "cast": "", "findings": []}
    },
}


@pytest.mark.parametrize("name", BROKEN)
def test_files_that_hold_no_rehearsal_are_refused(name: str, plan: Study, tmp_path: Path) -> None:
    path = tmp_path / "findings.json"
    path.write_text(json.dumps(BROKEN[name]))
    with pytest.raises(RefusedError, match="holds no rehearsal"):
        rehearsal_report.read_rehearsal(path, plan)


def test_a_release_shows_its_rehearsal_and_says_where_there_is_none(
    copies: rehearsal_report.Rehearsal, tmp_path: Path
) -> None:
    operator = signing.new_key()
    inputs = release_inputs(tmp_path / "a", operator)
    given = copies.model_copy(update={"plan": plan_digest(inputs.study)})
    for name, one, words in (
        ("with", given, "36 public people"),
        ("without", None, "no rehearsal of this plan was given"),
    ):
        folder = build_release(replace(inputs, rehearsal=one), tmp_path / name, operator)
        report = json.loads((folder / layout.FINDINGS).read_text())
        values = {f["name"]: f["value"] for f in report["findings"]}
        assert values.get(attack_findings.MEMBERSHIP) == (1.0 if one else None)
        assert ("membership inference" in values) == (one is None)
        assert report["rehearsal"] == (one and one.model_dump(mode="json"))
        for file in ("README.md", "index.html"):
            assert words in (folder / file).read_text()


def test_members_without_held_out_people_two_sources_or_pairs_are_refused(
    plan: Study, tmp_path: Path
) -> None:
    assert read_people(None, None, None, plan) is None
    for given in ((tmp_path, None, None), (None, tmp_path, None), (tmp_path, tmp_path, tmp_path)):
        with pytest.raises(ConfigurationError, match="exclude or need each other"):
            read_people(*given, plan)
    with pytest.raises(ConfigurationError, match="this one releases pairs"):
        read_people(None, None, tmp_path, plan.model_copy(update={"synthesis": None}))
