"""One flat fp32 gradient per patient, for a chunk of patients at a time, by the back end that fits.

In: parameters, the loss of ONE patient, a batch with a leading patient axis. Out: fp32 rows [c, d], one per patient.
  layers    one batched forward and backward pass, the weights' gradients patient by patient (client/learn/fast/layer_rules.py)
  vmap      vmap(grad(loss)): also gradients of gradients
  backward  a plain backward pass per patient: any loss
Guaranteed: a row depends on its own patient alone. A chunk has one fixed shape, filled up with zero patients; before the
first use the back end is tried on invented patients of that shape (neighbours and rows): what fails is refused, or passed over
where the choice is `auto`, and `passed_over` says why. Back end and chunk follow from public constants, shapes and such trials,
never from how many patients there are or were drawn.
Not: clipping and noise (private_step.py); losses that draw random numbers of their own.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from client.learn.fast.layer_rules import Batch, LayerRules, NoRule, Parameters, PatientLoss
from client.learn.lattice import to_lattice
from common.errors import Bug, ConfigurationError, EnvironmentFault
from common.privacy.noise import LATTICE

Backend = Literal["auto", "layers", "vmap", "backward"]
Rows = Callable[[Batch], Tensor]
BACKENDS = ("auto", "layers", "vmap", "backward")
MIB = 2**20
MEMORY_BYTES = {"cpu": 128 * MIB, "cuda": 4096 * MIB}
NEIGHBOUR_MARGIN = 3e-5  # of the clip norm; eta keeps 6e-5 free at 1.5 M parameters
KINK = 0.02  # a kink of an activation mostly moves a tensor's gradient by 1e-3 of its norm, a wrong rule by all of it
# Further sets of invented patients, all to agree, where the first did not: near zero, because far from its data a flow can turn
# rounding into another gradient (losses of 1e5 nats a dimension; plain backward passes in float32 and float64 differ as much).
SECOND_TRIALS = 3
NEAR = 0.05
# A chunk's costs on a CPU in multiplications of a layer, 0.17 ns each (measured: the 0.39 M critic, flows of 32 and 64 px):
# fixed; for each call of torch in the loss; to clip and sum one value of a row
CHUNK = 60e6
CALL = 0.64e6
VALUE = 5.0
ACTIVATIONS = {
    "layers": 1.0,
    "vmap": 4.5,
    "backward": 4.5,
}  # times what one patient's loss computes, beside unfolded inputs


@dataclass(frozen=True)
class Execution:
    """How a step is computed. None of it changes what is guaranteed.

    `chunk` patients at a time; None: by `memory_bytes` and the plan's constants. `autocast`: forward pass in bfloat16.
    `threaded`: the noise is drawn in a thread beside the gradients.
    """

    backend: Backend = "auto"
    chunk: int | None = None
    memory_bytes: int | None = None
    autocast: bool = False
    threaded: bool = True

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
    """The rows of one model. `prepare` once with a batch of any number of patients, then `rows` chunk by chunk.

    `expected`: how many patients a step is planned to draw; `items`: how many items each brings. Both public.
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
        self._loss = _in_bfloat16(loss, self._device.type) if execution.autocast else loss
        self._expected = expected
        self._items = items
        self._layers = LayerRules(self._loss, parameters)
        self.backend: Backend = "auto"
        self.chunk = 0  # patients at a time, once prepared
        self.passed_over: dict[
            Backend, str
        ] = {}  # why `auto` did not take it; for this site's eyes, never sent

    def rows(self, batch: Batch) -> Tensor:
        """fp32 [c, d] of at most `chunk` patients, in a buffer that the next call may overwrite; columns: see `natural`."""
        count = len(batch[0])
        if self.backend == "backward":
            return self._compute(batch)
        return self._compute(tuple(_pad(tensor, self.chunk) for tensor in batch))[:count]

    def natural(self, vector: Tensor) -> Tensor:
        """A vector [d] over the rows' columns, in the order of the parameters."""
        return self._layers.natural(vector) if self.backend == "layers" else vector

    def prepare(self, batch: Batch) -> None:
        """Choose back end and chunk for batches like this one, from its shapes; raises EnvironmentFault (E-KERNEL)."""
        wanted = self._execution.backend
        if wanted == "auto" and self._execution.chunk == 1:
            wanted = "backward"
        if wanted != "auto":
            return self._adopt(wanted, batch)
        # On a CPU `layers` won every measurement; `vmap` is a little faster than `backward` for a gradient penalty, but its
        # import takes five seconds of every training process.
        candidates: tuple[Backend, ...] = (
            ("layers",) if self._device.type == "cpu" else ("layers", "vmap", "backward")
        )
        costs: dict[Backend, float] = {
            backend: self._cost(backend, batch) for backend in candidates
        }
        best = min(candidates, key=lambda backend: costs[backend])
        if costs[best] == math.inf or best != self.backend:
            self._adopt(best if costs[best] < math.inf else "backward", batch)
        return None

    def _adopt(self, backend: Backend, batch: Batch) -> None:
        """Take a back end for good, after its trial."""
        self.backend = backend
        self.chunk = self._chunk(backend, batch)
        if backend == "backward":
            return
        check_neighbours(self._compute, invent(batch, self.chunk), self._clip)
        if not self._disagreement(invent(batch, self.chunk)):
            return
        again = [
            self._disagreement(invent(batch, self.chunk, 1 + trial, NEAR))
            for trial in range(SECOND_TRIALS)
        ]
        if any(again):
            raise EnvironmentFault(
                f"private step: the {backend} back end disagrees with a plain backward pass on invented patients "
                f"({', '.join(filter(None, again))})",
                hint="run with the back end 'backward'",
                code="E-KERNEL",
            )

    def _cost(self, backend: Backend, batch: Batch) -> float:
        """Seconds a patient on invented ones; infinite if the back end cannot do this loss."""
        try:
            self._adopt(backend, batch)
        except (NoRule, EnvironmentFault, RuntimeError, ValueError, TypeError) as error:
            self.passed_over[backend] = f"{type(error).__name__}: {error}"
            return math.inf
        invented = invent(batch, self.chunk)
        start = time.perf_counter()
        self._compute(invented).sum().item()
        return (time.perf_counter() - start) / self.chunk

    def _chunk(self, backend: Backend, batch: Batch) -> int:
        """Patients at a time: a power of two that fits the memory and balances the fixed cost of a chunk against filling up."""
        if backend == "backward":
            return 1
        if self._execution.chunk is not None:
            return self._execution.chunk
        memory = self._execution.memory_bytes or MEMORY_BYTES.get(
            self._device.type, MEMORY_BYTES["cuda"]
        )
        work = self._work(batch)
        row = sum(p.numel() for p in self._parameters.values())
        fits = memory / (4 * row + ACTIVATIONS[backend] * work.size_bytes + 2 * work.unfolded_bytes)
        balanced = self._expected
        if self._device.type == "cpu":
            fixed = CHUNK + CALL * work.calls
            each = work.products + VALUE * row
            balanced = min(2 * self._expected, math.sqrt(2 * self._expected * fixed / each))
        return 1 << math.floor(math.log2(max(1.0, min(fits, balanced))))

    def _work(self, batch: Batch) -> "_Work":
        """What the loss of one invented patient computes."""
        leaves = {name: p.detach().requires_grad_() for name, p in self._parameters.items()}
        patient = tuple(tensor[0] for tensor in invent(batch, 1))
        work = _Work()
        with work:
            self._loss(leaves, patient)
        return work

    def _compute(self, batch: Batch) -> Tensor:
        if self.backend == "layers":
            return self._layers(batch)
        return (by_vmap if self.backend == "vmap" else by_backward)(
            self._loss, self._parameters, batch
        )

    def _disagreement(self, invented: Batch) -> str:
        """The first tensor in which the rows differ from those of a plain backward pass, and by how much; "" where all agree.

        Compared tensor by tensor: a wrong log-scale would hide in two percent of a whole row.
        """
        few = tuple(tensor[:2] for tensor in invented)
        expected = by_backward(self._loss, self._parameters, few)
        found = torch.stack([self.natural(row) for row in self._compute(invented)[: len(expected)]])
        sizes = [p.numel() for p in self._parameters.values()]
        floor = 1e-4 * float(expected.norm())
        pairs = zip(
            torch.split(found, sizes, dim=1), torch.split(expected, sizes, dim=1), strict=True
        )
        off = [
            float((mine - plain).norm()) / max(float(plain.norm()) + floor, 1e-30)
            for mine, plain in pairs
        ]
        allowed = 5 * KINK if self._execution.autocast else KINK
        wrong = {
            name: by for name, by in zip(self._parameters, off, strict=True) if not by <= allowed
        }  # NaN is wrong
        return ", ".join(
            f"{name} by {by:.2g} of its norm, allowed {allowed}"
            for name, by in list(wrong.items())[:1]
        )


