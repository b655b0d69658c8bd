"""Public statistics of the generator, which decide about inverted images before any is seen.

In: generator, encoder, public constants.
Out: a `Reference`: threshold, whitening, spread of w, the samples' codes, colours and look, and
whether they have a way up.
Guarantees: everything is computed from generator samples; nothing is fitted to the cohort.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.synthesize.looks import (
    Seen,
    look_at,
    look_from,
    look_rows,
    relative_errors,
)
from common.errors import Bug, ConfigurationError, RefusedError
from common.models.basis import Basis
from common.models.draws import device_of, draw_normal
from common.models.encoder import Encoder
from common.models.look import Look, average_looks, field_of, look_of
from common.models.stylegan import Generator
from common.wire.tensors import Arrays

EIGENVALUE_FLOOR = 1e-4  # of the largest eigenvalue


@dataclass(frozen=True)
class InversionPlan:
    """Public constants of the inversion; steps, iterations and cells come from the study plan."""

    steps: int = 20
    iterations: int = 3
    learning_rate: float = 0.05
    trust_weight: float = 0.003
    batch: int = 16
    samples: int = 192
    components: int = 64
    coarse_cells: int = 0  # along each side of the grid of residuals; from the study plan
    # the threshold, of relative errors: `make_reference`
    mismatch_quantile: float = 0.1
    least_mismatch: float = 1.0
    own_quantile: float = 0.99
    own_factor: float = 4.0
    least_own: float = 0.4
    # whether samples have a way up
    turned: int = 48  # samples that are also inverted turned by a quarter
    least_upright: float = 0.5  # share of them that must invert best upright
    clearly: float = 1.1  # by this factor
    most_error: float = 0.5  # of half of them: networks of chance invert a little better one way
    # an image lies on its side where it inverts better turned, by this factor
    turned_margin: float = 1.2


@dataclass(frozen=True)
class GeneratorCodes:
    """Encoder codes of generator samples, float64 [M, D]; only `make_reference` makes them."""

    codes: NDArray[np.float64]


@dataclass(frozen=True)
class Whitening:
    """Principal components of generator codes, or of public ones, each of unit variance there.

    Eigenvalues have a floor.
    """

    mean: NDArray[np.float64]
    directions: NDArray[np.float64]

    @classmethod
    def fit(cls, of: GeneratorCodes, components: int) -> Whitening:
        """Return the whitening by up to `components` principal directions.

        Refuses anything but `GeneratorCodes`.
        """
        if not isinstance(of, GeneratorCodes):
            raise Bug(
                "Whitening.fit takes GeneratorCodes; the cohort's codes must not shape the space"
            )
        # the directions that have variance, scaled by it
        mean = of.codes.mean(axis=0)
        _, singular, directions = np.linalg.svd(of.codes - mean, full_matrices=False)
        variance = singular**2 / max(1, len(of.codes) - 1)
        count = int(min(components, len(of.codes) - 1, (variance > 0).sum()))
        scale = np.sqrt(np.maximum(variance, EIGENVALUE_FLOOR * variance[0]))[:count]
        return cls(mean, directions[:count].T / scale)

    @classmethod
    def of_basis(cls, basis: Basis) -> Whitening:
        """Return the whitening by the directions of a public basis of codes [L * d_w]."""
        return cls(basis.mean, basis.directions.T / basis.spread)

    def __call__(self, codes: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return float64 [N, components] for codes [N, ...]."""
        flat = np.asarray(codes, np.float64).reshape(len(codes), -1)
        return np.asarray((flat - self.mean) @ self.directions)


