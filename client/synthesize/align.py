"""Local style alignment: each group's average code, moved until its image has the group's texture and content.

In: a `GroupStatistics` per group. Out: W+ codes [G, L, d_w], and from them uint8 images [G, H, W, C].

Guaranteed
1. A `GroupStatistics` can be constructed only for a `Group`, with at least k distinct patients behind every number.
2. The optimiser sees `GroupStatistics` and the study's weights, nothing else: no image, code or Gram of one patient.
3. Each patient weighs 1, whatever the number of images.
4. A group's result is never worse, by its own loss, than its plain average; the generator is bit-identical afterwards.
5. Each released image has fresh noise maps from the random source passed in.
6. Further images of a group (`outputs`) are post-processing: they see its aligned code, the generator and randomness,
   never a source image or how far the group's members lie apart.

Not covered: who knows k-1 members can subtract them from the mean (methods/ksalsa.md trap 24). Several images of one group
are not independent: they show the same patients, so who splits a release into folds must keep a group's images together;
on site their index in the evidence (`group_of`, in random order) says which belong together.
Source: Jeon et al. 2022, with our deviations: Grams are divided by C·h·w; every window of the average picks the best
window of each patient (so that k patients stand behind it) instead of the reverse; a trust region holds the code near
the average; features come from fixed random filters (style) and the study's critic (content), not from VGG and MoCo.

The content weight is small: at 1 that term and the texture pull apart on radiographs, and averages are worse than unaligned
ones (benchmarks/RESULTS.md).

    loss = content·(1 - <f(G(w)), f_mean>) + style·mean_j |C_j - T_j|² / mean_j |T_j|² + trust·mean (w - w_mean)²/spread²
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from client.state.group_store import Group
from client.synthesize.group import Roster
from client.synthesize.invert import Adam, Inversion, frozen
from common.errors import Bug, ConfigurationError, PolicyError
from common.models.images import to_uint8, to_unit
from common.models.stylegan import Critic, Generator

Progress = Callable[[int, int], None]
# the filters are public constants, the same on every site
STYLE_CHANNELS = 24
STYLE_SEED = 20220
CONTENT_CELLS = 4
LEAST_TEXTURE = 1e-12  # the squared Gram of a group without any texture counts as this
VARIATION = 0.35
SPREAD_SAMPLES = 256


@dataclass(frozen=True)
class AlignmentPlan:
    """Public constants of the alignment; the first five come from the study plan."""

    steps: int = 40
    windows: int = 2
    content_weight: float = 0.1
    style_weight: float = 1.0
    trust_weight: float = 0.05
    learning_rate: float = 0.1  # of the spread of w
    patience: int = 10
    batch: int = 16
    bfloat16: bool = False  # of the convolutions; Grams and losses stay in float32


@dataclass(frozen=True)
class PatientStatistics:
    """One patient: mean over the patient's images of code [L, d_w], content [D] and window Grams [P, C, C]. Private."""

    code: Tensor
    content: Tensor
    grams: Tensor


@dataclass(frozen=True)
class GroupStatistics:
    """A group's centroid [L, d_w], content mean [D] (not re-normalised), Gram targets [P, C, C] and `support` [P]: how
    many distinct patients stand behind each target. Raises PolicyError below k, Bug on what is not a `Group`."""

    group: Group
    centroid: Tensor
    content: Tensor
    grams: Tensor
    support: tuple[int, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.group, Group):
            raise Bug("group statistics: expected a Group; nothing else proves k distinct patients")
        if len(self.support) != len(self.grams) or min(self.support, default=0) < self.group.k:
            raise PolicyError(
                f"group statistics: expected at least k={self.group.k} distinct patients behind every window; got fewer",
                code="E-GROUP-SIZE",
            )
        if not all(
            bool(torch.isfinite(value).all()) for value in (self.centroid, self.content, self.grams)
        ):
            raise Bug(
                "group statistics: not finite; inversion must reject such an image before it is averaged"
            )


@dataclass(frozen=True)
class Aligned:
    """Codes [G, L, d_w], each group's loss [G] at its average and at the end, and the steps [G] it took. Site-local."""

    codes: Tensor
    before: Tensor
    after: Tensor
    steps: Tensor


def style_features(x: Tensor) -> Tensor:
    """Return [N, 24, H, W]: two 3×3 convolutions with fixed random filters and ReLU, of images in [-1, 1].

    The first filters have mean zero: brightness would drown the texture in a Gram.
    """
    first, second = _filters(x.shape[1])
    x = F.relu(F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), first))
    return F.relu(F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), second))


