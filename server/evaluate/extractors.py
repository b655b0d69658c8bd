"""The features by which two sets of images are compared.

In: uint8 images [N, H, W, C].
Out: features float64 [N, D], by `Pretrained`, `Network` or `Texture`.
Guarantees: nothing is downloaded, no code is loaded from a file, weights that do not fit are
refused.
Not covered: where weights come from. torchvision's own .pth files must be converted to safetensors
on a machine that trusts them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.arrays import Floats, Images
from common.errors import ConfigurationError, RefusedError
from common.models.images import to_device, to_unit
from common.models.pretrained_features import DIMENSION, load_features
from common.storage.files import read_capped
from common.wire import tensors

FEATURE_SEED = 20_230_310
SCALES = 3
WEIGHTS_CAP_BYTES = 1 << 30
AT_ONCE = 32
TEXTURE_VALUES = 1 << 25  # of one batch after the first filters: 256 MiB
CPU = torch.device("cpu")
FEATURE_UNIT = 4.0  # near the root mean square on public photographs (3.7) and radiographs (3.1)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)
COUNTER = "num_batches_tracked"
ARCHITECTURES = {  # name: (input size in pixels, attribute that holds the classifier)
    "inception_v3": (299, "fc"),
    "resnet18": (224, "fc"),
    "resnet50": (224, "fc"),
    "densenet121": (224, "classifier"),
}


class Extractor(Protocol):
    """What turns images into features."""

    @property
    def name(self) -> str:
        """What the report calls it."""
        ...

    @property
    def standardised(self) -> bool:
        """Whether each feature is scaled by the reference set before it is compared."""
        ...

    def features(self, images: Images) -> Floats:
        """Return features [N, D] of uint8 images [N, H, W, C]."""
        ...


@dataclass(frozen=True)
class Pretrained:
    """The network that comes with the package, in units of `FEATURE_UNIT`: D = 112.

    It is computed in float64, so that two processors agree in all digits of a report.
    """

    standardised: bool = False
    device: torch.device = CPU

    @property
    def name(self) -> str:
        return f"{DIMENSION} features of EfficientNet-Lite0, trained on ImageNet"

    def features(self, images: Images) -> Floats:
        network = load_features(self.device, dtype=torch.float64)
        return network.of_images(images) / FEATURE_UNIT


@dataclass(frozen=True)
class Texture:
    """Rectified random 5×5 convolutions of a fixed seed, at three scales: an attacker's view.

    Each gives its mean and deviation over the image: D = 6·`channels`. They see colour and texture,
    not anatomy, so no claim of quality rests on them. All is computed in float64, so that
    what processors of two kinds round differently is far below the digits of a report.
    """

    channels: int = 48
    standardised: bool = True
    device: torch.device = CPU

    @property
    def name(self) -> str:
        return f"{6 * self.channels} fixed-seed texture features"

    def features(self, images: Images) -> Floats:
        filters = torch.from_numpy(_filters(self.channels, images.shape[3])).to(self.device)
        count = max(1, TEXTURE_VALUES // (self.channels * images[0, ..., 0].size))
        rows: list[Tensor] = []
        with torch.no_grad():
            for start in range(0, len(images), count):
                x = to_unit(images[start : start + count], self.device).double()
                rows.append(_rectified_moments(x, filters))
        return torch.cat(rows).cpu().numpy()


@dataclass(frozen=True)
class Network:
    """The last features before the classifier of a network that was trained elsewhere.

    inception_v3 gives the customary FID and KID, up to weights and resizing.
    """

    name: str
    network: nn.Module
    input_px: int
    standardised: bool = False

    def features(self, images: Images) -> Floats:
        device = _device_of(self.network)
        mean = torch.tensor(IMAGENET_MEAN, device=device).view(1, 3, 1, 1)
        deviation = torch.tensor(IMAGENET_DEVIATION, device=device).view(1, 3, 1, 1)
        parts = []
        with torch.no_grad():
            for start in range(0, len(images), AT_ONCE):
                pixels = to_device(images[start : start + AT_ONCE], device).float()
                x = _to_colour(pixels) / 255
                x = F.interpolate(x, self.input_px, mode="bilinear", antialias=True)
                parts.append(self.network((x - mean) / deviation).double().cpu().numpy())
        found: Floats = np.concatenate(parts)
        return found


def load_network(
    architecture: str, weights: Path, sha256: str, device: torch.device = CPU
) -> Network:
    """Return the network `architecture` on a device, with the weights in a safetensors file.

    Raises ConfigurationError for an unknown architecture or a missing file. Raises RefusedError for
    another SHA-256 and for tensors that do not fit.
    """
    # find and check the file
    if architecture not in ARCHITECTURES:
        raise ConfigurationError(
            f"features: unknown architecture {architecture!r}, "
            f"expected one of {list(ARCHITECTURES)}"
        )
    if not weights.is_file():
        raise ConfigurationError(
            f"{weights}: no such file", hint="give a safetensors file of the network's weights"
        )
    data = read_capped(weights, WEIGHTS_CAP_BYTES)
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise RefusedError(f"{weights}: SHA-256 is {found[:12]}..., expected {sha256[:12]}...")

    # build the network without its classifier, and fill it
    input_px, head = ARCHITECTURES[architecture]
    network = _build_headless(architecture, head)
    given = tensors.loads(data, max_bytes=WEIGHTS_CAP_BYTES, where=str(weights))
    _fill(network, _drop(given, prefixes=(f"{head}.", "AuxLogits.")), weights)
    return Network(f"{architecture} ({found[:12]})", network.to(device).eval(), input_px)


def _build_headless(architecture: str, head: str) -> nn.Module:
    """The architecture without classifier, weights not yet loaded."""
    from torchvision.models import get_model  # a slow import that only this path needs

    options: dict[str, Any] = {"weights": None}
    if architecture == "inception_v3":
        options |= {"aux_logits": False, "init_weights": False, "transform_input": True}
    network: nn.Module = get_model(architecture, **options)
    setattr(network, head, nn.Identity())
    return network


def _drop(given: tensors.Arrays, prefixes: tuple[str, ...]) -> tensors.Arrays:
    """The tensors of the network itself: no classifier, no counters of steps."""
    kept = {}
    for name, array in given.items():
        if not name.startswith(prefixes) and not name.endswith(COUNTER):
            kept[name] = array
    return kept


def _fill(network: nn.Module, given: tensors.Arrays, weights: Path) -> None:
    """Copy every tensor of the network from the file; counters of steps may be missing.

    Raises RefusedError, before anything is copied, for tensors that do not fit.
    """
    # find what does not fit
    own = {}
    for name, tensor in network.state_dict().items():
        if not name.endswith(COUNTER):
            own[name] = tensor
    wrong = sorted(own.keys() ^ given.keys())
    for name in own.keys() & given.keys():
        if own[name].shape != given[name].shape or not np.isfinite(given[name]).all():
            wrong.append(name)
    if wrong:
        raise RefusedError(
            f"{weights}: {len(wrong)} tensors are missing, unknown, misshapen or not finite: "
            f"{wrong[:3]}"
        )

    # copy
    for name, tensor in own.items():
        tensor.copy_(torch.from_numpy(given[name]))


def _filters(channels: int, inputs: int) -> Floats:
    """Filters float64 [channels, inputs, 5, 5] of norm 1, the same on every processor and device.

    torch.randn would give these up to the last bits of float32, which differ between processors.
    """
    # uniform numbers are exact; torch draws the last sixteen anew where some are left over
    count = channels * inputs * 25
    random = torch.Generator().manual_seed(FEATURE_SEED)
    uniform = torch.rand(count, generator=random).double().numpy()
    values = np.empty(count)
    whole = count // 16 * 16
    values[:whole] = _normal(uniform[:whole])
    if whole < count:
        values[-16:] = _normal(torch.rand(16, generator=random).double().numpy())
    filters = values.reshape(channels, inputs, 5, 5)
    unit: Floats = filters / np.sqrt((filters**2).sum(axis=(1, 2, 3), keepdims=True))
    return unit


def _normal(uniform: Floats) -> Floats:
    """Normal numbers of uniform ones, by Box and Muller; eight pairs at a time, as in torch."""
    pairs = uniform.reshape(-1, 2, 8)
    radius = np.sqrt(-2 * np.log(1 - pairs[:, 0]))
    angle = 2 * np.pi * pairs[:, 1]
    normal: Floats = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return normal.reshape(-1)


def _rectified_moments(x: Tensor, filters: Tensor) -> Tensor:
    """Mean and deviation of each filter's rectified answer at each scale, [N, 6·filters]."""
    parts: list[Tensor] = []
    for _ in range(SCALES):
        y = torch.relu(F.conv2d(x, filters))
        parts += [y.mean(dim=(2, 3)), y.std(dim=(2, 3))]
        x = F.avg_pool2d(x, 2)
    return torch.cat(parts, dim=1)


def _device_of(network: nn.Module) -> torch.device:
    """The device of a network's weights; the CPU where it has none."""
    return next((parameter.device for parameter in network.parameters()), CPU)


def _to_colour(x: Tensor) -> Tensor:
    """Three channels of [N, 1 or 3, H, W]."""
    if x.shape[1] not in (1, 3):
        raise ValueError(f"features: expected one or three channels, got {x.shape[1]}")
    return x.expand(-1, 3, -1, -1)
