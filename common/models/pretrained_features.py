"""What a network that was trained on everyday photographs sees in an image.

In: images of any size, grey or in colour. Out: pooled features, or maps.
Guarantees:
  - the weights are the file of this package with the SHA-256 `SHA256`; another is refused before it
    is parsed;
  - the network is frozen; features of an image do not depend on its company;
  - in float64, features of two machines agree to about ten digits.
Not covered: whether what it sees matters to a physician. No medical image trained it.
The weights' origin and licence: pretrained/CARD.md.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.arrays import Floats, Images
from common.errors import RefusedError
from common.models.efficientnet import STAGES, EfficientNetLite0
from common.models.images import to_unit
from common.wire import tensors

FILE = "efficientnet-lite0.safetensors"
SHA256 = "08a2b0fd0fa4bcdc1ca26273f776359c06cd88c933c1cb39bcc6fd908b44b9f4"
SIZE_CAP_BYTES = 8_000_000
INPUT_PX = 96
CONTENT_DEPTH = 5  # of the seven stages: maps of 6 by 6, 112 channels
DIMENSION = STAGES[CONTENT_DEPTH - 1].channels
MID_DEPTHS = (2, 3)  # maps of 24 by 24 and of 12 by 12
AT_ONCE = 4  # what fits into a processor's cache
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)
CPU = torch.device("cpu")


class PretrainedFeatures(nn.Module):
    """The frozen network with all that comes before it: resizing, colour, normalisation.

    Gradients pass to the images, not to the weights.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, network: EfficientNetLite0) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor(IMAGENET_DEVIATION).view(1, 3, 1, 1))
        self.requires_grad_(False)
        self.eval()

    def pooled(self, images: Tensor, depth: int = CONTENT_DEPTH) -> Tensor:
        """Return the mean over all positions of the maps at a depth, [N, `DIMENSION`] by default.

        `images` is float [N, 1 or 3, H, W] in [-1, 1]; they are resized to `INPUT_PX`. Raises
        ValueError for other channels.
        """
        maps: list[Tensor] = self.network(self._prepare(images), depth)
        return maps[-1].mean(dim=(2, 3))

    def maps(self, images: Tensor, depths: tuple[int, ...] = MID_DEPTHS) -> list[Tensor]:
        """Return the maps [N, C, side, side] at depths 1 to 7 of images as in `pooled`."""
        found = self.network(self._prepare(images), max(depths))
        return [found[depth - 1] for depth in depths]

    def of_images(self, images: Images, depth: int = CONTENT_DEPTH) -> Floats:
        """Return pooled features float64 [N, D] of uint8 images [N, H, W, 1 or 3].

        They are computed in blocks, without gradients, in the network's own precision.
        """
        parts = [np.zeros((0, STAGES[depth - 1].channels))]
        with torch.no_grad():
            for start in range(0, len(images), AT_ONCE):
                block = to_unit(images[start : start + AT_ONCE], self.mean.device)
                parts.append(self.pooled(block, depth).double().cpu().numpy())
        return np.concatenate(parts)

    def _prepare(self, images: Tensor) -> Tensor:
        """Three channels of `INPUT_PX`, normalised as ImageNet's images."""
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"features: expected [N, 1 or 3, H, W], got {list(images.shape)} of an image"
            )
        x = images.to(self.mean.dtype)
        if x.shape[2:] != (INPUT_PX, INPUT_PX):
            x = F.interpolate(x, (INPUT_PX, INPUT_PX), mode="bilinear", antialias=True)
        x = (x.expand(-1, 3, -1, -1) + 1) / 2
        return (x - self.mean) / self.deviation


def load_features(
    device: torch.device = CPU, *, dtype: torch.dtype = torch.float32
) -> PretrainedFeatures:
    """Return the frozen network on a device; `dtype` float64 gives equal figures on all machines.

    The file is read once a process. Raises RefusedError for a file of another SHA-256.
    """
    with torch.device("meta"):  # no random weights are drawn
        network = EfficientNetLite0()
    stored = {name: torch.from_numpy(array.copy()) for name, array in _read_weights().items()}
    network.load_state_dict(stored, assign=True)
    return PretrainedFeatures(network).to(device, dtype)


@cache
def _read_weights() -> tensors.Arrays:
    """The weights as float32, read once."""
    with files("common.models").joinpath("pretrained", FILE).open("rb") as file:
        data = file.read(SIZE_CAP_BYTES + 1)
    return check_weights(data)


def check_weights(data: bytes) -> tensors.Arrays:
    """Return the float32 weights in the bytes of the pinned file.

    Raises RefusedError, before anything is parsed, for other bytes.
    """
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256:
        raise RefusedError(
            f"{FILE}: SHA-256 is {found[:12]}..., expected {SHA256[:12]}...",
            hint="install kohort again: this file is part of the package",
        )
    stored = tensors.loads(data, max_bytes=SIZE_CAP_BYTES, where=FILE)
    return {name: array.astype(np.float32) for name, array in stored.items()}
