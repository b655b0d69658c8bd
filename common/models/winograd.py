"""3×3 convolution of frozen weights with fewer multiplications: Winograd's F(4×4, 3×3).

In: x [N, cin, H, W] and weight [cout, cin, 3, 3].
Out: `F.conv2d(x, weight, padding=1)` up to rounding, differentiable in x.
Guarantees: it is taken only where it is faster and the weight needs no gradient, on a CPU in
float32. Everywhere else it is F.conv2d itself.
Not covered: bit-for-bit equality with the direct sum.
Source: Lavin and Gray 2016, with other points.

A 4×4 tile y of the output takes 36 products for a pair of channels, not 144:
y = Aᵀ[(G w Gᵀ) ∘ (Bᵀ d B)]A for a 6×6 tile d of the input.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

LEAST_CHANNELS = 128
LEAST_PIXELS = 1024
STRIP_BYTES = 10_000_000  # of transformed tiles, which should stay in the processor's cache
STEP = 4
TILE = 6
# The points of interpolation, beside infinity. The usual ones (0, ±1, ±2) round twice as much.
POINTS = (0.0, 0.625, -0.625, 1.5, -1.5)


def conv3x3(x: Tensor, weight: Tensor) -> Tensor:
    """Return the convolution of [N, cin, H, W] with [cout, cin, 3, 3], padding 1."""
    if is_faster(x, weight):
        return _Winograd.apply(x, weight)  # type: ignore[no-any-return]
    return F.conv2d(x, weight, padding=1)


def is_faster(x: Tensor, weight: Tensor) -> bool:
    """Return whether Winograd's convolution is taken."""
    n, _, height, width = x.shape
    tiles = height % STEP == 0 and width % STEP == 0 and n * height * width >= LEAST_PIXELS
    plain = (
        x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
    )
    return tiles and plain and min(weight.shape[:2]) >= LEAST_CHANNELS and not weight.requires_grad


class _Winograd(torch.autograd.Function):
    """The convolution; its gradient in x is the convolution with the flipped kernel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return convolve(x, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None]:
        (weight,) = ctx.saved_tensors
        if not ctx.needs_input_grad[0]:
            return None, None
        return convolve(gradients[0], weight.transpose(0, 1).flip(2, 3)), None


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    """Return Winograd's convolution, [N, cin, H, W] to [N, cout, H, W], without a gradient."""
    n, cin, height, width = x.shape
    cout = weight.shape[0]
    rows = height // STEP
    columns = width // STEP

    # The kernels are transformed once.
    into, kernel, back = (torch.kron(table, table).to(x.dtype) for table in transforms())
    filters = (kernel @ weight.reshape(cout * cin, 9).T).view(TILE * TILE, cout, cin)

    # The tiles are transformed, multiplied and transformed back strip by strip of tile rows.
    strip = max(1, min(rows, STRIP_BYTES // (4 * TILE * TILE * max(cin, cout) * columns)))
    padded = F.pad(x, (1, 1, 1, 1))
    out = x.new_empty(n, cout, height, width)
    for i in range(n):
        tiles = padded[i].unfold(1, TILE, STEP).unfold(2, TILE, STEP)  # [cin, rows, columns, 6, 6]
        for start in range(0, rows, strip):
            part = tiles[:, start : start + strip]
            taken = part.shape[1]
            flat = part.permute(3, 4, 0, 1, 2).reshape(TILE * TILE, cin * taken * columns)
            products = torch.bmm(filters, (into @ flat).view(TILE * TILE, cin, taken * columns))
            made = back @ products.view(TILE * TILE, cout * taken * columns)
            made = made.view(STEP, STEP, cout, taken, columns)
            rows_out = out[i, :, start * STEP : (start + taken) * STEP]
            rows_out = rows_out.view(cout, taken, STEP, columns, STEP)
            rows_out.copy_(made.permute(2, 3, 0, 4, 1))
    return out


@functools.cache
def transforms() -> tuple[Tensor, Tensor, Tensor]:
    """Return Bᵀ [6, 6], G [6, 3] and Aᵀ [4, 6] in float64.

    They are those of Cook and Toom's interpolation at `POINTS` and infinity.
    """
    into = np.zeros((TILE, TILE))
    kernel = np.zeros((TILE, 3))
    back = np.zeros((STEP, TILE))
    for j, point in enumerate(POINTS):
        others = [other for other in POINTS if other != point]
        into[j, : TILE - 1] = np.poly(others)[::-1]
        kernel[j] = point ** np.arange(3) / np.prod([point - other for other in others])
        back[:, j] = point ** np.arange(STEP)
    into[-1] = np.poly(POINTS)[::-1]
    kernel[-1, -1] = 1
    back[-1, -1] = 1
    return torch.from_numpy(into), torch.from_numpy(kernel), torch.from_numpy(back)
