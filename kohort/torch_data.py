"""A release as a PyTorch data set (extra [torch]); only `Release.to_torch` imports this module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import Dataset

from kohort.picture import read_picture
from kohort.table import Row


class TorchImages(Dataset[tuple[Any, ...]]):
    """Images and label indices, or images, label indices and masks where the release is of pairs.

    `classes` are the labels in the manifest's order, `targets` the label index of each image. It
    holds names and digests, no pixels: a worker process gets it by fork or by spawn.
    """

    def __init__(
        self,
        folder: Path,
        rows: Sequence[Row],
        labels: Sequence[str],
        transform: Callable[..., Any] | None = None,
    ) -> None:
        self.folder = folder.absolute()
        self.rows = tuple(rows)
        self.classes = list(labels)
        self.class_to_idx = {label: index for index, label in enumerate(labels)}
        self.targets = [self.class_to_idx[row.label] for row in self.rows]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        row = self.rows[index]
        target = self.targets[index]
        image = read_picture(self.folder, row.file, row.digest)
        if not row.mask:
            return self._image(image), target
        mask = read_picture(self.folder, row.mask, row.mask_digest)
        if self.transform is not None:
            image, mask = self.transform(image, mask)
            return image, target, mask
        return _pixels(image), target, _pixels(mask)

    def _image(self, image: Image) -> Any:
        """The image as the transform makes it, or as a tensor."""
        if self.transform is not None:
            return self.transform(image)
        return _pixels(image)


def _pixels(picture: Image) -> Tensor:
    """A picture as float32 [C, H, W] from 0 to 1."""
    pixels = np.asarray(picture, np.float32) / 255
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())
