"""The state of a generator's pretraining: networks, optimisers, and how a stopped run continues.

In: the options, or a state file. Out: a `Training`, or its named arrays.
Guarantees: `restore(state(...))` continues with the same weights and moments.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.models.encoder import Encoder
from common.models.moving_average import update_average
from common.models.stylegan import Critic, Generator
from common.models.weights import load_weights, numpy_weights
from common.wire.tensors import read
from server.pretrain.gan_plan import PretrainPlan
from server.pretrain.gan_schedule import Phase
from server.pretrain.growth import grow, hold, is_half

CPU = torch.device("cpu")
CHECKPOINT_CAP_BYTES = 2 << 30
PREFIXES = ("generator.", "critic.", "encoder.")
MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # what Adam keeps of each parameter


class Networks(NamedTuple):
    """The three networks that are trained together."""

    generator: Generator
    critic: Critic
    encoder: Encoder


@dataclass
class Training:
    """Everything that a resumed run needs."""

    networks: Networks
    averages: Networks
    optimisers: tuple[torch.optim.Adam, torch.optim.Adam]
    step: int = 0
    seconds: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)
    grown: bool = False  # from a checkpoint of half the size: only the new map learns

    def note_growth(self) -> None:
        """From here on, only the generator's last map and the critic learn."""
        self.grown = True
        hold(self.networks.generator, self.networks.encoder)


def begin(plan: PretrainPlan, device: torch.device = CPU) -> Training:
    """Return fresh networks and optimisers on `device`.

    The starting weights are the same on each device.
    """
    # the networks
    torch.manual_seed(plan.seed)
    networks = Networks(
        Generator(plan.size_px, plan.channels, plan.width, plan.latent).to(device),
        Critic(plan.size_px, plan.channels, plan.width).to(device),
        Encoder(plan.size_px, plan.channels, plan.encoder_width, plan.latent).to(device),
    )

    # one optimiser for generator and encoder, one for the critic
    made: list[dict[str, Any]] = [
        {"params": list(networks.generator.parameters()), "lr": plan.generator_learning_rate},
        {"params": list(networks.encoder.parameters()), "lr": plan.encoder_learning_rate},
    ]
    return Training(
        networks,
        deepcopy(networks),
        (
            torch.optim.Adam(made, betas=(0.9, 0.99), fused=True),
            torch.optim.Adam(
                networks.critic.parameters(),
                lr=plan.critic_learning_rate,
                betas=(0.5, 0.99),
                fused=True,
            ),
        ),
    )


def load_start(training: Training, folder: Path) -> None:
    """Put the checkpoint in `folder` into networks and averages; one of half the size grows.

    Raises RefusedError where it fits another plan.
    """
    arrays = read(folder / "gan.safetensors", max_bytes=CHECKPOINT_CAP_BYTES)
    arrays |= read(folder / "encoder.safetensors", max_bytes=CHECKPOINT_CAP_BYTES)
    for networks in (training.networks, training.averages):
        if is_half(networks.generator, arrays):
            grow(networks.generator, networks.encoder, arrays)
            continue
        for prefix, network in zip(PREFIXES, networks, strict=True):
            load_weights(network, arrays, prefix)
    if is_half(training.networks.generator, arrays):
        training.note_growth()


def set_rates(training: Training, phase: Phase) -> None:
    """Set the learning rates of generator, encoder and critic to those of the phase."""
    make, judge = training.optimisers
    make.param_groups[0]["lr"] = phase.generator_rate
    make.param_groups[1]["lr"] = phase.encoder_rate
    judge.param_groups[0]["lr"] = phase.critic_rate


def note_losses(training: Training, parts: Mapping[str, Tensor]) -> None:
    """Follow each loss by a running mean over about fifty steps."""
    values = torch.stack([value.detach() for value in parts.values()]).cpu().tolist()
    for name, now in zip(parts, values, strict=True):
        training.losses[name] = 0.98 * training.losses.get(name, now) + 0.02 * now


def update_averages(training: Training, decay: float) -> None:
    """Move each moving average towards its network; the critic's average is the critic itself."""
    for average, network in zip(training.averages, training.networks, strict=True):
        update_average(average, network, 0.0 if isinstance(network, Critic) else decay)


def state(training: Training) -> dict[str, np.ndarray]:
    """Return weights, averages and Adam's moments as named arrays."""
    # how far the run has come, weights and averages
    arrays: dict[str, np.ndarray] = {
        "progress": np.array([training.step, training.seconds, training.grown], dtype=np.float64)
    }
    for prefix, network, average in zip(
        PREFIXES, training.networks, training.averages, strict=True
    ):
        arrays |= numpy_weights(network, "now." + prefix)
        arrays |= numpy_weights(average, "average." + prefix)

    # Adam's moments, which a parameter has only after its first step
    for place, optimiser, parameter in _parameters(training):
        moments = optimiser.state.get(parameter, {})
        for name in MOMENTS:
            if name in moments:
                moment = moments[name].cpu().numpy()
                arrays[f"{place}.{name}"] = np.asarray(moment, dtype=np.float32)
    return arrays


def restore(training: Training, path: Path) -> None:
    """Put the arrays of a state file back into `training`.

    Raises RefusedError where they fit another plan.
    """
    arrays = read(path, max_bytes=CHECKPOINT_CAP_BYTES)
    training.step = int(arrays["progress"][0])
    training.seconds = float(arrays["progress"][1])
    if arrays["progress"][2:].any():
        training.note_growth()
    for prefix, network, average in zip(
        PREFIXES, training.networks, training.averages, strict=True
    ):
        load_weights(network, arrays, "now." + prefix)
        load_weights(average, arrays, "average." + prefix)
    for place, optimiser, parameter in _parameters(training):
        if f"{place}.step" in arrays:  # a parameter without a step has no moments yet
            optimiser.state[parameter] = {
                name: torch.tensor(arrays[f"{place}.{name}"], device=parameter.device)
                for name in MOMENTS
            }


def _parameters(training: Training) -> Iterator[tuple[str, torch.optim.Adam, Tensor]]:
    """Yield each trained parameter with its optimiser and the place of its moments in a file."""
    for which, optimiser in enumerate(training.optimisers):
        index = 0
        for group in optimiser.param_groups:
            for parameter in group["params"]:
                yield f"adam{which}.{index}", optimiser, parameter
                index += 1
