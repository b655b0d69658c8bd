"""A study in progress, as its operator sees it: the questions in order, weights and receipts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from common.study.plan import Study
from common.wire import tensors
from tests.sequences.oracle import Plan
from tests.sites import WEIGHTS


class Question(NamedTuple):
    """One instruction: which phase, model, round and whether it closes the study."""

    kind: str
    model: str
    round: int
    closes: bool = False


QUESTIONS = (
    Question("train", "gan", 0),
    Question("train", "gan", 1),
    Question("train", "glow", 0),
    Question("synthesize", "", 0),
    Question("synthesize", "", 1, closes=True),
)


@dataclass
class Course:
    """A study in progress, as the operator sees it. `next`: the question that comes next."""

    study: Study
    plan: Plan
    bundle: Path
    next: int = 0
    weights: dict[str, tensors.Arrays] = field(
        default_factory=lambda: {model: dict(arrays) for model, arrays in WEIGHTS.items()}
    )
    receipts: list[str] = field(default_factory=list)
