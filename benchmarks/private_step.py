"""The private critic step beside the non-private one and beside Opacus: time and peak memory.

    python benchmarks/private_step.py [--json [FILE]] [--device cpu|cuda]
        [--shapes 64x1,16x4,16x1,32x1@256] [--variants NAME;NAME] [--part PROCESSOR]

Measured: a whole step (fakes, gradient, clip, noise, Adam) on square pairs of two channels, with a
critic of width 24 (391,945 parameters at 64 px) and the hinge loss. `AxB`: A drawn patients of B
items each, of 64 px; `AxB@256`: of 256 px. Ratios are to the non-private step in channels-last
memory. `ours` takes the ways that are fastest here (client/learn/fast/ways.py), as a child does.
On a CPU: one thread, process time, the smallest of alternating repeats; memory is the growth of the
peak of a process of its own. On a GPU: wall time after synchronising, allocated memory.

Compared: `ours` draws AES noise on a lattice and clips in float64; Opacus draws torch's normal
numbers and clips in float32.
  hooks, functorch  the patient's mean, by overriding `_get_flat_grad_sample`
  fast, ghost       clip each row by itself, which is less than the patient-level promise
Not covered: the changing batch of Poisson sampling, and the reading of images.
"""

import argparse
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # opacus has a package benchmarks too

from benchmarks import report
from client.learn.fast.ways import CHOICES
from client.learn.private_step import Execution, Parameters, PrivateStep, StepConstants
from client.state.ledger import PracticeReservation
from common.models.adam import Adam
from common.models.wgan import Critic, Generator
from common.models.wgan_losses import critic_loss
from common.privacy.mechanisms import SubsampledGaussian
from common.privacy.noise import SeededNoiseSource

SIZE_PX = 64
WIDTH = 24
LATENT = 64
GENERATOR_WIDTH = 16
RATE = 2e-4
BETAS = (0.0, 0.999)
MIB = 2**20
MOST_NUMBERS = 10**8  # that a reservation is for
# times the non-private step in channels-last memory
MOST_RATIO = {"64x1": 1.5, "16x4": 1.4, "16x1": 1.9, "32x1@256": 1.5}
LEAST_SPEEDUP = 1.8  # over the fastest Opacus mode
BASE = "non-private, channels last"
Step = Callable[[], None]


@dataclass(frozen=True)
class Shape:
    """Patients a step, items a patient, and an item's side in pixels."""

    patients: int
    items: int
    size_px: int = SIZE_PX

    @classmethod
    def parse(cls, text: str) -> "Shape":
        numbers, _, size_px = text.partition("@")
        patients, items = numbers.split("x")
        return cls(int(patients), int(items), int(size_px or SIZE_PX))

    def __str__(self) -> str:
        size = ""
        if self.size_px != SIZE_PX:
            size = f"@{self.size_px}"
        return f"{self.patients}x{self.items}{size}"


@dataclass
class Setup:
    """What every variant starts from: images, a generator, a critic."""

    shape: Shape
    device: str

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        side = self.shape.size_px
        self.critic = Critic(side, WIDTH).to(self.device)
        self.generator = Generator(side, GENERATOR_WIDTH, LATENT).to(self.device)
        images = torch.randn(self.shape.patients, self.shape.items, 2, side, side)
        self.images = images.clamp(-1, 1).to(self.device)

    @torch.no_grad()
    def fakes(self, count: int) -> Tensor:
        """`count` samples of the generator."""
        found: Tensor = self.generator(torch.randn(count, LATENT, device=self.device))
        return found

    @property
    def rows(self) -> int:
        return self.shape.patients * self.shape.items

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.critic.parameters(), RATE, BETAS)


# --- the variants ---------------------------------------------------------------------------------


def non_private(setup: Setup, memory_format: torch.memory_format = torch.contiguous_format) -> Step:
    """An ordinary step on the same images."""
    critic = setup.critic.to(memory_format=memory_format)
    optimizer = setup.optimizer()
    setup.generator.to(memory_format=memory_format)
    real = setup.images.flatten(0, 1).contiguous(memory_format=memory_format)

    def step() -> None:
        scores = critic(torch.cat([real, setup.fakes(setup.rows)]))
        optimizer.zero_grad(set_to_none=True)
        critic_loss(scores[: setup.rows], scores[setup.rows :], "hinge").backward()
        optimizer.step()

    return step


