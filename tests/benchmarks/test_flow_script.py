"""The flow's benchmark runs, prints what its readers parse, and compares like with like; nothing here judges a time."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

torch.set_num_threads(1)


def script() -> ModuleType:
    """benchmarks/flow.py by its file: opacus installs a package named benchmarks."""
    path = Path(__file__).parents[2] / "benchmarks" / "flow.py"
    spec = importlib.util.spec_from_file_location("kohort_flow", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


flow = script()
KEYS = {
    "dp_ratio", "dp_speedup_over_opacus_hooks", "train_over_normflows", "encode_over_normflows", "invert_over_normflows",
    "memory_over_normflows", "laplace_65k_s", "roundtrip_f32", "roundtrip_f64", "psnr_gain_b1_db", "out_of_range_b05",
    "reversible_mib", "dp_ratio_64", "skipped",
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_it_prints_one_json_object_and_says_what_it_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    flow.main(["--json", "--quick", "--repeats", "1", "--steps", "1", "--without-normflows"])
    found = json.loads(capsys.readouterr().out)
    assert set(found) >= KEYS
    assert found["skipped"] == "normflows: not asked for"
    assert {key for key, value in found.items() if value is None} == set(flow.KEYS_OF_PEER)
    assert found["opacus_gradient_error"] < 1e-5, "the hooks that we are compared with compute the right gradients"
    assert found["reversible_mib"] < found["saved_mib"]
    assert 0 < found["roundtrip_f64"] < 1e-12 < found["roundtrip_f32"] < 1e-5


def test_the_packed_flow_is_the_flow() -> None:
    model = flow.QUICK["speed"].flow()
    x = flow.QUICK["speed"].images()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        assert torch.allclose(flow.PackedGlow(model)(x), model(x), rtol=1e-4)


def test_another_bound_of_the_couplings_is_taken_back() -> None:
    before = flow.glow.LOG_SCALE_BOUND
    with flow.couplings_bounded_by(2.0):
        assert flow.glow.LOG_SCALE_BOUND == 2.0
    assert before == flow.glow.LOG_SCALE_BOUND == 0.5
