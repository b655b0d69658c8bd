"""The networks that a release draws from, as ONNX graphs: generators, and the flow's decoder.

In: the released tensors by global name, and the plan's sizes.
Out: an ONNX model as bytes. Its inputs are normal numbers, its output `images` is float32
[N, channels, S, S], -1 for black and 1 for white.
Guarantees: the graph holds the released tensors as they are. Of the flow alone it holds the inverse
of a mixing instead of its triangles. The same tensors give the same bytes.
Not covered: what the networks are (common/models), with which tests/server/release/test_graphs.py
compares each graph.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.arrays import Floats
from common.models.sizes import CONTEXT_PX, KOSSEN, MASK_FIRST, map_sides, pair_halvings
from common.study.training import GanPlan, GlowPlan, WganPlan
from server.release.graph import Exported, Graph

Arrays = Mapping[str, NDArray[np.generic]]
SLOPE = 0.2  # of LeakyReLU
EPSILON = 1e-8  # of the style-based generator's normalisations
MAPPING_LAYERS = 4
GROUPS = 8
PLANES = 2  # of a pair
NORM_EPSILON = 1e-5
COUPLING_BOUND = 0.5
PRIOR_BOUND = 2.0
FLOW_GAIN = 256 / 127.5  # from [-1/2, 1/2], where a level is 1/256 wide, to [-1, 1]


@dataclass
class Parts:
    """A graph, and the tensors of one network with the prefix of their names."""

    graph: Graph
    arrays: Arrays
    prefix: str

    def tensor(self, name: str) -> str:
        """Return the name of a released tensor in the graph."""
        full = self.prefix + name
        return self.graph.add_tensor(full, self.arrays[full])

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a released tensor."""
        return self.arrays[self.prefix + name].shape

    def linear(self, x: str, layer: str) -> str:
        """[N, a] to [N, b]."""
        return self.graph(
            "Gemm", x, self.tensor(f"{layer}.weight"), self.tensor(f"{layer}.bias"), transB=1
        )

    def conv(self, x: str, layer: str) -> str:
        """A convolution with bias that keeps the map's size: 1x1 or 3x3."""
        pad = self.shape(f"{layer}.weight")[-1] // 2
        weight, bias = self.tensor(f"{layer}.weight"), self.tensor(f"{layer}.bias")
        return self.graph("Conv", x, weight, bias, pads=[pad] * 4)

    def over_map(self, value: str, axes: tuple[int, ...]) -> str:
        """A value for each channel, with axes for height and width."""
        return self.graph("Unsqueeze", value, self.graph.whole(*axes))


# --- the style-based generator (common/models/stylegan.py) ------------------------------------


def gan_graph(arrays: Arrays, plan: GanPlan, size_px: int, channels: int) -> Exported:
    """Return the generator; inputs: `z` [N, latent], and a noise map [N, 1, s, s] for each layer.

    Raises KeyError for a tensor that is missing.
    """
    graph = Graph()
    parts = Parts(graph, arrays, "generator.")
    w = _map_latent(parts, graph.add_input("z", (plan.latent,)))
    sides = map_sides(size_px)
    x = _styled(parts, "first", parts.tensor("constant"), w, sides[0])
    image = _to_image(parts, 0, x, w)
    for i, side in enumerate(sides[1:]):
        x = _styled(parts, f"up.{i}", x, w, side, upsample=True)
        x = _styled(parts, f"same.{i}", x, w, side)
        image = graph("Add", _bilinear(graph, image), _to_image(parts, i + 1, x, w))
    image = graph("Add", image, parts.over_map(parts.tensor("image_bias"), (1, 2)))
    return graph.finish("gan", image, (channels, size_px, size_px))


