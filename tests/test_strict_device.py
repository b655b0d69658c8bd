"""The two ways to run a GPU's code without one: what they refuse, and that they compute."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensorDeviceMismatchError,
)
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from tests.strict_device import GPU, HiddenCopy, MixedDevices, fake_device, strict_device


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.GroupNorm(2, 4),
        nn.LeakyReLU(),
        nn.Flatten(),
        nn.Linear(64, 1),
    )


MIXED: dict[str, Callable[[Tensor], object]] = {
    "an addition": lambda x: x + torch.ones(3),
    "the other side": lambda x: torch.ones(3) + x,
    "in place": lambda x: torch.ones(3).add_(x),
    "a matrix product": lambda x: torch.eye(3) @ x,
    "a list of tensors": lambda x: torch.cat([x, torch.ones(3)]),
    "a number, where no number is meant": lambda x: (
        torch.stack([x[0], torch.ones(())]) + torch.ones(2)
    ),
    "an index of the device into the CPU": lambda x: torch.ones(3)[x.long()],
    "a value put at places": lambda x: x.clone().index_put_((torch.arange(2),), torch.ones(2)),
    "a comparison": lambda x: torch.equal(x, torch.ones(3)),
    "drawn by the CPU's generator": lambda x: torch.randn(
        3, device=x.device, generator=torch.Generator()
    ),
    "drawn in place by it": lambda x: x.clone().normal_(generator=torch.Generator()),
    "the CPU's noise": lambda x: x + torch.randn(3, generator=torch.Generator()),
    "inside vmap": lambda x: vmap(lambda row: row * torch.ones(1))(x[:, None]),
    "a parameter that was left": lambda x: F.linear(x, nn.Linear(3, 2).weight),
}
COPIED: dict[str, Callable[[Tensor], object]] = {
    "numpy": lambda x: x.numpy(),
    "numpy of a result": lambda x: (x * 2).square().numpy(),
    "an array of it": lambda x: np.asarray(x),
    "a list": lambda x: x.tolist(),
}
ALLOWED: dict[str, Callable[[Tensor], object]] = {
    "a number": lambda x: x * 2.0 + 1,
    "a CPU tensor of no axes": lambda x: x * torch.tensor(2.0),
    "CPU indices": lambda x: x[torch.arange(2)],
    "an array's indices": lambda x: x[np.array([0, 2])],
    "moved first": lambda x: x + torch.ones(3).to(x.device),
    "made like it": lambda x: x + torch.ones_like(x) + x.new_ones(3),
    "made there": lambda x: x + torch.ones(3, device=x.device),
    "drawn there": lambda x: x + torch.randn(3, device=GPU, generator=torch.Generator(GPU)),
    "moved to another": lambda x: torch.ones(3, dtype=torch.float64).to(x) + x,
    "copied into": lambda x: x.clone().copy_(torch.ones(3)),
    "copied back": lambda x: x.cpu().numpy() + x.to("cpu").numpy() + np.asarray(x.detach().cpu()),
    "waited for": lambda x: float(x.sum()) + x[0].item() + bool((x > 0).all()),
    "from an array": lambda x: x + torch.as_tensor(np.ones(3, np.float32), device=x.device),
    "tensors that torch makes": lambda x: torch.fft.fftfreq(3, device=x.device) + x,
}


@pytest.mark.parametrize("case", MIXED)
def test_a_mixed_operation_raises(case: str) -> None:
    with strict_device():
        x = torch.ones(3).to(GPU)
        with pytest.raises(MixedDevices):
            MIXED[case](x)


@pytest.mark.parametrize("case", COPIED)
def test_a_hidden_copy_raises(case: str) -> None:
    with strict_device():
        x = torch.ones(3).to(GPU)
        with pytest.raises(HiddenCopy):
            COPIED[case](x)


@pytest.mark.parametrize("case", ALLOWED)
def test_what_a_gpu_does_is_allowed(case: str) -> None:
    with strict_device():
        ALLOWED[case](torch.ones(3).to(GPU))


def test_a_tensor_says_where_it_pretends_to_lie() -> None:
    with strict_device() as ledger:
        x = torch.ones(3).to("cuda")
        there = [x, x[1:], x * 2, x.double(), x.detach(), copy.deepcopy(x), nn.Parameter(x)]
        for tensor in there:
            assert tensor.device == GPU
            assert tensor.is_cuda
        for tensor in (torch.ones(3), x.cpu(), x.to("cpu", torch.float64)):
            assert tensor.device.type == "cpu"
        assert ledger.copies_back == 2
        vmap(lambda row: _assert_on_device(row))(x[:, None])


def _assert_on_device(row: Tensor) -> Tensor:
    assert row.device == GPU
    return row


def test_training_on_the_device_gives_the_numbers_of_the_cpu() -> None:
    x = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    there = _network()
    _train(there, x)
    with strict_device():
        here = _network().to(GPU)
        _train(here, x.to(GPU))
        for a, b in zip(there.parameters(), here.parameters(), strict=True):
            assert b.device == GPU
            assert torch.equal(a, b.cpu())


def _train(network: nn.Module, x: Tensor) -> None:
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        network(x).square().mean().backward()
        optimiser.step()


def test_a_gradient_goes_back_to_the_device_of_its_tensor() -> None:
    with strict_device():
        here = torch.ones(3, requires_grad=True)
        there = torch.ones(3).to(GPU).requires_grad_()
        (here.to(GPU) * there).sum().backward()
        assert here.grad is not None
        assert there.grad is not None
        assert here.grad.device.type == "cpu"
        assert there.grad.device == GPU


def test_gradients_of_each_patient_are_seen_through() -> None:
    with strict_device():
        network = _network().to(GPU)
        weights = {name: p.detach() for name, p in network.named_parameters()}
        x = torch.ones(3, 2, 4, 4).to(GPU)

        def loss(given: dict[str, Tensor], item: Tensor) -> Tensor:
            return functional_call(network, given, (item[None],)).sum()

        found = vmap(grad(loss), in_dims=(None, 0))(weights, x)
        assert all(tensor.device == GPU for tensor in found.values())

        # a weight that was left behind
        weights["4.bias"] = torch.zeros(1)
        with pytest.raises(MixedDevices):
            vmap(grad(loss), in_dims=(None, 0))(weights, x)


class _Doubled(torch.autograd.Function):
    """Twice x; its backward pass multiplies with a tensor of the CPU."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        return gradients[0] * torch.full((3,), 2.0)


def test_a_backward_pass_of_ones_own_is_seen_too() -> None:
    with strict_device():
        x = torch.ones(3).to(GPU).requires_grad_()
        with pytest.raises(MixedDevices):
            torch.autograd.grad(_Doubled.apply(x).sum(), [x])


def test_after_the_block_everything_is_the_cpu_again() -> None:
    with strict_device():
        x = torch.ones(3).to(GPU)
    assert x.device.type == "cpu"
    assert (x + torch.ones(3)).numpy().tolist() == [2.0] * 3
    assert torch.Generator().device.type == "cpu"


def test_fake_tensors_refuse_what_a_gpu_refuses() -> None:
    network = _network()  # made before: what is made inside cannot be moved
    with fake_device() as device:
        network.to(device)
        y = network(torch.ones(2, 2, 4, 4).to(device))
        assert y.shape == (2, 1)
        assert y.device.type == "cuda"
        with pytest.raises(FakeTensorDeviceMismatchError):
            y + torch.ones(2, 1)
        with pytest.raises(DataDependentOutputException):
            float(y.sum())
        with pytest.raises(RuntimeError):
            y.detach().numpy()