def ours(setup: Setup, execution: Execution) -> Step:
    """The private step as a trainer runs it."""
    setup.generator.to(memory_format=torch.channels_last)
    critic = setup.critic
    shape = setup.shape
    parameters: Parameters = dict(critic.named_parameters())

    def loss(weights: Parameters, patient: tuple[Tensor, ...]) -> Tensor:
        items, fakes = patient
        scores = functional_call(critic, weights, (torch.cat([items, fakes]),))
        return critic_loss(scores[: len(items)], scores[len(items) :], "hinge")

    def batch_for(patients: Sequence[int]) -> tuple[Tensor, ...]:
        fakes = setup.fakes(len(patients) * shape.items)
        return setup.images[list(patients)], fakes.view(
            len(patients), shape.items, *fakes.shape[1:]
        )

    private = PrivateStep(
        parameters,
        loss,
        StepConstants(1.0, 1.0, 1.0, shape.patients, shape.items),
        PracticeReservation(SubsampledGaussian(1.0, 1.0, 10**6, MOST_NUMBERS)),
        SeededNoiseSource(0),
        execution=execution,
    )
    adam = Adam(parameters, RATE, BETAS)
    return lambda: adam.step(private.step(shape.patients, batch_for))


def opacus_pairs(setup: Setup, mode: str) -> Step:
    """Per-sample gradients by hooks or functorch, averaged per patient before the clip."""
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    class PatientMean(DPOptimizer):
        """One gradient a patient: the mean of its items'."""

        def _get_flat_grad_sample(self, p: Tensor) -> Tensor:
            rows: Tensor = super()._get_flat_grad_sample(p)
            return rows.view(setup.shape.patients, setup.shape.items, *rows.shape[1:]).mean(1)

    critic = GradSampleModule(setup.critic, force_functorch=mode == "functorch")
    optimizer = PatientMean(
        setup.optimizer(),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        expected_batch_size=setup.shape.patients,
    )
    real = setup.images.flatten(0, 1)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        critic_loss(critic(real), critic(setup.fakes(setup.rows)), "hinge").backward()
        optimizer.step()

    return step


class Hinge(nn.Module):
    """Row by row, as opacus' two-pass modes need it."""

    reduction = "mean"

    def forward(self, scores: Tensor, signs: Tensor) -> Tensor:
        return torch.relu(1 - signs * scores)


def opacus_rows(setup: Setup, mode: str) -> Step:
    """Fast gradient clipping and ghost clipping: each row clipped by itself."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    critic = GradSampleModuleFastGradientClipping(
        setup.critic, max_grad_norm=1.0, use_ghost_clipping=mode == "ghost"
    )
    optimizer = DPOptimizerFastGradientClipping(
        setup.optimizer(),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        expected_batch_size=2 * setup.rows,
    )
    loss = DPLossFastGradientClipping(critic, optimizer, Hinge(), "mean")
    real = setup.images.flatten(0, 1)
    signs = torch.ones(2 * setup.rows, 1, device=setup.device)
    signs[setup.rows :] = -1

    def step() -> None:
        scores = critic(torch.cat([real, setup.fakes(setup.rows)]))[:, None]
        loss(scores, signs).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


VARIANTS: dict[str, Callable[[Setup], Step]] = {
    "non-private": non_private,
    BASE: lambda setup: non_private(setup, torch.channels_last),
    "ours (default)": lambda setup: ours(setup, Execution()),
    "ours, vmap, chunk 4": lambda setup: ours(setup, Execution("vmap", 4)),
    "ours, backward per patient": lambda setup: ours(setup, Execution("backward")),
    "opacus hooks": lambda setup: opacus_pairs(setup, "hooks"),
    "opacus functorch": lambda setup: opacus_pairs(setup, "functorch"),
    "opacus fast (rows)": lambda setup: opacus_rows(setup, "fast"),
    "opacus ghost (rows)": lambda setup: opacus_rows(setup, "ghost"),
}


# --- measuring ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """Of one step: seconds of the process and of the wall, bytes of memory growth, and how many
    threads' work the process did at most.
    """

    process_s: float
    wall_s: float
    memory_bytes: float
    busy_threads: float


def measure(shape: Shape, device: str, repeats: int, names: Sequence[str]) -> dict[str, Cost]:
    """The cost of these variants at one shape."""
    steps = {name: VARIANTS[name](Setup(shape, device)) for name in names}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for step in steps.values():  # warm up
        time_step(step, device)
        time_step(step, device)
    for _ in range(repeats):
        for name, step in steps.items():
            seconds[name].append(time_step(step, device))
    if device == "cpu":
        memory = {name: memory_of(name, shape) for name in names}
    else:
        memory = {name: gpu_memory(step) for name, step in steps.items()}
    return {
        name: Cost(min(p for p, _ in s), min(w for _, w in s), memory[name], cpu_over_wall(s))
        for name, s in seconds.items()
    }


def cpu_over_wall(seconds: list[tuple[float, float]]) -> float:
    """The greatest process time over wall time of a step: 1 where one thread works."""
    return max(process / wall for process, wall in seconds)


def time_step(step: Step, device: str) -> tuple[float, float]:
    """Process and wall seconds of one step."""
    wall = time.perf_counter()
    process = time.process_time()
    step()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.process_time() - process, time.perf_counter() - wall


def memory_of(name: str, shape: Shape) -> float:
    """Growth of the peak memory of a process of its own, bytes."""
    command = [sys.executable, __file__, "--memory-of", name, "--shapes", str(shape)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def memory_growth(name: str, shape: Shape) -> float:
    """Peak during three steps, over what stood before the first."""
    VARIANTS[name](Setup(Shape(2, 1), "cpu"))()  # brings in what is imported late
    step = VARIANTS[name](Setup(shape, "cpu"))
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _status("VmRSS")
    for _ in range(3):
        step()
    return _status("VmHWM") - before


def _status(field: str) -> float:
    """A field of this process's status, bytes (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * int(next(line for line in lines if line.startswith(field)).split()[1])


