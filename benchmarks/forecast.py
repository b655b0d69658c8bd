"""The forecast of a plan against real rounds: seconds and peak memory of each phase.

    python -m benchmarks.forecast [--json [FILE]] [--sizes 64 128 256] [--quick]

Each model trains one round of a few private steps, and the image phase runs once, in processes of
their own with the code of a site's child (client/child). The networks are those of the presets
deploy/studies/fundus.yaml and vessels.yaml (as `small`, which needs no start), untrained, all of
whose tensors train; at every step all planned patients are drawn, so the forecast counts what is
computed. Images are random.
Seconds are process time of one thread. Of a training they are those of all steps but the first,
which chooses the back end, scaled to all steps. Peak memory is resident, of the whole process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # opacus has a package benchmarks too

import numpy as np

from benchmarks import report
from common.study.forecast import CORE, Phase, hours, phases
from common.study.plan import Study, load_study

STUDIES = Path(__file__).resolve().parents[1] / "deploy" / "studies"
PARTS = ("gan", "glow", "wgan", "images", "privatize")
STEPS = 3
# patients, and k: as many groups as are aligned at once
PEOPLE = {"gan": (10, 5), "glow": (10, 5), "wgan": (10, 5), "images": (32, 2), "privatize": (10, 5)}
GIB = 2**30
QUICK: dict[str, Any] = {"width": 8, "latent": 16, "levels": 3, "steps_per_level": 1}
TOO_FAR = 2.0  # times, between forecast and measurement


def make_study(part: str, size_px: int, quick: bool) -> Study:
    """Return the preset's plan at a size, with all of its patients at every step."""
    preset = "vessels" if part == "wgan" else "fundus"
    data = load_study(STUDIES / f"{preset}.yaml").model_dump(mode="json", exclude_unset=True)
    patients, k = PEOPLE[part]
    data["intake"]["size_px"] = size_px
    data["privacy"] |= {"planned_patients": patients, "delta": 1e-5, "accept_infeasible": True}
    for name, model in data["models"].items():
        model.pop("start", None)
        if name == "encoder":
            model["steps"] = STEPS
        else:
            model |= {"rounds": 1, "local_steps": STEPS, "patients_per_step": patients}
            model |= {"trainable": [], "max_update_norm": 1e4}
        if name == "wgan":
            model["architecture"] = "small"
        if quick:
            model |= {key: value for key, value in QUICK.items() if key in model}
    if data.get("synthesis"):
        data["synthesis"] |= {"k": k, "inversion_steps": STEPS, "alignment_steps": STEPS}
        # noise enough for a latent of any size, of which no image is looked at here
        data["synthesis"]["privatize"] |= {"share": 0.5, "scale": 10.0}
    return Study.model_validate(data)


# --- one part in a process of its own ------------------------------------------------------------


def peak_bytes() -> int:
    """The largest resident memory of this process since it was forgotten last."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10


def forget_peak() -> None:
    """Count the peak from here on."""
    Path("/proc/self/clear_refs").write_text("5")


def invent_cohort(study: Study) -> Any:
    """Return random images of all planned patients, one each, of one stratum."""
    from client.ingest.cohort import Cohort

    intake = study.intake
    patients = study.privacy.planned_patients
    shape = (patients, intake.size_px, intake.size_px, intake.planes)
    names = tuple(f"{number:064x}" for number in range(patients))
    return Cohort(
        folder=Path("invented"),
        images=np.random.default_rng(0).integers(0, 256, shape, np.uint8),
        patient_of=np.arange(patients),
        labels=np.zeros(patients, np.int64),
        laterality=np.zeros(patients, np.int8),
        pseudonyms=names,
        aliases=tuple((name,) for name in names),
        label_names=tuple(intake.labels),
        digest="0" * 64,
    )


def initial_weights(study: Study, part: str) -> dict[str, Any]:
    """Return untrained weights of a part's models by their global names."""
    import torch

    from client.learn import train_gan, train_glow, train_wgan
    from common.models import wgan
    from common.models.glow_checkpoint import weights_of
    from common.models.weights import numpy_weights

    torch.manual_seed(0)
    found: dict[str, Any] = {}
    if part in ("gan", "images"):
        generator, critic = train_gan.build(study)
        found |= numpy_weights(generator, "generator.") | numpy_weights(critic, "critic.")
    if part in ("glow", "privatize"):
        found |= weights_of(train_glow.build(study))
    if part == "wgan":
        generator, critic = wgan.build(train_wgan.plan_of(study), study.intake.size_px)
        named = wgan.parameters_by_name(generator, generator, critic)
        found |= {name: value.detach().numpy() for name, value in named.items()}
    return found


