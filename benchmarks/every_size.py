"""What each image size costs: every family at every size that a plan admits, beside the forecast.

    python -m benchmarks.every_size --json benchmarks/results/every_size.json

A plan of small networks is judged as `kohort-server plan` and a site's `check` do. Then the site's
own child takes one round of two private steps, and makes images where the plan has any, for 16
invented patients.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import report
from benchmarks.accepting_child import accept_everything
from benchmarks.processes import LOOK_S, peak_mib
from client.child.job import work
from client.daemon.jobs import environment
from client.state.jobs import CANARIES, JOB, OUTPUT, OUTPUT_CAP_BYTES, Job
from client.state.ledger import Reservation
from client.state.machine import Room, check_memory
from common.errors import Bug
from common.models import wgan
from common.models.glow import Glow
from common.models.glow_checkpoint import weights_of
from common.models.sizes import PAIR_SIZES_PX
from common.models.stylegan import Critic, Generator
from common.models.weights import numpy_weights
from common.privacy.canaries import draw
from common.privacy.events import charged_image_event, round_event
from common.privacy.noise import NoiseSource
from common.storage.files import atomic_write
from common.study.families import FAMILIES
from common.study.fit import check_checkpoints
from common.study.forecast import CORE, Phase, hours, phases
from common.study.forecast_words import forecast_lines
from common.wire import tensors
from server.operator import plan as plans
from server.operator.config import Limits
from tests.jobs import NO_GROUPS, SECRET, job_folder
from tests.sites import Hospital, make_hospital
from tests.studies import SMALL, VESSELS

MIB = 1 << 20
SIZES_PX = (32, 64, 96, 128, 256, 512)
WIDTH = 8
LATENT = 16
PATIENTS = 16
STEPS = 2  # of the private round, of inversion and of alignment
LABELS = ("none", "mild-moderate", "severe")
ANCHORS = {"noise_multiplier": 0.3, "threshold_delta": 1e-6, "cells_per_stratum": 1}
IMAGES = "images"
PARTS = {IMAGES: ("encoder", "invert", "align", "privatize")}  # of the forecast
ROOM = Room(total_bytes=24 << 30, free_bytes=24 << 30)
Weights = dict[str, tensors.Arrays]


@dataclass(frozen=True)
class Case:
    """A family at a size; `images` makes a batch with generator, encoder and flow.

    Whatever else a plan may combine with a size has its usual value here.
    """

    family: str
    size_px: int
    channels: int = 3
    architecture: str = "small"
    levels: int = 4
    grouping: str = "similar"
    canaries: int = 0
    trainable: tuple[str, ...] = ()
    merged: bool = False  # one label for everybody
    sides: bool = True


def every_case() -> Iterator[Case]:
    """Yield every family at every size that it has, in colour where it can."""
    for size_px in SIZES_PX:
        levels = min(5, halvings(size_px) - 1)
        for family in ("gan", "glow", IMAGES):
            yield Case(family, size_px, levels=levels)
    for architecture, sizes_px in PAIR_SIZES_PX.items():
        for size_px in sizes_px:
            yield Case("wgan", size_px, 1, architecture)


def halvings(size_px: int) -> int:
    """Return how often a side can be halved."""
    return (size_px & -size_px).bit_length() - 1


# --- a hospital with a plan of the case -----------------------------------------------------------


def open_hospital(root: Path, case: Case) -> tuple[Hospital, Weights]:
    """Return a hospital that approved the case's plan, and the weights that it starts from."""
    torch.manual_seed(0)
    if case.family == "wgan":
        weights, changes = pair_plan(case)
    else:
        weights, changes = image_plan(case)
    changes["privacy"] = SMALL["privacy"] | {"canaries": case.canaries}
    return make_hospital(root, weights=weights, **changes), weights


