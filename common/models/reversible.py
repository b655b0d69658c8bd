"""The steps of one level of the flow, with a backward pass that stores no activations.

In: a level's input, its mixings' kernels and biases (`glow_mixing.compose_mixings`), its couplings.
Out: the level's output and the couplings' log-determinants.
Guarantees:
  - the same numbers forward, and gradients to the rounding of the inverse (about 1e-6);
  - it stores the output, the kernels and references to the weights, however many steps there are;
  - autograd notices weights that change between forward and backward pass.
Not covered: private training, which refuses it because the gradient depends on an inverse.
Source: Gomez et al. 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Step(Protocol):
    """A coupling: `moments(a)` is (shift, log-scale) of the other half."""

    def moments(self, a: Tensor) -> tuple[Tensor, Tensor]: ...


def apply_steps(
    x: Tensor, kernels: Tensor, biases: Tensor, inverses: Tensor, couplings: Sequence[nn.Module]
) -> tuple[Tensor, Tensor]:
    """Return (y, log-determinants [N] of the couplings) of K steps on x [N, c, H, W].

    `kernels` are [K, c, c, 1, 1], `biases` [K, c], `inverses` [K, c, c].
    """
    weights: list[Tensor] = []
    for coupling in couplings:
        weights += coupling.parameters()
    y, log_determinant = _Steps.apply(x, kernels, biases, inverses, couplings, *weights)
    return y, log_determinant


class _Steps(torch.autograd.Function):
    """K times pointwise convolution and coupling.

    The backward pass goes from the last step to the first and rebuilds each from its output.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        kernels: Tensor,
        biases: Tensor,
        inverses: Tensor,
        couplings: Any,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        log_determinant = x.new_zeros(len(x))
        for kernel, bias, coupling in zip(kernels, biases, couplings, strict=True):
            x, each = coupling(F.conv2d(x, kernel, bias))
            log_determinant += each
        ctx.couplings = couplings
        ctx.save_for_backward(x, kernels, biases, inverses, *weights)
        return x, log_determinant

    @staticmethod
    def backward(ctx: Any, gy: Tensor, g_log: Tensor) -> Any:
        y, kernels, biases, inverses, *_ = ctx.saved_tensors
        g_kernels = torch.empty_like(kernels)
        g_biases = torch.empty_like(biases)
        g_weights: list[Tensor] = []
        for k in reversed(range(len(kernels))):
            # back through coupling and mixing, to the step's input and its gradient
            coupling = ctx.couplings[k]
            middle, g_middle, own = _through_coupling(coupling, y, gy, g_log)
            g_weights[:0] = own
            y = F.conv2d(middle - biases[k][:, None, None], inverses[k][:, :, None, None])
            gy = F.conv2d(g_middle, kernels[k].transpose(0, 1))

            # the gradients of the mixing, a pointwise convolution: [c, N places] each
            outputs = g_middle.transpose(0, 1).flatten(1)
            inputs = y.transpose(0, 1).flatten(1)
            g_kernels[k] = (outputs @ inputs.T)[..., None, None]
            g_biases[k] = outputs.sum(1)
        return gy, g_kernels, g_biases, None, None, *g_weights


def _through_coupling(
    coupling: Any, y: Tensor, gy: Tensor, g_log: Tensor
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The coupling's input, that input's gradient, and the gradients of the coupling's weights."""
    # rebuild the input, and run the coupling on it again
    a, moved = y.chunk(2, dim=1)
    with torch.enable_grad():
        a = a.detach().requires_grad_()
        t, g = coupling.moments(a)
        v = (moved * (-g).exp() - t).detach().requires_grad_()
        out = (v + t) * g.exp()
        total = g.sum(dim=(1, 2, 3))

    # the gradients: `a` gets one directly and one through the coupling's network
    ga, gv = gy.chunk(2, dim=1)
    found = torch.autograd.grad([out, total], [a, v, *coupling.parameters()], [gv, g_log])
    return (
        torch.cat([a, v], dim=1).detach(),
        torch.cat([ga + found[0], found[1]], dim=1),
        list(found[2:]),
    )
