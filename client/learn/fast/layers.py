"""The rules for three layers: conv2d, linear, group norm.

A weight's gradient, for each patient:
  conv2d      sum over items and places of (output gradient) x (input), in the way that is fastest
              for its shapes (ways.py): a batched matrix product, the thinner side unfolded; torch's
              own gradient patient by patient; or the same with the patients as groups
  linear      the same without unfolding
  group norm  sums of (output gradient) x (normalised input), and of the output gradient
A pointwise convolution with a weight of each patient is a batched matrix product.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from client.learn.fast.ways import CHOICES, WAYS, Attempts, Way


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

    def takes(self, order: Order) -> bool:
        """Return whether products of this order can be added."""
        return self._empty or order == self._order

    def add_products(self, left: Tensor, right: Tensor, order: Order = "natural") -> None:
        """Add left^T @ right of each patient: [c, L, a] and [c, L, b] give a·b columns."""
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

    def add_convolutions(self, gradients: Iterator[Tensor]) -> None:
        """Add a convolution weight's gradient [out, in, h, w] of each patient, in their order."""
        if self._empty:
            self._order = "out h w in"  # as torch gives them for channels-last inputs
        for place, gradient in zip(self._places(), gradients, strict=True):
            if self._order == "-h -w out in":
                gradient = gradient.flip(2, 3)
            if self._empty:
                place.copy_(gradient)
            else:
                place.add_(gradient)
        self._empty = False

    def _places(self) -> Tensor:
        """The columns as [c, out, in, h, w]; in the order -h -w they are still reversed."""
        patients = len(self._columns)
        out, channels, height, width = self._shape
        if self._order == "out h w in":
            places = self._columns.view(patients, out, height, width, channels)
            return places.permute(0, 1, 4, 2, 3)
        if self._order == "-h -w out in":
            places = self._columns.view(patients, height, width, out, channels)
            return places.permute(0, 3, 4, 1, 2)
        return self._columns.view(patients, *self._shape)

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
        """Add the weight's gradient of each patient, in the way that is fastest for the shapes."""
        way = WAYS[0]
        if x.dtype == gy.dtype == torch.float32:
            way = CHOICES.of(self._shapes(x, gy, patients), lambda: self._attempts(x, gy, patients))
        # columns that hold products of another order take torch's own gradient
        if way == "products" and not to_weight.takes(self._order_of_products(x, gy)):
            way = "one by one"
        self._add_by(way, to_weight, x, gy, patients)

    def _add_by(self, way: Way, to_weight: Sink, x: Tensor, gy: Tensor, patients: int) -> None:
        if way == "products":
            self._add_products(to_weight, x, gy, patients)
        elif way == "one by one":
            to_weight.add_convolutions(self._one_by_one(x, gy, patients))
        else:
            to_weight.add_convolutions(iter(self._grouped(x, gy, patients)))

    def _shapes(self, x: Tensor, gy: Tensor, patients: int) -> str:
        """All that a way's speed depends on, as text."""
        sides = f"{[*x.shape]} to {[*gy.shape]} by {[*self.weight.shape]}"
        settings = f"stride {self.stride} padding {self.padding} dilation {self.dilation}"
        return f"{x.device.type}, {patients} patients, {sides}, {settings}"

    def _attempts(self, x: Tensor, gy: Tensor, patients: int) -> Attempts:
        """Each way on invented tensors of these shapes: what `x` and `gy` hold is not used."""
        generator = torch.Generator().manual_seed(0)
        sides = []
        for side in (x, gy):
            invented = torch.randn(side.shape, generator=generator).to(side.device)
            sides.append(invented.contiguous(memory_format=torch.channels_last))
        columns = x.new_empty(patients, self.weight.numel())

        def attempt(way: Way) -> None:
            self._add_by(way, Sink(columns, self.weight.shape), sides[0], sides[1], patients)

        return {way: functools.partial(attempt, way) for way in WAYS}

    def _order_of_products(self, x: Tensor, gy: Tensor) -> Order:
        """The order of the columns that `_add_products` gives: which side it unfolds."""
        # the output can be unfolded only where no place is skipped
        (height, width) = self.weight.shape[2:]
        (up, left) = self.padding
        even = self.stride == self.dilation == (1, 1) and up < height and left < width
        if even and gy.shape[1] < x.shape[1]:
            return "-h -w out in"
        return "out h w in"

    def _add_products(self, to_weight: Sink, x: Tensor, gy: Tensor, patients: int) -> None:
        """Add products of the layer's two sides, the thinner one unfolded."""
        order = self._order_of_products(x, gy)
        if order == "-h -w out in":
            # padding that brings the output to the input's places
            (height, width) = self.weight.shape[2:]
            back = (height - 1 - self.padding[0], width - 1 - self.padding[1])
            patches = self._patches(gy, x.shape[2:], back, (1, 1), (1, 1), patients)
            inputs = x.permute(0, 2, 3, 1).reshape(patients, -1, x.shape[1])
            return to_weight.add_products(patches, inputs, order)

        # else the input is: [c, n·places, out] and [c, n·places, h·w·in]
        outputs = gy.permute(0, 2, 3, 1).reshape(patients, -1, gy.shape[1])
        patches = self._patches(x, gy.shape[2:], self.padding, self.stride, self.dilation, patients)
        return to_weight.add_products(outputs, patches, order)

    def _one_by_one(self, x: Tensor, gy: Tensor, patients: int) -> Iterator[Tensor]:
        """torch's own gradient of the weight, for one patient after the other."""
        weight = self.weight.to(gy.dtype).contiguous(memory_format=torch.channels_last)
        pairs = zip(x.to(gy.dtype).chunk(patients), gy.chunk(patients), strict=True)
        for inputs, outputs in pairs:
            yield self._backward_pass(outputs, inputs, weight, 1)[1]

    def _grouped(self, x: Tensor, gy: Tensor, patients: int) -> Tensor:
        """The same at once, the patients being groups of channels: [c, out, in, h, w]."""
        sides = []
        for side in (x.to(gy.dtype), gy):
            by_item = side.view(patients, -1, *side.shape[1:]).transpose(0, 1)
            sides.append(by_item.flatten(1, 2))
        # the weight gives the shape alone
        out, *kernel = self.weight.shape
        weight = self.scratch.empty("grouped", (patients * out, *kernel), gy)
        gradient = self._backward_pass(sides[1], sides[0], weight, patients)[1]
        return gradient.view(patients, out, *kernel)

    def _to_input(self, gy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """The gradient of the input, as torch's own backward pass computes it."""
        return self._backward_pass(gy, x, weight, 1, to_input=True)[0]

    def _backward_pass(
        self, gy: Tensor, x: Tensor, weight: Tensor, groups: int, *, to_input: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return torch's gradient of the input (`to_input`), or of the weight."""
        found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
            gy,
            x,
            weight,
            None,  # bias sizes
            self.stride,
            self.padding,
            self.dilation,
            False,  # transposed
            (0, 0),  # output padding
            groups,
            (to_input, not to_input, False),
        )
        return found[0], found[1]

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
