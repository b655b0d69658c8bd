"""The one private step: Poisson sampling, per-patient clip, lattice noise and the ledger's reservation, coupled.

In: parameters, a loss for ONE patient, public constants, a reservation, a noise source. Out: a privatized mean gradient.
Guaranteed, per call, for each patient (zero-out adjacency), the numbers are those of the code below:
  1. one step is taken from the reservation, before anything is drawn; none left, or test noise on a ledger's reservation: refused
  2. each patient is drawn by its own coin of bias q; an empty draw goes on and releases pure noise
  3. drawn patients are worked in chunks of a fixed shape: memory does not depend on how many were drawn
  4. one gradient per patient (fp32)
  5. its norm in fp64; if that is not finite, the non-finite entries become 0
  6. clip to (1 - eta)·C and round to the lattice C·2^-24: the integer vector's L2 norm is at most 2^24, sensitivity exactly C
  7. an exact integer sum: independent of chunking and order
  8. lattice Gaussian noise sigma·C, a public divisor, fp32
Not: the running time (it grows with the number drawn; what leaves is sent at a fixed time), nor a loss that itself mixes patients
(it sees one patient only; `check_model` refuses modules that couple a batch), nor anything computed from the data elsewhere.

Sources: Abadi et al. 2016; methods/dp-training.md, section 2 (lattice theorem).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import grad, vmap

from client.ledger import PracticeReservation, Reservation
from common.errors import Bug, ConfigurationError, EnvironmentFault, PolicyError
from common.privacy.canaries import RAW_NORM, Canaries
from common.privacy.mechanisms import SubsampledGaussian
from common.privacy.noise import LATTICE, Noise, NoiseSource, SeededNoiseSource

Parameters = dict[str, Tensor]
PatientLoss = Callable[[Parameters, tuple[Tensor, ...]], Tensor]
BatchFor = Callable[[Sequence[int]], tuple[Tensor, ...]]
NEIGHBOUR_MARGIN = 3e-5  # of the clip norm; eta keeps 6e-5 free at 1.5 M parameters


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


class PrivateStep:
    """Privatized gradients of one model, one step of one reservation at a time.

    `parameters`: the trainable tensors by name (fp32); read anew at each step, so the trainer may update them in place.
    `loss(parameters, patient)`: the scalar loss of one patient (mean over its items), deterministic given its arguments:
    whatever is random comes in through `batch_for`. `chunk` = 1 is a plain backward pass per patient (CPU), more is
    `vmap(grad)` (GPU).
    `canaries`: invented patients that take the same road on coordinates of their own (common/privacy/canaries.py).
    """

    def __init__(
        self,
        parameters: Parameters,
        loss: PatientLoss,
        constants: StepConstants,
        reservation: Reservation | PracticeReservation,
        noise: Noise,
        *,
        chunk: int = 1,
        canaries: Canaries | None = None,
    ) -> None:
        self._canaries = Canaries(np.zeros(0, dtype=np.bool_)) if canaries is None else canaries
        self._weights = sum(p.numel() for p in parameters.values())
        self._dimension = self._weights + len(self._canaries)  # the dummy coordinates stand last
        _check_pair(reservation, noise)
        _check_event(reservation.event, constants, self._dimension)
        if chunk < 1 or any(p.dtype is not torch.float32 for p in parameters.values()):
            raise ConfigurationError("private step: expected fp32 parameters and a chunk of at least 1")
        self._parameters = parameters
        self._loss = loss
        self._constants = constants
        self._reservation = reservation
        self._noise = noise
        self._chunk = chunk
        self._probed = chunk == 1

    def step(self, patient_count: int, batch_for: BatchFor) -> Parameters:
        """The privatized mean gradient by parameter name (fp32).

        `batch_for(patients)` returns tensors with a leading patient axis, for at most `chunk` indices below `patient_count`.
        Raises `PolicyError` (E-EXHAUSTED) when the reservation has no step left.
        """
        constants = self._constants
        self._reservation.take()  # 1
        coins = self._noise.bernoulli(constants.sampling_rate, patient_count + len(self._canaries))  # 2
        drawn = np.flatnonzero(coins[:patient_count]).tolist()
        total = torch.zeros(self._dimension, dtype=torch.float64)
        for patients in _chunks(drawn, self._chunk):  # 3
            gradients = self._gradients(batch_for(patients), len(patients))  # 4
            total[: self._weights] += to_lattice(gradients, constants.clip).sum(0).cpu()  # 5, 6, 7
        total[self._weights :] = self._canary_sum(coins[patient_count:])
        noise = torch.from_numpy(self._noise.gaussian_lattice(self._dimension, constants.noise_multiplier))
        update = (total + noise) * (constants.clip / (LATTICE * constants.divisor))  # 8
        released = update.to(torch.float32)
        self._canaries.observe(released[self._weights :].double().cpu().numpy())
        return self._by_name(released[: self._weights])

    def _canary_sum(self, coins: NDArray[np.bool_]) -> Tensor:
        """The lattice sum on the dummy coordinates, fp64 [M]: each drawn canary's gradient is RAW_NORM·C on its own."""
        total = torch.zeros(len(self._canaries), dtype=torch.float64)
        drawn = torch.from_numpy(self._canaries.drawn(coins))
        clip = self._constants.clip
        total[drawn] = to_lattice(torch.full((len(drawn), 1), RAW_NORM * clip), clip)[:, 0]
        return total

    def _gradients(self, batch: tuple[Tensor, ...], count: int) -> Tensor:
        """One flat gradient per patient, fp32 [count, d]."""
        if any(len(tensor) != count for tensor in batch):
            raise Bug(f"private step: a batch for {count} patients has tensors of {[len(t) for t in batch]}")
        if self._chunk == 1:
            return self._backward(tuple(tensor[0] for tensor in batch))
        padded = tuple(_pad(tensor, self._chunk) for tensor in batch)
        if not self._probed:
            check_neighbours(self._vmapped, padded, self._constants.clip)
            self._probed = True
        return self._vmapped(padded)[:count]

    def _backward(self, patient: tuple[Tensor, ...]) -> Tensor:
        leaves = {name: p.detach().requires_grad_() for name, p in self._parameters.items()}
        gradients = torch.autograd.grad(self._loss(leaves, patient), list(leaves.values()), materialize_grads=True)
        return torch.cat([g.reshape(1, -1) for g in gradients], dim=1)

    def _vmapped(self, batch: tuple[Tensor, ...]) -> Tensor:
        parameters = {name: p.detach() for name, p in self._parameters.items()}
        gradients = vmap(grad(self._loss), in_dims=(None, 0), randomness="error")(parameters, batch)
        return torch.cat([gradients[name].reshape(self._chunk, -1) for name in parameters], dim=1)

    def _by_name(self, flat: Tensor) -> Parameters:
        parts = torch.split(flat, [p.numel() for p in self._parameters.values()])
        return {n: part.view_as(p).to(p.device) for (n, p), part in zip(self._parameters.items(), parts, strict=True)}


