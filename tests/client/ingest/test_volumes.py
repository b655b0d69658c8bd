"""client/ingest/volumes.py.

Slices become the volume that geometry means, and patches are cut where they should.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.uid import RLELossless

from client.ingest import decode
from client.ingest.intensity import robust_range, scale_intensity
from client.ingest.quarantine import Reason, Unusable
from client.ingest.request import Caps, Kind
from client.ingest.scanning import scan
from client.ingest.stack import BadSlice
from client.ingest.volumes import (
    Volume,
    look,
    patches,
    read_volume,
)
from server.public_data.phantoms import STYLES, volume
from tests import phantoms
from tests import volume_phantoms as made

SERIES, MASK = made.patient(1)


def caps(**changes: Any) -> Caps:
    values = {
        "size_px": 32,
        "modalities": ("MR",),
        "window": (0.0, 2000.0),
        "max_file_bytes": 1 << 20,
    }
    return Caps(**(values | {"max_pixel_bytes": 1 << 22, "max_volume_bytes": 1 << 22} | changes))


def volume_of(paths: list[Path], mask: tuple[Kind, Path] | None = None, **changes: Any) -> Volume:
    laid = mask and (mask[0], str(mask[1]))
    return read_volume([str(path) for path in paths], laid, caps(**changes))


def shown(values: Any, low: float = 0, high: float = 2000) -> Any:
    return np.rint(255 * np.clip((np.asarray(values, float) - low) / (high - low), 0, 1)).astype(
        np.uint8
    )


def test_geometry_orders_the_slices_whatever_names_and_instance_numbers_say(tmp_path: Path) -> None:
    paths = made.write_series(tmp_path, SERIES)
    honest = volume_of(paths)
    np.testing.assert_array_equal(honest.shown, shown(SERIES.values))
    lying = [
        phantoms.save(made.slice_of(SERIES, d, InstanceNumber=n), tmp_path / "lying" / f"{n}.dcm")
        for d, n in enumerate((4, 1, 5, 2, 3))
    ]
    other = volume_of(sorted(lying))
    np.testing.assert_array_equal(other.shown, honest.shown)
    assert (other.digest, other.slices) == (honest.digest, honest.slices)


def test_spacing_and_an_oblique_normal_change_no_pixel(tmp_path: Path) -> None:
    tilted = (0.9961947, 0.0, -0.0871557, 0.0075961, 0.9961947, 0.0868241)
    other = made.patient(1, orientation=tilted, spacing=(0.9, 0.3), gap=3.5)[0]
    np.testing.assert_array_equal(
        volume_of(made.write_series(tmp_path, other)).shown, shown(SERIES.values)
    )


def test_a_reversed_normal_reverses_the_slices(tmp_path: Path) -> None:
    over = made.patient(1, orientation=(1.0, 0.0, 0.0, 0.0, -1.0, 0.0))[
        0
    ]  # d grows with the normal: towards the feet
    found = volume_of(made.write_series(tmp_path, over)[::-1])
    np.testing.assert_array_equal(found.shown, shown(SERIES.values))


@pytest.mark.parametrize(
    ("stored", "attributes"),
    [
        (lambda v: v, {}),
        (lambda v: v - 1024, {"RescaleSlope": 1, "RescaleIntercept": 1024}),
        (lambda v: v * 2, {"RescaleSlope": 0.5, "RescaleIntercept": 0}),
        (
            lambda v: v | 0x1000,
            {"BitsStored": 12, "HighBit": 11},
        ),  # an old overlay in the unused bits
        (
            lambda v: v,
            {"WindowCenter": 300, "WindowWidth": 10},
        ),  # a viewer's window is no intensity
        (lambda v: 2000 - v, {"PhotometricInterpretation": "MONOCHROME1"}),
        (lambda v: 2000 - v, {"PresentationLUTShape": "INVERSE"}),
    ],
)
def test_stored_values_become_the_values_that_they_mean(
    tmp_path: Path, stored: Any, attributes: Any
) -> None:
    series = made.Series("A", stored(SERIES.values), attributes=tuple(attributes.items()))
    found = volume_of(made.write_series(tmp_path, series)).shown
    np.testing.assert_allclose(
        found,
        shown(SERIES.values),
        rtol=0,
        atol=bool({"PhotometricInterpretation", "PresentationLUTShape"} & set(attributes)),
    )


def test_compressed_slices_and_slices_of_8_bits_are_read(tmp_path: Path) -> None:
    packed = [phantoms.compressed(made.slice_of(SERIES, d), RLELossless) for d in range(5)]
    paths = [phantoms.save(dataset, tmp_path / f"{d}.dcm") for d, dataset in enumerate(packed)]
    np.testing.assert_array_equal(volume_of(paths).shown, shown(SERIES.values))
    eighths = (SERIES.values // 8).astype("u1")
    small = [
        phantoms.with_pixels(made.slice_of(SERIES, d), eighths[d], "MONOCHROME2") for d in range(5)
    ]
    paths = [phantoms.save(dataset, tmp_path / f"8-{d}.dcm") for d, dataset in enumerate(small)]
    np.testing.assert_array_equal(volume_of(paths, window=(0, 250)).shown, shown(eighths, 0, 250))


def test_one_scaling_holds_for_the_whole_volume() -> None:
    values = np.array([[[0, 100]], [[200, 500]]], np.float32)
    np.testing.assert_array_equal(
        scale_intensity(values, None, inverted=False), shown(values, 0, 500)
    )
    np.testing.assert_array_equal(
        scale_intensity(values, (100, 300), inverted=False), shown(values, 100, 300)
    )
    np.testing.assert_array_equal(
        scale_intensity(values, None, inverted=True), 255 - shown(values, 0, 500)
    )
    values[0, 0, 0] = np.nan  # padding
    np.testing.assert_array_equal(scale_intensity(values, None, inverted=True)[0, 0], [0, 255])


@pytest.mark.parametrize("window", [None, (0.0, 10.0)])
def test_an_even_volume_is_blank(window: tuple[float, float] | None) -> None:
    for value in (7.0, 500.0, np.nan):
        with pytest.raises(Unusable) as refusal:
            scale_intensity(np.full((3, 4, 4), value, np.float32), window, inverted=False)
        assert refusal.value.reason is Reason.BLANK


def test_padding_is_black_and_no_part_of_the_range(tmp_path: Path) -> None:
    values = SERIES.values.copy()
    values[:, :4] = 60000
    series = made.Series("A", values, attributes=(("PixelPaddingValue", 60000),))
    found = volume_of(made.write_series(tmp_path, series), window=None).shown
    assert (found[:, :4] == 0).all()
    inside = values[:, 4:]
    low, high = robust_range(inside.astype(np.float32))
    np.testing.assert_array_equal(found[:, 4:], shown(inside, low, high))


def test_a_few_voxels_of_any_value_do_not_move_the_scaling(tmp_path: Path) -> None:
    values = SERIES.values.astype(np.float32)
    plain = scale_intensity(values, None, inverted=False)
    for odd in (1e30, np.inf, -1e30):
        spiked = values.copy()
        spiked.ravel()[[7, 901, 5003]] = odd
        found = scale_intensity(spiked, None, inverted=False)
        untouched = spiked == values
        assert np.abs(found.astype(int) - plain)[untouched].max() <= 1
    ordered = np.sort(values.ravel())
    beyond = int(values.size * 0.001)
    assert robust_range(values) == (ordered[beyond], ordered[-1 - beyond])


def test_few_vessels_of_a_phantom_become_white() -> None:
    for seed in range(3):
        phantom = volume(np.random.default_rng(seed), STYLES["hospital"], (8, 64, 64))
        found = scale_intensity(phantom.image, None, inverted=False)
        assert (found[phantom.mask > 0] == 255).mean() < 0.05


def test_each_frame_of_an_enhanced_object_has_its_own_rescale(tmp_path: Path) -> None:
    places = [(depth, rescaled(depth)) for depth in (3, 0, 4, 1, 2)]
    stored = replace(SERIES, values=SERIES.values + 100 * np.arange(5)[:, None, None])
    path = phantoms.save(made.enhanced(stored, places), tmp_path / "e.dcm")
    np.testing.assert_array_equal(volume_of([path]).shown, shown(SERIES.values))


def rescaled(depth: int) -> dict[str, Any]:
    """The functional group that takes 100 x `depth` away."""
    group = made.item(RescaleSlope=1, RescaleIntercept=-100 * depth)
    return {"PixelValueTransformationSequence": group}


def test_an_enhanced_object_may_hold_several_echoes_compressed(tmp_path: Path) -> None:
    groups = []
    for echo in (9.0, 3.0):
        for depth in range(5):
            groups.append((depth, {"MREchoSequence": made.item(EffectiveEchoTime=echo)}))
    both = made.enhanced(SERIES, groups)
    # the second half are the frames of the first echo
    stored = np.concatenate([SERIES.values[::-1], SERIES.values]).astype("<u2")
    phantoms.with_pixels(both, stored, "MONOCHROME2", frames=10)
    for name, dataset in (("plain", both), ("packed", phantoms.compressed(both, RLELossless))):
        found = volume_of([phantoms.save(dataset, tmp_path / f"{name}.dcm")])
        np.testing.assert_array_equal(found.shown, shown(SERIES.values))
        assert found.left_out == {}


def test_an_enhanced_object_over_the_cap_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = phantoms.save(made.enhanced(SERIES), tmp_path / "e.dcm")
    for cap in ("max_volume_bytes", "max_pixel_bytes"):
        with pytest.raises(Unusable) as refusal:
            volume_of([path], **{cap: 2 * SERIES.values.size - 1})
        assert refusal.value.reason is Reason.DECLARED_TOO_LARGE


def test_a_slice_that_was_cut_short_and_sent_again_enters_by_its_copy(tmp_path: Path) -> None:
    paths = made.write_series(tmp_path, SERIES)
    again = phantoms.save(made.slice_of(SERIES, 2, StationName="X"), tmp_path / "again.dcm")
    for broken, copy in ((paths[2], again), (again, paths[2])):
        whole = broken.read_bytes()
        broken.write_bytes(whole[:-900])
        found = volume_of([*paths, again])
        assert found.left_out == {[*paths, again].index(broken): Reason.TRUNCATED}
        np.testing.assert_array_equal(found.shown, shown(SERIES.values))
        # without a copy that can be read, the series is refused
        copy_whole = copy.read_bytes()
        copy.write_bytes(copy_whole[:-900])
        with pytest.raises(BadSlice):
            volume_of([*paths, again])
        broken.write_bytes(whole)
        copy.write_bytes(copy_whole)


def test_a_childs_marks_are_checked() -> None:
    assert decode.read_marks(["truncated"], b"\0\1") == {1: Reason.TRUNCATED}
    for codes, marks in ((["truncated"], b"\0\2"), (["truncated"], b"\1"), ("x", b"\0"), ([], b"")):
        with pytest.raises(ValueError):
            decode.read_marks(codes, marks)


def test_files_that_are_no_part_of_a_volume_have_their_reason(tmp_path: Path) -> None:
    paths = made.write_series(tmp_path, SERIES)
    again = phantoms.save(made.slice_of(SERIES, 2, StationName="X"), tmp_path / "again.dcm")
    phase = made.slice_of(SERIES, 1, ImageType=["ORIGINAL", "PRIMARY", "P"])
    found = volume_of([*paths, again, phantoms.save(phase, tmp_path / "phase.dcm")])
    assert found.left_out == {5: Reason.DUPLICATE, 6: Reason.OTHER_COMPONENT}
    np.testing.assert_array_equal(found.shown, shown(SERIES.values))


def test_the_slice_at_fault_is_named(tmp_path: Path) -> None:
    paths = made.write_series(tmp_path, SERIES)
    paths[3].write_bytes(paths[3].read_bytes()[:-500])
    with pytest.raises(BadSlice) as refusal:
        volume_of(paths)
    assert (refusal.value.reason, refusal.value.at) == (Reason.TRUNCATED, 3)


def test_a_volume_over_the_cap_is_refused_before_it_is_read(tmp_path: Path) -> None:
    paths = made.write_series(tmp_path, SERIES)
    with pytest.raises(Unusable) as refusal:
        volume_of(paths, max_volume_bytes=4 * SERIES.values.size - 1)
    assert refusal.value.reason is Reason.DECLARED_TOO_LARGE
    assert volume_of(paths, max_volume_bytes=4 * SERIES.values.size).refusal is Reason.NO_MASK


def cut(count: int = 40, seed: bytes = b"seed", size_px: int = 8) -> tuple[Any, Any, Any]:
    values = shown(SERIES.values)
    values[:, 20:] = 0  # the lower half is air
    mask = MASK.astype(bool)
    mask[:, 20:] = False
    mask[1, 0, 0] = True
    volume = Volume(values, mask, None, b"", (), look(values))
    return patches(volume, seed, count, size_px), values, mask


def test_half_of_the_patches_are_centred_on_vessels_and_half_lie_anywhere_but_in_air() -> None:
    found, values, mask = cut()
    assert (found.shape, found.dtype) == ((40, 8, 8, 2), np.uint8)
    assert set(np.unique(found[..., 1]).tolist()) == {0, 255}
    windows = np.lib.stride_tricks.sliding_window_view(values, (8, 8), axis=(1, 2))
    for number, patch in enumerate(found):
        ((depth, top, left),) = np.argwhere((windows == patch[..., 0]).all(axis=(3, 4)))
        np.testing.assert_array_equal(
            patch[..., 1], mask[depth, top : top + 8, left : left + 8] * 255
        )
        # the voxels whose centring leads to this window: one, or all that are clamped to it
        rows = range(0, 5) if top == 0 else [top + 4]
        columns = range(0, 5) if left == 0 else range(left + 4, 48) if left == 40 else [left + 4]
        chosen = mask if number < 20 else values > 0
        assert chosen[depth][np.ix_(rows, columns)].any()


def test_patches_cover_vessels_evenly() -> None:
    found, values, mask = cut(4000)
    centred = found[:2000]
    assert (centred[:, 4, 4, 1] == 255).mean() > 0.8  # the rest is clamped at a border
    for depth in range(1, 5):
        levels = set(np.unique(values[depth, :20]).tolist())
        of_slice = [set(np.unique(p[..., 0]).tolist()) <= levels | {0} for p in centred]
        assert np.mean(of_slice) >= 0.8 * mask[depth].sum() / mask.sum()


def test_the_choice_follows_from_the_seed_alone() -> None:
    assert (cut()[0] == cut()[0]).all()
    assert (cut()[0] != cut(seed=b"other")[0]).any()
    assert (cut(39)[0] == cut(40)[0]).all()  # ceil(39 / 2) of each kind


def test_a_scan_says_what_a_file_is(tmp_path: Path) -> None:
    (first, *_) = made.write_series(tmp_path, SERIES)
    seen = scan(str(first), caps())
    assert (seen.kind, seen.patient_id, seen.series, seen.frame) == (
        "slice",
        "VESSEL-0001",
        "2.25.101",
        "2.25.201",
    )
    drawn = scan(str(made.write_segmentation(tmp_path / "m.dcm", SERIES, MASK)), caps())
    assert (drawn.kind, drawn.series, drawn.frame) == ("segmentation", "2.25.101", "2.25.201")
    plain = scan(str(made.write_nifti(tmp_path / "m.nii.gz", made.nifti(SERIES, MASK))), caps())
    assert (plain.kind, plain.patient_id, plain.series) == ("nifti", "", "")


@pytest.mark.parametrize("seed", range(3))
def test_looks_of_strangers_do_not_correlate(seed: int) -> None:
    one, other = (look(shown(made.image(n))).ravel().astype(float) for n in (seed, seed + 50))
    assert np.corrcoef(one, other)[0, 1] < 0.5
    noisy = (
        look(shown(made.image(seed) + np.random.default_rng(9).integers(-20, 20, made.SHAPE)))
        .ravel()
        .astype(float)
    )
    assert np.corrcoef(one, noisy)[0, 1] > 0.997


def test_a_volume_takes_little_more_memory_than_its_own_values(tmp_path: Path) -> None:
    shape = (24, 256, 256)
    voxels = 24 * 256 * 256
    series = made.Series("A", made.image(1, shape))
    paths = made.write_series(tmp_path, series)
    mask = made.write_nifti(tmp_path / "m.nii", made.nifti(series, made.vessels(1, shape)))
    wide = {"max_volume_bytes": 4 * voxels, "max_pixel_bytes": 1 << 24, "max_file_bytes": 1 << 24}
    with made.peak_bytes() as peak:
        found = volume_of(paths, ("nifti", mask), **wide)
        assert peak() < 12 * voxels + (8 << 20)
    with made.peak_bytes() as peak:
        patches(found, b"seed", 100, 32)
        assert peak() < 4 * voxels + (1 << 20)
