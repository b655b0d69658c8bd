"""What decides about a batch: audit codes, and membership over the whole batch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from client.child.checks import (
    Candidate,
    deciding_codes,
    drop_failed,
    report_of,
    reveals_members,
)
from client.state.group_store import Group, Stratum
from common.errors import Bug, PolicyError
from tests.jobs import verdict
from tests.studies import small_study


@pytest.mark.parametrize("frozen_as", ["", "alias "])
@pytest.mark.parametrize("leaks", [True, False])
def test_a_batch_that_gives_away_who_is_in_a_group_is_found_by_the_names_of_its_groups(
    leaks: bool, frozen_as: str
) -> None:
    """Also where a group was frozen under another name of its members."""
    coarse = np.random.default_rng(4).integers(0, 255, (130, 4, 4, 3), dtype=np.uint8)
    images = np.repeat(np.repeat(coarse, 8, axis=1), 8, axis=2)
    names = tuple(f"{i:032x}" for i in range(80))
    grouped = tuple(frozen_as + name for name in names)
    cohort = SimpleNamespace(
        pseudonyms=names,
        aliases=tuple(zip(names, grouped, strict=True)),
        patient_of=np.arange(80),
        images=images[:80],
    )
    # averages of the groups' members, or of people who are not here
    shown = images if leaks else images[80:]
    made = [
        Candidate(
            shown[i : i + 2].mean(0).astype(np.uint8),
            Group(grouped[i : i + 2], Stratum(0), 2),
            False,
        )
        for i in range(0, 50, 2)
    ]
    assert reveals_members(SimpleNamespace(cohort=cohort), made) is leaks  # type: ignore[arg-type]


NOISED: dict[str, dict[str, Any]] = {
    "random": {
        "synthesis__grouping": "random",
        "synthesis__privatize": {
            "mechanism": "gaussian",
            "share": 1.0,
            "epsilon": 0.5,
            "delta": 1e-6,
            "levels": "top",
        },
    },
    "anchors": {
        "synthesis__grouping": "anchors",
        "synthesis__privatize": None,
        "synthesis__anchors": {
            "noise_multiplier": 1.0,
            "threshold_delta": 1e-6,
            "cells_per_stratum": 3,
        },
    },
}


def made_batch(grouping: str) -> tuple[SimpleNamespace, list[Candidate]]:
    """A batch of that grouping with two images; "random" and "anchors" are covered by noise."""
    study = small_study(**NOISED.get(grouping, {"synthesis__grouping": grouping}))
    cohort = SimpleNamespace(images=np.zeros((4, 8, 8, 3), np.uint8), patient_of=np.arange(4))
    made = [
        Candidate(
            np.full((8, 8, 3), i, np.uint8),
            Group((f"a{i}", f"b{i}"), Stratum(0), 2),
            grouping == "random",
        )
        for i in (0, 1)
    ]
    return SimpleNamespace(study=study, cohort=cohort, synthesis=study.synthesis), made


@pytest.mark.parametrize("grouping", ["similar", "similar-swap", "cells"])
def test_groups_that_images_chose_stop_when_the_batch_gives_their_members_away(
    grouping: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.child.checks.audit", verdict("A-PASS", "A-PASS"))
    monkeypatch.setattr("client.child.checks.reveals_members", lambda *_: True)
    batch, made = made_batch(grouping)
    with pytest.raises(PolicyError, match="gives away who is in a group") as refused:
        drop_failed(batch, made)  # type: ignore[arg-type]
    assert refused.value.code == "E-AUDIT"


@pytest.mark.parametrize("grouping", ["random", "anchors"])
def test_the_check_of_the_whole_batch_does_not_even_look_where_epsilon_would_not_cover_its_answer(
    grouping: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.child.checks.audit", verdict("A-PASS", "A-PASS"))
    monkeypatch.setattr(
        "client.child.checks.reveals_members",
        lambda *_: pytest.fail("patients' images decide what leaves"),
    )
    batch, made = made_batch(grouping)
    passed = drop_failed(batch, made)  # type: ignore[arg-type]
    assert passed == made
    # what was found goes along, in whatever order the images are written
    assert report_of(passed[::-1]).codes == ("A-PASS", "A-PASS")
    assert report_of(passed[:1]).nearest[0].row == 0
    with pytest.raises(Bug, match="never audited"):
        report_of(made)


@pytest.mark.parametrize("grouping", list(NOISED))
def test_nearness_decides_nothing_where_noise_covers_every_image(
    grouping: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    batch, made = made_batch(grouping)
    monkeypatch.setattr("client.child.checks.audit", verdict("A-NEAR", "A-PASS"))
    passed = drop_failed(batch, made)  # type: ignore[arg-type]
    assert passed == made
    # the person who reviews sees it; the codes that reach the gate do not hold it
    report = report_of(passed)
    assert report.codes == ("A-NEAR", "A-PASS")
    assert deciding_codes(batch, report.codes) == ("A-PASS", "A-PASS")  # type: ignore[arg-type]
    assert "near to a patient's" in capsys.readouterr().err  # child.log
    monkeypatch.setattr("client.child.checks.audit", verdict("A-PASS", "A-PASS"))
    assert drop_failed(batch, made) == made  # type: ignore[arg-type]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("grouping", list(NOISED))
def test_a_copy_where_noise_covers_every_image_is_a_fault_and_stops_the_batch(
    grouping: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.child.checks.audit", verdict("A-PASS", "A-COPY"))
    batch, made = made_batch(grouping)
    with pytest.raises(PolicyError, match="pixel for pixel") as refused:
        drop_failed(batch, made)  # type: ignore[arg-type]
    assert refused.value.code == "E-AUDIT"


def test_without_noise_an_image_that_is_near_to_a_patients_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("client.child.checks.audit", verdict("A-NEAR", "A-PASS"))
    monkeypatch.setattr("client.child.checks.reveals_members", lambda *_: False)
    batch, made = made_batch("cells")
    assert drop_failed(batch, made) == made[1:]  # type: ignore[arg-type]
