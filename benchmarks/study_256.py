"""A study of colour photographs of 256 px from end to end, through the commands that people type.

    python -m benchmarks.study_256 --json benchmarks/results/study_256.json

Three hospitals of 40 invented people, whose photographs lie there as DICOM; an operator; networks
of few channels and few steps. Generator, critic, encoder and flow start from checkpoints that
`kohort-server pretrain` makes of other invented photographs. What is measured is what the size
costs, not what such networks learn.

`--data FILE.npz` takes real photographs (`images`, `labels`) for the hospitals' people instead.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks import report
from benchmarks.invented_fundus import (
    Photographs,
    draw_photographs,
    read_photographs,
    write_jpegs,
)
from benchmarks.processes import Relay, Watch
from client.state.jobs import read_work
from common.process import free_port
from common.study.forecast import CORE, hours, phases
from common.study.plan import Study, load_study
from common.study.traffic import traffic_of
from server.demo import rehearsal
from server.demo.export import Truth
from server.demo.fundus_hospitals import DIABETIC_RETINOPATHY, write_hospital
from server.demo.processes import Processes

MIB = 1 << 20
MOST_PAGE_MB = 20.0
MOST_CORE_MINUTES = 24.0  # twelve minutes of two cores
PUBLIC_SEED, HELDOUT_SEED, PATIENT_SEED = 1, 2, 3
PUBLIC_IMAGES = 12
PUBLIC, MEMBERS, HELDOUT = "public.npz", "members.npz", "heldout.npz"
BEGINNING = "beginning.json"
HELDOUT_PEOPLE = 24
K = 5
CRITIC_STEPS = 2
PROGRAMS = ("kohort-server", "kohort-site", "kohort")
MODULES = {  # of the processes that these start
    "client.ingest.decode_child": "kohort-site run: decoder",
    "server.flower.link_process": "kohort-server run: SuperLink",
    "server.flower.executor": "kohort-server run: executor",
    "server.flower.app_process": "kohort-server run: ServerApp",
    "server.front.process": "kohort-server run: front",
}


@dataclass
class Measured:
    """What a run took."""

    stages: dict[str, float] = field(default_factory=dict)  # seconds of wall time
    uses: dict[str, Any] = field(default_factory=dict)  # by name of a process

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a part of the run."""
        started = time.monotonic()
        yield
        self.stages[name] = round(time.monotonic() - started, 2)


def plan_of(size_px: int, sites: int, patients: int) -> dict[str, Any]:
    """Return the plan: averages of five, a quarter of them privatized by the flow."""
    trained = {
        "noise_multiplier": 2.0,
        "patients_per_step": 8,
        "clip": 1.0,
        "local_steps": CRITIC_STEPS,
        "learning_rate": 1e-4,
    }
    levels = min(5, (size_px & -size_px).bit_length() - 3)
    return {
        "format": "kohort-study/1",
        "name": f"fundus-{size_px}",
        "title": f"Invented fundus photographs of {size_px} px",
        "modality": "fundus",
        "sites": [{"name": f"hospital-{chr(ord('a') + number)}"} for number in range(sites)],
        "quorum": sites,
        "round_deadline_s": 900,
        "intake": {
            "dicom_modalities": ["OP"],
            "size_px": size_px,
            "channels": 3,
            "labels": ["none", "severe"],
        },
        "models": {
            "gan": trained
            | {"rounds": 2, "generator_learning_rate": 2e-5, "width": 8, "latent": 32},
            "glow": trained | {"rounds": 1, "levels": levels, "steps_per_level": 2, "width": 16},
            "encoder": {"steps": 10, "learning_rate": 1e-4, "width": 8},
        },
        "privacy": {
            "unit": "patient",
            "epsilon": 8.0,
            "delta": 1e-5,
            "planned_patients": patients,
            "accept_infeasible": True,
        },
        "synthesis": {
            "k": K,
            "grouping": "similar",
            "inversion_steps": 80,
            "alignment_steps": 10,
            "outputs_per_group": 2,
            "max_images_per_site": 40,
            "privatize": {"share": 0.25, "radius": 0.4, "scale": 2.0},
        },
        "release": {"min_images": 4, "date": "2026-11-30"},
    }


# --- the people -----------------------------------------------------------------------------------


def people_of(options: argparse.Namespace) -> Photographs:
    """Return the photographs of everybody at a hospital."""
    count = options.sites * options.patients
    if options.data is None:
        return draw_photographs(count, options.size, PATIENT_SEED)
    return read_photographs(options.data, options.size, count)


def write_people(path: Path, photographs: Photographs) -> Path:
    """Write photographs as `pretrain` and `release` read them, with labels and sides."""
    labels = np.array([DIABETIC_RETINOPATHY[grade] for grade in photographs.grades])
    names = np.array([f"{number:04d}" for number in range(len(labels))])
    right = np.array(photographs.sides) == "R"
    np.savez(path, images=photographs.images, labels=labels, names=names, laterality=right)
    return path