def to_lattice(gradients: Tensor, clip: float) -> Tensor:
    """Each row of fp32 [c, d], sanitised, clipped and rounded: fp64 [c, d] of integers, each row's L2 norm at most 2^24.

    Theorem: (1 - eta)·2^24 + sqrt(d)/2 <= 2^24 with eta = max(1e-4, 2·sqrt(d)·2^-25); entries and sums stay exact below 2^53.
    """
    values = gradients.to(torch.float64)
    norms = values.norm(dim=1, keepdim=True)
    if not bool(torch.isfinite(norms).all()):  # finite exactly when every fp32 entry is
        values = torch.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
        norms = values.norm(dim=1, keepdim=True)
    eta = max(1e-4, 2.0 * math.sqrt(values.shape[1]) * 2.0**-25)
    bound = (1.0 - eta) * clip
    factor = torch.where(norms > bound, bound / norms, torch.ones_like(norms))
    return (values * (factor * (LATTICE / clip))).round_()


def check_neighbours(
    gradients_of: Callable[[tuple[Tensor, ...]], Tensor], batch: tuple[Tensor, ...], clip: float
) -> None:
    """Refuse kernels in which one patient of a chunk moves another's gradient by rounding (`EnvironmentFault`, E-KERNEL).

    Random tensors of `batch`'s shapes take the patients' place. Allowed in the lattice sum: 0 on a CPU, 3e-5·2^24 elsewhere.
    """
    generator = torch.Generator().manual_seed(0)
    probe = tuple(
        torch.randn(t.shape, generator=generator).to(t) if t.is_floating_point() else torch.zeros_like(t) for t in batch
    )
    zeroed = tuple(torch.cat([torch.zeros_like(t[:1]), t[1:]]) for t in probe)
    moved = to_lattice(gradients_of(probe)[1:], clip).sum(0) - to_lattice(gradients_of(zeroed)[1:], clip).sum(0)
    allowed = 0.0 if moved.device.type == "cpu" else NEIGHBOUR_MARGIN * LATTICE
    if not float(moved.norm()) <= allowed:
        raise EnvironmentFault(
            f"private step: a neighbour in the chunk moves the sum by {float(moved.norm()):.3g} lattice steps, "
            f"allowed {allowed:.3g}",
            hint="run with chunk=1, or with deterministic kernels",
            code="E-KERNEL",
        )


