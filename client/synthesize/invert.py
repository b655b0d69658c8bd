"""Images into W+ codes: by the encoder's iterations, refined by optimisation, each with an inversion error.

In: uint8 images [N, H, W, C], the study's generator and encoder. Out: an `Inversion`: codes, reconstructions, an error
per image and which images are accepted.

Guaranteed
1. What decides about acceptance (`Reference`: threshold, whether samples have a way up, whitening, spread of w) is
   computed from generator samples before an image of the cohort is seen; nothing in it is fitted to the cohort.
2. A constant or black image is rejected by rule, an image that the generator cannot express by the threshold, one that
   lies on its side by the encoder's errors on it and on it turned by a quarter, and so is whatever gives a code that is
   not finite. A rejected image does not count to k: pass `accepted` to `group.roster`.
3. No image influences another image's code beyond rounding; nothing is random; the generator is not changed.

Not covered: a small error is no proof that the medical content survived (methods/ksalsa.md trap 26); an image on its head
(an eye turned by 180 degrees looks like the other eye).
Source: ReStyle (Alaluf et al. 2021) for the encoder, then optimisation in W+ (Karras et al. 2020, appendix D).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import Bug, ConfigurationError, RefusedError
from common.models.encoder import Encoder
from common.models.images import to_unit
from common.models.stylegan import Generator

Progress = Callable[[int, int], None]
BLANK_DEVIATION = 0.02  # of the grey values in [0, 1]: below it an image shows nothing
EIGENVALUE_FLOOR = 1e-4  # of the largest eigenvalue (methods/ksalsa.md 3.2)


@dataclass(frozen=True)
class InversionPlan:
    """Public constants of the inversion; `steps` and `iterations` come from the study plan."""

    steps: int = 20
    iterations: int = 3
    learning_rate: float = 0.05
    trust_weight: float = 0.003
    batch: int = 16
    samples: int = 192
    components: int = 64
    mismatch_quantile: float = 0.1
    least_mismatch: float = 0.12
    own_quantile: float = 0.99
    own_factor: float = 4.0
    least_own: float = 0.06
    turned: int = 48  # samples that are also looked at lying on their sides
    least_upright: float = (
        0.9  # share of them that must invert best upright, or the generator knows no way up
    )
    clearly: float = (
        1.5  # by this factor: samples of an untrained generator invert a little better one way
    )


@dataclass(frozen=True)
class GeneratorCodes:
    """Encoder codes of generator samples, float64 [M, D]. Only `reference` makes them: never of the cohort."""

    codes: NDArray[np.float64]


@dataclass(frozen=True)
class Whitening:
    """Principal components of generator codes, each scaled to unit variance (eigenvalues floored)."""

    mean: NDArray[np.float64]
    directions: NDArray[np.float64]

    @classmethod
    def fit(cls, of: GeneratorCodes, components: int) -> Whitening:
        """Return the whitening by up to `components` principal directions; refuses anything but `GeneratorCodes`."""
        if not isinstance(of, GeneratorCodes):
            raise Bug(
                "Whitening.fit takes GeneratorCodes; the cohort's codes must not shape the space"
            )
        mean = of.codes.mean(axis=0)
        _, singular, directions = np.linalg.svd(of.codes - mean, full_matrices=False)
        variance = singular**2 / max(1, len(of.codes) - 1)
        count = int(min(components, len(of.codes) - 1, (variance > 0).sum()))
        scale = np.sqrt(np.maximum(variance, EIGENVALUE_FLOOR * variance[0]))[:count]
        return cls(mean, directions[:count].T / scale)

    def __call__(self, codes: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return float64 [N, components] for codes [N, ...]."""
        flat = np.asarray(codes, np.float64).reshape(len(codes), -1)
        return np.asarray((flat - self.mean) @ self.directions)


@dataclass(frozen=True)
class Reference:
    """What the generator alone says: whitening, reject threshold (RMSE in [0, 1] units), spread of w (RMS), the codes
    of its samples, around which `anchors.cells_of` lays cells, their mean colours float64 [M, C], and whether they have a
    way up."""

    whitening: Whitening
    threshold: float
    spread: float
    samples: GeneratorCodes
    colours: NDArray[np.float64]
    upright: bool = False


@dataclass(frozen=True)
class Inversion:
    """Per image: `encoded` (encoder) and `codes` (refined) float32 [N, L, d_w], `reconstructions` float32 [N, C, H, W],
    `errors` float64 [N] (RMSE, image range [0, 1]) and `accepted` bool [N]. Group on `encoded`, average `codes`."""

    encoded: Tensor
    codes: Tensor
    reconstructions: Tensor
    errors: NDArray[np.float64]
    accepted: NDArray[np.bool_]


