"""Ways of averaging for benchmarks/quality_fundus.py: the product's groupings and classical ones.

In: a `Part` with its checkpoint. Out: `Released` images, kept in the work folder.
Noise is drawn in `anchors` alone, and seeded there: the images are public.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.average_people import Part
from client.state.group_store import Group, Stratum
from client.state.ledger import PracticeReservation
from client.synthesize import anchors, partition
from client.synthesize.align import (
    AlignmentPlan,
    align,
    gather_statistics,
    measure_patients,
    render,
)
from client.synthesize.group import Mode, Roster, form_groups, patient_codes, roster
from client.synthesize.invert import Inversion, invert
from client.synthesize.metric import Metric, make_metric_cells, make_points
from client.synthesize.reference import InversionPlan, Reference, make_reference
from client.synthesize.spread import find_directions
from common.arrays import Images, Labels
from common.models.encoder import load_encoder
from common.models.stylegan import load_critic, load_generator
from common.privacy.anchors import NoisyAnchors
from common.privacy.noise import SeededNoiseSource
from common.storage.files import atomic_write, read_capped
from common.study.plan import Study
from common.study.training import GanPlan
from common.wire.tensors import read
from server.evaluate import siamese
from server.evaluate.attack_spaces import Networks
from server.evaluate.attacks import Battery, People

KEY = b"kohort-benchmark-quality-fundus!"
CAP_BYTES = 1 << 31
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


class PreparedPart:
    """One part with its networks, its inverted members and its files in `work`; everything is
    computed once.
    """

    def __init__(self, part: Part, work: Path, study: Study) -> None:
        self.part = part
        self.study = study
        digest = hashlib.sha256(
            read_capped(part.checkpoint / "gan.safetensors", CAP_BYTES)
        ).hexdigest()[:8]
        self.work = work / f"{part.name}-{digest}"
        self.work.mkdir(parents=True, exist_ok=True)

    @cached_property
    def networks(self) -> Networks:
        """Generator, critic and encoder of the checkpoint; sizes from the tensors."""
        gan = read(self.part.checkpoint / "gan.safetensors", max_bytes=CAP_BYTES)
        coder = read(self.part.checkpoint / "encoder.safetensors", max_bytes=CAP_BYTES)
        file = self.part.checkpoint / "sizes.json"
        given = json.loads(file.read_text()) if file.is_file() else {}
        plan = sized(self.study.models.gan, given)
        width = plan.pop("encoder_width")
        model = GanPlan.model_validate(plan)
        size = 64
        channels = self.part.channels
        return Networks(
            load_generator(gan, model, size, channels),
            load_critic(gan, model, size, channels),
            load_encoder(coder, width, model.latent, size, channels),
        )

    @cached_property
    def known(self) -> Reference:
        """What the generator alone says."""
        assert self.networks.generator is not None and self.networks.encoder is not None
        random = torch.Generator().manual_seed(1)
        return make_reference(
            self.networks.generator, self.networks.encoder, self.inversion_plan, random
        )

    @property
    def inversion_plan(self) -> InversionPlan:
        """The product's constants."""
        assert self.study.synthesis is not None and self.study.models.encoder is not None
        return InversionPlan(
            steps=self.study.synthesis.inversion_steps,
            iterations=self.study.models.encoder.iterations,
        )

    @property
    def alignment_plan(self) -> AlignmentPlan:
        """The product's constants."""
        plan = self.study.synthesis
        assert plan is not None
        return AlignmentPlan(
            steps=plan.alignment_steps,
            windows=plan.windows,
            content_weight=plan.content_weight,
            style_weight=plan.style_weight,
            trust_weight=plan.trust_weight,
        )

    @cached_property
    def seen(self) -> Inversion:
        """Every member image inverted, from a file where there is one."""
        file = self.work / "inverted.npz"
        known = self.known
        if not file.is_file():
            assert self.networks.generator is not None and self.networks.encoder is not None
            found = invert(
                self.part.members.images,
                self.networks.generator,
                self.networks.encoder,
                self.inversion_plan,
                known,
            )
            save(
                file,
                encoded=found.encoded.numpy(),
                codes=found.codes.numpy(),
                seen=found.reconstructions.numpy(),
                errors=found.errors,
                accepted=found.accepted,
            )
        with np.load(file, allow_pickle=False) as data:
            tensors = (torch.from_numpy(data[name]) for name in ("encoded", "codes", "seen"))
            return Inversion(*tensors, data["errors"], data["accepted"])

    @cached_property
    def who(self) -> Roster:
        """The members with an accepted image, each in the stratum of the label."""
        members = self.part.members
        names = [f"{i:05d}" for i in range(members.person_of.max() + 1)]
        return roster(names, members.person_of, members.labels, key=KEY, usable=self.seen.accepted)

    @cached_property
    def codes(self) -> NDArray[np.float64]:
        """The members' whitened codes in roster order."""
        return patient_codes(self.known.whitening(self.seen.encoded.numpy()), self.who)

    @cached_property
    def battery(self) -> Battery:
        """The attackers, with the public people as their reference."""
        return Battery(self.people, self.networks, self.part.public.images)

    @cached_property
    def blind(self) -> Battery:
        """The same attackers where releases have no label, so that everybody is comparable with
        every release.
        """
        blind = copy.copy(self.battery)
        blind.who = replace(self.people, labels=np.zeros_like(self.people.labels))
        return blind

    @cached_property
    def people(self) -> People:
        """Members and held-out people as the attacker knows them: where a member has an image in no
        average, that one too.
        """
        part = self.part
        offset = part.members.person_of.max() + 1
        images = np.concatenate([part.members.images, part.heldout.images])
        labels = np.concatenate([part.members.labels, part.heldout.labels])
        person_of = np.concatenate([part.members.person_of, part.heldout.person_of + offset])
        return People(
            images, labels, labels, person_of, np.arange(len(images)) < len(part.members.images)
        )

    @cached_property
    def network(self) -> siamese.Siamese | None:
        """The re-identifying network of the public half; None where nobody has two images."""
        if not len(self.part.queries.images):
            return None
        return siamese.train(self.part.public.images, self.part.public.person_of, seed=0)


