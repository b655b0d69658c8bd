"""Chooses how the gradients of a chunk of patients are computed: all at once, or one by one.

In: parameters, the loss of ONE patient, a batch with a leading patient axis.
Out: fp32 rows [c, d], one per patient.
Guarantees:
  - a row depends on its own patient alone
  - a chunk has one fixed shape, filled up with zero patients
  - before the first use the back end is tried on invented patients; what fails is refused, or
    passed over where the choice is `auto`
  - back end and chunk follow from public constants, shapes, the machine's memory and such trials,
    never from the number of patients
Not covered: clipping and noise (private_step.py); losses that draw random numbers of their own.

  layers    one batched forward and backward pass, weight gradients patient by patient
            (layer_rules.py)
  vmap      vmap(grad(loss)): also gradients of gradients
  backward  a plain backward pass per patient: any loss (client/learn/patient_gradients.py)
"""

import math
import os
import resource
import time
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.func import grad, vmap

from client.learn.fast.layer_rules import LayerRules
from client.learn.fast.layers import NoRule
from client.learn.fast.trials import check_neighbours, invent
from client.learn.fast.ways import CHOICES
from client.learn.fast.work import Work
from client.learn.patient_gradients import Batch, Parameters, PatientLoss, by_backward
from common.devices import is_out_of_memory
from common.errors import Bug, ConfigurationError, EnvironmentFault

Backend = Literal["auto", "layers", "vmap", "backward"]
BACKENDS = ("auto", "layers", "vmap", "backward")
GIB = 2**30
# of the memory that a chunk may take: a share of what there is, and on a CPU no more than this
MEMORY_SHARE = 1 / 8
MOST_MEMORY_BYTES = GIB
KINK = 0.02  # a kink moves a tensor's gradient by about 1e-3 of its norm, a wrong rule by all of it
# Where the first invented patients disagree, further sets near zero must all agree. Far from its
# data a flow can turn rounding into another gradient: plain backward passes in float32 and float64
# differ as much there.
SECOND_TRIALS = 3
NEAR = 0.05
# Costs on a CPU, in multiplications of a layer (0.17 ns each). Measured on the 0.39 M critic and on
# flows of 32 and 64 px.
CHUNK = 60e6  # fixed, of a chunk
CALL = 0.64e6  # of each call of torch in the loss, of a chunk
VALUE = 5.0  # to clip and sum one value of a row
# memory in units of what one patient's loss computes; unfolded inputs come on top
ACTIVATIONS = {"layers": 1.0, "vmap": 4.5, "backward": 4.5}


@dataclass(frozen=True)
class Execution:
    """How a step is computed. None of it changes what is guaranteed.

    `chunk`: patients at a time; None: by `memory_bytes` and the plan's constants. `autocast`:
    forward pass in bfloat16. `threaded`: the noise is drawn in a thread beside the gradients;
    None: only where these are computed on another device than the processor, whose threads are
    busy otherwise.
    """

    backend: Backend = "auto"
    chunk: int | None = None
    memory_bytes: int | None = None
    autocast: bool = False
    threaded: bool | None = None

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ConfigurationError(
                f"private step: back end: expected one of {BACKENDS}, got {self.backend!r}"
            )
        for name, value in (("chunk", self.chunk), ("memory_bytes", self.memory_bytes)):
            if value is not None and value < 1:
                raise ConfigurationError(
                    f"private step: {name}: expected at least 1, got {value!r}"
                )