def window_grams(features: Tensor, windows: int) -> Tensor:
    """Return the Gram matrix [N, P, C, C] of each of P = windows² equal windows of [N, C, H, W], divided by C·h·w.

    Raises ConfigurationError when `windows` does not divide height and width.
    """
    n, c, height, width = features.shape
    if height % windows or width % windows:
        raise ConfigurationError(
            f"alignment: windows is {windows}; expected a divisor of {height} and {width}"
        )
    h = height // windows
    w = width // windows
    cells = features.float() if features.dtype == torch.bfloat16 else features
    cells = (
        cells.reshape(n, c, windows, h, windows, w)
        .permute(0, 2, 4, 1, 3, 5)
        .reshape(n * windows**2, c, h * w)
    )
    with torch.autocast(features.device.type, enabled=False):
        return torch.bmm(cells, cells.transpose(1, 2)).div(c * h * w).reshape(n, windows**2, c, c)


def content_features(critic: Critic, x: Tensor) -> Tensor:
    """Return unit vectors [N, D]: the critic's last two activations on a 4×4 grid, each centred and normalised.

    Centred over the grid: what all images share would hide where the disc and the vessels are.
    """
    taps = [F.adaptive_avg_pool2d(tap, CONTENT_CELLS) for tap in critic.features(x)[-2:]]
    centred = [(tap - tap.mean((2, 3), keepdim=True)).flatten(1) for tap in taps]
    return torch.cat([F.normalize(tap, dim=1) for tap in centred], dim=1) / math.sqrt(len(taps))


def measure_patients(
    images: NDArray[np.uint8],
    inversion: Inversion,
    who: Roster,
    critic: Critic,
    plan: AlignmentPlan,
) -> dict[str, PatientStatistics]:
    """Return each patient's statistics: style of the real images [N, H, W, C], content of the inverted ones.

    Only the images that count on the roster enter, and of these only accepted ones may be there (else Bug).
    """
    found = {}
    with frozen(critic), torch.no_grad():
        for name, rows in zip(who.pseudonyms, who.images, strict=True):
            index = list(rows)
            if not inversion.accepted[index].all():
                raise Bug(
                    "alignment: a rejected image on the roster; make it with usable=inversion.accepted"
                )
            grams = window_grams(style_features(to_unit(np.asarray(images[index]))), plan.windows)
            content = content_features(critic, inversion.reconstructions[index])
            found[name] = PatientStatistics(
                inversion.codes[index].mean(0), content.mean(0), grams.mean(0)
            )
    return found


def gather(
    groups: Sequence[Group],
    patients: Mapping[str, PatientStatistics],
    generator: Generator,
    plan: AlignmentPlan,
) -> list[GroupStatistics]:
    """Return the statistics of each group, the only thing that leaves this function about its members.

    Each window of the average's image takes, from every patient, the window with the most similar Gram (cosine), once.
    """
    gathered = []
    with frozen(generator), torch.no_grad():
        for group in groups:
            members = [patients[name] for name in group.members]
            centroid = torch.stack([m.code for m in members]).mean(0)
            own = window_grams(style_features(generator.synthesis(centroid[None])), plan.windows)[0]
            grams = torch.stack([m.grams for m in members])
            best = _cosines(own, grams).argmax(-1)  # [members, P]
            picked = grams[torch.arange(len(members))[:, None], best]  # [members, P, C, C]
            content = torch.stack([m.content for m in members]).mean(0)
            support = (len(members),) * len(own)
            gathered.append(GroupStatistics(group, centroid, content, picked.mean(0), support))
    return gathered


def align(
    statistics: Sequence[GroupStatistics],
    generator: Generator,
    critic: Critic,
    plan: AlignmentPlan,
    spread: float,
    progress: Progress = lambda done, total: None,
) -> Aligned:
    """Return aligned codes, `plan.batch` groups at a time. `spread` is the RMS deviation of w over generator samples."""
    if not statistics:
        raise ConfigurationError("alignment: expected at least one group; got none")
    parts = []
    with frozen(generator, critic):
        for start in range(0, len(statistics), plan.batch):
            parts.append(
                _align_batch(
                    statistics[start : start + plan.batch], generator, critic, plan, spread
                )
            )
            progress(min(start + plan.batch, len(statistics)), len(statistics))
    return Aligned(*(torch.cat(column) for column in zip(*parts, strict=True)))


