"""Whether private averages are worth a first training of the generator: warm start as in DP-FETA.

    python -m benchmarks.warm_start --data FOLDER [--people 700] [--seeds 3] [--steps 100 400]
        [--work DIR] [--json [FILE]] [--sheet FILE.png]

People, cells and noise of anchors_people.py, with the plan deploy/studies/fundus-anchors.yaml for
one site of `--people`. What `anchors` publishes costs its epsilon in any case, so a training on it
is free. Rows:
- start: samples of the public checkpoint
- start, private: after the plan's rounds of private training
- warm, N steps: generator and critic trained N steps against the published averages, no noise
- warm, N steps, private: the plan's rounds from there
- warm generator, N steps, private: the same, with the critic that the checkpoint has
- averages: the published images themselves
Figures, mean over `--seeds` draws of all noise: Fréchet distance and unbiased kernel distance of
`SAMPLES` samples, in one look, from the held-out people. The epsilon of every private row and of
the averages is the plan's. Nothing is selected here.
Source: Li et al. 2025 (DP-FETA, arXiv 2504.01395): first averages under noise, then private
training.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from benchmarks import report
from benchmarks.anchors_people import gather, in_one_look, line, publish, show
from benchmarks.average_people import ROOT
from benchmarks.average_prepared import PreparedPart
from benchmarks.hospital_people import SOURCES, make_part, read_source
from client.ingest.cohort import Cohort
from client.learn import train_gan
from client.state.ledger import PracticeReservation
from client.synthesize.anchors import choose_space
from common.arrays import Images, Weights
from common.models.adam import Adam
from common.models.basis import load
from common.models.images import to_uint8, to_unit
from common.models.pretrained_features import PretrainedFeatures, load_features
from common.models.stylegan import Generator, load_critic, load_generator
from common.privacy.anchors import NoisyAnchors
from common.privacy.events import round_event
from common.privacy.noise import SeededNoiseSource
from common.study.plan import Study, load_study
from common.wire.tensors import read
from server.evaluate import distances
from server.evaluate.extractors import FEATURE_UNIT

CHECKPOINT = ROOT / "deploy" / "checkpoints" / "fundus-64"
CAP_BYTES = 1 << 28
SAMPLES = 200
BATCH = 16
COLUMNS = ("row", "Fréchet", "each draw", "KID", "moved")


def photographs_of(prepared: Sequence[PreparedPart], people: int) -> Images:
    """One photograph of each person of `gather`, in its order and mirrored as there."""
    found = []
    for one in prepared:
        for number, rows in enumerate(one.who.images):
            image = one.part.members.images[rows[0]]
            found.append(image[:, ::-1] if number % 2 else image)
    order = np.random.default_rng(0).permutation(len(found))[:people]
    return np.stack([found[i] for i in order])


def cohort_of(images: Images) -> Cohort:
    """A cohort in memory, one image a person."""
    names = tuple(f"{i:08d}" for i in range(len(images)))
    return Cohort(
        folder=Path(),
        images=images,
        patient_of=np.arange(len(images)),
        labels=np.zeros(len(images), np.int64),
        laterality=np.zeros(len(images), np.int8),
        pseudonyms=names,
        aliases=tuple((name,) for name in names),
        label_names=("fundus",),
        digest="",
    )


def warm(weights: Weights, study: Study, images: Images, steps: int, seed: int) -> Weights:
    """The weights after `steps` steps of generator and whole critic against public images.

    The plan's losses and rates; each image is mirrored with chance 1/2. `weights` do not change.
    """
    plan = train_gan.plan_of(study)
    size = study.intake.size_px
    generator = load_generator(weights, plan, size, 3)
    critic = load_critic(weights, plan, size, 3)
    random = torch.Generator().manual_seed(seed)
    real = to_unit(images)
    moved = dict(critic.named_parameters())
    critic_adam = Adam(moved, plan.learning_rate, plan.betas)
    made = dict(generator.named_parameters())
    generator_adam = Adam(made, plan.generator_learning_rate, plan.betas)
    for _ in range(steps):
        x = real[torch.randint(len(real), (BATCH,), generator=random)]
        turned = torch.rand((BATCH, 1, 1, 1), generator=random) < 0.5
        x = torch.where(turned, x.flip(3), x)
        with torch.no_grad():
            fake = generator(torch.randn(BATCH, plan.latent, generator=random), random)
        loss = F.softplus(-critic(x)).mean() + F.softplus(critic(fake)).mean()
        critic_adam.step(gradients_of(loss, moved))
        fake = generator(torch.randn(BATCH, plan.latent, generator=random), random)
        frozen = {name: p.detach() for name, p in moved.items()}
        loss = F.softplus(-functional_call(critic, frozen, (fake,))).mean()
        generator_adam.step(gradients_of(loss, made))
    after = train_gan.parameters_by_name(generator, critic)
    return {**weights, **{name: p.detach().numpy().copy() for name, p in after.items()}}


def gradients_of(loss: Tensor, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients by name."""
    found = torch.autograd.grad(loss, list(parameters.values()))
    return dict(zip(parameters, found, strict=True))


