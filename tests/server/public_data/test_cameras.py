"""Public photographs as other cameras would take them."""

from __future__ import annotations

import numpy as np
import torch

from common.models.look import Look, field_of, look_of
from server.pretrain import gan_state, gan_step
from server.pretrain.gan_plan import PretrainPlan
from server.pretrain.losses import reconstruction_loss
from server.public_data.cameras import (
    JITTER,
    all_in_look,
    cut,
    inscribed_disc,
    known_part,
    mean_look,
    other_cameras,
)

torch.set_num_threads(1)
SIZE_PX = 32
LOOK = Look(torch.tensor([[0.2, -0.3, -0.7]]), torch.tensor([[0.15, 0.12, 0.05]]))


def photographs(count: int, size_px: int = 2 * SIZE_PX) -> np.ndarray:
    """Discs of different colours with texture, cut above and below, uint8 [N, S, S, 3]."""
    random = np.random.default_rng(0)
    y, x = (np.mgrid[:size_px, :size_px] - (size_px - 1) / 2) / (size_px / 2)
    images = random.integers(40, 80, (count, size_px, size_px, 3))
    images += (random.integers(20, 120, (count, 1, 1, 3)) + 30 * x[..., None]).astype(int)
    lit = (x**2 + y**2 < 1) & (np.abs(y) < 0.85)
    return (images * lit[..., None]).astype(np.uint8)


def batch(count: int = 16) -> object:
    x = torch.from_numpy(photographs(count)).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    side = torch.arange(count) % 2
    return other_cameras(x, side, SIZE_PX, LOOK, torch.Generator().manual_seed(0))


SHOWN = batch()


def test_outside_the_field_and_the_inscribed_disc_everything_is_black() -> None:
    seen, wanted, field = SHOWN
    assert seen.shape == wanted.shape == (16, 3, SIZE_PX, SIZE_PX)
    assert float((field * (1 - inscribed_disc(SIZE_PX))).sum()) == 0
    assert torch.equal(cut(wanted, field), wanted)
    assert torch.equal(cut(seen, field), seen)
    assert float(wanted.abs().amax()) <= 1
    assert field.mean((1, 2, 3)).min() > 0.2


def test_no_pixel_of_a_field_is_mixed_with_the_black_around_it() -> None:
    """On an even photograph such a pixel would lie many deviations below the mean."""
    y, x = (np.mgrid[: 2 * SIZE_PX, : 2 * SIZE_PX] - SIZE_PX + 0.5) / SIZE_PX
    even = torch.from_numpy(np.where(x**2 + y**2 < 1, 0.2, -1.0)).float().expand(16, 3, -1, -1)
    side = torch.zeros(16, dtype=torch.long)
    _, wanted, field = other_cameras(even, side, SIZE_PX, LOOK, torch.Generator().manual_seed(0))
    mean, deviation = look_of(wanted, field)
    score = (wanted - mean[..., None, None]) / deviation[..., None, None]
    assert float((score * field).min()) > -3


def test_every_photograph_has_the_same_look_up_to_the_jitter() -> None:
    _, wanted, field = SHOWN
    found = look_of(wanted, field)
    assert float(((found.mean + 1) / (LOOK.mean + 1) - 1).abs().max()) < JITTER + 0.02
    assert float((found.deviation / LOOK.deviation - 1).abs().max()) < JITTER + 0.1


def test_grain_is_seen_and_not_wanted() -> None:
    seen, wanted, field = SHOWN
    grain = ((seen - wanted) * field).square().mean((1, 2, 3)).sqrt()
    assert 0 < float(grain.median()) < 0.05


def test_the_same_draw_shows_the_same_photographs() -> None:
    again = batch()
    assert all(torch.equal(a, b) for a, b in zip(SHOWN, again, strict=True))


def test_what_a_field_cuts_away_enters_no_loss() -> None:
    _, wanted, field = SHOWN
    counts = known_part(field)
    unknown = 1 - counts
    assert float(unknown.sum()) > 100
    made = torch.zeros_like(wanted)
    loss = reconstruction_loss(wanted, made, counts=counts)
    assert torch.equal(reconstruction_loss(wanted, made + 5 * unknown, counts=counts), loss)
    # the field and what lies outside the disc count
    assert reconstruction_loss(wanted, made + 5 * field, counts=counts) > loss
    corner = torch.zeros_like(field)
    corner[..., :2, :2] = 1
    assert reconstruction_loss(wanted, made + 5 * corner, counts=counts) > loss


def test_the_critic_sees_no_part_of_a_generated_image_that_a_field_cuts_away() -> None:
    plan = PretrainPlan(size_px=SIZE_PX, width=8, latent=16, encoder_width=8)
    networks = gan_state.begin(plan).networks
    made = torch.zeros(4, 3, SIZE_PX, SIZE_PX)
    part = type(SHOWN)(*(x[:4] for x in SHOWN))
    found = []
    for paint in (0.0, 3.0):
        images = made + paint * (1 - part.field)
        fakes = gan_step.Fakes(images, torch.zeros(4, 8, 16), [], torch.zeros(1, 16))
        draw = torch.Generator().manual_seed(0)
        found.append(gan_step._critic_losses(networks, part, fakes, draw))
    for name in ("feature", "adversarial"):
        assert torch.equal(found[0][name], found[1][name])


def test_photographs_of_one_look_keep_their_own_field() -> None:
    images = photographs(6)
    look = mean_look(images, np.ones(6))
    shown = all_in_look(images, look, SIZE_PX)
    assert shown.shape == (6, SIZE_PX, SIZE_PX, 3)
    x = torch.from_numpy(shown).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    found = look_of(x, field_of(x))
    assert float((found.mean - look.mean).abs().max()) < 0.05
    assert int(shown[:, :2].max()) == 0
    assert int(shown[:, SIZE_PX // 2].max()) > 50
