"""The flow's benchmark runs, prints what its readers parse, and compares like with like.

No test here judges a time.
"""

import json
import math

import pytest
import torch

from benchmarks import flow, flow_layouts, flow_noise, flow_speed
from common.models import glow_coupling

torch.set_num_threads(1)


KEYS = {
    "dp_ratio",
    "dp_speedup_over_opacus_hooks",
    "train_over_normflows",
    "encode_over_normflows",
    "invert_over_normflows",
    "memory_over_normflows",
    "laplace_65k_s",
    "roundtrip_f32",
    "roundtrip_f64",
    "psnr_gain_b1_db",
    "out_of_range_b05",
    "reversible_mib",
    "dp_ratio_64",
    "skipped",
    "psnr_gain_b1_radiographs_db",
    "psnr_gain_over_loose_b1_db",
    "roundtrip_f64_chest-32",
    "roundtrip_f64_fundus-64",
    "psnr_b1_db",
    "psnr_b1_radiographs_db",
}


@pytest.mark.filterwarnings("ignore")
def test_it_prints_one_json_object_and_says_what_it_skipped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    flow.main(["--json", "--quick", "--repeats", "1", "--steps", "1", "--without-normflows"])
    found = json.loads(capsys.readouterr().out)
    assert set(found) >= KEYS
    assert found["skipped"] == "normflows: not asked for"
    assert {key for key, value in found.items() if value is None} == set(flow.KEYS_OF_PEER)
    assert found["opacus_gradient_error"] < 1e-5, (
        "the hooks that we are compared with compute the right gradients"
    )
    assert found["reversible_mib"] < found["saved_mib"]
    assert 0 < found["roundtrip_f64"] < 1e-12 < found["roundtrip_f32"] < 1e-5


class Base:
    """A learned Gaussian of a standard Glow, as normflows names it."""

    def __init__(self, loc: float, log_scale: float) -> None:
        self.loc, self.log_scale = torch.tensor(loc), torch.tensor(log_scale)


class Halves(torch.nn.Module):
    """A toy of a normflows multiscale flow: two halves of an image, decoded by 1 / scale."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(4.0))
        self.q0 = [Base(1.0, 0.5), Base(-1.0, 0.0)]

    def inverse_and_log_det(self, x: torch.Tensor) -> tuple[list[torch.Tensor], float]:
        return [half * self.scale for half in x.chunk(2, dim=3)], 0.0

    def forward_and_log_det(self, parts: list[torch.Tensor]) -> tuple[torch.Tensor, float]:
        return torch.cat(parts, dim=3) / self.scale, 0.0


def test_latents_of_a_standard_glow_are_standardised_by_its_own_gaussians_and_decode_exactly() -> (
    None
):
    coder, x = flow_noise.naive_of(Halves()), torch.rand(4, 1, 8, 8) - 0.5
    left, right = coder.encode(x)
    assert torch.allclose(left, (4 * x[..., :4] - 1) * math.exp(-0.5))
    assert torch.allclose(right, 4 * x[..., 4:] + 1)
    assert torch.allclose(coder.decode([left, right]), x, atol=1e-6)
    raw = flow_noise.decode_noised(coder, x, 1.0, match=False)
    assert float((raw - x).std()) == pytest.approx(
        2**0.5 / 4 * ((1 + math.exp(1.0)) / 2) ** 0.5, rel=0.15
    )


def test_what_is_no_number_is_black_and_counts_as_out_of_range() -> None:
    decoded = torch.tensor([[[[math.nan, math.inf, -math.inf, 0.25]]]], dtype=torch.float64)
    assert flow_noise.shown_as(decoded).flatten().tolist() == [-0.5, 0.5, -0.5, 0.25]
    assert flow_noise.shown_as(decoded, 0.0).flatten().tolist() == [0.0, 0.5, -0.5, 0.25]
    assert flow_noise.outside(decoded) == 0.75
    assert flow_noise.psnr(
        torch.full((1, 1, 2, 2), 0.1).double(), torch.zeros(1, 1, 2, 2)
    ) == pytest.approx(20.0)


def test_nobody_is_both_learned_from_and_looked_at() -> None:
    learned, shown = flow_noise.radiographs(16, None)
    assert (len(learned), len(shown)) == (621, 128)
    assert not {x.numpy().tobytes() for x in learned} & {x.numpy().tobytes() for x in shown}


def test_the_discs_have_the_noise_that_is_said() -> None:
    apart = (
        flow_noise.discs(64, 32, 0).double() - flow_noise.discs(64, 32, 0, noise=0.0).double()
    ) / 256
    assert float(apart.std()) == pytest.approx(flow_noise.DISC_NOISE, rel=0.05)


def test_the_packed_flow_is_the_flow() -> None:
    model = flow_layouts.QUICK["speed"].flow()
    x = flow_layouts.QUICK["speed"].images()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        assert torch.allclose(flow_speed.PackedGlow(model)(x), model(x), rtol=1e-4)


def test_another_bound_of_the_couplings_is_taken_back() -> None:
    before = glow_coupling.LOG_SCALE_BOUND
    with flow_noise.couplings_bounded_by(2.0):
        assert glow_coupling.LOG_SCALE_BOUND == 2.0
    assert before == glow_coupling.LOG_SCALE_BOUND == 0.5
