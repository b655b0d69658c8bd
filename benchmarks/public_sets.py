"""Public images as the benchmarks read them: framed, with whose each is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.ingest.images import frame_image
from client.ingest.quarantine import Unusable
from common.arrays import Images


def read_set(
    data: Path, name: str, size_px: int, most: int | None = None
) -> tuple[Images, NDArray[np.str_]]:
    """Return the first `most` images of a set, framed, uint8 [N, size_px, size_px, C], and people.

    Photographs in colour are framed by their field of view. Without a patient an image is a person
    of its own. Images that cannot be framed are left out.
    """
    with np.load(data / f"{name}.npz", allow_pickle=False) as arrays:
        images = arrays["images"][:most]
        people = [f"{name} {place}" for place in range(len(images))]
        if "patient" in arrays:
            people = [str(one) or people[i] for i, one in enumerate(arrays["patient"][:most])]
    if images.ndim == 3:
        images = images[..., None]
    framed = []
    kept = []
    for place, pixels in enumerate(images):
        channels = pixels.shape[2]
        try:
            framed.append(frame_image(pixels, size_px, channels, field_of_view=channels == 3))
        except Unusable:
            continue
        kept.append(people[place])
    return np.stack(framed), np.array(kept)


def flip(images: Images, number: int) -> Images:
    """The images in one of eight flips and quarter turns: pictures of as many other people."""
    if number >= 4:
        images = images.swapaxes(1, 2)
    if number % 4 >= 2:
        images = images[:, ::-1]
    if number % 2:
        images = images[:, :, ::-1]
    return images