@dataclass(frozen=True)
class Reference:
    """Public statistics of one generator.

    `threshold`: relative error (looks.py) above which an image is rejected. `spread`: the RMS
    deviation of w. `samples`: codes of its samples, the centres of the cells. `colours`: their mean
    colours, float64 [M, C]. `look`: their mean look, float32 [2, C]. `upright`: whether samples
    have a way up.
    """

    whitening: Whitening
    threshold: float
    spread: float
    samples: GeneratorCodes
    colours: NDArray[np.float64]
    look: NDArray[np.float32]
    upright: bool = False

    def look_on(self, device: torch.device | None = None) -> Look:
        """Return the samples' mean look on a device, one row: [1, C]."""
        return look_from(self.look[None], device)

    def to_arrays(self) -> Arrays:
        """Return the arrays that `from_arrays` reads, exactly."""
        return {
            "mean": self.whitening.mean,
            # one layout in memory, made or read: products are then rounded alike
            "directions": np.ascontiguousarray(self.whitening.directions),
            "samples": self.samples.codes,
            "colours": self.colours,
            "look": self.look,
            "numbers": np.array([self.threshold, self.spread, self.upright], np.float64),
        }

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Reference:
        """Return the reference of `to_arrays`; `make_reference` made it earlier on this site."""
        exact = {name: np.asarray(array, np.float64) for name, array in arrays.items()}
        threshold, spread, upright = exact["numbers"].tolist()
        return cls(
            whitening=Whitening(exact["mean"], exact["directions"]),
            threshold=threshold,
            spread=spread,
            samples=GeneratorCodes(exact["samples"]),
            colours=exact["colours"],
            look=exact["look"].astype(np.float32),
            upright=bool(upright),
        )


def make_reference(
    generator: Generator, encoder: Encoder, plan: InversionPlan, random: torch.Generator
) -> Reference:
    """Return the reference from `plan.samples` generator samples; `random` may be seeded.

    The look is the mean of the samples' looks; all samples are inverted in it, as images will be.
    The threshold is the smaller of two relative errors, each with a floor:
      a. the `mismatch_quantile` between unrelated samples: a reconstruction further away is not of
         this image
      b. `own_factor` times the `own_quantile` of the encoder's errors on samples: an image with a
         larger error is not of the generator's kind
    A photograph on its side stays below the threshold. So `upright` says whether samples have a way
    up: whether `least_upright` of `plan.turned` samples invert better as they are than turned by a
    quarter, by the factor `clearly`, and half of them with at most `most_error`. `invert` then asks
    of each image whether it lies on its side.
    Raises ConfigurationError for fewer than 8 samples or networks of different sizes, RefusedError
    for weights whose samples or codes are not finite.
    """
    if plan.samples < 8:
        raise ConfigurationError(f"inversion: samples is {plan.samples}; expected 8 or more")
    check_fit(generator, encoder)

    # samples and their inversion
    drawn = _draw_samples(generator, encoder, plan, random)
    if not (torch.isfinite(drawn.codes).all() and torch.isfinite(drawn.images).all()):
        raise RefusedError(
            "inversion: the generator's samples or the encoder's codes of them are not finite",
            hint="the weights diverged: train models.gan again at a lower learning_rate",
        )

    # whether samples have a way up
    some = slice(0, plan.turned)
    with freeze(generator, encoder), torch.no_grad():
        seen = Seen(drawn.seen[some], drawn.fields[some], drawn.look)
        errors = relative_errors(drawn.rebuilt[some], seen.images, seen.fields)
        lying = find_turned(seen, errors, 1 / plan.clearly, generator, encoder, plan)

    # the space of the codes, the threshold, the spread
    samples = GeneratorCodes(drawn.codes.double().cpu().numpy())
    spread = float((drawn.w - drawn.w.mean(dim=0)).square().mean().sqrt())
    return Reference(
        whitening=Whitening.fit(samples, plan.components),
        threshold=_threshold(drawn, plan),
        spread=max(spread, 1e-6),
        samples=samples,
        colours=mean_colours(drawn.images),
        look=look_rows(drawn.look)[0],
        upright=float(1 - lying.mean()) >= plan.least_upright
        and float(np.median(errors)) <= plan.most_error,
    )


@dataclass(frozen=True)
class _Samples:
    """Generator samples: w [M, d_w], images [M, C, H, W] and their mean look.

    In that look: as the encoder sees them, with their fields; its codes and rebuilt images.
    """

    w: Tensor
    images: Tensor
    look: Look
    seen: Tensor
    fields: Tensor
    codes: Tensor
    rebuilt: Tensor


