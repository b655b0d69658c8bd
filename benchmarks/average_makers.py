"""Ways of averaging for benchmarks/quality_fundus.py: the product's groupings and classical ones.

In: a `Part` with its checkpoint. Out: `Released` images, kept in the work folder.
Noise is drawn in `anchors` alone, and seeded there: the images are public.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.average_prepared import KEY, PreparedPart, save
from client.state.group_store import Group, Stratum
from client.state.ledger import PracticeReservation
from client.synthesize import anchors, partition
from client.synthesize.align import (
    align,
    gather_statistics,
    measure_patients,
    render,
)
from client.synthesize.appearance import Shown, gather_appearances
from client.synthesize.group import Mode, Roster, form_groups, patient_codes
from client.synthesize.metric import Metric, make_metric_cells, make_points
from client.synthesize.nearer import gather_features, keep_nearer
from client.synthesize.spread import find_directions
from common.arrays import Images, Labels
from common.models.pretrained_features import load_features
from common.privacy.anchors import NoisyAnchors
from common.privacy.noise import SeededNoiseSource

OUTPUTS = 4  # images of a group
DIRECTIONS = 2  # along which averages are moved
ANCHORS = "anchors, no labels"
ANCHORS_NOISE = 0.605  # epsilon 8 at delta 1e-5
ANCHORS_COMPONENTS = 32
ANCHORS_THRESHOLD_DELTA = 1e-6


@dataclass(frozen=True)
class Released:
    """What one way of averaging gives: images, labels, group number of each, and each group's
    members as person numbers.
    """

    images: Images
    labels: Labels
    group_of: Labels
    members: tuple[tuple[int, ...], ...]


def load_or_average(ready: PreparedPart, row: str, k: int) -> Released:
    """The released images of one row at one k, from a file where there is one."""
    file = ready.work / f"made-{row.replace('/', '-').replace(' ', '')}-{k}.npz"
    if not file.is_file():
        found = MAKERS[row](ready, k)
        sizes = np.array([len(m) for m in found.members])
        members = np.concatenate([np.array(m, np.int64) for m in found.members])
        save(
            file,
            images=found.images,
            labels=found.labels,
            group_of=found.group_of,
            sizes=sizes,
            members=members,
        )
    with np.load(file, allow_pickle=False) as data:
        ends = np.cumsum(data["sizes"])
        groups = tuple(tuple(part.tolist()) for part in np.split(data["members"], ends[:-1]))
        return Released(data["images"], data["labels"], data["group_of"], groups)


def form_row_groups(
    ready: PreparedPart, mode: Mode, k: int, metric: Metric = "codes"
) -> tuple[Group, ...]:
    """The product's groups."""
    cells = make_metric_cells(ready.known, metric) if mode == "cells" else None
    codes = None
    if mode == "paper":
        codes = patient_codes(ready.encoded, ready.who)
    elif mode != "random":
        codes = patient_codes(make_points(ready.seen, metric), ready.who)
    return form_groups(ready.who, k, mode, key=KEY, codes=codes, cells=cells).groups


def numbers(group: Group) -> tuple[int, ...]:
    return tuple(int(name) for name in group.members)


def maker_of(
    mode: Mode, outputs: int = 1, directions: int = 0, share: float = 1.0, metric: Metric = "codes"
) -> Callable[[PreparedPart, int], Released]:
    """The product's path (client/child/batch.py): groups, alignment, the average where its image is
    nearer, moving out along so many `directions` by a `share`, rendering.
    """

    def maker(ready: PreparedPart, k: int) -> Released:
        generator = ready.networks.generator
        critic = ready.networks.critic
        plan = ready.alignment_plan
        assert generator is not None and critic is not None
        images = ready.part.members.images
        common = ready.known.look_on()
        groups = form_row_groups(ready, mode, k, metric)
        patients = measure_patients(images, ready.seen, ready.who, generator, critic, plan, common)
        statistics = gather_statistics(groups, patients, generator, plan)
        aligned = align(statistics, generator, critic, plan, ready.known.spread).codes
        network = load_features()
        features = gather_features(images, groups, ready.who, network, common)
        appearances = gather_appearances(groups, ready.who, images, ready.seen)
        codes = keep_nearer(aligned, statistics, features, appearances, generator, network)
        if directions:
            codes = find_directions(ready.known, directions, k, mode, share).move_out(codes)
        return render_groups(ready, codes, groups, outputs)

    return maker


def render_groups(
    ready: PreparedPart, codes: torch.Tensor, groups: Sequence[Group], outputs: int = 1
) -> Released:
    """Images of the groups' codes, in their members' mean look."""
    assert ready.networks.generator is not None
    random = torch.Generator().manual_seed(3)
    images = ready.part.members.images
    appearances = gather_appearances(groups, ready.who, images, ready.seen)
    shown = Shown(ready.known.look_on(), appearances)
    stacks = [render(codes, ready.networks.generator, random, shown) for _ in range(outputs)]
    made = np.concatenate(stacks)
    labels = np.array([g.stratum.label for g in groups] * outputs, np.int64)
    return Released(
        made, labels, np.tile(np.arange(len(groups)), outputs), tuple(numbers(g) for g in groups)
    )


