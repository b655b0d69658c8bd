"""What k-anonymous averages are worth, and what they give away: every grouping mode against the classical ones, on real images.

    python -m benchmarks.quality_fundus [--part fundus chest] [--k 5 10 20] [--rows similar cells ...] [--seeds 5]
        [--checkpoint DIR] [--chest-checkpoint DIR] [--work DIR] [--json] [--plot FILE.png] [--sheet FILE.png]

fundus: IDRiD at 64 px by benchmarks/fundus_split.py: its 211 public people are the attacker's reference; of its 299 others, none
of whom the checkpoint has seen, 189 are averaged and 110 are non-members and test set. They are dealt anew, at random within each
grade, because the demo's 189 were picked by label and differ in kind from the others (KID 0.48, at random 0.06), which would
look like membership. All eyes are shown as right eyes (left ones mirrored), so the strata are the three
grades of deploy/studies/fundus.yaml. chest: NIH radiographs by benchmarks/chest_split.py with real patient ids; of a member with
several images the last one is kept back for the attacker. One site holds all members. No privacy noise is drawn but in `anchors`.

Every figure is a file in --work (named by the checkpoint's digest), so an interrupted run continues. No test image selects
anything: snapshots are chosen on training images (common/measure/classifier.py). Prints Markdown tables; --json prints one object.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks import chest_split, fundus_split
from client.state.group_store import Group, Stratum
from client.state.ledger import PracticeReservation
from client.synthesize import anchors, partition
from client.synthesize.align import AlignmentPlan, align, gather, measure_patients, render
from client.synthesize.group import Mode, Roster, form_groups, patient_codes, roster
from client.synthesize.invert import Inversion, InversionPlan, Reference, invert, reference
from client.synthesize.metric import Metric, cells_in, points_of
from client.synthesize.spread import directions_of
from common.arrays import Images, Labels
from common.measure import attacks, classifier
from common.models.encoder import load_encoder
from common.models.stylegan import load_critic, load_generator
from common.privacy.anchors import NoisyAnchors
from common.privacy.noise import SeededNoiseSource
from common.storage.files import atomic_write, read_capped
from common.study.plan import Study, load_study
from common.study.training import GanPlan
from common.wire.tensors import read
from server.evaluate import distances, siamese
from server.evaluate.attacks import Battery, Networks, People, spaces
from server.evaluate.extractors import Texture

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
GRADES = np.array([0, 1, 1, 2, 2])  # none, mild-moderate, severe
KEY = b"kohort-benchmark-quality-fundus!"
CAP_BYTES, FRECHET_COMPONENTS, OUTPUTS, DIRECTIONS = 1 << 31, 8, 4, 2
ANCHORS_NOISE, ANCHORS_COMPONENTS, ANCHORS_THRESHOLD_DELTA = (
    0.605,
    32,
    1e-6,
)  # epsilon 8 at delta 1e-5
ANCHORS = "anchors, no labels"
SHOWN = ("similar", "similar, by colour", "cells", "random", "centroid", "same-pixel")


@dataclass(frozen=True)
class Set:
    """uint8 images [N, S, S, C], label [N], person [N] from 0."""

    images: Images
    labels: Labels
    person_of: Labels

    def rows(self, which: NDArray[Any]) -> Set:
        """The same for some images; persons keep their numbers."""
        return Set(self.images[which], self.labels[which], self.person_of[which])

    def renumbered(self) -> Set:
        """The same with persons counted from 0 without gaps."""
        return Set(
            self.images,
            self.labels,
            np.unique(self.person_of, return_inverse=True)[1].astype(np.int64),
        )


@dataclass(frozen=True)
class Part:
    """One data set by role; `queries`: images of members that are in no average (none in fundus)."""

    name: str
    classes: tuple[str, ...]
    members: Set
    heldout: Set
    public: Set
    queries: Set
    checkpoint: Path
    channels: int
    flip: bool  # whether a mirrored training image is of the same kind


@dataclass(frozen=True)
class Released:
    """What one way of averaging gives: images, labels, group number of each, and each group's
    members as person numbers.
    """

    images: Images
    labels: Labels
    group_of: Labels
    members: tuple[tuple[int, ...], ...]


# --- data -----------------------------------------------------------------------------------------


def fundus_part(checkpoint: Path) -> Part:
    """IDRiD as right eyes with the three grades of the plan."""

    def of(people: fundus_split.People) -> Set:
        images = np.where(
            people.right[:, None, None, None], people.images, people.images[:, :, ::-1]
        )
        return Set(np.ascontiguousarray(images), GRADES[people.grades], np.arange(len(people)))

    roles = {name: of(people) for name, people in fundus_split.split(64, DATA).items()}
    pool = joined(roles["members"], roles["heldout"])
    member = dealt(pool.labels, len(roles["members"].labels))
    nobody = pool.rows(np.zeros(0, np.int64))
    classes = ("none", "mild-moderate", "severe")
    return Part(
        "fundus",
        classes,
        pool.rows(member).renumbered(),
        pool.rows(~member).renumbered(),
        roles["public"],
        nobody,
        checkpoint,
        3,
        True,
    )


def joined(first: Set, second: Set) -> Set:
    """Both sets' people."""
    images, labels = (
        np.concatenate(pair)
        for pair in ((first.images, second.images), (first.labels, second.labels))
    )
    return Set(images, labels, np.arange(len(labels)))