def trained(weights: Weights, study: Study, cohort: Cohort, seed: int) -> Weights:
    """The weights after the plan's rounds of private training at one site."""
    plan = train_gan.plan_of(study)
    critic = load_critic(weights, plan, study.intake.size_px, 3)
    names = [f"critic.{name}" for name, _ in critic.named_parameters()]
    prefixes = tuple(plan.trainable or ["critic."])
    sizes = dict(zip(names, (p.numel() for p in critic.parameters()), strict=True))
    event = round_event(study, "gan", sum(sizes[n] for n in names if n.startswith(prefixes)))
    for round_ in range(plan.rounds):
        noise = SeededNoiseSource(1000 * seed + round_)
        reservation = PracticeReservation(event)
        deltas = train_gan.train(cohort, study, weights, reservation, noise, lambda *_: None)
        weights = {**weights, **{name: weights[name] + delta for name, delta in deltas.items()}}
    return weights


class Judge:
    """Distances to the held-out people, all in the generator's look."""

    def __init__(self, heldout: Images, generator: Generator) -> None:
        self.network: PretrainedFeatures = load_features()
        self.generator = generator
        self.real = self._features(heldout)

    def _features(self, images: Images) -> np.ndarray:
        return self.network.of_images(in_one_look(images, self.generator)) / FEATURE_UNIT

    def __call__(self, images: Images) -> dict[str, float]:
        found = self._features(images)
        return {
            "frechet": distances.estimate_frechet(found, self.real, variances_alone=True).value,
            "kernel": distances.estimate_kernel(found, self.real).value,
        }


