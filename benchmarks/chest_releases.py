"""The releases of quality_chest.py: people by role, rows, images by the product's steps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from benchmarks.chest_split import radiographs
from client.synthesize import privatize as steps
from common.arrays import Floats, Images, Labels
from common.models import basis, latents
from common.models.glow import Glow
from common.models.glow_checkpoint import load
from common.privacy.latent_mechanisms import Latent, LatentGaussian, LatentLaplace, PrivUnit
from common.privacy.noise import SeededNoiseSource
from server.demo.hospitals import DEPLOY, as_ingested

SIZE_PX = 32
TEMPERATURE = 0.7
DELTA = 1e-5
COORDINATES = 16  # this and the level: chosen on the validation split, --part choose
LEVEL = "all"
FLOW = DEPLOY / "checkpoints" / "chest-32" / "glow.safetensors"
SINGLES = 400  # releases of single images that a row makes at most


@dataclass(frozen=True)
class People:
    """uint8 images [N, 32, 32, 1], label 0 or 1 [N], patient index [N]."""

    images: Images
    labels: Labels
    patient_of: Labels


@dataclass(frozen=True)
class Row:
    """One release.

    `epsilon`: per patient, except `laplace box`: per coordinate; None: no privacy.
    """

    kind: str
    k: int = 1
    epsilon: float | None = None
    coordinates: int = COORDINATES
    level: str = LEVEL

    @property
    def name(self) -> str:
        """What the table says; also the file in --work."""
        text = self.kind
        if self.k > 1:
            text += f" k={self.k}"
        if self.epsilon is not None:
            text += f" eps={self.epsilon:g}"
        if (self.coordinates, self.level) != (COORDINATES, LEVEL):
            text += f" d={self.coordinates} {self.level}"
        return text


def rows_of(part: str) -> list[Row]:
    """The rows of a part."""
    if part == "choose":
        sizes = [(d, level) for level in ("all", "top") for d in (8, 16, 32)]
        return [Row("gaussian", 10, 7.5, d, level) for d, level in sizes]
    singles = [Row("privunit", 1, 8.0), Row("laplace box", 1, 12.0), Row("laplace box", 1, 3.0)]
    if part == "nih":
        return [Row("real"), Row("average", 10), Row("gaussian", 10, 8.0), *singles]
    return [
        Row("real"),
        Row("mean image"),
        Row("pixel average", 10),
        Row("average", 10),
        Row("average", 5),
        Row("average", 20),
        Row("average, all latents", 10),
        *(Row("gaussian", 10, epsilon) for epsilon in (8.0, 4.0, 2.0, 1.0, 16.0)),
        *(Row("gaussian", 20, epsilon) for epsilon in (8.0, 2.0)),
        Row("laplace l1", 10, 8.0),
        *singles,
        Row("dp-pix", 10, 8.0),
        Row("pixel laplace", 10, 8.0),
        Row("laplace l1", 10, 2.0),
        Row("laplace l1", 10, 16.0),
        Row("privunit", 1, 4.0),
        Row("privunit", 1, 2.0),
        Row("laplace box", 10, 3.0),
        Row("laplace box", 10, 1.0),
        *(Row("gaussian", 5, epsilon) for epsilon in (1.0, 2.0, 4.0, 8.0, 16.0)),
    ]


def pneumonia(data: Path, test: str) -> tuple[People, People, People]:
    """Public, patients, test of PneumoniaMNIST; nobody's image is byte for byte among another
    role's.
    """
    with np.load(data / "pneumoniamnist_28.npz", allow_pickle=False) as file:
        arrays = {
            name: file[name]
            for name in ("train_images", "train_labels", f"{test}_images", f"{test}_labels")
        }
    public = np.arange(len(arrays["train_images"])) % 3 != 0
    known: set[bytes] = set()

    def people(images: Images, labels: Labels) -> People:
        fresh = [i for i, image in enumerate(images) if image.tobytes() not in known]
        known.update(image.tobytes() for image in images)
        shown = np.stack([as_ingested(images[i], SIZE_PX) for i in fresh])
        return People(shown, labels.ravel()[fresh].astype(np.int64), np.arange(len(fresh)))

    train = arrays["train_images"]
    labels = arrays["train_labels"]
    first = people(train[public], labels[public])
    patients = people(train[~public], labels[~public])
    return first, patients, people(arrays[f"{test}_images"], arrays[f"{test}_labels"])


def nih(data: Path) -> tuple[People, People, People]:
    """Public, patients, test of ChestX-ray14 by patient; 64 px to 32 px by 2 x 2 means."""

    def people(role: str) -> People:
        found = radiographs(data / "cxr_nih_covid_64.npz", role)
        n = len(found.images)
        small = (
            found.images.reshape(n, SIZE_PX, 2, SIZE_PX, 2, 1).mean((2, 4)).round().astype(np.uint8)
        )
        return People(small, found.labels, found.patient_of)

    return people("public"), people("members"), people("heldout")


def one_each(people: People) -> People:
    """Each patient's first image, with the patient's highest label: what a stratum would hold."""
    names, first = np.unique(people.patient_of, return_index=True)
    labels = np.array([people.labels[people.patient_of == name].max() for name in names])
    return People(people.images[first], labels, names)


# ---- releases ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Release:
    """uint8 images [G, 32, 32, 1], label [G], rows of the members in the cohort, and what a
    statement would say.
    """

    images: Images
    labels: Labels
    members: list[Labels]
    statement: str = ""


class Releases:
    """The releases of one part's patients."""

    def __init__(self, public: People, patients: People, test: People, flow: Path) -> None:
        self.public = public
        self.patients = patients
        self.test = test
        self.flow = Glow(SIZE_PX, 1, 3, 6, 32)
        load(self.flow, flow)
        self.flow.eval()

    @cached_property
    def public_codes(self) -> Floats:
        """Latents of the public images, [N, D]."""
        return latents.encode_images(self.public.images, self.flow)

    @cached_property
    def codes(self) -> Floats:
        """Latents of the patients' images, [N, D]."""
        return latents.encode_images(self.patients.images, self.flow)

    def width(self, level: str) -> int:
        """Latent coordinates of a level."""
        return self.flow.dimension if level == "all" else self.flow.top_dimension

    def basis(self, coordinates: int, level: str) -> basis.Basis:
        """The public PCA."""
        return basis.fit(self.public_codes[:, -self.width(level) :], coordinates)

    def release(
        self, row: Row, seed: int, people: People | None = None, codes: Floats | None = None
    ) -> Release:
        """The release of a row, from the patients or from other people (an attacker's)."""
        people = people or self.patients
        codes = self.codes if codes is None else codes
        rng = np.random.default_rng([seed, 7])
        groups = random_groups(people, row.k, rng)
        labels = np.array([people.labels[members[0]] for members in groups])
        if row.kind == "real":
            alone = [np.array([i]) for i in range(len(people.images))]
            return Release(people.images, people.labels, alone)
        if row.kind in ("mean image", "pixel average", "dp-pix", "pixel laplace"):
            return Release(in_pixels(row, people.images, groups, rng), labels, groups)
        mechanism = self.mechanism(row)
        basis = None
        if row.kind not in ("laplace box", "average, all latents"):  # those release all coordinates
            basis = self.basis(row.coordinates, row.level)
        reduced = codes if basis is None else basis.reduce(codes[:, -basis.coordinates :])
        clipped = steps.clip(reduced, mechanism)
        means = noised_means(clipped, groups, mechanism, row.epsilon is not None, seed)
        random = torch.Generator().manual_seed(seed)
        images = steps.decode_means(means, self.flow, (TEMPERATURE, TEMPERATURE), random, basis)
        statement = mechanism.statement() if row.epsilon is not None else ""
        return Release(images, labels, groups, statement)

    def mechanism(self, row: Row) -> Latent:
        """The row's mechanism; without an epsilon that of a clip which hardly ever binds."""
        epsilon = row.epsilon
        d = row.coordinates
        if row.kind == "gaussian" and epsilon is not None:
            return LatentGaussian(d, row.k, "random", epsilon, DELTA)
        if row.kind == "privunit" and epsilon is not None:
            return PrivUnit(d, epsilon)
        if row.kind == "laplace l1" and epsilon is not None:
            return LatentLaplace(
                "l1_ball", 0.8, d, row.k, "random", 2 * 0.8 * d / (row.k * epsilon)
            )
        if row.kind == "laplace box" and epsilon is not None:
            return LatentLaplace(
                "box", 3.0, self.flow.dimension, row.k, "random", 6.0 / (row.k * epsilon)
            )
        return LatentLaplace(
            "box", 10.0, self.flow.dimension if "all" in row.kind else d, row.k, "random", 1.0
        )


