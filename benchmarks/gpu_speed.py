"""How fast a device works and how much memory it takes: private steps, images, flow, noise."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from benchmarks import report
from benchmarks.gpu_parity import invented_targets
from benchmarks.gpu_setting import Part, Setting, draw_photographs, rounded
from client.learn import train_gan, train_glow
from client.learn.private_step import Execution, Parameters, PrivateStep, StepConstants
from client.state.ledger import PracticeReservation
from client.synthesize.align import AlignmentPlan, align
from client.synthesize.invert import invert
from client.synthesize.reference import InversionPlan, make_reference
from common.models.adam import Adam
from common.models.encoder import Encoder
from common.models.glow import Glow
from common.models.glow_pixels import from_uint8
from common.models.images import to_device
from common.models.stylegan import Critic, Generator
from common.privacy.mechanisms import SubsampledGaussian
from common.privacy.noise import NoiseSource, SeededNoiseSource

MIB = 2**20
SHARE = 0.5  # of a GPU's free memory, for a chunk of patients
LATENT = 128
MOST_NUMBERS = 10**8  # that a reservation is for
Call = Callable[[], object]
COLUMNS = ("case", "seconds", "non-private, s", "ratio", "peak GiB", "how")


@dataclass
class Case:
    """One shape of the private step: patients of one image and one fake each."""

    size_px: int
    patients: int
    bfloat16: bool

    @property
    def name(self) -> str:
        """Return what the tables call it."""
        precision = "bfloat16" if self.bfloat16 else "float32"
        return f"{self.size_px} px, {self.patients} patients, {precision}"


def private_steps(setting: Setting) -> Part:
    """The private step of a critic beside the non-private one, at several sizes."""
    sizes = setting.choose((64, 256, 512), (16,))
    counts = setting.choose((64, 256), (2,))
    rows: list[tuple[str, ...]] = []
    figures: dict[str, object] = {}
    for size_px in sizes:
        for patients in counts:
            for bfloat16 in (False, True):
                case = Case(size_px, patients, bfloat16)
                cells, found = _guarded(setting, lambda case=case: _step_case(setting, case))
                rows.append((case.name, *cells))
                figures[case.name] = found
    table = report.Table("Private step of the critic", COLUMNS, tuple(rows))
    return Part([table], figures)


def _guarded(
    setting: Setting, measure: Callable[[], tuple[tuple[str, ...], dict[str, float]]]
) -> tuple[tuple[str, ...], dict[str, float]]:
    """What was measured; empty cells where time or memory does not suffice."""
    blank = ("", "", "", "")
    if setting.left_s() < 0:
        return (*blank, "no time left"), {}
    try:
        return measure()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return (*blank, "out of memory"), {}


def _step_case(setting: Setting, case: Case) -> tuple[tuple[str, ...], dict[str, float]]:
    """Time and memory of both steps at one shape."""
    torch.manual_seed(0)
    width = setting.choose(32, 8)
    device = setting.device
    critic = Critic(case.size_px, 3, width).to(device)
    generator = Generator(case.size_px, 3, width, LATENT).to(device)
    pixels = draw_photographs(4, case.size_px)
    stored = to_device(np.resize(pixels, (case.patients, *pixels.shape[1:])), device)

    def batch_for(patients: Sequence[int]) -> tuple[Tensor, ...]:
        rows = torch.tensor(list(patients), device=device)
        items = stored[rows].float().div(127.5).sub(1)
        with torch.no_grad():
            fakes = generator(torch.randn(len(rows), LATENT, device=device))
        return items[:, None], fakes[:, None]

    parameters: Parameters = dict(critic.named_parameters())
    loss = train_gan.loss_of(critic, parameters, "logistic")
    private, how = _private(setting, parameters, loss, case.patients, batch_for, case.bfloat16)

    def plain() -> None:
        items, fakes = batch_for(range(case.patients))
        with torch.autocast(device.type, torch.bfloat16, enabled=case.bfloat16):
            scores = critic(torch.cat([items, fakes]).flatten(0, 1)).float()
        falls = F.softplus(-scores[: case.patients]).mean()
        total = falls + F.softplus(scores[case.patients :]).mean()
        gradients = torch.autograd.grad(total, list(parameters.values()))
        adam.step(dict(zip(parameters, gradients, strict=True)))

    adam = Adam(parameters, 1e-4)
    return _compare(setting, private, plain, how)


def _private(
    setting: Setting,
    parameters: Parameters,
    loss: Callable[..., Tensor],
    patients: int,
    batch_for: Callable[[Sequence[int]], tuple[Tensor, ...]],
    bfloat16: bool = False,
) -> tuple[Call, Callable[[], str]]:
    """A private step of all patients with Adam, and what says how it is computed."""
    memory = None
    if setting.device.type == "cuda":
        memory = int(SHARE * torch.cuda.mem_get_info(setting.device)[0])
    private = PrivateStep(
        parameters,
        loss,
        StepConstants(1.0, 1.0, 1.0, patients, 1),
        PracticeReservation(SubsampledGaussian(1.0, 1.0, 10**8, MOST_NUMBERS)),
        SeededNoiseSource(0),
        execution=Execution(memory_bytes=memory, autocast=bfloat16),
    )
    adam = Adam(parameters, 1e-4)
    return lambda: adam.step(private.step(patients, batch_for)), lambda: private.choice


def _compare(
    setting: Setting, private: Call, plain: Call, how: Callable[[], str]
) -> tuple[tuple[str, ...], dict[str, float]]:
    """The cells and figures of a private step beside a plain one."""
    ours = setting.seconds(private)
    theirs = setting.seconds(plain)
    peak = setting.peak_gib(private)
    figures = {
        "seconds": rounded(ours),
        "plain_s": rounded(theirs),
        "ratio": rounded(ours / theirs),
        "peak_gib": rounded(peak),
    }
    cells = tuple(f"{value:.3g}" for value in figures.values())
    return (*cells, how().split(";")[0]), figures


def flow_steps(setting: Setting) -> Part:
    """The private step of a flow beside the non-private one."""
    rows: list[tuple[str, ...]] = []
    figures: dict[str, object] = {}
    for size_px in setting.choose((64, 128), (16,)):
        name = f"{size_px} px, {setting.choose(64, 2)} patients"
        cells, found = _guarded(setting, lambda size_px=size_px: _flow_case(setting, size_px))
        rows.append((name, *cells))
        figures[name] = found
    return Part([report.Table("Private step of the flow", COLUMNS, tuple(rows))], figures)


def _flow_case(setting: Setting, size_px: int) -> tuple[tuple[str, ...], dict[str, float]]:
    """Time and memory of both steps of a flow."""
    patients = setting.choose(64, 2)
    device = setting.device
    flow = Glow(size_px, 1, setting.choose(4, 2), setting.choose(6, 1), setting.choose(40, 8))
    flow.to(device)
    pixels = draw_photographs(4, size_px)[..., :1]
    x = from_uint8(np.resize(pixels, (patients, *pixels.shape[1:])), device=device)
    parameters: Parameters = dict(flow.named_parameters())
    loss = train_glow.loss_of(flow, parameters)

    def batch_for(chosen: Sequence[int]) -> tuple[Tensor, ...]:
        return (x[torch.tensor(list(chosen), device=device)][:, None],)

    private, how = _private(setting, parameters, loss, patients, batch_for)
    adam = Adam(parameters, 1e-4)

    def plain() -> None:
        total = -functional_call(flow, parameters, (x,)).mean() / flow.dimension
        gradients = torch.autograd.grad(total, list(parameters.values()))
        adam.step(dict(zip(parameters, gradients, strict=True)))

    return _compare(setting, private, plain, how)


def inversion(setting: Setting) -> Part:
    """Images inverted a second, by batch."""
    size_px = setting.choose(256, 16)
    device = setting.device
    torch.manual_seed(0)
    width = setting.choose(32, 8)
    generator = Generator(size_px, 3, width, LATENT).to(device)
    encoder = Encoder(size_px, 3, width, LATENT).to(device)
    rows = []
    figures: dict[str, object] = {}
    for batch in setting.choose((16, 64), (2,)):
        plan = InversionPlan(batch=batch, steps=setting.choose(20, 1), samples=8, turned=2)
        known = make_reference(generator, encoder, plan, torch.Generator(device))
        pixels = draw_photographs(4, size_px)
        images = np.resize(pixels, (batch, *pixels.shape[1:]))

        def work(
            images: object = images, plan: InversionPlan = plan, known: object = known
        ) -> None:
            invert(images, generator, encoder, plan, known)  # type: ignore[arg-type]

        each = setting.seconds(work) / batch
        peak = setting.peak_gib(work)
        rows.append((f"{size_px} px, {batch} at a time", f"{1 / each:.3g}", f"{peak:.3g}"))
        figures[f"batch {batch}"] = {"images_s": rounded(1 / each), "peak_gib": rounded(peak)}
    table = report.Table("Inversion", ("case", "images a second", "peak GiB"), tuple(rows))
    return Part([table], figures)


def alignment(setting: Setting) -> Part:
    """Groups aligned a second, in float32 and bfloat16."""
    size_px = setting.choose(256, 16)
    groups = setting.choose(16, 2)
    torch.manual_seed(0)
    width = setting.choose(32, 8)
    generator = Generator(size_px, 3, width, LATENT).to(setting.device)
    critic = Critic(size_px, 3, width).to(setting.device)
    targets, _ = invented_targets(groups, generator, critic)
    rows = []
    figures: dict[str, object] = {}
    for bfloat16 in (False, True):
        plan = AlignmentPlan(steps=setting.choose(40, 1), batch=groups, bfloat16=bfloat16)

        def work(plan: AlignmentPlan = plan) -> None:
            align(targets, generator, critic, plan, 1.0)

        each = setting.seconds(work, 2) / groups
        peak = setting.peak_gib(work)
        name = "bfloat16" if bfloat16 else "float32"
        rows.append((f"{size_px} px, {name}", f"{1 / each:.3g}", f"{peak:.3g}"))
        figures[name] = {"groups_s": rounded(1 / each), "peak_gib": rounded(peak)}
    table = report.Table("Alignment", ("case", "groups a second", "peak GiB"), tuple(rows))
    return Part([table], figures)


def noise(setting: Setting) -> Part:
    """Lattice Gaussian noise of the processor beside this device."""
    values = setting.choose(4_000_000, 20_000)
    source = NoiseSource()
    source.gaussian_lattice(values, 1.0)
    wall = time.perf_counter()
    process = time.process_time()
    source.gaussian_lattice(values, 1.0)
    process = time.process_time() - process
    wall = time.perf_counter() - wall
    figures: dict[str, object] = {
        "wall_ns": rounded(1e9 * wall / values),
        "process_ns": rounded(1e9 * process / values),
        "cores": len(os.sched_getaffinity(0)),
    }
    rows = tuple((name, str(value)) for name, value in figures.items())
    return Part([report.Table("Noise, of one value", ("figure", "value"), rows)], figures)