def samples(weights: Weights, study: Study, seed: int) -> Images:
    """`SAMPLES` samples of the generator."""
    plan = train_gan.plan_of(study)
    generator = load_generator(weights, plan, study.intake.size_px, 3)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        made = [
            generator(torch.randn(20, plan.latent, generator=random), random)
            for _ in range(SAMPLES // 20)
        ]
    return to_uint8(torch.cat(made).clamp(-1, 1))


def moved_by(weights: Weights, start: Weights) -> float:
    """How far the generator's numbers went, as a share of their norm."""
    names = [name for name in start if name.startswith("generator.")]
    apart = sum(float(np.square(weights[n] - start[n]).sum()) for n in names)
    return float(np.sqrt(apart / sum(float(np.square(start[n]).sum()) for n in names)))


def run(
    prepared: Sequence[PreparedPart], given: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[Images]]:
    """A row for each way, with its draws, and the first draw's images."""
    study = load_study(ROOT / "deploy" / "studies" / "fundus-anchors.yaml")
    site = gather(prepared, given.people)
    cohort = cohort_of(photographs_of(prepared, given.people))
    gan = read(CHECKPOINT / "gan.safetensors", max_bytes=CAP_BYTES)
    start = {name: array.astype(np.float32) for name, array in gan.items()}
    generator = prepared[0].networks.generator
    assert generator is not None
    judge = Judge(site.heldout, generator)
    rows: dict[str, list[dict[str, float]]] = {}
    pictures: list[Images] = []
    for seed in range(given.seeds):
        averages = averages_of(prepared, site.refined, study, given.people, seed)
        rows.setdefault("averages", []).append({**judge(averages), "moved": 0.0})
        if seed == 0:
            pictures.append(averages)
        for name, weights in ways(start, study, averages, cohort, given.steps, seed):
            made = samples(weights, study, seed)
            figures = {**judge(made), "moved": moved_by(weights, start)}
            rows.setdefault(name, []).append(figures)
            print(f"seed {seed}: {name}: {figures}", flush=True)
            if seed == 0:
                pictures.append(made)
    return [{"row": name, "draws": draws} for name, draws in rows.items()], pictures


def averages_of(
    prepared: Sequence[PreparedPart], refined: np.ndarray, study: Study, people: int, seed: int
) -> Images:
    """What the plan's `anchors` publishes: two images of each cell."""
    synthesis = study.synthesis
    assert synthesis is not None and synthesis.anchors is not None
    plan = synthesis.anchors
    directions = load(CHECKPOINT / "codes.safetensors").first(plan.components)
    cells_asked = plan.cells_per_stratum
    whitening, cells = choose_space(prepared[0].known, directions, cells_asked, plan.components)
    codes = whitening(refined)[:, : plan.components]
    mechanism = NoisyAnchors(
        plan.noise_multiplier, plan.components, cells_asked, synthesis.k, plan.threshold_delta
    )
    _, means = publish(codes, cells, mechanism, seed)
    generator = prepared[0].networks.generator
    assert generator is not None
    return np.concatenate([show(means, whitening, generator, seed + i) for i in (0, 1000)])


def ways(
    start: Weights,
    study: Study,
    averages: Images,
    cohort: Cohort,
    steps: Sequence[int],
    seed: int,
) -> Iterator[tuple[str, Weights]]:
    """Every row's weights."""
    yield "start", start
    yield "start, private", trained(start, study, cohort, seed)
    for count in steps:
        begun = warm(start, study, averages, count, seed)
        yield f"warm, {count} steps", begun
        yield f"warm, {count} steps, private", trained(begun, study, cohort, seed)
        critic = {name: array for name, array in start.items() if name.startswith("critic.")}
        alone = trained({**begun, **critic}, study, cohort, seed)
        yield f"warm generator, {count} steps, private", alone


def tables(rows: Sequence[dict[str, Any]]) -> list[report.Table]:
    """One table of all rows."""
    lines = []
    for row in rows:
        draws = row["draws"]
        mean = {name: float(np.mean([one[name] for one in draws])) for name in draws[0]}
        each = ", ".join(f"{one['frechet']:.1f}" for one in draws)
        moved = f"{mean['moved']:.4f}" if row["row"] != "averages" else ""
        lines.append((row["row"], f"{mean['frechet']:.1f}", each, f"{mean['kernel']:.2f}", moved))
    return [report.Table("", COLUMNS, tuple(lines))]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with the .npz files")
    parser.add_argument("--people", type=int, default=700)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", nargs="+", type=int, default=[100, 400])
    parser.add_argument("--work", type=Path, default=Path("hospitals-work"))
    report.add_json(parser)
    parser.add_argument("--sheet", type=Path, help="PNG of the first draw, a line a row")
    given = parser.parse_args()
    torch.set_num_threads(1)
    study = load_study(ROOT / "deploy" / "studies" / "fundus.yaml")
    prepared = []
    for source in SOURCES:
        photographs = read_source(given.data, source, study.intake.size_px)
        part = make_part(source, photographs, CHECKPOINT, None)
        prepared.append(PreparedPart(part, given.work / "all", study))
    rows, pictures = run(prepared, given)
    if given.sheet:
        Image.fromarray(np.concatenate([line(images) for images in pictures])).save(given.sheet)
    report.give(given.json, "warm_start", tables(rows), {"rows": rows})


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
