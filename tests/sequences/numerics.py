"""Cheap stand-ins for the heavy numerics of the child process, honest about who is in what.

In: the arguments of the functions that they replace. Out: results of the same shape.
Guarantees: codes, groups, rosters, reservations and files are the product's own; an average carries
the identity of every photograph in it; noise is never the same twice; the oracle hears of each
computation when it is made.
Not covered: what images look like, and the noise itself (drawn as zeros where it would decide what
is published, so that a history can be played again).
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from client.egress.audit import AuditReport, Nearest
from client.synthesize import anchors
from client.synthesize.invert import Inversion
from client.synthesize.reference import GeneratorCodes, Reference, Whitening
from common.arrays import Images
from common.privacy.calibration import analytic_noise_multiplier
from common.privacy.events import charged_image_event
from common.privacy.noise import NoiseSource
from common.study.plan import Study
from common.wire import tensors
from tests.sequences.composition import Loss
from tests.sequences.oracle import Oracle, Picture, Work
from tests.sequences.world import World

LAYERS = 2
WIDTH = 4  # coordinates of a layer's code
SAMPLES = 24
Shown = frozenset[tuple[int, int]]


class Numerics:
    """What a child computes, and what the oracle hears of it. `muted`: it hears nothing."""

    def __init__(self, world: World, oracle: Oracle) -> None:
        self.world = world
        self.oracle = oracle
        self.muted = False
        self.study: Study | None = None
        self.roster: tuple[str, ...] = ()
        self._behind: dict[bytes, Shown] = {}
        self._work: Work | None = None

    def install(self, stack: ExitStack) -> None:
        """Replace the heavy functions until `stack` closes."""
        replaced: Mapping[str, Any] = {
            "client.child.job.train_gan.train": self.train,
            "client.child.job.train_glow.train": self.train,
            "client.child.batch.train_encoder.train": lambda *_, **__: {},
            "client.child.batch.load_encoder": lambda *_: torch.nn.Identity(),
            "client.child.batch.make_reference": lambda *_: reference(),
            "client.child.batch.invert": self.invert,
            "client.child.batch.draw_sheet": lambda *_: b"sheet",
            "client.child.batch.measure_patients": self.measure,
            "client.child.batch.gather_statistics": self.gather,
            "client.child.batch.align": self.align,
            "client.child.batch.load_features": lambda *_: None,
            "client.child.batch.gather_features": lambda *_: [],
            "client.child.batch.keep_nearer": lambda codes, *_: codes,
            "client.child.batch.render_outputs": self.render_outputs,
            "client.child.batch.privatize": self.privatize,
            "client.child.batch.noisy_means": self.noisy_means,
            "client.child.batch.show_cells": self.decode_means,
            "client.child.rosters.encode_released": self.encode,
            "client.child.inputs.Batch.glow": lambda _: SimpleNamespace(dimension=1),
            "client.child.checks.audit": pass_all,
            "client.child.checks.gives_away_members": lambda *_: False,
        }
        for name in ("generator", "critic"):
            replaced = {**replaced, f"client.child.inputs.Batch.{name}": lambda _: None}
        for name, value in replaced.items():
            stack.enter_context(patch(name, value))
        draw = patch.object(NoiseSource, "gaussian_lattice", lambda _, count, sigma: zeros(count))
        stack.enter_context(draw)

    # --- training ---------------------------------------------------------------------------------

    def train(
        self, cohort: Any, study: Study, weights: Any, reservation: Any, *_: Any
    ) -> dict[str, Any]:
        """Return an update of norm 1 with fresh noise, after taking every step."""
        model = reservation.event.model
        plan = study.models.trained()[model]
        for _ in range(plan.local_steps):
            reservation.take()
        rate = plan.patients_per_step / study.privacy.planned_patients
        loss = Loss("sampled", plan.noise_multiplier, rate, plan.local_steps)
        people = self.world.persons_of(np.asarray(cohort.images))
        work = self._note(study, (loss,), people)
        update = self._update(model, weights)
        self.oracle.note_payload(tensors.dumps(update), work)
        return update

    def _update(self, model: str, weights: Any) -> dict[str, Any]:
        """A fresh update of the tensors that the model trains."""
        random = np.random.default_rng(secrets.randbits(63))
        own = {name: array for name, array in weights.items() if name.startswith(PREFIXES[model])}
        deltas = {name: random.normal(size=array.shape) for name, array in own.items()}
        norm = math.sqrt(sum(float(np.square(delta).sum()) for delta in deltas.values()))
        return {name: (delta / norm).astype(np.float32) for name, delta in deltas.items()}

    # --- plain averages ---------------------------------------------------------------------------

    def invert(self, images: Images, *_: Any) -> Inversion:
        """Return codes that depend on each image alone; all are accepted."""
        flat = np.stack([code_of(image) for image in images]).astype(np.float32)
        count = len(images)
        return Inversion(
            points=reference().whitening(flat),
            colours=np.full((count, 3), 0.5),
            codes=flat.reshape(-1, LAYERS, WIDTH),
            errors=np.zeros(count),
            accepted=np.ones(count, np.bool_),
            looks=np.ones((count, 2, 3), np.float32),
            coarse=np.zeros((count, 4, 1, 1), np.float32),
        )

    def measure(self, images: Images, found: Any, who: Any, *_: Any) -> dict[str, Shown]:
        """Return which photographs each patient contributes."""
        shown: dict[str, Shown] = {}
        for name, rows in zip(who.pseudonyms, who.images, strict=True):
            shown[name] = self.world.persons_of(images[list(rows)])
        return shown

    def gather(self, groups: Any, patients: dict[str, Shown], *_: Any) -> list[Shown]:
        """Return the photographs behind each group."""
        behind: list[Shown] = []
        for group in groups:
            behind.append(frozenset().union(*(patients[name] for name in group.members)))
        return behind

    def align(self, statistics: Sequence[Shown], *_: Any) -> Any:
        """Return one code a group, which is a digest of the photographs behind it."""
        codes: list[torch.Tensor] = []
        for shown in statistics:
            key = hashlib.sha256(repr(sorted(shown)).encode()).digest()[: LAYERS * WIDTH]
            code = torch.from_numpy(np.frombuffer(key, np.uint8).astype(np.float32))
            codes.append(code.reshape(LAYERS, WIDTH))
            self._behind[codes[-1].numpy().tobytes()] = shown
        return SimpleNamespace(codes=torch.stack(codes))

    def render_outputs(self, codes: torch.Tensor, count: int, *_: Any, **__: Any) -> list[Images]:
        """Return `count` stacks of images of codes, each with noise maps of its own."""
        stacks: list[Images] = []
        for _ in range(count):
            images = []
            for code in codes:
                shown = self._behind[code.numpy().tobytes()]
                images.append(self._picture(Picture(shown), None))
            stacks.append(np.stack(images))
        return stacks

    def encode(self, images: Images, model: Any, dimension: int) -> np.ndarray:
        """Return latents, which are zero where the flow cannot encode a photograph."""
        known = [encodes(self.world.person_of(image)) for image in images]
        return np.array(known, np.float64)[:, None]

    # --- noised averages --------------------------------------------------------------------------

    def privatize(
        self, groups: Sequence[Sequence[Images]], model: Any, event: Any, *_: Any, **__: Any
    ) -> Any:
        """Return one privatized average a group; it is charged where the plan claims epsilon."""
        assert self.study is not None
        behind = [
            self.world.persons_of(image for one in group for image in one) for group in groups
        ]
        everyone: Shown = frozenset().union(*behind)
        loss = latent_loss(self.study)
        losses: tuple[Loss, ...] = ()
        if charged_image_event(self.study) is not None:
            losses = (loss,)
        else:
            # where the images choose the groups, whoever adds nothing does not count
            behind = [frozenset(filter(encodes, shown)) for shown in behind]
        work = self._note(self.study, losses, everyone)
        images = [self._picture(Picture(shown, loss), work) for shown in behind]
        return SimpleNamespace(images=np.stack(images), mechanism=event)

    def draw_single(self, study: Study, images: Sequence[Images], loss: Loss) -> list[Images]:
        """Return a privatized image of each photograph, drawn in one application."""
        self.study = study
        behind = [self.world.persons_of([image]) for image in images]
        # a person with several images in one application spends for each of them
        often = Counter(person for shown in behind for person, _ in shown)
        losses = (loss,) * max(often.values())
        work = self._note(study, losses, frozenset().union(*behind))
        return [self._picture(Picture(shown, loss), work) for shown in behind]

    def noisy_means(self, who: Any, *arguments: Any) -> Any:
        """Run the product's own mechanism, and note who took part."""
        assert self.study is not None
        assert self.study.synthesis is not None
        plan = self.study.synthesis.anchors
        assert plan is not None
        self.roster = who.pseudonyms
        loss = Loss("gaussian", plan.noise_multiplier, threshold=plan.threshold_delta)
        images = np.asarray(self._cohort_images)
        shown = self.world.persons_of(images[row] for rows in who.images for row in rows)
        self._work = self._note(self.study, (loss,), shown)
        self._shown_of = {
            name: self.world.persons_of(images[list(rows)])
            for name, rows in zip(who.pseudonyms, who.images, strict=True)
        }
        return anchors.noisy_means(who, *arguments)

    def decode_means(
        self, means: Any, whitening: Any, generator: Any, outputs: int, *_: Any
    ) -> list[Images]:
        """Return images of noisy means."""
        stacks: list[Images] = []
        for _ in range(outputs):
            images = []
            for mean in means:
                shown = frozenset().union(*(self._shown_of[name] for name in mean.group.members))
                images.append(self._picture(Picture(shown, self._work.losses[0]), self._work))
            stacks.append(np.stack(images))
        return stacks

    # --- common to all ----------------------------------------------------------------------------

    def begin(self, study: Study, images: Images) -> None:
        """Start a job of a study on a cohort's images."""
        self.study = study
        self._cohort_images = images
        self._work = None

    def _note(self, study: Study, losses: tuple[Loss, ...], shown: Shown) -> Work:
        """Tell the oracle of a computation."""
        people = frozenset(person for person, _ in shown)
        if self.muted:
            return Work(-1, study.name, losses, people)
        return self.oracle.note_work(study.name, losses, people)

    def _picture(self, picture: Picture, work: Work | None) -> Images:
        """Return a fresh image, and tell the oracle who is behind it."""
        assert self.study is not None
        size = self.study.intake.size_px
        random = np.random.default_rng(secrets.randbits(63))
        image = random.integers(0, 256, (size, size, 3), dtype=np.uint8)
        if not self.muted:
            self.oracle.note_picture(image, picture, work)
        return image


