"""The layer rules against a plain backward pass, layer by layer, and what they do not cover."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.nn import functional as F

from client.learn.fast import layer_rules
from client.learn.fast.backends import Execution, PatientGradients
from client.learn.fast.layer_rules import LayerRules
from client.learn.fast.layers import NoRule
from client.learn.patient_gradients import Batch, Parameters, by_backward

torch.set_num_threads(1)
Shape = tuple[int, ...]

COVERED: dict[str, tuple[Callable[[], nn.Module], Shape]] = {
    "linear": (lambda: nn.Linear(5, 3), (4, 5)),
    "linear on one item": (lambda: nn.Linear(5, 3), (5,)),
    "linear on tokens": (lambda: nn.Linear(5, 3, bias=False), (4, 6, 5)),
    "convolution": (lambda: nn.Conv2d(2, 3, 3), (4, 2, 7, 7)),
    "convolution with stride, padding and dilation": (
        lambda: nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
        (2, 2, 9, 8),
    ),
    "two convolutions of one padded shape": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 2, 3, padding=1), nn.ConstantPad2d(1, 0.7), nn.Conv2d(2, 2, 3)
        ),
        (3, 2, 6, 6),
    ),
    "group norm": (lambda: nn.GroupNorm(2, 6), (3, 6, 4, 5)),
    "a frozen layer between": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3).requires_grad_(False), nn.GroupNorm(2, 4)
        ),
        (3, 2, 8, 8),
    ),
    "a critic": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(4, 8, 4, 2, 1),
            nn.GroupNorm(4, 8),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(32, 1),
        ),
        (3, 2, 8, 8),
    ),
}


def trained(module: nn.Module) -> Parameters:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def loss_of(module: nn.Module) -> Callable[[Parameters, Batch], Tensor]:
    frozen = {name: p for name, p in module.named_parameters() if not p.requires_grad}
    return lambda weights, patient: (
        functional_call(module, {**frozen, **weights}, (patient[0],)).square().sum()
    )


def assert_equal_rows(
    loss: Callable[[Parameters, Batch], Tensor], parameters: Parameters, batch: Batch
) -> None:
    """Twice, since buffers are used again."""
    layers = LayerRules(loss, parameters)
    for scale in (1.0, 0.3):
        scaled = tuple(scale * tensor for tensor in batch)
        expected = by_backward(loss, parameters, scaled)
        found = torch.stack([layers.natural(row) for row in layers(scaled)])
        assert float((found - expected).norm()) <= 1e-5 * float(expected.norm())


@pytest.mark.parametrize("case", COVERED)
def test_a_layers_rows_are_those_of_a_plain_backward_pass(case: str) -> None:
    torch.manual_seed(0)
    make, shape = COVERED[case]
    module = make()
    assert_equal_rows(loss_of(module), trained(module), (torch.randn(5, *shape),))


def test_a_layer_that_is_used_twice_adds_up() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.GroupNorm(1, 2))

    def loss(weights: Parameters, patient: Batch) -> Tensor:
        once = functional_call(module, weights, (patient[0],))
        return functional_call(module, weights, (once,)).square().sum() + once.sum()

    assert_equal_rows(loss, trained(module), (torch.randn(4, 3, 2, 6, 6),))


def test_a_tensor_that_the_loss_does_not_use_has_gradient_zero() -> None:
    parameters = {"used": torch.randn(1, 4), "unused": torch.randn(2, 3)}
    assert_equal_rows(
        lambda p, x: F.linear(x[0], p["used"]).square().sum(), parameters, (torch.randn(3, 2, 4),)
    )


APART: dict[str, Callable[[Parameters, Tensor], Tensor]] = {
    "a product of its own": lambda p, x: (p["w"] * x.mean(0)).sum(),
    "a weight that is changed before use": lambda p, x: F.linear(x, 2 * p["w"]).sum(),
    "used in a layer and outside": lambda p, x: F.linear(x, p["w"]).sum() + p["w"].square().sum(),
    "without the patient": lambda p, x: p["w"].exp().sum() + 0 * x.sum(),
    "a pointwise convolution whose weight is made from two": lambda p, x: (
        F.conv2d(
            x.reshape(2, 2, 2, 1), (p["w"].view(2, 2) @ p["v"].exp())[:, :, None, None], p["v"][0]
        )
        .sin()
        .sum()
    ),
    "its bias alone is made": lambda p, x: (
        F.conv2d(x.reshape(1, 2, 2, 2), torch.ones(2, 2, 1, 1), p["v"].exp()[0]).square().sum()
        + p["w"].sum()
    ),
}


@pytest.mark.parametrize("case", APART)
def test_a_tensor_used_outside_the_rules_has_each_patients_own_gradient(case: str) -> None:
    torch.manual_seed(0)
    parameters, batch = {"w": torch.randn(1, 4), "v": torch.randn(2, 2)}, (torch.randn(3, 2, 4),)

    def loss(weights: Parameters, patient: Batch) -> Tensor:
        return APART[case](weights, patient[0])

    assert_equal_rows(loss, parameters, batch)
    gradients = PatientGradients(parameters, loss, Execution(), 1.0, 8.0, 1)
    gradients.prepare(batch)
    assert gradients.backend == "layers"


@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (3, 2), (1, 3), (4, 4)], ids=str)
@pytest.mark.parametrize("channels", [(2, 5), (5, 2), (3, 3)], ids=str)
def test_a_convolution_is_exact_whichever_side_is_unfolded(
    channels: tuple[int, int], shape: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    module = nn.Conv2d(*channels, shape, padding=(shape[0] // 2, (shape[1] - 1) // 2))
    assert_equal_rows(loss_of(module), trained(module), (torch.randn(4, 3, channels[0], 6, 5),))


def test_a_weight_whose_two_sides_are_unfolded_adds_up() -> None:
    torch.manual_seed(0)
    parameters = {"w": torch.randn(2, 4, 3, 3)}

    def loss(weights: Parameters, patient: Batch) -> Tensor:
        x = patient[0]
        return (
            F.conv2d(x, weights["w"]).square().sum()
            + F.conv2d(x, weights["w"], stride=2).square().sum()
        )

    assert_equal_rows(loss, parameters, (torch.randn(3, 1, 4, 7, 7),))


@pytest.mark.parametrize("case", ["a critic", "a frozen layer between"])
def test_torchs_general_way_through_vmap_gives_the_same_rows(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `_beneath` falls back to where a torch lacks the private functions."""
    torch.manual_seed(0)
    make, shape = COVERED[case]
    module = make()
    batch = (torch.randn(5, *shape),)
    quick = LayerRules(loss_of(module), trained(module))(batch).clone()
    monkeypatch.setattr(layer_rules, "_functorch", object())
    assert torch.equal(quick, LayerRules(loss_of(module), trained(module))(batch))


