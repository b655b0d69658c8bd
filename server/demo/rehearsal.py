"""Runs `kohort demo`: the whole path on one machine, through the real commands as child processes.

In: deploy/studies (a plan), deploy/checkpoints, invented hospitals (hospitals.py).
Out: a signed release below `--out`, and one line that says where.
Guarantees: every step is a command that a person would type; servers listen on loopback alone;
whatever ends the run (success, failure, ctrl-C) ends every process that it started.
Not covered: what only real hospitals have: their network, their data, their staff's judgement.

The run:
  1. three hospitals: DICOM folders of invented people, made from public images or phantoms
  2. the operator: `init`, `plan`, `sign`, `run`
  3. every site: `init`, `enrol` at the operator, `join`, `approve`, `run`
  4. training rounds and, where the plan has it, synthesis; a person at each site reviews the images
  5. the release, compared with a public reference and attacked where members are known; `kohort
    verify`
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
    (out / MARKER).write_text("made by kohort demo; the next demo may replace this folder\n")
    return out.resolve()


def write_plan(source: Path, target: Path, sites: Sequence[str]) -> Study:
    """Write the preset with these sites and absolute checkpoints beside it; returns the plan."""
    study = load_yaml(source, Study)
    target.parent.mkdir(parents=True, exist_ok=True)
    for checkpoint in study.checkpoints():
        copy = target.parent / checkpoint.file
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.parent / checkpoint.file, copy)
    data: dict[str, Any] = study.model_dump(mode="json")
    data["sites"] = [{"name": name} for name in sites]
    data["quorum"] = min(study.quorum, len(sites))
    # JSON is YAML; the plan's own loader reads it.
    target.write_text(json.dumps(data, indent=1) + "\n")
    return load_yaml(target, Study)


@dataclass(frozen=True)
class Places:
    """The folders of one rehearsal."""

    out: Path

    @property
    def work(self) -> Path:
        return self.out / "work"

    @property
    def server(self) -> Path:
        return self.work / "server"

    @property
    def bundle(self) -> Path:
        return self.work / "plan-bundle"

    def site(self, name: str) -> Path:
        return self.work / "sites" / name


def start_operator(processes: Processes, places: Places, plan: Path) -> None:
    """Step 2: keys and certificates, the signed plan, the server."""
    port = free_port()
    state = str(places.server)
    url = f"https://127.0.0.1:{port}"
    processes.do("kohort-server", "init", "--state", state, "--name", "demo", "--url", url)
    processes.do("kohort-server", "sign", str(plan), "--state", state, "--out", str(places.bundle))
    processes.start(
        "server", "kohort-server", "run", str(places.bundle), "--state", state, "--port", str(port)
    )


def share_the_machine(file: Path) -> None:
    """Edit site.yaml as hospital IT would: one thread a child, because all sites compute on this
    machine.

    Three children of two threads each on two cores make the demo three times as long.
    """
    text = file.read_text()
    if "threads: 0 " not in text:
        raise Bug(f"{file}: the sample has no `threads: 0` to edit")
    file.write_text(text.replace("threads: 0 ", "threads: 1 "))


def start_site(processes: Processes, places: Places, name: str, truth: Truth) -> None:
    """Step 3: the site's keys, its enrolment, its approval of the plan, its daemon."""
    state = str(places.site(name))
    join = str(places.work / f"{name}.join.json")
    folder = str(truth.folder)
    labels = str(truth.labels_csv)
    init = ["init", "--state", state, "--site", name, "--data", folder, "--labels", labels]
    processes.do("kohort-site", *init)
    share_the_machine(places.site(name) / "site.yaml")
    request = str(places.site(name) / f"{name}.request.json")
    processes.do("kohort-server", "enrol", request, "--state", str(places.server), "--out", join)
    processes.do("kohort-site", "join", join, "--state", state)
    processes.do("kohort-site", "approve", str(places.bundle), "--state", state, "--yes")
    processes.start(name, "kohort-site", "run", "--state", state, "--until-done")


def waiting_batches(places: Places, names: Sequence[str], reviewed: set[str]) -> Iterator[str]:
    """Names of sites whose batch waits for a person."""
    for name in names:
        if name not in reviewed and any((places.site(name) / "review").glob("*/contact_sheet.png")):
            yield name


