"""The flow's private step beside the plain one and Opacus' hooks, and its speed beside normflows.

Opacus' hooks see one output of a layer alone, so the packed flow ends each output with its
log-determinant: else their gradients are silently wrong.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks.flow_layouts import Layout
from benchmarks.flow_peer import peer
from client.learn.private_step import Execution, PrivateStep, StepConstants
from client.learn.train_glow import flatten, loss_of
from client.state.ledger import PracticeReservation
from common.models import glow, glow_coupling
from common.models.adam import Adam
from common.models.glow import Glow
from common.models.glow_coupling import Split
from common.models.glow_level import Level
from common.models.glow_mixing import Mixing, compose_mixings
from common.privacy.mechanisms import SubsampledGaussian
from common.privacy.noise import SeededNoiseSource

MIB = 2**20
Call = Callable[[], object]


# --- steps ----------------------------------------------------------------------------------------
def plain_step(model: nn.Module, log_p: Callable[[Tensor], Tensor], x: Tensor) -> Call:
    """An ordinary step of maximum likelihood with torch's Adam, gradients cut at norm 5."""
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    dimension = x[0].numel()

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        (-log_p(x).mean() / dimension).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()

    return step


def non_private(
    layout: Layout, x: Tensor, memory_format: torch.memory_format = torch.contiguous_format
) -> Call:
    """The same flow without privacy: no clip of gradients either."""
    model = layout.flow().to(memory_format=memory_format)
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    x = x.contiguous(memory_format=memory_format)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        (-model(x).mean() / model.dimension).backward()
        optimiser.step()

    return step


def private(layout: Layout, x: Tensor) -> tuple[PrivateStep, Call]:
    """The private step as train_glow runs it, every patient drawn; and the step itself, which knows
    its back end.
    """
    model = layout.flow()
    parameters = dict(model.named_parameters())
    count = len(x)
    step = PrivateStep(
        parameters,
        loss_of(model, parameters),
        StepConstants(1.0, 1.0, 1.0, count),
        PracticeReservation(SubsampledGaussian(1.0, 1.0, 10**6)),
        SeededNoiseSource(0),
        execution=Execution(),
    )
    adam = Adam({"all": flatten(parameters)}, 1e-3)

    def whole() -> None:
        gradients = step.step(count, lambda who: (x[list(who)][:, None],))
        adam.step({"all": torch.cat([gradients[name].reshape(-1) for name in parameters])})

    return step, whole


class PackedMixing(nn.Module):
    """A mixing whose one output ends with its log-determinant, so that opacus' hooks see the
    gradients of both.
    """

    def __init__(self, layer: Mixing) -> None:
        super().__init__()
        self.bias = layer.bias
        self.log_scale = layer.log_scale
        self.triangles = layer.triangles
        self.rotation = layer.rotation

    def forward(self, x: Tensor) -> Tensor:
        kernels, biases, log_scale = compose_mixings([cast(Mixing, self)])
        y = torch.nn.functional.conv2d(x, kernels[0], biases[0])
        log_determinant = (log_scale.sum() * (x.shape[-1] * x.shape[-2])).expand(len(x), 1)
        return torch.cat([y.flatten(1), log_determinant], dim=1)


class PackedTop(nn.Module):
    """The top's prior, packed likewise."""

    def __init__(self, top: nn.Module) -> None:
        super().__init__()
        self.mean = top.mean
        self.raw_log_scale = top.raw_log_scale

    def forward(self, x: Tensor) -> Tensor:
        log_scale = glow_coupling.SPLIT_BOUND * torch.tanh(
            self.raw_log_scale / glow_coupling.SPLIT_BOUND
        )
        part = (x - self.mean) * (-log_scale).exp()
        return torch.cat([part.flatten(1), -log_scale.sum().expand(len(x), 1)], dim=1)


class PackedGlow(nn.Module):
    """log p as `Glow.forward` gives it, by layers that opacus' hooks get right."""

    def __init__(self, model: Glow) -> None:
        super().__init__()
        levels = [cast(Level, level) for level in model.levels]
        self.mixings = nn.ModuleList(
            PackedMixing(cast(Mixing, m)) for level in levels for m in level.mixings
        )
        self.couplings = nn.ModuleList(coupling for level in levels for coupling in level.couplings)
        self.splits = model.splits
        self.top = PackedTop(model.top)
        self._per_level = len(levels[0].mixings)

    def forward(self, x: Tensor) -> Tensor:
        log_p = x.new_zeros(len(x))
        steps = list(zip(self.mixings, self.couplings, strict=True))
        for level, split in enumerate([*self.splits, None]):
            x = torch.nn.functional.pixel_unshuffle(x, 2)
            for mixing, coupling in steps[level * self._per_level : (level + 1) * self._per_level]:
                packed = mixing(x)
                x, each = coupling(packed[:, :-1].view_as(x))
                log_p = log_p + packed[:, -1] + each
            if split is None:
                packed = self.top(x)
                part = packed[:, :-1]
                log_p = log_p + packed[:, -1]
            else:
                x, y = x.chunk(2, dim=1)
                mean, log_scale = cast(Split, split).moments(x)
                part = ((y - mean) * (-log_scale).exp()).flatten(1)
                log_p = log_p - log_scale.sum(dim=(1, 2, 3))
            log_p = log_p - 0.5 * part.square().sum(1) - 0.5 * glow.LOG_2PI * part.shape[1]
        return log_p


