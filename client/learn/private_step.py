"""The one private step: Poisson sampling, per-patient clip, lattice noise, ledger reservation.

In: parameters, a loss for ONE patient, public constants, a reservation, a noise source.
Out: a privatized mean gradient.
Guarantees, per call, for each patient (zero-out adjacency):
  1. one step is taken from the reservation before anything is drawn; without one left, or with test
     noise on a ledger's reservation, the step is refused
  2. each patient is drawn by its own coin of bias q; an empty draw goes on and releases pure noise
  3. drawn patients are worked in chunks of a fixed shape, so memory does not depend on how many
     were drawn
  4. one gradient per patient, fp32 (patient_gradients.py)
  5. its norm, at most 2.5e-5 too small; if it is not finite, the non-finite entries become 0
  6. clip to (1 - eta)·C and round to the lattice C·2^-24: the integer vector has an L2 norm of at
     most 2^24, so the sensitivity is exactly C
  7. an exact integer sum, independent of chunking, order and number of processes (5 to 7:
     lattice.py)
  8. lattice Gaussian noise sigma·C, a public divisor, fp32
Canaries (canary_sum.py) are rows of the same sum. Their share is known and independent of the
patients. It is taken out again after the noise, exactly: the patients' sum and noise are returned.
Not covered:
  - the running time, which grows with the number drawn (what leaves is sent at a fixed time)
  - a loss that itself mixes patients: it sees one patient, and model_check.py refuses modules that
    couple a batch
  - anything that is computed from the data elsewhere

Source: Abadi et al. 2016; the lattice: docs/methods/dp-wgan.md.
"""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.learn.canary_sum import CanarySum
from client.learn.fast.backends import Execution, PatientGradients
from client.learn.lattice import LatticeSum, check_clip
from client.learn.model_check import check_model
from client.learn.patient_gradients import Batch, Parameters, PatientLoss
from client.learn.workers import ALONE, Workers
from client.state.ledger import PracticeReservation, Reservation
from common.devices import is_out_of_memory
from common.errors import Bug, ConfigurationError, EnvironmentFault, PolicyError
from common.privacy.canaries import Canaries, nobody
from common.privacy.mechanisms import SubsampledGaussian
from common.privacy.noise import LATTICE, Noise, NoiseSource, SeededNoiseSource
from common.privacy.tally import Counts

__all__ = ["Execution", "Parameters", "PatientLoss", "PrivateStep", "StepConstants", "check_model"]
BatchFor = Callable[[Sequence[int]], Batch]


@dataclass(frozen=True)
class StepConstants:
    """Public constants of the signed plan; none is computed from how many patients a site has."""

    clip: float
    noise_multiplier: float
    sampling_rate: float
    divisor: float
    items_per_patient: int = 1

    def __post_init__(self) -> None:
        for name in ("clip", "noise_multiplier", "sampling_rate", "divisor", "items_per_patient"):
            value = getattr(self, name)
            if not 0.0 < value < math.inf or (name == "sampling_rate" and value > 1.0):
                raise ConfigurationError(
                    f"private step: {name}: expected a positive number "
                    f"(a rate: at most 1), got {value!r}"
                )
        check_clip(self.clip)


