"""The one private step: Poisson sampling, per-patient clip, lattice noise and the ledger's reservation, coupled.

In: parameters, a loss for ONE patient, public constants, a reservation, a noise source. Out: a privatized mean gradient.
Guaranteed, per call, for each patient (zero-out adjacency), the numbers are those of the code below:
  1. one step is taken from the reservation, before anything is drawn; none left, or test noise on a ledger's reservation: refused
  2. each patient is drawn by its own coin of bias q; an empty draw goes on and releases pure noise
  3. drawn patients are worked in chunks of a fixed shape: memory does not depend on how many were drawn
  4. one gradient per patient, fp32 (patient_gradients.py)
  5. its norm in fp64; if that is not finite, the non-finite entries become 0
  6. clip to (1 - eta)·C and round to the lattice C·2^-24: the integer vector's L2 norm is at most 2^24, sensitivity exactly C
  7. an exact integer sum: independent of chunking, order and number of processes (5 to 7: lattice.py)
  8. lattice Gaussian noise sigma·C, a public divisor, fp32
Not: the running time (it grows with the number drawn; what leaves is sent at a fixed time), nor a loss that itself mixes patients
(it sees one patient only; model_check.py refuses modules that couple a batch), nor anything computed from the data elsewhere.

Sources: Abadi et al. 2016; methods/dp-training.md, section 2 (lattice theorem).
"""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.learn.fast.layer_rules import Batch, Parameters, PatientLoss
from client.learn.lattice import LatticeSum, check_clip
from client.learn.model_check import check_model
from client.learn.patient_gradients import Execution, PatientGradients
from client.learn.workers import ALONE, Workers
from client.state.ledger import PracticeReservation, Reservation
from common.errors import Bug, ConfigurationError, PolicyError
from common.privacy.canaries import RAW_NORM, Canaries
from common.privacy.mechanisms import SubsampledGaussian
from common.privacy.noise import LATTICE, Noise, NoiseSource, SeededNoiseSource

__all__ = ["Execution", "Parameters", "PatientLoss", "PrivateStep", "StepConstants", "check_model"]
BatchFor = Callable[[Sequence[int]], Batch]
CANARY_ROWS = 32  # at a time


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
                    f"private step: {name}: expected a positive number (a rate: at most 1), got {value!r}"
                )
        check_clip(self.clip)