def gpu_memory(step: Step) -> float:
    """Peak of allocated memory over what stands, bytes."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return float(torch.cuda.max_memory_allocated() - before)


def figures(costs: dict[str, Cost], device: str) -> dict[str, float]:
    """The ratios of a shape, on process time (CPU) or wall time (GPU)."""
    time_of = {name: cost.process_s for name, cost in costs.items()}
    if device != "cpu":
        time_of = {name: cost.wall_s for name, cost in costs.items()}
    opacus = [name for name in costs if name.startswith("opacus")]
    ours = costs["ours (default)"]
    mine = time_of["ours (default)"]
    found = {
        "ratio_to_nonprivate_channels_last": mine / time_of[BASE],
        "steps_per_second": 1 / ours.wall_s,
        "process_over_wall_time": ours.busy_threads,
    }
    if "non-private" in costs:
        found["ratio_to_nonprivate"] = mine / time_of["non-private"]
    if opacus:
        memory = min(costs[name].memory_bytes for name in opacus)
        found["speedup_over_best_opacus"] = min(time_of[name] for name in opacus) / mine
        found["memory_over_best_opacus"] = ours.memory_bytes / memory
    return {key: round(value, 3) for key, value in found.items()}


def table(shape: Shape, costs: dict[str, Cost]) -> report.Table:
    """The costs of a shape."""
    base = costs[BASE]
    rows = []
    for name, cost in costs.items():
        cells = (
            f"{1e3 * cost.process_s:.0f}",
            f"{1e3 * cost.wall_s:.0f}",
            f"{1 / cost.wall_s:.1f}",
            f"{cost.process_s / base.process_s:.2f}",
            f"{cost.memory_bytes / MIB:.0f}",
        )
        rows.append((name, *cells))
    columns = ("step", "process ms", "wall ms", "steps/s", "ratio (process)", "memory MiB")
    title = f"{shape.patients} patients × {shape.items} items of {shape.size_px} px"
    return report.Table(title, columns, tuple(rows))


def targets(found: dict[str, dict[str, float]]) -> list[report.Target]:
    """What was asked for at the shapes that have a target."""
    lines = []
    for shape, most in MOST_RATIO.items():
        if shape not in found:
            continue
        ratio = found[shape]["ratio_to_nonprivate_channels_last"]
        asked = f"{shape}: at most {most} times the non-private step in channels-last memory"
        lines.append(report.Target(asked, f"{ratio:.2f}", ratio <= most))
        busy = found[shape]["process_over_wall_time"]
        asked = f"{shape}: process time at most 1.05 of the wall time"
        lines.append(report.Target(asked, f"{busy:.2f}", busy <= 1.05))
        if "speedup_over_best_opacus" not in found[shape]:
            continue
        speedup = found[shape]["speedup_over_best_opacus"]
        memory = found[shape]["memory_over_best_opacus"]
        asked = f"{shape}: at least {LEAST_SPEEDUP} times as fast as the best Opacus mode"
        lines.append(report.Target(asked, f"{speedup:.2f}", speedup >= LEAST_SPEEDUP))
        asked = f"{shape}: less peak memory than any Opacus mode"
        lines.append(report.Target(asked, f"{memory:.2f} of the smallest", memory < 1))
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables, or one JSON object."""
    parser = argparse.ArgumentParser(
        description="The private step beside the non-private one and opacus."
    )
    report.add_json(parser)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shapes", default="64x1,16x4,16x1,32x1@256")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--variants", help="some of the steps alone; the first and ours always")
    parser.add_argument("--part", default="", help="a name for this processor's run")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")  # opacus' and torch's remarks on hooks
    torch.set_num_threads(1)
    report.say_conditions()
    names = list(VARIANTS)
    if options.variants:
        wanted = (BASE, "ours (default)", *options.variants.split(";"))
        names = [name for name in VARIANTS if name in wanted]
    shapes = [Shape.parse(text) for text in options.shapes.split(",")]
    if options.memory_of:
        print(memory_growth(options.memory_of, shapes[0]))
        return
    found = {}
    tables = []
    with tempfile.TemporaryDirectory() as folder:
        CHOICES.keep_in(Path(folder, "ways.json"))
        for shape in shapes:
            costs = measure(shape, options.device, options.repeats, names)
            found[str(shape)] = figures(costs, options.device)
            tables.append(table(shape, costs))
    name = ".".join(filter(None, ("private_step", options.part)))
    report.give(options.json, name, tables, found, targets(found))


if __name__ == "__main__":
    main()
