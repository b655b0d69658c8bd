"""A job of a rehearsal takes practice steps with practice noise, each time another one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.child.inputs import Batch
from client.child.job import work
from client.child.practice import draw_pairs, draw_sheet, mark, practice_noise
from client.ingest.cohort import Cohort
from client.state.folder import State
from client.state.jobs import OUTPUT, PRACTICE, Job
from client.state.ledger import PracticeReservation, Reservation
from common.errors import ConfigurationError, PolicyError, RefusedError
from common.privacy.events import round_event
from common.privacy.noise import NoiseSource, SeededNoiseSource
from common.wire import tensors
from tests.jobs import NO_GROUPS, SECRET, job_folder
from tests.sites import Hospital

Taken = list[tuple[type, type]]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Taken:
    """The types of reservation and noise that a trainer gets."""
    found: Taken = []

    def train(*given: Any) -> dict[str, np.ndarray]:
        found.append((type(given[3]), type(given[4])))
        return {"critic.a": np.zeros(1, np.float32)}

    monkeypatch.setattr("client.child.job.train_gan.train", train)
    return found


def of_gan(hospital: Hospital, folder: Path, *, practice: bool) -> Path:
    """A job folder of one round, of a study or of a rehearsal."""
    inputs = {"critic.a": np.zeros(1, np.float32)}
    job_folder(hospital, folder, "train", "gan", inputs, NO_GROUPS)
    if practice:
        event = round_event(hospital.study, "gan", 2**20).event()
        job = replace(Job.read(folder), practice=True, reservation=event)
        job.write(folder, tensors.dumps(inputs), NO_GROUPS)
    return folder


@pytest.mark.parametrize("practice", [False, True], ids=["study", "rehearsal"])
def test_the_noise_belongs_to_the_kind_of_job(
    hospital: Hospital, tmp_path: Path, taken: Taken, practice: bool
) -> None:
    folder = of_gan(hospital, tmp_path / "job", practice=practice)
    work(Job.read(folder), folder, SECRET)
    pair = (PracticeReservation, SeededNoiseSource) if practice else (Reservation, NoiseSource)
    assert taken == [pair]
    arrays = tensors.read(folder / OUTPUT, max_bytes=1 << 20)
    assert (PRACTICE in arrays) == practice


def test_a_reservation_of_a_ledger_is_no_practice_and_practice_no_reservation(
    hospital: Hospital, tmp_path: Path, taken: Taken
) -> None:
    folder = of_gan(hospital, tmp_path / "job", practice=False)
    real = Job.read(folder)
    practice = Job.read(of_gan(hospital, tmp_path / "practice", practice=True))
    for wrong in (replace(real, practice=True), replace(practice, practice=False)):
        with pytest.raises((RefusedError, PolicyError, ConfigurationError)):
            work(wrong, folder, SECRET)
    assert not taken and not (folder / OUTPUT).exists()


def test_a_batch_draws_its_noise_as_its_job_says(hospital: Hospital, tmp_path: Path) -> None:
    cohort = Cohort.open(State(hospital.root).cohort(hospital.study.intake))
    event = round_event(hospital.study, "gan", 2**20)
    batch = Batch(hospital.study, cohort, {}, tmp_path, tmp_path, SECRET, event.event())
    with pytest.raises(RefusedError):
        batch.reservation()
    assert type(batch.noise()) is NoiseSource
    practice = replace(batch, practice=True)
    assert type(practice.reservation()) is PracticeReservation
    assert type(practice.noise()) is SeededNoiseSource


def test_practice_noise_is_another_one_each_time_and_of_the_same_size() -> None:
    first, second = (practice_noise().gaussian_lattice(20_000, 2.0) for _ in range(2))
    assert not np.array_equal(first, second)
    assert np.std(first / 2**24) == pytest.approx(2.0, rel=0.05)


def test_the_mark_is_one_tensor_more() -> None:
    arrays = {"a": np.ones(2, np.float32)}
    assert set(mark(arrays)) == {"a", PRACTICE} and PRACTICE not in arrays


def test_a_sheet_of_pairs_shows_image_and_mask_in_full_rows() -> None:
    sheet = draw_sheet(np.zeros((9, 8, 8, 2), np.uint8))
    assert sheet[:4] == b"\x89PNG"
    assert int.from_bytes(sheet[16:20]) == 8 * 16 and int.from_bytes(sheet[20:24]) == 16


def test_a_plan_without_pairs_draws_none(hospital: Hospital, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no pairs"):
        draw_pairs(hospital.study, {}, tmp_path)
