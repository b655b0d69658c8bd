"""Runs `kohort demo`: the whole path on one machine, through the real commands as child processes.

In: a plan of deploy/studies, its checkpoints, invented hospitals (hospitals.py).
Out: a signed release below `--out`, and a few lines that say where.
Guarantees: the operator's, sites' and researcher's steps are the commands that people type; servers
listen on loopback alone; however the run ends, every process that it started ends.
Not covered: what only real hospitals have: their network, their data, their staff's judgement.

The run:
  1. the hospitals: DICOM folders of invented people, made from public images or phantoms
  2. the operator: `init`, `sign`, `run`
  3. every site: `init`, `enrol` at the operator, `join`, `approve`, `run`
  4. training rounds and, where the plan has it, synthesis with a review at each site
  5. the release, compared with a public reference and attacked where members are known
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from common.config import load_yaml
from common.errors import Bug, ConfigurationError, EnvironmentFault, PeerError
from common.process import end_with_parent, free_port
from common.study.plan import Study
from kohort import layout
from kohort.console import run_typer
from kohort.manifest import Manifest, read_manifest
from server.demo.export import Truth
from server.demo.hospitals import (
    DEPLOY,
    PHOTOGRAPHS,
    Reference,
    make_hospitals,
    make_reference,
    preset_of,
)
from server.demo.processes import Processes

MARKER = ".kohort-demo"
DEADLINE_S = 1500.0
POLL_S = 0.5
LOG_TAIL_BYTES = 400
MOST_SITES = 26  # hospital-a to hospital-z
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def fresh_folder(out: Path) -> Path:
    """Return an empty output folder; only a folder that an earlier demo made is replaced."""
    if out.exists() and any(out.iterdir()):
        if not (out / MARKER).is_file():
            raise ConfigurationError(
                f"{out}: not empty, and not made by an earlier demo",
                hint="give another folder with --out",
            )
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    text = "made by kohort demo; the next demo may replace this folder\n"
    (out / MARKER).write_text(text, encoding="utf-8")
    return out.resolve()


def write_plan(source: Path, target: Path, sites: Sequence[str]) -> Study:
    """Write the preset for these sites, with its checkpoints beside it; return the plan."""
    # copy the checkpoints
    study = load_yaml(source, Study)
    target.parent.mkdir(parents=True, exist_ok=True)
    for checkpoint in study.checkpoints():
        copy = target.parent / checkpoint.file
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.parent / checkpoint.file, copy)

    # write the plan
    data: dict[str, Any] = study.model_dump(mode="json")
    data["sites"] = [{"name": name} for name in sites]
    data["quorum"] = min(study.quorum, len(sites))
    text = json.dumps(data, indent=1) + "\n"  # JSON is YAML too
    target.write_text(text, encoding="utf-8")
    return load_yaml(target, Study)


@dataclass(frozen=True)
class Places:
    """The folders of one rehearsal."""

    out: Path

    @property
    def work(self) -> Path:
        """Everything but the release and the logs."""
        return self.out / "work"

    @property
    def server(self) -> Path:
        """The operator's state."""
        return self.work / "server"

    @property
    def bundle(self) -> Path:
        """The signed plan."""
        return self.work / "plan-bundle"

    def site(self, name: str) -> Path:
        """Return the state folder of a site."""
        return self.work / "sites" / name


def start_operator(processes: Processes, places: Places, plan: Path) -> None:
    """Step 2: make keys and certificates, sign the plan, start the server."""
    port = free_port()
    state = str(places.server)
    url = f"https://127.0.0.1:{port}"
    processes.do("kohort-server", "init", "--state", state, "--name", "demo", "--url", url)
    processes.do("kohort-server", "sign", str(plan), "--state", state, "--out", str(places.bundle))
    processes.start(
        "server", "kohort-server", "run", str(places.bundle), "--state", state, "--port", str(port)
    )


# what a rehearsal's site.yaml says instead of the sample
EDITS = {
    "threads: 0 ": "threads: 1 ",
    "rehearsal: false ": "rehearsal: true ",
    'text_detector: "auto" ': 'text_detector: "off" ',
}


def edit_settings(file: Path) -> None:
    """Edit site.yaml: one thread for each child process, no image of a patient, so no text in any.

    All sites compute on this machine. Three children of two threads each on two cores make the demo
    three times as long.
    """
    text = file.read_text(encoding="utf-8")
    for sample, edited in EDITS.items():
        if sample not in text:
            raise Bug(f"{file}: the sample has no `{sample}` to edit")
        text = text.replace(sample, edited)
    file.write_text(text, encoding="utf-8")


