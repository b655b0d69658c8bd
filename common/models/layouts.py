"""What each network is made of, layer by layer: tensors, multiplications, memory. Imports no torch.

In: the sizes that a plan states. Out: `Layer`s, in the order of a forward pass of one item.
Guarantees: names and shapes are those of the networks (tests/common/models/test_layouts.py builds
them all).
Not covered: what a network computes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from common.models.sizes import (
    KOSSEN,
    LOOK,
    LOOK_NUMBERS,
    MASK_FIRST,
    encoded_px,
    generator_channels,
    map_sides,
    pair_halvings,
    style_count,
)

Shapes = dict[str, tuple[int, ...]]
PAIR_PLANES = 2
MAPPING_LAYERS = 4


@dataclass(frozen=True)
class Layer:
    """A layer of a network: its tensors by name, and what one item costs in it.

    `products`: multiply-adds of a forward pass. `kept`: numbers that the backward pass needs.
    """

    shapes: Shapes
    products: int = 0
    kept: int = 0


def shapes_of(layers: Iterable[Layer]) -> Shapes:
    """Return all tensors' shapes by name."""
    found: Shapes = {}
    for layer in layers:
        found |= layer.shapes
    return found


def weight_count(layers: Iterable[Layer]) -> int:
    """Return how many numbers the tensors have."""
    return sum(math.prod(shape) for shape in shapes_of(layers).values())


def products_of(layers: Iterable[Layer]) -> int:
    """Return the multiply-adds of one item's forward pass."""
    return sum(layer.products for layer in layers)


def kept_by(layers: Iterable[Layer]) -> int:
    """Return how many numbers of one item a backward pass needs."""
    return sum(layer.kept for layer in layers)


def generator(size_px: int, channels: int, width: int, latent: int) -> tuple[Layer, ...]:
    """Return the layers of the style-based generator."""
    sides = map_sides(size_px)
    wide = generator_channels(size_px, width)
    layers = [_linear(f"mapping.layers.{i}", latent, latent) for i in range(MAPPING_LAYERS)]
    layers.append(Layer({"constant": (1, wide[0], sides[0], sides[0])}))
    layers.append(_styled("first", wide[0], wide[0], latent, sides[0], sides[0]))
    for i, (before, after) in enumerate(itertools.pairwise(wide)):
        layers.append(_styled(f"up.{i}", before, after, latent, sides[i], sides[i + 1]))
        layers.append(_styled(f"same.{i}", after, after, latent, sides[i + 1], sides[i + 1]))
    for i, (cin, side) in enumerate(zip(wide, sides, strict=True)):
        layers.append(_to_image(f"to_image.{i}", cin, channels, latent, side))
    layers.append(Layer({"image_bias": (channels,)}))
    return tuple(layers)


