"""client/synthesize/coarse.py and what appearance.py makes of it: residuals of at least k."""

import numpy as np
import pytest
import torch

from client.state.group_store import Group, Stratum
from client.synthesize import coarse
from client.synthesize.appearance import Appearance, Shown, end_softly, gather_appearances
from client.synthesize.group import Roster
from client.synthesize.invert import Inversion
from common.errors import PolicyError
from common.models.look import Look, field_of

SIZE = 32
CELLS = 4
MEMBERS = tuple("abcde")
GROUP = Group(MEMBERS, Stratum(0), 5)
WHOLE = torch.ones(1, SIZE, SIZE)  # the field
LOOK = Look(torch.zeros(1, 3), torch.full((1, 3), 0.3))


def residuals(x: torch.Tensor, fields: torch.Tensor) -> torch.Tensor:
    """Of images whose codes give grey."""
    return coarse.measure_residuals(x, torch.zeros_like(x), fields, CELLS)


def everywhere(count: int = 1) -> torch.Tensor:
    return torch.ones(count, 1, SIZE, SIZE)


def test_a_cell_holds_its_mean_over_what_was_photographed() -> None:
    x = torch.full((1, 3, SIZE, SIZE), 0.25)
    fields = everywhere()
    fields[..., :4] = 0  # half of the first column of cells
    x[..., :4] = 9.0
    found = residuals(x, fields)
    np.testing.assert_allclose(found[0, :3], 0.25, rtol=1e-6)
    assert bool((found[0, 3] == 1).all())


def test_a_cell_that_was_not_photographed_is_not_known() -> None:
    x = torch.full((1, 3, SIZE, SIZE), 0.25)
    fields = everywhere()
    fields[:, :, :8, :8] = 0
    fields[:, :, :8, :6] = 0
    found = residuals(x, fields)
    assert found[0, :, 0, 0].tolist() == [0, 0, 0, 0]
    assert float(found[0, 3].sum()) == CELLS**2 - 1
    mean, count = coarse.mean_known(torch.cat([found, residuals(x, everywhere())]))
    assert float(count[0, 0]) == 1 and float(count[1, 1]) == 2
    np.testing.assert_allclose(mean, 0.25, rtol=1e-6)


def test_a_plan_without_a_grid_adds_nothing() -> None:
    x = torch.rand(2, 3, SIZE, SIZE)
    none = coarse.measure_residuals(x, torch.zeros_like(x), everywhere(2), 0)
    mean, _ = coarse.mean_known(none)
    assert torch.equal(coarse.add_residual(x, mean, everywhere(2)), x)


def test_no_image_influences_anothers_residual() -> None:
    x = torch.rand(3, 3, SIZE, SIZE)
    together = residuals(x, everywhere(3))
    assert torch.equal(together[1:2], residuals(x[1:2], everywhere()))


def test_a_slope_comes_back_and_a_detail_does_not() -> None:
    slope = torch.linspace(-0.4, 0.4, SIZE).expand(1, 3, SIZE, SIZE)
    mean, _ = coarse.mean_known(residuals(slope, everywhere()))
    back = coarse.add_residual(torch.zeros_like(slope), mean, everywhere())
    inner = slice(8, SIZE - 8)
    assert float((back - slope)[..., inner].abs().max()) < 0.03
    checkers = (torch.arange(SIZE)[:, None] + torch.arange(SIZE)) % 2 - 0.5
    mean, _ = coarse.mean_known(residuals(checkers.expand(1, 3, SIZE, SIZE), everywhere()))
    assert float(mean.abs().max()) < 1e-6


def test_nothing_is_added_outside_the_field() -> None:
    fields = everywhere()
    fields[..., :5] = 0
    made = coarse.add_residual(torch.zeros(1, 3, SIZE, SIZE), torch.ones(3, CELLS, CELLS), fields)
    assert float(made[..., :5].abs().max()) == 0
    assert float(made[..., 5:].min()) == pytest.approx(1)


def inversion(rows: torch.Tensor) -> Inversion:
    """An inversion of which looks and residuals matter."""
    count = len(rows)
    none = np.zeros((count, 1))
    return Inversion(
        none,
        none,
        np.zeros((count, 1, 1), np.float32),
        np.zeros(count),
        np.ones(count, np.bool_),
        np.full((count, 2, 3), 0.3, np.float32),
        coarse.residual_rows(rows),
    )


def gather(rows: torch.Tensor, lit: np.ndarray | None = None) -> Appearance:
    """Of five patients, the first with two images; `lit` bool [6, S, S]: where each is lit."""
    images = ((0, 1), *((i,) for i in range(2, 6)))
    who = Roster(MEMBERS, (Stratum(0),) * 5, images)
    pictures = np.full((6, SIZE, SIZE, 3), 128, np.uint8)
    if lit is not None:
        pictures[~lit] = 0
    [found] = gather_appearances([GROUP], who, pictures, inversion(rows))
    return found


def test_the_residual_weighs_each_patient_alike() -> None:
    values = torch.tensor([0.1, 0.3, 0.5, 0.0, -0.2, 0.4])
    x = values[:, None, None, None].expand(-1, 3, SIZE, SIZE)
    found = gather(residuals(x, everywhere(6)))
    np.testing.assert_allclose(found.residual, (0.2 + 0.5 + 0 - 0.2 + 0.4) / 5, rtol=1e-5)
    assert bool((found.known == 5).all())


