"""What the three private trainers share: trained tensors, a round's bound, streams of latents."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from client.learn.machine import Machine
from client.learn.patient_gradients import Parameters
from common.arrays import Deltas
from common.errors import ConfigurationError
from common.privacy.noise import Noise

# relative, below max_update_norm: a norm that is computed in float32 elsewhere stays under it
NORM_MARGIN = 1e-6


def trainable(
    module: nn.Module, prefix: str, chosen: tuple[str, ...], model: str, example: str
) -> Parameters:
    """Return the tensors of `module` that train with private gradients, by name inside it.

    `prefix` makes a name global. `chosen`: prefixes of global names from the plan; empty means all.
    Raises ConfigurationError for a prefix that fits no tensor of the module; the hint gives
    `example`.
    """
    # a prefix that fits nothing is an error of the plan, not an empty choice
    parameters = {prefix + name: p for name, p in module.named_parameters()}
    for start in chosen:
        if not any(name.startswith(start) for name in parameters):
            raise ConfigurationError(
                f"models.{model}.trainable: {start!r} fits no weight that trains privately",
                hint=f"prefixes are global names such as {example}",
            )

    # the chosen tensors, by their names inside the module
    starts = chosen or (prefix,)
    trained: Parameters = {}
    for name, parameter in parameters.items():
        if name.startswith(starts):
            trained[name.removeprefix(prefix)] = parameter
    return trained


def within(deltas: Mapping[str, Tensor], bound: float) -> Deltas:
    """Return the deltas as float32 arrays, their joint L2 norm at most the public `bound`.

    Larger ones are scaled down together.
    """
    deltas = {name: delta.cpu() for name, delta in deltas.items()}
    norm = float(torch.cat([delta.double().flatten() for delta in deltas.values()]).norm())
    allowed = bound * (1 - NORM_MARGIN)
    factor = 1.0
    if not norm <= allowed:  # NaN is too large, too
        factor = allowed / norm
    return {name: (delta.double() * factor).float().numpy() for name, delta in deltas.items()}


def stream(noise: Noise, machine: Machine | None = None) -> torch.Generator:
    """Return a torch generator on the machine's device, with a fresh seed.

    All processes of the machine have the first one's seed. For latents, never for privacy noise.
    """
    machine = machine or Machine()
    return torch.Generator(machine.device).manual_seed(_fresh_seed(noise, machine))


def _fresh_seed(noise: Noise, machine: Machine) -> int:
    """A number below 2^63, the same in every process."""
    own = torch.tensor([int(noise.uniform_u64(1)[0] >> np.uint64(1))])
    return int(machine.workers.from_first(own))


class Streams:
    """Streams of what patients' batches draw: items, latents, dequantisation; no privacy noise.

    A stream follows from seed, `step` and patients. So it is the same whatever else was drawn, in
    whatever chunks, and in whichever process. The trainer sets `step`.
    """

    def __init__(self, seed: int, machine: Machine | None = None) -> None:
        self.machine = machine or Machine()
        self.step = 0
        self._seed = seed

    @classmethod
    def fresh(cls, noise: Noise, machine: Machine) -> "Streams":
        """Return streams with a fresh seed, the first process's."""
        return cls(_fresh_seed(noise, machine), machine)

    def items(self, patient: int) -> torch.Generator:
        """Return the stream that chooses one patient's items; it is drawn on the processor."""
        return self._stream("items", [patient], torch.device("cpu"))

    def numbers(self, patients: Sequence[int]) -> torch.Generator:
        """Return the stream of the numbers that some patients' batches need, on the device."""
        return self._stream("numbers", patients, self.machine.device)

    def groups(self, patients: Sequence[int]) -> list[list[int]]:
        """Return the patients that share a pass of the generator: all of them, or each alone."""
        if self.machine.batches_samples:
            return [list(patients)]
        return [[patient] for patient in patients]

    def _stream(self, use: str, patients: Sequence[int], device: torch.device) -> torch.Generator:
        text = f"{self._seed} {self.step} {use} {list(patients)}"
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)