def dealt(labels: Labels, members: int) -> NDArray[np.bool_]:
    """Which of the people, none of whom the checkpoint has seen, play members: the same share of
    each label, at random.
    """
    rng, member = np.random.default_rng(2026), np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        member[rows[: round(members * len(rows) / len(labels))]] = True
    return member


def chest_part(checkpoint: Path) -> Part:
    """NIH radiographs; the last image of a member who has several is kept back."""
    sets = {}
    for role in chest_split.ROLES:
        found = chest_split.radiographs(DATA / "cxr_nih_covid_64.npz", role)
        sets[role] = one_label(Set(found.images, found.labels, found.patient_of))
    members = sets["members"]
    last = np.array([i for i, p in enumerate(members.person_of) if (members.person_of == p).sum() > 1
                     and i == np.flatnonzero(members.person_of == p)[-1]], np.int64)  # fmt: skip
    kept = np.setdiff1d(np.arange(len(members.labels)), last)
    return Part("chest", chest_split.LABELS, members.rows(kept), sets["heldout"], sets["public"], members.rows(last),
                checkpoint, 1, False)  # fmt: skip


def one_label(given: Set) -> Set:
    """Only the images with a person's highest label, as the product's roster has it
    (client/synthesize/group.py).
    """
    highest = np.zeros(given.person_of.max() + 1, np.int64)
    np.maximum.at(highest, given.person_of, given.labels)
    return given.rows(np.flatnonzero(given.labels == highest[given.person_of])).renumbered()


# --- making images --------------------------------------------------------------------------------


class Workshop:
    """One part with its networks, its inverted members and its files in `work`; everything is
    computed once.
    """

    def __init__(self, part: Part, work: Path, study: Study) -> None:
        self.part, self.study = part, study
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
        plan = sized(self.study.models.gan, json.loads((self.part.checkpoint / "sizes.json").read_text())
                     if (self.part.checkpoint / "sizes.json").is_file() else {})  # fmt: skip
        width = plan.pop("encoder_width")
        model = GanPlan.model_validate(plan)
        size, channels = 64, self.part.channels
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
        return reference(
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
            steps=plan.alignment_steps, windows=plan.windows, content_weight=plan.content_weight,
            style_weight=plan.style_weight, trust_weight=plan.trust_weight,
        )  # fmt: skip

    @cached_property
    def seen(self) -> Inversion:
        """Every member image inverted, from a file where there is one."""
        file, known = self.work / "inverted.npz", self.known
        if not file.is_file():
            assert self.networks.generator is not None and self.networks.encoder is not None
            found = invert(
                self.part.members.images,
                self.networks.generator,
                self.networks.encoder,
                self.inversion_plan,
                known,
            )
            save(file, encoded=found.encoded.numpy(), codes=found.codes.numpy(), seen=found.reconstructions.numpy(),
                 errors=found.errors, accepted=found.accepted)  # fmt: skip
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
        """The re-identifying network, trained on the public half; None where nobody has two images."""
        if not len(self.part.queries.images):
            return None
        return siamese.train(self.part.public.images, self.part.public.person_of, seed=0)