class _Work(TorchFunctionMode):
    """Counts what torch's functions return and the layers multiply."""

    calls = 0
    size_bytes = 0
    products = 0  # multiplications of convolutions and linear layers
    unfolded_bytes = 0  # of the largest unfolded convolution

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if isinstance(output, Tensor):
            self.calls += 1
            self.size_bytes += output.numel() * output.element_size()
            if func in (functional.conv2d, functional.linear):
                self._layer(output, args[1] if len(args) > 1 else (kwargs or {})["weight"])
        return output

    def _layer(self, output: Tensor, weight: Tensor) -> None:
        self.products += output.numel() * weight[0].numel()
        if weight.dim() == 4 and weight[0, 0].numel() > 1:
            places = output.numel() // len(weight)
            unfolded = 4 * places * weight[0, 0].numel() * min(weight.shape[:2])
            self.unfolded_bytes = max(self.unfolded_bytes, unfolded)


def by_backward(loss: PatientLoss, parameters: Parameters, batch: Batch) -> Tensor:
    """fp32 [c, d] by one backward pass per patient."""
    rows = []
    for patient in zip(*batch, strict=True):
        leaves = {name: p.detach().requires_grad_() for name, p in parameters.items()}
        gradients = torch.autograd.grad(
            loss(leaves, patient), list(leaves.values()), materialize_grads=True
        )
        rows.append(torch.cat([g.reshape(-1) for g in gradients]))
    return torch.stack(rows)


