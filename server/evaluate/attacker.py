"""The networks that an attacker on a release has: its final models, or their public checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from common.models.encoder import load_encoder
from common.models.glow_checkpoint import load_weights
from common.models.stylegan import load_critic, load_generator
from common.study.architectures import build_flow
from common.study.fields import Checkpoint
from common.study.plan import Study
from common.wire.tensors import read
from server.evaluate.attack_spaces import Networks

WEIGHTS_CAP_BYTES = 1 << 32
ITERATIONS = 1  # of the encoder, for each image


def load_networks(study: Study, weights: Mapping[str, Path], checkpoints: Path) -> Networks:
    """Return generator, critic and encoder; of a study without a GAN, its flow.

    `weights` are the files of the final models. A model without one comes from its starting
    checkpoint; a model with neither is left out.
    """
    plan = study.models.gan
    if plan is None:
        return _load_flow(study, weights, checkpoints)

    # generator and critic
    file = _existing_file(weights.get("gan"), plan.start, checkpoints)
    if file is None:
        return Networks(iterations=ITERATIONS)
    size_px = study.intake.size_px
    channels = study.intake.channels
    arrays = read(file, max_bytes=WEIGHTS_CAP_BYTES)
    generator = load_generator(arrays, plan, size_px, channels)
    critic = load_critic(arrays, plan, size_px, channels)

    # the public encoder, from its starting checkpoint
    coder = study.models.encoder
    if coder is None:
        return Networks(generator, critic, iterations=ITERATIONS)
    coder_file = _existing_file(None, coder.start, checkpoints)
    if coder_file is None:
        return Networks(generator, critic, iterations=ITERATIONS)
    start = read(coder_file, max_bytes=WEIGHTS_CAP_BYTES)
    encoder = load_encoder(start, coder.width, plan.latent, size_px, channels)
    return Networks(generator, critic, encoder, iterations=ITERATIONS)


def _load_flow(study: Study, weights: Mapping[str, Path], checkpoints: Path) -> Networks:
    """The flow, and the temperature at which the plan draws its images."""
    plan = study.models.glow
    if plan is None:
        return Networks(iterations=ITERATIONS)
    file = _existing_file(weights.get("glow"), plan.start, checkpoints)
    if file is None:
        return Networks(iterations=ITERATIONS)
    flow = build_flow(study)
    load_weights(flow, read(file, max_bytes=WEIGHTS_CAP_BYTES))
    temperature = 1.0
    if study.synthesis and study.synthesis.privatize:
        temperature = study.synthesis.privatize.temperature
    return Networks(iterations=ITERATIONS, flow=flow, temperature=temperature)


def _existing_file(final: Path | None, start: Checkpoint | None, checkpoints: Path) -> Path | None:
    """The final weights, else the starting checkpoint; None where that file does not exist."""
    file = final
    if file is None and start is not None:
        file = checkpoints / start.name
    if file is None or not file.is_file():
        return None
    return file
