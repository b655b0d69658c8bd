"""Adam on named tensors (Kingma & Ba 2015, Algorithm 1), in place.

In: parameters by name, a gradient for each. Out: the parameters, updated. Guaranteed: the numbers of torch.optim.Adam to float
rounding, without its import of torch's compiler, which costs a child process 3 to 17 seconds (measured) per start.
Not: weight decay, AMSGrad, state that survives the process.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


class Adam:
    """State: first and second moment of each tensor, and the number of steps."""

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        rate: float,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
    ) -> None:
        self.rate = rate
        self._parameters, self._betas, self._eps, self._steps = dict(parameters), betas, eps, 0
        self._first = {name: torch.zeros_like(p) for name, p in self._parameters.items()}
        self._second = {name: torch.zeros_like(p) for name, p in self._parameters.items()}

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor]) -> None:
        """One update; a parameter without a gradient in `gradients` is an error (KeyError)."""
        self._steps += 1
        fast, slow = self._betas
        size = self.rate / (1 - fast**self._steps)
        for name, parameter in self._parameters.items():
            first, second, gradient = self._first[name], self._second[name], gradients[name]
            first.lerp_(gradient, 1 - fast)
            second.mul_(slow).addcmul_(gradient, gradient, value=1 - slow)
            spread = (second / (1 - slow**self._steps)).sqrt_().add_(self._eps)
            parameter.addcdiv_(first, spread, value=-size)