def start_site(processes: Processes, places: Places, name: str, truth: Truth) -> None:
    """Step 3: make the site's keys, enrol it, approve the plan, start its daemon."""
    # the site's keys and settings
    state = str(places.site(name))
    join = str(places.work / f"{name}.join.json")
    folder = str(truth.folder)
    labels = str(truth.labels_csv)
    init = ["init", "--state", state, "--site", name, "--data", folder, "--labels", labels]
    processes.do("kohort-site", *init)
    edit_settings(places.site(name) / "site.yaml")

    # the operator enrols it; it approves the plan and starts
    request = str(places.site(name) / f"{name}.request.json")
    processes.do("kohort-server", "enrol", request, "--state", str(places.server), "--out", join)
    processes.do("kohort-site", "join", join, "--state", state)
    processes.do(
        "kohort-site", "approve", str(places.bundle), "--state", state, "--yes", "--by", "demo"
    )
    processes.start(name, "kohort-site", "run", "--state", state, "--until-done")


def waiting_batches(places: Places, names: Sequence[str], reviewed: set[str]) -> Iterator[str]:
    """Yield the sites whose images wait for a review."""
    for name in names:
        sheets = (places.site(name) / "review").glob("*/contact_sheet.png")
        if name not in reviewed and any(sheets):
            yield name


def watch(
    processes: Processes, places: Places, names: Sequence[str], report: Callable[[str], None]
) -> None:
    """Step 4: wait for the sites to finish, and review their images where the plan asks for it."""
    deadline = time.monotonic() + DEADLINE_S
    reviewed = set[str]()
    while not processes.done(names):
        # review what waits
        processes.check()
        for name in waiting_batches(places, names, reviewed):
            reviewed.add(name)
            review = ["review", "--state", str(places.site(name)), "--approve"]
            processes.do("kohort-site", *review, "--reviewer", "Demo Reviewer")
            report(f"{name}: images reviewed")

        # show how far each site is
        for name in names:
            report(_last_line(processes.logs / f"{name}.log", name))
        if time.monotonic() > deadline:
            raise PeerError(
                f"the sites were not done after {DEADLINE_S:.0f} s",
                hint=f"see the logs in {processes.logs}",
            )
        time.sleep(POLL_S)


def _last_line(log: Path, name: str) -> str:
    """Return the last line of a daemon's log that is not empty."""
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
        lines = file.read().decode("utf-8", "replace").rstrip().splitlines()
    if not lines:
        return f"{name}: starting"
    return f"{name}: {lines[-1].strip()}"


def export_audits(processes: Processes, places: Places, names: Sequence[str]) -> list[str]:
    """Let each site write what its canaries measured; return the operator's options."""
    options = []
    for name in names:
        file = str(places.work / f"{name}.audit.json")
        processes.do("kohort-site", "audit", "--state", str(places.site(name)), "--out", file)
        options += ["--audit", file]
    return options


def publish(
    processes: Processes,
    places: Places,
    reference: Reference = PHOTOGRAPHS,
    audits: Sequence[str] = (),
) -> tuple[Path, Manifest]:
    """Step 5: build the operator's release, and check it as a researcher does."""
    target = places.out / "release"
    arguments = ["release", str(places.bundle), "--state", str(places.server), "--out", str(target)]
    arguments += audits
    if reference.members is not None and reference.heldout is not None:
        arguments += ["--members", str(reference.members), "--heldout", str(reference.heldout)]
    arguments += ["--reference", str(reference.path), "--reference-name", reference.name]
    processes.do("kohort-server", *arguments)
    folder = next(path.parent for path in target.glob("*/manifest.json"))
    processes.do("kohort", "verify", str(folder))
    return folder, read_manifest(folder)