def image_plan(case: Case) -> tuple[Weights, dict[str, Any]]:
    """Return weights of generator, critic and flow, and what they change in the small plan."""
    size_px, channels = case.size_px, case.channels
    gan = numpy_weights(Generator(size_px, channels, WIDTH, LATENT), "generator.")
    gan |= numpy_weights(Critic(size_px, channels, WIDTH), "critic.")
    flow = weights_of(Glow(size_px, channels, case.levels, 1, WIDTH))
    intake = SMALL["intake"] | {"size_px": size_px, "channels": channels}
    intake |= {"labels": LABELS, "stratify_laterality": case.sides}
    if case.merged:
        intake["merge_labels"] = dict.fromkeys(LABELS[1:], LABELS[0])
    models = SMALL["models"]
    sizes = {"levels": case.levels, "steps_per_level": 1, "width": WIDTH}
    changes = {
        "intake": intake,
        "models": {
            "gan": models["gan"] | {"width": WIDTH, "latent": LATENT},
            "glow": models["glow"] | sizes,
            "encoder": models["encoder"] | {"width": WIDTH},
        },
        "synthesis": synthesis_of(case.grouping),
    }
    return {"gan": dict(gan), "glow": dict(flow)}, changes


def synthesis_of(grouping: str) -> dict[str, Any]:
    """Return the small plan's synthesis for a grouping, with noise that its claim allows."""
    synthesis: dict[str, Any] = SMALL["synthesis"] | {"grouping": grouping}
    if grouping == "anchors":
        del synthesis["privatize"]
        return synthesis | {"anchors": ANCHORS}
    share = 1 if grouping == "random" else 0.25
    return synthesis | {"privatize": {"share": share, "radius": 0.8, "scale": 3.0}}


def pair_plan(case: Case) -> tuple[Weights, dict[str, Any]]:
    """Return weights of a generator of pairs, and what they change in the small plan."""
    generator = wgan.build_generator(case.size_px, WIDTH, LATENT, case.architecture)
    critic = wgan.Critic(case.size_px, WIDTH, case.architecture)
    weights = numpy_weights(generator, "generator.") | numpy_weights(generator, "average.")
    weights |= numpy_weights(critic, "critic.")
    sizes = {"architecture": case.architecture, "width": WIDTH, "generator_width": WIDTH}
    changes = {
        "modality": VESSELS["modality"],
        "intake": VESSELS["intake"] | {"size_px": case.size_px},
        "models": {"wgan": VESSELS["models"]["wgan"] | sizes | {"trainable": case.trainable}},
        "synthesis": None,
    }
    return {"wgan": dict(weights)}, changes


# --- what a case does -----------------------------------------------------------------------------


def judge(hospital: Hospital) -> None:
    """Look at what the plan spends, and whether a server has room for it, as an operator does.

    Raises a KohortError for a plan that is refused.
    """
    found = plans.report(hospital.study, hospital.root.parent / "operator")
    plans.check_room(hospital.study, found, Limits())


def foresee(hospital: Hospital) -> dict[str, Phase]:
    """Return the phases that `plan` and `check` show, by name, where checkpoints and room fit.

    Raises a KohortError for a plan that is refused.
    """
    study = hospital.study
    check_checkpoints(study, hospital.bundle / "checkpoints")
    check_memory(study, ROOM)
    assert list(forecast_lines(study))
    return {phase.name: phase for phase in phases(study)}


def prepare(hospital: Hospital, weights: Weights, family: str, folder: Path) -> None:
    """Write the job of one round of a family, or of a batch of images, as the daemon does."""
    study = hospital.study
    if family == IMAGES:
        sent = weights["gan"] | weights["glow"]
        job_folder(hospital, folder, "synthesize", "", sent, NO_GROUPS)
        event = charged_image_event(study)
    else:
        job_folder(hospital, folder, "train", family, weights[family], NO_GROUPS)
        shapes = {name: array.shape for name, array in weights[family].items()}
        chosen = study.models.trained()[family].trainable
        trained = FAMILIES[family].private_dimension(shapes, chosen)
        if study.privacy.canaries:
            secret = draw(NoiseSource(), study.privacy.canaries, trained)
            atomic_write(folder / CANARIES, tensors.dumps(secret.arrays()))
        event = round_event(study, family, trained + study.privacy.canaries)
    if event is not None:
        reservation = Reservation(2, event.steps, event).to_json()
        job = replace(Job.read(folder), reservation=reservation)
        text = asdict(job) | {"compute": job.compute.model_dump()}
        atomic_write(folder / JOB, json.dumps(text).encode())