def noised_means(
    clipped: Floats, groups: list[Labels], mechanism: Latent, private: bool, seed: int
) -> list[Floats]:
    """Each group's mean of clipped latents by the product's steps, with its noise if `private`."""
    noise = SeededNoiseSource(seed)
    means = []
    for members in groups:
        each = [steps.quantise(clipped[i], mechanism) for i in members]
        if private:
            means.append(steps._draw_mean(each, mechanism, noise))
        else:
            means.append(np.sum(each, axis=0) * (mechanism.lattice_step / len(each)))
    return means


def random_groups(people: People, k: int, rng: np.random.Generator) -> list[Labels]:
    """Parts of k to 2k - 1 rows of one label, by chance; of single images at most `SINGLES`."""
    groups: list[Labels] = []
    for label in np.unique(people.labels):
        rows = rng.permutation(np.flatnonzero(people.labels == label))
        groups += np.array_split(rows, max(1, len(rows) // k))
    if k > 1:
        return groups
    return [groups[i] for i in rng.permutation(len(groups))[:SINGLES]]


def in_pixels(row: Row, images: Images, groups: list[Labels], rng: np.random.Generator) -> Images:
    """Averages in pixel space: plain, of everybody, with Laplace noise, or DP-Pix (Fan 2018) with 8
    x 8 cells; m = all pixels.
    """
    if row.kind == "mean image":
        return np.repeat(images.mean(0).round().astype(np.uint8)[None], len(groups), axis=0)
    means = np.stack([images[members].mean(0) for members in groups])
    if row.kind == "pixel average":
        return np.asarray(means.round(), np.uint8)
    assert row.epsilon is not None
    sensitivity = 255.0 * SIZE_PX**2 / row.k
    if row.kind == "pixel laplace":
        return np.asarray(
            np.clip(means + rng.laplace(0, sensitivity / row.epsilon, means.shape), 0, 255),
            np.uint8,
        )
    cell = 8
    grid = SIZE_PX // cell
    cells = means.reshape(-1, grid, cell, grid, cell, 1).mean((2, 4))
    cells = cells + rng.laplace(0, sensitivity / (cell**2 * row.epsilon), cells.shape)
    return np.asarray(np.clip(cells, 0, 255).repeat(cell, 1).repeat(cell, 2), np.uint8)
