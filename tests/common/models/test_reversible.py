"""Rebuilding activations changes neither value nor gradients, and stores next to nothing."""

import pytest
import torch

from client.learn.train_glow import loss_of
from common.errors import ConfigurationError
from common.models.glow import Glow

torch.set_num_threads(1)
Gradients = dict[str, torch.Tensor]


def flow(
    size_px: int = 8,
    channels: int = 3,
    levels: int = 2,
    steps: int = 3,
    width: int = 8,
    doublings: int = 0,
) -> Glow:
    model = Glow(size_px, channels, levels, steps, width, doublings)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def value_and_gradients(model: Glow, reverse: bool, x: torch.Tensor) -> tuple[float, Gradients]:
    model.reversible = reverse
    x = x.detach().requires_grad_()
    loss = -model(x).mean() / model.dimension
    named = {"images": x, **dict(model.named_parameters())}
    return float(loss.detach()), dict(
        zip(named, torch.autograd.grad(loss, list(named.values())), strict=True)
    )


@pytest.mark.parametrize("doublings", [0, 1])
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=str
)
def test_every_gradient_is_that_of_the_stored_activations(
    dtype: torch.dtype, bound: float, doublings: int
) -> None:
    model = flow(levels=2 - doublings, doublings=doublings).to(dtype)
    x = (torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1)) - 0.5).to(dtype)
    plain, stored = value_and_gradients(model, False, x)
    again, rebuilt = value_and_gradients(model, True, x)
    assert plain == again
    assert stored.keys() == rebuilt.keys()
    for name, gradient in stored.items():
        assert float((rebuilt[name] - gradient).norm()) <= bound * float(gradient.norm()), name


def saved_bytes(model: Glow, reverse: bool, x: torch.Tensor) -> int:
    """Of the unique storages that the backward pass keeps, weights apart."""
    model.reversible = reverse
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(x)
    assert loss.requires_grad
    return sum(
        t.untyped_storage().nbytes() for address, t in kept.items() if address not in weights
    )


def test_what_is_stored_does_not_grow_with_the_width_and_hardly_with_the_steps() -> None:
    x = torch.zeros(4, 1, 32, 32)
    sizes = {
        (k, w): saved_bytes(flow(32, 1, 3, k, w), True, x) for k, w in ((2, 8), (2, 64), (8, 8))
    }
    assert sizes[2, 64] == sizes[2, 8]
    # matrices of the mixings alone
    assert sizes[8, 8] < sizes[2, 8] + 8 * 3 * 4 * (16 + 64 + 256) * 6
    assert saved_bytes(flow(32, 1, 3, 8, 8), False, x) > 5 * sizes[8, 8]


def test_weights_that_change_before_the_backward_pass_are_noticed() -> None:
    model = flow()
    model.reversible = True
    loss = model(torch.zeros(2, 3, 8, 8)).sum()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_the_private_step_refuses_a_reversible_flow() -> None:
    model = flow()
    model.reversible = True
    with pytest.raises(ConfigurationError, match="reversible"):
        loss_of(model, dict(model.named_parameters()))
