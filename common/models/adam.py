"""Adam on named tensors (Kingma & Ba 2015, Algorithm 1), in place.

In: parameters by name, and a gradient for each.
Out: the parameters, updated.
Guarantees: the numbers of torch.optim.Adam to float rounding.
Not covered: weight decay, AMSGrad, state that survives the process.

torch.optim would import torch's compiler, which takes 3 to 17 seconds in each child process.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


class Adam:
    """Keeps the first and second moment of each tensor, and the number of steps."""

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        rate: float,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
    ) -> None:
        self.rate = rate
        self._parameters = dict(parameters)
        self._betas = betas
        self._eps = eps
        self._steps = 0
        self._first = {name: torch.zeros_like(p) for name, p in self._parameters.items()}
        self._second = {name: torch.zeros_like(p) for name, p in self._parameters.items()}

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor]) -> None:
        """Update every parameter once; a missing gradient is an error (KeyError)."""
        self._steps += 1
        fast, slow = self._betas
        size = self.rate / (1 - fast**self._steps)
        for name, parameter in self._parameters.items():
            # the moments
            first = self._first[name]
            second = self._second[name]
            gradient = gradients[name]
            first.lerp_(gradient, 1 - fast)
            second.mul_(slow).addcmul_(gradient, gradient, value=1 - slow)

            # the step, with both moments corrected for their start at zero
            spread = (second / (1 - slow**self._steps)).sqrt_().add_(self._eps)
            parameter.addcdiv_(first, spread, value=-size)
