"""What looks at images when two sets of them are compared: one interface, two kinds behind it.

In: uint8 images [N, H, W, C]. Out: features float64 [N, D].
  `Texture`  random convolutions of a fixed seed: nothing to download, no training set favoured; sees colour and texture, not
             anatomy; its numbers compare with nobody else's
  `Network`  a torchvision architecture with weights from a local safetensors file of a stated SHA-256 (inception_v3: the
             customary FID and KID up to the weights and the resizing)
Guaranteed: nothing is downloaded, no code is loaded from a file, weights that do not fit are refused. Not: where weights come
from (torchvision's own .pth files have to be converted to safetensors on a machine that trusts them).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from common.arrays import Images
from common.errors import ConfigurationError, RefusedError
from common.storage.files import read_capped
from common.wire import tensors

FEATURE_SEED, SCALES = 20_230_310, 3
WEIGHTS_CAP_BYTES = 1 << 30
AT_ONCE = 32
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ARCHITECTURES = {  # name: (input size in pixels, attribute that holds the classifier)
    "inception_v3": (299, "fc"),
    "resnet18": (224, "fc"),
    "resnet50": (224, "fc"),
    "densenet121": (224, "classifier"),
}


class Extractor(Protocol):
    """`name` stands in the report; `standardised`: whether each feature is scaled by the reference set before it is compared."""

    @property
    def name(self) -> str: ...

    @property
    def standardised(self) -> bool: ...

    def features(self, images: Images) -> NDArray[np.float64]:
        """Return features [N, D] of uint8 images [N, H, W, C]."""
        ...


@dataclass(frozen=True)
class Texture:
    """Fixed-seed 5×5 convolutions at three scales, rectified; mean and deviation over the picture: D = 6·`channels`."""

    channels: int = 48
    standardised: bool = True

    @property
    def name(self) -> str:
        return f"{6 * self.channels} fixed-seed texture features"

    def features(self, images: Images) -> NDArray[np.float64]:
        generator = torch.Generator().manual_seed(FEATURE_SEED)
        x = (
            torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
        )  # [N, C, H, W]
        filters = torch.randn(self.channels, x.shape[1], 5, 5, generator=generator)
        filters = filters / filters.flatten(1).norm(dim=1)[:, None, None, None]
        parts = []
        with torch.no_grad():
            for _ in range(SCALES):
                y = torch.relu(F.conv2d(x, filters))
                parts += [y.mean(dim=(2, 3)), y.std(dim=(2, 3))]
                x = F.avg_pool2d(x, 2)
        return torch.cat(parts, dim=1).double().numpy()


@dataclass(frozen=True)
class Network:
    """The last features before the classifier of a network that was trained elsewhere."""

    name: str
    network: nn.Module
    input_px: int
    standardised: bool = False

    def features(self, images: Images) -> NDArray[np.float64]:
        mean, deviation = (
            torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_DEVIATION)
        )
        parts = []
        with torch.no_grad():
            for start in range(0, len(images), AT_ONCE):
                x = (
                    torch.from_numpy(np.ascontiguousarray(images[start : start + AT_ONCE]))
                    .permute(0, 3, 1, 2)
                    .float()
                )
                x = F.interpolate(
                    _coloured(x) / 255, self.input_px, mode="bilinear", antialias=True
                )
                parts.append(self.network((x - mean) / deviation).double().numpy())
        found: NDArray[np.float64] = np.concatenate(parts)
        return found


def load_network(architecture: str, weights: Path, sha256: str) -> Network:
    """Return the network `architecture` with the weights in a safetensors file.

    Raises ConfigurationError (unknown architecture, no file), RefusedError (another SHA-256, tensors that do not fit).
    """
    if architecture not in ARCHITECTURES:
        raise ConfigurationError(
            f"features: unknown architecture {architecture!r}, expected one of {list(ARCHITECTURES)}"
        )
    if not weights.is_file():
        raise ConfigurationError(
            f"{weights}: no such file", hint="give a safetensors file of the network's weights"
        )
    data = read_capped(weights, WEIGHTS_CAP_BYTES)
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise RefusedError(f"{weights}: SHA-256 is {found[:12]}..., expected {sha256[:12]}...")
    input_px, head = ARCHITECTURES[architecture]
    network = _headless(architecture, head)
    given = tensors.loads(data, max_bytes=WEIGHTS_CAP_BYTES, where=str(weights))
    unused = (f"{head}.", "AuxLogits.")
    _fill(
        network,
        {name: array for name, array in given.items() if not name.startswith(unused)},
        weights,
    )
    return Network(f"{architecture} ({found[:12]})", network.eval(), input_px)


def _headless(architecture: str, head: str) -> nn.Module:
    """The architecture without classifier, weights not yet loaded."""
    from torchvision.models import get_model  # a slow import that only this path needs

    options: dict[str, Any] = {"weights": None}
    if architecture == "inception_v3":
        options |= {"aux_logits": False, "init_weights": False, "transform_input": True}
    network: nn.Module = get_model(architecture, **options)
    setattr(network, head, nn.Identity())
    return network


def _fill(network: nn.Module, given: tensors.Arrays, weights: Path) -> None:
    """Every tensor of the network from the file; running counters of steps may be missing."""
    own = {
        name: t
        for name, t in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    given = {
        name: array for name, array in given.items() if not name.endswith("num_batches_tracked")
    }
    wrong = sorted(own.keys() ^ given.keys())
    wrong += [
        n
        for n in own.keys() & given.keys()
        if own[n].shape != given[n].shape or not np.isfinite(given[n]).all()
    ]
    if wrong:
        raise RefusedError(
            f"{weights}: {len(wrong)} tensors are missing, unknown, misshapen or not finite: {wrong[:3]}"
        )
    for name, tensor in own.items():
        tensor.copy_(torch.from_numpy(given[name]))


def _coloured(x: Tensor) -> Tensor:
    """Three channels of [N, 1 or 3, H, W]."""
    if x.shape[1] not in (1, 3):
        raise ValueError(f"features: expected one or three channels, got {x.shape[1]}")
    return x.expand(-1, 3, -1, -1)
