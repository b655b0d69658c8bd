"""Computes per-patient weight gradients of a whole chunk from one forward and one backward pass.

In: the loss of ONE patient, parameters, a batch with a leading patient axis.
Out: fp32 rows [c, d], one per patient.
Guarantees: no sum runs over the patient axis, whatever the loss does with a parameter.
Not covered: gradients of gradients; grouped or larger convolutions with weights made from others;
random losses.

  1. run the loss under vmap, so it sees one patient
  2. take each conv2d, linear and group norm with trained weights out of vmap: patients and items
     become one axis for the forward pass and the input's gradient
  3. compute the weights' gradients patient by patient from what the layer saved (layers.py)
  4. give each patient a copy of every other trained parameter (a flow's log-scales, a weight made
     from several tensors); the first call finds them, and autograd's gradient of a patient's copy
     is that patient's

Source: Rochette, Manoel and Tramel 2019, "Efficient per-example gradient computations in
convolutional neural networks".
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.overrides import TorchFunctionMode

from client.learn.fast.layers import RULES, Layer, NoRule, Scratch, Sink, _Conv2d
from client.learn.patient_gradients import Batch, Parameters, PatientLoss


class LayerRules:
    """The rows of chunk after chunk, in buffers that the next call overwrites.

    A conv weight's columns have an order of their own: `natural` brings a vector into the
    parameters' order.
    """

    def __init__(self, loss: PatientLoss, parameters: Parameters) -> None:
        self._loss = loss
        self._parameters = parameters
        self._dimension = sum(p.numel() for p in parameters.values())
        self._rows = torch.empty(0, 0)
        self._scratch = Scratch()
        self._sinks: list[Sink] = []
        self._apart: frozenset[str] = frozenset()  # used outside the rules: one copy a patient

    def __call__(self, batch: Batch) -> Tensor:
        """Return fp32 [c, d].

        Raises NoRule where the loss uses a layer in a way that is not covered.
        """
        while outside := self._pass(batch):
            self._apart |= outside
        return self._rows

    def _pass(self, batch: Batch) -> frozenset[str]:
        """Fill the rows.

        Return the shared parameters used outside the rules (then the rows are wrong).
        """
        leaves = {name: self._leaf(name, len(batch[0])) for name in self._parameters}
        self._sinks = self._into(len(batch[0]))
        sinks = dict(zip(leaves, self._sinks, strict=True))

        # a parameter is shared by all patients, or has an axis of copies
        shared: dict[int, Sink] = {}
        axes: dict[str, int | None] = {}
        for name, leaf in leaves.items():
            axes[name] = 0
            if name not in self._apart:
                axes[name] = None
                shared[id(leaf)] = sinks[name]

        # (1, 2, 3) forward and backward; the layers fill the sinks of shared parameters
        with _without_decompositions(), _Interception(shared, self._scratch):
            losses = vmap(self._loss, in_dims=(axes, 0), randomness="error")(leaves, batch)
        gradients: tuple[Tensor | None, ...] = torch.autograd.grad(
            losses.sum(), list(leaves.values()), allow_unused=True
        )

        # (4) a copy's gradient is its patient's; a shared parameter must not have one here
        outside: set[str] = set()
        for name, gradient in zip(leaves, gradients, strict=True):
            if gradient is None:
                continue
            if name in self._apart:
                sinks[name].add(gradient)
            else:
                outside.add(name)
        for sink in self._sinks:
            sink.finish()
        return frozenset(outside)

    def _leaf(self, name: str, patients: int) -> Tensor:
        """What the loss gets for a parameter: one leaf, or a view of it for each patient."""
        parameter = self._parameters[name].detach()
        if name in self._apart:
            parameter = parameter.expand(patients, *parameter.shape)
        return parameter.requires_grad_()

    def natural(self, vector: Tensor) -> Tensor:
        """Return a vector [d] over the columns of the last rows in the order of the parameters."""
        parts = torch.split(vector, [sink.size for sink in self._sinks])
        ordered = []
        for sink, part in zip(self._sinks, parts, strict=True):
            ordered.append(sink.natural(part))
        return torch.cat(ordered)

    def _into(self, patients: int) -> list[Sink]:
        """Return an empty sink for each parameter, over its columns of the rows."""
        device = next(iter(self._parameters.values())).device
        if self._rows.shape != (patients, self._dimension) or self._rows.device != device:
            self._rows = torch.empty(patients, self._dimension, device=device)
        columns = torch.split(self._rows, [p.numel() for p in self._parameters.values()], dim=1)
        sinks = []
        for part, parameter in zip(columns, self._parameters.values(), strict=True):
            sinks.append(Sink(part, parameter.shape))
        return sinks


@contextlib.contextmanager
def _without_decompositions() -> Iterator[None]:
    """Keep vmap from loading rules for loss functions that are not used.

    That saves five seconds of imports. Where this torch has no such switch, they are loaded.
    """
    try:
        switch: Any = importlib.import_module("torch._functorch.predispatch")
    except ImportError:
        switch = None
    skip = getattr(switch, "DECOMPOSITIONS_LOADED", None) is False
    if skip:
        switch.DECOMPOSITIONS_LOADED = True
    try:
        yield
    finally:
        if skip:
            switch.DECOMPOSITIONS_LOADED = False


class _Interception(TorchFunctionMode):
    """While active, sends layers with a rule and a trained parameter through `_OutOfVmap`."""

    def __init__(self, sinks: Mapping[int, Sink], scratch: Scratch) -> None:
        super().__init__()
        self._sinks = sinks
        self._scratch = scratch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        rule = RULES.get(func)
        if rule is not None:
            layer = rule(*args, **(kwargs or {}))
            if layer.claims(self._sinks, self._scratch):
                return _beneath(_OutOfVmap, layer)
            if isinstance(layer, _Conv2d):
                return _beneath(_Untrained, layer)
        return func(*args, **(kwargs or {}))


_functorch: Any = torch._C._functorch  # private: what `_beneath` uses of it is checked there


def _beneath(function: Any, layer: Layer) -> Tensor:
    """Return `function.apply` on a layer's tensors.

    Directly beneath vmap, the function's own rule for vmap is called at once, which saves half a
    millisecond a call. In all other cases, and with another torch, torch's general way is taken.
    """
    # take the tensors out of vmap, if it is the only transform
    tensors = (layer.input, layer.weight, layer.bias)
    try:
        interpreter = _functorch.peek_interpreter_stack()
        alone = _functorch.get_dynamic_layer_stack_depth() == 1
        if not alone or interpreter.key() != _functorch.TransformType.Vmap:
            raise AttributeError
        level = interpreter.level()
        plain_tensors: list[Tensor | None] = []
        axes: list[int | None] = []
        for tensor in tensors:
            plain = tensor
            axis = None
            if tensor is not None:
                plain, axis = _functorch._unwrap_batched(tensor, level)
            plain_tensors.append(plain)
            axes.append(axis)
        stack = _functorch.pop_dynamic_layer_stack()
    except AttributeError:
        y: Tensor = function.apply(*tensors, layer)
        return y

    # call the rule without vmap, and put its result back under vmap
    try:
        result, result_axis = function.vmap(None, axes, *plain_tensors, layer)
    finally:
        _functorch.push_dynamic_layer_stack(stack)
    wrapped: Tensor = _functorch._add_batch_dim(result, result_axis, level)
    return wrapped


class _OutOfVmap(torch.autograd.Function):
    """Makes patients and items of a layer's input one axis; `_Node` does the backward pass."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, layer: Layer) -> Tensor:
        raise NoRule("a layer whose input is no patient's")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        raise NoRule("a gradient inside the loss")

    @staticmethod
    def vmap(
        info: Any, dims: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: Layer
    ) -> tuple[Tensor, int]:
        if dims[0] is None or dims[1] is not None or dims[2] is not None:
            raise NoRule("a layer whose weights are a patient's, or whose input is not")
        x = x.movedim(dims[0], 0)
        y: Tensor
        if x.dim() <= 2:  # one item a patient, without an axis of items
            y = _Node.apply(x, weight, bias, layer, len(x))
            return y, 0
        y = _Node.apply(x.reshape(-1, *x.shape[2:]), weight, bias, layer, len(x))
        return y.view(*x.shape[:2], *y.shape[1:]), 0


