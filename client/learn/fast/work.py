"""Counts what a loss computes: calls of torch, bytes, multiplications."""

from typing import Any

from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class Work(TorchFunctionMode):
    """Counts what torch's functions return and the layers multiply."""

    calls = 0
    size_bytes = 0
    products = 0  # multiplications of convolutions and linear layers
    unfolded_bytes = 0  # of the largest unfolded convolution

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if isinstance(output, Tensor):
            self.calls += 1
            self.size_bytes += output.numel() * output.element_size()
            if func in (functional.conv2d, functional.linear):
                self._count_layer(output, _weight_of(*args, **(kwargs or {})))
        return output

    def _count_layer(self, output: Tensor, weight: Tensor) -> None:
        """Count the multiplications of a layer, and the bytes of a convolution's unfolded side."""
        self.products += output.numel() * weight[0].numel()
        if weight.dim() == 4 and weight[0, 0].numel() > 1:
            places = output.numel() // len(weight)
            unfolded = 4 * places * weight[0, 0].numel() * min(weight.shape[:2])
            self.unfolded_bytes = max(self.unfolded_bytes, unfolded)


def _weight_of(input: Tensor, weight: Tensor, *others: Any, **settings: Any) -> Tensor:
    """The weight of a layer's call, which may be given by name."""
    return weight
