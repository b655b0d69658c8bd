"""The state of a generator's pretraining: networks, optimisers, and how a stopped run continues.

In: the options, or a state file. Out: a `Training`, or its named arrays.
Guarantees: `restore(state(...))` continues with the same weights and moments.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from common.models.encoder import Encoder
from common.models.moving_average import update_average
from common.models.stylegan import Critic, Generator
from common.models.weights import load_weights, numpy_weights
from common.wire.tensors import read
from server.pretrain.gan_plan import PretrainPlan

CHECKPOINT_CAP_BYTES = 2 << 30


PREFIXES = ("generator.", "critic.", "encoder.")


class Networks(NamedTuple):
    """The three networks that are trained together."""

    generator: Generator
    critic: Critic
    encoder: Encoder


@dataclass
class Training:
    """Everything that a resumed run needs.

    Networks, their moving averages, optimiser moments, steps and seconds done.
    """

    networks: Networks
    averages: Networks
    optimisers: tuple[torch.optim.Adam, torch.optim.Adam]
    step: int = 0
    seconds: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)


def begin(plan: PretrainPlan, device: str = "cpu") -> Training:
    """Fresh networks and optimisers on `device` (a torch device.

    The same starting weights on each).
    """
    torch.manual_seed(plan.seed)
    networks = Networks(
        Generator(plan.size_px, plan.channels, plan.width, plan.latent).to(device),
        Critic(plan.size_px, plan.channels, plan.width).to(device),
        Encoder(plan.size_px, plan.channels, plan.encoder_width, plan.latent).to(device),
    )
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


def update_averages(training: Training, decay: float) -> None:
    """Move each moving average towards its network; the critic's average is the critic itself."""
    for average, network in zip(training.averages, training.networks, strict=True):
        update_average(average, network, 0.0 if isinstance(network, Critic) else decay)


def state(training: Training) -> dict[str, np.ndarray]:
    """Weights, averages and Adam's moments as named arrays."""
    arrays: dict[str, np.ndarray] = {
        "progress": np.array([training.step, training.seconds], dtype=np.float64)
    }
    for prefix, network, average in zip(
        PREFIXES, training.networks, training.averages, strict=True
    ):
        arrays |= numpy_weights(network, "now." + prefix) | numpy_weights(
            average, "average." + prefix
        )
    for which, optimiser in enumerate(training.optimisers):
        for index, parameter in enumerate(
            p for group in optimiser.param_groups for p in group["params"]
        ):
            moments = optimiser.state.get(parameter, {})
            for name in ("exp_avg", "exp_avg_sq", "step"):
                if name in moments:
                    arrays[f"adam{which}.{index}.{name}"] = np.asarray(
                        moments[name].cpu().numpy(), dtype=np.float32
                    )
    return arrays


def restore(training: Training, path: Path) -> None:
    """Puts the arrays of a state file back.

    Raises ConfigurationError where they fit another plan.
    """
    arrays = read(path, max_bytes=CHECKPOINT_CAP_BYTES)
    training.step = int(arrays["progress"][0])
    training.seconds = float(arrays["progress"][1])
    for prefix, network, average in zip(
        PREFIXES, training.networks, training.averages, strict=True
    ):
        load_weights(network, arrays, "now." + prefix)
        load_weights(average, arrays, "average." + prefix)
    for which, optimiser in enumerate(training.optimisers):
        for index, parameter in enumerate(
            p for group in optimiser.param_groups for p in group["params"]
        ):
            names = {
                name: f"adam{which}.{index}.{name}" for name in ("exp_avg", "exp_avg_sq", "step")
            }
            if names["step"] in arrays:
                moments = {
                    name: torch.tensor(arrays[key], device=parameter.device)
                    for name, key in names.items()
                }
                optimiser.state[parameter] = moments
