"""The pairs of a study without synthesis: trained, sent, drawn once, written as NIfTI."""

from __future__ import annotations

import dataclasses
import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.ingest.cohort import Cohort
from common.storage.files import file_digest
from common.study.families import WGAN
from common.study.plan import Study
from common.study.shapes import parameter_counts, wire_counts
from common.wire import tensors
from common.wire.messages import Header
from kohort.verification import verify
from server.public_data.pairs import phantom_pairs
from server.release.build import build_release
from server.release.items import Pairs, ReleaseInputs
from server.release.pairs import draw_pairs, nifti_bytes
from tests.federation import Federation, ToySite
from tests.pair_releases import Finished, finish_study
from tests.releases import ACCOUNT
from tests.studies import vessels_plan


def study_of(**changes: Any) -> Study:
    return Study.model_validate(vessels_plan(**changes))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finish_study(tmp_path_factory.mktemp("pairs"))


def test_a_study_without_synthesis_ends_and_keeps_the_signed_headers_of_its_last_round(
    finished: Finished,
) -> None:
    record = finished.run.record
    assert record.complete() and record.progress().done == record.progress().total == 2
    assert sorted(record.evidence("wgan")) == ["hospital-a", "hospital-b", "hospital-c"]
    assert not list((record.root / "rounds").glob("*/*.sealed"))
    for site in finished.federation.sites.values():
        assert site.asked[-1].statement == {"done": True}


@dataclasses.dataclass
class TrainingSite(ToySite):
    """A site that really trains, on a cohort of phantoms in memory, with repeatable noise."""

    def update(self, asked: Header, weights: tensors.Arrays) -> tensors.Arrays:
        from client.learn import train_wgan
        from client.state.ledger import PracticeReservation
        from common.privacy.events import round_event
        from common.privacy.noise import SeededNoiseSource

        reservation = PracticeReservation(round_event(self.study, "wgan", 10**6))
        noise = SeededNoiseSource(self.seed + 100 * asked.round)
        cohort = phantom_cohort(self.seed)
        return dict(
            train_wgan.train(
                cohort, self.study, weights, reservation, noise, lambda done, total: None
            )
        )


def phantom_cohort(seed: int, patients: int = 6) -> Cohort:
    """Four patches of each of a few phantoms."""
    source = phantom_pairs(patients, 4, 32, seed)
    names, zeros = (
        tuple(f"{seed}-{p}" for p in range(patients)),
        np.zeros(len(source.pairs), np.int64),
    )
    return Cohort(
        Path("unused"), source.pairs, source.patient_of, zeros, zeros.astype(np.int8), names,
        tuple((name,) for name in names), ("vessels",), "0" * 64,
    )  # fmt: skip


def test_sites_that_train_on_phantoms_end_in_a_release_that_verifies(tmp_path: Path) -> None:
    federation = Federation.of_pairs(
        tmp_path, models__wgan__critic_steps=1, models__wgan__adaptive=False
    )
    for name, toy in list(federation.sites.items()):
        federation.sites[name] = TrainingSite(
            name, federation.study, toy.operator, toy.seed, key=toy.key
        )
    record = federation.run().record
    start, end = (
        record.root / "bundle" / "checkpoints" / "wgan.safetensors",
        record.weights("wgan", 2),
    )
    for name, before in tensors.read(start, max_bytes=1 << 24).items():
        assert (end[name] != before).any(), name
    plan = federation.study.models.wgan
    assert plan is not None
    file = record.final_weights()["wgan"]
    pairs = Pairs(
        draw_pairs(tmp_path / "drawn", end, file_digest(file), plan, 32), record.evidence("wgan")
    )
    inputs = ReleaseInputs(
        federation.study, tmp_path / "bundle", (), ACCOUNT, {"wgan": file}, pairs=pairs
    )
    assert verify(build_release(inputs, tmp_path / "out", federation.key)).images == 12


def test_every_tensor_of_the_wgan_crosses_the_wire_and_the_average_counts_as_post_processing(
    finished: Finished,
) -> None:
    weights = finished.run.record.weights("wgan", 2)
    assert {name.split(".")[0] for name in weights} == {"generator", "average", "critic"}
    study = finished.federation.study
    counts = parameter_counts(study, finished.inputs.bundle / "checkpoints")
    assert counts == {
        "wgan": sum(a.size for name, a in weights.items() if name.startswith("critic."))
    }
    assert wire_counts(study, finished.inputs.bundle / "checkpoints") == {
        "wgan": sum(a.size for a in weights.values())
    }
    without = study_of(models__wgan__trainable=["critic.layers.6."])
    assert parameter_counts(without, Path("nowhere"))["wgan"] < counts["wgan"]
    for name, trained in (
        ("average.start.weight", True),
        ("critic.layers.0.weight", False),
        ("critic.layers.6.bias", True),
    ):
        assert WGAN.may_change(name, without.models.trained()["wgan"].trainable) is trained


def test_pairs_are_drawn_once_and_differ_from_draw_to_draw(
    finished: Finished, tmp_path: Path
) -> None:
    plan = finished.federation.study.models.wgan
    assert plan is not None
    weights = finished.run.record.weights("wgan", 2)
    again = draw_pairs(
        finished.run.record.root / "pairs",
        weights,
        file_digest(finished.inputs.weights["wgan"]),
        plan,
        32,
    )
    assert np.array_equal(again, finished.pairs.drawn) and again.shape == (12, 32, 32, 2)
    assert not np.array_equal(draw_pairs(tmp_path, weights, "0" * 64, plan, 32), again)
    assert not np.array_equal(
        draw_pairs(tmp_path, weights, "1" * 64, plan, 32),
        draw_pairs(tmp_path, weights, "0" * 64, plan, 32),
    )


def test_a_nifti_mask_has_the_same_bytes_every_time_and_no_clock() -> None:
    mask = np.zeros((32, 32), np.uint8)
    mask[3, 5:9] = 255
    data = nifti_bytes(mask)
    assert (
        data == nifti_bytes(mask)
        and data[4:8] == b"\0\0\0\0"
        and len(gzip.decompress(data)) == 352 + 32 * 32
    )