def _draw_samples(
    generator: Generator, encoder: Encoder, plan: InversionPlan, random: torch.Generator
) -> _Samples:
    """Draw `plan.samples` samples, and invert them in their mean look, a batch at a time."""
    # the samples and their mean look
    drawn = []
    device = device_of(generator)
    with freeze(generator, encoder), torch.no_grad():
        for start in range(0, plan.samples, plan.batch):
            count = min(plan.batch, plan.samples - start)
            w = generator.mapping(draw_normal((count, generator.latent), random, device))
            image = generator.synthesis(generator.broadcast(w), noise=random).clamp(-1, 1)
            drawn.append((w, image))
        w, images = (torch.cat(column) for column in zip(*drawn, strict=True))
        common = average_looks(look_of(images, field_of(images)))

        # their inversions
        inverted = []
        for some in torch.split(images, plan.batch):
            seen = look_at(some, common)
            found = encoder.invert(
                seen.images, generator, plan.iterations, keep_best=True, fields=seen.fields
            )
            rebuilt = found.reconstructions.clamp(-1, 1)
            inverted.append((seen.images, seen.fields, found.codes.flatten(1), rebuilt))
        rest = (torch.cat(column) for column in zip(*inverted, strict=True))
        return _Samples(w, images, common, *rest)


def _threshold(drawn: _Samples, plan: InversionPlan) -> float:
    """The threshold from samples and the encoder's errors on them (`make_reference`)."""
    # the floors: a generator of little variety would reject everything
    unrelated = relative_errors(drawn.seen.roll(1, dims=0), drawn.seen, drawn.fields)
    foreign = max(float(np.quantile(unrelated, plan.mismatch_quantile)), plan.least_mismatch)
    errors = relative_errors(drawn.rebuilt, drawn.seen, drawn.fields)
    own = plan.own_factor * float(np.quantile(errors, plan.own_quantile))
    return min(foreign, max(own, plan.least_own))


def check_fit(generator: Generator, encoder: Encoder) -> None:
    """Raise ConfigurationError unless the two networks have one image size and code length."""
    of_generator = (generator.layer_count, generator.latent)
    of_encoder = (encoder.layer_count, encoder.latent)
    if of_generator != of_encoder:
        raise ConfigurationError(
            f"inversion: the generator's codes are [{of_generator[0]}, {of_generator[1]}], "
            f"the encoder's [{of_encoder[0]}, {of_encoder[1]}]",
            hint="start models.gan and models.encoder from checkpoints that were trained together",
        )


def mean_colours(x: Tensor) -> NDArray[np.float64]:
    """Return float64 [N, C]: each channel's mean in [0, 1], of images [N, C, H, W] in [-1, 1]."""
    return np.asarray(((x.double().clamp(-1, 1).mean((2, 3)) + 1) / 2).cpu())


def find_turned(
    seen: Seen,
    errors: NDArray[np.float64],
    margin: float,
    generator: Generator,
    encoder: Encoder,
    plan: InversionPlan,
) -> NDArray[np.bool_]:
    """Return bool [N]: True where an image inverts better turned by a quarter, by a factor.

    `errors`: relative, of images as they are. `margin`: the factor; above 1 it favours them.
    """
    lying = np.zeros(len(errors), bool)
    for start in range(0, len(errors), plan.batch):
        part = slice(start, start + plan.batch)
        for quarters in (1, 3):
            turned = seen.images[part].rot90(quarters, (2, 3))
            fields = seen.fields[part].rot90(quarters, (2, 3))
            inverted = encoder.invert(
                turned, generator, plan.iterations, keep_best=True, fields=fields
            )
            rebuilt = inverted.reconstructions.clamp(-1, 1)
            others = margin * relative_errors(rebuilt, turned, fields)
            lying[part] |= ~(errors[part] < others)
    return lying


@contextmanager
def freeze(*modules: nn.Module) -> Iterator[None]:
    """Let no parameter of `modules` require a gradient inside the block; restore each after it."""
    parameters = [p for module in modules for p in module.parameters()]
    before = [p.requires_grad for p in parameters]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p, flag in zip(parameters, before, strict=True):
            p.requires_grad_(flag)
