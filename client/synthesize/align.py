"""Aligns each group's average code, so that its image has the group's texture and content.

In: a `GroupStatistics` per group.
Out: W+ codes [G, L, d_w], and from them uint8 images [G, H, W, C].
Guarantees:
  1. a `GroupStatistics` exists only for a `Group`, with at least k distinct patients behind every
     number
  2. the optimiser sees `GroupStatistics` and the study's weights: no image, code or Gram of one
     patient
  3. each patient weighs 1, whatever the number of images
  4. by its own loss a group's result is never worse than its plain average; the generator stays
     bit-identical
  5. each released image has fresh noise maps from the random source passed in
  6. further images of a group are post-processing: they see its aligned code, the generator and
     randomness, never a source image or how far the members lie apart
Not covered:
  - whoever knows k-1 members can subtract them from the mean
  - several images of one group are not independent: whoever splits a release into folds must keep
    them together; on site, `group_of` in the evidence says which belong together

    loss = content·(1 - <f(G(w)), f_mean>) + style·mean_j |C_j - T_j|² / mean_j |T_j|²
         + trust·mean (w - w_mean)²/spread²

Source: Jeon et al. 2022; what is changed and why: docs/methods/k-salsa.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.state.group_store import Group
from client.synthesize.appearance import Shown
from client.synthesize.descent import CodeDescent
from client.synthesize.features import content_features, cosines, style_features, window_grams
from client.synthesize.group import Roster
from client.synthesize.invert import Inversion, reconstruct
from client.synthesize.looks import look_at
from client.synthesize.reference import freeze
from common.errors import Bug, ConfigurationError, PolicyError
from common.models.draws import device_of, draw_normal
from common.models.images import to_levels, to_unit
from common.models.look import Look
from common.models.stylegan import Critic, Generator

Progress = Callable[[int, int], None]
LEAST_TEXTURE = 1e-12  # the squared Gram of a group without any texture counts as this
VARIATION = 0.35  # of further images, in deviations of generator samples
SPREAD_SAMPLES = 256  # whose mean those deviations are taken from
CLEARLY_LOWER = 1 - 1e-3  # a smaller decrease of the loss counts as a stall


@dataclass(frozen=True)
class AlignmentPlan:
    """Public constants of the alignment; the first five come from the study plan."""

    steps: int = 40
    windows: int = 2
    # small: at 1, content and texture pull apart on radiographs, and averages get worse than
    # unaligned ones
    content_weight: float = 0.1
    style_weight: float = 1.0
    trust_weight: float = 0.05
    learning_rate: float = 0.1  # of the spread of w
    patience: int = 10
    batch: int = 16
    bfloat16: bool = False  # of the convolutions; Grams and losses stay in float32


@dataclass(frozen=True)
class PatientStatistics:
    """One patient's means over images: code [L, d_w], content [D], window Grams [P, C, C].

    These are private.
    """

    code: Tensor
    content: Tensor
    grams: Tensor


@dataclass(frozen=True)
class GroupStatistics:
    """A group's centroid [L, d_w], content mean [D] (not re-normalised), Gram targets [P, C, C].

    `support` [P]: how many distinct patients stand behind each target. Raises PolicyError below k,
    Bug for what is not a `Group` or not finite.
    """

    group: Group
    centroid: Tensor
    content: Tensor
    grams: Tensor
    support: tuple[int, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.group, Group):
            raise Bug("group statistics: expected a Group; nothing else proves k distinct patients")
        # k distinct patients behind every window
        if len(self.support) != len(self.grams) or min(self.support, default=0) < self.group.k:
            raise PolicyError(
                f"group statistics: expected at least k={self.group.k} distinct patients "
                "behind every window; got fewer",
                code="E-GROUP-SIZE",
            )
        # a number that is not finite would spread to all patients of the group
        for value in (self.centroid, self.content, self.grams):
            if not bool(torch.isfinite(value).all()):
                raise Bug(
                    "group statistics: not finite; inversion must reject such an image "
                    "before it is averaged"
                )


@dataclass(frozen=True)
class Aligned:
    """Codes [G, L, d_w]; each group's loss [G] at its average and at the end; its steps [G].

    These stay on the site.
    """

    codes: Tensor
    before: Tensor
    after: Tensor
    steps: Tensor


def measure_patients(
    images: NDArray[np.uint8],
    inversion: Inversion,
    who: Roster,
    generator: Generator,
    critic: Critic,
    plan: AlignmentPlan,
    common: Look,
) -> dict[str, PatientStatistics]:
    """Return each patient's statistics.

    The style is that of the real images [N, H, W, C] in the generator's common look, the content
    that of the inverted ones, which the generator shows again. Only images on the roster enter,
    `plan.batch` at a time. Raises Bug if one of them was rejected by the inversion.
    """
    found = {}
    device = device_of(generator)
    with freeze(generator, critic), torch.no_grad():
        for name, rows in zip(who.pseudonyms, who.images, strict=True):
            index = list(rows)
            if not inversion.accepted[index].all():
                raise Bug(
                    "alignment: a rejected image on the roster; use usable=inversion.accepted"
                )
            # features of each image, then their means
            grams: list[Tensor] = []
            content: list[Tensor] = []
            for start in range(0, len(index), plan.batch):
                some = index[start : start + plan.batch]
                real = look_at(to_unit(np.asarray(images[some]), device), common).images
                grams.append(window_grams(style_features(real), plan.windows))
                seen = reconstruct(inversion.codes[some], generator)
                content.append(content_features(critic, seen))
            code = torch.from_numpy(np.array(inversion.codes[index])).to(device).mean(0)
            means = torch.cat(content).mean(0), torch.cat(grams).mean(0)
            found[name] = PatientStatistics(code, *means)
    return found


def gather_statistics(
    groups: Sequence[Group],
    patients: Mapping[str, PatientStatistics],
    generator: Generator,
    plan: AlignmentPlan,
) -> list[GroupStatistics]:
    """Return the statistics of each group: all that leaves this function about its members.

    Each window of the average's image takes, from every patient, the window with the most similar
    Gram (cosine).
    """
    gathered = []
    with freeze(generator), torch.no_grad():
        for group in groups:
            # the average code, and the window Grams of its image
            members = [patients[name] for name in group.members]
            centroid = torch.stack([member.code for member in members]).mean(0)
            own = window_grams(style_features(generator.synthesis(centroid[None])), plan.windows)[0]
            # each patient's best window for each of them
            grams = torch.stack([member.grams for member in members])
            best = cosines(own, grams).argmax(-1)  # [members, P]
            patient = torch.arange(len(members), device=best.device)[:, None]
            picked = grams[patient, best]  # [members, P, C, C]
            # every patient stands behind every window
            content = torch.stack([member.content for member in members]).mean(0)
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
    """Return aligned codes, `plan.batch` groups at a time.

    `spread`: the RMS deviation of w over generator samples.
    """
    if not statistics:
        raise ConfigurationError("alignment: expected at least one group; got none")
    parts = []
    with freeze(generator, critic):
        for start in range(0, len(statistics), plan.batch):
            some = statistics[start : start + plan.batch]
            parts.append(_align_batch(some, generator, critic, plan, spread))
            progress(min(start + plan.batch, len(statistics)), len(statistics))
    return Aligned(*(torch.cat(column) for column in zip(*parts, strict=True)))


def alignment_loss(
    codes: Tensor,
    targets: Sequence[GroupStatistics],
    generator: Generator,
    critic: Critic,
    plan: AlignmentPlan,
    spread: float,
) -> Tensor:
    """Return the loss [B] of codes [B, L, d_w] against each group's statistics (formula above)."""
    centroid = torch.stack([target.centroid for target in targets])
    content = torch.stack([target.content for target in targets])
    grams = torch.stack([target.grams for target in targets])

    # features of the codes' images
    with torch.autocast(codes.device.type, torch.bfloat16, enabled=plan.bfloat16):
        image = generator.synthesis(codes)
        seen = content_features(critic, image).to(codes.dtype)
        drawn = style_features(image)

    # the three terms, each [B]
    away = 1 - (seen * content).sum(1)
    texture = (window_grams(drawn, plan.windows) - grams).square().sum((2, 3)).mean(1)
    texture = texture / grams.square().sum((2, 3)).mean(1).clamp_min(LEAST_TEXTURE)
    trust = ((codes - centroid) / spread).square().mean((1, 2))
    return plan.content_weight * away + plan.style_weight * texture + plan.trust_weight * trust


