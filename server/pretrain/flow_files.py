"""The state, sample sheet and model card of a flow's pretraining."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from common.errors import ConfigurationError
from common.models.draws import device_of
from common.models.glow import Glow
from common.models.glow_checkpoint import PREFIX, load_weights, weights_of
from common.models.glow_pixels import from_uint8, to_uint8
from common.wire import tensors
from server.pretrain.flow_options import Pretraining
from server.pretrain.provenance import Provenance
from server.public_data.images import Source

STATE_CAP_BYTES = 2 << 30
SHEET_COLUMNS = 10
TEMPERATURE = 0.7  # of the samples that are shown


@dataclass
class Training:
    """Everything that a resumed run needs."""

    model: Glow
    average: Glow
    optimiser: torch.optim.Adam
    step: int = 0
    seconds: float = 0.0
    bits: float = field(default=math.nan)


def state_of(training: Training) -> dict[str, NDArray[np.generic]]:
    """Return weights, average and Adam's moments as named arrays."""
    progress = np.array([training.step, training.seconds, training.bits], dtype=np.float64)
    arrays: dict[str, NDArray[np.generic]] = {"progress": progress}
    for prefix, model in (("now.", training.model), ("average.", training.average)):
        arrays |= {prefix + name: value for name, value in weights_of(model).items()}
    for name, parameter in training.model.named_parameters():
        for moment, value in training.optimiser.state.get(parameter, {}).items():
            moments = value.contiguous().cpu().numpy()
            arrays[f"adam.{moment}.{name}"] = np.array(moments, dtype=np.float32)
    return arrays


def restore(training: Training, path: Path) -> None:
    """Put a saved state back into `training`.

    Raises ConfigurationError without a file, and where other tensors learned than would now. Raises
    RefusedError for a broken file and for weights of another layout.
    """
    if not path.is_file():
        raise ConfigurationError(
            f"{path}: missing, so this run cannot go on", hint="name another folder"
        )
    arrays = tensors.read(path, max_bytes=STATE_CAP_BYTES)

    # which tensors learned, as those of a grown flow do not all
    learned = {n.removeprefix("adam.exp_avg.") for n in arrays if n.startswith("adam.exp_avg.")}
    learning = {n for n, p in training.model.named_parameters() if p.requires_grad}
    if learned and learned != learning:
        raise ConfigurationError(
            f"{path}: {len(learned)} tensors learned so far, {len(learning)} would now",
            hint="give --start as at first",
        )

    # the weights and their moving average
    for prefix, model in (("now.", training.model), ("average.", training.average)):
        found = {}
        for name, array in arrays.items():
            if name.startswith(prefix):
                found[name.removeprefix(prefix)] = array
        load_weights(model, found)

    # Adam's moments, which a parameter has only after its first step
    for name, parameter in training.model.named_parameters():
        moments = {m: arrays.get(f"adam.{m}.{name}") for m in ("step", "exp_avg", "exp_avg_sq")}
        if all(value is not None for value in moments.values()):
            restored = {}
            for moment, value in moments.items():
                restored[moment] = torch.from_numpy(np.array(value, dtype=np.float32))
                if moment != "step":  # which Adam keeps on the CPU
                    restored[moment] = restored[moment].to(parameter.device)
            training.optimiser.state[parameter] = restored

    # how far the run has come
    training.step = int(arrays["progress"][0])
    training.seconds = float(arrays["progress"][1])
    training.bits = float(arrays["progress"][2])


@torch.no_grad()
def sample_sheet(model: Glow, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a sheet, uint8 [rows·S, columns·S, C].

    Its rows are photographs, their decoded encodings, decoded means of five latents, and two rows
    from the prior.
    """
    # the latents of photographs, and their means
    order = np.random.default_rng(1).permutation(len(images))
    shown = images[order[: min(SHEET_COLUMNS, len(images))]]
    members = images[np.resize(order, 5 * SHEET_COLUMNS)]
    device = device_of(model)
    parts = model.encode(from_uint8(members, device=device))[0]
    spread = 5**0.5  # keeps the variance of a mean of five at one
    means = [part.view(SHEET_COLUMNS, 5, *part.shape[1:]).mean(1) * spread for part in parts]

    # the rows as pictures
    draw = torch.Generator().manual_seed(1)
    rows = [
        shown,
        to_uint8(model.decode(model.encode(from_uint8(shown, device=device))[0])),
        to_uint8(model.decode(means)),
    ]
    for _ in range(2):
        rows.append(to_uint8(model.decode(model.prior(SHEET_COLUMNS, TEMPERATURE, draw))))

    # paste them below one another
    size = images.shape[1]
    channels = images.shape[3]
    sheet = np.zeros((len(rows) * size, SHEET_COLUMNS * size, channels), np.uint8)
    for index, row in enumerate(rows):
        top = index * size
        sheet[top : top + size, : len(row) * size] = np.concatenate(list(row), axis=1)
    return sheet[..., 0] if channels == 1 else sheet


def card(
    training: Training, source: Source, options: Pretraining, provenance: Provenance, digest: str
) -> str:
    """Return the model card in Markdown."""
    model = training.average
    template = Path(__file__).with_name("cards") / "flow.md"
    return template.read_text(encoding="utf-8").format(
        model=model,
        options=options,
        provenance=provenance,
        count=len(source.images),
        source_digest=source.digest,
        digest=digest,
        parameters=sum(p.numel() for p in model.parameters()),
        depths=", ".join(map(str, options.depths)),
        steps=training.step,
        minutes=training.seconds / 60,
        bits=training.bits,
        prefix=PREFIX,
    )
