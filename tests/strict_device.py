"""Runs the code of a GPU on a machine that has none, and raises where a GPU would.

Two ways, both context managers that give a device to move networks and data to:

  strict_device()  Storages carry the device that they pretend to lie on, and the work is done on
                   the CPU. It computes the CPU's numbers, trains, and sees through vmap and
                   autograd. Raises MixedDevices for an operation on two devices, HiddenCopy for
                   what brings numbers to numpy or a list without `.cpu()`.
  fake_device()    torch's FakeTensorMode with device "cuda": torch's own rules, and no work at all,
                   so the size does not matter. Forward passes alone.

Allowed as on a GPU: a CPU tensor of no axes as a number, CPU indices into a device's tensor,
`copy_` between devices, and `item`, `float` and `bool`, which wait for the device. What torch makes
for itself, without an input, lies wherever it is first used.
Not covered: rounding, speed and memory of a real GPU; kernels that a GPU lacks; what a C++ kernel
mixes on its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CPU = torch.device("cpu")
GPU = torch.device("cuda:0")
ANYWHERE = torch.device("meta")  # of what torch made for itself
FREE_BYTES = 80 << 30
PROPERTIES = SimpleNamespace(name="a pretended GPU", total_memory=FREE_BYTES)
COPIES = ("aten::copy_", "aten::_foreach_copy_", "aten::set_")
INDEXINGS = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
_functorch: Any = torch._C._functorch
_Generator = torch.Generator
_Autocast = torch.autocast


class MixedDevices(RuntimeError):
    """One operation had tensors of two devices."""


class HiddenCopy(RuntimeError):
    """A device's numbers went to numpy or to a list without `.cpu()`."""


class Ledger:
    """Which storage pretends to lie where, and how often something was copied to the CPU."""

    def __init__(self) -> None:
        self._devices: dict[int, tuple[StorageWeakRef, torch.device]] = {}
        self.moving_to: torch.device | None = None
        self.copies_back = 0

    def of(self, tensor: Tensor) -> torch.device:
        """Return where a tensor pretends to lie; ANYWHERE for what torch made for itself."""
        while _functorch.is_functorch_wrapped_tensor(tensor):
            tensor = _functorch.get_unwrapped(tensor)
        if tensor.layout is not torch.strided:
            return CPU
        known = self._devices.get(tensor.untyped_storage()._cdata)
        return known[1] if known else CPU

    def put(self, tensor: Tensor, device: torch.device) -> None:
        """Say where a tensor's storage pretends to lie."""
        while _functorch.is_functorch_wrapped_tensor(tensor):
            tensor = _functorch.get_unwrapped(tensor)
        # the weak reference keeps the storage's address from being given to another one
        storage = tensor.untyped_storage()
        self._devices[storage._cdata] = (StorageWeakRef(storage), device)
        if len(self._devices) > 20_000:
            alive = {key: at for key, at in self._devices.items() if not at[0].expired()}
            self._devices = alive

    def knows(self, tensor: Tensor) -> bool:
        """Return whether it was said where a plain tensor's storage lies."""
        return tensor.untyped_storage()._cdata in self._devices

    @contextlib.contextmanager
    def moving(self, device: torch.device) -> Iterator[None]:
        """While open, what is made lies on `device`."""
        before = self.moving_to
        self.moving_to = device
        try:
            yield
        finally:
            self.moving_to = before

    def move(self, tensor: Tensor, device: torch.device) -> Tensor:
        """Return the tensor on a device, itself where it lies there already."""
        where = self.of(tensor)
        if where == device:
            return tensor
        if device == CPU and where != ANYWHERE:
            self.copies_back += 1
        moved: Tensor = _Move.apply(tensor, self, device)
        return moved


