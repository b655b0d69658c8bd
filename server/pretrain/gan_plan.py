"""The public options of a generator's pretraining."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class PretrainPlan:
    """The options of one pretraining, all public.

    A study that starts from its checkpoint repeats `size_px`, `channels`, `width` and `latent`.
    """

    size_px: int = 64
    channels: int = 3
    width: int = 24
    latent: int = 128
    encoder_width: int = 24
    reconstructed: int = 6  # photographs a step
    averaged: int = 2  # averages of W+ codes a step
    flattened: int = 2  # averages a step with one w for all layers, as the mapping network has
    largest_average: int = 5  # codes in an average, at most
    coarse: float = 0.2  # share of the run at half the size, where colour and disc settle cheaply
    alone: float = 0.3  # share of the run in which there is no critic yet
    textured: float = 0.53  # share of the run after which textures and the next two options count
    sharp: float = 0.25  # share of the pixel differences that is taken at full size
    least_noise: float = 0.15  # least strength of the noise maps at full and half size
    again: float = 0.3  # share of steps in which the encoder looks a second time
    critic_steps: int = 1
    prior_steps: int = 400  # of `fit_prior`, at every look (`look_every_s`)
    generator_learning_rate: float = 2e-3
    encoder_learning_rate: float = 1e-3
    critic_learning_rate: float = 2e-3
    gradient_penalty: float = 0.005
    average_decay: float = 0.998
    bank: int = 2048
    cameras: bool = False  # photographs of the fundus, as other cameras show them, in one look
    seed: int = 0
    weights: Mapping[str, float] = field(
        default_factory=lambda: {
            "reconstruction": 4.0,
            "feature": 1.0,
            "texture": 1.5,
            "averaged_texture": 0.75,
            "spots": 100.0,
            "averaged_spots": 50.0,
            "adversarial": 0.5,
            "cycle": 0.1,
            "detail": 0.2,
            "size": 0.002,
        }
    )