def test_a_cell_that_fewer_than_k_patients_know_is_not_used() -> None:
    x = torch.full((6, 3, SIZE, SIZE), 0.25)
    fields = everywhere(6)
    fields[2, :, :8, :8] = 0  # one patient's only image
    fields[0, :, -8:, -8:] = 0  # one of the first patient's two
    found = gather(residuals(x, fields))
    assert float(found.residual[:, 0, 0].abs().max()) == 0 and float(found.known[0, 0]) == 0
    np.testing.assert_allclose(found.residual[:, -1, -1], 0.25, rtol=1e-6)


def test_a_residual_has_k_distinct_patients_behind_each_cell_or_is_none() -> None:
    residual = torch.full((3, CELLS, CELLS), 0.1)
    known = torch.full((CELLS, CELLS), 5.0)
    assert Appearance(GROUP, LOOK, 5, residual, known, WHOLE)
    known[1, 1] = 4
    with pytest.raises(PolicyError) as refused:
        Appearance(GROUP, LOOK, 5, residual, known, WHOLE)
    assert refused.value.code == "E-GROUP-SIZE"
    residual[:, 1, 1] = 0
    assert Appearance(GROUP, LOOK, 5, residual, known, WHOLE)


def test_a_generated_image_is_shown_with_the_groups_residual() -> None:
    image = torch.zeros(1, 3, SIZE, SIZE)
    residual = torch.zeros(3, CELLS, CELLS)
    residual[:, :, :2] = 0.2
    known = torch.full((CELLS, CELLS), 5.0)
    shown = Shown(LOOK, (Appearance(GROUP, LOOK, 5, residual, known, WHOLE),)).show(0, image)
    assert float(shown[0, :, 12:20, 2:6].mean()) == pytest.approx(0.2, abs=0.02)
    assert float(shown[0, :, 12:20, -6:-2].mean()) == pytest.approx(0.0, abs=0.02)


def test_an_average_is_cut_as_at_least_half_of_the_patients_cameras_cut() -> None:
    x = torch.full((6, 3, SIZE, SIZE), 0.25)
    lit = np.ones((6, SIZE, SIZE), np.bool_)
    lit[2:5, :8] = False  # three of five patients
    lit[2:4, -8:] = False  # two of five
    lit[0, :, :8] = False  # half of the first patient's
    found = gather(residuals(x, everywhere(6)), lit)
    assert float(found.field[0, 1:8, 10:22].max()) == 0
    assert float(found.field[0, 10:31, 1:31].min()) == 1
    image = torch.full((1, 3, SIZE, SIZE), 0.5)
    whole, fields = found.complete(image)
    assert float(fields[0, :, :8].max()) == 0
    shown = end_softly(whole, found.field)
    assert float(shown[0, :, :7].max()) == -1
    # beside a straight edge, as bright as public photographs are there
    assert float(shown[0, :, 8, 10:22].mean()) == pytest.approx(0.9 * 1.75 - 1)
    assert float(shown[0, :, 10:30, 1:31].min()) == pytest.approx(0.75)


def test_the_edge_of_a_field_has_its_neighbours_colour_as_lit_as_on_photographs() -> None:
    """Also where the generator drew something else beyond it, or ended its own disc in it."""
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    middle = (SIZE - 1) / 2
    field = ((y - middle) ** 2 + (x - middle) ** 2 <= 10**2).float()[None]
    inner = 1 - torch.nn.functional.max_pool2d(1 - field[None], 3, 1, 1)[0]
    drawn = torch.where(inner > 0, 0.2, torch.where(field > 0, -0.6, 0.9))
    images = drawn[None].expand(1, 3, -1, -1).clone()
    images[:, :, : SIZE // 2] -= 0.4
    shown = end_softly(images, field)
    torch.testing.assert_close(shown * inner, images * inner)
    outermost = (field - inner)[0] > 0
    for half, value in ((y < 8, -0.2), (y > 24, 0.2)):
        pixels = shown[0, 0][outermost & half]
        torch.testing.assert_close(pixels, torch.full_like(pixels, value))
    edge = torch.nn.functional.max_pool2d(field[None], 3, 1, 1)[0] - field
    top = (shown[0, 0] + 1)[(edge[0] > 0) & (y < 8)] / 0.8
    bottom = (shown[0, 0] + 1)[(edge[0] > 0) & (y > 24)] / 1.2
    for lit in (top, bottom):  # corners less, straight pieces more
        assert 0.3 < float(lit.min()) < 0.5 < float(lit.mean()) < 0.95
        assert float(lit.max()) <= 1.01
    assert float(shown[0][:, (field + edge)[0] == 0].max()) == -1


def test_a_disc_that_touches_the_pictures_border_does_not_end_there_in_a_line() -> None:
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    disc = torch.full((1, 3, SIZE, SIZE), -1.0)
    disc[:, :, (y - 15.5) ** 2 + (x - 15.5) ** 2 <= 16**2] = 0.2
    shown = end_softly(disc, field_of(disc)[0])
    top = (shown[0, 0, 0] + 1) / 1.2
    assert float(top[15]) == pytest.approx(0.65, abs=0.01)
    assert float(top[:9].max()) == 0 and float(top[-9:].max()) == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_a_field_that_fills_the_picture_has_no_edge(channels: int) -> None:
    """No field has the picture's own border (field_of); a radiograph goes on there."""
    image = torch.linspace(-0.5, 0.5, SIZE).expand(1, channels, SIZE, SIZE)
    field = field_of(image)[0]
    assert float(field[0, 0].max()) == 0
    assert torch.equal(end_softly(image, field), image)