def sized(gan: GanPlan | None, given: dict[str, int]) -> dict[str, Any]:
    """The plan's model with a checkpoint's own sizes: width, latent, encoder_width."""
    assert gan is not None
    return (
        gan.model_dump(mode="json", exclude={"start", "trainable"}) | {"encoder_width": 24} | given
    )


def save(file: Path, **arrays: NDArray[Any]) -> None:
    """Write an .npz whole or not at all."""
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    atomic_write(file, stream.getvalue())


def made(ready: PreparedPart, row: str, k: int) -> Released:
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


def grouped(ready: PreparedPart, mode: Mode, k: int, metric: Metric = "codes") -> tuple[Group, ...]:
    """The product's groups."""
    cells = make_metric_cells(ready.known, metric) if mode == "cells" else None
    codes = None
    if mode == "paper":
        codes = patient_codes(ready.seen.encoded.flatten(1).numpy(), ready.who)
    elif mode != "random":
        codes = patient_codes(make_points(ready.known, ready.seen, metric), ready.who)
    return form_groups(ready.who, k, mode, key=KEY, codes=codes, cells=cells).groups


def numbers(group: Group) -> tuple[int, ...]:
    return tuple(int(name) for name in group.members)


def averaged(
    mode: Mode, outputs: int = 1, directions: int = 0, share: float = 1.0, metric: Metric = "codes"
) -> Callable[[PreparedPart, int], Released]:
    """The product's path: groups, alignment, moving out along so many `directions` by a `share`,
    rendering.
    """

    def maker(ready: PreparedPart, k: int) -> Released:
        generator = ready.networks.generator
        critic = ready.networks.critic
        plan = ready.alignment_plan
        assert generator is not None and critic is not None
        groups = grouped(ready, mode, k, metric)
        patients = measure_patients(ready.part.members.images, ready.seen, ready.who, critic, plan)
        statistics = gather_statistics(groups, patients, generator, plan)
        codes = align(statistics, generator, critic, plan, ready.known.spread).codes
        if directions:
            codes = find_directions(ready.known, directions, k, mode, share).move_out(codes)
        return rendered(ready, codes, groups, outputs)

    return maker


def rendered(
    ready: PreparedPart, codes: torch.Tensor, groups: Sequence[Group], outputs: int = 1
) -> Released:
    """Images of the groups' codes."""
    assert ready.networks.generator is not None
    random = torch.Generator().manual_seed(3)
    images = np.concatenate(
        [render(codes, ready.networks.generator, random) for _ in range(outputs)]
    )
    labels = np.array([g.stratum.label for g in groups] * outputs, np.int64)
    return Released(
        images, labels, np.tile(np.arange(len(groups)), outputs), tuple(numbers(g) for g in groups)
    )


def centroid(ready: PreparedPart, k: int) -> Released:
    """The mean code of the groups of `similar`, not aligned."""
    groups = grouped(ready, "similar", k)
    codes = ready.seen.codes
    rows_of = dict(zip(ready.who.pseudonyms, ready.who.images, strict=True))
    means = [
        torch.stack([codes[list(rows_of[m])].mean(0) for m in group.members]).mean(0)
        for group in groups
    ]
    return rendered(ready, torch.stack(means), groups)


def noised(ready: PreparedPart, k: int) -> Released:
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
    return rendered(ready, codes, [mean.group for mean in means])


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
    **{mode: averaged(mode) for mode in PLAIN},
    **{f"{mode}, moved out": averaged(mode, directions=DIRECTIONS) for mode in MOVED},
    **{f"{mode}, by colour": averaged(mode, metric="colour") for mode in BY_COLOUR},
    "cells, moved out by 3/4": averaged("cells", directions=DIRECTIONS, share=0.75),
    **{f"{mode}, {OUTPUTS} outputs": averaged(mode, OUTPUTS) for mode in OF_SEVERAL},
    ANCHORS: noised,
    "centroid": centroid,
    "same-pixel": same_pixel,
    "same-pca": same_pca,
}
