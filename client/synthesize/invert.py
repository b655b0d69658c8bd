"""Inverts images into W+ codes: the encoder's iterations, then optimisation, each with an error.

In: uint8 images [N, H, W, C], the study's generator and encoder, a `Reference`.
Out: an `Inversion`: points, codes, an error per image and which images are accepted.
Guarantees:
  1. the rule of acceptance (reference.py) is computed from generator samples before an image of the
     cohort is seen
  2. rejected: an image without content (constant, dark, blurred away, saturated); one above the
     threshold; one that inverts clearly better turned by a quarter; one with a code that is not
     finite. A rejected image does not count to k: pass `accepted` to `group.roster`
  3. no image influences another's code beyond rounding, and none at all with `plan.batch` 1;
     nothing is random; the generator is not changed
  4. memory does not grow with the cohort beyond what is kept of each image; where the finished rows
     are kept on disk, a later call goes on behind them, with the same result bit for bit
Not covered: a small error is no proof that the medical content survived; an image turned by 180
degrees.

Each image is inverted in the generator's own look (looks.py). Its own look is kept, and under
`plan.coarse_cells` its coarse residual (coarse.py).

Source: ReStyle (Alaluf et al. 2021) for the encoder; optimisation in W+ by Karras et al. 2020,
appendix D.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from client.ingest.cohort import release_pages
from client.synthesize.coarse import measure_residuals, residual_rows
from client.synthesize.descent import CodeDescent
from client.synthesize.looks import (
    lack_content,
    look_at,
    look_rows,
    relative_errors,
    show_in,
)
from client.synthesize.reference import (
    InversionPlan,
    Reference,
    check_fit,
    find_turned,
    freeze,
    mean_colours,
)
from common.errors import ConfigurationError
from common.models.draws import device_of
from common.models.encoder import Encoder
from common.models.images import to_unit
from common.models.stylegan import Generator

Progress = Callable[[int, int], None]
BLANK_DEVIATION = 0.02  # standard deviation of grey values in [0, 1]; below it an image is blank
BLOCK_ROWS = 64  # images whose results are kept at once: what a kill costs


@dataclass(frozen=True)
class Inversion:
    """The inversion of N images. Group by `points` or `colours`, average `codes`.

    `points`: float64 [N, K], the encoder's codes, whitened. `colours`: float64 [N, C], mean colours
    of the reconstructions in the images' own looks. `codes`: float32 [N, L, d_w], refined;
    memory-mapped where rows are kept on disk. `errors`: float64 [N], relative (looks.py).
    `accepted`: bool [N]. `looks`: float32 [N, 2, C], the images' own looks. `coarse`: float32
    [N, C + 1, G, G], the coarse residuals of the refined codes and where they are known;
    memory-mapped as `codes` are.
    """

    points: NDArray[np.float64]
    colours: NDArray[np.float64]
    codes: NDArray[np.float32]
    errors: NDArray[np.float64]
    accepted: NDArray[np.bool_]
    looks: NDArray[np.float32]
    coarse: NDArray[np.float32]


class Rows(Protocol):
    """Where finished rows are kept: in memory, or on disk (client/state/spool.py)."""

    @property
    def count(self) -> int:
        """How many rows are kept."""

    def append(self, rows: Mapping[str, NDArray[Any]]) -> None:
        """Keep a block of rows, [rows, ...] of each field."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return all rows of each field."""


