"""`kohort-site approve`, as typed."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.cli import letter
from client.cli.letter import label_lines
from client.state.config import Data
from client.state.folder import State
from client.state.records import note_loss
from common.study.bundle import write_bundle
from common.study.words import fingerprint_words
from common.wire import signing
from tests.client.cli.typing_commands import Cli
from tests.sites import WEIGHTS, Hospital, make_hospital, scripted, write_plan
from tests.sized_plans import IMAGES, KINDS, PLAN_PX, image_weights, misfit
from tests.studies import small_study


def test_a_plan_of_a_stranger_or_above_the_policy_is_not_approved(
    joined: tuple[Path, Path], cli: Cli, tmp_path: Path
) -> None:
    state, bundle = joined
    (tmp_path / "plan2").mkdir()
    write_bundle(write_plan(tmp_path / "plan2"), signing.new_key(), tmp_path / "foreign")
    assert (
        cli("approve", "--state", state, tmp_path / "foreign", "--yes", "--by", "Dr. Example")[0]
        == 1
    )
    site = (state / "site.yaml").read_text()
    (state / "site.yaml").write_text(
        site.replace("min_k: 5", "min_k: 10").replace("max_epsilon: 10.0", "max_epsilon: 2")
    )
    code, _, err = cli("approve", "--state", state, bundle, "--yes", "--by", "Dr. Example")
    assert code == 3
    assert err.count("kohort-site: error:") == 2
    assert "kohort-site: hint:" in err
    assert cli("run", "--state", state)[0] == 3


def write_membership(hospital: Hospital) -> None:
    """What `kohort-site join` leaves in the state folder."""
    line = signing.public_text(hospital.operator.public_key())
    join = {
        "format": "kohort-join/1",
        "site": "hospital-a",
        "server_url": "https://127.0.0.1:1",
        "ca": "",
        "operator_key": line,
    }
    (hospital.root / "membership.json").write_text(json.dumps({**join, "client_certificate": ""}))


def test_a_plan_that_spends_more_than_it_promises_is_not_approved(cli: Cli, tmp_path: Path) -> None:
    hospital = make_hospital(
        tmp_path, approve=False, models__gan__noise_multiplier=0.6, privacy__epsilon=1.0
    )
    write_membership(hospital)
    code, _, err = cli(
        "approve", "--state", hospital.root, hospital.bundle, "--yes", "--by", "Dr. Example"
    )
    assert code == 3
    assert "over budget: it would spend epsilon" in err
    assert "the plan promises 1; nothing was spent" in err
    assert "hint:" in err
    assert not hospital.site().plans.is_approved(hospital.study.hash())


def test_a_plan_that_does_not_fit_beside_what_was_spent_is_not_approved(
    cli: Cli, tmp_path: Path
) -> None:
    hospital = make_hospital(tmp_path, approve=False)
    write_membership(hospital)
    note_loss(State(hospital.root), 9.8)
    code, out, err = cli(
        "approve", "--state", hospital.root, hospital.bundle, "--yes", "--by", "Dr. Example"
    )
    assert code == 3
    assert "9.8 of it before a loss" in out
    assert "policy.max_epsilon is 10" in err
    assert not hospital.site().plans.is_approved(hospital.study.hash())


def test_a_hopeless_plan_is_not_approved(cli: Cli, tmp_path: Path) -> None:
    weights = {
        "gan": {"generator.a": np.ones(3, np.float32), "critic.a": np.ones(40_000, np.float32)},
        "glow": WEIGHTS["glow"],
    }
    hospital = make_hospital(
        tmp_path, weights=weights, approve=False, privacy__accept_infeasible=False
    )
    write_membership(hospital)
    code, _, err = cli(
        "approve", "--state", hospital.root, hospital.bundle, "--yes", "--by", "Dr. Example"
    )
    assert code == 3
    assert "infeasible: at 100 patients a site this will not learn" in err
    assert "hint:" in err
    assert not hospital.site().plans.is_approved(hospital.study.hash())


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_with_a_checkpoint_of_another_size_is_not_approved(
    cli: Cli, tmp_path: Path, kind: str
) -> None:
    weights, changes = misfit(kind)
    hospital = make_hospital(tmp_path, weights=weights, approve=False, **changes)
    write_membership(hospital)
    code, _, err = cli(
        "approve", "--state", hospital.root, hospital.bundle, "--yes", "--by", "Dr. Example"
    )
    assert code == 3
    assert f"models.{kind}.start: {kind}.safetensors was made for intake.size_px 32" in err
    assert "hint: set intake.size_px: 32, or pretrain" in err
    assert not hospital.site().plans.is_approved(hospital.study.hash())


def test_a_plan_whose_checkpoint_is_another_models_is_not_approved(
    cli: Cli, tmp_path: Path
) -> None:
    weights = image_weights(PLAN_PX)
    weights["glow"] = weights["gan"]
    hospital = make_hospital(tmp_path, weights=weights, approve=False, **IMAGES)
    write_membership(hospital)
    code, _, err = cli(
        "approve", "--state", hospital.root, hospital.bundle, "--yes", "--by", "Dr. Example"
    )
    assert code == 3
    assert "models.glow.start: glow.safetensors: a checkpoint of models.gan" in err
    assert not hospital.site().plans.is_approved(hospital.study.hash())


# --- the letter


@dataclass(frozen=True)
class Office:
    """A site whose data protection officer reads letters."""

    hospital: Hospital
    cli: Cli

    def reads(self, bundle: Path | None = None, *more: object) -> str:
        """The letter on a plan that the officer approves."""
        code, out, err = self.cli(
            "approve", "--state", self.hospital.root, bundle or self.hospital.bundle,
            "--yes", "--by", "Dr. Example", *more,
        )  # fmt: skip
        assert code == 0, err
        return out

    def next_version(self, folder: Path, **changes: Any) -> Path:
        """A bundle of the same operator with some keys changed."""
        folder.mkdir()
        write_bundle(write_plan(folder, **changes), self.hospital.operator, folder / "bundle")
        return folder / "bundle"


@pytest.fixture
def office(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Office:
    hospital = make_hospital(tmp_path, approve=False)
    scripted(monkeypatch, hospital.study)
    write_membership(hospital)
    return Office(hospital, cli)


def test_the_letter_says_who_asks_what_leaves_about_whom_and_at_what_price(office: Office) -> None:
    out = office.reads()
    sections = (
        "Who asks",
        "About whom",
        "What leaves this hospital",
        "What does not leave",
        "At what price",
        "What a release of this plan will claim",
        "What this hospital computes",
        "What changed",
    )
    places = [out.index(section) for section in sections]
    assert places == sorted(places)
    words = (
        "https://127.0.0.1:1",
        "SHA256:",
        "fundus photographs",
        "none, mild-moderate, severe",
        "at most 40, each the average of at least 5 distinct patients",
        "25% of the groups",
        "no epsilon of a patient is claimed",
        "planned",
        "spent so far",
        "after this plan",
        "at most 1 in 100,000",
        "fingerprint",
        "updates: epsilon 8 for one patient (zero-out of one patient)",
        "k-anonymity, no epsilon: every image",
        "privatized averages: epsilon 492 for one average (replace-one patient)",
        "not covered: Averages of patients who were chosen for their likeness",
    )
    for word in words:
        assert word in out, word


def test_the_letter_says_where_averages_also_keep_a_grid(office: Office, tmp_path: Path) -> None:
    assert "coarse cells" not in office.reads()
    grid = {"synthesis__coarse_cells": 4, "release__version": "1.0.2"}
    gridded = office.reads(office.next_version(tmp_path / "next", **grid))
    assert "added as its members' mean in 4 x 4 coarse cells" in gridded


def test_the_letter_says_what_images_must_be_and_how_the_site_calls_it(office: Office) -> None:
    out = office.reads()
    for word in (
        "as colour pictures of ",
        "DICOM files of OP",
        "in order of severity",
    ):
        assert word in out, word


def test_the_sites_own_words_stand_beside_the_plans() -> None:
    intake = small_study().intake
    own = {"Seite": "laterality"}, {"ohne": "none", "zur Nase": "R", "AMD": "amd"}
    data = Data(folder="/d", labels_csv="/d.csv", columns=own[0], values=own[1])
    assert list(label_lines(intake, data)) == [
        "  by /d.csv",
        "    its column Seite is laterality",
        "    its word ohne is none",
        "    its word zur Nase is R",
        "    its word AMD is amd, which this plan has not",
    ]
    assert "WARNING" in next(label_lines(intake, Data(folder="/d")))


def test_every_rule_of_intake_stands_in_the_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    intake = small_study().intake
    assert set(type(intake).model_fields) >= letter.TOLD
    # a rule that no sentence says is shown as it stands
    monkeypatch.setattr(letter, "TOLD", frozenset())
    assert "  intake.stratify_laterality: True" in list(letter.picture_lines(intake))
    assert not any("merge_labels" in line for line in letter.picture_lines(intake))


def test_no_sentence_of_the_letter_is_longer_than_thirty_words(office: Office) -> None:
    for line in office.reads().splitlines():
        for sentence in re.split(r"[.;:] ", line):
            assert len(sentence.split()) <= 30, sentence


def test_a_first_plan_has_nothing_to_be_compared_with(office: Office) -> None:
    assert "What changed: no plan of this name was approved here before" in office.reads()


def test_a_next_version_is_shown_with_what_changed(office: Office, tmp_path: Path) -> None:
    office.reads()
    out = office.reads(office.next_version(tmp_path / "next", synthesis__k=6, quorum=3))
    assert "approved by Dr. Example, 20" in out
    assert "  quorum: 2 → 3" in out
    assert "  synthesis.k: 5 → 6" in out and "protects patients more" in out
    # the same plan again
    assert "nothing: it is the same plan" in office.reads(tmp_path / "next" / "bundle")


def test_who_approves_is_recorded_with_the_time_and_shown_later(office: Office) -> None:
    office.reads()
    code, out, _ = office.cli("status", "--state", office.hospital.root)
    assert code == 0
    assert "  approved by Dr. Example, 20" in out
    facts = json.loads(office.cli("status", "--state", office.hospital.root, "--json")[1])
    assert facts["plans"][0]["approved"]["by"] == "Dr. Example"


@pytest.mark.parametrize(
    "by", ["", "  ", "a\x1b[31m", "x" * 201], ids=["no", "blank", "escape", "long"]
)
def test_nobody_approves_without_a_name(office: Office, by: str) -> None:
    hospital = office.hospital
    typed = ("approve", "--state", hospital.root, hospital.bundle, "--yes", "--by", by)
    code, _, err = office.cli(*typed)
    assert code == 2
    assert "--by" in err
    assert not hospital.site().plans.is_approved(hospital.study.hash())


def test_a_plan_with_other_words_is_refused(office: Office) -> None:
    hospital = office.hospital
    words = fingerprint_words(hospital.study.hash())
    typed = ("approve", "--state", hospital.root, hospital.bundle, "--yes", "--by", "A", "--words")
    code, _, err = office.cli(*typed, "amber anchor apple arrow autumn badge")
    assert code == 3
    assert "the six words are not this plan's" in err
    assert not hospital.site().plans.is_approved(hospital.study.hash())
    assert office.cli(*typed, words.upper())[0] == 0


def test_an_approval_of_an_earlier_version_has_no_name_and_still_counts(office: Office) -> None:
    plans = office.hospital.site().plans
    plans.approve(office.hospital.bundle)
    approval = plans.approval(office.hospital.study.hash())
    assert approval is not None
    assert approval.words() == "(no name was recorded), an unknown time"


def test_a_plan_of_128_px_with_checkpoints_of_64_px_is_neither_approved_nor_checked(
    cli: Cli, tmp_path: Path
) -> None:
    """Also where an older version signed it, or approved it."""
    weights, changes = misfit("gan", 128)
    hospital = make_hospital(tmp_path, weights=weights, approve=False, **changes)
    write_membership(hospital)
    words = "made for intake.size_px 64; the plan has intake.size_px 128"
    code, _, err = cli(
        "approve", "--state", hospital.root, hospital.bundle, "--yes", "--by", "Dr. Example"
    )
    assert code == 3 and words in err and "set intake.size_px: 64" in err
    assert not hospital.site().plans.is_approved(hospital.study.hash())
    hospital.site().plans.approve(hospital.bundle)
    code, _, err = cli("check", "--state", hospital.root, "--offline")
    assert code == 2 and words in err and "set intake.size_px: 64" in err