class PrivateStep:
    """Privatized gradients of one model, one step of one reservation at a time.

    `parameters`: the trainable tensors by name (fp32); read anew at each step, so the trainer may update them in place.
    `loss(parameters, patient)`: the scalar loss of one patient (mean over its items), deterministic given its arguments:
    whatever is random comes in through `batch_for`. `execution`: how fast and in how much memory, never what is guaranteed.
    `canaries`: invented patients that take the same road on coordinates of their own (common/privacy/canaries.py).
    `workers`: the processes of one host that share the drawn patients; each calls `step` with the same arguments.
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
        self._canaries = Canaries(np.zeros(0, dtype=np.bool_)) if canaries is None else canaries
        self._weights = sum(p.numel() for p in parameters.values())
        self._dimension = self._weights + len(self._canaries)  # the dummy coordinates stand last
        _check_pair(reservation, noise)
        _check_event(reservation.event, constants, self._dimension)
        if not parameters or any(p.dtype is not torch.float32 for p in parameters.values()):
            raise ConfigurationError("private step: expected fp32 parameters, at least one")
        self._execution = Execution() if execution is None else execution
        self._parameters = parameters
        self._constants = constants
        self._reservation = reservation
        self._noise = noise
        self._workers = workers
        self._gradients = PatientGradients(
            parameters,
            loss,
            self._execution,
            constants.clip,
            constants.divisor,
            constants.items_per_patient,
        )
        self._sum = LatticeSum(
            self._weights, constants.clip, next(iter(parameters.values())).device
        )
        self._canary_sum = LatticeSum(len(self._canaries), constants.clip, torch.device("cpu"))

    @property
    def stamp(self) -> str:
        """`private`, or NOT PRIVATE where the noise repeats itself."""
        return self._noise.stamp

    @property
    def taken(self) -> str:
        """Back end and chunk in words, and why a faster one was passed over; for this site alone, "" before the first patient."""
        if not self._gradients.chunk:
            return ""
        why = "".join(
            f"; not {name}: {reason}" for name, reason in self._gradients.passed_over.items()
        )
        return f"{self._gradients.backend}, {self._gradients.chunk} patients at a time{why}"

    def step(self, patient_count: int, batch_for: BatchFor) -> Parameters:
        """The privatized mean gradient by parameter name (fp32).

        `batch_for(patients)` returns tensors with a leading patient axis, for at most a chunk of indices below `patient_count`.
        Raises `PolicyError` (E-EXHAUSTED) when the reservation has no step left.
        """
        constants = self._constants
        self._reservation.take()  # 1
        coins = self._coins(patient_count + len(self._canaries))  # 2
        drawn = np.flatnonzero(coins[:patient_count]).tolist()
        with self._noise_beside() as noise:
            self._sum.clear()
            for batch in self._chunks(self._workers.share(drawn), batch_for):  # 3
                self._sum.add(self._gradients.rows(batch))  # 4, 5, 6, 7
            total = torch.zeros(self._dimension, dtype=torch.int64)
            total[: self._weights] = self._gradients.natural(
                self._workers.sum(self._sum.total)
            ).cpu()
            total[self._weights :] = self._canaries_heard(coins[patient_count:])
            if self._workers.first:
                total += torch.from_numpy(noise.drawn())
        update = total.double() * (constants.clip / (LATTICE * constants.divisor))  # 8
        released = self._workers.from_first(update.to(torch.float32))
        self._canaries.observe(released[self._weights :].double().numpy())
        return self._by_name(released[: self._weights])

    def _coins(self, count: int) -> NDArray[np.bool_]:
        """One coin for each patient and canary, thrown by the first process."""
        if not self._workers.first:
            return (
                self._workers.from_first(torch.zeros(count, dtype=torch.uint8))
                .numpy()
                .astype(np.bool_)
            )
        coins = self._noise.bernoulli(self._constants.sampling_rate, count)
        self._workers.from_first(torch.from_numpy(coins.astype(np.uint8)))
        return coins

    def _noise_beside(self) -> "_Beside":
        """The step's noise, drawn by the first process while the gradients are computed."""

        def draw() -> NDArray[np.int64]:
            return self._noise.gaussian_lattice(self._dimension, self._constants.noise_multiplier)

        return _Beside(draw if self._workers.first else None, self._execution.threaded)

    def _canaries_heard(self, coins: NDArray[np.bool_]) -> Tensor:
        """The lattice sum on the dummy coordinates, int64 [M]: each drawn canary's gradient is RAW_NORM·C on its own."""
        self._canary_sum.clear()
        for drawn in torch.split(torch.from_numpy(self._canaries.drawn(coins)), CANARY_ROWS):
            rows = torch.zeros(len(drawn), len(self._canaries))
            rows[torch.arange(len(drawn)), drawn] = RAW_NORM * self._constants.clip
            self._canary_sum.add(rows)  # 5, 6, 7
        return self._canary_sum.total

    def _chunks(self, patients: list[int], batch_for: BatchFor) -> Iterator[Batch]:
        """The patients' batches, at most a chunk of patients each."""
        done = 0
        if (
            patients and not self._gradients.chunk
        ):  # the first patient's shapes decide back end and chunk
            first = _batch_of(patients[:1], batch_for)
            self._gradients.prepare(first)
            yield first
            done = 1
        for at in range(done, len(patients), max(1, self._gradients.chunk)):
            yield _batch_of(patients[at : at + self._gradients.chunk], batch_for)

    def _by_name(self, flat: Tensor) -> Parameters:
        parts = torch.split(flat, [p.numel() for p in self._parameters.values()])
        return {
            n: part.view_as(p).to(p.device)
            for (n, p), part in zip(self._parameters.items(), parts, strict=True)
        }


class _Beside:
    """Draws in a thread from `with` to `drawn()`; nobody else may use the source meanwhile. Without `threaded`, at `drawn()`."""

    def __init__(self, draw: Callable[[], NDArray[np.int64]] | None, threaded: bool) -> None:
        self._draw = draw
        self._result: NDArray[np.int64] | BaseException | None = None
        self._thread = threading.Thread(target=self._run) if draw is not None and threaded else None

    def __enter__(self) -> "_Beside":
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

    def drawn(self) -> NDArray[np.int64]:
        """What was drawn; raises what drawing raised."""
        if self._thread:
            self._thread.join()
        else:
            self._run()
        if not isinstance(self._result, np.ndarray):
            raise self._result or Bug("private step: no noise was drawn")
        return self._result

    def _run(self) -> None:
        try:
            self._result = self._draw() if self._draw else None
        except BaseException as error:  # raised where the noise is needed
            self._result = error


def _batch_of(patients: list[int], batch_for: BatchFor) -> Batch:
    batch = batch_for(patients)
    if any(len(tensor) != len(patients) for tensor in batch):
        raise Bug(
            f"private step: a batch for {len(patients)} patients has tensors of {[len(t) for t in batch]}"
        )
    return batch


def _check_pair(reservation: object, noise: object) -> None:
    """A ledger's reservation goes with secure noise, practice with test noise, and nothing else with anything."""
    if (type(reservation), type(noise)) not in (
        (Reservation, NoiseSource),
        (PracticeReservation, SeededNoiseSource),
    ):
        raise PolicyError(
            f"private step: {type(reservation).__name__} with {type(noise).__name__}: expected Reservation with NoiseSource",
            hint="tests that need repeatable noise pair SeededNoiseSource with PracticeReservation",
            code="E-NOISE",
        )


def _check_event(event: object, constants: StepConstants, dimension: int) -> None:
    """What was reserved must be what will be done."""
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
            f"private step: reserved for at most {event.dimension:,} parameters, the model trains {dimension:,}",
            hint="give the event the model's number of trainable parameters (dimension=…)",
            code="E-RESERVATION",
        )
