"""Views of a chest film keep ingest's frame, and say nothing that no film could show."""

import numpy as np
import pytest
import torch

from server.public_data.film import Changes, film_box, film_boxes, film_views

SIDE = 32
NONE = Changes(0, 0, 0, 0, 0, 0, 0, 0)


def films(count: int = 6) -> np.ndarray:
    """Films [N, S, S, 1] with black above and below, darker on one side."""
    images = np.zeros((count, SIDE, SIDE, 1), np.uint8)
    images[:, 4:28] = np.linspace(60, 220, SIDE).astype(np.uint8)[None, None, :, None]
    return images


def views(changes: Changes, count: int = 6, seed: int = 0) -> np.ndarray:
    images = films(count)
    made = film_views(
        torch.from_numpy(images), film_boxes(images), np.random.default_rng(seed), changes
    )
    return made.numpy()


def test_the_film_is_found_between_black_sides_and_a_dark_square_is_its_own_film() -> None:
    assert film_box(films()[0, ..., 0]) == (4, 28, 0, SIDE)
    spot = np.zeros((SIDE, SIDE), np.uint8)
    spot[3:6, 3:6] = 200
    assert film_box(spot) == (0, SIDE, 0, SIDE)
    assert film_box(np.zeros((SIDE, SIDE), np.uint8)) == (0, SIDE, 0, SIDE)


def test_a_view_without_changes_is_the_film() -> None:
    np.testing.assert_allclose(views(NONE).astype(int), films().astype(int), atol=2)
    assert (views(Changes(plain=1.0)) == films()).all()


def test_a_view_fills_the_square_in_one_direction_and_is_black_beside_it() -> None:
    made = views(Changes(plain=0, gamma=0.35, brightness=0.06), 40)
    assert made.dtype == np.uint8 and made.shape == (40, SIDE, SIDE, 1)
    ratios = set()
    for image in made[..., 0]:
        lit = image > 0
        rows = lit.any(axis=1)
        columns = lit.any(axis=0)
        assert rows.all() or columns.all()
        assert (lit == rows[:, None] & columns[None]).mean() > 0.97  # tones may reach black inside
        ratios.add(int(columns.sum()) - int(rows.sum()))
    assert min(ratios) < 4 and max(ratios) > 12  # the film's own is 8


def test_no_view_is_mirrored() -> None:
    made = views(Changes(plain=0, turn=5.0), 40).astype(int)
    middle = made[:, SIDE // 2, :, 0]
    assert all(row[row > 0][0] < row[row > 0][-1] for row in middle)


@pytest.mark.parametrize("name", ["cut", "stretch", "turn", "gamma", "contrast", "brightness"])
def test_each_change_alone_changes_films_within_its_range(name: str) -> None:
    changes = Changes(**{**vars(NONE), name: getattr(Changes(), name)})
    made = views(changes)
    assert any((image != film).any() for image, film in zip(made, films(), strict=True))
    assert (views(changes, seed=1) != made).any() and (views(changes) == made).all()