def run_training(study: Study, model: str, folder: Path) -> dict[str, dict[str, float]]:
    """Train one round as a child does, and return its seconds and its peak."""
    from client.learn import train_gan, train_glow, train_wgan
    from client.learn.fast.ways import CHOICES
    from client.learn.machine import machine_on
    from client.state.ledger import PracticeReservation
    from common.compute import Compute
    from common.devices import CPU
    from common.privacy.events import round_event
    from common.privacy.noise import SeededNoiseSource

    trainers = {"gan": train_gan.train, "glow": train_glow.train, "wgan": train_wgan.train}
    weights = initial_weights(study, model)
    # no ledger stands behind these rounds, so their noise is a test's, which costs the same
    reservation = PracticeReservation(round_event(study, model, 10**9))
    CHOICES.keep_in(folder / "ways.json")
    machine = machine_on(CPU, Compute(device="cpu"))
    ends: list[float] = []
    forget_peak()
    trainers[model](
        invent_cohort(study), study, weights, reservation, SeededNoiseSource(0),
        lambda *_: ends.append(time.process_time()), None, machine,
    )  # fmt: skip
    each_s = (ends[-1] - ends[0]) / (len(ends) - 1)
    return {model: {"s": each_s * len(ends), "bytes": peak_bytes()}}


@dataclass
class Meter:
    """Process time and peak memory of phases that run one after the other."""

    found: dict[str, dict[str, float]] = field(default_factory=dict)

    def run(self, name: str, work: Callable[[], Any]) -> Any:
        """Return what a phase makes, and note what it took."""
        forget_peak()
        began = time.process_time()
        made = work()
        self.found[name] = {"s": time.process_time() - began, "bytes": peak_bytes()}
        return made


def make_batch(study: Study, part: str, folder: Path) -> Any:
    """Return the inputs of an image batch with untrained weights."""
    from client.child.inputs import Batch
    from client.state.jobs import WEIGHTS
    from common.wire import tensors

    weights = initial_weights(study, part)
    job = folder / "job"
    job.mkdir()
    tensors.write(job / WEIGHTS, weights)
    return Batch(study, invent_cohort(study), weights, folder, job, bytes(32))


def make_groups(batch: Any) -> tuple[Any, list[Any]]:
    """Return groups of k patients, and who is where."""
    from client.state.group_store import Group, Stratum
    from client.synthesize.group import roster

    cohort = batch.cohort
    k = batch.synthesis.k
    names = cohort.pseudonyms
    who = roster(names, cohort.patient_of, cohort.labels, key=bytes(32))
    starts = range(0, len(names), k)
    return who, [Group(names[at : at + k], Stratum(0, 0), k) for at in starts]


def run_privatize(study: Study, folder: Path) -> dict[str, dict[str, float]]:
    """Privatize the averages of all groups, and return seconds and peak."""
    from client.child.batch import privatize_groups

    batch = make_batch(study, "privatize", folder)
    who, groups = make_groups(batch)
    meter = Meter()
    made = meter.run("privatize", lambda: privatize_groups(batch, groups, who))
    assert len(made) == len(groups)
    return meter.found


def run_images(study: Study, folder: Path) -> dict[str, dict[str, float]]:
    """Run the phases of the generator as a child does; every image counts as inverted well."""
    import torch

    from client.child.batch import align_groups
    from client.learn import train_encoder
    from client.state.spool import Spool, spool_of
    from client.synthesize.inversion_sheet import draw_sheet
    from client.synthesize.invert import Inversion, invert
    from client.synthesize.reference import InversionPlan, Reference, make_reference
    from common.models.encoder import load_encoder

    batch = make_batch(study, "images", folder)
    cohort = batch.cohort
    random = torch.Generator().manual_seed(0)
    plan = study.models.encoder
    assert plan is not None
    constants = InversionPlan(
        steps=batch.synthesis.inversion_steps,
        iterations=plan.iterations,
        coarse_cells=batch.synthesis.coarse_cells,
    )
    meter = Meter()

    # (1, 2) as `invert_cohort`
    generator = batch.generator()
    trained = meter.run(
        "encoder", lambda: train_encoder.train(batch.weights, {}, study, batch.report("encoder"))
    )
    intake = study.intake
    encoder = load_encoder(trained, plan.width, generator.latent, intake.size_px, intake.channels)

    def invert_all() -> tuple[Reference, Inversion]:
        known = make_reference(generator, encoder, constants, random)
        inverted = invert(
            cohort.images, generator, encoder, constants, known, batch.report("invert"), spool
        )
        draw_sheet(cohort.images, inverted, generator, known.look_on())
        return known, inverted

    spool = Spool.open(spool_of(batch.folder), "benchmark")
    known, inverted = meter.run("invert", invert_all)
    inverted = replace(inverted, accepted=np.ones(len(cohort.images), bool))

    # (3, 4) as `average_groups`
    who, groups = make_groups(batch)
    aligned = meter.run(
        "align", lambda: align_groups(batch, groups, who, (known, inverted), random)
    )
    assert len(aligned) == len(groups) * batch.synthesis.outputs_per_group
    return meter.found


