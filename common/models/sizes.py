"""Which image sizes each architecture builds, and how often it halves them. Imports no torch."""

from __future__ import annotations

from common.errors import ConfigurationError

# Sides in pixels. A plan takes 32 and more; 16 is for tests and for pretraining at half the size.
IMAGE_SIZES_PX = (16, 32, 64, 96, 128, 256, 512)
SMALL = "small"
KOSSEN = "kossen2022"
MASK_FIRST = "mask-first"
PAIR_SIZES_PX = {
    SMALL: (32, 64, 96, 128, 256),
    KOSSEN: (64, 96, 128, 256),
    MASK_FIRST: (32, 64, 96, 128, 256),
}
HALVED_FROM_PX = 8  # the smallest map is smaller: 4 px, or 6 px of 96
KOSSEN_HALVINGS = 5
# of the style-based generator: it has as many channels as it may at maps of a sixteenth of its size
# and below, four times its width at least
FULL_BELOW = 16
LEAST_FACTOR = 4
ENCODED_PX = 64  # the encoder reads larger images at this size: a code holds no more of them
# `mask-first`: side of the window whose mean features a pixel may know beside its mask
CONTEXT_PX = 9
# `mask-first`: numbers of the critic's look (common/models/pair_look.py), and by prefix the tensors
# of the generator that follow its share and the rest of it, and that its scores leave as they are
LOOK_NUMBERS = 6
LOOK = "look"
FOLLOWS_SHARE = ("mask.bias",)
FOLLOWS_REST = ("tone.",)
KEEPS_PAINT = ("paint.", "tone.", "grain.")


def map_sides(size_px: int) -> tuple[int, ...]:
    """Return the sides of a generator's maps, smallest first: 4, 8, ... or 6, 12, ... to the size.

    Raises ConfigurationError for a size that is not in `IMAGE_SIZES_PX`.
    """
    if size_px not in IMAGE_SIZES_PX:
        raise ConfigurationError(
            f"size_px: expected one of {list_sizes(IMAGE_SIZES_PX)}, got {size_px}",
            hint="change intake.size_px",
        )
    sides = [size_px]
    while sides[0] >= HALVED_FROM_PX:
        sides.insert(0, sides[0] // 2)
    return tuple(sides)


def style_count(size_px: int) -> int:
    """Return L, the style vectors of a W+ code: two for each side of `map_sides`."""
    return 2 * len(map_sides(size_px))


def generator_channels(size_px: int, width: int) -> tuple[int, ...]:
    """Return the channels of the style-based generator's maps, in the order of `map_sides`.

    `width` at full size; it doubles with every halving, up to size_px/16 times the width, or four
    times. So a generator of twice the size and half the width has the same maps below its last one.
    """
    most = width * max(LEAST_FACTOR, size_px // FULL_BELOW)
    return tuple(min(width * size_px // side, most) for side in map_sides(size_px))


def encoded_px(size_px: int) -> int:
    """Return the size at which the encoder reads images of `size_px`."""
    return size_px // max(1, size_px // ENCODED_PX)


def pair_halvings(size_px: int, architecture: str) -> int:
    """Return how often a network of image + mask pairs halves its maps.

    Five times for `kossen2022`, else down to 4 to 8 px. Raises ConfigurationError for another size
    or architecture.
    """
    allowed = PAIR_SIZES_PX.get(architecture)
    if allowed is None:
        raise ConfigurationError(
            f"wgan: expected architecture {' or '.join(PAIR_SIZES_PX)}, got {architecture!r}",
            hint="change models.wgan.architecture",
        )
    if size_px not in allowed:
        raise ConfigurationError(
            f"wgan: {architecture} at {size_px} px: it is built for {list_sizes(allowed)}",
            hint="change intake.size_px, or models.wgan.architecture",
        )
    if architecture == KOSSEN:
        return KOSSEN_HALVINGS
    # as in `map_sides`, but 128 and 256 px end at 8 px
    halvings = len(map_sides(size_px)) - 1
    if size_px > 96:
        halvings -= 1
    return halvings


def list_sizes(sizes: tuple[int, ...]) -> str:
    """Return sizes as words: `32, 64 or 96 px`."""
    return f"{', '.join(str(size) for size in sizes[:-1])} or {sizes[-1]} px"
