"""An operator and three hospitals on machines of their own, who do what the guides say."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.study.plan import load_study
from server.demo import hospitals as demo_hospitals
from tests.federation import pairs_plan
from tests.networks.guide import Guide
from tests.networks.world import Machine, Place

ROOT = Path(__file__).parents[2]
NAME, PORT, PROXY_PORT = "kohort.example.org", 9443, 3128
SITES = ("hospital-a", "hospital-b", "hospital-c")
# what each machine's resolver knows of the server
OVER_IPV4 = f"192.0.2.1 {NAME}\n"
OVER_IPV6 = f"2001:db8::1 {NAME}\n"
PROXY_ONLY = "198.51.100.1 proxy.hospital.example\n"
PATIENTS = 6
TURN_S = 0.2
OPERATOR, HOSPITAL = Guide.read("operator/first-study.md"), Guide.read("hospital/first-study.md")


@dataclass
class People:
    """Who takes part, each with a machine; `logs` of the daemons that `open_people` ends."""

    operator: Machine
    hospitals: dict[str, Machine]
    proxy: Machine
    logs: Path
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, machine: Machine, text: str) -> None:
        """Start a daemon."""
        self.daemons[name] = machine.start(text, self.logs / f"{name}.log")

    def end(self, *names: str) -> None:
        """End daemons by SIGTERM."""
        for name in names:
            self.daemons[name].terminate()
        for name in names:
            self.daemons.pop(name).wait(60)

    def log(self, name: str) -> str:
        """What a daemon has printed."""
        return (self.logs / f"{name}.log").read_text(errors="replace")

    def until(self, what: Callable[[], Any], timeout_s: float = 240.0) -> Any:
        """Wait for a true value; a daemon that ended badly ends the wait."""
        deadline = time.monotonic() + timeout_s
        while not (value := what()):
            for name, process in self.daemons.items():
                assert process.poll() in (None, 0), f"{name}: {self.log(name)[-3000:]}"
            logs = "\n".join(f"{name}: {self.log(name)[-600:]}" for name in self.daemons)
            assert time.monotonic() < deadline, logs
            time.sleep(TURN_S)
        return value

    def each(self, work: Callable[[str, Machine], str]) -> dict[str, str]:
        """Let all hospitals do something at the same time; return what each printed."""
        with ThreadPoolExecutor(len(self.hospitals)) as pool:
            done = pool.map(lambda item: work(*item), self.hospitals.items())
            return dict(zip(self.hospitals, done, strict=True))

    def hospital_does(self, begin: str, guide: Guide = HOSPITAL, code: int = 0) -> dict[str, str]:
        """Let every hospital type the guide's command that begins so."""
        return self.each(
            lambda name, machine: machine.run(guide.command(begin, machine.folder, name), code)
        )

    def operator_does(self, begin: str, site: str = SITES[0]) -> str:
        """Let the operator type the guide's command that begins so."""
        return self.operator.run(OPERATOR.command(begin, self.operator.folder, site))


@contextmanager
def open_people(folder: Path, places: dict[str, Place]) -> Iterator[People]:
    """Yield the operator, the hospitals and the proxy; their daemons end with the block."""

    def machine(name: str, place: str, hosts: str) -> Machine:
        home = folder / name
        (home / "var" / "lib").mkdir(parents=True)
        (home / "hosts").write_text(f"127.0.0.1 localhost\n::1 localhost\n{hosts}")
        return Machine(places[place], home / "hosts", home)

    hospitals = {
        "hospital-a": machine("hospital-a", "west", OVER_IPV4),
        "hospital-b": machine("hospital-b", "west", OVER_IPV6),
        "hospital-c": machine("hospital-c", "east", PROXY_ONLY),
    }
    operator = machine("operator", "server", "")
    (operator.folder / "deploy").symlink_to(ROOT / "deploy")
    proxy = machine("proxy", "proxy", OVER_IPV4)
    people = People(operator, hospitals, proxy, folder)
    try:
        yield people
    finally:
        for process in people.daemons.values():
            process.terminate()
        for process in people.daemons.values():
            process.wait(60)


def begin(people: People) -> None:
    """Do the steps of both guides up to the daemons."""
    # the operator: state folder, plan, signature
    people.operator_does("kohort-server init")
    people.operator_does("cp -rL deploy/studies plans")
    write_small_plan(people.operator.folder / "plans" / "fundus.yaml")
    people.operator_does("kohort-server sign")
    # the hospitals: state folder, request
    for name, truth in demo_hospitals.phantom_hospitals(
        people.logs / "made", SITES, lambda *_: None, PATIENTS
    ).items():
        shutil.copytree(truth.folder, people.hospitals[name].folder / "data" / "dicom")
        shutil.copy(truth.labels_csv, people.hospitals[name].folder / "data" / "labels.csv")
    people.hospital_does("kohort-site init")
    name_the_proxy(people.hospitals["hospital-c"])
    # requests and join files go by post
    for name, machine in people.hospitals.items():
        request = f"{name}.request.json"
        shutil.copy(machine.folder / "var/lib/kohort" / request, people.operator.folder)
        people.operator_does("kohort-server enrol", name)
        shutil.copy(people.operator.folder / f"{name}.join.json", machine.folder)
        shutil.copytree(people.operator.folder / "plan-bundle", machine.folder / "plan-bundle")
    people.hospital_does("kohort-site join")
    people.hospital_does("kohort-site approve")
    people.hospital_does("kohort-site ingest")


def name_the_proxy(machine: Machine) -> None:
    """Write the guide's line into site.yaml in place of the sample's."""
    site_yaml = machine.folder / "var/lib/kohort/site.yaml"
    line = HOSPITAL.line("proxy:")
    lines = [line if old.strip().startswith("proxy:") else old for old in _lines(site_yaml)]
    assert line in lines
    site_yaml.write_text("\n".join(lines) + "\n")


def _lines(path: Path) -> list[str]:
    """The lines of a file."""
    return path.read_text().splitlines()


def write_small_plan(target: Path) -> None:
    """Write a plan in place of the guide's, under its name: one round of one step, four pairs."""
    name = load_study(target).name
    pairs_plan(
        target.parent,
        name=name,
        round_deadline_s=600.0,
        models__wgan__rounds=1,
        models__wgan__local_steps=1,
        models__wgan__patients_per_step=4,
        models__wgan__noise_multiplier=1.0,
        privacy__planned_patients=4,
        models__wgan__released_pairs=4,
    )
    (target.parent / "study.yaml").rename(target)