class PatientGradients:
    """The rows of one model: `prepare` once with a batch, then `rows` chunk by chunk.

    `expected`: how many patients the plan expects a step to draw. `items`: how many items each
    brings. Both are public.
    """

    def __init__(
        self,
        parameters: Parameters,
        loss: PatientLoss,
        execution: Execution,
        clip: float,
        expected: float,
        items: int,
    ) -> None:
        self._device = next(iter(parameters.values())).device
        self._parameters = parameters
        self._execution = execution
        self._clip = clip
        self._loss = loss
        if execution.autocast:
            self._loss = _in_bfloat16(loss, self._device.type)
        self._expected = expected
        self._items = items
        self._layers = LayerRules(self._loss, parameters)
        self.backend: Backend = "auto"
        self.chunk = 0  # patients at a time, once prepared
        # why `auto` did not take a back end; for this site alone, never sent
        self.passed_over: dict[Backend, str] = {}

    def rows(self, batch: Batch) -> Tensor:
        """Return fp32 [c, d] of at most `chunk` patients.

        `natural` brings the columns into the parameters' order. The next call may overwrite the
        rows.
        """
        count = len(batch[0])
        if self.backend == "backward":
            return self._compute(batch)
        return self._compute(tuple(_pad(tensor, self.chunk) for tensor in batch))[:count]

    def natural(self, vector: Tensor) -> Tensor:
        """Return a vector [d] over the rows' columns in the order of the parameters."""
        if self.backend == "layers":
            return self._layers.natural(vector)
        return vector

    def prepare(self, batch: Batch) -> None:
        """Choose back end, chunk and the ways of its layers from the shapes of a batch.

        Raises EnvironmentFault (E-KERNEL) when a back end that was asked for fails its trial.
        """
        with CHOICES.trials():
            self._choose(batch)

    def _choose(self, batch: Batch) -> None:
        """Choose back end and chunk; a convolution that is met for the first time is tried."""
        # a choice that was made already
        wanted = self._execution.backend
        if wanted == "auto" and self._execution.chunk == 1:
            wanted = "backward"
        if wanted != "auto":
            return self._adopt(wanted, batch)

        # On a CPU `layers` won every measurement. `vmap` is a little faster than `backward` for a
        # gradient penalty, but its import takes five seconds of every training process.
        candidates: tuple[Backend, ...] = ("layers",)
        if self._device.type != "cpu":
            candidates = ("layers", "vmap", "backward")

        # the cheapest on invented patients; a plain backward pass where none can do the loss
        costs = {backend: self._cost(backend, batch) for backend in candidates}
        best = min(candidates, key=lambda backend: costs[backend])
        if costs[best] == math.inf:
            best = "backward"
        if best != self.backend or costs.get(best, math.inf) == math.inf:
            self._adopt(best, batch)
        return None

    def _adopt(self, backend: Backend, batch: Batch) -> None:
        """Take a back end, after its trial on invented patients."""
        self.backend = backend
        self.chunk = self._chunk(backend, batch)
        if backend == "backward":
            return

        # no patient moves another's gradient, and the rows are those of a plain backward pass
        check_neighbours(self._compute, invent(batch, self.chunk), self._clip)
        if not self._disagreement(invent(batch, self.chunk)):
            return

        # a second chance near zero
        again = []
        for trial in range(SECOND_TRIALS):
            again.append(self._disagreement(invent(batch, self.chunk, 1 + trial, NEAR)))
        if any(again):
            raise EnvironmentFault(
                f"private step: the {backend} back end disagrees with a plain backward pass "
                f"on invented patients ({', '.join(filter(None, again))})",
                hint="run with the back end 'backward'",
                code="E-KERNEL",
            )

    def _cost(self, backend: Backend, batch: Batch) -> float:
        """Seconds for one invented patient; infinite if the back end cannot do this loss."""
        try:
            self._adopt(backend, batch)
        except (NoRule, EnvironmentFault, RuntimeError, ValueError, TypeError) as error:
            if is_out_of_memory(error):
                raise  # the private step takes fewer patients at a time
            self.passed_over[backend] = f"{type(error).__name__}: {error}"
            return math.inf
        invented = invent(batch, self.chunk)
        start = time.perf_counter()
        self._compute(invented).sum().item()
        return (time.perf_counter() - start) / self.chunk

    def _chunk(self, backend: Backend, batch: Batch) -> int:
        """Patients at a time: a power of two that fits the memory.

        It balances a chunk's fixed cost against filling up with zero patients.
        """
        if backend == "backward":
            return 1
        if self._execution.chunk is not None:
            return self._execution.chunk

        # as many as fit the memory
        memory = self._execution.memory_bytes or chunk_memory_bytes(self._device)
        work = self._work(batch)
        row = sum(p.numel() for p in self._parameters.values())
        fits = memory / (4 * row + ACTIVATIONS[backend] * work.size_bytes + 2 * work.unfolded_bytes)

        # and on a CPU, as few as cost least
        balanced = self._expected
        if self._device.type == "cpu":
            fixed = CHUNK + CALL * work.calls
            each = work.products + VALUE * row
            balanced = min(2 * self._expected, math.sqrt(2 * self._expected * fixed / each))
        return 1 << math.floor(math.log2(max(1.0, min(fits, balanced))))

    def _work(self, batch: Batch) -> Work:
        """What the loss of one invented patient computes."""
        leaves = {name: p.detach().requires_grad_() for name, p in self._parameters.items()}
        patient = tuple(tensor[0] for tensor in invent(batch, 1))
        work = Work()
        with work:
            self._loss(leaves, patient)
        return work

    def _compute(self, batch: Batch) -> Tensor:
        if self.backend == "layers":
            return self._layers(batch)
        if self.backend == "vmap":
            return by_vmap(self._loss, self._parameters, batch)
        return by_backward(self._loss, self._parameters, batch)

    def _disagreement(self, invented: Batch) -> str:
        """The first tensor in which the rows differ from a plain backward pass, and by how much.

        Empty where all agree.
        """
        # two patients, both ways
        few = tuple(tensor[:2] for tensor in invented)
        expected = by_backward(self._loss, self._parameters, few)
        found = torch.stack([self.natural(row) for row in self._compute(invented)[: len(expected)]])

        # tensor by tensor: a wrong log-scale would hide in two percent of a whole row
        sizes = [p.numel() for p in self._parameters.values()]
        floor = 1e-4 * float(expected.norm())
        allowed = KINK
        if self._execution.autocast:
            allowed = 5 * KINK
        parts = torch.split(found, sizes, dim=1)
        plain_parts = torch.split(expected, sizes, dim=1)
        for name, mine, plain in zip(self._parameters, parts, plain_parts, strict=True):
            by = float((mine - plain).norm()) / max(float(plain.norm()) + floor, 1e-30)
            if not by <= allowed:  # NaN is wrong, too
                return f"{name} by {by:.2g} of its norm, allowed {allowed}"
        return ""


