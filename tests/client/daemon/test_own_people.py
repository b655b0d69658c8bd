"""How many images this site's own people give, on its screens and nowhere else."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from client.cli.main import run_command_line
from client.cli.yields import waiting_lines
from client.daemon.own_people import own_people
from client.daemon.site import Site
from client.egress.facts import Facts, Finding, ImageFacts
from client.state.artefacts import Limit, Wanted
from client.state.folder import State
from client.state.group_store import Group, GroupStore, Stratum
from tests.sites import Hospital, make_hospital, pseudonym, scripted

RIGHT = 2


@pytest.fixture
def hospital(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hospital:
    """Sixteen people with right eyes: eight of `none`, eight of `mild-moderate`."""
    made = make_hospital(tmp_path)
    scripted(monkeypatch, made.study)
    State(made.root).membership.write_text(made.site().membership.model_dump_json())
    return made


def test_people_are_counted_by_label_and_side(hospital: Hospital) -> None:
    found = own_people(State(hospital.root), hospital.study)
    assert found is not None
    assert found.by_label == {"none": (0, 0, 8), "mild-moderate": (0, 0, 8), "severe": (0, 0, 0)}
    assert found.released == 0


def test_a_site_without_a_cohort_knows_nothing_yet(tmp_path: Path) -> None:
    made = make_hospital(tmp_path)
    place = State(made.root)
    place.cohort(made.study.intake).rename(tmp_path / "elsewhere")
    assert own_people(place, made.study) is None


def test_people_of_released_groups_give_no_new_image(hospital: Hospital) -> None:
    wanted = Wanted.of(hospital.study)
    group = Group(tuple(sorted(pseudonym(number) for number in range(5))), Stratum(0, RIGHT), 5)
    image = wanted.artefact(np.zeros((32, 32, 3), np.uint8), 0, False)
    with GroupStore(hospital.root / "groups.sqlite") as store:
        store.release({group: [image]}, "similar", Limit(1e6, 1e-5))
    found = own_people(State(hospital.root), hospital.study)
    assert found is not None
    assert (found.by_label["none"], found.released) == ((0, 0, 3), 5)


@pytest.mark.parametrize("command", ["check", "review", "approve"])
def test_the_forecast_is_on_the_screen_and_in_no_log(
    hospital: Hospital,
    command: str,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    if command == "review":
        propose(hospital.site(), hospital)
    more = {"check": ["--offline"], "approve": [str(hospital.bundle), "--yes", "--by", "A"]}
    capsys.readouterr()
    run_command_line([command, "--state", str(hospital.root), *more.get(command, [])])
    out = capsys.readouterr().out
    assert "images to expect of plan small from this site's own people" in out
    (line,) = [one for one in out.splitlines() if "severe" in one and "people" in one]
    assert "WARNING: this label gives no image" in line
    (line,) = [one for one in out.splitlines() if one.startswith("    none")]
    assert "8 people   1 image" in line and "one image at most" in line
    assert "8 people" not in caplog.text and "images to expect" not in caplog.text


def test_a_review_says_how_many_images_wait_and_on_how_many_people_they_rest() -> None:
    fine = Finding("A-PASS", 1.0, 1.0)
    images = (
        ImageFacts("none", 0, 6, False, fine),
        ImageFacts("none", 0, 6, False, fine),
        ImageFacts("none", 1, 5, True, fine),
        ImageFacts("severe", 2, 7, False, fine),
    )
    none, severe = waiting_lines(Facts(32, images, ""))
    assert "3 images of 11 people, 1 with noise" in none and "WARNING" not in none
    assert "1 image of 7 people   WARNING: one image alone" in severe


def propose(site: Site, hospital: Hospital) -> None:
    """Let images wait for a person."""
    site.stop.set()
    with pytest.raises(Exception, match="wait for review"):
        site.answer(hospital.ask("synthesize"))