def sized(gan: GanPlan | None, given: dict[str, int]) -> dict[str, Any]:
    """The plan's model with a checkpoint's own sizes (`sizes.json`: width, latent, encoder_width)."""
    assert gan is not None
    return (
        gan.model_dump(mode="json", exclude={"start", "trainable"}) | {"encoder_width": 24} | given
    )


def save(file: Path, **arrays: NDArray[Any]) -> None:
    """Write an .npz whole or not at all."""
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    atomic_write(file, stream.getvalue())


def made(shop: Workshop, row: str, k: int) -> Released:
    """The released images of one row at one k, from a file where there is one."""
    file = shop.work / f"made-{row.replace('/', '-').replace(' ', '')}-{k}.npz"
    if not file.is_file():
        found = MAKERS[row](shop, k)
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


def grouped(shop: Workshop, mode: Mode, k: int, metric: Metric = "codes") -> tuple[Group, ...]:
    """The product's groups."""
    cells = cells_in(shop.known, metric) if mode == "cells" else None
    codes = (
        None
        if mode == "random"
        else patient_codes(points_of(shop.known, shop.seen, metric), shop.who)
    )
    if mode == "paper":
        codes = patient_codes(shop.seen.encoded.flatten(1).numpy(), shop.who)
    return form_groups(shop.who, k, mode, key=KEY, codes=codes, cells=cells).groups


def numbers(group: Group) -> tuple[int, ...]:
    return tuple(int(name) for name in group.members)


def averaged(
    mode: Mode, outputs: int = 1, directions: int = 0, share: float = 1.0, metric: Metric = "codes"
) -> Callable[[Workshop, int], Released]:
    """The product's path: groups, alignment, moving out along so many `directions` by a `share`,
    rendering.
    """

    def maker(shop: Workshop, k: int) -> Released:
        generator, critic = shop.networks.generator, shop.networks.critic
        plan = shop.alignment_plan
        assert generator is not None and critic is not None
        groups = grouped(shop, mode, k, metric)
        patients = measure_patients(shop.part.members.images, shop.seen, shop.who, critic, plan)
        statistics = gather(groups, patients, generator, plan)
        codes = align(statistics, generator, critic, plan, shop.known.spread).codes
        if directions:
            codes = directions_of(shop.known, directions, k, mode, share).moved(codes)
        return rendered(shop, codes, groups, outputs)

    return maker


def rendered(
    shop: Workshop, codes: torch.Tensor, groups: Sequence[Group], outputs: int = 1
) -> Released:
    """Images of the groups' codes."""
    assert shop.networks.generator is not None
    random = torch.Generator().manual_seed(3)
    images = np.concatenate(
        [render(codes, shop.networks.generator, random) for _ in range(outputs)]
    )
    labels = np.array([g.stratum.label for g in groups] * outputs, np.int64)
    return Released(
        images, labels, np.tile(np.arange(len(groups)), outputs), tuple(numbers(g) for g in groups)
    )


def centroid(shop: Workshop, k: int) -> Released:
    """The mean code of the groups of `similar`, not aligned."""
    groups = grouped(shop, "similar", k)
    codes = shop.seen.codes
    rows_of = dict(zip(shop.who.pseudonyms, shop.who.images, strict=True))
    means = [
        torch.stack([codes[list(rows_of[m])].mean(0) for m in group.members]).mean(0)
        for group in groups
    ]
    return rendered(shop, torch.stack(means), groups)