def chunk_memory_bytes(device: torch.device) -> float:
    """Return the bytes that a chunk may take: a share of the device's memory, or of the limit.

    What is free just now is not asked for: it could depend on the number of patients.
    """
    if device.type == "cuda":
        return MEMORY_SHARE * torch.cuda.get_device_properties(device).total_memory
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)  # the site's, for its child processes
    if limit != resource.RLIM_INFINITY:
        there = min(there, limit)
    return min(MEMORY_SHARE * there, MOST_MEMORY_BYTES)


def by_vmap(loss: PatientLoss, parameters: Parameters, batch: Batch) -> Tensor:
    """Return fp32 [c, d] by vmap(grad(loss))."""
    leaves = {name: p.detach() for name, p in parameters.items()}
    gradients = vmap(grad(loss), in_dims=(None, 0), randomness="error")(leaves, batch)
    return torch.cat([gradients[name].flatten(1) for name in parameters], dim=1)


def _pad(tensor: Tensor, size: int) -> Tensor:
    """The tensor with zero patients appended up to the fixed chunk."""
    if len(tensor) > size:
        raise Bug("private step: more patients than a chunk holds")
    missing = size - len(tensor)
    if not missing:
        return tensor
    return torch.cat([tensor, tensor.new_zeros((missing, *tensor.shape[1:]))])


def _in_bfloat16(loss: PatientLoss, device: str) -> PatientLoss:
    """The loss with its forward pass under autocast; gradients come back in fp32."""

    def loss_in_bfloat16(parameters: Parameters, patient: Batch) -> Tensor:
        with torch.autocast(device, dtype=torch.bfloat16):
            return loss(parameters, patient).float()

    return loss_in_bfloat16
