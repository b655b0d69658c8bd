"""Where a trainer computes: streams that know no neighbour, images on the device, a full device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from client.learn.fast.backends import Execution, PatientGradients
from client.learn.machine import DeviceImages, Machine, machine_on
from client.learn.patient_gradients import Batch, Parameters
from client.learn.private_step import PrivateStep, StepConstants
from client.learn.round_parts import Streams
from client.state.ledger import PracticeReservation
from common.compute import Compute
from common.errors import EnvironmentFault, PolicyError
from common.privacy.mechanisms import SubsampledGaussian
from common.privacy.noise import SeededNoiseSource

torch.set_num_threads(1)
CPU = torch.device("cpu")


def draw(stream: torch.Generator) -> list[float]:
    return torch.rand(4, generator=stream).tolist()


def test_a_patients_stream_depends_on_seed_step_and_patient_alone() -> None:
    streams = Streams(1)
    first = draw(streams.numbers([3]))
    draw(streams.numbers([4]))
    draw(streams.items(3))
    assert draw(streams.numbers([3])) == first
    others = [draw(Streams(2).numbers([3])), draw(streams.numbers([4])), draw(streams.items(3))]
    streams.step = 1
    others.append(draw(streams.numbers([3])))
    assert all(other != first for other in others)


def test_on_a_processor_each_patient_has_a_pass_of_its_own() -> None:
    assert Streams(1).groups([5, 2]) == [[5], [2]]
    gpu = Machine(torch.device("cuda"))
    assert Streams(1, gpu).groups([5, 2]) == [[5, 2]]


def test_images_on_the_device_are_those_on_disk() -> None:
    images = np.random.default_rng(0).integers(0, 256, (7, 4, 4, 3)).astype(np.uint8)
    chosen = np.array([6, 0, 6])
    kept = DeviceImages(images, Machine(images_bytes=images.nbytes))
    read = DeviceImages(images, Machine(images_bytes=images.nbytes - 1))
    for found in (kept.rows(chosen), read.rows(chosen)):
        assert found.dtype is torch.uint8
        assert np.array_equal(found.numpy(), images[chosen])
    images[0] = 0
    assert kept.rows(chosen)[1].any()
    assert not read.rows(chosen)[1].any()


def test_the_sites_precision_becomes_the_private_steps_and_never_a_flows() -> None:
    usual = machine_on(CPU, Compute())
    assert (usual.execution.autocast, usual.execution.threaded) == (False, False)
    fast = machine_on(CPU, Compute(precision="bfloat16"))
    assert fast.execution.autocast
    assert not fast.exact.execution.autocast


FULL_GPU = torch.OutOfMemoryError("CUDA out of memory")
FULL_PROCESSOR = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes")


class FullDevice:
    """Lets rows of more than `most` patients raise what a full device raises, and counts."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, most: int, error: Exception = FULL_GPU
    ) -> None:
        self.refused = 0
        self.begun: list[PatientGradients] = []
        whole = PatientGradients.rows

        def rows(gradients: PatientGradients, batch: Batch) -> Tensor:
            # the first chunk of each size is summed, the second one finds the device full
            began = gradients in self.begun
            self.begun.append(gradients)
            if gradients.chunk > most and (began or not most):
                self.refused += 1
                raise error
            return whole(gradients, batch)

        monkeypatch.setattr(PatientGradients, "rows", rows)


def one_step(chunk: int, reservation: PracticeReservation) -> tuple[Parameters, list[int]]:
    """One private step on thirty patients, and whom it asked for."""
    table = torch.randn(30, 2, 40, generator=torch.Generator().manual_seed(1))
    parameters = {"w": torch.zeros(3, 40), "b": torch.zeros(3)}
    asked: list[int] = []

    def batch_for(patients: Sequence[int]) -> Batch:
        asked.extend(patients)
        return (table[list(patients)],)

    def loss(p: Parameters, x: Batch) -> Tensor:
        return F.linear(x[0], p["w"], p["b"]).square().sum() + F.linear(x[0], p["w"]).sum()

    step = PrivateStep(
        parameters,
        loss,
        StepConstants(1.0, 0.5, 0.4, 12),
        reservation,
        SeededNoiseSource(7),
        execution=Execution("layers", chunk),
    )
    return step.step(30, batch_for), asked


@pytest.mark.parametrize("error", [FULL_GPU, FULL_PROCESSOR, MemoryError()])
def test_a_full_device_gets_smaller_chunks_within_one_step_of_the_reservation(
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    event = SubsampledGaussian(0.4, 0.5, 1)
    expected, _ = one_step(2, PracticeReservation(event))
    full = FullDevice(monkeypatch, most=2, error=error)
    reservation = PracticeReservation(event)
    found, asked = one_step(8, reservation)
    assert full.refused == 2
    assert len(set(asked)) < len(asked)
    for name, value in expected.items():
        assert torch.equal(found[name], value)
    with pytest.raises(PolicyError, match="reserv"):
        reservation.take()


def test_a_device_that_cannot_hold_one_patient_is_a_clear_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    FullDevice(monkeypatch, most=0)
    with pytest.raises(EnvironmentFault, match="too little memory for one patient") as refused:
        one_step(4, PracticeReservation(SubsampledGaussian(0.4, 0.5, 1)))
    assert refused.value.code == "E-DEVICE-MEMORY"
    assert "compute.memory_gib" in refused.value.hint


def test_another_fault_of_a_back_end_is_no_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    FullDevice(monkeypatch, most=2, error=RuntimeError("could not compute"))
    with pytest.raises(RuntimeError, match="could not compute"):
        one_step(8, PracticeReservation(SubsampledGaussian(0.4, 0.5, 1)))