class PrivateStep:
    """Privatized gradients of one model, one step of one reservation at a time.

    `parameters`: the trainable tensors by name (fp32), read anew at each step; the trainer may
    update them in place. `loss(parameters, patient)`: the scalar loss of one patient, a mean over
    its items. It is deterministic given its arguments; what is random comes in through `batch_for`.
    `execution`: how fast and in how much memory, never what is guaranteed. `canaries`: invented
    patients, who never move a weight (common/privacy/canaries.py). `workers`: the processes of
    one host that share the drawn patients; each calls `step` with the same arguments.
    """

    def __init__(
        self,
        parameters: Parameters,
        loss: PatientLoss,
        constants: StepConstants,
        reservation: Reservation | PracticeReservation,
        noise: Noise,
        *,
        execution: Execution | None = None,
        canaries: Canaries | None = None,
        workers: Workers = ALONE,
    ) -> None:
        if canaries is None:
            canaries = Canaries(nobody())
        if execution is None:
            execution = Execution()

        # the coordinates: those of the weights, then the canaries' dummy ones
        sizes = [p.numel() for p in parameters.values()]
        self._weights = sum(sizes)
        self._dimension = self._weights + canaries.own

        # reservation and noise belong together and cover what will happen
        _check_pair(reservation, noise)
        _check_event(reservation.event, constants, self._dimension)
        if not parameters or any(p.dtype is not torch.float32 for p in parameters.values()):
            raise ConfigurationError("private step: expected fp32 parameters, at least one")

        # what a step needs
        self._canaries = canaries
        self._execution = execution
        self._parameters = parameters
        self._constants = constants
        self._reservation = reservation
        self._noise = noise
        self._workers = workers

        # rows of gradients, and their exact sums
        self._loss = loss
        self._gradients = self._make_gradients(execution)
        device = next(iter(parameters.values())).device
        self._device = device
        self._sum = LatticeSum(self._weights, constants.clip, device)
        self._canary_sum = CanarySum(canaries, sizes, constants.clip, constants.divisor, device)

    @property
    def stamp(self) -> str:
        """Return `private`, or NOT PRIVATE where the noise repeats itself."""
        return self._noise.stamp

    @property
    def choice(self) -> str:
        """Return back end and chunk in words, and why a faster one was passed over.

        For this site alone. Empty before the first patient.
        """
        if not self._gradients.chunk:
            return ""
        why = ""
        for name, reason in self._gradients.passed_over.items():
            why += f"; not {name}: {reason}"
        return f"{self._gradients.backend}, {self._gradients.chunk} patients at a time{why}"

    def step(self, patient_count: int, batch_for: BatchFor) -> Parameters:
        """Return the privatized mean gradient by parameter name (fp32).

        `batch_for(patients)` returns tensors with a leading patient axis, for at most a chunk of
        indices below `patient_count`. Raises `PolicyError` (E-EXHAUSTED) when the reservation has
        no step left.
        """
        # (1) take one step from the reservation
        self._reservation.take()

        # (2) draw each patient by its own coin, and each canary like a patient
        coins = self._coins(patient_count + self._canaries.own + self._canaries.inside)
        drawn = np.flatnonzero(coins[:patient_count]).tolist()
        own, inside = self._canaries.sampled(coins[patient_count:])

        with self._draw_noise() as noise:
            # (3 to 7) work the drawn patients in chunks
            self._sum_patients(self._workers.share(drawn), batch_for)
            share = self._add_canaries(inside)
            # in the parameters' order first: each process has columns of its own back end
            summed = self._workers.sum(self._gradients.natural(self._sum.total))

            # the weights' sum, then the sum on the dummy coordinates
            total = torch.zeros(self._dimension, dtype=torch.int64, device=self._device)
            total[: self._weights] = summed
            total[self._weights :] = self._canary_sum.sum_own(own).to(self._device)
            places = self._canary_sum.places.to(self._device)
            patients = total[places].cpu() - share

            # (8) add lattice Gaussian noise
            if self._workers.first:
                total += torch.from_numpy(noise.wait()).to(self._device)

        # take the share of the canaries inside the model out again: it is known to the last digit
        total[places] -= share.to(self._device)

        # (8) divide by a public number, and round to fp32
        constants = self._constants
        update = total.double() * (constants.clip / (LATTICE * constants.divisor))
        released = self._workers.from_first(update.to(torch.float32))

        # the canaries hear what is released
        self._canary_sum.observe(released, share - patients, (own, inside), len(drawn))
        return self._by_name(released[: self._weights])

    def _make_gradients(self, execution: Execution) -> PatientGradients:
        """How rows of gradients are computed, before the first patient's shapes are known."""
        return PatientGradients(
            self._parameters,
            self._loss,
            execution,
            self._constants.clip,
            expected=self._constants.divisor,
            items=self._constants.items_per_patient,
        )

    def _sum_patients(self, patients: list[int], batch_for: BatchFor) -> None:
        """Sum the lattice vectors of this process's patients, exactly (3 to 7).

        A device without memory for a chunk gets smaller ones: the sum begins anew, with the same
        patients and the same step of the reservation. Raises EnvironmentFault (E-DEVICE-MEMORY)
        where it has none for one patient.
        """
        # what a failed try held is gone when it returns
        while not self._try_sum(patients, batch_for):
            self._shrink()

    def _try_sum(self, patients: list[int], batch_for: BatchFor) -> bool:
        """Sum the patients' vectors from zero on; False where the device's memory is too small."""
        self._sum.clear()
        try:
            # (3) work the drawn patients in chunks
            for batch in self._chunks(patients, batch_for):
                # (4) compute one gradient per patient
                rows = self._gradients.rows(batch)
                # (5, 6, 7) clip each, round it to the lattice, sum exactly
                self._sum.add(rows)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return False
        return True

    def _shrink(self) -> None:
        """Take half as many patients at a time from now on; the trials are made again."""
        chunk = self._gradients.chunk
        if chunk <= 1:
            raise EnvironmentFault(
                f"private step: {self._device} has too little memory for one patient",
                hint="end what else uses it, or raise compute.memory_gib (GPU) or "
                "limits.child_memory_gib (processor) where it is set; else take a larger machine",
                code="E-DEVICE-MEMORY",
            )
        self._execution = replace(self._execution, chunk=chunk // 2)
        self._gradients = self._make_gradients(self._execution)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _coins(self, count: int) -> NDArray[np.bool_]:
        """One coin for each patient and canary, drawn by the first process."""
        if not self._workers.first:
            received = self._workers.from_first(torch.zeros(count, dtype=torch.uint8))
            return received.numpy().astype(np.bool_)
        coins = self._noise.bernoulli(self._constants.sampling_rate, count)
        self._workers.from_first(torch.from_numpy(coins.astype(np.uint8)))
        return coins

    def _draw_noise(self) -> "_NoiseThread":
        """The step's noise, drawn by the first process: beside the gradients, or after them."""

        def draw() -> NDArray[np.int64]:
            return self._noise.gaussian_lattice(self._dimension, self._constants.noise_multiplier)

        threaded = self._execution.threaded
        if threaded is None:
            threaded = self._sum.total.device.type != "cpu"
        if not self._workers.first:
            return _NoiseThread(None, threaded)
        return _NoiseThread(draw, threaded)

    def _add_canaries(self, drawn: Counts) -> Tensor:
        """Add the drawn canaries inside the model to the sum; return their share, int64 [R, b].

        The first process adds them.
        """
        if not self._canaries.inside:
            return torch.zeros_like(self._canary_sum.places)
        if not self._workers.first:
            drawn = drawn[:0]
        columns = torch.arange(self._weights, device=self._sum.total.device)
        columns = self._gradients.natural(columns)
        return self._workers.from_first(self._canary_sum.add_inside(self._sum, columns, drawn))

    def _chunks(self, patients: list[int], batch_for: BatchFor) -> Iterator[Batch]:
        """The patients' batches, at most a chunk of patients each."""
        done = 0
        # the first patient's shapes decide back end and chunk
        if patients and not self._gradients.chunk:
            first = _batch_of(patients[:1], batch_for)
            self._gradients.prepare(first)
            yield first
            done = 1
        for at in range(done, len(patients), max(1, self._gradients.chunk)):
            yield _batch_of(patients[at : at + self._gradients.chunk], batch_for)

    def _by_name(self, flat: Tensor) -> Parameters:
        """Cut a vector [d] into tensors with the parameters' names, shapes and devices."""
        parts = torch.split(flat, [p.numel() for p in self._parameters.values()])
        named = {}
        for (name, parameter), part in zip(self._parameters.items(), parts, strict=True):
            named[name] = part.view_as(parameter).to(parameter.device)
        return named


class _NoiseThread:
    """Draws noise in a thread between `with` and `wait()`; without `threaded`, at `wait()`.

    No other code may use the noise source meanwhile.
    """

    def __init__(self, draw: Callable[[], NDArray[np.int64]] | None, threaded: bool) -> None:
        self._draw = draw
        self._result: NDArray[np.int64] | BaseException | None = None
        self._thread: threading.Thread | None = None
        if draw is not None and threaded:
            self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "_NoiseThread":
        if self._thread:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self._thread:
            self._thread.join()

    def wait(self) -> NDArray[np.int64]:
        """Return what was drawn; raises what drawing raised."""
        if self._thread:
            self._thread.join()
        else:
            self._run()
        if not isinstance(self._result, np.ndarray):
            raise self._result or Bug("private step: no noise was drawn")
        return self._result

    def _run(self) -> None:
        try:
            if self._draw:
                self._result = self._draw()
        except BaseException as error:  # raised where the noise is needed
            self._result = error


def _batch_of(patients: list[int], batch_for: BatchFor) -> Batch:
    """Return the batch of these patients; raises Bug unless each tensor has one entry a patient."""
    batch = batch_for(patients)
    if any(len(tensor) != len(patients) for tensor in batch):
        sizes = [len(tensor) for tensor in batch]
        raise Bug(f"private step: a batch for {len(patients)} patients has tensors of {sizes}")
    return batch


def _check_pair(reservation: object, noise: object) -> None:
    """Refuse all but a ledger's reservation with secure noise, or practice with test noise."""
    # exact types: a subclass of a noise source might repeat itself
    allowed = ((Reservation, NoiseSource), (PracticeReservation, SeededNoiseSource))
    if (type(reservation), type(noise)) not in allowed:
        raise PolicyError(
            f"private step: {type(reservation).__name__} with {type(noise).__name__}: "
            "expected Reservation with NoiseSource",
            hint="tests that need repeatable noise pair SeededNoiseSource with PracticeReservation",
            code="E-NOISE",
        )


def _check_event(event: object, constants: StepConstants, dimension: int) -> None:
    """Refuse a reservation for another event than the step that will happen."""
    # the mechanism, its constants, and the number of coordinates
    if not isinstance(event, SubsampledGaussian):
        raise PolicyError(
            "private step: the reservation is not for private steps", code="E-RESERVATION"
        )
    if (event.q, event.noise_multiplier) != (constants.sampling_rate, constants.noise_multiplier):
        raise PolicyError(
            f"private step: reserved q={event.q}, sigma={event.noise_multiplier}; "
            f"asked q={constants.sampling_rate}, sigma={constants.noise_multiplier}",
            code="E-RESERVATION",
        )
    if dimension > event.dimension:
        raise PolicyError(
            f"private step: reserved for at most {event.dimension:,} parameters, "
            f"the model trains {dimension:,}",
            hint="give the event the model's number of trainable parameters (dimension=…)",
            code="E-RESERVATION",
        )
