"""Draws new pictures from a model of a verified release, with onnxruntime.

In: a release folder, how many, and optionally a seed.
Out: `Drawn` pictures, one after the other.
Guarantees: the release passes all steps of `kohort verify` first, and the model's bytes have the
signed SHA-256 before onnxruntime sees them. They name no other file. Memory is that of one batch.
Not covered: two machines draw the same pictures of one seed up to a grey level.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kohort.errors import ConfigurationError, RefusedError, damage_named
from kohort.extras import how_to_install
from kohort.layout import IMAGES_CAP
from kohort.models import Card, Model, read_model
from kohort.verification import verify

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

NEEDS = ("numpy", "onnxruntime", "PIL")
BATCH_NUMBERS = 1 << 22  # of one call: the normal numbers and the pixels
BATCH = 64
OUTPUT = "images"


@dataclass(frozen=True)
class Drawn:
    """One picture: uint8 [H, W] or [H, W, 3], its mask [H, W] of 0 and 255 or None, its label."""

    image: Pixels
    mask: Pixels | None
    label: str


def draw(
    release: Path,
    count: int,
    *,
    seed: int | None = None,
    model: str | None = None,
    trust: frozenset[str] = frozenset(),
    require: int | None = None,
) -> Iterator[Drawn]:
    """Return an iterator over `count` new pictures from a release's model.

    `model`: gan, wgan or glow; None is the first that the release holds. `seed` None draws from the
    operating system. `trust` and `require` are those of `kohort.verification.verify`. The release
    is verified and the model loaded before the iterator is returned.
    Raises ConfigurationError for a missing optional package, a count outside 1 to 100,000 or no
    such model; RefusedError for a release that does not verify or a model that does not run.
    """
    check_count(count)
    check_extra()
    verify(release, trust=trust, require=require)
    return draw_from(read_model(release, model), count, seed)


def draw_from(model: Model, count: int, seed: int | None = None) -> Iterator[Drawn]:
    """Return an iterator over `count` pictures of a model that `read_model` returned.

    Raises as `draw` does.
    """
    check_count(count)
    check_extra()
    return _pictures(model, open_session(model), count, seed)


def check_count(count: int) -> None:
    """Raise ConfigurationError for fewer pictures than one, or more than five digits number."""
    if not 1 <= count <= IMAGES_CAP:
        raise ConfigurationError(
            f"{count} pictures asked for, expected 1 to {IMAGES_CAP:,}",
            hint="draw again with another seed for more",
        )


def check_extra() -> None:
    """Raise ConfigurationError unless the packages of the extra [sample] are installed."""
    for name in NEEDS:
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"drawing needs the extra [sample] of kohort: {name} is not installed",
                hint=how_to_install("sample"),
            ) from error


def open_session(model: Model) -> Any:
    """Return an onnxruntime session of the model, on the CPU.

    Raises RefusedError for bytes that are no graph with the inputs and the output of its card.
    """
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # words are ours
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # a graph may name files with its tensors: there are none below this folder
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", os.devnull
    )
    where = f"models/{model.name}.onnx"
    with damage_named(RefusedError(f"{where}: onnxruntime cannot load it")):
        session = onnxruntime.InferenceSession(
            model.onnx, options, providers=["CPUExecutionProvider"]
        )
    expected = {one.name: list(one.shape) for one in model.card.inputs}
    found = {one.name: one.shape[1:] for one in session.get_inputs()}
    if found != expected or [one.name for one in session.get_outputs()] != [OUTPUT]:
        raise RefusedError(f"{where}: other inputs or outputs than models/{model.name}.json says")
    return session


def _pictures(model: Model, session: Any, count: int, seed: int | None) -> Iterator[Drawn]:
    """Batches of normal numbers, and the pictures that the graph makes of them."""
    import numpy as np

    card = model.card
    random = np.random.default_rng(seed)
    each = card.numbers + card.planes * card.size_px**2
    batch = max(1, min(BATCH, BATCH_NUMBERS // each))
    for start in range(0, count, batch):
        size = min(batch, count - start)
        inputs = {}
        for one in card.inputs:
            normal = random.standard_normal((size, *one.shape), dtype=np.float32)
            inputs[one.name] = normal * np.float32(card.temperature)
        with damage_named(RefusedError(f"models/{model.name}.onnx: onnxruntime cannot run it")):
            values = session.run([OUTPUT], inputs)[0]
        if values.shape != (size, card.planes, card.size_px, card.size_px):
            raise RefusedError(f"models/{model.name}.onnx: pictures of shape {values.shape}")
        yield from _as_drawn(values, card)


def _as_drawn(values: NDArray[np.float32], card: Card) -> Iterator[Drawn]:
    """Values [N, planes, S, S] as pictures and masks; what is not finite becomes black."""
    import numpy as np

    finite = np.nan_to_num(values[:, : card.channels], nan=-1.0).clip(-1, 1)
    images = np.rint((finite + 1) * 127.5).astype(np.uint8)
    masks = np.where(values[:, -1] > 0, 255, 0).astype(np.uint8)
    for image, mask in zip(images, masks, strict=True):
        shown = image[0] if card.channels == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))
        yield Drawn(shown, mask if card.mask else None, card.label)
