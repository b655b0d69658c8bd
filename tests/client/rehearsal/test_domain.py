"""`check --pictures`: whether a plan's checkpoints know the site's own pictures."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from client.child.domain import MOST_IMAGES, choose
from client.ingest.cohort import Cohort
from client.rehearsal.domain import can_look
from client.rehearsal.scratch import FOLDER, RUN, remove_pictures
from client.state.domain import CODE, Domain, read_domain
from client.state.folder import State
from common.errors import RefusedError
from common.wire.tensors import Arrays
from tests.client.cli.typing_commands import Cli
from tests.client.rehearsal.conftest import InProcess
from tests.sites import Hospital
from tests.studies import small_study

STRATA = ("none", "mild")


def sample(
    left_out: tuple[int, int],
    looked: tuple[int, int] = (40, 40),
    bits: float = 5,
    worth: tuple[float, float] = (0.9, 0.9),
) -> Arrays:
    """The numbers of a sample: so many pictures left out of those of each label."""
    refused = [np.arange(many) < few for few, many in zip(left_out, looked, strict=True)]
    return {
        "labels": np.repeat([0, 1], looked),
        "refused": np.concatenate(refused).astype(np.uint8),
        "errors": np.full(sum(looked), 0.3),
        "bits": np.full(sum(looked), bits),
        "expected": np.full(48, 5.0),
        "worth": np.array(worth),
    }


def faults(found: Arrays) -> list[str]:
    """What a sample's numbers say is wrong."""
    return [fault.text for fault in Domain.of(found, "p", "c", STRATA).faults()]


CASES: dict[str, tuple[Arrays, tuple[str, ...]]] = {
    "all invert": (sample((0, 0)), ()),
    "a tenth is left out": (sample((4, 4)), ()),
    "more are left out": (sample((5, 4)), ("more pictures would be left out than the 10%",)),
    "one label loses more": (sample((0, 5)), ("one label would lose more",)),
    "a label of few pictures does not count": (sample((1, 4), (60, 19)), ()),
    "the flow reads them as its own": (sample((0, 0), bits=5.49), ()),
    "the flow does not know them": (sample((0, 0), bits=5.51), ("the flow does not know more",)),
    "averages before noise teach nine tenths": (sample((0, 0), worth=(0.9, 0.811)), ()),
    "they teach less": (
        sample((0, 0), worth=(0.9, 0.809)),
        ("before any noise, the plan's averages teach a classifier less than the 90%",),
    ),
    "nor do pixels teach anything": (sample((0, 0), worth=(0.59, 0.45)), ()),
    "not a number is unknown": (sample((0, 0), bits=np.inf), ("the flow does not know more",)),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_refused(case: str) -> None:
    found, expected = CASES[case]
    said = faults(found)
    assert len(said) == len(expected)
    for text, words in zip(said, expected, strict=True):
        assert words in text
        # a monitoring system may read it: the limits are its only numbers, and no label is named
        assert re.findall(r"\d+", text) in (["10"], ["90"])
        assert not any(name in text.split() for name in STRATA)


def test_a_plan_with_one_kind_of_network_is_judged_by_it() -> None:
    found = sample((40, 40))
    flow_alone = {name: found[name] for name in ("labels", "bits", "expected")}
    assert faults(flow_alone) == []
    inversion_alone = {name: found[name] for name in ("labels", "refused", "errors")}
    assert len(faults(inversion_alone)) == 1
    assert faults({"labels": np.zeros(0, np.int64)}) == []


def test_it_holds_for_one_plan_and_one_cohort(tmp_path: Path) -> None:
    found = Domain.of(sample((0, 0)), "p", "c", STRATA)
    found.keep(tmp_path)
    assert read_domain(tmp_path, "p", "c") == found
    assert read_domain(tmp_path, "p", "later") is None
    assert read_domain(tmp_path, "q", "c") is None
    (tmp_path / "p.json").write_text("{")
    with pytest.raises(RefusedError, match="check --pictures"):
        read_domain(tmp_path, "p", "c")


def test_one_picture_a_patient_and_labels_alike(hospital: Hospital) -> None:
    cohort = Cohort.open(State(hospital.root).cohort(hospital.study.intake))
    patients = cohort.patient_count
    # most patients have the first label; one has none
    labels = np.where(cohort.patient_of < patients - 3, 0, 1)
    labels[cohort.patient_of == 0] = -1
    rows = choose(cohort, labels)
    chosen = cohort.patient_of[rows]
    assert sorted(set(chosen.tolist())) == list(range(1, patients))
    assert len(chosen) == patients - 1 <= MOST_IMAGES


def test_few_places_are_shared_by_all_labels(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.child.domain.MOST_IMAGES", 6)
    cohort = Cohort.open(State(hospital.root).cohort(hospital.study.intake))
    labels = np.where(cohort.patient_of < cohort.patient_count - 3, 0, 1)
    chosen = labels[choose(cohort, labels)]
    assert chosen.tolist().count(0) == chosen.tolist().count(1) == 3


def test_check_looks_refuses_and_remembers_until_somebody_withdraws(
    hospital: Hospital, children: InProcess, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.state.domain.SPARE_BITS", -1000.0)
    root = hospital.root
    before = cli("check", "--state", root, "--offline")[1]
    assert "check --pictures asks whether" in before
    cli("check", "--state", root, "--offline", "--pictures")
    (job,) = children.jobs
    assert (job.kind, job.practice, job.reservation) == ("domain", True, "")
    # nothing of single pictures stays, and nothing was spent
    assert not (root / FOLDER / RUN).exists()
    assert not State(root).ledger.exists()
    (kept,) = State(root).domains.iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600
    # the flow knows no picture within these bits: the next check says so without another look
    code, out, err = cli("check", "--state", root, "--offline")
    assert len(children.jobs) == 1
    assert "and your pictures:" in out
    assert code == 2
    assert CODE in err
    # what a withdrawal removes
    remove_pictures(root)
    assert not State(root).domains.exists()


def test_a_child_that_refuses_is_named(hospital: Hospital, children: InProcess, cli: Cli) -> None:
    children.before = lambda folder: "E-DEVICE"
    code, _, err = cli("check", "--state", hospital.root, "--offline", "--pictures")
    assert code != 0
    assert "E-DEVICE" in err
    # it hides no other fault
    assert "node.key" in err
    assert not State(hospital.root).domains.exists()


def test_a_cohort_without_labels_is_not_looked_at_and_no_fault(
    hospital: Hospital, children: InProcess, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = lambda cohort, study: (np.full(len(cohort.labels), -1), None)  # noqa: E731
    monkeypatch.setattr("client.child.domain.labels_and_sides", unknown)
    _, out, err = cli("check", "--state", hospital.root, "--offline", "--pictures")
    assert "looked at 0 pictures" in out
    assert CODE not in err


def test_a_plan_without_networks_to_look_with_is_not_looked_at() -> None:
    assert not can_look(small_study())