def reference(
    generator: Generator, encoder: Encoder, plan: InversionPlan, random: torch.Generator
) -> Reference:
    """Return the reference from `plan.samples` generator samples (`random` may be seeded: nothing here is private).

    Threshold: the smaller of two RMSEs. (a) The `mismatch_quantile` between unrelated samples: a reconstruction further
    away than that is not about this image. (b) `own_factor` times the `own_quantile` of the encoder's errors on samples:
    an image so much worse than what the generator can make is none of its kind. Each has a floor, or a generator of
    little variety would reject everything. The threshold is loose where samples are various (0.12 for the fundus checkpoint
    of 2026-11-25), and a photograph on its side stays below it; so `upright` says whether `least_upright` of `plan.turned`
    samples give the encoder a smaller error, by the factor `clearly`, as they are than turned by a quarter either way: then
    `invert` asks each image for a smaller error. Where images have no way up the threshold decides alone.
    Raises ConfigurationError for fewer than 8 samples or networks of different sizes, RefusedError for weights whose
    samples or codes are not finite.
    """
    if plan.samples < 8:
        raise ConfigurationError(f"inversion: samples is {plan.samples}; expected 8 or more")
    _check_fit(generator, encoder)
    codes = []
    images = []
    rebuilt = []
    means = []
    with frozen(generator, encoder), torch.no_grad():
        for start in range(0, plan.samples, plan.batch):
            w = generator.mapping(
                torch.randn(
                    min(plan.batch, plan.samples - start), generator.latent, generator=random
                )
            )
            image = generator.synthesis(generator.broadcast(w), noise=random).clamp(-1, 1)
            inverted = encoder.invert(image, generator, plan.iterations, keep_best=True)
            codes.append(inverted.codes.flatten(1))
            rebuilt.append(inverted.reconstructions.clamp(-1, 1))
            images.append(image)
            means.append(w)
    every = torch.cat(codes)
    x = torch.cat(images)
    w = torch.cat(means)
    if not (torch.isfinite(every).all() and torch.isfinite(x).all()):
        raise RefusedError(
            "inversion: the generator's samples or the encoder's codes of them are not finite; nothing can be inverted",
            hint="the weights diverged: train models.gan again at a lower learning_rate",
        )
    samples = GeneratorCodes(every.double().numpy())
    whitening = Whitening.fit(samples, plan.components)
    foreign = max(
        float(np.quantile(_rmse(x, x.roll(1, dims=0)), plan.mismatch_quantile)), plan.least_mismatch
    )
    own = plan.own_factor * float(np.quantile(_rmse(x, torch.cat(rebuilt)), plan.own_quantile))
    threshold = min(foreign, max(own, plan.least_own))
    spread = float((w - w.mean(dim=0)).square().mean().sqrt())
    some = x[: plan.turned]
    with frozen(generator, encoder), torch.no_grad():
        own_errors = plan.clearly * _rmse(some, torch.cat(rebuilt)[: plan.turned])
        lying = _on_its_side(some, own_errors, generator, encoder, plan)
    upright = float(1 - lying.mean()) >= plan.least_upright
    return Reference(whitening, threshold, max(spread, 1e-6), samples, mean_colours(x), upright)


def invert(
    images: NDArray[np.uint8],
    generator: Generator,
    encoder: Encoder,
    plan: InversionPlan,
    known: Reference,
    progress: Progress = lambda done, total: None,
) -> Inversion:
    """Return the inversion of uint8 images [N, H, W, C], `plan.batch` at a time; `known` was made before.

    Raises ConfigurationError when there is no image, or when its size or the encoder's is not the generator's.
    """
    _check_fit(generator, encoder)
    expected = (generator.size_px, generator.size_px, generator.channels)
    if len(images) == 0 or images.shape[1:] != expected or images.dtype != np.uint8:
        raise ConfigurationError(
            f"inversion: expected uint8 images of {expected}; got {images.dtype} {images.shape[1:]}"
        )
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    errors: list[NDArray[np.float64]] = []
    lying: list[NDArray[np.bool_]] = []
    with frozen(generator, encoder):
        for start in range(0, len(images), plan.batch):
            x = to_unit(np.asarray(images[start : start + plan.batch]))
            with torch.no_grad():
                first = encoder.invert(x, generator, plan.iterations, keep_best=True)
                encoded = first.codes
                own = _rmse(x, first.reconstructions.clamp(-1, 1))
                looks = known.upright and _on_its_side(x, own, generator, encoder, plan)
                lying.append(np.broadcast_to(looks, len(x)))
            codes = _refined(x, encoded, generator, plan, known.spread)
            with torch.no_grad():
                seen = generator.synthesis(codes).clamp(-1, 1)
            parts.append((encoded, codes, seen))
            errors.append(_rmse(x, seen))
            progress(min(start + plan.batch, len(images)), len(images))
    encoded, codes, seen = (torch.cat(column) for column in zip(*parts, strict=True))
    error = np.concatenate(errors)
    finite = torch.isfinite(codes).flatten(1).all(1) & torch.isfinite(encoded).flatten(1).all(1)
    accepted = finite.numpy() & np.isfinite(error) & (error <= known.threshold) & ~blank(images)
    accepted &= ~np.concatenate(lying)
    return Inversion(encoded, codes, seen, error, accepted)