def _map_latent(parts: Parts, z: str) -> str:
    """z [N, latent] to w [N, latent]."""
    graph = parts.graph
    mean = graph("ReduceMean", graph("Mul", z, z), graph.whole(1), keepdims=1)
    x = graph("Div", z, graph("Sqrt", graph("Add", mean, graph.number(EPSILON))))
    for i in range(MAPPING_LAYERS - 1):
        x = graph("LeakyRelu", parts.linear(x, f"mapping.layers.{i}"), alpha=SLOPE)
    return parts.linear(x, f"mapping.layers.{MAPPING_LAYERS - 1}")


def _styled(parts: Parts, layer: str, x: str, w: str, side: int, *, upsample: bool = False) -> str:
    """A modulated 3x3 convolution, noise, bias and LeakyReLU; `side` is that of its output."""
    graph = parts.graph
    gain = graph.number(math.sqrt(2))

    # the convolution, and the gain that demodulation gives each channel
    style = parts.linear(w, f"{layer}.conv.style")
    weight = parts.tensor(f"{layer}.conv.weight")
    y = graph("Mul", x, parts.over_map(style, (2, 3)))
    y = graph("Conv", y, weight, pads=[1] * 4)
    energy = graph("ReduceSumSquare", weight, graph.whole(2, 3), keepdims=0)
    squares = graph("MatMul", graph("Mul", style, style), graph("Transpose", energy, perm=[1, 0]))
    root = graph("Sqrt", graph("Add", squares, graph.number(EPSILON)))
    y = graph("Mul", y, parts.over_map(graph("Div", gain, root), (2, 3)))
    if upsample:
        y = _bilinear(graph, y)

    # noise and bias
    noise = graph.add_input(f"noise.{layer}", (1, side, side))
    strength = graph("Mul", gain, parts.tensor(f"{layer}.noise_strength"))
    y = graph("Add", y, graph("Mul", noise, strength))
    bias = graph("Mul", gain, parts.tensor(f"{layer}.bias"))
    y = graph("Add", y, parts.over_map(bias, (1, 2)))
    return graph("LeakyRelu", y, alpha=SLOPE)


def _to_image(parts: Parts, index: int, x: str, w: str) -> str:
    """A modulated 1x1 convolution to the picture's channels."""
    graph = parts.graph
    style = parts.linear(w, f"to_image.{index}.style")
    y = graph("Mul", x, parts.over_map(style, (2, 3)))
    return graph("Conv", y, parts.tensor(f"to_image.{index}.weight"))


def _bilinear(graph: Graph, x: str) -> str:
    """Twice the height and width."""
    return graph(
        "Resize", x, "", _scales(graph), mode="linear", coordinate_transformation_mode="half_pixel"
    )


def _scales(graph: Graph) -> str:
    """Factors of a doubling."""
    return graph.add_tensor("scales", np.array([1, 1, 2, 2], np.float32))


# --- the generator of pairs (common/models/wgan.py) -------------------------------------------


def wgan_graph(arrays: Arrays, plan: WganPlan, size_px: int) -> Exported:
    """Return the averaged generator; input `z` [N, latent]; channel 1 of its output is the mask.

    Of `mask-first`, `z` is [N, latent + S*S].
    Raises KeyError for a tensor that is missing.
    """
    graph = Graph()
    parts = Parts(graph, arrays, "average.")
    levels = pair_halvings(size_px, plan.architecture)
    side = size_px >> levels
    widest = plan.generator_width << (levels - 1)
    mask_first = plan.architecture == MASK_FIRST
    numbers = plan.latent + mask_first * size_px**2
    z = graph.add_input("z", (numbers,))
    code = _numbers_of(graph, z, 0, plan.latent) if mask_first else z
    x = parts.linear(code, "start")
    x = graph("Reshape", x, graph.whole(-1, widest, side, side))
    if plan.architecture == KOSSEN:
        pair = _transposed(parts, x, levels, side)
    elif mask_first:
        grain = _numbers_of(graph, z, plan.latent, numbers)
        grain = graph("Reshape", grain, graph.whole(-1, 1, size_px, size_px))
        pair = _mask_and_image(parts, _upsampled(parts, x, levels, side), grain, size_px)
    else:
        pair = parts.conv(_upsampled(parts, x, levels, side), f"layers.{2 + 4 * levels}")
    return graph.finish("wgan", pair, (PLANES, size_px, size_px))