def run_part(part: str, size_px: int, quick: bool, folder: Path) -> dict[str, dict[str, float]]:
    """Return seconds and peak memory of a part's phases, in this process."""
    import torch

    import client.child.job  # what a child has loaded

    assert client.child.job
    torch.set_num_threads(1)
    study = make_study(part, size_px, quick)
    if part == "images":
        return run_images(study, folder)
    if part == "privatize":
        return run_privatize(study, folder)
    return run_training(study, part, folder)


def in_a_process(part: str, size_px: int, quick: bool) -> dict[str, dict[str, float]]:
    """Run a part in a process of its own, in a folder that goes again."""
    command = [sys.executable, __file__, "--one", part, str(size_px)]
    if quick:
        command.append("--quick")
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


# --- what was found ------------------------------------------------------------------------------


def compare(part: str, size_px: int, quick: bool) -> list[dict[str, Any]]:
    """Return forecast and measurement of each phase of a part at a size."""
    planned = {phase.name: phase for phase in phases(make_study(part, size_px, quick))}
    rows = []
    for name, one in in_a_process(part, size_px, quick).items():
        phase = planned[name]
        rows.append(
            {
                "phase": name,
                "px": size_px,
                "s": round(one["s"], 3),
                "bytes": one["bytes"],
                "predicted_s": round(3600 * hours(phase, CORE), 3),
                "predicted_bytes": phase.memory_bytes,
                "products": phase.products,
                "noise": phase.noise,
                "calls": phase.calls,
                "products_per_s": rate(phase, one["s"]),
            }
        )
    return rows


def rate(phase: Phase, seconds: float) -> float:
    """Multiply-adds a second of a phase, beside its noise and its calls."""
    others_s = phase.noise * CORE.noise_s + phase.calls * CORE.call_s
    return phase.products / max(seconds - others_s, 1e-3)


def tables(rows: Sequence[dict[str, Any]]) -> list[report.Table]:
    """One row for each phase and size."""
    cells = []
    for row in rows:
        cells.append(
            (
                row["phase"],
                str(row["px"]),
                f"{row['predicted_s']:.1f}",
                f"{row['s']:.1f}",
                f"{row['predicted_s'] / row['s']:.2f}",
                f"{row['products_per_s'] / 1e9:.1f}",
                f"{row['predicted_bytes'] / GIB:.2f}",
                f"{row['bytes'] / GIB:.2f}",
                f"{row['predicted_bytes'] / row['bytes']:.2f}",
            )
        )
    titles = (
        "phase", "px", "forecast s", "measured s", "ratio", "10^9 products a second",
        "forecast GiB", "measured GiB", "ratio of memory",
    )  # fmt: skip
    title = f"{STEPS} steps of each phase, one thread"
    people = ", ".join(f"{part} {count}" for part, (count, _) in PEOPLE.items())
    note = (
        f"Patients: {people}. Ratios are the forecast over the measurement; the rate leaves noise "
        "and calls of torch out."
    )
    return [report.Table(title, titles, tuple(cells), note)]


def targets(rows: Sequence[dict[str, Any]]) -> list[report.Target]:
    """Memory is never forecast below the measured peak; times are right within a factor."""
    least = min(row["predicted_bytes"] / row["bytes"] for row in rows)
    ratios = [row["predicted_s"] / row["s"] for row in rows]
    worst = max(max(ratio, 1 / ratio) for ratio in ratios)
    return [
        report.Target(
            "no forecast of memory below the measured peak", f"least {least:.2f}", least >= 1
        ),
        report.Target(
            f"every time within a factor of {TOO_FAR:g}", f"worst {worst:.2f}", worst <= TOO_FAR
        ),
    ]


def measure_all(sizes: Sequence[int], quick: bool) -> Iterator[dict[str, Any]]:
    """Yield every part at every size."""
    for size_px in sizes:
        for part in PARTS:
            yield from compare(part, size_px, quick)
            print(f"{part} at {size_px} px done", file=sys.stderr)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    report.add_json(parser)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--quick", action="store_true", help="toy widths: a test of the script")
    parser.add_argument("--one", nargs=2, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        part, size_px = options.one[0], int(options.one[1])
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(run_part(part, size_px, options.quick, Path(folder))))
        return
    report.say_conditions()
    rows = list(measure_all(options.sizes, options.quick))
    found = {"people": PEOPLE, "steps": STEPS, "rows": rows}
    report.give(options.json, "forecast", tables(rows), found, targets(rows))


if __name__ == "__main__":
    main()
