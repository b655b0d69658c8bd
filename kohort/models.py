"""What models/NAME.json says of a model, and the bytes of its ONNX file in a verified release.

In: a release folder that `kohort.verification.verify` has passed.
Out: `Model`s.
Guarantees: of each file the SHA-256 in the signed SHA256SUMS is compared over the very bytes that
are returned.
Not covered: the network itself, which onnxruntime runs (sample.py).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from kohort.errors import ConfigurationError, RefusedError
from kohort.files import read_capped
from kohort.frozen import FrozenModel
from kohort.layout import FILE_CAP_BYTES, SUMS, TEXT_CAP_BYTES, parse_sums

FOLDER = "models/"
UNLABELLED = "unlabelled"  # of a model that learned of several labels and knows none
FAMILIES = ("gan", "wgan", "glow")  # in the order in which one is chosen
CARD_CAP_BYTES = 1 << 20
NUMBERS_CAP = 1 << 26  # normal numbers for one picture


class Input(FrozenModel):
    """One input of the graph: float32 [N, *shape], normal numbers."""

    name: str = Field(pattern=r"^[a-z0-9.]{1,64}$")
    shape: tuple[int, ...] = Field(min_length=1, max_length=3)


class Card(FrozenModel):
    """The content of models/NAME.json.

    `architecture`: the plan's sizes of the network. `tensors`: the prefix of the tensors in
    NAME.safetensors that the graph holds. `temperature`: the standard deviation of its inputs.
    The graph's output is float32 [N, planes, size_px, size_px], from -1 (black) to 1 (white). With
    `mask` its last plane is a mask, where it is above 0. `label`: the folder of what is drawn.
    """

    format: Literal["kohort-model/1"] = "kohort-model/1"
    family: str = Field(pattern=r"^[a-z]{1,16}$")
    architecture: dict[str, int | str]
    tensors: str
    opset: int = Field(ge=1, le=1000)
    inputs: tuple[Input, ...] = Field(min_length=1, max_length=64)
    temperature: float = Field(ge=0, le=10)
    planes: int = Field(ge=1, le=4)
    size_px: int = Field(ge=8, le=4096)
    mask: bool
    label: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")

    @property
    def channels(self) -> int:
        """Channels of the picture."""
        return self.planes - 1 if self.mask else self.planes

    @property
    def numbers(self) -> int:
        """How many normal numbers one picture takes."""
        return sum(math.prod(one.shape) for one in self.inputs)


@dataclass(frozen=True)
class Model:
    """A model that can be drawn from: its name, its card, its ONNX file and that file's SHA-256."""

    name: str
    card: Card
    onnx: bytes
    digest: str


def read_model(release: Path, name: str | None = None) -> Model:
    """Return a model of a verified release: the one named, or the first of gan, wgan and glow.

    Raises ConfigurationError where there is no such model, RefusedError for files that are not
    those of SHA256SUMS or that a release does not have.
    """
    digests = parse_sums(read_capped(release / SUMS, TEXT_CAP_BYTES))
    name = _choose(digests, name)
    card = _read_card(release, digests, f"{FOLDER}{name}.json")
    file = f"{FOLDER}{name}.onnx"
    onnx = read_signed(release, digests, file, FILE_CAP_BYTES)
    return Model(name, card, onnx, digests[file])


def read_signed(release: Path, digests: dict[str, str], name: str, max_bytes: int) -> bytes:
    """Return the bytes of a file that are those of `digests`; raises RefusedError for others."""
    if name not in digests:
        raise RefusedError(f"{name}: not listed in {SUMS}")
    data = read_capped(release / name, max_bytes)
    got = hashlib.sha256(data).hexdigest()
    if got != digests[name]:
        raise RefusedError(
            f"{name}: altered: SHA-256 is {got[:16]}..., signed was {digests[name][:16]}..."
        )
    return data


def _choose(digests: dict[str, str], name: str | None) -> str:
    """The model's name; raises ConfigurationError where the release has none such."""
    found = [family for family in FAMILIES if f"{FOLDER}{family}.onnx" in digests]
    if not found:
        raise ConfigurationError(
            "this release holds no model to draw from",
            hint="its plan releases none (release.models), or it is of an older kohort",
        )
    if name is None:
        return found[0]
    if name not in found:
        raise ConfigurationError(
            f"model {name}: this release holds {', '.join(found)}",
            hint=f"--model {found[0]}",
        )
    return name


def _read_card(release: Path, digests: dict[str, str], name: str) -> Card:
    """The card of a model."""
    data = read_signed(release, digests, name, CARD_CAP_BYTES)
    try:
        card = Card.model_validate_json(data)
    except ValidationError as error:
        raise RefusedError(
            f"{name}: {error.error_count()} fields are not as a release has them",
            hint="a newer kohort may know this format",
        ) from error
    positive = all(side >= 1 for one in card.inputs for side in one.shape)
    if not positive or card.numbers > NUMBERS_CAP or card.channels not in (1, 3):
        raise RefusedError(f"{name}: inputs or channels of a size that no release has")
    return card
