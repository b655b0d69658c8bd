"""RMSprop on named tensors (Tieleman & Hinton 2012), in place: the seed system's optimiser.

In: parameters by name, a gradient for each. Out: the parameters, updated. Guaranteed: the numbers of torch.optim.RMSprop with its
defaults to float rounding, without its slow import (common/models/adam.py says why). Not: momentum, centring, weight decay.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


class RMSprop:
    """State: the second moment of each tensor."""

    def __init__(
        self, parameters: Mapping[str, Tensor], rate: float, decay: float = 0.99, eps: float = 1e-8
    ) -> None:
        self.rate = rate
        self._parameters, self._decay, self._eps = dict(parameters), decay, eps
        self._second = {name: torch.zeros_like(p) for name, p in self._parameters.items()}

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor]) -> None:
        """One update; a parameter without a gradient in `gradients` is an error (KeyError)."""
        for name, parameter in self._parameters.items():
            second, gradient = self._second[name], gradients[name]
            second.mul_(self._decay).addcmul_(gradient, gradient, value=1 - self._decay)
            parameter.addcdiv_(gradient, second.sqrt().add_(self._eps), value=-self.rate)