def render(
    codes: Tensor, generator: Generator, random: torch.Generator, shown: Shown | None = None
) -> NDArray[np.uint8]:
    """Return uint8 images [G, H, W, C] of codes [G, L, d_w].

    Each has its own noise maps from `random`, and is `shown` as its group is; without that, in the
    generator's own look. They come back from the device at once.
    """
    levels: list[Tensor] = []
    with torch.no_grad():
        for row, code in enumerate(codes.to(device_of(generator))):
            image = generator.synthesis(code[None], noise=random)
            if shown is not None:
                image = shown.show(row, image)
            levels.append(to_levels(image))
        return np.asarray(torch.cat(levels).cpu())


def render_outputs(
    codes: Tensor,
    count: int,
    generator: Generator,
    random: torch.Generator,
    variation: float = VARIATION,
    shown: Shown | None = None,
) -> list[NDArray[np.uint8]]:
    """Return `count` stacks of uint8 images [G, H, W, C] of codes [G, L, d_w].

    The first stack shows the codes themselves. Each further one shows codes that were moved: by
    `variation` times the deviation of a fresh generator sample from the samples' mean. Every image
    has its own noise maps. The moves follow the generator's covariance, which is public or private
    by its own epsilon. The spread inside a group is not used.
    Raises ConfigurationError for a count below 1.
    """
    if count < 1:
        raise ConfigurationError(f"alignment: outputs a group is {count}; expected 1 or more")
    # the codes themselves
    device = device_of(generator)
    codes = codes.to(device)
    stacks = [render(codes, generator, random, shown)]
    # the codes moved, each by a fresh sample
    with torch.no_grad():
        z = draw_normal((SPREAD_SAMPLES, generator.latent), random, device)
        mean = generator.mapping(z).mean(0)
        for _ in range(count - 1):
            w = generator.mapping(draw_normal((len(codes), generator.latent), random, device))
            moved = codes + variation * (w - mean)[:, None, :]
            stacks.append(render(moved, generator, random, shown))
    return stacks


