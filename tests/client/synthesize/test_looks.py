"""Looks: what one camera's photograph is in the generator's look, and who counts as gradable."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from client.state.group_store import Group, Stratum
from client.synthesize import looks
from client.synthesize.appearance import Appearance, Shown, gather_appearances
from client.synthesize.group import Roster
from client.synthesize.invert import Inversion
from common.errors import Bug, PolicyError
from common.models.images import to_uint8, to_unit
from common.models.look import Look, average_looks, look_of

torch.set_num_threads(1)
COMMON = Look(torch.tensor([[0.0, -0.2, -0.3]]), torch.tensor([[0.2, 0.15, 0.1]]))
MEMBERS = tuple("abcde")


def photographs(count: int = 6, size: int = 32) -> np.ndarray:
    """Discs of coarse and fine texture on black, far from every end of the range."""
    random = torch.Generator().manual_seed(3)
    coarse = F.interpolate(torch.randn(count, 3, 4, 4, generator=random), size, mode="bilinear")
    fine = 0.15 * torch.randn(count, 3, size, size, generator=random)
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, size),) * 2, indexing="ij")
    disc = (x.square() + y.square() < 0.8).float()
    lit = (0.15 * coarse + 0.3 * fine - 0.1).clamp(-0.8, 0.8)
    return to_uint8(lit * disc - (1 - disc))


def another_camera(images: np.ndarray) -> np.ndarray:
    """The same scenes by a camera of another colour and contrast."""
    x = to_unit(images)
    lit = (x.amax(1, keepdim=True) > -0.95).float()
    gain = torch.tensor([0.6, 0.8, 0.5]).view(1, 3, 1, 1)
    shift = torch.tensor([-0.2, 0.1, 0.05]).view(1, 3, 1, 1)
    return to_uint8((x * gain + shift) * lit - (1 - lit))


def test_one_scene_by_two_cameras_is_one_image_for_the_networks() -> None:
    here = looks.look_at(to_unit(photographs()), COMMON)
    there = looks.look_at(to_unit(another_camera(photographs())), COMMON)
    assert float(((here.images - there.images) * here.fields).abs().max()) < 0.05
    assert float((here.own.mean - there.own.mean).abs().max()) > 0.1


def test_shown_in_its_own_look_an_image_is_itself_again() -> None:
    x = to_unit(photographs())
    seen = looks.look_at(x, COMMON)
    back = looks.in_look(seen.images, seen.fields, COMMON, seen.own)
    assert float((back - x).abs().max()) < 0.02


def test_the_relative_error_counts_the_field_alone_in_the_images_own_deviation() -> None:
    seen = looks.look_at(to_unit(photographs()), COMMON)
    x, fields = seen.images, seen.fields
    assert looks.relative_errors(x, x, fields).max() == 0
    assert looks.relative_errors(x + 9 * (1 - fields), x, fields).max() == 0
    flat = look_of(x, fields).mean[:, :, None, None].expand_as(x)
    np.testing.assert_allclose(looks.relative_errors(flat, x, fields), 1, rtol=1e-5)


def test_a_look_that_is_averaged_weighs_each_alike_and_deviations_in_logarithms() -> None:
    two = Look(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.1], [0.4]]))
    average = average_looks(two)
    np.testing.assert_allclose(average.mean, [[0.5]])
    np.testing.assert_allclose(average.deviation, [[0.2]], rtol=1e-6)


def test_dark_blurred_and_saturated_images_lack_content_and_photographs_do_not() -> None:
    sharp = photographs()
    x = to_unit(sharp)
    lit = (x.amax(1, keepdim=True) > -0.95).float()
    near = F.avg_pool2d(F.pad(lit, (10,) * 4), 21, stride=1)
    blurred = F.avg_pool2d(F.pad(x * lit, (10,) * 4), 21, stride=1) / near * lit - (1 - lit)
    dark = (sharp * 0.03).astype(np.uint8)
    saturated = np.clip(sharp.astype(int) * 6, 0, 255).astype(np.uint8)
    assert not looks.lack_content(sharp).any()
    assert not looks.lack_content(another_camera(sharp)).any()
    small = sharp.copy()
    small[:, :23] = 0
    noise = np.random.default_rng(0).integers(253, 256, sharp.shape).astype(np.uint8)
    for empty in (dark, to_uint8(blurred), saturated, small, noise):
        assert looks.lack_content(empty).all()


NONE = torch.zeros(3, 1, 1)  # no residual
WHOLE = torch.ones(1, 32, 32)  # the field


def inversion(rows: np.ndarray, accepted: np.ndarray | None = None) -> Inversion:
    """An inversion of which only the looks matter."""
    count = len(rows)
    none = np.zeros((count, 1))
    codes = np.zeros((count, 1, 1), np.float32)
    kept = np.ones(count, np.bool_) if accepted is None else accepted
    coarse = np.zeros((count, 4, 1, 1), np.float32)
    return Inversion(none, none, codes, np.zeros(count), kept, rows, coarse)


def members(count: int = 5) -> Roster:
    """Patient 0 has two photographs, the others one."""
    rows = ((0, 1), *((i,) for i in range(2, count + 1)))
    return Roster(MEMBERS[:count], (Stratum(0),) * count, rows)


def test_an_appearance_weighs_each_patient_alike_whatever_the_number_of_photographs() -> None:
    rows = np.random.default_rng(0).uniform(0.1, 0.9, (6, 2, 3)).astype(np.float32)
    [found] = gather_appearances(
        [Group(MEMBERS, Stratum(0), 5)], members(), photographs(6), inversion(rows)
    )
    means = np.stack([rows[:2, 0].mean(0), *rows[2:, 0]])
    logs = np.stack([np.log(rows[:2, 1]).mean(0), *np.log(rows[2:, 1])])
    np.testing.assert_allclose(found.look.mean[0], means.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.look.deviation[0], np.exp(logs.mean(0)), rtol=1e-5)


def test_an_appearance_has_k_distinct_patients_behind_it_or_is_none() -> None:
    group = Group(MEMBERS, Stratum(0), 5)
    look = Look(torch.zeros(1, 3), torch.ones(1, 3))
    assert Appearance(group, look, 5, NONE, NONE[0], WHOLE)
    with pytest.raises(PolicyError) as refused:
        Appearance(group, look, 4, NONE, NONE[0], WHOLE)
    assert refused.value.code == "E-GROUP-SIZE"
    with pytest.raises(Bug, match="expected a Group"):
        Appearance(MEMBERS, look, 5, NONE, NONE[0], WHOLE)  # type: ignore[arg-type]
    with pytest.raises(Bug, match="not finite"):
        Appearance(
            group, look._replace(mean=torch.full((1, 3), torch.nan)), 5, NONE, NONE[0], WHOLE
        )


def test_a_rejected_photograph_gives_no_look() -> None:
    rows = np.ones((6, 2, 3), np.float32)
    accepted = np.ones(6, np.bool_)
    accepted[1] = False
    with pytest.raises(Bug, match="rejected image"):
        gather_appearances(
            [Group(MEMBERS, Stratum(0), 5)], members(), photographs(6), inversion(rows, accepted)
        )


def test_a_generated_image_takes_the_groups_look() -> None:
    wanted = Look(torch.tensor([[-0.2, -0.3, -0.5]]), torch.tensor([[0.15, 0.15, 0.15]]))
    shown = Shown(
        COMMON, (Appearance(Group(MEMBERS, Stratum(0), 5), wanted, 5, NONE, NONE[0], WHOLE),)
    )
    made = looks.look_at(to_unit(photographs()), COMMON)
    image = shown.show(0, made.images)
    own = look_of(image, made.fields)
    assert float((own.mean - wanted.mean).abs().max()) < 0.02
    assert float((own.deviation - wanted.deviation).abs().max()) < 0.02


def test_the_border_of_a_field_is_dyed_and_black_stays_black() -> None:
    """A border pixel mixes the field with black; it must keep no colour of the generator."""
    wanted = Look(torch.tensor([[-0.6, -0.2, -0.3]]), torch.tensor([[0.2, 0.15, 0.1]]))
    shown = Shown(
        COMMON,
        (Appearance(Group(MEMBERS, Stratum(0), 5), wanted, 5, NONE, NONE[0], WHOLE[:, :8, :8]),),
    )
    image = torch.full((1, 3, 8, 8), -1.0)
    image[:, :, 2:6, 2:6] = COMMON.mean.view(1, 3, 1, 1)
    image[:, :, 2] = (COMMON.mean.view(1, 3, 1) - 1) / 2
    image[:, 2, 0] += 0.04  # a tint of one channel is no field
    out = shown.show(0, image)
    assert float(out[0, :, 0].max()) == -1
    assert float(out[0, 0, 2, 4]) == pytest.approx((-0.6 - 1) / 2, abs=0.01)
