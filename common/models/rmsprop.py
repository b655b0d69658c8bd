"""RMSprop on named tensors (Tieleman & Hinton 2012), in place.

In: parameters by name, and a gradient for each.
Out: the parameters, updated.
Guarantees: the numbers of torch.optim.RMSprop with its defaults to float rounding, without its slow
import (common/models/adam.py).
Not covered: momentum, centring, weight decay.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


class RMSprop:
    """Keeps the second moment of each tensor."""

    def __init__(
        self, parameters: Mapping[str, Tensor], rate: float, decay: float = 0.99, eps: float = 1e-8
    ) -> None:
        self.rate = rate
        self._parameters = dict(parameters)
        self._decay = decay
        self._eps = eps
        self._second = {name: torch.zeros_like(p) for name, p in self._parameters.items()}

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor]) -> None:
        """Update every parameter once; a missing gradient is an error (KeyError)."""
        for name, parameter in self._parameters.items():
            second = self._second[name]
            gradient = gradients[name]
            second.mul_(self._decay).addcmul_(gradient, gradient, value=1 - self._decay)
            parameter.addcdiv_(gradient, second.sqrt().add_(self._eps), value=-self.rate)
