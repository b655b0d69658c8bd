"""The rules for three layers: conv2d, linear, group norm.

A weight's gradient, for each patient:
  conv2d      sum over items and places of (output gradient) x (input): a batched matrix product,
              the thinner side unfolded
  linear      the same without unfolding
  group norm  sums of (output gradient) x (normalised input), and of the output gradient
A pointwise convolution with a weight of each patient is a batched matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


class NoRule(Exception):
    """A loss uses a layer in a way that has no rule here."""


# of a conv weight's columns; -h: from the last row to the first
Order = Literal["natural", "out h w in", "-h -w out in"]


class Sink:
    """The columns of one parameter in the rows, [c, size]; zero until something is added."""

    def __init__(self, columns: Tensor, shape: torch.Size) -> None:
        self._columns = columns
        self._shape = shape
        self._empty = True
        self.size = columns.shape[1]
        self._order: Order = "natural"

    def add_products(self, left: Tensor, right: Tensor, order: Order = "natural") -> None:
        """Add left^T @ right of each patient: [c, L, a] and [c, L, b] give a·b columns."""
        if not self._empty and order != self._order:
            raise NoRule("a convolution weight that is used in two ways")
        turned = left.transpose(1, 2)
        out = self._columns.view(len(left), left.shape[2], right.shape[2])
        if not left.dtype == right.dtype == out.dtype:  # autocast
            self.add(torch.bmm(turned.to(out.dtype), right.to(out.dtype)))
        elif self._empty:
            torch.bmm(turned, right, out=out)
        else:
            out.baddbmm_(turned, right)
        self._empty = False
        self._order = order

    def add(self, values: Tensor) -> None:
        """Add values [c, …]."""
        values = values.reshape(self._columns.shape)
        if self._empty:
            self._columns.copy_(values)
        else:
            self._columns.add_(values)
        self._empty = False

    def finish(self) -> None:
        """Set the columns to zero where nothing was added."""
        if self._empty:
            self._columns.zero_()

    def natural(self, part: Tensor) -> Tensor:
        """Return a vector over these columns, in the parameter's own order."""
        if self._order == "natural":
            return part
        out, channels, height, width = self._shape
        if self._order == "out h w in":
            return part.view(out, height, width, channels).permute(0, 3, 1, 2).reshape(-1)
        return part.view(height, width, out, channels).flip(0, 1).permute(2, 3, 0, 1).reshape(-1)


