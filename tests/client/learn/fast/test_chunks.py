"""How many patients a chunk takes: by the memory that the site allows, not by what is free."""

import resource

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from client.learn.fast import backends
from client.learn.fast.backends import Execution, PatientGradients, chunk_memory_bytes
from client.learn.patient_gradients import Batch, Parameters

torch.set_num_threads(1)
MIB = 2**20
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(resource.RLIM_INFINITY, 1024), (2**30, 128), (2**40, 1024), (64 * MIB, 8)],
    ids=["no limit", "1 GiB", "more than there is", "64 MiB"],
)
def test_a_chunk_takes_an_eighth_of_the_sites_limit_and_at_most_a_gibibyte(
    limit: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends.os, "sysconf", lambda name: 2**12 if "SIZE" in name else 2**23)
    monkeypatch.setattr(backends.resource, "getrlimit", lambda kind: (limit, limit))
    assert chunk_memory_bytes(CPU) == expected * MIB


def prepare(memory_mib: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """The chunk of 32 expected patients of 256 px where a chunk may take so much."""
    monkeypatch.setattr(backends, "chunk_memory_bytes", lambda device: memory_mib * MIB)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 4, 4, 4), nn.LeakyReLU(0.2), nn.Conv2d(4, 1, 4, 4))

    def loss(weights: Parameters, patient: Batch) -> Tensor:
        scores: Tensor = functional_call(module, weights, (patient[0],))
        return scores.mean()

    gradients = PatientGradients(
        dict(module.named_parameters()), loss, Execution("layers"), 1.0, 32.0, 1
    )
    gradients.prepare((torch.zeros(1, 1, 1, 256, 256),))
    return gradients.chunk


def test_a_larger_image_shares_a_chunk_where_the_memory_allows_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chunks = [prepare(mib, monkeypatch) for mib in (1, 4, 128)]
    assert chunks[0] == 1
    assert chunks == sorted(chunks)
    assert chunks[-1] >= 8