def alignment_loss(
    codes: Tensor, targets: Sequence[GroupStatistics], generator: Generator, critic: Critic, plan: AlignmentPlan,
    spread: float,
) -> Tensor:  # fmt: skip
    """Return the loss [B] of codes [B, L, d_w] against each group's statistics (formula above)."""
    centroid, content, grams = (
        torch.stack([getattr(t, f) for t in targets]) for f in ("centroid", "content", "grams")
    )
    with torch.autocast(codes.device.type, torch.bfloat16, enabled=plan.bfloat16):
        image = generator.synthesis(codes)
        seen = content_features(critic, image).to(codes.dtype)
        drawn = style_features(image)
    away = 1 - (seen * content).sum(1)
    texture = (window_grams(drawn, plan.windows) - grams).square().sum((2, 3)).mean(1)
    texture = texture / grams.square().sum((2, 3)).mean(1).clamp_min(LEAST_TEXTURE)
    trust = ((codes - centroid) / spread).square().mean((1, 2))
    return plan.content_weight * away + plan.style_weight * texture + plan.trust_weight * trust


def render(codes: Tensor, generator: Generator, random: torch.Generator) -> NDArray[np.uint8]:
    """Return uint8 images [G, H, W, C] of codes [G, L, d_w], each with its own noise maps from `random`."""
    with torch.no_grad():
        images = [to_uint8(generator.synthesis(code[None], noise=random)) for code in codes]
    return np.concatenate(images)


def outputs(
    codes: Tensor,
    count: int,
    generator: Generator,
    random: torch.Generator,
    variation: float = VARIATION,
) -> list[NDArray[np.uint8]]:
    """Return `count` stacks of uint8 images [G, H, W, C] of codes [G, L, d_w]: the first of the codes themselves, each
    further one of codes moved by `variation` times the deviation of a fresh generator sample from their mean.

    Every image has its own noise maps. The moves are the generator's covariance, which is public or private by its own
    epsilon; the spread inside a group is not used. Raises ConfigurationError for a count below 1.
    """
    if count < 1:
        raise ConfigurationError(f"alignment: outputs a group is {count}; expected 1 or more")
    stacks = [render(codes, generator, random)]
    with torch.no_grad():
        mean = generator.mapping(
            torch.randn(SPREAD_SAMPLES, generator.latent, generator=random)
        ).mean(0)
        for _ in range(count - 1):
            w = generator.mapping(torch.randn(len(codes), generator.latent, generator=random))
            stacks.append(render(codes + variation * (w - mean)[:, None, :], generator, random))
    return stacks


def _align_batch(
    targets: Sequence[GroupStatistics],
    generator: Generator,
    critic: Critic,
    plan: AlignmentPlan,
    spread: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Best codes of a batch of groups, loss at the start, best loss, steps; a group that stalls is done."""
    codes = torch.stack([t.centroid for t in targets]).requires_grad_()
    adam = Adam(codes)
    best = codes.detach().clone()
    taken = torch.zeros(len(targets), dtype=torch.int64)
    lowest = torch.full((len(targets),), torch.inf)
    stale = torch.zeros(len(targets), dtype=torch.int64)
    first: list[Tensor] = []
    for step in range(plan.steps + 1):
        loss = alignment_loss(codes, targets, generator, critic, plan, spread)
        value = loss.detach()
        first = first or [value]
        better = (
            (stale < plan.patience) & (value < lowest)
            if step
            else torch.ones_like(value, dtype=torch.bool)
        )
        stale = torch.where(
            better & (value < lowest * (1 - 1e-3)), 0, stale + (stale < plan.patience)
        )
        best[better], lowest[better], taken[better] = codes.detach()[better], value[better], step
        if step == plan.steps or not (stale < plan.patience).any():
            break
        (gradient,) = torch.autograd.grad(loss.sum(), [codes])
        adam.step(gradient, plan.learning_rate * spread * _learning_rate(step, plan.steps))
    return best, first[0], lowest, taken


def _learning_rate(step: int, steps: int) -> float:
    """Ramp over the first 5 % from step + 1 (the first step moves), cosine tail over the last quarter."""
    ramp = min(1.0, (step + 1) / steps / 0.05)
    return ramp * 0.5 * (1 - math.cos(math.pi * min(1.0, (1 - step / steps) / 0.25)))


def _filters(channels: int) -> tuple[Tensor, Tensor]:
    """The fixed filters [24, C, 3, 3], each of mean zero over its window, and [24, 24, 3, 3]."""
    random = torch.Generator().manual_seed(STYLE_SEED)
    shapes = ((STYLE_CHANNELS, channels, 3, 3), (STYLE_CHANNELS, STYLE_CHANNELS, 3, 3))
    filters = [
        torch.nn.init.orthogonal_(torch.empty(shape), math.sqrt(2), generator=random)
        for shape in shapes
    ]
    return filters[0] - filters[0].mean((2, 3), keepdim=True), filters[1]


def _cosines(own: Tensor, grams: Tensor) -> Tensor:
    """Cosine [M, P, P'] between the average's windows [P, C, C] and those of each patient [M, P', C, C]."""
    return F.normalize(own.flatten(1), dim=1) @ F.normalize(grams.flatten(2), dim=2).transpose(1, 2)
