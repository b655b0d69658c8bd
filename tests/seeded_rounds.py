"""Rounds of real children whose first process draws repeatable noise, in any number of processes.

In: a hospital with real weights. Out: job folders of a training round, and what a child left there.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from client.daemon.jobs import environment
from client.state.jobs import Job
from common.compute import Compute
from common.models.glow import Glow
from common.models.glow_checkpoint import weights_of
from common.models.stylegan import Critic, Generator
from common.models.weights import numpy_weights
from common.models.wgan import build, parameters_by_name
from common.privacy.canaries import draw
from common.privacy.noise import SeededNoiseSource
from common.study.training import WganPlan
from common.wire import tensors
from tests.jobs import NO_GROUPS, SECRET, job_folder
from tests.sites import Hospital, make_hospital
from tests.studies import vessels_plan

Site = tuple[Hospital, dict[str, tensors.Arrays]]
CANARIES = 8
CAP_BYTES = 1 << 26
WAIT_S = 200
# rank 0 with repeatable noise; the others, which it starts, are as they always are
SEEDED = """
import sys
import client.child.job as job
from client.state.ledger import PracticeReservation, Reservation
from common.privacy.noise import SeededNoiseSource

class Practice:
    @staticmethod
    def from_json(text):
        return PracticeReservation(Reservation.from_json(text).event)

job.NoiseSource = lambda threads: SeededNoiseSource(7)
job.Reservation = Practice
"""
# every rank runs the program, and notes how many patients it was given at each step
NOTED = """
from pathlib import Path
from typing import Any
from client.child import ranks
from client.learn.workers import Workers

folder, rank = Path(sys.argv[1]), int([*sys.argv, "0"][2])
ranks.PROGRAM = ("-P", str(folder.with_suffix(".py")))
share = Workers.share

def noted(workers, patients):
    mine = share(workers, patients)
    with (folder / f"given-{rank}").open("a") as file:
        file.write(f"{len(mine)}\\n")
    return mine

Workers.share = noted
"""
MAIN = "sys.exit(job.main())\n"


def training(
    site: Site, folder: Path, model: str, processes: int, *, ways: Path | None = None
) -> Path:
    """Write a training round with canaries on the processor, in so many processes."""
    hospital, all_weights = site
    weights = all_weights[model]
    job_folder(hospital, folder, "train", model, weights, NO_GROUPS)
    job = replace(
        Job.read(folder),
        compute=Compute(device="cpu"),
        processes=processes,
        ways="" if ways is None else str(ways),
    )
    learned = ("glow.",) if model == "glow" else ("critic.",)
    dimension = sum(array.size for name, array in weights.items() if name.startswith(learned))
    canaries = tensors.dumps(draw(SeededNoiseSource(9), CANARIES, dimension).arrays())
    job.write(folder, tensors.dumps(weights), NO_GROUPS, canaries)
    return folder


def seeded_round(folder: Path, more: str = "") -> dict[str, tensors.Arrays]:
    """Run a job and return its update and its canaries' tally; `more`: code ahead of the job."""
    program = folder.with_suffix(".py")
    program.write_text(SEEDED + more + MAIN)
    command = [sys.executable, "-P", str(program), str(folder)]
    with open(folder / "child.log", "wb") as log:
        child = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment(1), stderr=log)
    assert child.stdin is not None
    # standard input stays open: the child ends with it
    with child, child.stdin:
        child.stdin.write(SECRET.hex().encode() + b"\n")
        child.stdin.flush()
        assert child.wait(WAIT_S) == 0, (folder / "child.log").read_text()
    files = {"update": "out.safetensors", "tally": "tally.safetensors"}
    return {what: tensors.read(folder / name, max_bytes=CAP_BYTES) for what, name in files.items()}


def given(folder: Path, rank: int) -> list[int]:
    """Return how many patients a rank was given at each step, as NOTED wrote it down."""
    return [int(line) for line in (folder / f"given-{rank}").read_text().split()]


def check_same(
    one: dict[str, tensors.Arrays], other: dict[str, tensors.Arrays], model: str
) -> None:
    """Two rounds left the same bits, of which some are not zero."""
    learned = "glow." if model == "glow" else "critic."
    assert any(d.any() for name, d in one["update"].items() if name.startswith(learned))
    for what, arrays in one.items():
        assert arrays.keys() == other[what].keys()
        for name, array in arrays.items():
            assert np.array_equal(array, other[what][name]), (what, name)


def image_hospital(folder: Path, **changes: Any) -> Site:
    """A hospital whose plan makes images, with weights that are drawn by chance."""
    torch.manual_seed(0)
    gan = numpy_weights(Generator(32, 3, 16, 16), "generator.")
    gan |= numpy_weights(Critic(32, 3, 16), "critic.")
    weights = {"gan": dict(gan), "glow": dict(weights_of(Glow(32, 3, 3, 2, 16)))}
    return make_hospital(folder, weights=weights, **changes), weights


def pair_hospital(folder: Path, **changes: Any) -> Site:
    """A hospital whose plan trains pairs, with weights that are drawn by chance."""
    data = vessels_plan()
    torch.manual_seed(0)
    generator, critic = build(WganPlan.model_validate(data["models"]["wgan"]), 32)
    named = parameters_by_name(generator, generator, critic)
    weights = {"wgan": {name: value.detach().numpy() for name, value in named.items()}}
    pairs = {name: data[name] for name in ("modality", "intake", "models", "release")}
    pairs |= {"synthesis": None, **changes}
    return make_hospital(folder, weights=weights, **pairs), weights
