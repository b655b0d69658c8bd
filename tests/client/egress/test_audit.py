"""The audit: copies, duplicates and constant images fail; averages and strangers pass."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from client.egress import audit as au
from common.errors import ConfigurationError
from tests.photographs import photographs

REAL = photographs(30)


def jpeg(image: np.ndarray) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=60)
    return np.asarray(Image.open(stream))


def averages(k: int = 5) -> np.ndarray:
    return np.stack([REAL[i : i + k].mean(0) for i in range(0, 30, k)]).astype(np.uint8)


CASES = {
    "an average of five passes": (averages()[0], "A-PASS"),
    "a stranger passes": (photographs(1, seed=9)[0], "A-PASS"),
    "a black image": (np.zeros((32, 32, 3), np.uint8), "A-CONSTANT"),
    "a grey image": (np.full((32, 32, 3), 120, np.uint8), "A-CONSTANT"),
    "a pixel copy": (REAL[4], "A-COPY"),
    "a re-encoded copy": (jpeg(REAL[4]), "A-NEAR"),
    "a copy with one pixel changed": (
        np.where(np.arange(32)[:, None, None] == 3, REAL[4], REAL[4] ^ 1),
        "A-NEAR",
    ),
    "a brighter copy": (np.clip(REAL[4] * 1.15, 0, 255).astype(np.uint8), "A-NEAR"),
    "a copy moved by a pixel": (np.roll(REAL[4], 1, axis=1), "A-NEAR"),
    "a copy with a little of another": (
        (0.85 * REAL[4] + 0.15 * REAL[9]).astype(np.uint8),
        "A-NEAR",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_image_gets_the_code_of_what_it_is(name: str) -> None:
    image, code = CASES[name]
    assert au.audit(np.asarray(image)[None], REAL).codes == (code,)


def test_released_duplicates_both_fail() -> None:
    batch = averages()
    batch = np.concatenate([batch, batch[:1]])
    report = au.audit(batch, REAL)
    assert report.codes == ("A-DUPLICATE", *("A-PASS",) * 5, "A-DUPLICATE")
    assert report.failures == ("A-DUPLICATE", "A-DUPLICATE")
    assert au.audit(averages(), REAL).failures == ()


def test_a_second_exposure_of_the_same_patient_does_not_hide_a_copy() -> None:
    twin = np.clip(REAL * 1.02, 0, 255).astype(np.uint8)
    real, owner = np.concatenate([REAL, twin]), np.tile(np.arange(30), 2)
    between = ((REAL[4].astype(int) + twin[4]) // 2 + 1).clip(0, 255).astype(np.uint8)
    report = au.audit(between[None], real, owner)
    assert report.codes == ("A-NEAR",)
    # against the next patient, not against the other exposure
    assert max(report.nearest[0].leads) < au.LEAD


def test_the_evidence_names_the_nearest_real_image() -> None:
    report = au.audit(np.stack([jpeg(REAL[i]) for i in (7, 3, 21)]), REAL)
    assert [found.row for found in report.nearest] == [7, 3, 21]
    assert all(lead < au.LEAD for found in report.nearest for lead in found.leads[:1])


def test_larger_images_are_compared_at_64_pixels_and_grey_ones_too() -> None:
    big = photographs(6, size=128)[..., :1]
    report = au.audit(np.stack([big[2], (big[2] // 2 + big[3] // 2)]), big)
    assert report.codes[0] == "A-COPY"


@pytest.mark.parametrize(
    ("released", "real"),
    [
        (REAL[:1].astype(np.float32), REAL),
        (REAL[:1, :16], REAL),
        (REAL[:0], REAL),
        (REAL[:1], REAL[:1]),
    ],
    ids=["not uint8", "another size", "nothing", "one patient"],
)
def test_what_cannot_be_audited_is_an_error(released: np.ndarray, real: np.ndarray) -> None:
    with pytest.raises(ConfigurationError, match="audit: "):
        au.audit(released, real)


def test_the_audit_imports_no_torch() -> None:
    code = "import sys, client.egress.audit; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
