"""What private image + mask pairs are worth: Dice of a U-Net trained on them, on held-out patients.

    python -m benchmarks.quality_vessels [--part phantoms|dias] [--architecture small|mask-first]
        [--data FOLDER] [--seeds 3] [--rows real,plain,…] [--json [FILE]] [--work DIR] [--quick]

phantoms: 2,000 procedural patients of four sites, trained by the product's own trainer at epsilon 8
  and 3 per patient, from scratch and from a network pretrained on phantoms of another style.
dias: 60 sequences of cerebral angiography, split by sequence; the plan's verdict is infeasible.
Every result is a file in --work, so an interrupted run continues. Noise is seeded, because nobody
is a patient here; the product refuses that for patients.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks import report
from benchmarks.vessel_data import (
    DIAS,
    DIAS_FILE,
    PHANTOMS,
    QUICK,
    SIZE_PX,
    Part,
    Setting,
    Show,
    dias_part,
    flat,
    phantom_part,
)
from client.ingest.cohort import Cohort
from client.learn import train_wgan
from client.state.ledger import PracticeReservation
from common.arrays import Pairs
from common.measure import pair_segmenter
from common.measure import pair_utility as utility
from common.models.wgan import Critic, build, load, load_average, parameters_by_name
from common.models.wgan_pairs import sample
from common.privacy.accounting import calibrate
from common.privacy.events import round_event
from common.privacy.noise import SeededNoiseSource
from common.privacy.plan_report import RATIO_FEASIBLE, RATIO_MARGINAL, feasibility
from common.storage import files
from common.study.plan import Study
from common.study.training import WganPlan
from common.wire import tensors
from server.pretrain.wgan import Recipe, arrays_of, finish, pretrain

DELTA = 1e-5
STRIP_PAIRS = 24
RECIPE = Recipe(batch=24, adversarial=0.02, warm_up=800)
# where the look alone is learned: of critic and generator; few patients' looks lie farther away
LOOK_RATE = 0.02
LOOK_CLIP = 2.0
Weights = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Row:
    """One line of the table: how the pairs come about.

    `epsilon` None: no privacy; `tuned`: starts from the public network.
    """

    name: str
    label: str
    kind: str  # real, public, plain or private
    epsilon: float | None = None
    tuned: bool = False


ROWS = (
    Row("real", "real pairs of the sites", "real"),
    Row("plain", "GAN, not private", "plain"),
    Row("public", "GAN of public phantoms alone, saw no patient", "public", tuned=True),
    Row("scratch-8", "DP GAN, ε = 8 a patient, from scratch", "private", 8.0),
    Row("scratch-3", "DP GAN, ε = 3 a patient, from scratch", "private", 3.0),
    Row("tuned-8", "DP GAN, ε = 8 a patient, from the public network", "private", 8.0, tuned=True),
    Row("tuned-3", "DP GAN, ε = 3 a patient, from the public network", "private", 3.0, tuned=True),
)


# --- one row --------------------------------------------------------------------------------------


def study_of(setting: Setting, epsilon: float, tuned: bool) -> Study:
    """The plan of a private row: the smallest sigma that the budget allows.

    A network from scratch needs larger steps.
    """
    planned = setting.patients // setting.sites
    sigma = calibrate(
        setting.patients_per_step / planned, setting.rounds * setting.local_steps, epsilon, DELTA
    )
    wgan: dict[str, Any] = {
        "rounds": setting.rounds,
        "local_steps": setting.local_steps,
        "learning_rate": 5e-4 if tuned else 1e-3,
        "generator_learning_rate": 3e-4 if tuned else 1e-3,
        "noise_multiplier": max(sigma, 0.3),
        "patients_per_step": setting.patients_per_step,
        "items_per_patient": 2,
        "clip": 1.0,
        "max_update_norm": 1000.0,
        "architecture": setting.architecture,
        "width": 16,
        "generator_width": 16,
        "latent": 32,
        "critic_steps": 1,
        "loss": "logistic",
        "average_decay": 0.95,
    }
    if setting.architecture == "mask-first":
        # a plan needs a start; what a row starts from is given to the trainer
        wgan["start"] = {"file": "public.safetensors", "sha256": "0" * 64}
        wgan["learning_rate"] = wgan["generator_learning_rate"] = LOOK_RATE
        wgan["clip"] = LOOK_CLIP
        wgan["trainable"] = ["critic.look"]
    return Study.model_validate(
        {
            "format": "kohort-study/1",
            "name": "quality",
            "title": "quality of private pairs",
            "modality": "vessels",
            "sites": [{"name": f"site-{i}"} for i in range(max(2, setting.sites))],
            "quorum": 2,
            "intake": {
                "dicom_modalities": ["MR"],
                "size_px": SIZE_PX,
                "channels": 1,
                "labels": ["vessels"],
                "volumes": {"patches_per_patient": setting.patches},
            },
            "models": {"wgan": wgan},
            "privacy": {
                "epsilon": epsilon,
                "delta": DELTA if planned <= 10_000 else 1e-6,
                "planned_patients": planned,
                "accept_infeasible": True,
                "canaries": 0,
            },
            "release": {"date": "2026-11-21"},
        }
    )


def public_network(part: Part, work: Path, show: Show) -> Weights:
    """The network pretrained on public phantoms: one for all seeds, as a study has one."""
    name = f"public.{part.setting.architecture}.safetensors"
    return trained_plainly(part.public, part.setting, 0, work.parent / name, show)


def public_plan_of(setting: Setting) -> WganPlan:
    """The plan's networks; of the rest public training takes the loss and the input noise alone."""
    plan = study_of(replace(QUICK, architecture=setting.architecture), 8.0, True).models.wgan
    assert plan is not None
    return plan


