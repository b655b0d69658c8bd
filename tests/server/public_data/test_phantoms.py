"""Vessel phantoms: repeatable, with exact masks, of two styles; their patches."""

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

from common.errors import ConfigurationError
from server.public_data import phantoms as vessel_phantoms
from server.public_data.phantoms import STYLES, Phantom, Style, patches, volume

SHAPE = (6, 40, 40)


def made(seed: int, style: str = "public") -> Phantom:
    return volume(np.random.default_rng(seed), STYLES[style], SHAPE)


def dot(side: int = 40, place: tuple[int, int, int] = (2, 20, 19)) -> Phantom:
    """A grey ramp with one vessel voxel."""
    mask = np.zeros((4, side, side), np.uint8)
    mask[place] = 1
    image = np.linspace(0.2, 0.6, mask.size, dtype=np.float32).reshape(mask.shape)
    return Phantom(image, mask)


@pytest.mark.parametrize("style", STYLES)
def test_a_phantom_has_its_shape_its_ranges_and_a_vessel(style: str) -> None:
    for seed in range(3):
        phantom = made(seed, style)
        assert phantom.image.shape == phantom.mask.shape == SHAPE
        assert phantom.image.dtype == np.float32 and phantom.mask.dtype == np.uint8
        assert phantom.image.min() >= 0 and phantom.image.max() <= 1
        assert set(np.unique(phantom.mask)) == {0, 1}


def test_the_same_state_gives_the_same_phantom_and_another_state_another() -> None:
    one, again, other = made(0), made(0), made(1)
    assert np.array_equal(one.image, again.image) and np.array_equal(one.mask, again.mask)
    assert not np.array_equal(one.mask, other.mask) and not np.array_equal(one.image, other.image)


def test_a_phantom_uses_no_randomness_but_the_generators() -> None:
    one = made(0)
    np.random.seed(1)
    assert np.array_equal(made(0).image, one.image)


def test_the_mask_is_exactly_what_lies_within_a_radius_of_the_centre_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    points = np.column_stack(
        [rng.uniform(-3, n + 3, 30) for n in SHAPE] + [rng.uniform(0.6, 3.4, 30)]
    )
    monkeypatch.setattr(vessel_phantoms, "_grow_tree", lambda rng, style, shape: points)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), -1).astype(float)
    far = np.linalg.norm(grid[:, :, :, None] - points[:, :3], axis=-1) / points[:, 3]
    plain = volume(np.random.default_rng(0), STYLES["public"], SHAPE, magnify=1)
    assert np.array_equal(plain.mask, (far <= 1).any(-1).astype(np.uint8))


@pytest.mark.parametrize("magnify", [1, 2])
def test_where_no_centre_line_meets_a_voxel_there_still_is_one(
    magnify: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    thin: Style = dataclasses.replace(STYLES["public"], radius=(1e-3, 1e-3))
    assert 0 < volume(np.random.default_rng(0), thin, SHAPE, magnify).mask.sum() <= 4
    faint = np.array([[2.0, 10.0, 10.85, 0.2]])  # 0.68 in one voxel, below 0.5 once magnified
    monkeypatch.setattr(vessel_phantoms, "_grow_tree", lambda rng, style, shape: faint)
    assert volume(np.random.default_rng(0), thin, SHAPE, magnify).mask.any()


def test_vessels_are_brighter_than_what_is_around_them() -> None:
    for style in STYLES:
        phantom = made(3, style)
        vessel = phantom.mask == 1
        assert phantom.image[vessel].mean() > phantom.image[~vessel].mean() + 0.1


def spread(style: str) -> NDArray[np.float64]:
    """Mean grey and mean local noise over a few phantoms."""
    images = [made(seed, style) for seed in range(4)]
    grey = np.mean([p.image[p.mask == 0].mean() for p in images])
    rough = np.mean([np.diff(p.image, axis=2)[p.mask[..., 1:] == 0].std() for p in images])
    return np.array([grey, rough])


def test_the_two_styles_differ_in_contrast_noise_and_vessels() -> None:
    hospital, public = STYLES["hospital"], STYLES["public"]
    for field in ("radius", "brightness", "tissue", "noise", "blobs"):
        assert getattr(hospital, field) != getattr(public, field), field
    (grey, rough), (other_grey, other_rough) = spread("hospital"), spread("public")
    assert abs(grey - other_grey) > 0.01 and rough > other_rough * 1.2


# --- patches ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size_px", [32, 40])
def test_patches_are_windows_of_the_phantom_with_masks_of_0_and_255(size_px: int) -> None:
    phantom = made(0)
    found = patches(phantom, 5, size_px, np.random.default_rng(0))
    assert found.shape == (5, size_px, size_px, 2) and found.dtype == np.uint8
    assert set(np.unique(found[..., 1])) <= {0, 255}
    windows = np.lib.stride_tricks.sliding_window_view(
        phantom.mask * np.uint8(255), (1, size_px, size_px)
    )
    windows = windows.reshape(-1, size_px, size_px)
    for patch in found[..., 1]:
        assert (windows == patch).all((1, 2)).any()


@pytest.mark.parametrize("count", [1, 6, 7])
def test_half_of_the_patches_are_centred_on_a_vessel(count: int) -> None:
    """One vessel voxel among 6,400: by chance no patch hits it (repeatable seed)."""
    found = patches(dot(), count, 16, np.random.default_rng(0))
    centred = found[:, 8, 8, 1] == 255
    assert centred.tolist() == [i < (count + 1) // 2 for i in range(count)]


def test_a_patch_at_the_border_still_holds_its_vessel() -> None:
    found = patches(dot(place=(0, 0, 39)), 2, 16, np.random.default_rng(0))
    assert found[0, 0, 15, 1] == 255 and found[0, ..., 1].sum() == 255


def test_the_image_spans_the_phantoms_own_range_and_a_constant_one_does_not_fail() -> None:
    phantom = dot(side=16, place=(0, 8, 8))
    found = patches(phantom, 40, 16, np.random.default_rng(0))[..., 0]
    assert found.min() == 0 and found.max() == 255
    flat = Phantom(np.full_like(phantom.image, 0.3), phantom.mask)
    assert not patches(flat, 2, 16, np.random.default_rng(0))[..., 0].any()


def test_the_same_state_gives_the_same_patches() -> None:
    one, again, other = (patches(made(0), 4, 32, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert np.array_equal(one, again) and not np.array_equal(one, other)


def test_patches_larger_than_the_phantom_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="64 px, expected at most 40 px"):
        patches(made(0), 2, 64, np.random.default_rng(0))