def write_hospitals(
    places: rehearsal.Places, names: Sequence[str], people: Photographs, size_px: int
) -> None:
    """Write each hospital's DICOM files."""
    for number, name in enumerate(names):
        crops = write_jpegs(people.deal(number, len(names)), places.work / "jpegs" / name)
        write_hospital(crops, places.work / "hospitals" / name, number, size_px)


# --- the run --------------------------------------------------------------------------------------


def name_process(words: list[str]) -> str:
    """Return who a process is, by its command line; of a site's child, the phase it is in."""
    if "client.child.job" in words:
        folder = Path(words[words.index("client.child.job") + 1])
        job = json.loads((folder / "job.json").read_bytes())
        phase = job["model"] or read_work(folder).phase or "synthesize"
        return f"child: {phase}"
    for module, name in MODULES.items():
        if module in words:
            return name
    for place, word in enumerate(words):
        if Path(word).name in PROGRAMS:
            return f"{Path(word).name} {words[place + 1]}"
    return ""


def pretrain(processes: Processes, plan: Path, images: Path, minutes: float) -> None:
    """Make starting checkpoints of the plan's sizes, both at once, and pin them."""
    # `plan` writes what a draft lacks: the largest norm of an update
    processes.do("kohort-server", "plan", str(plan))
    folder = plan.parent / "checkpoints"

    def train(model: str) -> None:
        given = ["--study", str(plan), "--model", model, "--out", str(folder / model)]
        given += ["--minutes", str(minutes), "--source", "invented", "--licence", "CC0-1.0"]
        given += ["--attribution", "nobody: they are invented"]
        processes.do("kohort-server", "pretrain", str(images), *given)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(train, ("gan", "glow")))
    # name them in the plan
    data = load_study(plan).model_dump(mode="json")
    for model, part in (("gan", "gan"), ("encoder", "gan"), ("glow", "glow")):
        file = f"checkpoints/{part}/{model}.safetensors"
        data["models"][model]["start"] = {"file": file, "sha256": "0" * 64}
    plan.write_text(yaml.safe_dump(data), encoding="utf-8")
    processes.do("kohort-server", "pin", str(plan))


def run_beginning(options: argparse.Namespace, out: Path) -> None:
    """Make the people's files, the plan and its checkpoints; note what that took."""
    places = rehearsal.Places(out)
    processes = Processes(out / "logs")
    processes.logs.mkdir(parents=True, exist_ok=True)
    plan = plan_file(places)
    plan.parent.mkdir(parents=True)
    written = plan_of(options.size, options.sites, options.patients)
    plan.write_text(yaml.safe_dump(written))
    names = [site["name"] for site in written["sites"]]
    measured = Measured()
    with Watch(name_process) as watch:
        with measured.stage("invent people, write DICOM"):
            people = people_of(options)
            write_hospitals(places, names, people, options.size)
            public = draw_photographs(PUBLIC_IMAGES, options.size, PUBLIC_SEED)
            images = write_people(places.work / PUBLIC, public)
            write_people(places.work / MEMBERS, people)
            others = draw_photographs(HELDOUT_PEOPLE, options.size, HELDOUT_SEED)
            write_people(places.work / HELDOUT, others)
        with measured.stage("pretrain, both models at once"):
            pretrain(processes, plan, images, options.minutes)
    measured.uses = {name: asdict(use) for name, use in watch.uses.items()}
    (places.work / BEGINNING).write_text(json.dumps(asdict(measured)))