def noised(shop: Workshop, k: int) -> Released:
    """Mode `anchors` on all members as one stratum without labels: three strata of these are too
    few for cells of 3k.
    """
    who = Roster(shop.who.pseudonyms, (Stratum(0),) * len(shop.who.pseudonyms), shop.who.images)
    mechanism = NoisyAnchors(
        ANCHORS_NOISE,
        ANCHORS_COMPONENTS,
        len(who.pseudonyms) // (3 * k),
        k,
        ANCHORS_THRESHOLD_DELTA,
    )
    centres = anchors.cells_of(shop.known.samples, shop.known.whitening).centres
    cells = partition.Cells(centres[: mechanism.cells, : mechanism.components])
    means = anchors.noisy_means(
        who, shop.codes[:, : mechanism.components], cells, [Stratum(0)], mechanism, PracticeReservation(mechanism),
        SeededNoiseSource(5),
    )  # fmt: skip
    assert shop.networks.generator is not None
    codes = anchors.latents(
        [mean.code for mean in means], shop.known.whitening, shop.networks.generator
    )
    return rendered(shop, codes, [mean.group for mean in means])


def same_pixel(shop: Workshop, k: int) -> Released:
    """k-Same-Pixel (Newton et al. 2005): the greedy rule and the mean, both of pixels."""
    flat = person_means(
        shop, shop.part.members.images.reshape(len(shop.part.members.images), -1) / 255.0
    )
    return classical(shop, flat, flat, k)


def same_pca(shop: Workshop, k: int) -> Released:
    """k-Same-Eigen: the greedy rule and the mean in the principal components of the members' pixels
    (95 % of variance).
    """
    flat = person_means(
        shop, shop.part.members.images.reshape(len(shop.part.members.images), -1) / 255.0
    )
    middle = flat.mean(0)
    left, singular, axes = np.linalg.svd(flat - middle, full_matrices=False)
    count = int(np.searchsorted(np.cumsum(singular**2) / (singular**2).sum(), 0.95)) + 1
    weights = left[:, :count] * singular[:count]
    return classical(shop, weights, weights @ axes[:count] + middle, k)


