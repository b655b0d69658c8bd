"""Model families: which tensors a privately trained model has, and what a site may change of them.

Guarantees: no import of a network; a tensor that no prefix names belongs to no family.
Not covered: the networks (common/study/architectures.py), their layers (common/study/planned.py),
their training (client/learn/).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

Shapes = Mapping[str, tuple[int, ...]]
Value = TypeVar("Value")


@dataclass(frozen=True)
class Family:
    """One kind of trained model: its name is the key in a plan's `models`.

    `prefixes`: of its tensors' global names. `post_processed`: the prefixes whose tensors a site
    makes from the private ones alone; they take no private gradient, and the plan's `trainable`
    does not bind them. `synthesis`: whether image synthesis gets the final weights.
    """

    name: str
    prefixes: tuple[str, ...]
    post_processed: tuple[str, ...] = ()
    synthesis: Literal["always", "to privatize", "never"] = "never"

    def owns(self, name: str) -> bool:
        """Return whether a tensor of this name belongs to the family."""
        return name.startswith(self.prefixes)

    def select(self, tensors: Mapping[str, Value]) -> dict[str, Value]:
        """Return the family's own part of `tensors` (arrays or shapes, by global name)."""
        return {name: value for name, value in tensors.items() if self.owns(name)}

    def may_change(self, name: str, trainable: tuple[str, ...]) -> bool:
        """Return whether a site may change this tensor.

        `trainable`: the plan's prefixes of global names; () is all.
        """
        return not trainable or name.startswith((*self.post_processed, *trainable))

    def trains_privately(self, name: str, trainable: tuple[str, ...]) -> bool:
        """Return whether private gradients change this tensor.

        They do where it may change and is not post-processed.
        """
        return self.may_change(name, trainable) and not name.startswith(self.post_processed)

    def private_dimension(self, shapes: Shapes, trainable: tuple[str, ...]) -> int:
        """Return how many numbers a private step changes in tensors of these shapes."""
        names = [name for name in shapes if self.trains_privately(name, trainable)]
        return sum(math.prod(shapes[name]) for name in names)


GAN = Family("gan", ("generator.", "critic."), ("generator.",), "always")
GLOW = Family("glow", ("glow.",), synthesis="to privatize")
WGAN = Family("wgan", ("generator.", "average.", "critic."), ("generator.", "average."))
FAMILIES = {family.name: family for family in (GAN, GLOW, WGAN)}  # in the order of training