def run_rest(options: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Run everything after that; return what all of it took."""
    places = rehearsal.Places(out)
    processes = Processes(out / "logs")
    plan = plan_file(places)
    study = load_study(plan)
    names = [site.name for site in study.sites]
    state = ["--state", str(places.server)]
    measured = Measured(**json.loads((places.work / BEGINNING).read_text()))
    public, real = free_port(), free_port()
    try:
        with Watch(name_process) as watch, Relay(public, real) as relay:
            # the operator
            with measured.stage("init, plan, sign"):
                url = f"https://127.0.0.1:{public}"
                processes.do("kohort-server", "init", *state, "--name", "study", "--url", url)
                processes.do("kohort-server", "plan", str(plan), *state)
                sign = ["sign", str(plan), *state, "--out", str(places.bundle)]
                processes.do("kohort-server", *sign)
            run = ["run", str(places.bundle), *state, "--port", str(real)]
            processes.start("server", "kohort-server", *run)

            # the sites
            with measured.stage("init, enrol, join, approve"):
                for name in names:
                    rehearsal.start_site(processes, places, name, truth_of(places, name))

            # ingest, rounds, images, reviews
            with measured.stage("ingest, rounds, images, review"):
                rehearsal.watch(processes, places, names, lambda line: None)
            sent, received = relay.sent, relay.received

            # the release
            with measured.stage("release, verify"):
                work = places.work
                reference = rehearsal.Reference(
                    work / PUBLIC, "invented", work / MEMBERS, work / HELDOUT
                )
                release, manifest = rehearsal.publish(processes, places, reference)
    finally:
        processes.stop()
    uses = measured.uses | {name: asdict(use) for name, use in watch.uses.items()}
    return {
        "size_px": options.size,
        "sites": len(names),
        "patients": options.patients,
        "images": manifest.images,
        "stages": measured.stages,
        "uses": dict(sorted(uses.items())),
        "site_sent_mb": sent / len(names) / 1e6,
        "site_received_mb": received / len(names) / 1e6,
        "page_mb": (release / "index.html").stat().st_size / 1e6,
        "release_mb": sum(p.stat().st_size for p in release.rglob("*") if p.is_file()) / 1e6,
        "forecast": forecast(study),
    }


def plan_file(places: rehearsal.Places) -> Path:
    """Return where the plan lies."""
    return places.work / "plan" / "study.yaml"


def truth_of(places: rehearsal.Places, name: str) -> Truth:
    """Return where a hospital's files lie; what is true of them was said when they were made."""
    folder = places.work / "hospitals" / name
    return Truth(folder / "dicom", folder / "labels.csv", 0, 0, 0, (), {})


def forecast(study: Study) -> dict[str, Any]:
    """Return what `kohort-server plan` says of one site."""
    traffic = traffic_of(study)
    found: dict[str, Any] = {
        "site_sent_mb": traffic.site_up_bytes / 1e6,
        "site_received_mb": traffic.site_down_bytes / 1e6,
        "images": len(study.sites) * traffic.images,
    }
    for phase in phases(study):
        seconds = 3600 * hours(phase, CORE)
        found[phase.name] = {"mib": phase.memory_bytes / MIB, "s": seconds}
    return found


# --- words ----------------------------------------------------------------------------------------


def tables(found: dict[str, Any]) -> list[report.Table]:
    """Wall time by stage, memory and time by process, forecast beside measured."""
    stages = [(name, f"{seconds:.0f}") for name, seconds in found["stages"].items()]
    stages.append(("all", f"{sum(found['stages'].values()):.0f}"))
    processes = []
    for name, use in found["uses"].items():
        row = (name, f"{use['count']}", f"{use['mib']:,.0f}", f"{use['cpu_s']:.0f}")
        processes.append(row)
    return [
        report.Table("Wall time", ("stage", "s"), tuple(stages)),
        report.Table(
            "Processes",
            ("process", "how many", "peak memory of one, MiB", "process time of all, s"),
            tuple(processes),
            "Memory is resident, looked at ten times a second. A site's child has one process for "
            "each round; that of the images goes through several phases.",
        ),
        report.Table(
            "Forecast and measured, of one site",
            ("what", "forecast", "measured"),
            tuple(_compare(found)),
            "Time is process time of one core, over the whole study.",
        ),
    ]


def _compare(found: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What `plan` foretold beside what was measured."""
    told = found["forecast"]
    for key, words in (("site_sent_mb", "sent, MB"), ("site_received_mb", "received, MB")):
        yield words, f"{told[key]:.1f}", f"{found[key]:.1f}"
    yield "images of all sites, at most", f"{told['images']}", f"{found['images']}"
    for name, phase in told.items():
        use = found["uses"].get(f"child: {name}")
        if not isinstance(phase, dict) or use is None:
            continue
        yield f"{name}, memory, MiB", f"{phase['mib']:,.0f}", f"{use['mib']:,.0f}"
        measured_s = use["cpu_s"] / found["sites"]
        yield f"{name}, time, s", f"{phase['s']:.1f}", f"{measured_s:.1f}"


def targets(found: dict[str, Any]) -> list[report.Target]:
    """The release is there and verified; bounds on its page and on the time of the whole run."""
    page_mb = found["page_mb"]
    minutes = sum(use["cpu_s"] for use in found["uses"].values()) / 60
    time_words = f"process time of all of it, at most {MOST_CORE_MINUTES:.0f} minutes of a core"
    return [
        report.Target("release verified", f"{found['images']} images", found["images"] > 0),
        report.Target(
            f"index.html under {MOST_PAGE_MB:.0f} MB", f"{page_mb:.2f}", page_mb < MOST_PAGE_MB
        ),
        report.Target(time_words, f"{minutes:.1f}", minutes <= MOST_CORE_MINUTES),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study and print or write what it took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    report.add_json(parser)
    parser.add_argument("--size", type=int, default=256, help="side of the images in pixels")
    parser.add_argument("--sites", type=int, default=3)
    parser.add_argument("--patients", type=int, default=40, help="of each site")
    parser.add_argument("--minutes", type=float, default=4.0, help="of pretraining, each model")
    parser.add_argument("--data", type=Path, default=None, help=".npz of real photographs")
    parser.add_argument("--keep", type=Path, default=None, help="folder for all that is made")
    parser.add_argument(
        "--part",
        choices=("all", "beginning", "rest"),
        default="all",
        help="beginning: people and checkpoints alone, into --keep; rest: go on there",
    )
    options = parser.parse_args(arguments)
    report.say_conditions()
    out = options.keep or Path(tempfile.mkdtemp(prefix="k-"))
    try:
        if options.part != "rest":
            run_beginning(options, out.resolve())
        if options.part == "beginning":
            return
        found = run_rest(options, out.resolve())
    finally:
        if options.keep is None:
            shutil.rmtree(out, ignore_errors=True)
    report.give(options.json, "study_256", tables(found), found, targets(found))


if __name__ == "__main__":
    main()
