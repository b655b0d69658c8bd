"""Finds the circle that a fundus camera lights, and frames a photograph by it.

In: uint8 [H, W, 1 or 3].
Out: the `Field`, or the square of a study in which the circle's diameter is the side.
Guarantees: half a pixel outside the circle everything is black, so no notch, label, octagon or
noise of a camera is left. A photograph whose circle is cut by its borders is black beyond them. The
same pixels give the same field. Hospitals and pretraining use this one rule.
Not covered: text inside the field; a field that was squeezed to an ellipse.

  1. reduce the picture to about SEARCH_PX
  2. at each of LEVELS: where do rows and columns enter and leave what is brighter
  3. fit a circle to these places: circles through three of them, the one with most others near it
     (Fischler and Bolles 1981), then least squares over those (Kåsa 1976)
  4. judge it along its edge and on both sides; the first level that is clear counts, else the best
  5. shrink it a little, so that it leaves out the blurred edge, and straight sides of an octagon
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from common.arrays import Flags, Floats, Integers, Pixels

SEARCH_PX = 256
LEVELS = (8, 16, 26, 40, 60, 90)  # a surround may be noisy or grey; a field is seldom under 26
KEPT_SHARES = (0.985, 0.965, 0.94, 0.92, 0.9)  # of the radius: the edge itself is blurred
WHOLE_RING = 0.98  # share of a ring that is bright where no straight side or notch cuts into it
STRETCH_SHARE = 0.05  # of a line: letters beside the field have shorter strokes
LEAST_PLACES = 12
NEAR_SHARE = 0.006  # of the largest radius: how near to a circle its places lie
TRIPLES = 200
JUDGED_PLACES = 200  # with which a circle through three places is compared
LEAST_RADIUS = 0.25  # of the longer side of all that is bright; optic discs are smaller
MOST_RADIUS = 0.85  # at 0.71 a square shows nothing of the circle's edge
STRAIGHT_SHARE = 0.6  # of a border that is bright at once: the photograph ends there, not the field
# of the longer side: how far inside and outside of the edge it is judged; an octagon needs more
EDGE_WIDTHS = (0.015, 0.04)
LEAST_EDGE = 10  # degrees
CLEAR_EDGE = 0.95  # shares of the edge in sight that are bright inside and dark outside
SURE_EDGE = 0.6
MOST_STRAY = 0.15  # share of bright places outside the circle
LEAST_LIT = 0.5  # share of bright places inside
DEGREES = np.deg2rad(np.arange(360))

Resize = Callable[[Pixels, int, int], Pixels]


@dataclass(frozen=True)
class Box:
    """Rows and columns from the first to one past the last."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def longer(self) -> int:
        """Return the longer side."""
        return max(self.bottom - self.top, self.right - self.left)

    def holds(self, rows: Floats, columns: Floats) -> Flags:
        """Return which places lie inside."""
        in_rows = (rows >= self.top) & (rows <= self.bottom - 1)
        in_columns = (columns >= self.left) & (columns <= self.right - 1)
        return np.asarray(in_rows & in_columns)


@dataclass(frozen=True)
class Circle:
    """The centre's row and column, and the radius, in pixels."""

    row: float
    column: float
    radius: float

    def distances(self, places: Floats) -> Floats:
        """Return how far places [N, 2] lie outside the edge; inside it is negative."""
        rows = places[:, 0] - self.row
        columns = places[:, 1] - self.column
        return np.asarray(np.hypot(rows, columns) - self.radius)


@dataclass(frozen=True)
class Field:
    """A field of view: the circle that is kept, and the box of the photograph that shows it."""

    circle: Circle
    box: Box


def find_field(pixels: Pixels) -> Field | None:
    """Return the field of view of a photograph, uint8 [H, W, C]; None where there is no circle."""
    # (1) reduce
    levels, step = _reduce(pixels)
    for width_share in EDGE_WIDTHS:
        field = _search(levels, width_share)
        if field is not None:
            return _enlarge(field, step, pixels.shape)
    return None