class _Untrained(torch.autograd.Function):
    """A convolution whose weight is frozen, or made from trained tensors (then one a patient)."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, layer: _Conv2d) -> Tensor:
        return layer.plainly(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        raise NoRule("a convolution that is no patient's")

    @staticmethod
    def vmap(
        info: Any, dims: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: _Conv2d
    ) -> tuple[Tensor, int]:
        if dims[0] is None:
            raise NoRule("a convolution whose input is no patient's")
        x = x.movedim(dims[0], 0)
        # a weight or bias of each patient
        own_weight = dims[1] is not None
        own_bias = bias is not None and dims[2] is not None
        if own_weight:
            return layer.pointwise(x, weight.movedim(dims[1], 0), bias), 0
        if own_bias:
            return layer.pointwise(x, weight[None], bias), 0
        # one for all
        y = layer.plainly(x.flatten(0, -4), weight, bias)
        return y.view(*x.shape[:-3], *y.shape[1:]), 0


class _Node(torch.autograd.Function):
    """A layer on [c·n, …]: its forward pass and input gradient are torch's own.

    The weights' gradients go to the sinks.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: Layer, patients: int
    ) -> Tensor:
        y, saved = layer.forward(x, weight, bias)
        ctx.layer = layer
        ctx.patients = patients
        ctx.save_for_backward(*saved)
        return y

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> Any:
        gx = ctx.layer.backward(gy, ctx.saved_tensors, ctx.patients, ctx.needs_input_grad[0])
        return gx, None, None, None, None