@dataclass
class InMemory:
    """Rows that end with the process."""

    count: int = 0
    _blocks: list[Mapping[str, NDArray[Any]]] = field(default_factory=list)

    def append(self, rows: Mapping[str, NDArray[Any]]) -> None:
        """Keep a block."""
        self._blocks.append(rows)
        self.count += len(rows["codes"])

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return all rows of each field."""
        return _join(self._blocks)


def invert(
    images: NDArray[np.uint8],
    generator: Generator,
    encoder: Encoder,
    plan: InversionPlan,
    known: Reference,
    progress: Progress = lambda done, total: None,
    kept: Rows | None = None,
) -> Inversion:
    """Return the inversion of uint8 images [N, H, W, C], `plan.batch` at a time.

    `known`: the reference, made before. `kept`: where finished rows are kept, and taken from: they
    must be of the same images, networks, plan and reference. Raises ConfigurationError when there
    is no image, or when its size or the encoder's is not the generator's.
    """
    check_fit(generator, encoder)
    expected = (generator.size_px, generator.size_px, generator.channels)
    if len(images) == 0 or images.shape[1:] != expected or images.dtype != np.uint8:
        raise ConfigurationError(
            f"inversion: expected uint8 images of {expected}; got {images.dtype} {images.shape[1:]}"
        )
    kept = InMemory() if kept is None else kept
    # whole batches, so that a block's end moves no image into another batch
    block = plan.batch * max(1, BLOCK_ROWS // plan.batch)
    with freeze(generator, encoder):
        for first in range(kept.count, len(images), block):
            parts: list[Mapping[str, NDArray[Any]]] = []
            for start in range(first, min(first + block, len(images)), plan.batch):
                some = np.asarray(images[start : start + plan.batch])
                parts.append(vars(_invert_batch(some, generator, encoder, plan, known)))
                progress(min(start + plan.batch, len(images)), len(images))
            kept.append(_join(parts))
            release_pages(images)
    rows = kept.arrays()
    return Inversion(
        points=np.array(rows["points"]),
        colours=np.array(rows["colours"]),
        codes=rows["codes"],
        errors=np.array(rows["errors"]),
        accepted=np.array(rows["accepted"]),
        looks=np.array(rows["looks"]),
        coarse=rows["coarse"],
    )


def reconstruct(codes: NDArray[np.floating], generator: Generator) -> Tensor:
    """Return the images [N, C, H, W] in [-1, 1] of refined codes [N, L, d_w], without noise.

    They stay on the generator's device.
    """
    with torch.no_grad():
        on_device = torch.from_numpy(np.array(codes)).to(device_of(generator))
        return generator.synthesis(on_device).clamp(-1, 1)


def _join(parts: list[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """The rows of several parts, field by field."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _invert_batch(
    images: NDArray[np.uint8],
    generator: Generator,
    encoder: Encoder,
    plan: InversionPlan,
    known: Reference,
) -> Inversion:
    """Invert one batch; the networks take no gradients."""
    # the encoder's codes, and whether an image lies on its side
    device = device_of(generator)
    common = known.look_on(device)
    with torch.no_grad():
        seen = look_at(to_unit(images, device), common)
        x = seen.images
        first = encoder.invert(x, generator, plan.iterations, keep_best=True, fields=seen.fields)
        own = relative_errors(first.reconstructions.clamp(-1, 1), x, seen.fields)
        lying = np.zeros(len(x), bool)
        if known.upright:
            lying = find_turned(seen, own, plan.turned_margin, generator, encoder, plan)

    # the refined codes, and the errors of their images
    codes = _refine(x, first.codes, generator, plan, known.spread, seen.fields)
    with torch.no_grad():
        rebuilt = generator.synthesis(codes).clamp(-1, 1)
        shown = show_in(rebuilt, common, seen.own)
        coarse = measure_residuals(x, rebuilt, seen.fields, plan.coarse_cells)
    errors = relative_errors(rebuilt, x, seen.fields)

    # which images are accepted
    finite = torch.isfinite(codes).flatten(1).all(1) & torch.isfinite(first.codes).flatten(1).all(1)
    accepted = finite.cpu().numpy() & np.isfinite(errors) & (errors <= known.threshold)
    accepted &= ~blank(images) & ~lack_content(images) & ~lying
    points = known.whitening(first.codes.cpu().numpy())
    return Inversion(
        points=points,
        colours=mean_colours(shown),
        codes=codes.cpu().numpy(),
        errors=errors,
        accepted=accepted,
        looks=look_rows(seen.own),
        coarse=residual_rows(coarse),
    )


def blank(images: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return bool [N]: True where a uint8 image [N, H, W, C] is black or constant."""
    grey = [float(image.mean(axis=-1, dtype=np.float64).std()) / 255 for image in images]
    return np.array(grey) < BLANK_DEVIATION


def _refine(
    x: Tensor,
    start: Tensor,
    generator: Generator,
    plan: InversionPlan,
    spread: float,
    fields: Tensor | None = None,
) -> Tensor:
    """Refine codes by `plan.steps` of Adam: pixels at three scales, near the encoder's codes.

    Pixels count where `fields` [N, 1, S, S] is 1, or everywhere: what a camera cut away is unknown,
    not black.
    """
    counts = torch.ones_like(x[:, :1]) if fields is None else fields
    codes = start.clone().requires_grad_()
    adam = CodeDescent(codes)
    for step in range(plan.steps):
        loss = _pyramid_error(generator.synthesis(codes), x, counts).sum()
        loss = loss + plan.trust_weight * ((codes - start) / spread).square().mean((1, 2)).sum()
        (gradient,) = torch.autograd.grad(loss, [codes])
        adam.step(gradient, plan.learning_rate * spread * (1 - step / plan.steps))
    return codes.detach()


def _pyramid_error(a: Tensor, b: Tensor, counts: Tensor) -> Tensor:
    """Squared difference [N] where pixels count, averaged over full, half, quarter resolution."""
    difference = (a - b) * counts
    terms = [difference.square().mean((1, 2, 3))]
    for scale in (2, 4):
        terms.append(F.avg_pool2d(difference, scale).square().mean((1, 2, 3)))
    return torch.stack(terms).mean(0)