def centroid_of(mode: Mode) -> Callable[[PreparedPart, int], Released]:
    """The mean code of the groups of `mode`, not aligned."""

    def maker(ready: PreparedPart, k: int) -> Released:
        groups = form_row_groups(ready, mode, k)
        codes = torch.from_numpy(ready.seen.codes)
        rows_of = dict(zip(ready.who.pseudonyms, ready.who.images, strict=True))
        means = []
        for group in groups:
            each = [codes[list(rows_of[member])].mean(0) for member in group.members]
            means.append(torch.stack(each).mean(0))
        return render_groups(ready, torch.stack(means), groups)

    return maker


def publish_anchors(ready: PreparedPart, k: int) -> Released:
    """Mode `anchors` on all members as one stratum without labels: three strata of these are too
    few for cells of 3k.
    """
    who = Roster(ready.who.pseudonyms, (Stratum(0),) * len(ready.who.pseudonyms), ready.who.images)
    mechanism = NoisyAnchors(
        ANCHORS_NOISE,
        ANCHORS_COMPONENTS,
        len(who.pseudonyms) // (3 * k),
        k,
        ANCHORS_THRESHOLD_DELTA,
    )
    centres = anchors.make_cells(ready.known.samples, ready.known.whitening).centres
    cells = partition.Cells(centres[: mechanism.cells, : mechanism.components])
    means = anchors.noisy_means(
        who,
        ready.codes[:, : mechanism.components],
        cells,
        [Stratum(0)],
        mechanism,
        PracticeReservation(mechanism),
        SeededNoiseSource(5),
    )
    assert ready.networks.generator is not None
    codes = anchors.latents(
        [mean.code for mean in means], ready.known.whitening, ready.networks.generator
    )
    return render_groups(ready, codes, [mean.group for mean in means])


def same_pixel(ready: PreparedPart, k: int) -> Released:
    """k-Same-Pixel (Newton et al. 2005): the greedy rule and the mean, both of pixels."""
    flat = person_means(
        ready, ready.part.members.images.reshape(len(ready.part.members.images), -1) / 255.0
    )
    return classical(ready, flat, flat, k)


def same_pca(ready: PreparedPart, k: int) -> Released:
    """k-Same-Eigen: the greedy rule and the mean in the principal components of the members' pixels
    (95 % of variance).
    """
    flat = person_means(
        ready, ready.part.members.images.reshape(len(ready.part.members.images), -1) / 255.0
    )
    middle = flat.mean(0)
    left, singular, axes = np.linalg.svd(flat - middle, full_matrices=False)
    count = int(np.searchsorted(np.cumsum(singular**2) / (singular**2).sum(), 0.95)) + 1
    weights = left[:, :count] * singular[:count]
    return classical(ready, weights, weights @ axes[:count] + middle, k)


def person_means(ready: PreparedPart, rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over a person's images in roster order."""
    return np.stack([rows[list(images)].mean(0) for images in ready.who.images])


def classical(
    ready: PreparedPart, points: NDArray[np.float64], pictures: NDArray[np.float64], k: int
) -> Released:
    """Groups by the paper's greedy rule on `points`, images by the mean of `pictures`, label by
    label.
    """
    images = []
    labels = []
    members = []
    strata = np.array([s.label for s in ready.who.strata])
    for label in np.unique(strata):
        rows = np.flatnonzero(strata == label)
        if len(rows) < k:
            continue
        for part in partition.parts_of(partition.greedy_paper(points[rows], k)):
            images.append(pictures[rows[part]].mean(0).reshape(ready.part.members.images.shape[1:]))
            labels.append(int(label))
            members.append(tuple(int(ready.who.pseudonyms[i]) for i in rows[part]))
    pixels = (np.stack(images) * 255).round().clip(0, 255).astype(np.uint8)
    return Released(pixels, np.array(labels, np.int64), np.arange(len(labels)), tuple(members))


PLAIN: tuple[Mode, ...] = ("similar", "similar-swap", "cells", "random", "paper")
MOVED: tuple[Mode, ...] = ("similar", "cells", "random")
BY_COLOUR: tuple[Mode, ...] = ("similar", "cells")
OF_SEVERAL: tuple[Mode, ...] = ("cells", "similar")
MAKERS: dict[str, Callable[[PreparedPart, int], Released]] = {
    **{mode: maker_of(mode) for mode in PLAIN},
    **{f"{mode}, moved out": maker_of(mode, directions=DIRECTIONS) for mode in MOVED},
    **{f"{mode}, by colour": maker_of(mode, metric="colour") for mode in BY_COLOUR},
    "cells, moved out by 3/4": maker_of("cells", directions=DIRECTIONS, share=0.75),
    **{f"{mode}, {OUTPUTS} outputs": maker_of(mode, OUTPUTS) for mode in OF_SEVERAL},
    ANCHORS: publish_anchors,
    "centroid": centroid_of("similar"),
    "cells, centroid": centroid_of("cells"),
    "same-pixel": same_pixel,
    "same-pca": same_pca,
}