class _Move(torch.autograd.Function):
    """A copy on another device; its gradient goes back to where the tensor came from."""

    generate_vmap_rule = True

    @staticmethod
    def forward(tensor: Tensor, ledger: Ledger, device: torch.device) -> Tensor:
        with ledger.moving(device):
            return tensor.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        tensor, ctx.ledger, _ = inputs
        ctx.source = ctx.ledger.of(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _Move.apply(gradients[0], ctx.ledger, ctx.source), None, None


class _Operations(TorchDispatchMode):
    """Beneath autograd and vmap: checks each operation, and says where its result lies."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        device = self._device_of(func, args, inputs)
        mine = {tensor.untyped_storage()._cdata for tensor in inputs}
        out = func(*args, **kwargs)
        for tensor in tree_leaves(out):
            if not isinstance(tensor, Tensor):
                continue
            if tensor.untyped_storage()._cdata not in mine and not self._ledger.knows(tensor):
                self._ledger.put(tensor, self._ledger.moving_to or device)
            elif func._schema.is_mutable and self._ledger.of(tensor) == ANYWHERE:
                self._ledger.put(tensor, device)
        return out

    def _device_of(self, func: Any, args: Any, inputs: Sequence[Tensor]) -> torch.device:
        """Where the operation happens; raises MixedDevices."""
        name = func._schema.name
        devices = {tensor_id: self._ledger.of(t) for tensor_id, t in enumerate(inputs)}
        known = {device for device in devices.values() if device != ANYWHERE}
        if not known:
            return ANYWHERE
        if len(known) == 1:
            return known.pop()
        if name in COPIES:
            return devices[0]
        if name in INDEXINGS and devices[0] != CPU:
            rest = [t for t in inputs if not any(t is index for index in args[1])]
            if len({self._ledger.of(t) for t in rest} - {ANYWHERE}) == 1:
                return devices[0]

        # a CPU tensor without axes is a number
        axes = {devices[i] for i, t in enumerate(inputs) if t.dim() or devices[i] != CPU}
        axes -= {ANYWHERE}
        if len(axes) == 1:
            return axes.pop()
        shown = ", ".join(f"{list(t.shape)} on {devices[i]}" for i, t in enumerate(inputs))
        raise MixedDevices(f"{name}: {shown}")


class _Calls(TorchFunctionMode):
    """Above autograd and vmap: what Python asks of a tensor, and where new tensors are wanted."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if isinstance(func, torch._ops.OpOverload):  # what `_Operations` runs
            return func(*args, **kwargs)
        special = SPECIAL.get(func)
        if special is not None:
            return special(self._ledger, func, args, kwargs)

        # a new tensor: made on the CPU, and said to lie where it was wanted
        wanted = kwargs.get("device")
        target = None if wanted is None else _device(wanted)
        if target is not None:
            kwargs["device"] = CPU
        self._check_generator(func, args, kwargs, target)
        out = func(*args, **kwargs)
        for tensor in tree_leaves(out):
            if not isinstance(tensor, Tensor):
                continue
            if target is not None:
                self._ledger.put(tensor, target)
            elif self._ledger.of(tensor) == ANYWHERE:
                self._ledger.put(tensor, self._first_device((args, kwargs)))
        return out

    def _check_generator(
        self, func: Any, args: Any, kwargs: dict[str, Any], target: torch.device | None
    ) -> None:
        """Refuse a random generator of another device than the numbers that it draws."""
        generator = kwargs.get("generator")
        if generator is None:
            return
        device = target or self._first_device(args)
        if generator.device.type != device.type:
            raise MixedDevices(
                f"{func.__name__}: numbers on {device} from a generator on {generator.device}"
            )

    def _first_device(self, values: Any) -> torch.device:
        """The device of the first tensor among the arguments, else the CPU."""
        for leaf in tree_leaves(values):
            if isinstance(leaf, Tensor) and self._ledger.of(leaf) not in (CPU, ANYWHERE):
                return self._ledger.of(leaf)
        return CPU


def _device(wanted: Any) -> torch.device:
    """A device with its number."""
    device = torch.device(wanted)
    if device.type == "cuda" and device.index is None:
        return GPU
    return device


def _get_device(ledger: Ledger, func: Any, args: Any, kwargs: Any) -> Any:
    where = ledger.of(args[0])
    return CPU if where == ANYWHERE else where


def _is_cuda(ledger: Ledger, func: Any, args: Any, kwargs: Any) -> bool:
    return ledger.of(args[0]).type == "cuda"


def _is_cpu(ledger: Ledger, func: Any, args: Any, kwargs: Any) -> bool:
    return not _is_cuda(ledger, func, args, kwargs)


def _itself(ledger: Ledger, func: Any, args: Any, kwargs: Any) -> Any:
    return args[0]


def _refuse(ledger: Ledger, func: Any, args: Any, kwargs: Any) -> Any:
    """Numbers of the CPU alone go to numpy."""
    if ledger.of(args[0]).type == "cuda":
        raise HiddenCopy(f"{func.__name__} of {list(args[0].shape)} on {ledger.of(args[0])}")
    return func(*args, **kwargs)


def _copy_deeply(ledger: Ledger, func: Any, args: Any, kwargs: Any) -> Any:
    copied = func(*args, **kwargs)
    ledger.put(copied, ledger.of(args[0]))
    return copied


def _to(ledger: Ledger, func: Any, args: Any, kwargs: Any) -> Any:
    """`x.to(device)`, `x.to(device, dtype)`, `x.to(dtype)`, `x.to(other)`."""
    tensor, *rest = args
    device = kwargs.pop("device", None)
    if rest and isinstance(rest[0], Tensor):
        other = rest.pop(0)
        device = _get_device(ledger, func, (other,), {})
        kwargs["dtype"] = other.dtype
    elif rest and isinstance(rest[0], (str, int, torch.device)):
        device = rest.pop(0)
    elif rest and rest[0] is None:
        rest.pop(0)
    if rest and isinstance(rest[0], torch.dtype):
        kwargs["dtype"] = rest.pop(0)
    for name in ("non_blocking", "copy"):
        if rest:
            kwargs[name] = rest.pop(0)
    kwargs = {name: value for name, value in kwargs.items() if value not in (None, False)}
    kwargs.pop("non_blocking", None)
    out = func(tensor, **kwargs) if kwargs else tensor
    if device is None:
        return out
    return ledger.move(out, _device(device))


def _as_tensor(ledger: Ledger, func: Any, args: Any, kwargs: Any) -> Any:
    """`torch.as_tensor`: an array's own memory, then a device."""
    device = kwargs.pop("device", None)
    out = func(*args, **kwargs)
    return out if device is None else ledger.move(out, _device(device))


def _cpu(ledger: Ledger, func: Any, args: Any, kwargs: Any) -> Any:
    return ledger.move(args[0], CPU)


def _cuda(ledger: Ledger, func: Any, args: Any, kwargs: Any) -> Any:
    return ledger.move(args[0], GPU)


SPECIAL: dict[Any, Callable[[Ledger, Any, Any, Any], Any]] = {
    Tensor.device.__get__: _get_device,
    Tensor.is_cuda.__get__: _is_cuda,
    Tensor.is_cpu.__get__: _is_cpu,
    Tensor.pin_memory: _itself,
    Tensor.numpy: _refuse,
    Tensor.tolist: _refuse,
    Tensor.__array__: _refuse,
    Tensor.__deepcopy__: _copy_deeply,
    Tensor.to: _to,
    Tensor.cpu: _cpu,
    Tensor.cuda: _cuda,
    torch.as_tensor: _as_tensor,
    torch.asarray: _as_tensor,
}


class _AnyGenerator(type(_Generator)):  # type: ignore[misc]
    """Every generator of torch is an instance, also one that was made before."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _Generator)


class Generator(_Generator, metaclass=_AnyGenerator):
    """A CPU generator that pretends to be a device's: it draws the CPU's numbers."""

    def __new__(cls, device: Any = "cpu") -> Any:
        made = super().__new__(cls, "cpu")
        made._pretended = _device(device)
        return made

    @property
    def device(self) -> torch.device:
        """Return the device that it pretends to draw on."""
        return self._pretended  # type: ignore[no-any-return, attr-defined]


class Autocast(_Autocast):
    """Autocast of a GPU, done by the CPU's."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)


@contextlib.contextmanager
def _pretended_cuda() -> Iterator[None]:
    """While open, torch.cuda answers as with one idle GPU, and generators pretend."""
    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "is_bf16_supported": lambda *_: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "get_device_name": lambda device=None: "a pretended GPU",
        "get_device_capability": lambda device=None: (9, 0),
        "mem_get_info": lambda device=None: (FREE_BYTES, FREE_BYTES),
        "max_memory_allocated": lambda device=None: 0,
        "memory_allocated": lambda device=None: 0,
        "get_device_properties": lambda device=None: PROPERTIES,
        "memory_reserved": lambda device=None: 0,
        "set_per_process_memory_fraction": lambda share, device=None: None,
        "reset_peak_memory_stats": lambda device=None: None,
        "empty_cache": lambda: None,
        "synchronize": lambda device=None: None,
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
    }
    with contextlib.ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, answer))
        stack.enter_context(mock.patch.object(torch, "Generator", Generator))
        stack.enter_context(mock.patch.object(torch, "autocast", Autocast))
        # torch's optimisers ask the GPU whether its work is being recorded
        for name in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):
            if hasattr(torch.optim.Optimizer, name):
                stack.enter_context(mock.patch.object(torch.optim.Optimizer, name, _do_nothing))
        # inside autograd.grad the calls of a backward pass are seen too
        stack.enter_context(mock.patch.object(torch.autograd, "has_torch_function", _never))
        yield


def _never(values: Any) -> bool:
    return False


def _do_nothing(optimiser: torch.optim.Optimizer) -> None:
    """Ask nothing."""


# one for all blocks: what a module keeps on the device stays there
LEDGER = Ledger()


@contextlib.contextmanager
def strict_device() -> Iterator[Ledger]:
    """While open, `GPU` ("cuda:0") is a device to which things can be moved."""
    LEDGER.copies_back = 0
    if torch.Generator is Generator:  # inside another block
        yield LEDGER
        return
    with _pretended_cuda(), _Operations(LEDGER), _Calls(LEDGER):
        yield LEDGER


@contextlib.contextmanager
def fake_device() -> Iterator[torch.device]:
    """While open, tensors have a shape, a type and a device, and no numbers.

    A network is made before, and moved inside.
    """
    # torch itself must know that there is no GPU, or it asks for one
    generators = mock.patch.object(torch, "Generator", Generator)
    with generators, FakeTensorMode(allow_non_fake_inputs=True):
        yield GPU
