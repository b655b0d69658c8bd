"""The audit: copies, duplicates and constant images fail; averages and strangers pass."""

import io
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from client.egress import audit as au
from client.egress import nearest, spaces
from client.egress.spaces import filter_responses, unit
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


def flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1)


def contrast(images: np.ndarray) -> np.ndarray:
    """Every channel at mean 0 and deviation 1."""
    centred = images - images.mean(axis=(1, 2), keepdims=True)
    return flat(centred / (images.std(axis=(1, 2), keepdims=True) + 1e-3))


# as the spaces are described, in float64
SPACES = {"pixels": flat, "contrast": contrast, "filtered": filter_responses}


def naive(released: np.ndarray, real: np.ndarray, owner: np.ndarray) -> list[bool]:
    """Rule 4 in float64, one pair at a time, over whole arrays."""
    near = np.zeros(len(released), bool)
    for view in SPACES.values():
        ours, theirs = view(unit(released)), view(unit(real))
        among = pairwise(theirs, theirs)
        among[owner[:, None] == owner] = np.inf
        floor = max(float(np.median(among.min(axis=1))), au.DUPLICATE_RMSE)
        for row, apart in enumerate(pairwise(ours, theirs)):
            least = apart.min()
            others = apart[owner != owner[apart.argmin()]].min()
            lead = least / max(others, au.DUPLICATE_RMSE)
            near[row] |= least < au.NEAR_SHARE * floor or (least < floor and lead < au.LEAD)
    return near.tolist()