def person_means(shop: Workshop, rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over a person's images in roster order."""
    return np.stack([rows[list(images)].mean(0) for images in shop.who.images])


def classical(
    shop: Workshop, points: NDArray[np.float64], pictures: NDArray[np.float64], k: int
) -> Released:
    """Groups by the paper's greedy rule on `points`, images by the mean of `pictures`, label by
    label.
    """
    images, labels, members = [], [], []
    strata = np.array([s.label for s in shop.who.strata])
    for label in np.unique(strata):
        rows = np.flatnonzero(strata == label)
        for part in (
            partition.parts_of(partition.greedy_paper(points[rows], k)) if len(rows) >= k else []
        ):
            images.append(pictures[rows[part]].mean(0).reshape(shop.part.members.images.shape[1:]))
            labels.append(int(label))
            members.append(tuple(int(shop.who.pseudonyms[i]) for i in rows[part]))
    pixels = (np.stack(images) * 255).round().clip(0, 255).astype(np.uint8)
    return Released(pixels, np.array(labels, np.int64), np.arange(len(labels)), tuple(members))


PLAIN: tuple[Mode, ...] = ("similar", "similar-swap", "cells", "random", "paper")
MOVED: tuple[Mode, ...] = ("similar", "cells", "random")
BY_COLOUR: tuple[Mode, ...] = ("similar", "cells")
OF_SEVERAL: tuple[Mode, ...] = ("cells", "similar")
MAKERS: dict[str, Callable[[Workshop, int], Released]] = {
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


# --- figures --------------------------------------------------------------------------------------


def kept(file: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """JSON from a file, made where it is missing."""
    if not file.is_file():
        atomic_write(file, json.dumps(make()).encode())
    found: dict[str, Any] = json.loads(file.read_text(), parse_constant=lambda _: None)
    return found


def figures(shop: Workshop, row: str, k: int, seeds: int) -> dict[str, Any]:
    """Everything about one row at one k."""
    file = shop.work / f"figures-{row.replace('/', '-').replace(' ', '')}-{k}-{seeds}.json"
    return kept(file, lambda: measured(shop, row, k, seeds))


def measured(shop: Workshop, row: str, k: int, seeds: int) -> dict[str, Any]:
    """Distances, utility, attacks."""
    released = made(shop, row, k)
    seen = spaces(released.images, shop.networks)
    labelled = row != ANCHORS
    inference = (shop.battery if labelled else shop.blind).membership(
        released.images, released.labels, seen
    )
    assert inference is not None
    return {
        "row": row, "k": k, "images": len(released.images), "groups": len(released.members),
        "distances": fidelity(shop, released.images),
        "utility": utility(shop, [(released.images, released.labels, released.group_of)] * seeds) if labelled else None,
        "membership": {"worst": asdict(inference.worst), "chance": inference.chance,
                       "all": {one.attacker: round(one.auc, 4) for one in inference.attackers}},
        "linkage": linkage(shop.people if labelled else shop.blind.who, shop.battery.targets, released, seen, k),
        "reidentified": reidentified(shop, released),
    }  # fmt: skip


def fidelity(shop: Workshop, images: Images) -> dict[str, float | None]:
    """Kernel distance on texture features and Fréchet distance on their first components, to the
    held-out people.
    """
    texture = Texture(24)
    rows = {
        "public": shop.part.public.images,
        "heldout": shop.part.heldout.images,
        "images": images,
    }
    found = {name: texture.features(x) for name, x in rows.items()}
    middle, scale = found["public"].mean(0), found["public"].std(0) + 1e-6
    standard = {name: (x - middle) / scale for name, x in found.items()}
    few = attacks.whitened(standard, "public", FRECHET_COMPONENTS)
    enough = len(images) > FRECHET_COMPONENTS
    frechet = distances.frechet(few["images"], few["heldout"]) if enough else None
    kernel = (
        distances.kernel(standard["images"], standard["heldout"]).value if len(images) > 1 else None
    )
    return {"kernel": kernel, "frechet": frechet}


def utility(shop: Workshop, training: Sequence[tuple[Images, Labels, Labels]]) -> dict[str, Any]:
    """Mean over seeds, each with its own training set, of a classifier's figures on the held-out
    people.
    """
    test, classes = shop.part.heldout, len(shop.part.classes)
    recipe = classifier.Recipe(flip=shop.part.flip)
    found = []
    for seed, (images, labels, group_of) in enumerate(training):
        model = classifier.fit(images, labels, classes, seed=seed, group_of=group_of, recipe=recipe)
        found.append(classifier.scores(model.predict(test.images), test.labels, classes))
    kappas = np.array([one.kappa for one in found])
    spread = (
        1.96 * float(kappas.std(ddof=1)) / len(kappas) ** 0.5 if len(kappas) > 1 else float("nan")
    )
    return {
        "kappa": float(kappas.mean()), "kappa_95": spread,
        "accuracy": float(np.mean([one.accuracy for one in found])),
        "macro_f1": float(np.mean([one.macro_f1 for one in found])),
        "recall": np.mean([one.recall for one in found], axis=0).round(4).tolist(),
    }  # fmt: skip


def linkage(
    people: People,
    targets: Mapping[str, NDArray[np.float64]],
    released: Released,
    seen: Mapping[str, NDArray[np.float64]],
    k: int,
) -> dict[str, float | str] | None:
    """Precision of the k candidates nearest to a release, in the space where it is worst;
    candidates are all of its label.
    """
    possible = released.labels[:, None] == people.labels[None]
    own = np.zeros(possible.shape, bool)
    for r, g in enumerate(released.group_of):
        own[r] = np.isin(people.person_of, released.members[g]) & people.member
    worst: dict[str, float | str] | None = None
    for name, ours in seen.items():
        apart = np.where(possible, attacks.distances(ours, targets[name]), np.inf)
        found = attacks.links(apart, own, k)
        if found is not None and (worst is None or found.precision > float(worst["precision"])):
            worst = {"precision": found.precision, "chance": found.chance, "space": name}
    return worst


def reidentified(shop: Workshop, released: Released) -> dict[str, float] | None:
    """P@1 of the trained network from a member's other image to the releases of the label."""
    if shop.network is None:
        return None
    queries = shop.part.queries
    apart = attacks.distances(
        shop.network.embed(queries.images), shop.network.embed(released.images)
    )
    apart = np.where(queries.labels[:, None] == released.labels[None], apart, np.inf)
    own = np.array(
        [[p in released.members[g] for g in released.group_of] for p in queries.person_of]
    )
    found = siamese.reidentify(apart, own)
    return found and {"precision": found.precision, "low": found.interval[0], "high": found.interval[1],
                      "chance": found.chance, "auc": found.auc}  # fmt: skip


def inverted(shop: Workshop) -> Images:
    """The members as the generator shows their codes."""
    shown = (shop.seen.reconstructions.clamp(-1, 1) + 1) * 127.5
    return np.asarray(shown.round().byte().permute(0, 2, 3, 1).numpy())


def real_rows(shop: Workshop, seeds: int) -> dict[str, Any]:
    """What all real members give, the distances' floor, and how well the re-identifying network
    tells people apart.
    """
    members = shop.part.members
    found: dict[str, Any] = {
        "all": utility(shop, [(members.images, members.labels, members.person_of)] * seeds),
        "floor": fidelity(shop, members.images),
        "inverted_floor": fidelity(shop, inverted(shop)),
    }
    if shop.network is not None:
        control = siamese.recognised(
            shop.network, shop.part.heldout.images, shop.part.heldout.person_of
        )
        found["recognised"] = control and asdict(control)
    return found


def few_rows(shop: Workshop, k: int, seeds: int) -> dict[str, Any]:
    """What as many real members give as there are groups of k, and the same members inverted."""
    members, accepted = shop.part.members, np.flatnonzero(shop.seen.accepted)
    draws = [some(members.labels, accepted, k, seed) for seed in range(seeds)]
    return {
        f"{name} {k}": utility(
            shop, [(pixels[rows], members.labels[rows], members.person_of[rows]) for rows in draws]
        )
        for name, pixels in (("real", members.images), ("inverted", inverted(shop)))
    }


def some(labels: Labels, accepted: Labels, k: int, seed: int) -> Labels:
    """As many images of each label as it has groups of k."""
    rng = np.random.default_rng([seed, k])
    parts = []
    for label in np.unique(labels):
        rows = accepted[labels[accepted] == label]
        parts.append(rng.permutation(rows)[: len(rows) // k])
    return np.concatenate(parts)


# --- report ---------------------------------------------------------------------------------------


COLUMNS = ("k", "row", "images", "KID", "Fréchet", "kappa", "of real n/k", "accuracy", "macro-F1", "recall", "worst AUC (95 %)",
           "by chance", "TPR at 1 % FPR", "worst attacker", "linked (chance)", "re-id P@1 (chance)")  # fmt: skip


def table(
    part: Part, rows: Sequence[dict[str, Any]], real: dict[str, Any], ks: Sequence[int]
) -> str:
    """One Markdown table a part."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "| " + " | ".join(["---"] * len(COLUMNS)) + " |"]

    def add(*cells: str) -> None:
        lines.append("| " + " | ".join([*cells, *[""] * (len(COLUMNS) - len(cells))]) + " |")

    add(
        "",
        "all real members",
        str(len(part.members.images)),
        *far(real["floor"]),
        *worth(real["all"], None),
    )
    add("", "all, inverted", str(len(part.members.images)), *far(real["inverted_floor"]))
    for k in ks:
        for kind in ("real", "inverted"):
            add(str(k), f"{kind}, n/k", "", "", "", *worth(real[f"{kind} {k}"], None))
        for row in (r for r in rows if r["k"] == k):
            reached = (
                worth(row["utility"], real[f"real {k}"]["kappa"]) if row["utility"] else ("",) * 5
            )
            add(
                str(k),
                row["row"],
                str(row["images"]),
                *far(row["distances"]),
                *reached,
                *leaked(row),
            )
    return "\n".join(lines)


def far(found: dict[str, float | None]) -> tuple[str, str]:
    """The cells of the distances; too few images for one leave it empty."""
    kernel, frechet = found["kernel"], found["frechet"]
    return "" if kernel is None else f"{kernel:.3f}", "" if frechet is None else f"{frechet:.2f}"


def worth(found: dict[str, Any], as_many: float | None) -> tuple[str, ...]:
    """The cells of the classifier; `as_many`: kappa of as many real images."""
    share = "" if as_many is None else f"{found['kappa'] / max(as_many, 1e-9):.2f}"
    kappa, recall = (
        f"{found['kappa']:.3f} ± {found['kappa_95']:.3f}",
        " ".join(f"{r:.2f}" for r in found["recall"]),
    )
    return kappa, share, f"{found['accuracy']:.3f}", f"{found['macro_f1']:.3f}", recall


def leaked(row: dict[str, Any]) -> tuple[str, ...]:
    """The cells of the attacks."""
    worst, link, again = row["membership"]["worst"], row["linkage"], row["reidentified"]
    low, high = worst["auc_interval"]
    return (
        f"{worst['auc']:.3f} ({low:.2f}-{high:.2f})", f"{row['membership']['chance']:.3f}", f"{worst['tpr']:.3f}",
        worst["attacker"],
        f"{link['precision']:.2f} ({link['chance']:.2f})" if link else "",
        f"{again['precision']:.2f} ({again['chance']:.2f})" if again else "",
    )  # fmt: skip


def run(
    shop: Workshop, names: Sequence[str], ks: Sequence[int], seeds: int, show: Callable[[str], None]
) -> dict[str, Any]:
    """All figures of one part."""
    real = kept(shop.work / f"real-{seeds}.json", lambda: real_rows(shop, seeds))
    for k in ks:
        real |= kept(shop.work / f"real-{k}-{seeds}.json", partial(few_rows, shop, k, seeds))
    rows = []
    for k in ks:
        for name in names:
            started = time.process_time()
            rows.append(figures(shop, name, k, seeds))
            show(f"{shop.part.name} k={k} {name}: {time.process_time() - started:.1f} CPU-s")
    rejected = int((~shop.seen.accepted).sum())
    return {
        "real": real,
        "rows": rows,
        "rejected": rejected,
        "members": len(shop.part.members.images),
    }


def sheet(shop: Workshop, k: int) -> bytes:
    """PNG: the first images of each row of `SHOWN`, one row a line, largest label last."""
    lines = [made(shop, row, k) for row in SHOWN]
    picked = [
        one.images[np.argsort(one.labels, kind="stable")][
            np.linspace(0, len(one.images) - 1, 10).astype(int)
        ]
        for one in lines
    ]
    whole = np.concatenate([np.concatenate(list(images), axis=1) for images in picked])
    stream = io.BytesIO()
    Image.fromarray(whole).quantize(128).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", nargs="+", choices=("fundus", "chest"), default=["fundus"])
    parser.add_argument("--k", nargs="+", type=int, default=[5, 10, 20])
    parser.add_argument("--rows", nargs="+", choices=list(MAKERS), default=list(MAKERS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--checkpoint", type=Path, default=ROOT / "deploy" / "checkpoints" / "fundus-64"
    )
    parser.add_argument("--chest-checkpoint", type=Path)
    parser.add_argument("--work", type=Path, default=Path("quality-work"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--sheet", type=Path, help="PNG of fundus averages of 10")
    given = parser.parse_args()
    torch.set_num_threads(1)
    study = load_study(ROOT / "deploy" / "studies" / "fundus.yaml")
    found: dict[str, Any] = {}
    for name in given.part:
        if name == "chest" and given.chest_checkpoint is None:
            parser.error("--part chest needs --chest-checkpoint")
        part = (
            fundus_part(given.checkpoint)
            if name == "fundus"
            else chest_part(given.chest_checkpoint)
        )
        shop = Workshop(part, given.work, study)
        found[name] = run(
            shop,
            given.rows,
            given.k,
            given.seeds,
            lambda text: print(text, file=sys.stderr, flush=True),
        )
        if given.sheet and name == "fundus":
            atomic_write(given.sheet, sheet(shop, 10))
        if not given.json:
            print(f"### {name}\n{table(part, found[name]['rows'], found[name]['real'], given.k)}\n")
    if given.json:
        print(json.dumps(found))
    if given.plot:
        from benchmarks.curve import curve

        atomic_write(given.plot, curve(found))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
