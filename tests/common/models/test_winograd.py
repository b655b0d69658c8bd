"""Winograd's convolution equals the direct one, and is taken only where weights are frozen."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from common.models import winograd

torch.set_num_threads(1)


def case(
    cin: int = 128, cout: int = 160, height: int = 32, width: int = 36
) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(2, cin, height, width), torch.randn(cout, cin, 3, 3) / (9 * cin) ** 0.5


def test_it_is_the_convolution_and_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = case()
    calls: list[tuple[int, ...]] = []
    whole = winograd.convolve
    monkeypatch.setattr(
        winograd, "convolve", lambda x, w: (calls.append(tuple(x.shape)), whole(x, w))[1]
    )
    # strips of 3, 3 and 2 tile rows
    monkeypatch.setattr(winograd, "STRIP_BYTES", 4 * 36 * 160 * 9 * 3)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = winograd.conv3x3(ours, weight), F.conv2d(theirs, weight, padding=1)
    np.testing.assert_allclose(y.detach(), expected.detach(), atol=1e-4)
    up = torch.randn_like(y)
    (slope,), (slope_expected,) = (
        torch.autograd.grad(y, ours, up),
        torch.autograd.grad(expected, theirs, up),
    )
    np.testing.assert_allclose(slope, slope_expected, atol=1e-4)
    assert calls == [(2, 128, 32, 36), (2, 160, 32, 36)]


def test_in_double_precision_it_is_exact_to_rounding() -> None:
    x, weight = (t[:, :9].double() for t in case())
    np.testing.assert_allclose(
        winograd.convolve(x, weight), F.conv2d(x, weight, padding=1), atol=1e-12
    )


@pytest.mark.parametrize(
    "why",
    [
        "weight needs a gradient",
        "narrow",
        "not in tiles",
        "few pixels",
        "double precision",
        "autocast",
    ],
)
def test_everywhere_else_it_is_the_direct_convolution(why: str) -> None:
    x, weight = (
        case(height=30) if why == "not in tiles" else case(cout=127) if why == "narrow" else case()
    )
    x = x[:, :, :4, :4] if why == "few pixels" else x
    if why == "double precision":
        x, weight = x.double(), weight.double()
    weight.requires_grad_(why == "weight needs a gradient")
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=why == "autocast"):
        assert not winograd.is_faster(x, weight)
        assert torch.equal(winograd.conv3x3(x, weight), F.conv2d(x, weight, padding=1))
    assert winograd.is_faster(*case())
