"""Synthesis at a smaller size than the generator's own, for the first part of pretraining."""

from __future__ import annotations

from torch import Generator as Draw
from torch import Tensor

from common.models.sizes import map_sides
from common.models.stylegan import Generator, upsample


def synthesis(
    generator: Generator, wplus: Tensor, size_px: int, noise: Draw | None = None
) -> Tensor:
    """Return the image of `wplus` at `size_px`: the generator's own size or a smaller one."""
    if size_px == generator.size_px:
        return generator.synthesis(wplus, noise)
    x = generator.first(generator.constant.expand(len(wplus), -1, -1, -1), wplus[:, 0], noise)
    image: Tensor = generator.to_image[0](x, wplus[:, 1])
    # each block doubles the size; the blocks above `size_px` are left out
    for i in range(map_sides(generator.size_px).index(size_px)):
        doubled = generator.up[i](x, wplus[:, 2 * i + 1], noise)
        x = generator.same[i](doubled, wplus[:, 2 * i + 2], noise)
        image = upsample(image) + generator.to_image[i + 1](x, wplus[:, 2 * i + 3])
    return image + generator.image_bias[None, :, None, None]


def enlarge(image: Tensor, size_px: int) -> Tensor:
    """Return `image` as it is, or doubled to `size_px`."""
    return image if image.shape[-1] == size_px else upsample(image)
