"""Feature networks that others trained, from a local file whose SHA-256 a configuration pins.

In: `LocalWeights`, the file and its SHA-256.
Out: `Texture`, VGG-19 up to conv1_2, [N, 3, H, W] → [N, 64, H, W];
     `Content`, ResNet-50 without its head, [N, 3, H, W] → unit vectors [N, 2048].
Guarantees: safetensors alone, a size cap, the digest checked before parsing, nothing downloaded.
Not covered: use in a study. Images are in [-1, 1] without ImageNet's moments, as the paper's code
has it (Jeon et al. 2022). Names of tensors are torchvision's.
"""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from common.config import FrozenModel
from common.errors import ConfigurationError, RefusedError
from common.storage.files import read_capped
from common.wire.tensors import Arrays, loads

WEIGHTS_CAP_BYTES = 1 << 30
HINT = (
    "give the file and SHA-256 of one safetensors file with torchvision's names of tensors "
    "in the configuration"
)


class LocalWeights(FrozenModel):
    """A safetensors file on this machine, pinned."""

    file: Path
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    def read(self) -> Arrays:
        """The tensors of the pinned file; raises ConfigurationError before parsing if it is
        missing, large or another.
        """
        if not self.file.is_file():
            raise ConfigurationError(f"{self.file}: no such file; expected weights", hint=HINT)
        try:
            data = read_capped(self.file, WEIGHTS_CAP_BYTES)
        except RefusedError as error:
            raise ConfigurationError(str(error), hint=HINT) from error
        found = hashlib.sha256(data).hexdigest()
        if found != self.sha256:
            message = f"{self.file}: SHA-256 is {found[:12]}..., expected {self.sha256[:12]}..."
            raise ConfigurationError(message, hint=HINT)
        return loads(data, max_bytes=WEIGHTS_CAP_BYTES, where=str(self.file))


class PaperFeatures(FrozenModel):
    """The configuration of parity with the paper: which two files."""

    vgg19: LocalWeights
    moco_v2: LocalWeights


class Texture(nn.Module):
    """VGG-19 up to and with the ReLU of conv1_2 (39 k parameters; the rest of the network is never
    run).
    """

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        self.features = nn.ModuleDict(
            {
                "0": nn.Conv2d(3, channels, 3, padding=1),
                "2": nn.Conv2d(channels, channels, 3, padding=1),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.features["0"](x), inplace=True)
        return F.relu(self.features["2"](x), inplace=True)


class Content(nn.Module):
    """Unit vectors [N, D] of a ResNet: its global average before the head.

    `network` is taken over and folded.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        network.fc = nn.Identity()
        self.network = fold_batch_norms(network)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.network(x), dim=1)


def load_texture(weights: LocalWeights) -> Texture:
    """VGG-19's first two convolutions; raises ConfigurationError for a missing, wrong or unfitting
    file.
    """
    texture = Texture()
    given = weights.read()
    _fill(
        texture,
        {name: value for name, value in given.items() if name in dict(texture.named_parameters())},
        weights,
    )
    return texture.eval().requires_grad_(False)


def load_content(weights: LocalWeights) -> Content:
    """The MoCo-v2 ResNet-50; its head (`fc.`), if the file has one, is left out.

    Raises ConfigurationError as above.
    """
    from torchvision.models import resnet50  # takes seconds, and only parity needs it

    network = resnet50(weights=None)
    given = weights.read()
    network.fc = nn.Identity()
    _fill(
        network,
        {name: value for name, value in given.items() if not name.startswith("fc.")},
        weights,
    )
    return Content(network.eval()).requires_grad_(False)


def fold_batch_norms(network: nn.Module) -> nn.Module:
    """`network` in evaluation mode with each BatchNorm2d folded into the convolution declared just
    before it.

    Holds for torchvision's ResNets, whose modules stand in the order of use. Raises
    ConfigurationError on a leftover.
    """
    network.eval()
    for block in network.modules():
        names = list(block._modules)
        for conv_name, norm_name in itertools.pairwise(names):
            conv = block._modules[conv_name]
            norm = block._modules[norm_name]
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                block._modules[conv_name] = fuse_conv_bn_eval(conv, norm)
                block._modules[norm_name] = nn.Identity()
    if any(isinstance(part, nn.BatchNorm2d) for part in network.modules()):
        raise ConfigurationError(
            "external features: a batch norm without its convolution; expected a ResNet"
        )
    return network


def _fill(network: nn.Module, given: Arrays, weights: LocalWeights) -> None:
    """Copies the arrays into the network's state, all or none."""
    own = {
        name: value
        for name, value in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    given = {
        name: value for name, value in given.items() if not name.endswith("num_batches_tracked")
    }
    wrong = sorted(own.keys() ^ given.keys())
    wrong += sorted(
        name for name in own.keys() & given.keys() if tuple(own[name].shape) != given[name].shape
    )
    wrong += sorted(name for name, value in given.items() if not np.isfinite(value).all())
    if wrong:
        raise ConfigurationError(
            f"{weights.file}: tensors do not fit this network: {', '.join(wrong[:3])}", hint=HINT
        )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(torch.from_numpy(given[name]))
