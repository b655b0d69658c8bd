"""What may be said of a mechanism on latents: its claim, its statement, and the facts beside them.

In: a mechanism (common/privacy/latent_mechanisms.py). Out: sentences and plain data for reports.
Guarantees: epsilon per image is always stated and never called by another number's name.
k-anonymity and epsilon stay two promises. Groups that the images choose claim no epsilon per
patient.
Not covered: whether the data were really clipped, or what a whole study spends (accounting.py).
Source: Shibata et al. 2023; docs/methods/dp-glow.md.
"""

from __future__ import annotations

from typing import Any, Protocol

from common.privacy.price import at_most

REPLACE_ONE = "replace-one patient"


class LatentFacts(Protocol):
    """The public numbers of a mechanism on latents."""

    @property
    def dimension(self) -> int: ...

    @property
    def k(self) -> int: ...

    @property
    def grouping(self) -> str: ...

    @property
    def clip(self) -> str: ...

    @property
    def delta(self) -> float: ...

    @property
    def epsilon_per_image(self) -> float: ...

    @property
    def epsilon_per_coordinate(self) -> float: ...

    @property
    def expected_cosine(self) -> float: ...

    @property
    def covers_patient(self) -> bool: ...

    def statement(self) -> str: ...


def claim(mechanism: LatentFacts) -> str:
    """Return what a statement may say of these groups."""
    spent = f"ε={at_most(mechanism.epsilon_per_image)}"
    if mechanism.delta:
        spent += f", δ={mechanism.delta:g}"
    if mechanism.k == 1:
        return (
            f"{spent} per image, and per patient where each patient has one image; no k-anonymity"
        )
    anonymity = f"k-anonymity (k={mechanism.k})"
    if mechanism.covers_patient:
        return f"{anonymity}, and {spent} per patient for all averages of the release together"
    return (
        f"{anonymity}, and {spent} per average; "
        "the choice of the groups is not covered, no ε per patient"
    )


def describe_latent(mechanism: LatentFacts) -> dict[str, Any]:
    """Return what every description of a mechanism on latents says."""
    return {
        "k": mechanism.k,
        "grouping": mechanism.grouping,
        "adjacency": REPLACE_ONE,
        "epsilon_per_coordinate": mechanism.epsilon_per_coordinate,
        "epsilon_per_image": mechanism.epsilon_per_image,
        "delta": mechanism.delta,
        "unit": "patient" if mechanism.covers_patient else "average",
        "expected_cosine": round(mechanism.expected_cosine, 4),
        "claim": claim(mechanism),
        "statement": mechanism.statement(),
    }


def latent_statement(mechanism: LatentFacts, whole: int | None) -> str:
    """Return the part of a statement that all mechanisms share, from epsilon per image on.

    `whole`: all latent coordinates D, of which the mechanism has `dimension`.
    """
    parts = [_epsilon_words(mechanism), "replace-one", _dimension_words(mechanism, whole)]
    parts.append(f"k={mechanism.k}")
    if mechanism.clip != "sphere":
        parts.append(f"{mechanism.grouping} groups")
    parts.append(f"expected cosine {mechanism.expected_cosine:.2f}")
    text = ", ".join(parts)
    if mechanism.k == 1 or mechanism.covers_patient:
        return text
    return f"{text}; no ε per patient"


def _epsilon_words(mechanism: LatentFacts) -> str:
    """Epsilon, and whether it holds per image, average or patient."""
    text = f"ε={at_most(mechanism.epsilon_per_image)}"
    if mechanism.delta:
        text += f", δ={mechanism.delta:g}"
    elif mechanism.clip == "sphere":
        text += " (pure)"
    if mechanism.k == 1:
        return f"{text} per image"
    if mechanism.covers_patient:
        return f"{text} per patient for all averages together"
    return f"{text} per average"


def _dimension_words(mechanism: LatentFacts, whole: int | None) -> str:
    text = f"d={mechanism.dimension:,}"
    return f"{text} of {whole:,}" if whole else text