def trained_plainly(pairs: Pairs, setting: Setting, seed: int, path: Path, show: Show) -> Weights:
    """The weights after non-private training on pairs [P, n, ...], from `path` if it exists."""
    if not path.exists():
        steps = setting.plain_steps
        run = pretrain(flat(pairs), public_plan_of(setting), seed, RECIPE)
        for step in range(1, steps):
            next(run)
            if step % 50 == 0:
                show(f"{path.stem}: step {step} of {steps}")
        plan = public_plan_of(setting)
        weights = finish(flat(pairs), arrays_of(next(run)), plan, steps, RECIPE)
        tensors.write(path, {n: a for n, a in weights.items() if not n.startswith("encoder.")})
    return {
        name: array.astype(np.float32)
        for name, array in tensors.read(path, max_bytes=1 << 30).items()
    }


def trained_privately(part: Part, row: Row, seed: int, work: Path, show: Show) -> Weights:
    """The weights after federated private training; rounds are averaged with equal weights, as the
    server does.
    """
    setting = part.setting
    path = work / f"{row.name}-{seed}.safetensors"
    if path.exists():
        return {
            name: array.astype(np.float32)
            for name, array in tensors.read(path, max_bytes=1 << 30).items()
        }
    assert row.epsilon is not None
    study = study_of(setting, row.epsilon, row.tuned)
    plan = study.models.wgan
    assert plan is not None
    weights = public_network(part, work, show) if row.tuned else fresh(study, seed)
    _, _, critic = load(weights, plan, SIZE_PX)
    event = round_event(study, "wgan", trained_numbers(critic, plan))
    share = setting.patients // setting.sites
    cohorts = [cohort_of(part.train[i * share : (i + 1) * share]) for i in range(setting.sites)]
    for round_ in range(plan.rounds):
        total: dict[str, Any] = {}
        for site, cohort in enumerate(cohorts):
            noise = SeededNoiseSource(1_000_000 * seed + 1000 * round_ + site)
            deltas = train_wgan.train(
                cohort, study, weights, PracticeReservation(event), noise, lambda *_: None
            )
            total = {name: total.get(name, 0) + delta for name, delta in deltas.items()}
            show(f"{path.stem}: round {round_ + 1} of {plan.rounds}, site {site + 1}")
        weights = {name: weights[name] + total[name] / setting.sites for name in weights}
    tensors.write(path, weights)
    return weights


