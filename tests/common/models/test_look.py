"""The look of photographs: what is field, what is look, and back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from common.models.look import LEAST_DEVIATION, Look, field_of, in_look, look_of


def photographs(count: int = 3, side: int = 32) -> Tensor:
    """Discs of random colour and texture on black."""
    draw = torch.Generator().manual_seed(4)
    places = torch.arange(side) - (side - 1) / 2
    disc = (places[:, None].square() + places.square() < (side / 2 - 2) ** 2).float()
    colour = torch.rand((count, 3, 1, 1), generator=draw) - 0.5
    texture = 0.1 * torch.randn((count, 3, side, side), generator=draw)
    return torch.where(disc > 0, (colour + texture).clamp(-0.9, 1), torch.tensor(-1.0))


def test_the_field_is_the_disc_without_its_outermost_pixel() -> None:
    x = photographs()
    lit = (x.amax(1, keepdim=True) > -0.95).float()
    field = field_of(x)
    inner = -torch.nn.functional.max_pool2d(-lit, 3, stride=1, padding=1)
    assert torch.equal(field, inner)
    assert 0.4 < float(field.mean()) < float(lit.mean())


def test_dark_spots_inside_are_field() -> None:
    x = photographs()
    whole = field_of(x)
    x[:, :, 15:17, 15:17] = -1.0
    assert torch.equal(field_of(x), whole)


def test_a_picture_without_black_is_field_up_to_its_border() -> None:
    field = field_of(torch.zeros(1, 1, 8, 8))
    assert float(field.sum()) == 36
    assert float(field[0, 0, 0].sum()) == 0


def test_another_look_is_reached_and_left_again() -> None:
    x = photographs()
    field = field_of(x)
    own = look_of(x, field)
    wanted = Look(torch.tensor([[0.1, -0.3, -0.6]]), torch.tensor([[0.2, 0.1, 0.05]]))
    moved = in_look(x, field, own, wanted)
    found = look_of(moved, field)
    torch.testing.assert_close(found.mean, wanted.mean.expand(3, -1))
    torch.testing.assert_close(found.deviation, wanted.deviation.expand(3, -1))
    torch.testing.assert_close(in_look(moved, field, wanted, own), x)
    assert torch.equal(moved[:, :, 0, 0], x[:, :, 0, 0])


def test_no_image_influences_another() -> None:
    x = photographs()
    field = field_of(x)
    together = look_of(x, field)
    alone = look_of(x[1:2], field_of(x[1:2]))
    assert torch.equal(together.mean[1:2], alone.mean)
    assert torch.equal(together.deviation[1:2], alone.deviation)


@pytest.mark.parametrize("level", [-1.0, 0.3])
def test_flat_images_have_a_finite_look(level: float) -> None:
    x = torch.full((1, 3, 16, 16), level)
    field = field_of(x)
    own = look_of(x, field)
    assert torch.allclose(own.mean, torch.full((1, 3), level))
    assert torch.equal(own.deviation, torch.full((1, 3), LEAST_DEVIATION))
    assert torch.isfinite(in_look(x, field, own, Look(own.mean + 1, own.deviation))).all()