def _check_fit(generator: Generator, encoder: Encoder) -> None:
    """Raises ConfigurationError when the two networks are not of one image size and code length."""
    of_generator, of_encoder = ((net.layer_count, net.latent) for net in (generator, encoder))
    if of_generator != of_encoder:
        raise ConfigurationError(
            f"inversion: the generator's codes are [{of_generator[0]}, {of_generator[1]}], the encoder's "
            f"[{of_encoder[0]}, {of_encoder[1]}]",
            hint="start models.gan and models.encoder from checkpoints that were trained together",
        )


def mean_colours(x: Tensor) -> NDArray[np.float64]:
    """Return float64 [N, C]: the mean of each channel of images [N, C, H, W] in [-1, 1], in [0, 1]."""
    return np.asarray((x.double().clamp(-1, 1).mean((2, 3)) + 1) / 2)


def _on_its_side(
    x: Tensor,
    errors: NDArray[np.float64],
    generator: Generator,
    encoder: Encoder,
    plan: InversionPlan,
) -> NDArray[np.bool_]:
    """bool [N]: True unless the encoder's `errors` on images [N, C, S, S] are below those on them turned by a quarter."""
    lying = np.zeros(len(x), bool)
    for start in range(0, len(x), plan.batch):
        part = slice(start, start + plan.batch)
        for quarters in (1, 3):
            turned = x[part].rot90(quarters, (2, 3))
            inverted = encoder.invert(turned, generator, plan.iterations, keep_best=True)
            rebuilt = inverted.reconstructions.clamp(-1, 1)
            lying[part] |= ~(errors[part] < _rmse(turned, rebuilt))
    return lying


def blank(images: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return bool [N]: True where a uint8 image [N, H, W, C] is black or constant."""
    grey = [float(image.mean(axis=-1, dtype=np.float64).std()) / 255 for image in images]
    return np.array(grey) < BLANK_DEVIATION


def _refined(
    x: Tensor, start: Tensor, generator: Generator, plan: InversionPlan, spread: float
) -> Tensor:
    """Codes after `plan.steps` of Adam on the pixels at three scales, held near the encoder's codes."""
    codes = start.clone().requires_grad_()
    adam = Adam(codes)
    for step in range(plan.steps):
        loss = _pyramid_error(generator.synthesis(codes), x).sum()
        loss = loss + plan.trust_weight * ((codes - start) / spread).square().mean((1, 2)).sum()
        (gradient,) = torch.autograd.grad(loss, [codes])
        adam.step(gradient, plan.learning_rate * spread * (1 - step / plan.steps))
    return codes.detach()


class Adam:
    """Adam (Kingma and Ba 2015) on one tensor, in place; a gradient that is not finite counts as 0.

    Why not torch.optim: its first use imports torch's compiler, 7 CPU-seconds in every child process.
    """

    def __init__(self, values: Tensor, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        self.values = values
        self.betas = betas
        self.steps = 0
        self.mean = torch.zeros_like(values)
        self.square = torch.zeros_like(values)

    def step(self, gradient: Tensor, learning_rate: float) -> None:
        """Move the values once against `gradient`."""
        gradient = torch.nan_to_num(gradient.detach(), nan=0.0, posinf=0.0, neginf=0.0)
        first, second = self.betas
        self.steps += 1
        self.mean.lerp_(gradient, 1 - first)
        self.square.lerp_(gradient.square(), 1 - second)
        scale = (self.square / (1 - second**self.steps)).sqrt_().add_(1e-8)
        with torch.no_grad():
            self.values -= learning_rate / (1 - first**self.steps) * self.mean / scale


def _pyramid_error(a: Tensor, b: Tensor) -> Tensor:
    """Squared difference [N], averaged over full, half and quarter resolution."""
    terms = [
        (F.avg_pool2d(a - b, s) if s > 1 else a - b).square().mean((1, 2, 3)) for s in (1, 2, 4)
    ]
    return torch.stack(terms).mean(0)


def _rmse(a: Tensor, b: Tensor) -> NDArray[np.float64]:
    """Root mean square difference [N] of images in [-1, 1], in units of the range [0, 1]."""
    return np.asarray((a - b).double().square().mean((1, 2, 3)).sqrt().div(2))


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """No parameter of `modules` requires a gradient inside; afterwards each is as before."""
    parameters = [p for module in modules for p in module.parameters()]
    before = [p.requires_grad for p in parameters]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p, flag in zip(parameters, before, strict=True):
            p.requires_grad_(flag)
