"""Per-patient gradients of every tensor of the pairs' critic, against three oracles.

They are one patient alone, opacus' hooks, and double backward.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from client.learn.fast.backends import by_vmap
from client.learn.fast.layer_rules import LayerRules
from client.learn.patient_gradients import Parameters, by_backward
from common.models.wgan import Critic
from common.models.wgan_losses import critic_loss, gradient_penalty

torch.set_num_threads(1)
PATIENTS, ITEMS = 3, 2
HOOK_LOSSES = ("wgan", "hinge", "logistic")  # opacus' hooks cannot do a gradient penalty
Batch = tuple[Tensor, ...]


def scene(kind: str) -> tuple[Critic, Parameters, Callable[[Parameters, Batch], Tensor], Batch]:
    """A small critic, its parameters, the loss of one patient, and a batch (items, fakes, mix)."""
    torch.manual_seed(0)
    critic = Critic(32, 8)

    def loss(weights: Parameters, patient: Batch) -> Tensor:
        items, fakes, mix = patient

        def score(pairs: Tensor) -> Tensor:
            return functional_call(critic, weights, (pairs,))

        scores = score(torch.cat([items, fakes]))
        found = critic_loss(scores[: len(items)], scores[len(items) :], kind)
        return found + gradient_penalty(score, items, fakes, mix) if kind == "wgan-gp" else found

    items, fakes = torch.randn(
        2, PATIENTS, ITEMS, 2, 32, 32, generator=torch.Generator().manual_seed(1)
    )
    mix = torch.rand(PATIENTS, ITEMS, generator=torch.Generator().manual_seed(2))
    return critic, dict(critic.named_parameters()), loss, (items, fakes, mix)


def by_name(rows: Tensor, parameters: Parameters) -> Parameters:
    """Rows [c, d] as one tensor [c, …] per parameter."""
    parts = torch.split(rows, [p.numel() for p in parameters.values()], dim=1)
    return {
        name: part.view(len(rows), *p.shape)
        for (name, p), part in zip(parameters.items(), parts, strict=True)
    }


def assert_close(found: Parameters, expected: Parameters) -> None:
    """Every tensor, of every patient, to float rounding (relative to the tensor's own norm)."""
    assert found.keys() == expected.keys()
    for name in expected:
        for one, other in zip(found[name], expected[name], strict=True):
            assert float((one - other).norm()) <= 2e-5 * float(other.norm()) + 1e-7, name


def rows_of(backend: str, kind: str) -> Parameters:
    """The rows of a back end, by name."""
    _, parameters, loss, batch = scene(kind)
    if backend == "vmap":
        return by_name(by_vmap(loss, parameters, batch), parameters)
    if backend == "backward":
        return by_name(by_backward(loss, parameters, batch), parameters)
    layers = LayerRules(loss, parameters)
    rows = layers(batch)
    return by_name(torch.stack([layers.natural(row) for row in rows]), parameters)


@pytest.mark.parametrize("backend", ["layers", "vmap"])
@pytest.mark.parametrize("kind", HOOK_LOSSES)
def test_every_tensors_per_patient_gradient_equals_the_one_patient_gradient(
    kind: str, backend: str
) -> None:
    assert_close(rows_of(backend, kind), rows_of("backward", kind))


@pytest.mark.parametrize("backend", ["layers", "backward"])
@pytest.mark.parametrize("kind", HOOK_LOSSES)
@pytest.mark.filterwarnings("ignore")
def test_every_tensors_per_patient_gradient_equals_opacus_hooks(kind: str, backend: str) -> None:
    from opacus import GradSampleModule

    critic, _, _, (items, fakes, _) = scene(kind)
    hooked = GradSampleModule(critic)
    real, fake = hooked(items.flatten(0, 1)), hooked(fakes.flatten(0, 1))
    critic_loss(real, fake, kind).backward()
    samples = {name: p.grad_sample for name, p in hooked._module.named_parameters()}
    means = {
        name: rows.view(PATIENTS, ITEMS, *rows.shape[1:]).mean(1) for name, rows in samples.items()
    }
    assert_close(rows_of(backend, kind), means)


@pytest.mark.parametrize("backend", ["vmap", "backward"])
def test_wgan_gp_equals_an_explicit_double_backward(backend: str) -> None:
    """By autograd with create_graph, with the penalty 10 (|grad D(e·x + (1 - e)·f)| - 1)^2."""
    critic, parameters, _, batch = scene("wgan-gp")
    expected = []
    for items, fakes, mix in zip(*batch, strict=True):
        between = (
            mix.view(-1, 1, 1, 1) * items + (1 - mix.view(-1, 1, 1, 1)) * fakes
        ).requires_grad_()
        (slopes,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        penalty = 10 * (slopes.flatten(1).norm(dim=1) - 1).square().mean()
        loss = critic(fakes).mean() - critic(items).mean() + penalty
        gradients = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
        expected.append(torch.cat([g.flatten() for g in gradients]))
    assert_close(rows_of(backend, "wgan-gp"), by_name(torch.stack(expected), parameters))