PREFIXES = {"gan": ("generator.", "critic."), "glow": ("glow.",)}


def encodes(photograph: tuple[int, int]) -> bool:
    """Return whether the flow can encode a photograph: not the first one of some persons."""
    person, number = photograph
    return number > 0 or person % 9 != 4


def latent_loss(study: Study) -> Loss:
    """Return what one release of `synthesis.privatize` spends of each patient, from the plan."""
    assert study.synthesis is not None
    plan = study.synthesis.privatize
    assert plan is not None
    assert plan.epsilon is not None
    assert plan.delta is not None
    return Loss("gaussian", analytic_noise_multiplier(plan.epsilon, plan.delta))


def reference() -> Reference:
    """Return the public statistics of a generator, always the same."""
    samples = GeneratorCodes(np.random.default_rng(7).normal(size=(SAMPLES, LAYERS * WIDTH)))
    colours = np.zeros((SAMPLES, 3))
    look = np.ones((2, 3), np.float32)
    return Reference(Whitening.fit(samples, LAYERS * WIDTH), 1.0, 1.0, samples, colours, look)


def code_of(image: Images) -> np.ndarray:
    """Return a code that depends on one image alone."""
    seed = int.from_bytes(hashlib.sha256(image.tobytes()).digest()[:8], "big")
    return np.random.default_rng(seed).normal(size=LAYERS * WIDTH)


def pass_all(released: Images, *_: Any) -> AuditReport:
    """Return an audit that finds nothing."""
    count = len(released)
    return AuditReport(("A-PASS",) * count, (Nearest(0, (2.0,) * 3, (1.0,) * 3),) * count)


def zeros(count: int) -> np.ndarray:
    """Return the noise that lets a history be played again."""
    return np.zeros(count, np.int64)