def _search(levels: Floats, width_share: float) -> Field | None:
    """The field on the grid, by steps 2 to 5."""
    best_share = 0.0
    best = None
    radii = None
    for level in LEVELS:
        # (2) where lines enter and leave the field
        lit = levels > level
        box = _lit_box(lit)
        if box is None:
            break
        radii = radii or (LEAST_RADIUS * box.longer, MOST_RADIUS * box.longer)
        # (3) fit, (4) judge
        circle = _fit(_edge_places(lit, box), radii)
        if circle is None:
            continue
        share = _judge(lit, circle, box, width_share * box.longer)
        if share > best_share:
            best_share = share
            # (5) shrink
            best = Field(_shrink(lit, circle, box), _straight_borders(lit, circle, box))
        if share >= CLEAR_EDGE:
            break
    if best_share < SURE_EDGE:
        return None
    return best


def frame_field(pixels: Pixels, field: Field, size_px: int, resize: Resize) -> Pixels:
    """Return the field as uint8 [size_px, size_px, C], black outside its circle.

    The side is the circle's diameter, or the longer side of the box where the circle is wider than
    the box both ways. `resize(pixels, height, width)` must be antialiased.
    """
    # the square: around the circle, or around the middle of what the photograph shows of it
    box = field.box
    side, row, column = _square_of(field)
    scale = size_px / side
    top = row - side / 2
    left = column - side / 2

    # cut and resize what the photograph has of it
    first_row, last_row = max(round(top), box.top), min(round(top + side), box.bottom)
    first_column, last_column = max(round(left), box.left), min(round(left + side), box.right)
    rows = _scaled(first_row - top, last_row - top, scale, size_px)
    columns = _scaled(first_column - left, last_column - left, scale, size_px)
    part = pixels[first_row:last_row, first_column:last_column]
    square = np.zeros((size_px, size_px, pixels.shape[2]), np.uint8)
    square[rows, columns] = resize(part, rows.stop - rows.start, columns.stop - columns.start)

    # black outside the square's disc and outside the field's circle
    circle = field.circle
    disc = _cover(size_px, size_px / 2, size_px / 2, size_px / 2)
    kept = _cover(
        size_px, (circle.row - top) * scale, (circle.column - left) * scale, circle.radius * scale
    )
    shares = np.minimum(disc, kept)
    square[shares == 0] = 0
    edge = (shares > 0) & (shares < 1)
    square[edge] = np.rint(square[edge] * shares[edge, None])
    return square


def side_of(field: Field) -> float:
    """Return how many pixels of the photograph become the side of the framed square."""
    return _square_of(field)[0]


def _square_of(field: Field) -> tuple[float, float, float]:
    """Side, middle row and middle column of the square that is framed."""
    circle, box = field.circle, field.box
    diameter = 2 * circle.radius
    if diameter <= box.longer:
        return diameter, circle.row, circle.column
    return float(box.longer), (box.top + box.bottom) / 2, (box.left + box.right) / 2


def _scaled(first: float, last: float, scale: float, size_px: int) -> slice:
    """Where a stretch of the photograph lies in the framed square; at least one pixel."""
    start = min(max(round(first * scale), 0), size_px - 1)
    return slice(start, min(max(round(last * scale), start + 1), size_px))


def _cover(size_px: int, row: float, column: float, radius: float) -> Floats:
    """How much of each pixel of a square lies in a circle, [size_px, size_px] of 0 to 1, about.

    A border without these shares would be one that no photograph has.
    """
    # squares say which pixels are a pixel away from the edge, and need no root
    rows = np.arange(size_px) + 0.5 - row
    columns = np.arange(size_px) + 0.5 - column
    squares = np.square(rows)[:, None] + np.square(columns)
    shares: Floats = (squares < radius**2).astype(np.float64)
    near = np.nonzero((squares > max(radius - 1, 0) ** 2) & (squares < (radius + 1) ** 2))
    distances = np.hypot(rows[near[0]], columns[near[1]])
    shares[near] = np.clip(radius - distances + 0.5, 0, 1)
    return shares


