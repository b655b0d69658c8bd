"""The look of pairs: six means over pixels, and what their average says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from common.models.pair_look import (
    LEAST_SHARE,
    LEAST_SPREAD,
    SCALES,
    UNITS,
    Tone,
    look_of,
    pulls,
    tone_of,
)
from common.models.sizes import LOOK_NUMBERS

SIDE = 16


def pairs(count: int = 6, seed: int = 0) -> Tensor:
    """Random images, some beyond [-1, 1], with random masks of -1 and 1."""
    random = torch.Generator().manual_seed(seed)
    image = torch.randn(count, 1, SIDE, SIDE, generator=random)
    mask = torch.where(torch.rand(count, 1, SIDE, SIDE, generator=random) < 0.3, 1.0, -1.0)
    return torch.cat([image, mask], 1)


def plainly(pair: Tensor) -> list[float]:
    """The look of one pair, pixel by pixel."""
    image, mask = pair[0].clamp(-1, 1).tolist(), (pair[1] > 0).tolist()
    pixels = [
        (x, m) for xs, ms in zip(image, mask, strict=True) for x, m in zip(xs, ms, strict=True)
    ]
    marked = [x for x, m in pixels if m]
    steps = []
    for i in range(SIDE):
        for j in range(SIDE):
            for a, b in ((i + 1, j), (i, j + 1)):
                if a < SIDE and b < SIDE and not (mask[i][j] or mask[a][b]):
                    steps.append(abs(image[a][b] - image[i][j]))
    share = len(marked) / SIDE**2
    ground = sum(x for x, m in pixels if not m) / max(1, len(pixels) - len(marked))
    contrast = sum(marked) / max(1, len(marked)) - ground
    grain = sum(steps) / max(1, len(steps))
    rest = 1 - share
    return [
        share,
        share * contrast,
        share * contrast**2,
        rest * ground,
        rest * ground**2,
        grain,
    ]


def said(tone: Tone) -> list[float]:
    return [float(value) for value in tone]


def test_a_look_is_its_six_means_in_their_units() -> None:
    given = pairs()
    expected = np.array([plainly(pair) for pair in given]) / UNITS
    assert LOOK_NUMBERS == len(UNITS) == len(SCALES) == 6
    assert np.allclose(look_of(given).numpy(), expected, atol=1e-5)
    # patients and items are axes like any other
    assert torch.allclose(look_of(given.view(2, 3, 2, SIDE, SIDE)).view(6, 6), look_of(given))


@pytest.mark.parametrize("value", [-1.0, 1.0])
def test_a_mask_that_marks_nothing_or_all_has_a_look(value: float) -> None:
    given = pairs(2)
    given[:, 1] = value
    expected = np.array([plainly(pair) for pair in given]) / UNITS
    assert np.allclose(look_of(given).numpy(), expected, atol=1e-5)
    assert np.isfinite(said(tone_of(look_of(given).mean(0)))).all()


def test_a_look_depends_on_its_own_pair_alone() -> None:
    given = pairs()
    changed = given.clone()
    changed[2] = pairs(1, seed=9)[0]
    same = torch.tensor([0, 1, 3, 4, 5])
    assert torch.equal(look_of(given)[same], look_of(changed)[same])
    assert not torch.equal(look_of(given)[2], look_of(changed)[2])


def test_an_average_says_share_contrast_ground_and_grain() -> None:
    """Every marked pixel counts once in the contrast, so a pair of few counts little."""
    contrasts = np.array([0.5, 0.9, 0.7, 0.7])
    grounds = np.array([-0.3, -0.5, -0.1, -0.3])
    given = torch.full((4, 2, SIDE, SIDE), -1.0)
    for pair, contrast, ground in zip(given, contrasts, grounds, strict=True):
        pair[1, :4] = 1
        pair[0] = float(ground)
        pair[0, :4] = float(ground + contrast)
    given[0, 1, 8:] = 1  # as many more, of the same level
    given[0, 0, 8:] = 0.2
    tone = tone_of(look_of(given).mean(0))

    def moments(values: Any, weights: Any) -> tuple[float, float]:
        mean = float((weights * values).sum() / weights.sum())
        return mean, float(np.sqrt((weights * (values - mean) ** 2).sum() / weights.sum()))

    marked = np.array([12, 4, 4, 4])
    expected = [24 / 64, *moments(contrasts, marked), *moments(grounds, 16 - marked), 0.0]
    assert said(tone) == pytest.approx(expected, abs=1e-5)


def test_a_noisy_look_still_says_something_finite() -> None:
    for look in (torch.zeros(6), torch.full((6,), -3.0), torch.full((6,), 40.0)):
        tone = tone_of(look)
        assert np.isfinite(said(tone)).all() and min(said(tone)[2::2]) >= 0.999 * LEAST_SPREAD
    assert float(tone_of(torch.zeros(6)).contrast) == 0.0
    low = tone_of(torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0, 0.0]))
    assert float(low.contrast) == pytest.approx(UNITS[1] / LEAST_SHARE)


def test_pairs_are_pulled_by_their_miss_and_not_where_they_have_the_look() -> None:
    """Twice the same half: what is seen in one is missed in the other."""
    image = torch.cat([pairs(4)] * 2)[:, :1].requires_grad_()
    mask = torch.cat([pairs(4)] * 2)[:, 1:].requires_grad_()

    def slopes(look: Tensor) -> tuple[Tensor, Tensor]:
        given = torch.cat([image, mask], 1)
        share, *others = pulls(given, look)
        rest = torch.stack(others).sum()
        (by_mask,) = torch.autograd.grad(share, mask, retain_graph=True)
        (by_image,) = torch.autograd.grad(rest, image)
        return by_mask, by_image

    own = look_of(torch.cat([image, mask], 1)).mean(0).detach()
    assert max(float(slope.abs().max()) for slope in slopes(own)) < 1e-6
    for number in range(6):
        more = own.clone()
        more[number] += 0.1
        assert slopes(more)[min(number, 1)].abs().max() > 1e-4


def test_a_pull_is_not_to_where_batches_differ_less() -> None:
    """The mean of masks is asked for; the larger it is, the more two batches of them differ."""
    random = torch.Generator().manual_seed(0)
    share = torch.tensor(0.2, requires_grad=True)
    slopes = []
    for _ in range(4000):
        marks = share * torch.rand(2, 1, 1, 1, generator=random).expand(2, 1, 4, 4) * 2
        hard = torch.ones_like(marks)  # which pixels are marked does not matter here
        mask = 2 * marks - 1
        given = torch.cat([hard, mask], 1)
        pull = pulls(given, torch.tensor([0.2 / UNITS[0], 0.0, 0.0, 0.0, 0.0, 0.0]))[0]
        slopes.append(torch.autograd.grad(pull, share)[0])
    found = torch.stack(slopes)
    assert abs(float(found.mean())) < 4 * float(found.std()) / len(found) ** 0.5


def test_the_share_pulls_the_mask_and_all_else_the_image() -> None:
    given = pairs()
    look = look_of(given).mean(0) + 1  # all is too little
    image = given[:, :1].clone().requires_grad_()
    mask = given[:, 1:].clone().requires_grad_()
    share, *others = pulls(torch.cat([image, mask], 1), look)
    rest = torch.stack(others).sum()
    (by_share,) = torch.autograd.grad(share, mask, retain_graph=True)
    assert float(by_share.max()) < 0  # more should be marked
    for loss, parameter in ((share, image), (rest, mask)):
        (none,) = torch.autograd.grad(loss, parameter, retain_graph=True)
        assert not none.any()
    (by_rest,) = torch.autograd.grad(rest, image)
    assert by_rest.any()
