"""Writes an ONNX graph node by node: the same calls give the same bytes.

In: tensors by name, and operations in their order.
Out: the bytes of a model of one opset, whose inputs are drawn and whose output is `images`.
Guarantees: names are counted, and nothing of the machine, the clock or a library's version enters.
Not covered: whether the graph computes what a network does (tests/server/release/test_graphs.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from onnx import ValueInfoProto

OPSET = 18
IR_VERSION = 8  # of ONNX 1.13, which brought that opset
OUTPUT = "images"
BATCH = "N"


@dataclass(frozen=True)
class Exported:
    """The bytes of an ONNX model, and the shape of each input without the batch's axis."""

    onnx: bytes
    inputs: Mapping[str, tuple[int, ...]]


class Graph:
    """Collects inputs, tensors and operations; a value is known by its name."""

    def __init__(self) -> None:
        from onnx import NodeProto, TensorProto

        self._nodes: list[NodeProto] = []
        self._tensors: dict[str, TensorProto] = {}
        self._inputs: dict[str, tuple[int, ...]] = {}

    def add_input(self, name: str, shape: Sequence[int]) -> str:
        """Return the name of a new input, float32 [N, *shape]."""
        self._inputs[name] = tuple(shape)
        return name

    def add_tensor(self, name: str, array: NDArray[np.generic]) -> str:
        """Return the name of a tensor, which is stored once."""
        from onnx import numpy_helper

        if name not in self._tensors:
            self._tensors[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def number(self, value: float) -> str:
        """Return the name of one float32 number."""
        return self.add_tensor(f"number {value!r}", np.array(value, np.float32))

    def whole(self, *values: int) -> str:
        """Return the name of a row of int64 numbers: axes, shapes, borders."""
        return self.add_tensor(f"whole {list(values)}", np.array(values, np.int64))

    def __call__(self, operation: str, *inputs: str, **attributes: Any) -> str:
        """Add an operation with one output; returns the output's name."""
        return self.many(operation, 1, *inputs, **attributes)[0]

    def many(
        self, operation: str, outputs: int, *inputs: str, **attributes: Any
    ) -> tuple[str, ...]:
        """Add an operation with several outputs; returns their names."""
        from onnx import helper

        first = f"{operation.lower()} {len(self._nodes)}"
        names = tuple(f"{first}.{i}" for i in range(outputs))
        self._nodes.append(helper.make_node(operation, list(inputs), list(names), **attributes))
        return names

    def finish(self, name: str, value: str, shape: Sequence[int]) -> Exported:
        """Return the model `name` whose output, float32 [N, *shape], is `value`."""
        from onnx import TensorProto, helper

        # the borders of the graph
        def border(of: str, sides: Sequence[int]) -> ValueInfoProto:
            return helper.make_tensor_value_info(of, TensorProto.FLOAT, [BATCH, *sides])

        self._nodes.append(helper.make_node("Identity", [value], [OUTPUT]))
        inputs = [border(of, sides) for of, sides in self._inputs.items()]
        output = border(OUTPUT, shape)

        # the model
        graph = helper.make_graph(self._nodes, name, inputs, [output], list(self._tensors.values()))
        model = helper.make_model(
            graph,
            producer_name="kohort",
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid("", OPSET)],
        )
        return Exported(model.SerializeToString(deterministic=True), dict(self._inputs))
