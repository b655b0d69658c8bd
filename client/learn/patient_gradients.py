"""The reference path: one flat gradient per patient, by one plain backward pass each.

In: parameters, the loss of ONE patient, a batch with a leading patient axis.
Out: fp32 rows [c, d], one per patient.
Guarantees: a row depends on its own patient alone.
Not covered: speed (client/learn/fast), clipping and noise (lattice.py, private_step.py).
"""

from collections.abc import Callable

import torch
from torch import Tensor

Parameters = dict[str, Tensor]
Batch = tuple[Tensor, ...]
PatientLoss = Callable[[Parameters, Batch], Tensor]


def by_backward(loss: PatientLoss, parameters: Parameters, batch: Batch) -> Tensor:
    """Return fp32 [c, d] by one backward pass per patient.

    The columns are the parameters in order.
    """
    rows = []
    for patient in zip(*batch, strict=True):
        leaves = {name: p.detach().requires_grad_() for name, p in parameters.items()}
        value = loss(leaves, patient)
        gradients = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
        rows.append(torch.cat([g.reshape(-1) for g in gradients]))
    return torch.stack(rows)