class Scratch:
    """Buffers that are kept from step to step, by use and shape."""

    def __init__(self) -> None:
        self._buffers: dict[object, Tensor] = {}

    def zeros(self, use: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return a buffer that was zero when it was made; what is written to it stays."""
        key = (use, shape, like.dtype)
        if key not in self._buffers:
            self._buffers[key] = like.new_zeros(shape)
        return self._buffers[key]

    def empty(self, use: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return a buffer of any content; one per use, as large as the largest asked for."""
        size = torch.Size(shape).numel()
        key = (use, like.dtype)
        if key not in self._buffers or self._buffers[key].numel() < size:
            self._buffers[key] = like.new_empty(size)
        return self._buffers[key][:size].view(shape)


class Layer(Protocol):
    """One call of a layer: its tensors, and its forward and backward pass on a chunk [c·n, …]."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None

    def claims(self, sinks: Mapping[int, Sink], scratch: Scratch) -> bool: ...

    def forward(
        self, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]: ...

    def backward(
        self, gy: Tensor, saved: tuple[Tensor, ...], patients: int, wants_x: bool
    ) -> Tensor | None: ...


class _Trained:
    """Finds the sinks of a call's weight and bias."""

    dims: ClassVar[tuple[int, ...]] = ()  # of an input that the rule knows; () = any
    input: Tensor
    weight: Tensor
    bias: Tensor | None

    def claims(self, sinks: Mapping[int, Sink], scratch: Scratch) -> bool:
        """Return whether a trained parameter is in this call. Raises NoRule for a wrong input."""
        self.to_weight = sinks.get(id(self.weight))
        self.to_bias = sinks.get(id(self.bias))
        self.scratch = scratch
        if self.to_weight is None and self.to_bias is None:
            return False
        if self.dims and self.input.dim() not in self.dims:
            raise NoRule(f"an input of {self.input.dim()} axes")
        return True


class _Linear(_Trained):
    """F.linear on [c·n, …]."""

    def __init__(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
        self.input = input
        self.weight = weight
        self.bias = bias

    def forward(
        self, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        return F.linear(x, weight, bias), (x, weight)

    def backward(
        self, gy: Tensor, saved: tuple[Tensor, ...], patients: int, wants_x: bool
    ) -> Tensor | None:
        x, weight = saved
        flat = gy.reshape(patients, -1, gy.shape[-1])
        if self.to_bias is not None:
            self.to_bias.add(flat.sum(1))
        if self.to_weight is not None:
            self.to_weight.add_products(flat, x.reshape(patients, -1, x.shape[-1]))
        if not wants_x:
            return None
        return gy @ weight.to(gy.dtype)


Pair = tuple[int, int]


class _Conv2d(_Trained):
    """F.conv2d on [c·n, in, H, W]."""

    dims = (4,)

    def __init__(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Pair = 1,
        padding: int | Pair | str = 0,
        dilation: int | Pair = 1,
        groups: int = 1,
    ) -> None:
        self.input = input
        self.weight = weight
        self.bias = bias
        self._plain = groups == 1 and not isinstance(padding, str)
        self.stride = _pair(stride)
        self.dilation = _pair(dilation)
        self.padding = (0, 0)
        if not isinstance(padding, str):
            self.padding = _pair(padding)

    def plainly(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the convolution of a batch with one weight for all. Raises NoRule."""
        if not self._plain:
            raise NoRule("a convolution with groups or padding by name")
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation)

    def pointwise(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return y [c, n, out, H, W] for x [c, n, in, H, W].

        The weight is [c or 1, out, in, 1, 1], the bias [c, out] or [out]. Raises NoRule for a
        kernel of more than one place.
        """
        alone = self.stride == (1, 1) and self.padding == (0, 0)
        if not self._plain or weight.shape[3:] != (1, 1) or not alone:
            raise NoRule(
                "a convolution over more than one place with weights that are made from others"
            )

        # one matrix product a patient: [n·places, in] @ [in, out]
        patients, n, channels, height, width = x.shape
        flat = x.permute(0, 1, 3, 4, 2).reshape(patients, n * height * width, channels)
        matrix = weight[:, :, :, 0, 0].transpose(1, 2).expand(patients, -1, -1)
        if bias is None:
            y = torch.bmm(flat, matrix)
        else:
            y = torch.baddbmm(bias.expand(patients, -1)[:, None], flat, matrix)
        return y.view(patients, n, height, width, -1).permute(0, 1, 4, 2, 3)

    def forward(
        self, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        x = x.contiguous(memory_format=torch.channels_last)
        return self.plainly(x, weight, bias), (x, weight)

    def backward(
        self, gy: Tensor, saved: tuple[Tensor, ...], patients: int, wants_x: bool
    ) -> Tensor | None:
        x, weight = saved
        gy = gy.contiguous(memory_format=torch.channels_last)
        # patient by patient, to the sinks
        if self.to_bias is not None:
            self.to_bias.add(gy.permute(0, 2, 3, 1).reshape(patients, -1, gy.shape[1]).sum(1))
        if self.to_weight is not None:
            self._weight_gradient(self.to_weight, x, gy, patients)
        # the batch's, to the layer before
        if not wants_x:
            return None
        return self._to_input(gy, x.to(gy.dtype), weight.to(gy.dtype))

    def _weight_gradient(self, to_weight: Sink, x: Tensor, gy: Tensor, patients: int) -> None:
        """Add products of the layer's two sides, the thinner one unfolded."""
        # the output can be unfolded only where no place is skipped
        (height, width) = self.weight.shape[2:]
        (up, left) = self.padding
        even = self.stride == self.dilation == (1, 1) and up < height and left < width
        if even and gy.shape[1] < x.shape[1]:
            # padding that brings the output to the input's places
            back = (height - 1 - up, width - 1 - left)
            patches = self._patches(gy, x.shape[2:], back, (1, 1), (1, 1), patients)
            inputs = x.permute(0, 2, 3, 1).reshape(patients, -1, x.shape[1])
            return to_weight.add_products(patches, inputs, "-h -w out in")

        # else the input is: [c, n·places, out] and [c, n·places, h·w·in]
        outputs = gy.permute(0, 2, 3, 1).reshape(patients, -1, gy.shape[1])
        patches = self._patches(x, gy.shape[2:], self.padding, self.stride, self.dilation, patients)
        return to_weight.add_products(outputs, patches, "out h w in")

    def _to_input(self, gy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """The gradient of the input, as torch's own backward pass computes it."""
        gx: Tensor = torch.ops.aten.convolution_backward(
            gy,
            x,
            weight,
            None,  # bias sizes
            self.stride,
            self.padding,
            self.dilation,
            False,  # transposed
            (0, 0),  # output padding
            1,  # groups
            (True, False, False),  # the input's gradient alone
        )[0]
        return gx

    def _patches(
        self,
        x: Tensor,
        places: torch.Size,
        padding: Pair,
        stride: Pair,
        dilation: Pair,
        patients: int,
    ) -> Tensor:
        """What lies under each place of the kernel, [c, n·places, h·w·channels].

        In scratch memory, which the next call overwrites.
        """
        # a kernel of one place needs no copy
        n, channels, height, width = x.shape
        (up, left) = padding
        (down, right) = stride
        (dh, dw) = dilation
        kernel = self.weight.shape[2:]
        if kernel == (1, 1) and padding == (0, 0) and stride == (1, 1):
            return x.permute(0, 2, 3, 1).reshape(patients, -1, channels)

        # the input, channels last, in the middle of zeros
        padded = self.scratch.zeros(
            f"padded by {padding}", (n, height + 2 * up, width + 2 * left, channels), x
        )
        padded[:, up : up + height, left : left + width].copy_(x.permute(0, 2, 3, 1))

        # a view of all windows, then a copy of it
        image, row, column, one = padded.stride()
        steps = (image, row * down, column * right, row * dh, column * dw, one)
        windows = padded.as_strided((n, *places, *kernel, channels), steps)
        patches = self.scratch.empty("patches", tuple(windows.shape), x)
        return patches.copy_(windows).view(patients, -1, kernel.numel() * channels)


class _GroupNorm(_Trained):
    """F.group_norm on [c·n, C, H, W]."""

    dims = (4,)

    def __init__(
        self,
        input: Tensor,
        num_groups: int,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> None:
        self.input = input
        self.groups = num_groups
        self.eps = eps
        self._affine = weight is not None and bias is not None
        self.weight = input
        if weight is not None:
            self.weight = weight
        self.bias = bias

    def forward(
        self, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        if not self._affine:
            raise NoRule("a group norm with half its parameters")
        n, channels, height, width = x.shape
        y, mean, rstd = torch.native_group_norm(
            x.float(), weight, bias, n, channels, height * width, self.groups, self.eps
        )
        return y, (x, weight, mean, rstd)

    def backward(
        self, gy: Tensor, saved: tuple[Tensor, ...], patients: int, wants_x: bool
    ) -> Tensor | None:
        x, weight, mean, rstd = saved
        n, channels, *sides = x.shape
        width = channels // self.groups
        places = sides[0] * sides[1]
        flat_gy = gy.permute(0, 2, 3, 1).reshape(n, places, channels)
        flat_x = x.float().permute(0, 2, 3, 1).reshape(n, places, channels)

        # the weights' gradients, patient by patient: sums over places, [n, channels]
        mean_of = mean.repeat_interleave(width, 1)
        rstd_of = rstd.repeat_interleave(width, 1)
        plain = flat_gy.sum(1)
        weighted = (flat_gy * flat_x).sum(1)
        if self.to_weight is not None:
            normalised = (weighted - mean_of * plain) * rstd_of
            self.to_weight.add(normalised.view(patients, -1, channels).sum(1))
        if self.to_bias is not None:
            self.to_bias.add(plain.view(patients, -1, channels).sum(1))
        if not wants_x:
            return None

        # the input's gradient is slope·x + shift + rstd·weight·gy, slope and shift by group
        plain = (plain * weight).view(n, self.groups, width).sum(2)
        weighted = (weighted * weight).view(n, self.groups, width).sum(2)
        slope = (plain * mean - weighted) * rstd**3 / (width * places)
        shift = -slope * mean - plain * rstd / (width * places)
        slope = slope.repeat_interleave(width, 1)[:, None]
        shift = shift.repeat_interleave(width, 1)[:, None]
        gx = torch.addcmul(shift, flat_x, slope).addcmul_(flat_gy, (rstd_of * weight)[:, None])
        return gx.view(n, *sides, channels).permute(0, 3, 1, 2).to(x.dtype)


def _pair(value: int | Pair) -> Pair:
    """A setting of height and width, which torch also takes as one number."""
    if isinstance(value, int):
        return value, value
    return value[0], value[-1]


RULES: dict[Any, Callable[..., Any]] = {
    F.conv2d: _Conv2d,
    F.linear: _Linear,
    F.group_norm: _GroupNorm,
}