def critic(size_px: int, channels: int, width: int) -> tuple[Layer, ...]:
    """Return the layers of the style-based generator's critic."""
    sides = map_sides(size_px)
    base = max(1, 3 * width // 4)
    wide = [2 * channels] + [min(base * 2**i, 8 * base) for i in range(len(sides) - 1)]
    layers = []
    for i, (cin, cout) in enumerate(itertools.pairwise(wide)):
        side = size_px >> (i + 1)
        layers.append(_convolution(f"blocks.{i}.0", cin, cout, 4, side, 2 * side))
        if i:
            layers.append(_norm(f"blocks.{i}.1", cout, side))
        layers.append(_activation(cout, side))
    layers.append(_convolution("score", wide[-1], 1, 4, sides[0] - 3, sides[0]))
    return tuple(layers)


def encoder(size_px: int, channels: int, width: int, latent: int) -> tuple[Layer, ...]:
    """Return the layers of the inversion encoder."""
    styles = style_count(size_px)
    read_px = encoded_px(size_px)
    sides = map_sides(read_px)
    depth = len(sides) - 1
    wide = [2 * channels] + [min(width * 2**i, 4 * width) for i in range(depth)]
    layers = []
    for i, (cin, cout) in enumerate(itertools.pairwise(wide)):
        side = read_px >> (i + 1)
        layers.append(_convolution(f"trunk.{i}.0", cin, cout, 4, side, 2 * side))
        place = 1
        if i:
            layers.append(_norm(f"trunk.{i}.1", cout, side))
            place = 2
        layers.append(_activation(cout, side))
        if i in (1, 2):
            layers.append(_convolution(f"trunk.{i}.{place + 1}", cout, cout, 3, side, side))
            layers.append(_activation(cout, side))
    hidden = 6 * width
    layers.append(_linear("project.1", wide[-1] * sides[0] ** 2, hidden))
    layers.append(_linear("shared", hidden, latent))
    layers.append(_linear("detail", hidden, styles * latent))
    layers.append(Layer({"start": (styles, latent)}))
    return tuple(layers)


# --- common/models/glow.py ------------------------------------------------------------------------


def flow(
    size_px: int, channels: int, levels: int, steps_per_level: int, width: int, doublings: int = 0
) -> tuple[Layer, ...]:
    """Return the layers of the flow."""
    layers: list[Layer] = []
    c = channels
    multiple = 2 ** (levels + doublings)
    side = -(-size_px // multiple) * multiple
    for index in reversed(range(doublings)):
        side //= 2
        layers += _doubling(f"doublings.{index}", channels, steps_per_level, width, side)
    for level in range(levels):
        c *= 4
        side //= 2
        for step in range(steps_per_level):
            layers.append(_mixing(f"levels.{level}.mixings.{step}", c, side))
            layers += _coupling(f"levels.{level}.couplings.{step}", c, width, side)
        if level < levels - 1:
            layers.append(_convolution(f"splits.{level}.prior", c // 2, c, 3, side, side))
            layers.append(Layer({}, kept=3 * (c // 2) * side**2))  # the part that leaves
            c //= 2
    top = (c, side, side)
    layers.append(Layer({"top.mean": top, "top.raw_log_scale": top}, kept=2 * math.prod(top)))
    return tuple(layers)


# --- common/models/wgan.py ------------------------------------------------------------------------


def pair_generator(size_px: int, width: int, latent: int, architecture: str) -> tuple[Layer, ...]:
    """Return the layers of the generator of image + mask pairs."""
    levels = pair_halvings(size_px, architecture)
    side = size_px >> levels
    widest = width << (levels - 1)
    layers = [_linear("start", latent, widest * side**2), _norm("layers.0", widest, side)]
    if architecture == KOSSEN:
        return (*layers, *_transposed(width, levels, side))
    ends = _mask_first if architecture == MASK_FIRST else _pair_end
    grown = _upsampling(width, levels, side)
    return (*layers, _activation(widest, side), *grown, *ends(width, levels, size_px))


def pair_critic(size_px: int, width: int, architecture: str) -> tuple[Layer, ...]:
    """Return the layers of the critic of image + mask pairs."""
    levels = pair_halvings(size_px, architecture)
    layers: list[Layer] = []
    place = 0
    before = PAIR_PLANES
    for level in range(levels):
        after = width << level
        side = size_px >> (level + 1)
        layers.append(_convolution(f"layers.{place}", before, after, 4, side, 2 * side))
        place += 1
        if level:
            norm = _norm(f"layers.{place}", after, side)
            layers.append(Layer({}, kept=norm.kept) if architecture == KOSSEN else norm)
            place += 1
        layers.append(_activation(after, side))
        place += 1
        before = after
    last = size_px >> levels
    kernel = last if architecture == KOSSEN else 4
    layers.append(_convolution(f"layers.{place}", before, 1, kernel, last - kernel + 1, last))
    if architecture == MASK_FIRST:
        layers.append(Layer({LOOK: (LOOK_NUMBERS,)}))
    return tuple(layers)


def _upsampling(width: int, levels: int, side: int) -> Iterator[Layer]:
    """The pair generator `small` between its first map and its end."""
    place = 2
    for level in reversed(range(levels)):
        after = width << max(level - 1, 0)
        side *= 2
        yield _convolution(f"layers.{place + 1}", width << level, after, 3, side, side)
        yield _norm(f"layers.{place + 2}", after, side)
        yield _activation(after, side)
        place += 4


def _pair_end(width: int, levels: int, side: int) -> Iterator[Layer]:
    """The pair generator `small` ends with a convolution to image and mask."""
    yield _convolution(f"layers.{2 + 4 * levels}", width, PAIR_PLANES, 3, side, side)


def _mask_first(width: int, _: int, side: int) -> Iterator[Layer]:
    """The pair generator `mask-first` ends with a mask, the image painted on it, and grain."""
    yield _convolution("mask", width, 1, 3, side, side)
    yield _activation(1, side)
    yield Layer({}, products=2 * width * side**3)  # the mean around each pixel
    yield _convolution("paint.0", 1 + width, width, 3, side, side)
    yield _activation(width, side)
    yield _convolution("paint.2", width, width, 3, side, side)
    yield _activation(width, side)
    yield _convolution("paint.4", width, 1, 3, side, side)
    yield _convolution("tone", 4, 1, 1, side, side)
    yield Layer({"grain.weight": (1, 1, 3, 3)}, products=9 * side**2, kept=side**2)


def _transposed(width: int, levels: int, side: int) -> Iterator[Layer]:
    """The pair generator `kossen2022` after its first map; a ReLU keeps the next layer's input."""
    place = 2
    for level in reversed(range(1, levels)):
        after = width << (level - 1)
        yield _transposed_convolution(f"layers.{place}", width << level, after, side)
        side *= 2
        yield _norm(f"layers.{place + 1}", after, side)
        place += 3
    yield _transposed_convolution(f"layers.{place}", width, PAIR_PLANES, side)
    yield _activation(PAIR_PLANES, 2 * side)


# --- layers ---------------------------------------------------------------------------------------


def _linear(name: str, cin: int, cout: int) -> Layer:
    shapes = {f"{name}.weight": (cout, cin), f"{name}.bias": (cout,)}
    return Layer(shapes, products=cin * cout, kept=cin)


def _convolution(name: str, cin: int, cout: int, kernel: int, side: int, side_in: int) -> Layer:
    """A convolution with `side` px a side after it, `side_in` before; backward needs its input."""
    weight = (cout, cin, kernel, kernel)
    shapes = {f"{name}.weight": weight, f"{name}.bias": (cout,)}
    return Layer(shapes, products=math.prod(weight) * side**2, kept=cin * side_in**2)


def _transposed_convolution(name: str, cin: int, cout: int, side_in: int) -> Layer:
    weight = (cin, cout, 4, 4)
    shapes = {f"{name}.weight": weight, f"{name}.bias": (cout,)}
    return Layer(shapes, products=math.prod(weight) * side_in**2, kept=cin * side_in**2)


def _norm(name: str, channels: int, side: int) -> Layer:
    shapes: Shapes = {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}
    return Layer(shapes, kept=channels * side**2)


def _activation(channels: int, side: int) -> Layer:
    return Layer({}, kept=channels * side**2)


def _styled(name: str, cin: int, cout: int, latent: int, side_in: int, side: int) -> Layer:
    """A modulated 3×3 convolution at `side_in`, its upsampling, noise, bias and activation."""
    weight = (cout, cin, 3, 3)
    shapes = _modulated(f"{name}.conv", weight, latent)
    shapes |= {f"{name}.bias": (cout,), f"{name}.noise_strength": ()}
    # its input twice (plain and modulated), the convolution's result, and its own
    kept = 2 * cin * side_in**2 + cout * (side_in**2 + side**2)
    # the convolution, the style, and the gain that demodulates
    products = math.prod(weight) * side_in**2 + cin * latent + cin * cout
    return Layer(shapes, products=products, kept=kept)


def _to_image(name: str, cin: int, channels: int, latent: int, side: int) -> Layer:
    """A modulated 1×1 convolution to the image's channels."""
    weight = (channels, cin, 1, 1)
    shapes = _modulated(name, weight, latent)
    return Layer(shapes, products=math.prod(weight) * side**2 + cin * latent)


def _modulated(name: str, weight: tuple[int, ...], latent: int) -> Shapes:
    cin = weight[1]
    return {
        f"{name}.weight": weight,
        f"{name}.style.weight": (cin, latent),
        f"{name}.style.bias": (cin,),
    }


def _mixing(name: str, channels: int, side: int) -> Layer:
    shapes: Shapes = {f"{name}.bias": (channels,), f"{name}.log_scale": (channels,)}
    shapes[f"{name}.triangles"] = (channels, channels)
    return Layer(shapes, products=channels**2 * side**2, kept=channels * side**2)


def _doubling(name: str, channels: int, steps: int, width: int, side: int) -> Iterator[Layer]:
    """Means and differences, the steps of the differences, and their prior."""
    leaves = 3 * channels
    yield Layer({}, products=16 * channels**2 * side**2, kept=4 * channels * side**2)
    for step in range(steps):
        # the means stay beside the mixing, as channels of the same convolution
        mixing = _mixing(f"{name}.level.mixings.{step}", leaves, side)
        wide = 4 * channels
        yield Layer(mixing.shapes, products=wide**2 * side**2, kept=wide * side**2)
        yield from _coupling(f"{name}.level.couplings.{step}", wide, width, side)
    yield _convolution(f"{name}.split.prior", channels, 2 * leaves, 3, side, side)
    yield Layer({}, kept=3 * leaves * side**2)  # the part that leaves


def _coupling(name: str, channels: int, width: int, side: int) -> Iterator[Layer]:
    yield _convolution(f"{name}.spread", channels // 2, width, 3, side, side)
    yield _convolution(f"{name}.blend", width, width, 1, side, side)
    yield _convolution(f"{name}.gather", width, channels, 3, side, side)
    yield Layer({}, kept=2 * channels * side**2)  # shift, scale, and what they apply to