def opacus_hooks(layout: Layout, x: Tensor) -> Call:
    """A whole step by opacus' hooks."""
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    model = layout.flow()
    dimension = model.dimension
    packed = GradSampleModule(PackedGlow(model))
    optimiser = DPOptimizer(
        torch.optim.Adam(packed.parameters(), 1e-3),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        expected_batch_size=len(x),
    )

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        (-packed(x).mean() / dimension).backward()
        optimiser.step()

    return step


# --- measuring ------------------------------------------------------------------------------------
def fastest(calls: dict[str, Call], repeats: int) -> dict[str, float]:
    """The smallest process time of each, seconds, in alternation after one call to warm up."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.process_time()
            call()
            found[name].append(time.process_time() - start)
    return {name: min(seconds) for name, seconds in found.items()}


def saved_mib(
    log_p: Callable[[Tensor], Tensor], parameters: Iterator[nn.Parameter], x: Tensor
) -> float:
    """Unique storages that the backward pass keeps, weights apart."""
    weights = {p.untyped_storage().data_ptr() for p in parameters}
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        held = log_p(x)
    assert held.requires_grad
    return sum(t.untyped_storage().nbytes() for a, t in kept.items() if a not in weights) / MIB


def private_figures(layouts: dict[str, Layout], repeats: int) -> dict[str, float | str | None]:
    """The private step beside the non-private one and opacus' hooks, and what the hooks' gradients
    are worth.
    """
    found: dict[str, float | str | None] = {}
    for key, layout in (("", layouts["speed"]), ("_64", layouts["speed_64"])):
        x = layout.images()
        step, whole = private(layout, x)
        calls = {
            "plain": non_private(layout, x),
            "channels last": non_private(layout, x, torch.channels_last),
            "private": whole,
            "hooks": opacus_hooks(layout, x),
        }
        seconds = fastest(calls, repeats)
        found[f"dp_back_end{key}"] = step.choice
        found[f"dp_ratio{key}"] = seconds["private"] / seconds["plain"]
        found[f"dp_ratio_channels_last{key}"] = seconds["private"] / seconds["channels last"]
        found[f"dp_speedup_over_opacus_hooks{key}"] = seconds["hooks"] / seconds["private"]
        found[f"opacus_hooks_ratio{key}"] = seconds["hooks"] / seconds["plain"]
        found[f"plain_step_s{key}"], found[f"dp_step_s{key}"] = seconds["plain"], seconds["private"]
    found["opacus_gradient_error"] = gradient_error(layouts["speed"])
    return found


def gradient_error(layout: Layout) -> float:
    """The greatest relative error over tensors of the packed hooks' per-sample gradients: that the
    comparison is fair.
    """
    from client.learn.patient_gradients import by_backward

    x = layout.images(
        2
    ).double()  # in float64: a rounding at a kink of ReLU is no error of the hooks
    model = layout.flow().double()
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for p in parameters.values():
            p.add_(0.02 * torch.randn_like(p))
    truth = by_backward(loss_of(model, parameters), parameters, (x[:, None],))
    from opacus import GradSampleModule

    packed = GradSampleModule(PackedGlow(model), loss_reduction="sum")
    (-packed(x).sum() / model.dimension).backward()
    samples = {id(p): cast(Any, p).grad_sample for p in packed.parameters()}
    parts = truth.split([p.numel() for p in parameters.values()], 1)
    errors = [
        float((samples[id(p)].flatten(1) - part).norm() / part.norm().clamp_min(1e-12))
        for p, part in zip(parameters.values(), parts, strict=True)
    ]
    return max(errors)


def peer_figures(
    layouts: dict[str, Layout], repeats: int, normflows: Any
) -> dict[str, float | None]:
    """Train, encode, invert and memory over normflows: above 1 is faster, memory below 1 less."""
    layout = layouts["speed"]
    large = layouts["speed_64"]
    x = layout.images()
    theirs = peer(normflows, layout)
    ours = layout.flow().to(memory_format=torch.channels_last)
    ours_trained = layout.flow().to(memory_format=torch.channels_last)
    theirs_trained = peer(normflows, layout)
    near = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        our_parts, (their_parts, _) = ours.encode(x)[0], theirs.inverse_and_log_det(x)

    def quiet(call: Call) -> Call:
        return cast(Call, torch.no_grad()(call))

    seconds = fastest(
        {
            "train": plain_step(ours_trained, ours_trained.forward, near),
            "their train": plain_step(
                theirs_trained, lambda y: theirs_trained.log_prob(y, None), x
            ),
            "encode": quiet(lambda: ours.encode(near)),
            "their encode": quiet(lambda: theirs.inverse_and_log_det(x)),
            "invert": quiet(lambda: ours.decode(our_parts)),
            "their invert": quiet(lambda: theirs.forward_and_log_det(their_parts)),
        },
        repeats,
    )
    found: dict[str, float | None] = {
        f"{what}_over_normflows": seconds[f"their {what}"] / seconds[what]
        for what in ("train", "encode", "invert")
    }
    found |= {
        f"{what}_images_per_s": layout.batch / seconds[what]
        for what in ("train", "encode", "invert")
    }
    them = peer(normflows, large)
    their_mib = saved_mib(
        lambda y: cast(Tensor, them.log_prob(y, None)), them.parameters(), large.images()
    )
    found["saved_mib_normflows"] = their_mib
    found["memory_over_normflows"] = saved_by_ours(large, False) / their_mib
    return found


def saved_by_ours(layout: Layout, reverse: bool) -> float:
    """MiB that our flow keeps for its backward pass."""
    model = layout.flow()
    model.reversible = reverse
    return saved_mib(model.forward, model.parameters(), layout.images())