def finish(family: str, folder: Path) -> tensors.Arrays:
    """Do a job in this process; return its output."""
    torch.set_num_threads(1)
    with accept_everything() if family == IMAGES else nullcontext():
        work(Job.read(folder), folder, SECRET)
    return tensors.read(folder / OUTPUT, max_bytes=OUTPUT_CAP_BYTES)


def run_child(family: str, folder: Path) -> tuple[float, float]:
    """Do a job in a child process, as the daemon does; return its process time and peak MiB.

    The peak is the kernel's of this program alone: `ru_maxrss` would count what the process was
    before it started the program.
    """
    module = "benchmarks.accepting_child" if family == IMAGES else "client.child.job"
    command = [sys.executable, "-m", module, str(folder)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    child = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, env=environment(threads=1))
    # its input stays open: the child ends when it closes
    assert child.stdin is not None
    child.stdin.write(f"{SECRET.hex()}\n")
    child.stdin.flush()
    mib = 0.0
    while child.poll() is None:
        mib = max(mib, peak_mib(Path(f"/proc/{child.pid}/status").read_text()))
        time.sleep(LOOK_S)
    child.stdin.close()
    if child.returncode:
        raise Bug(f"{module} ended with exit code {child.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    took_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return took_s, mib


def measure(case: Case, folder: Path) -> dict[str, Any]:
    """Judge the case's plan and do its work; return what that took beside the forecast."""
    hospital, weights = open_hospital(folder / "hospital", case)
    if case.family in ("gan", "wgan"):
        judge(hospital)  # once for a plan: that of a size's other families is the same
    told = foresee(hospital)
    prepare(hospital, weights, case.family, folder / "job")
    took_s, mib = run_child(case.family, folder / "job")
    parts = PARTS.get(case.family, (case.family,))
    sent = weights.values() if case.family == IMAGES else [weights[case.family]]
    return {
        "numbers": sum(array.size for part in sent for array in part.values()),
        "s": round(took_s, 2),
        "mib": round(mib),
        "told_mib": round(max(told[name].memory_bytes for name in parts) / MIB),
        "told_s": round(3600 * sum(hours(told[n], CORE) / told[n].rounds for n in parts), 2),
    }


# --- words ----------------------------------------------------------------------------------------


def table_of(found: Sequence[dict[str, Any]]) -> report.Table:
    """A row for each case."""
    rows = []
    for one in found:
        case = Case(**one["case"])
        family = case.family
        if family == "wgan":
            family += f" {case.architecture}"
        memory = f"{one['told_mib']:,}", f"{one['mib']:,}"
        took = f"{one['told_s']:.1f}", f"{one['s']:.1f}"
        rows.append((family, f"{case.size_px}", f"{one['numbers']:,}", *memory, *took))
    columns = (
        "family",
        "px",
        "numbers",
        "memory foretold, MiB",
        "measured",
        "time foretold, s",
        "measured",
    )
    return report.Table("One round, or one batch of images", columns, tuple(rows))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run every case and print or write what it took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    report.add_json(parser)
    parser.add_argument("--most", type=int, default=512, help="largest size in pixels")
    options = parser.parse_args(arguments)
    report.say_conditions()
    found = []
    for case in every_case():
        if case.size_px <= options.most:
            with tempfile.TemporaryDirectory(prefix="k-") as name:
                found.append({"case": asdict(case)} | measure(case, Path(name)))
            print(f"{case.family} {case.size_px} px done", file=sys.stderr)
    least = min(one["told_mib"] / one["mib"] for one in found)
    asked = "no forecast of memory below what was measured (forecast over measured, least)"
    target = report.Target(asked, f"{least:.2f}", least >= 1)
    report.give(options.json, "every_size", [table_of(found)], {"cases": found}, [target])


if __name__ == "__main__":
    main()