def _reduce(pixels: Pixels) -> tuple[Floats, int]:
    """The brightest channel on a grid of about SEARCH_PX, [h, w], and how wide its places are."""
    # every n-th pixel, then the mean of 2 x 2: noise of the surround falls
    step = max(1, max(pixels.shape[:2]) // (2 * SEARCH_PX))
    grid = pixels[::step, ::step].max(axis=2).astype(np.float64)
    if max(grid.shape) < 1.5 * SEARCH_PX or min(grid.shape) < 2:
        return grid, step
    height, width = grid.shape[0] // 2, grid.shape[1] // 2
    blocks = grid[: 2 * height, : 2 * width].reshape(height, 2, width, 2)
    return blocks.mean(axis=(1, 3)), 2 * step


def _lit_box(lit: Flags) -> Box | None:
    """From the first row and column with a bright stretch to the last."""
    rows = np.flatnonzero(_stretches(lit).any(axis=1))
    columns = np.flatnonzero(_stretches(lit.T).any(axis=1))
    if not len(rows) or not len(columns):
        return None
    return Box(int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1)


def _stretches(lit: Flags) -> Flags:
    """Whether a bright stretch of each line [lines, places] starts at a place."""
    # a stretch ends where the running sum has grown by its whole length
    run = _run(lit)
    sums = np.cumsum(np.pad(lit, ((0, 0), (1, 0))), axis=1, dtype=np.int32)
    return np.asarray(sums[:, run:] - sums[:, :-run] == run)


def _run(lit: Flags) -> int:
    """The length of a bright stretch."""
    places = int(lit.shape[1])
    return min(max(3, int(STRETCH_SHARE * places)), places)


def _edge_places(lit: Flags, box: Box) -> Floats:
    """Where rows and columns enter and leave the field, [N, 2], but for the box's own borders."""
    along_columns = _line_ends(lit.T)[:, ::-1]
    places = np.concatenate([_line_ends(lit), along_columns])
    # a straight border is the photograph's, not the field's
    inner = Box(box.top + 1, box.bottom - 1, box.left + 1, box.right - 1)
    return np.asarray(places[inner.holds(places[:, 0], places[:, 1])])


def _line_ends(lit: Flags) -> Floats:
    """(line, place) where the first bright stretch starts and the last one ends, half-way."""
    starts = _stretches(lit)
    lines: Integers = np.flatnonzero(starts.any(axis=1))
    first = starts[lines].argmax(axis=1)
    last = starts.shape[1] - 1 - starts[lines, ::-1].argmax(axis=1) + _run(lit) - 1
    return np.concatenate(
        [np.stack([lines, first - 0.5], axis=1), np.stack([lines, last + 0.5], axis=1)]
    )


def _fit(places: Floats, radii: tuple[float, float]) -> Circle | None:
    """The circle that most places lie on; None where there are too few, or it is no field."""
    if len(places) < LEAST_PLACES:
        return None
    # always the same draws: the same pixels give the same field
    draws = np.random.default_rng(0)
    circles = _circles_through(places[draws.integers(0, len(places), (TRIPLES, 3))])
    least, most = radii
    circles = circles[(circles[:, 2] > least) & (circles[:, 2] < most)]
    if not len(circles):
        return None

    # the circle with most of the places near it
    judged = places[draws.integers(0, len(places), JUDGED_PLACES)]
    rows = judged[None, :, 0] - circles[:, :1]
    columns = judged[None, :, 1] - circles[:, 1:2]
    near_px = max(1.0, NEAR_SHARE * most)
    near = np.abs(np.hypot(rows, columns) - circles[:, 2:]) < near_px
    row, column, radius = circles[near.sum(axis=1).argmax()].tolist()
    circle = Circle(row, column, radius)

    # least squares over all that are near, three times
    for _ in range(3):
        close = places[np.abs(circle.distances(places)) < near_px]
        if len(close) < LEAST_PLACES:
            return None
        circle = _least_squares(close)
    if not least < circle.radius < most:
        return None
    return circle


def _circles_through(triples: Floats) -> Floats:
    """The circles (row, column, radius), [N, 3], through three places each, [N, 3, 2]."""
    origin = triples[:, 0]
    one = triples[:, 1] - origin
    other = triples[:, 2] - origin
    double_area = 2 * (one[:, 0] * other[:, 1] - one[:, 1] * other[:, 0])
    kept = np.abs(double_area) > 1e-6
    one, other, origin, double_area = one[kept], other[kept], origin[kept], double_area[kept]
    one_square = np.square(one).sum(axis=1)
    other_square = np.square(other).sum(axis=1)
    row = (other[:, 1] * one_square - one[:, 1] * other_square) / double_area
    column = (one[:, 0] * other_square - other[:, 0] * one_square) / double_area
    radius = np.hypot(row, column)
    return np.stack([origin[:, 0] + row, origin[:, 1] + column, radius], axis=1)


def _least_squares(places: Floats) -> Circle:
    """The circle that minimises the sum of (distance² - radius²)² (Kåsa 1976)."""
    middle = places.mean(axis=0)
    centred = places - middle
    unknowns = np.concatenate([2 * centred, np.ones((len(places), 1))], axis=1)
    solution = np.linalg.lstsq(unknowns, np.square(centred).sum(axis=1), rcond=None)[0]
    centre = solution[:2]
    radius = np.sqrt(max(float(solution[2] + np.square(centre).sum()), 0.0))
    row, column = (centre + middle).tolist()
    return Circle(row, column, float(radius))


def _judge(lit: Flags, circle: Circle, box: Box, width: float) -> float:
    """The share of the edge in sight that is bright inside and dark outside; 0 for no field."""
    # along the edge
    width = max(1.5, width)
    within, seen_within = _along(lit, circle, circle.radius - width, box)
    beyond, seen_beyond = _along(lit, circle, circle.radius + width, box)
    seen = seen_within & seen_beyond
    edge = seen & within & ~beyond
    if edge.sum() < LEAST_EDGE:
        return 0.0

    # on both sides of it, every second place
    rows = np.arange(box.top, box.bottom, 2)
    columns = np.arange(box.left, box.right, 2)
    distances = np.hypot(rows[:, None] - circle.row, columns[None, :] - circle.column)
    shown = lit[box.top : box.bottom : 2, box.left : box.right : 2]
    outside = shown[distances > circle.radius + width]
    inside = shown[distances < circle.radius - width]
    strays = len(outside) and outside.mean() > MOST_STRAY
    if strays or not len(inside) or inside.mean() < LEAST_LIT:
        return 0.0
    return float(edge.sum() / seen.sum())


def _along(lit: Flags, circle: Circle, radius: float, box: Box) -> tuple[Flags, Flags]:
    """What is bright at each degree of a circle about the same centre, and what is in the box."""
    rows = np.rint(circle.row + radius * np.sin(DEGREES))
    columns = np.rint(circle.column + radius * np.cos(DEGREES))
    seen = box.holds(rows, columns)
    found = np.zeros(len(DEGREES), bool)
    found[seen] = lit[rows[seen].astype(int), columns[seen].astype(int)]
    return found, seen


def _shrink(lit: Flags, circle: Circle, box: Box) -> Circle:
    """The largest of the smaller circles that is bright all along; else the largest of all."""
    for share in KEPT_SHARES:
        smaller = Circle(circle.row, circle.column, share * circle.radius)
        bright, seen = _along(lit, smaller, smaller.radius, box)
        if seen.any() and bright[seen].mean() >= WHOLE_RING:
            return smaller
    return Circle(circle.row, circle.column, KEPT_SHARES[0] * circle.radius)


def _straight_borders(lit: Flags, circle: Circle, box: Box) -> Box:
    """The box where the photograph cuts the field; elsewhere up to the picture's own borders.

    A field that fades into the dark has no border where it fades.
    """
    height, width = lit.shape
    top, bottom, left, right = 0, height, 0, width
    if _is_straight(lit[box.top], box.top, circle.row, circle.column, circle.radius):
        top = box.top
    last = box.bottom - 1
    if _is_straight(lit[last], last, circle.row, circle.column, circle.radius):
        bottom = box.bottom
    if _is_straight(lit[:, box.left], box.left, circle.column, circle.row, circle.radius):
        left = box.left
    last = box.right - 1
    if _is_straight(lit[:, last], last, circle.column, circle.row, circle.radius):
        right = box.right
    return Box(top, bottom, left, right)


def _is_straight(line: Flags, place: int, across: float, along: float, radius: float) -> bool:
    """Whether most of the line at `place` is bright where it crosses the circle.

    The circle's centre lies at `across` between lines, and at `along` within them.
    """
    half = np.sqrt(max(radius**2 - (place - across) ** 2, 0.0))
    chord = line[max(round(along - half), 0) : max(round(along + half) + 1, 0)]
    return len(chord) > 0 and float(chord.mean()) > STRAIGHT_SHARE


def _enlarge(field: Field, step: int, shape: tuple[int, ...]) -> Field:
    """The field in pixels of the photograph; what a coarse grid left over is the last place's."""
    box = field.box
    bottom, right = box.bottom * step, box.right * step
    if shape[0] - bottom < step:
        bottom = shape[0]
    if shape[1] - right < step:
        right = shape[1]
    row = (field.circle.row + 0.5) * step
    column = (field.circle.column + 0.5) * step
    circle = Circle(row, column, field.circle.radius * step)
    return Field(circle, Box(box.top * step, bottom, box.left * step, right))
