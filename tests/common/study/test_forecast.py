"""The forecast against real bytes, real groups and the memory that training takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from client.learn import train_encoder, train_gan, train_wgan
from client.learn.fast import backends
from client.state import config as site_config
from client.synthesize import features
from client.synthesize.align import AlignmentPlan
from client.synthesize.reference import InversionPlan
from common.models import latents
from common.study import forecast, traffic
from common.study.forecast import CORE, PROGRAM_BYTES, Phase, hours, peak_bytes, phases
from common.study.forecast_words import forecast_facts, forecast_lines
from common.study.plan import Study
from common.study.traffic import file_bytes, most_images, traffic_of
from common.wire import tensors
from tests.sized_plans import image_weights, pair_weights
from tests.studies import small_study, vessels_plan

pytestmark = pytest.mark.slow

PEAK = """
import json, sys
from pathlib import Path
import numpy as np
import torch
import client.child.job
from client.learn import train_gan
from client.state.ledger import PracticeReservation
from common.models.weights import numpy_weights
from common.privacy.events import round_event
from common.privacy.noise import SeededNoiseSource
from tests.common.study.test_forecast import large_study, cohort

def peak():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10

torch.set_num_threads(1)
before = peak()
study = large_study()
generator, critic = train_gan.build(study)
weights = numpy_weights(generator, "generator.") | numpy_weights(critic, "critic.")
reservation = PracticeReservation(round_event(study, "gan", 10**9))
train_gan.train(cohort(), study, weights, reservation, SeededNoiseSource(0), lambda *_: None)
print(json.dumps([before, peak()]))
"""


def large_study() -> Study:
    """Large enough that a generator step takes more than the chunk of a private step."""
    return small_study(
        intake__size_px=128,
        models__gan__width=24,
        models__gan__latent=64,
        models__gan__patients_per_step=4,
        models__gan__max_update_norm=1e4,
        synthesis__privatize__scale=2.0,
    )


def cohort() -> object:
    """Eight invented patients."""
    from client.ingest.cohort import Cohort

    names = tuple(f"{p:064x}" for p in range(8))
    return Cohort(
        folder=Path("unused"),
        images=np.zeros((8, 128, 128, 3), np.uint8),
        patient_of=np.arange(8),
        labels=np.zeros(8, np.int64),
        laterality=np.zeros(8, np.int8),
        pseudonyms=names,
        aliases=tuple((name,) for name in names),
        label_names=("none",),
        digest="0" * 64,
    )


def by_name(study: Study) -> dict[str, Phase]:
    return {phase.name: phase for phase in phases(study)}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_the_memory_of_training_is_near_what_was_predicted() -> None:
    found = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, check=True)
    before, peak = json.loads(found.stdout)
    predicted = by_name(large_study())["gan"].memory_bytes - PROGRAM_BYTES
    assert 0.7 < predicted / (peak - before) < 1.6
    assert 0.5 < PROGRAM_BYTES / before < 2.0


def test_bytes_over_the_wire_are_those_of_the_files() -> None:
    for name, arrays in {**image_weights(32), **pair_weights(32)}.items():
        shapes = {tensor: value.shape for tensor, value in arrays.items()}
        assert file_bytes(shapes) == len(tensors.dumps(arrays)), name


def test_a_study_sends_every_round_both_ways_and_its_images() -> None:
    study = small_study()
    traffic = traffic_of(study)
    gan, glow = traffic.round_bytes["gan"], traffic.round_bytes["glow"]
    assert gan == len(tensors.dumps(image_weights(32)["gan"]))
    # two rounds of the GAN, one of the flow, the images' weights; a header each
    assert 0 <= traffic.site_down_bytes - (3 * gan + 2 * glow) <= 5 * 2048
    assert 0 <= traffic.site_up_bytes - (2 * gan + glow) - 20 * 32 * 32 * 3 <= 5 * 2048
    assert traffic.server_wire_bytes == 3 * (traffic.site_down_bytes + traffic.site_up_bytes)


def test_images_are_at_most_the_plans_cap_and_none_without_a_synthesis() -> None:
    assert most_images(small_study()) == 20
    assert most_images(small_study(synthesis__max_images_per_site=7)) == 7
    assert most_images(Study.model_validate(vessels_plan())) == 0


def test_more_steps_patients_and_pixels_take_longer() -> None:
    base = by_name(small_study())["gan"].products
    for changes in (
        {"models__gan__local_steps": 4},
        {"models__gan__patients_per_step": 32},
        {"models__gan__items_per_patient": 2},
        {"intake__size_px": 64, "synthesis__privatize__scale": 2.0},
    ):
        assert by_name(small_study(**changes))["gan"].products > 1.2 * base
    phase = by_name(small_study())["gan"]
    seconds = phase.products / CORE.products_per_s + phase.noise * CORE.noise_s
    seconds += phase.calls * CORE.call_s
    assert hours(phase, CORE) == pytest.approx(seconds / 3600)


@pytest.mark.parametrize("size_px", [32, 64, 96, 128, 256, 512])
def test_every_size_has_a_forecast(size_px: int) -> None:
    study = small_study(intake__size_px=size_px, synthesis__privatize__scale=10.0)
    found = phases(study)
    assert [phase.name for phase in found] == [
        "gan",
        "glow",
        "encoder",
        "invert",
        "align",
        "privatize",
    ]
    assert peak_bytes(found) >= PROGRAM_BYTES
    text = "\n".join(forecast_lines(study))
    assert (
        "an estimate; rates of 1 core measured" in text and "images: at most 20 of a site" in text
    )
    assert json.loads(json.dumps(forecast_facts(study)))["estimate"] is True


def test_the_forecast_imports_no_torch() -> None:
    code = "import sys, common.study.forecast_words; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_a_forecast_restates_is_what_the_networks_have() -> None:
    """Rules of a plan import no torch, so they hold these numbers themselves."""
    assert forecast.GENERATOR_BATCH == {
        "gan": train_gan.GENERATOR_BATCH,
        "wgan": train_wgan.GENERATOR_BATCH,
    }
    assert forecast.ENCODER_BATCH == train_encoder.BATCH
    assert {InversionPlan().batch, AlignmentPlan().batch, latents.BATCH} == {forecast.BATCH}
    assert forecast.MOST_CHUNK_BYTES == backends.MOST_MEMORY_BYTES
    assert (forecast.CHUNK_PRODUCTS, forecast.CALL_PRODUCTS, forecast.VALUE_PRODUCTS) == (
        backends.CHUNK,
        backends.CALL,
        backends.VALUE,
    )
    assert InversionPlan().samples == forecast.REFERENCE_SAMPLES
    assert features.STYLE_CHANNELS == forecast.STYLE_CHANNELS
    assert site_config.INBOX_MESSAGES == traffic.INBOX_MESSAGES