@contextmanager
def steps(console: Console) -> Iterator[Callable[[str], Callable[[str], None]]]:
    """Yield a function that opens the progress line of the next step.

    It returns a function that says on this line what is being done.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("{task.fields[now]}"),
    )
    with Progress(*columns, console=console) as progress:
        last: list[TaskID] = []  # the step in progress

        def close() -> None:
            # mark the step in progress as done
            for task in last:
                progress.update(task, total=1, completed=1, now="")
            last.clear()

        def step(title: str) -> Callable[[str], None]:
            close()
            last.append(progress.add_task(title, total=None, now=""))
            # without a terminal no line can change, so the title is printed
            if not console.is_terminal:
                console.print(title)
            return lambda now: progress.update(last[0], now=now[:100])

        yield step
        close()


def rehearse(out: Path, preset: Path, names: Sequence[str], *, keep: bool) -> tuple[Path, Manifest]:
    """Run all five steps; return the release's folder and manifest.

    Every process that it started has ended afterwards.
    """
    places = Places(fresh_folder(out))
    processes = Processes(places.out / "logs")
    processes.logs.mkdir()
    try:
        with steps(Console(stderr=True)) as step:
            # (1) the hospitals
            say = step("1/5 hospitals: DICOM of invented people")
            hospitals = make_hospitals(
                preset,
                places.work / "hospitals",
                names,
                lambda done, total: say(f"{done} of {total}"),
            )

            # (2) the operator
            plan = places.work / "plan" / "study.yaml"
            study = write_plan(preset, plan, names)
            step("2/5 operator: keys, signed plan, server")
            start_operator(processes, places, plan)

            # (3) the sites
            report = step("3/5 sites: keys, enrolment, approval")
            for name, truth in hospitals.items():
                report(name)
                start_site(processes, places, name, truth)

            # (4) the rounds
            title = "4/5 training"
            if study.synthesis:
                title += ", synthesis, review"
            watch(processes, places, names, step(title))

            # (5) the release
            step("5/5 release and verification")
            audits: list[str] = []
            if study.privacy.canaries:
                audits = export_audits(processes, places, names)
            public = make_reference(study, places.work / "reference")
            return publish(processes, places, public, audits)
    finally:
        processes.stop()
        if not keep:
            shutil.rmtree(places.work, ignore_errors=True)


def _stop_on_term(number: int, frame: FrameType | None) -> None:
    """End the run at SIGTERM as at ctrl-C, so that its processes end too."""
    raise KeyboardInterrupt


@app.command(
    help="Three hospitals and an operator on this machine, from DICOM to a verified release."
)
def demo(
    out: Annotated[Path, typer.Option(help="folder for the release and the logs")] = Path(
        "demo-output"
    ),
    study: Annotated[
        str,
        typer.Option(
            help="fundus (public photographs), chest (public radiographs) or "
            "vessels (phantoms with masks)"
        ),
    ] = "fundus",
    sites: Annotated[int, typer.Option(help="how many hospitals", min=2, max=MOST_SITES)] = 3,
    keep: Annotated[
        bool, typer.Option("--keep", help="keep the hospitals' and the server's folders")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="end with one JSON line")] = False,
) -> None:
    """Run the rehearsal and say where the release is."""
    if not DEPLOY.is_dir():
        raise EnvironmentFault(
            f"{DEPLOY}: missing", hint="run the demo from a clone of the repository"
        )

    # run it
    started = time.monotonic()
    signal.signal(signal.SIGTERM, _stop_on_term)
    end_with_parent()
    names = [f"hospital-{chr(ord('a') + i)}" for i in range(sites)]
    folder, manifest = rehearse(out, preset_of(study), names, keep=keep)
    seconds = round(time.monotonic() - started, 1)
    text = as_line if as_json else as_text
    sys.stdout.write(text(folder, manifest, seconds))


def as_text(folder: Path, manifest: Manifest, seconds: float) -> str:
    """Return what a person reads at the end: what was released, and where it is."""
    what = "each with its vessel mask"
    if manifest.k:
        what = f"each of a group of at least {manifest.k} distinct patients"
    return (
        f"\n{manifest.images} synthetic images, {what}, in {seconds:.0f} s\n"
        f"release:  {folder}\n"
        f"page:     {folder / 'index.html'}\n"
        f"pictures: {folder / layout.CONTACT_SHEET}\n"
        f"check it: kohort verify {folder}\n"
    )


def as_line(folder: Path, manifest: Manifest, seconds: float) -> str:
    """Return the same as one line of JSON."""
    facts = {
        "seconds": seconds,
        "release": str(folder),
        "images": manifest.images,
        "k": manifest.k,
        "epsilon": manifest.epsilon,
    }
    return json.dumps(facts) + "\n"


def main() -> None:
    """Entry point of `python -m server.demo.rehearsal`."""
    sys.exit(run_typer("kohort demo", lambda: app(standalone_mode=False)))


if __name__ == "__main__":
    main()