def _align_batch(
    targets: Sequence[GroupStatistics],
    generator: Generator,
    critic: Critic,
    plan: AlignmentPlan,
    spread: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Best codes of a batch of groups, loss at the start, best loss, steps to it.

    A group whose loss has stalled for `plan.patience` steps keeps its best codes.
    """
    # start at the averages
    codes = torch.stack([t.centroid for t in targets]).requires_grad_()
    adam = CodeDescent(codes)
    best = codes.detach().clone()
    device = codes.device
    taken = torch.zeros(len(targets), dtype=torch.int64, device=device)
    lowest = torch.full((len(targets),), torch.inf, device=device)
    stale = torch.zeros(len(targets), dtype=torch.int64, device=device)
    first: list[Tensor] = []
    for step in range(plan.steps + 1):
        loss = alignment_loss(codes, targets, generator, critic, plan, spread)
        value = loss.detach()
        first = first or [value]

        # keep the best codes of each group that has not stalled; the average counts in any case
        better = (stale < plan.patience) & (value < lowest)
        if step == 0:
            better = torch.ones_like(value, dtype=torch.bool)
        clearly = better & (value < lowest * CLEARLY_LOWER)
        stale = torch.where(clearly, 0, stale + (stale < plan.patience))
        best = torch.where(better[:, None, None], codes.detach(), best)
        lowest = torch.where(better, value, lowest)
        taken = torch.where(better, step, taken)
        if step == plan.steps or not (stale < plan.patience).any():
            break

        # one step of Adam
        (gradient,) = torch.autograd.grad(loss.sum(), [codes])
        adam.step(gradient, plan.learning_rate * spread * _learning_rate(step, plan.steps))
    return best, first[0], lowest, taken


def _learning_rate(step: int, steps: int) -> float:
    """The share of the learning rate: a ramp over the first 5 %, a cosine tail over the last 25 %.

    The ramp counts from step + 1, so the first step moves.
    """
    ramp = min(1.0, (step + 1) / steps / 0.05)
    return ramp * 0.5 * (1 - math.cos(math.pi * min(1.0, (1 - step / steps) / 0.25)))
