"""The section `compute`: which devices it can name."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from client.state.config import SiteCompute
from common.compute import Compute


@pytest.mark.parametrize(
    ("device", "numbers"),
    [("auto", ()), ("cpu", ()), ("cuda", ()), ("cuda:0", (0,)), ("cuda:0,1", (0, 1))],
)
def test_a_device_is_auto_the_processor_or_a_list_of_gpus(
    device: str, numbers: tuple[int, ...]
) -> None:
    assert Compute(device=device).numbers == numbers


@pytest.mark.parametrize(
    "device", ["gpu", "CUDA", "cuda:", "cuda:0,", "cuda:-1", "cuda:0,0", "cpu:1", "cuda:0 1", ""]
)
def test_anything_else_is_refused_with_what_was_expected(device: str) -> None:
    with pytest.raises(ValidationError, match="expected "):
        Compute(device=device)


def test_several_processes_share_the_processor_alone() -> None:
    assert SiteCompute(device="cpu", processes=2).processes == 2
    for device in ("auto", "cuda", "cuda:0,1"):
        with pytest.raises(ValidationError, match="one process a GPU"):
            SiteCompute(device=device, processes=2)
