"""The image batch: its parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from client.daemon.images import split
from client.state.jobs import Stopped
from common.errors import PolicyError
from common.privacy.boundary import PART_CAP_BYTES
from common.wire import tensors
from common.wire.messages import unseal
from tests.sites import Hospital, make_hospital, scripted
from tests.studies import small_study


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return make_hospital(tmp_path)


def test_large_batches_are_split_and_every_part_is_kept(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.daemon.images.PART_CAP_BYTES", (1 << 16) + 3200)
    scripted(monkeypatch, hospital.study)
    site = hospital.site(review="not_required")
    first = site.answer(hospital.ask("synthesize"))
    second = site.answer(hospital.ask("synthesize", part=1, parts=2))
    headers = [
        unseal(s, site.state.signing_key().public_key(), max_bytes=1 << 20) for s in (first, second)
    ]
    assert [(h.part, h.parts) for h in headers] == [(0, 2), (1, 2)]
    labels = [
        tensors.loads(s.payload, max_bytes=1 << 20)["labels"].tolist() for s in (first, second)
    ]
    assert labels == [[0], [1]]


def test_a_part_never_exceeds_the_cap() -> None:
    study = small_study(synthesis__max_images_per_site=20_000)
    arrays: tensors.Arrays = {
        "images": np.zeros((11_000, 32, 32, 3), np.uint8),
        "labels": np.zeros(11_000, np.int64),
        "privatized": np.zeros(11_000, np.uint8),
    }
    parts = split(arrays, study)
    assert len(parts) == 2
    assert all(len(part) <= PART_CAP_BYTES for part in parts)


@pytest.mark.parametrize("unpaged", [True, False])
def test_a_batch_that_waited_through_an_upgrade_is_shown_on_its_one_sheet(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch, unpaged: bool
) -> None:
    """Its child drew one sheet of all images, where today's would draw three pages."""
    scripted(monkeypatch, hospital.study)
    monkeypatch.setattr("client.daemon.images.count_pages", lambda *_: 3)
    monkeypatch.setattr("client.daemon.images.is_unpaged", lambda sheet: unpaged)
    site = hospital.site(review="required")
    site.stop.set()  # the first look at the decision ends the wait
    if not unpaged:
        with pytest.raises(PolicyError, match="expected page 2 of 3"):
            site.answer(hospital.ask("synthesize"))
        return
    with pytest.raises(Stopped):
        site.answer(hospital.ask("synthesize"))
    (batch,) = site.reviews.batches()
    assert [sheet.name for sheet in batch.sheets] == ["contact_sheet.png"]
    assert site.reviews.decide("", approve=True, reviewer="R").state == "approved"