UNCOVERED: dict[str, Callable[[Parameters, Tensor], Tensor]] = {
    "a larger convolution whose weight is changed before use": lambda p, x: (
        F.conv2d(x.reshape(2, 1, 2, 2), 2 * p["w"].view(1, 1, 2, 2)).square().sum()
    ),
    "a gradient inside the loss": lambda p, x: (
        grad(lambda y: F.linear(y, p["w"]).square().sum())(x).square().sum()
    ),
    "an input that is nobody's": lambda p, x: F.linear(torch.ones(2, 4), p["w"]).sum() * x.sum(),
    "a convolution with groups": lambda p, x: (
        F.conv2d(x.reshape(1, 4, 2, 1), p["w"].view(4, 1, 1, 1), groups=4).square().sum()
    ),
}


@pytest.mark.parametrize("case", UNCOVERED)
def test_what_has_no_rule_is_noticed_and_left_to_a_plain_backward_pass(case: str) -> None:
    torch.manual_seed(0)
    parameters, batch = {"w": torch.randn(1, 4)}, (torch.randn(3, 2, 4),)

    def loss(weights: Parameters, patient: Batch) -> Tensor:
        return UNCOVERED[case](weights, patient[0])

    gradients = PatientGradients(parameters, loss, Execution(), 1.0, 8.0, 1)
    gradients.prepare(batch)
    assert (gradients.backend, gradients.chunk) == ("backward", 1)
    rows = torch.cat([gradients.rows((batch[0][i : i + 1],)).clone() for i in range(3)])
    assert torch.allclose(rows, by_backward(loss, parameters, batch))
    explicit = PatientGradients(parameters, loss, Execution("layers", 3), 1.0, 8.0, 1)
    with pytest.raises((NoRule, RuntimeError)):
        explicit.prepare(batch)


def test_a_forward_pass_in_bfloat16_gives_fp32_rows_near_those_in_fp32() -> None:
    torch.manual_seed(0)
    module = COVERED["a critic"][0]()
    batch = (torch.randn(4, 3, 2, 8, 8),)
    rows = {}
    for autocast in (False, True):
        gradients = PatientGradients(
            trained(module), loss_of(module), Execution("layers", 4, autocast=autocast), 1.0, 8.0, 1
        )
        gradients.prepare(batch)
        rows[autocast] = gradients.rows(batch).clone()
        assert rows[autocast].dtype is torch.float32
    error = float((rows[True] - rows[False]).norm() / rows[False].norm())
    assert 1e-5 < error < 0.05


def test_training_with_layer_rules_imports_no_compiler() -> None:
    """vmap's decompositions would import both: five seconds of every training process."""
    program = (
        "import sys, torch; from client.learn.fast.layer_rules import LayerRules;"
        "from torch.nn import functional as F;"
        "rules = LayerRules(lambda p, x: F.linear(x[0], p['w']).sum(), {'w': torch.zeros(1, 3)});"
        "rules((torch.ones(2, 4, 3),));"
        "print(int('torch._dynamo' in sys.modules or 'sympy' in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "0"
