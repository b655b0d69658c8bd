"""A refresh that was cut short: the old cohort is whole, or nobody reads it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from client.ingest import refresh
from client.ingest.refresh import Intakes
from client.ingest.request import Limits, count_decoders
from client.state.folder import State
from tests.sites import Hospital, make_hospital, write_cohort


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return make_hospital(tmp_path)


def intakes(hospital: Hospital) -> Intakes:
    site = hospital.site()
    return Intakes(site.state, site.config)


def test_an_old_cohort_loses_its_name_before_its_files(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = State(hospital.root)
    old = place.cohort(hospital.study.intake)
    write_cohort(place.next_cohort(hospital.study.intake), hospital.study)
    seen: list[bool] = []
    remove = shutil.rmtree

    def watched(path: Any, **named: Any) -> None:
        seen.append(old.exists())
        remove(path, **named)

    monkeypatch.setattr(shutil, "rmtree", watched)
    intakes(hospital).ensure(hospital.study.intake)
    assert seen == [False]
    assert place.cohorts(hospital.study.intake) == (place.cohort(hospital.study.intake),)


def test_what_a_cut_removal_left_goes_with_the_next_round(hospital: Hospital) -> None:
    place = State(hospital.root)
    old = place.cohort(hospital.study.intake)
    write_cohort(place.next_cohort(hospital.study.intake), hospital.study)
    left = old.with_name(f".{old.name}.gone")
    os.rename(old, left)
    (left / "index.sqlite").unlink()
    intakes(hospital).ensure(hospital.study.intake)
    assert not left.exists()


def test_what_an_intake_kept_goes_once_its_cohort_is_there(hospital: Hospital) -> None:
    place = State(hospital.root)
    cohort = place.cohort(hospital.study.intake)
    kept = cohort.with_name(f".{cohort.name}.aside")
    kept.mkdir()
    (kept / "decoded").touch()
    intakes(hospital).ensure(hospital.study.intake)
    assert not kept.exists()


def test_what_intakes_of_other_rules_left_is_swept(hospital: Hospital) -> None:
    place = State(hospital.root)
    following = place.next_cohort(hospital.study.intake)
    kept = following.with_name(f".{following.name}.aside")
    for name in (kept.name, ".cohort-0123456789ab.aside", ".cohort-0123456789ab.partial"):
        (hospital.root / name).mkdir()
        (hospital.root / name / "spool").touch()
    intakes(hospital).sweep([hospital.study.intake])
    assert [path.name for path in hospital.root.glob(".cohort-*")] == [kept.name]


@pytest.mark.parametrize("asked", [0, 1, 5])
def test_as_many_decoders_as_the_site_gives(
    asked: int, hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = hospital.site()
    compute = site.config.compute.model_copy(update={"decoders": asked})
    config = site.config.model_copy(update={"compute": compute})
    given: list[Limits] = []

    def watched(*_: object, limits: Limits, **named: object) -> None:
        given.append(limits)

    monkeypatch.setattr(refresh, "ingest", watched)
    intake = hospital.study.intake
    shutil.rmtree(site.state.cohort(intake))
    Intakes(site.state, config).ensure(intake)
    assert [limits.workers for limits in given] == [count_decoders(asked)]
