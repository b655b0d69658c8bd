"""Chest films as other detectors and exposures would have made them, for pretraining.

In: public films as a hospital's ingest frames them: the film in the middle, black beside it.
Out: one changed view of each, framed by the same rule.
Guarantees: black beside a film stays 0; a part of the views shows the film unchanged.
Not covered: what a film never shows at this size, such as finer detail.

A view is, in this order:
  - the film without its black sides, cut to a part of it
  - turned, and stretched a little in one direction
  - windowed: gamma and contrast; sometimes softened
  - laid into the square by its longer side, with black on both sides of the shorter one
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

BLACK = 8  # a row or column that is nowhere lighter is no part of the film
LEAST_SIDE = 0.5  # of the square; a smaller film is not trusted, and the square is the film


@dataclass(frozen=True)
class Changes:
    """How far a view may differ from its film; each is drawn evenly up to this."""

    plain: float = 0.3  # the share of views that are the film itself
    cut: float = 0.25  # of each side
    turn: float = 5.0  # degrees, to both sides
    stretch: float = 0.1  # of the width against the height
    gamma: float = 0.35  # of its logarithm, to both sides
    contrast: float = 0.2  # around mid-grey, to both sides
    brightness: float = 0.06  # of the whole range, to both sides
    softened: float = 0.2  # the share of views


CHANGES = Changes()


def film_box(image: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """Return top, bottom, left, right of the film in a framed image [S, S]; ends are exclusive.

    A film that would be smaller than half of the square in one direction is the whole square.
    """
    side = len(image)
    rows = np.flatnonzero(image.max(axis=1) > BLACK)
    columns = np.flatnonzero(image.max(axis=0) > BLACK)
    if min(len(rows), len(columns)) < LEAST_SIDE * side:
        return 0, side, 0, side
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def film_boxes(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the box of each framed film, int64 [N, 4], of uint8 [N, S, S, 1]."""
    return np.array([film_box(image[..., 0]) for image in images], dtype=np.int64)


def film_views(
    images: Tensor,
    boxes: NDArray[np.int64],
    random: np.random.Generator,
    changes: Changes = CHANGES,
) -> Tensor:
    """Return one view of each framed film, uint8 [N, S, S, 1] on its device.

    `boxes` [N, 4] are where the films are (`film_boxes`).
    """
    device = images.device
    count, side = images.shape[:2]
    x = images.permute(0, 3, 1, 2).to(torch.float32) / 255
    drawn = [_draw(box, side, random, changes) for box in boxes]
    theta = torch.tensor([d.theta for d in drawn], dtype=torch.float32, device=device)
    half = torch.tensor([d.half for d in drawn], dtype=torch.float32, device=device)

    # turn, stretch and cut: where each pixel of the view comes from
    grid = F.affine_grid(theta, [count, 1, side, side], align_corners=False)
    moved = F.grid_sample(x, grid, mode="bicubic", padding_mode="border", align_corners=False)
    moved = moved.clamp(0, 1)

    # window and soften
    tones = torch.tensor([d.tones for d in drawn], dtype=torch.float32, device=device)
    gamma, contrast, brightness, soft = tones.T[:, :, None, None, None]
    toned = ((moved**gamma - 0.5) * contrast + 0.5 + brightness).clamp(0, 1)
    blurred = F.avg_pool2d(F.pad(toned, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    toned = toned + soft * (blurred - toned)

    # black beside the film; a plain view keeps its own pixels
    centres = (torch.arange(side, device=device) + 0.5) * 2 / side - 1
    inside_rows = centres.abs()[None, :] <= half[:, 1:]
    inside_columns = centres.abs()[None, :] <= half[:, :1]
    inside = inside_rows[:, None, :, None] & inside_columns[:, None, None, :]
    views = torch.where(inside, toned, 0.0).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1)
    plain = torch.tensor([d.plain for d in drawn], device=device)
    return torch.where(plain[:, None, None, None], images, views)


@dataclass(frozen=True)
class _View:
    """One view: its map into the film, its half width and half height, and its tones."""

    theta: list[list[float]]
    half: tuple[float, float]
    tones: tuple[float, float, float, float]  # gamma, contrast, brightness, softening
    plain: bool


def _draw(
    box: NDArray[np.int64], side: int, random: np.random.Generator, changes: Changes
) -> _View:
    """Draw how one view differs from its film."""
    # the part of the film that is seen, in the square's units from -1 to 1
    top, bottom, left, right = (2 * float(edge) / side - 1 for edge in box)
    down = (bottom - top) / 2 * (1 - changes.cut * random.random())
    across = (right - left) / 2 * (1 - changes.cut * random.random())
    y = random.uniform(top + down, bottom - down)
    x = random.uniform(left + across, right - across)

    # its shape in the view: the longer side fills the square
    shown = across * math.exp(random.uniform(-changes.stretch, changes.stretch))
    longer = max(shown, down)
    half = (shown / longer, down / longer)

    # turned about its middle
    angle = math.radians(random.uniform(-changes.turn, changes.turn))
    cos, sin = math.cos(angle), math.sin(angle)
    wide = across / half[0]
    high = down / half[1]
    theta = [[cos * wide, -sin * high, x], [sin * wide, cos * high, y]]

    # tones
    gamma = math.exp(random.uniform(-changes.gamma, changes.gamma))
    contrast = 1 + random.uniform(-changes.contrast, changes.contrast)
    brightness = random.uniform(-changes.brightness, changes.brightness)
    soft = float(random.random() < changes.softened) * random.uniform(0.3, 1.0)
    return _View(theta, half, (gamma, contrast, brightness, soft), random.random() < changes.plain)