def pairwise(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.array([[np.sqrt(np.square(x - y).mean()) for y in b] for x in a])


def mixtures(count: int, channels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Copies that are more and more blended, among patients with several images each."""
    real = photographs(count, seed=4)[..., :channels]
    owner = np.arange(count) // 2 * 7
    shares = np.linspace(0.45, 1, 20)[:, None, None, None]
    others = real[20:40].astype(float)
    return (shares * real[:20] + (1 - shares) * others).astype(np.uint8), real, owner


@pytest.mark.parametrize("blocks", [(2048, 256), (7, 3)], ids=["one block", "many blocks"])
@pytest.mark.parametrize("channels", [1, 3])
def test_blocks_find_what_the_whole_arrays_find(
    channels: int, blocks: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nearest, "MOST_QUERIES", blocks[0])
    monkeypatch.setattr(nearest, "BLOCK_ROWS", blocks[1])
    released, real, owner = mixtures(40, channels)
    expected = naive(released, real, owner)
    assert 0 < sum(expected) < len(expected)
    report = au.audit(released, real, owner)
    assert [found.near for found in report.nearest] == expected


@pytest.mark.parametrize("block", [1, 4, 256])
def test_the_nearest_of_another_patient_is_found_wherever_the_blocks_end(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Patients with many images: most of what is near is the same patient's."""
    monkeypatch.setattr(nearest, "BLOCK_ROWS", block)
    owner = np.arange(30) % 3
    asking = photographs(6, seed=8)
    for name, found in nearest.find_nearest(asking, REAL, owner).items():
        view = SPACES[name]
        apart = pairwise(view(unit(asking)), view(unit(REAL)))
        rows = apart.argmin(axis=1)
        assert found.rows.tolist() == rows.tolist()
        others = [line[owner != owner[row]].min() for line, row in zip(apart, rows, strict=True)]
        np.testing.assert_allclose(np.sqrt(found.others), others, rtol=1e-4)
        np.testing.assert_allclose(np.sqrt(found.least), apart.min(axis=1), rtol=1e-4)


def test_where_rounding_could_decide_it_is_decided_in_float64(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    released, real, owner = mixtures(40, 3)
    expected = au.audit(released, real, owner)
    asked: list[type] = []
    find = nearest.find_nearest

    def watched(asking: np.ndarray, *rest: Any, **given: Any) -> Any:
        asked.append(given.get("dtype", np.float32))
        found = find(asking, *rest, **given)
        if asked[-1] is np.float32 and "spaces" not in given:
            # float32 that errs as far as it says it may
            found = {
                name: replace(one, least=one.least + one.error, others=one.others - one.error)
                for name, one in found.items()
            }
        return found

    monkeypatch.setattr(au, "find_nearest", watched)
    monkeypatch.setitem(nearest.ERRORS, np.dtype(np.float32), 0.02)
    assert au.audit(released, real, owner).codes == expected.codes
    assert np.float64 in asked


@pytest.mark.parametrize("size", [32, 96, 111, 127])
@pytest.mark.parametrize("kind", ["photographs", "bright and flat"])
def test_float32_errs_less_than_it_says(kind: str, size: int) -> None:
    """Beside whole vectors in float64, also where sizes are odd and deviations small."""
    real = photographs(24, seed=4, size=size)
    if kind == "bright and flat":
        real = (225 + real // 12).astype(np.uint8)
    owner = np.arange(24) // 2 * 7
    shares = np.linspace(0.45, 1, 12)[:, None, None, None]
    released = (shares * real[:12] + (1 - shares) * real[12:].astype(float)).astype(np.uint8)
    for name, found in nearest.find_nearest(released, real, owner).items():
        view = SPACES[name]
        apart = np.stack(
            [np.square(view(unit(real)) - one).mean(1) for one in view(unit(released))]
        )
        rows = apart.argmin(axis=1)
        exact = nearest.find_nearest(released, real, owner, dtype=np.float64)[name]
        assert exact.rows.tolist() == rows.tolist()
        assert (np.abs(exact.least - apart.min(axis=1)) <= exact.error).all()
        others = [line[owner != owner[row]].min() for line, row in zip(apart, rows, strict=True)]
        assert (np.abs(found.least - apart.min(axis=1)) < found.error / 3).all()
        assert (np.abs(found.others - others) < found.error / 3).all()


@pytest.mark.parametrize("size_px", [32, 44, 64, 128])
def test_an_images_vectors_do_not_depend_on_the_images_beside_it(size_px: int) -> None:
    images = np.random.default_rng(7).integers(0, 256, (9, size_px, size_px, 3), dtype=np.uint8)
    together = spaces.view(images[[0, 1, 1, 2, 3, 4, 1, 5, 1]], spaces.SPACES, np.float32).parts
    alone = spaces.view(images[[1]], spaces.SPACES, np.float32).parts
    for part, rows in together.items():
        for row in (1, 2, 6, 8):
            assert np.array_equal(rows[row], alone[part][0]), part


def test_ties_go_to_the_lowest_row_and_a_tie_of_two_patients_leads_by_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nearest, "BLOCK_ROWS", 2)
    real = REAL[[3, 5, 5, 9, 5]]
    owner = np.array([0, 1, 1, 2, 3])
    for found in nearest.find_nearest(REAL[[5]], real, owner).values():
        assert found.rows.tolist() == [1]
        assert np.sqrt(found.others) < 2e-3  # row 4 is another patient's
    own = nearest.find_nearest(REAL[[5]], real, owner, own=np.array([1]))
    assert {found.rows[0] for found in own.values()} == {4}


def test_the_floor_of_a_large_cohort_is_taken_over_evenly_spaced_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(au, "FLOOR_ROWS", 15)
    asked: list[int] = []
    find = nearest.find_nearest

    def watched(asking: np.ndarray, *rest: Any, **given: Any) -> Any:
        asked.append(len(asking))
        return find(asking, *rest, **given)

    monkeypatch.setattr(au, "find_nearest", watched)
    for name, (image, code) in CASES.items():
        assert au.audit(np.asarray(image)[None], REAL).codes == (code,), name
    assert set(asked) == {16}


def test_nothing_as_large_as_the_cohort_is_in_memory() -> None:
    """The cohort is a file: a few of its images are looked at, whatever its length."""
    peaks = []
    for count in (512, 2048):
        real = np.broadcast_to(REAL[0], (count, *REAL.shape[1:]))
        tracemalloc.start()
        nearest.find_nearest(REAL[:4], real, np.arange(count))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.05 * peaks[0]


def resident_kib() -> int:
    """Memory of mapped files that this process holds."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssFile:")[1].split()[0])


@pytest.mark.parametrize("look", ["nearest", "copies"])
def test_no_page_of_the_cohort_stays_in_memory(look: str, tmp_path: Path) -> None:
    real = np.memmap(tmp_path / "images", np.uint8, "w+", shape=(300, 256, 256, 1))
    released = photographs(2, size=256)[..., :1]
    before = resident_kib()
    if look == "nearest":
        nearest.find_nearest(released, real, np.arange(300), spaces=("pixels",))
    else:
        # every image's line is that of a released one, so every image is looked at
        au._copies(np.zeros_like(released), real)
    assert resident_kib() - before < real.nbytes / 1024 / 4


@pytest.mark.parametrize(("rule", "share"), [(au.blank, 0.5), (au._duplicates, 1.0)])
def test_a_batch_is_looked_at_image_by_image(rule: Callable[..., Any], share: float) -> None:
    batch = np.random.default_rng(0).integers(0, 255, (128, 512, 512, 1), dtype=np.uint8)
    tracemalloc.start()
    rule(batch)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < share * batch.nbytes


def test_a_chain_is_the_images_side_by_side_and_holds_none_of_them() -> None:
    whole = np.concatenate([REAL[:5], REAL[[7, 3, 20]]])
    chain = nearest.Chain(REAL[:5], REAL, np.array([7, 3, 20]))
    assert len(chain) == 8
    for start in range(9):
        for stop in range(start, 12):
            assert (chain[start:stop] == whole[start:stop]).all()
            assert len(chain[start:stop]) == len(whole[start:stop])
    assert chain[:3].base is not None


def test_the_audit_imports_no_torch() -> None:
    code = "import sys, client.egress.audit; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
