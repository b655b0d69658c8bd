"""What a device computes beside what the processor computes, from the same numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import functional_call

from benchmarks import report
from benchmarks.gpu_setting import Part, Setting, draw_photographs, rounded
from client.learn.fast.backends import BACKENDS
from client.learn.lattice import LatticeSum, to_lattice
from client.learn.private_step import Execution, Parameters, PrivateStep, StepConstants
from client.state.group_store import Group, Stratum
from client.state.ledger import PracticeReservation
from client.synthesize.align import AlignmentPlan, GroupStatistics, alignment_loss
from common.devices import set_tf32
from common.models.glow import Glow
from common.models.glow_pixels import from_uint8, to_uint8
from common.models.images import to_unit
from common.models.stylegan import Critic, Generator
from common.privacy.mechanisms import SubsampledGaussian
from common.privacy.noise import LATTICE, SeededNoiseSource

CPU = torch.device("cpu")
PATIENTS = 8
MOST_NUMBERS = 10**8  # that a reservation is for
Row = tuple[str, float]


def parity(setting: Setting) -> Part:
    """Every comparison, as the largest difference."""
    rows: list[Row] = []
    rows += samples(setting)
    rows += round_trips(setting)
    rows += lattice_sums(setting)
    rows += back_ends(setting)
    rows += aligned_losses(setting)
    shown = tuple((name, f"{value:.3g}") for name, value in rows)
    table = report.Table("Parity with the processor", ("compared", "largest difference"), shown)
    return Part([table], {name: rounded(value) for name, value in rows})


def _apart(here: Tensor, there: Tensor) -> float:
    """The largest absolute difference of two tensors."""
    return float((here.detach().double().cpu() - there.detach().double().cpu()).abs().max())


def samples(setting: Setting) -> list[Row]:
    """Images of one generator and scores of one critic."""
    torch.manual_seed(0)
    size_px = setting.choose(256, 16)
    generator = Generator(size_px, 3, setting.choose(32, 8), 64)
    critic = Critic(size_px, 3, setting.choose(32, 8))
    z = torch.randn(4, 64)
    found = []
    with torch.no_grad():
        for device in (CPU, setting.device):
            images = generator.to(device)(z.to(device))
            found.append((images, critic.to(device)(images)))
    return [
        ("generator, image", _apart(found[0][0], found[1][0])),
        ("critic, score", _apart(found[0][1], found[1][1])),
    ]


def round_trips(setting: Setting) -> list[Row]:
    """A flow there and back, with and without TF32, and as 8-bit images."""
    size_px = setting.choose(64, 16)
    pixels = draw_photographs(4, size_px)
    flow = Glow(size_px, 3, 3, setting.choose(6, 1), setting.choose(40, 8))
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=random))
    flow.to(setting.device)
    x = from_uint8(pixels, device=setting.device)
    rows: list[Row] = []
    with torch.no_grad():
        for allowed, name in ((False, "float32"), (True, "TF32")):
            set_tf32(allowed)
            back = flow.decode(flow.encode(x)[0])
            rows.append((f"flow, round trip, {name}", _apart(x, back)))
        set_tf32(False)
        again = to_uint8(flow.decode(flow.encode(x)[0]))
    levels = float(abs(again.astype(int) - pixels.astype(int)).max())
    return [*rows, ("flow, round trip, levels of 255", levels)]


def lattice_sums(setting: Setting) -> list[Row]:
    """Clipped integer sums: in one part and in many, and beside the processor's."""
    random = torch.Generator().manual_seed(2)
    dimension = setting.choose(400_000, 1000)
    rows = torch.randn(64, dimension, generator=random)
    rows[3, 5] = torch.nan
    rows[4] *= 1e30
    totals = []
    for device, part in ((CPU, 64), (setting.device, 64), (setting.device, 3)):
        total = LatticeSum(dimension, 1.0, device)
        for some in torch.split(rows.to(device, copy=True), part):
            total.add(some)
        totals.append(total.total.cpu())
    norms = to_lattice(rows.to(setting.device), 1.0).norm(dim=1)
    return [
        ("lattice, largest norm over 2^24", float(norms.max()) / LATTICE),
        ("lattice, sum in parts, steps", _apart(totals[1], totals[2])),
        ("lattice, beside the processor, steps", _apart(totals[0], totals[1])),
    ]