def watch(
    processes: Processes, places: Places, names: Sequence[str], report: Callable[[str], None]
) -> None:
    """Step 4: wait for the sites to finish, and review their images where the plan asks for it."""
    deadline = time.monotonic() + DEADLINE_S
    reviewed = set[str]()
    while not processes.done(names):
        processes.check()
        for name in waiting_batches(places, names, reviewed):
            reviewed.add(name)
            review = ["review", "--state", str(places.site(name)), "--approve"]
            processes.do("kohort-site", *review, "--reviewer", "Demo Reviewer")
            report(f"{name}: images reviewed")
        for name in names:
            report(_last_line(processes.logs / f"{name}.log", name))
        if time.monotonic() > deadline:
            raise PeerError(
                f"the sites were not done after {DEADLINE_S:.0f} s",
                hint=f"see the logs in {processes.logs}",
            )
        time.sleep(POLL_S)


def _last_line(log: Path, name: str) -> str:
    """Return the last line of a daemon's log."""
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - 400))
        lines = [
            line for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()
        ]
    return f"{name}: {lines[-1].strip()}" if lines else f"{name}: starting"


def publish(
    processes: Processes, places: Places, reference: Reference = PHOTOGRAPHS
) -> tuple[Path, Manifest]:
    """Step 5: the operator's release and the researcher's check."""
    target = places.out / "release"
    arguments = ["release", str(places.bundle), "--state", str(places.server), "--out", str(target)]
    if reference.members is not None and reference.heldout is not None:
        arguments += ["--members", str(reference.members), "--heldout", str(reference.heldout)]
    arguments += ["--reference", str(reference.path), "--reference-name", reference.name]
    processes.do("kohort-server", *arguments)
    folder = next(path.parent for path in target.glob("*/manifest.json"))
    processes.do("kohort", "verify", str(folder))
    return folder, read_manifest(folder)


@contextmanager
def steps(console: Console) -> Iterator[Callable[[str], Callable[[str], None]]]:
    """Yield a function that opens the next step's progress line and returns a function that
    describes it.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("{task.fields[now]}"),
    )
    with Progress(*columns, console=console) as progress:
        last: list[TaskID] = []

        def close() -> None:
            for task in last:
                progress.update(task, total=1, completed=1, now="")
            last.clear()

        def step(title: str) -> Callable[[str], None]:
            close()
            last.append(progress.add_task(title, total=None, now=""))
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
            report = step("1/5 hospitals: DICOM of invented people")
            hospitals = make_hospitals(
                preset,
                places.work / "hospitals",
                names,
                lambda done, total: report(f"{done} of {total}"),
            )
            plan = places.work / "plan" / "study.yaml"
            study = write_plan(preset, plan, names)
            step("2/5 operator: keys, signed plan, server")
            start_operator(processes, places, plan)
            report = step("3/5 sites: keys, enrolment, approval")
            for name, truth in hospitals.items():
                report(name)
                start_site(processes, places, name, truth)
            watch(
                processes,
                places,
                names,
                step(f"4/5 training{', synthesis, review' if study.synthesis else ''}"),
            )
            step("5/5 release and verification")
            return publish(processes, places, make_reference(study, places.work / "reference"))
    finally:
        processes.stop()
        if not keep:
            shutil.rmtree(places.work, ignore_errors=True)


def _stop_on_term(number: int, frame: FrameType | None) -> None:
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
    started = time.monotonic()
    signal.signal(signal.SIGTERM, _stop_on_term)
    end_with_parent()
    names = [f"hospital-{chr(ord('a') + i)}" for i in range(sites)]
    folder, manifest = rehearse(out, preset_of(study), names, keep=keep)
    seconds = round(time.monotonic() - started, 1)
    write = sys.stdout.write
    if not as_json:
        what = (
            f"each from at least {manifest.k} distinct patients"
            if manifest.k
            else "each with its vessel mask"
        )
        write(f"\n{manifest.images} synthetic images, {what}, in {seconds:.0f} s\n")
        write(f"release:  {folder}\n")
        write(f"page:     {folder / 'index.html'}\n")
        write(f"pictures: {folder / 'contact_sheet.png'}\n")
        write(f"check it: kohort verify {folder}\n")
        return
    facts = {
        "seconds": seconds,
        "release": str(folder),
        "images": manifest.images,
        "k": manifest.k,
        "epsilon": manifest.epsilon,
    }
    write(json.dumps(facts) + "\n")


def main() -> None:
    """Entry point of `python -m server.demo.rehearsal`."""
    sys.exit(run_typer("kohort demo", lambda: app(standalone_mode=False)))


if __name__ == "__main__":
    main()