def trained_numbers(critic: Critic, plan: WganPlan) -> int:
    """How many of the critic's numbers are trained privately."""
    prefixes = plan.trainable or ["critic."]
    found = {f"critic.{name}": p for name, p in critic.named_parameters()}
    return sum(p.numel() for name, p in found.items() if name.startswith(tuple(prefixes)))


def fresh(study: Study, seed: int) -> Weights:
    """Random starting weights."""
    assert study.models.wgan is not None
    torch.manual_seed(seed)
    generator, critic = build(study.models.wgan, SIZE_PX)
    return {
        name: value.detach().numpy().copy()
        for name, value in parameters_by_name(generator, generator, critic).items()
    }


def cohort_of(pairs: Pairs) -> Cohort:
    """A cohort in memory of pairs [P, n, S, S, 2]."""
    patients, each = pairs.shape[:2]
    names = tuple(f"{i:08d}" for i in range(patients))
    return Cohort(
        folder=Path(),
        images=flat(pairs),
        patient_of=np.repeat(np.arange(patients), each),
        labels=np.zeros(patients * each, np.int64),
        laterality=np.zeros(patients * each, np.int8),
        pseudonyms=names,
        aliases=tuple((name,) for name in names),
        label_names=("vessels",),
        digest="",
    )


def pairs_of(part: Part, row: Row, seed: int, work: Path, show: Show) -> Pairs:
    """The pairs that a segmentation network is trained on: real ones, or as many samples."""
    setting = part.setting
    if row.kind == "real":
        order = np.random.default_rng(seed).permutation(len(flat(part.train)))
        return flat(part.train)[order[: setting.pairs]]
    if row.kind == "public":
        weights = public_network(part, work, show)
    elif row.kind == "plain":
        path = work / f"plain-{seed}.safetensors"
        weights = trained_plainly(part.train, setting, seed, path, show)
    else:
        weights = trained_privately(part, row, seed, work, show)
    average = load_average(weights, public_plan_of(setting), SIZE_PX)
    return sample(average, setting.pairs, torch.Generator().manual_seed(seed))


def measure_row(part: Part, row: Row, seed: int, work: Path, show: Show) -> dict[str, Any]:
    """Dice, bAHD and 95HD of one row and seed, from its file if it is there."""
    path = work / f"{row.name}-{seed}.json"
    if not path.exists():
        pairs = pairs_of(part, row, seed, work, show)
        strip(pairs[:STRIP_PAIRS], work / f"{row.name}-{seed}.png")
        show(f"{row.name}-{seed}: segmentation network")
        recipe = replace(pair_segmenter.SMALL, epochs=part.setting.epochs)
        patient_of = np.repeat(np.arange(len(part.test)), part.test.shape[1])
        found = utility.utility(pairs, flat(part.test), patient_of, recipe=recipe, seed=seed)
        share = float((pairs[..., 1] > 0).mean())
        facts = {
            "dsc": found.dsc,
            "interval": found.dsc_interval,
            "bahd": found.bahd_mm,
            "hd95": found.hd95_mm,
        }
        files.atomic_write(path, json.dumps({**facts, "mask_share": share}).encode())
    result: dict[str, Any] = json.loads(files.read_capped(path, 1 << 16))
    return result


def strip(pairs: Pairs, path: Path) -> None:
    """A picture of pairs: images above, masks below."""
    Image.fromarray(
        np.concatenate([np.concatenate(list(pairs[..., plane]), 1) for plane in (0, 1)])
    ).save(path)


# --- the table ------------------------------------------------------------------------------------


def table(part: Part, found: dict[str, list[dict[str, Any]]]) -> report.Table:
    """Mean over seeds, every seed, and the ratios to real pairs and to the non-private GAN."""
    means = {name: float(np.mean([r["dsc"] for r in rs])) for name, rs in found.items() if rs}
    rows = []
    for row in ROWS:
        if results := found.get(row.name):
            rows.append(cells_of(row, results, means))
    columns = (
        "pairs from",
        "DSC (mean of seeds)",
        "each seed [95 % over patients]",
        "÷ real",
        "÷ not private",
        "bAHD px",
        "95HD px",
        "mask share",
    )
    return report.Table(f"{part.name}: Dice on held-out patients", columns, tuple(rows))