def back_ends(setting: Setting) -> list[Row]:
    """A private step by each back end, beside a backward pass for each patient.

    A back end that the trial on neighbours refuses is named, with a difference of infinity.
    """
    expected = _private_update(setting, "backward", setting.device)
    rows = [("backward, beside the processor", _beside(setting, expected))]
    for backend in BACKENDS:
        if backend in ("auto", "backward"):
            continue
        try:
            found = _private_update(setting, backend, setting.device)
            rows.append((f"{backend}, beside backward", _apart(found, expected)))
        except Exception as error:  # a refusal is a result
            print(f"{backend}: {type(error).__name__}: {error}")
            rows.append((f"{backend}, refused", float("inf")))
    return rows


def _beside(setting: Setting, expected: Tensor) -> float:
    return _apart(_private_update(setting, "backward", CPU), expected)


def _private_update(setting: Setting, backend: str, device: torch.device) -> Tensor:
    """The released update [d] of one step, with the same noise for each back end."""
    torch.manual_seed(3)
    size_px = setting.choose(64, 16)
    critic = Critic(size_px, 3, setting.choose(32, 8)).to(device)
    items = torch.rand(PATIENTS, 2, 3, size_px, size_px) * 2 - 1
    parameters: Parameters = dict(critic.named_parameters())
    private = PrivateStep(
        parameters,
        lambda weights, patient: functional_call(critic, weights, (patient[0],)).mean(),
        StepConstants(1.0, 1e-4, 1.0, PATIENTS, 2),
        PracticeReservation(SubsampledGaussian(1.0, 1e-4, 10**7, MOST_NUMBERS)),
        SeededNoiseSource(0),
        execution=Execution(backend=backend),  # type: ignore[arg-type]
    )

    def batch_for(patients: Sequence[int]) -> tuple[Tensor, ...]:
        return (items[list(patients)].to(device),)

    update = private.step(PATIENTS, batch_for)
    return torch.cat([value.flatten() for value in update.values()])


def aligned_losses(setting: Setting) -> list[Row]:
    """The alignment's loss and gradient of the same codes."""
    found = []
    for device in (CPU, setting.device):
        codes, loss = alignment_case(setting, device)
        (gradient,) = torch.autograd.grad(loss.sum(), [codes])
        found.append((loss, gradient))
    return [
        ("alignment, loss", _apart(found[0][0], found[1][0])),
        ("alignment, gradient", _apart(found[0][1], found[1][1])),
    ]


def alignment_case(setting: Setting, device: torch.device) -> tuple[Tensor, Tensor]:
    """Codes of two groups, and the loss [2] of them."""
    torch.manual_seed(4)
    size_px = setting.choose(128, 16)
    generator = Generator(size_px, 3, setting.choose(32, 8), 64).requires_grad_(False)
    critic = Critic(size_px, 3, setting.choose(32, 8)).requires_grad_(False)
    targets, codes = invented_targets(2, generator, critic)
    moved = []
    for target in targets:
        tensors = (target.centroid, target.content, target.grams)
        moved.append(
            GroupStatistics(target.group, *(t.to(device) for t in tensors), target.support)
        )
    there = codes.to(device).requires_grad_()
    loss = alignment_loss(
        there, moved, generator.to(device), critic.to(device), AlignmentPlan(), 1.0
    )
    return there, loss


def invented_targets(
    count: int, generator: Generator, critic: Critic
) -> tuple[list[GroupStatistics], Tensor]:
    """Statistics of groups that nobody is in, and codes near their averages."""
    from client.synthesize.features import content_features, style_features, window_grams

    device = generator.constant.device
    random = torch.Generator().manual_seed(5)
    shape = (count, generator.layer_count, generator.latent)
    centroids = torch.randn(shape, generator=random).to(device)
    drawn = draw_photographs(count, generator.size_px)
    with torch.no_grad():
        grams = window_grams(style_features(to_unit(drawn, device)), 2)
        content = content_features(critic, generator.synthesis(centroids))
    found = []
    for i in range(count):
        group = Group((f"{2 * i:064x}", f"{2 * i + 1:064x}"), Stratum(0, 0), 2)
        support = (2,) * grams.shape[1]
        found.append(GroupStatistics(group, centroids[i], content[i], grams[i], support))
    return found, centroids + 0.1