def _check_pair(reservation: object, noise: object) -> None:
    """A ledger's reservation goes with secure noise, practice with test noise, and nothing else with anything."""
    if (type(reservation), type(noise)) not in ((Reservation, NoiseSource), (PracticeReservation, SeededNoiseSource)):
        raise PolicyError(
            f"private step: {type(reservation).__name__} with {type(noise).__name__}: expected Reservation with NoiseSource",
            hint="tests that need repeatable noise pair SeededNoiseSource with PracticeReservation",
            code="E-NOISE",
        )


def _check_event(event: object, constants: StepConstants, dimension: int) -> None:
    """What was reserved must be what will be done."""
    if not isinstance(event, SubsampledGaussian):
        raise PolicyError("private step: the reservation is not for private steps", code="E-RESERVATION")
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


def _chunks(patients: list[int], size: int) -> Iterator[list[int]]:
    return (patients[i : i + size] for i in range(0, len(patients), size))


def _pad(tensor: Tensor, size: int) -> Tensor:
    """The tensor with zero patients appended up to the fixed chunk."""
    missing = tensor.new_zeros((size - len(tensor), *tensor.shape[1:]))
    return torch.cat([tensor, missing])


# --- the linter: which modules may stand inside a per-patient loss -----------------------------------------------------

PER_EXAMPLE: tuple[type[nn.Module], ...] = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear,
    nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
    nn.AvgPool1d, nn.AvgPool2d, nn.MaxPool1d, nn.MaxPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
    nn.Upsample, nn.PixelShuffle, nn.PixelUnshuffle, nn.Flatten, nn.Unflatten, nn.Identity,
    nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.SiLU, nn.GELU, nn.Mish, nn.Softplus, nn.Tanh, nn.Sigmoid,
    nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict,
)  # fmt: skip


def check_model(module: nn.Module, probe_shape: Sequence[int] | None = None) -> None:
    """Raise `ConfigurationError` (E-MODEL, all problems at once) unless no submodule can couple the patients of a batch.

    Walks all modules, at any depth: exact classes of `PER_EXAMPLE`, classes of common.models, and classes marked with a true
    class attribute `per_example`; refused: batch norm in any form, buffers, hooks, in-place activations, the unknown.
    `probe_shape` ([C, H, W] of one input): also requires that an item's output alone equals its output in a batch (1e-5).
    """
    problems = [f"{name or 'model'}: {why}" for name, part in module.named_modules() for why in _problems(part)]
    if not problems and probe_shape is not None and not _is_per_example(module, probe_shape):
        problems = ["model: an item's output changes with the other items of its batch"]
    if problems:
        raise ConfigurationError(
            f"model refused by the private step: {problems[0]}",
            hint="use GroupNorm, out-of-place activations and no buffers",
            code="E-MODEL",
            problems=problems,
        )


def _problems(part: nn.Module) -> Iterator[str]:
    kind = type(part)
    norm = nn.modules.batchnorm._NormBase
    if isinstance(part, norm) and (kind not in PER_EXAMPLE or part.track_running_stats):
        yield f"{kind.__name__} normalises over the batch or tracks its statistics"
    elif kind not in PER_EXAMPLE and not _is_marked(kind):
        yield f"{kind.__name__} is not known to treat each example alone"
    if any(True for _ in part.buffers(recurse=False)):
        yield f"{kind.__name__} keeps a buffer"
    if getattr(part, "inplace", False):
        yield f"{kind.__name__} works in place"
    if part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks:
        yield f"{kind.__name__} carries a hook"


def _is_marked(kind: type[nn.Module]) -> bool:
    return kind.__module__.startswith("common.models.") or vars(kind).get("per_example") is True


@torch.no_grad()
def _is_per_example(module: nn.Module, shape: Sequence[int]) -> bool:
    """Whether each of four random items has the same output alone as together."""
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    items = torch.randn((4, *shape), generator=torch.Generator().manual_seed(0)).clamp(-1, 1).to(device)
    together = _tensors(module(items))
    alone = zip(*(_tensors(module(items[i : i + 1])) for i in range(4)), strict=True)
    return all(
        bool(torch.allclose(torch.cat(parts), whole, rtol=1e-5, atol=1e-5 * max(1.0, float(whole.abs().max()))))
        for parts, whole in zip(alone, together, strict=True)
    )


def _tensors(output: Any) -> list[Tensor]:
    """The tensors of a nested output, in order."""
    if isinstance(output, Tensor):
        return [output]
    parts = output.values() if isinstance(output, Mapping) else output
    return [tensor for part in parts for tensor in _tensors(part)]