def cells_of(row: Row, results: list[dict[str, Any]], means: dict[str, float]) -> tuple[str, ...]:
    """The cells of a row."""
    mean = {
        key: float(np.mean([r[key] for r in results]))
        for key in ("dsc", "bahd", "hd95", "mask_share")
    }
    each = []
    for result in results:
        low, high = result["interval"]
        each.append(f"{result['dsc']:.3f} [{low:.3f}, {high:.3f}]")
    return (
        row.label,
        f"{mean['dsc']:.3f}",
        ", ".join(each),
        *(f"{mean['dsc'] / means.get(other, float('nan')):.2f}" for other in ("real", "plain")),
        f"{mean['bahd']:.2f}",
        f"{mean['hd95']:.1f}",
        f"{mean['mask_share']:.3f}",
    )


def verdicts(setting: Setting, wanted: list[Row]) -> list[report.Table]:
    """What the plan says of the private rows before anything is trained; no table without one."""
    rows = []
    for row in wanted:
        if row.epsilon is None:
            continue
        study = study_of(setting, row.epsilon, row.tuned)
        plan = study.models.wgan
        assert plan is not None
        critic = build(plan, SIZE_PX)[1]
        said = feasibility(study, {"wgan": trained_numbers(critic, plan)})
        ratio = float(said.models[0].ratio / np.sqrt(setting.sites))
        numbers = (f"{plan.noise_multiplier:g}", f"{said.spent.pld:.2f}", f"{ratio:.1f}")
        rows.append((row.label, *numbers, word(ratio)))
    columns = ("row", "σ", "ε by PLD", "r/√S", "verdict")
    if not rows:
        return []
    return [report.Table("What the plan says before training", columns, tuple(rows))]


def word(ratio: float) -> str:
    """The verdict in one word."""
    if ratio > RATIO_MARGINAL:
        return "infeasible"
    return "marginal" if ratio > RATIO_FEASIBLE else "feasible"


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=("phantoms", "dias"), default="phantoms")
    parser.add_argument("--architecture", choices=("small", "mask-first"), default="small")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", default=",".join(row.name for row in ROWS))
    parser.add_argument("--work", type=Path, default=Path("quality-vessels"))
    parser.add_argument("--data", type=Path, help=f"folder with {DIAS_FILE}; --part dias needs it")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    report.add_json(parser)
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    began = time.monotonic()

    def show(text: str) -> None:
        sys.stderr.write(f"\r\033[K{time.monotonic() - began:6.0f} s  {text}")

    work = options.work / ("quick" if options.quick else "full") / options.part
    work.mkdir(parents=True, exist_ok=True)
    if options.part == "dias" and not (options.data and (options.data / DIAS_FILE).is_file()):
        sys.exit(f"--data: expected a folder with {DIAS_FILE}, got {options.data}")
    setting = {"phantoms": PHANTOMS, "dias": DIAS}[options.part]
    if options.quick:
        setting = replace(QUICK, sites=setting.sites if options.part == "dias" else QUICK.sites)
    setting = replace(setting, architecture=options.architecture)
    if options.part == "phantoms":
        part = phantom_part(setting, work, show)
    else:
        part = dias_part(setting, work, options.data, show)
    if options.architecture != "small":
        work = work.with_name(f"{options.part}.{options.architecture}")
        work.mkdir(exist_ok=True)
    wanted = [row for row in ROWS if row.name in options.rows.split(",")]
    found: dict[str, list[dict[str, Any]]] = {row.name: [] for row in wanted}
    for seed in range(options.seeds):
        for row in wanted:
            found[row.name].append(measure_row(part, row, seed, work, show))
    sys.stderr.write("\n")
    plans = verdicts(setting, wanted)
    figures = {
        "part": part.name,
        "setting": asdict(setting),
        "plan": [list(plan.rows) for plan in plans],
        "rows": found,
    }
    name = f"quality_vessels.{part.name}"
    if options.architecture != "small":
        name += f".{options.architecture}"
    report.give(options.json, name, [table(part, found), *plans], figures)


if __name__ == "__main__":
    main()
