"""Theorems about the flow under per-patient gradients: nothing is lost, nothing is shared."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from client.learn.fast.backends import Execution, PatientGradients
from client.learn.patient_gradients import by_backward
from client.learn.private_step import check_model
from client.learn.train_glow import loss_of
from common.models.glow import Glow

torch.set_num_threads(1)


def flow() -> Glow:
    model = Glow(8, 3, 2, 2, 8)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def images() -> Tensor:
    return (
        torch.rand(4, 2, 3, 8, 8, generator=torch.Generator().manual_seed(1)) - 0.5
    )  # 4 patients of 2 images


def loss(model: nn.Module, parameters: dict[str, Tensor], items: Tensor) -> Tensor:
    return -functional_call(model, parameters, (items,)).mean() / 192


def single(model: nn.Module, items: Tensor) -> dict[str, Tensor]:
    """One patient's gradients by a plain backward pass."""
    model = copy.deepcopy(model)
    loss(model, dict(model.named_parameters()), items).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def farthest(ours: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, float]:
    return {n: float((ours[n] - truth[n]).norm() / truth[n].norm().clamp_min(1e-12)) for n in truth}


def test_per_sample_gradients_equal_single_sample_gradients_for_every_tensor() -> None:
    model, batch = flow(), images()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    together = vmap(grad(lambda p, x: loss(model, p, x)), in_dims=(None, 0))(parameters, batch)
    for patient in range(len(batch)):
        truth = single(model, batch[patient])
        assert truth.keys() == parameters.keys(), "every tensor has a gradient"
        errors = farthest({name: g[patient] for name, g in together.items()}, truth)
        assert max(errors.values()) <= 1e-5, max(errors, key=lambda name: errors[name])


@pytest.mark.parametrize("frozen", [(), ("mixings",), ("couplings", "splits")], ids=str)
def test_the_private_steps_own_gradients_equal_a_plain_backward_pass_for_every_tensor(
    frozen: tuple[str, ...],
) -> None:
    """The step chooses the batched back end, and it is exact for each tensor and patient."""
    model, batch = flow(), images()
    trained = {n: p for n, p in model.named_parameters() if not any(part in n for part in frozen)}
    gradients = PatientGradients(trained, loss_of(model, trained), Execution(), 1.0, 4.0, 2)
    gradients.prepare((batch,))
    assert gradients.backend == "layers"
    assert gradients.chunk >= len(batch)
    found = torch.stack([gradients.natural(row) for row in gradients.rows((batch,))])
    truth = by_backward(loss_of(model, trained), trained, (batch,))
    sizes = [p.numel() for p in trained.values()]
    for name, mine, plain in zip(
        trained, found.split(sizes, 1), truth.split(sizes, 1), strict=True
    ):
        errors = (mine - plain).norm(dim=1) / plain.norm(dim=1).clamp_min(1e-12)
        assert float(errors.max()) <= 1e-5, name


def test_rounding_far_from_the_data_costs_a_flow_no_batched_back_end() -> None:
    """Far from this flow's data float32 gives another gradient each way; near zero they agree."""
    model, generator = Glow(16, 1, 3, 8, 32), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.08 * torch.randn(parameter.shape, generator=generator))
    trained = dict(model.named_parameters())
    gradients = PatientGradients(trained, loss_of(model, trained), Execution(), 1.0, 2.0, 1)
    gradients.prepare((torch.zeros(1, 1, 1, 16, 16),))
    assert (gradients.backend, gradients.passed_over) == ("layers", {})


def test_another_patient_in_the_batch_changes_no_gradient() -> None:
    model, batch = flow(), images()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    gradients = vmap(grad(lambda p, x: loss(model, p, x)), in_dims=(None, 0))
    other = batch.clone()
    other[1:] = 1e3
    before, after = gradients(parameters, batch), gradients(parameters, other)
    assert all(torch.equal(before[name][0], after[name][0]) for name in parameters)


def test_the_flow_has_no_buffers_and_passes_the_private_steps_linter() -> None:
    model = flow()
    assert list(model.buffers()) == []
    check_model(model, (3, 8, 8))


class _Tuple(nn.Module):
    """The trap: a layer returns (z, log-determinant), and a hook records gradients of z alone."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.full((3,), 0.1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * self.log_scale.exp()[:, None, None], self.log_scale.sum() * x.shape[
            -1
        ] * x.shape[-2]


def test_output_hooks_lose_the_log_determinant_where_the_functional_gradient_keeps_it() -> None:
    layer, x = _Tuple(), images()[:, 0]
    recorded: list[Tensor] = []

    def hook(_: nn.Module, __: object, output: tuple[Tensor, Tensor]) -> None:
        output[0].register_hook(
            lambda g: recorded.append(g)
        )  # what per-layer hooks see: the gradient of z

    handle = layer.register_forward_hook(hook)
    z, log_determinant = layer(x)
    (0.5 * z.square().sum(dim=(1, 2, 3)) - log_determinant).sum().backward()
    handle.remove()
    by_hook = (recorded[0] * z.detach()).sum(dim=(2, 3))  # d z / d log_scale = z

    def nll(parameters: dict[str, Tensor], item: Tensor) -> Tensor:
        z, log_determinant = functional_call(layer, parameters, (item[None],))
        return 0.5 * z.square().sum() - log_determinant

    parameters = {"log_scale": layer.log_scale.detach()}
    exact = vmap(grad(nll), in_dims=(None, 0))(parameters, x)["log_scale"]
    assert layer.log_scale.grad is not None
    assert torch.allclose(exact.sum(0), layer.log_scale.grad, rtol=1e-5)
    assert torch.allclose(by_hook - exact, torch.full_like(exact, 64.0), rtol=1e-5), (
        "H W of each scale is missing"
    )


@pytest.mark.parametrize("start", ["identity", "shaken"])
def test_gradients_are_finite_on_black_images(start: str) -> None:
    model = Glow(8, 3, 2, 2, 8) if start == "identity" else flow()
    gradients = single(model, torch.full((2, 3, 8, 8), -0.5))
    assert all(bool(torch.isfinite(g).all()) for g in gradients.values())