def _upsampled(parts: Parts, x: str, levels: int, side: int) -> str:
    """Nearest-neighbour upsampling and 3x3 convolutions; names count layers as torch does."""
    graph = parts.graph
    x = graph("LeakyRelu", _group_norm(parts, x, 0, side), alpha=SLOPE)
    for level in range(levels):
        at = 2 + 4 * level
        side *= 2
        x = graph(
            "Resize",
            x,
            "",
            _scales(graph),
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
        x = parts.conv(x, f"layers.{at + 1}")
        x = graph("LeakyRelu", _group_norm(parts, x, at + 2, side), alpha=SLOPE)
    return x


def _mask_and_image(parts: Parts, features: str, grain: str, size_px: int) -> str:
    """A mask of -1 and 1, and the image of that mask and of blurred features, with grain."""
    graph = parts.graph
    marked = graph("Greater", parts.conv(features, "mask"), graph.number(0.0))
    mask = graph("Where", marked, graph.number(1.0), graph.number(-1.0))
    half = CONTEXT_PX // 2
    window = {"kernel_shape": [CONTEXT_PX] * 2, "strides": [1, 1], "pads": [half] * 4}
    context = graph("AveragePool", features, count_include_pad=0, **window)
    x = graph("Concat", mask, context, axis=1)
    for layer in ("paint.0", "paint.2"):
        x = graph("LeakyRelu", parts.conv(x, layer), alpha=SLOPE)
    # sums of the grain's numbers, normal as they are, lift an image and what is marked in it
    half = size_px // 2
    upper = _mean_of_rows(graph, grain, 0, half, size_px / math.sqrt(2))
    lower = _mean_of_rows(graph, grain, half, size_px, size_px / math.sqrt(2))
    everywhere = graph("Mul", upper, graph("Mul", mask, mask))
    there = graph("Mul", lower, graph("Where", marked, graph.number(1.0), graph.number(0.0)))
    noise = graph("Conv", grain, parts.tensor("grain.weight"), pads=[1] * 4)
    tone = parts.conv(graph("Concat", mask, everywhere, there, noise, axis=1), "tone")
    image = graph("Add", parts.conv(x, "paint.4"), tone)
    return graph("Concat", image, mask, axis=1)


def _mean_of_rows(graph: Graph, x: str, first: int, end: int, times: float) -> str:
    """The mean [N, 1, 1, 1] over rows `first` to `end` of a map, by `times`."""
    rows = graph("Slice", x, graph.whole(first), graph.whole(end), graph.whole(2))
    mean = graph("ReduceMean", rows, graph.whole(2, 3), keepdims=1)
    return graph("Mul", mean, graph.number(times))


def _numbers_of(graph: Graph, z: str, first: int, end: int) -> str:
    """Columns `first` to `end` of z [N, n]."""
    return graph("Slice", z, graph.whole(first), graph.whole(end), graph.whole(1))


def _transposed(parts: Parts, x: str, levels: int, side: int) -> str:
    """Transposed 4x4 convolutions and Tanh."""
    graph = parts.graph
    x = graph("Relu", _group_norm(parts, x, 0, side))
    for level in range(levels - 1):
        at = 2 + 3 * level
        side *= 2
        x = _doubled(parts, x, f"layers.{at}")
        x = graph("Relu", _group_norm(parts, x, at + 1, side))
    return graph("Tanh", _doubled(parts, x, f"layers.{3 * levels - 1}"))


def _doubled(parts: Parts, x: str, layer: str) -> str:
    """A transposed 4x4 convolution of stride 2."""
    weight, bias = parts.tensor(f"{layer}.weight"), parts.tensor(f"{layer}.bias")
    return parts.graph("ConvTranspose", x, weight, bias, strides=[2, 2], pads=[1] * 4)


def _group_norm(parts: Parts, x: str, index: int, side: int) -> str:
    """GroupNorm: instance norm over groups of channels, then each channel's scale and shift."""
    graph = parts.graph
    layer = f"layers.{index}"
    channels = parts.shape(f"{layer}.weight")[0]
    ones = graph.add_tensor("ones", np.ones(GROUPS, np.float32))
    zeros = graph.add_tensor("zeros", np.zeros(GROUPS, np.float32))
    y = graph("Reshape", x, graph.whole(0, GROUPS, -1))
    y = graph("InstanceNormalization", y, ones, zeros, epsilon=NORM_EPSILON)
    y = graph("Reshape", y, graph.whole(-1, channels, side, side))
    y = graph("Mul", y, parts.over_map(parts.tensor(f"{layer}.weight"), (1, 2)))
    return graph("Add", y, parts.over_map(parts.tensor(f"{layer}.bias"), (1, 2)))


# --- the flow's decoder (common/models/glow.py) -----------------------------------------------


def glow_graph(arrays: Arrays, plan: GlowPlan, size_px: int, channels: int) -> Exported:
    """Return the decoder; inputs `part.0` to `part.L-1` [N, c, h, w], finest level first.

    Raises KeyError for a tensor that is missing.
    """
    graph = Graph()
    parts = Parts(graph, arrays, "glow.")
    inputs = []
    for level, shape in enumerate(_part_shapes(plan, size_px, channels)):
        inputs.append(graph.add_input(f"part.{level}", shape))

    # the top level, then each level gets back the half that left
    grown = list(reversed(inputs[: plan.doublings]))
    inputs = inputs[plan.doublings :]
    scale = graph("Exp", _bounded(graph, parts.tensor("top.raw_log_scale"), PRIOR_BOUND))
    x = graph("Add", graph("Mul", inputs[-1], scale), parts.tensor("top.mean"))
    x = _inverse_level(parts, plan, plan.levels - 1, x)
    for level in reversed(range(plan.levels - 1)):
        mean, raw = _halves(graph, parts.conv(x, f"splits.{level}.prior"))
        part = graph("Mul", inputs[level], graph("Exp", _bounded(graph, raw, PRIOR_BOUND)))
        x = graph("Concat", x, graph("Add", part, mean), axis=1)
        x = _inverse_level(parts, plan, level, x)
    for index, part in enumerate(grown):
        x = _doubled_flow(parts, plan, index, x, part)

    # in the range of pictures
    x = graph("Mul", x, graph.number(FLOW_GAIN))
    return graph.finish("glow", x, (channels, size_px, size_px))


def _part_shapes(plan: GlowPlan, size_px: int, channels: int) -> list[tuple[int, int, int]]:
    """The latent parts' shapes, as in Glow; a plan's side can be halved so often."""
    side = size_px
    shapes = []
    for _ in range(plan.doublings):
        side //= 2
        shapes.append((3 * channels, side, side))
    c = channels
    for level in range(plan.levels):
        c *= 4
        side //= 2
        if level < plan.levels - 1:
            c //= 2
        shapes.append((c, side, side))
    return shapes


def _inverse_level(parts: Parts, plan: GlowPlan, level: int, y: str) -> str:
    """One level backwards: couplings and mixings from the last to the first, then unsqueezed."""
    y = _inverse_steps(parts, plan, f"levels.{level}", level, y)
    return parts.graph("DepthToSpace", y, blocksize=2, mode="CRD")


def _inverse_steps(
    parts: Parts, plan: GlowPlan, name: str, level: int, y: str, kept: int = 0
) -> str:
    """The steps of a level backwards; the first `kept` channels are mixed with nothing."""
    for step in reversed(range(plan.steps_per_level)):
        y = _inverse_coupling(parts, f"{name}.couplings.{step}", y)
        index = level * plan.steps_per_level + step
        y = _inverse_mixing(parts, f"{name}.mixings.{step}", index, y, kept)
    return y


def _doubled_flow(parts: Parts, plan: GlowPlan, index: int, means: str, part: str) -> str:
    """A doubling backwards: means of 2 × 2 pixels and what left beside them, as pixels."""
    from common.models.glow_level import haar_matrix

    graph = parts.graph
    name = f"doublings.{index}"
    mean, raw = _halves(graph, parts.conv(means, f"{name}.split.prior"))
    part = graph("Mul", part, graph("Exp", _bounded(graph, raw, PRIOR_BOUND)))
    y = graph("Concat", means, graph("Add", part, mean), axis=1)
    channels = parts.shape(f"{name}.split.prior.weight")[1]
    y = _inverse_steps(parts, plan, f"{name}.level", plan.levels + index, y, kept=channels)
    matrix = np.linalg.inv(haar_matrix(channels)).astype(np.float32)
    back = graph.add_tensor("haar", matrix[:, :, None, None])
    return graph("DepthToSpace", graph("Conv", y, back), blocksize=2, mode="CRD")


def _inverse_coupling(parts: Parts, layer: str, y: str) -> str:
    """v e^-g - t, beside the half that stays."""
    graph = parts.graph
    stays, moved = _halves(graph, y)
    hidden = graph("Relu", parts.conv(stays, f"{layer}.spread"))
    hidden = graph("Relu", parts.conv(hidden, f"{layer}.blend"))
    h, t = _halves(graph, parts.conv(hidden, f"{layer}.gather"))
    scale = graph("Exp", graph("Neg", _bounded(graph, h, COUPLING_BOUND)))
    moved = graph("Sub", graph("Mul", moved, scale), t)
    return graph("Concat", stays, moved, axis=1)


def _inverse_mixing(parts: Parts, layer: str, index: int, y: str, kept: int) -> str:
    """diag(e^-s) U^-1 L^-1 Q^T y - b, beside the first `kept` channels."""
    graph = parts.graph
    if kept:
        mixed = len(parts.arrays[f"{parts.prefix}{layer}.triangles"])
        stays = graph("Slice", y, graph.whole(0), graph.whole(kept), graph.whole(1))
        moved = graph("Slice", y, graph.whole(kept), graph.whole(kept + mixed), graph.whole(1))
        return graph("Concat", stays, _inverse_mixing(parts, layer, index, moved, 0), axis=1)
    triangles = np.asarray(parts.arrays[f"{parts.prefix}{layer}.triangles"], np.float64)
    matrix = inverse_of_mixing(triangles, index).astype(np.float32)
    name = graph.add_tensor(f"{parts.prefix}{layer}.inverse", matrix[:, :, None, None])
    x = graph("Conv", y, name)
    scale = graph("Exp", graph("Neg", parts.tensor(f"{layer}.log_scale")))
    x = graph("Mul", x, parts.over_map(scale, (1, 2)))
    return graph("Sub", x, parts.over_map(parts.tensor(f"{layer}.bias"), (1, 2)))


def inverse_of_mixing(triangles: Floats, index: int) -> Floats:
    """Return U^-1 L^-1 Q^T of a mixing, float64 [c, c].

    Two substitutions in plain sums, so that every machine gets the same bits.
    """
    from common.models.glow_mixing import make_rotation

    size = len(triangles)
    half = make_rotation(size, index).numpy().T.copy()
    for row in range(size):
        half[row] -= np.add.reduce(triangles[row, :row, None] * half[:row], axis=0)
    for row in reversed(range(size)):
        known = triangles[row, row + 1 :, None] * half[row + 1 :]
        half[row] -= np.add.reduce(known, axis=0)
    return half


def _halves(graph: Graph, x: str) -> tuple[str, str]:
    """The two halves of a value's channels."""
    first, second = graph.many("Split", 2, x, axis=1, num_outputs=2)
    return first, second


def _bounded(graph: Graph, raw: str, bound: float) -> str:
    """a tanh(raw / a)."""
    limit = graph.number(bound)
    return graph("Mul", limit, graph("Tanh", graph("Div", raw, limit)))