def by_vmap(loss: PatientLoss, parameters: Parameters, batch: Batch) -> Tensor:
    """fp32 [c, d] by vmap(grad(loss))."""
    leaves = {name: p.detach() for name, p in parameters.items()}
    gradients = vmap(grad(loss), in_dims=(None, 0), randomness="error")(leaves, batch)
    return torch.cat([gradients[name].flatten(1) for name in parameters], dim=1)


def invent(batch: Batch, count: int, seed: int = 0, size: float = 1.0) -> Batch:
    """Random patients of the batch's shapes: `size` times normal numbers of that seed; zeros where the batch holds integers."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(count, *tensor.shape[1:]) for tensor in batch]
    return tuple(
        (size * torch.randn(shape, generator=generator)).to(tensor)
        if tensor.is_floating_point()
        else tensor.new_zeros(shape)
        for tensor, shape in zip(batch, shapes, strict=True)
    )


def check_neighbours(rows_of: Rows, batch: Batch, clip: float) -> None:
    """Refuse kernels in which one patient of a chunk moves another's gradient by rounding (EnvironmentFault, E-KERNEL).

    The first patient of `batch` is replaced by zeros. Allowed in the lattice sum of the others: 0 on a CPU, 3e-5·2^24 elsewhere.
    """
    zeroed = tuple(torch.cat([torch.zeros_like(tensor[:1]), tensor[1:]]) for tensor in batch)
    moved = to_lattice(rows_of(batch)[1:], clip).sum(0)
    moved -= to_lattice(rows_of(zeroed)[1:], clip).sum(0)
    allowed = 0.0 if moved.device.type == "cpu" else NEIGHBOUR_MARGIN * LATTICE
    if not float(moved.norm()) <= allowed:
        raise EnvironmentFault(
            f"private step: a neighbour in the chunk moves the sum by {float(moved.norm()):.3g} lattice steps, "
            f"allowed {allowed:.3g}",
            hint="run with the back end 'backward', or with deterministic kernels",
            code="E-KERNEL",
        )


def _pad(tensor: Tensor, size: int) -> Tensor:
    """The tensor with zero patients appended up to the fixed chunk."""
    if len(tensor) > size:
        raise Bug("private step: more patients than a chunk holds")
    missing = size - len(tensor)
    return (
        torch.cat([tensor, tensor.new_zeros((missing, *tensor.shape[1:]))]) if missing else tensor
    )


def _in_bfloat16(loss: PatientLoss, device: str) -> PatientLoss:
    """The loss with its forward pass under autocast; gradients come back in fp32."""

    def loss_in_bfloat16(parameters: Parameters, patient: Batch) -> Tensor:
        with torch.autocast(device, dtype=torch.bfloat16):
            return loss(parameters, patient).float()

    return loss_in_bfloat16
