"""What may be said of a mechanism on latents: the claim that its groups allow, its statement, and the facts beside them.

In: a mechanism (common/privacy/mechanisms.py). Out: sentences and plain data for reports. Guaranteed: epsilon per image is never
left out or called another number's, k-anonymity and epsilon stay two promises, and groups that the images choose claim no epsilon
per patient. Not: whether the data were really clipped, or what a whole study spends (accounting.py).

Source: methods/dp-glow.md, sections 5 and 6.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from common.privacy.mechanisms import Latent

REPLACE_ONE = "replace-one patient"


def claim(mechanism: "Latent") -> str:
    """What a statement may say of these groups (methods/dp-glow.md, section 5); k-anonymity and epsilon stay two promises."""
    spent = f"ε={_grouped(mechanism.epsilon_per_image)}" + (
        f", δ={mechanism.delta:g}" if mechanism.delta else ""
    )
    if mechanism.k == 1:
        return (
            f"{spent} per image, and per patient where each patient has one image; no k-anonymity"
        )
    if mechanism.covers_patient:
        return f"k-anonymity (k={mechanism.k}), and {spent} per patient for all averages of the release together"
    return f"k-anonymity (k={mechanism.k}), and {spent} per average; the choice of the groups is not covered, no ε per patient"


def described(mechanism: "Latent") -> dict[str, Any]:
    """What every description of a mechanism on latents says."""
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


def stated(mechanism: "Latent", whole: int | None) -> str:
    """From epsilon per image on, the same words for all mechanisms."""
    pure = (
        f", δ={mechanism.delta:g}"
        if mechanism.delta
        else " (pure)"
        if mechanism.clip == "sphere"
        else ""
    )
    text = f"ε={_grouped(mechanism.epsilon_per_image)}{pure} per {'image' if mechanism.k == 1 else 'average'}"
    if mechanism.k > 1:
        covered = mechanism.covers_patient
        text += (
            " and per patient"
            if covered
            else ", grouping by similarity not covered, no ε per patient"
        )
    dimension = f"d={mechanism.dimension:,}" + (f" of {whole:,}" if whole else "")
    groups = "" if mechanism.clip == "sphere" else f", {mechanism.grouping} groups"
    cosine = f"expected cosine {mechanism.expected_cosine:.2f}"
    return f"{text}, replace-one, {dimension}, k={mechanism.k}{groups}, {cosine}"


def _grouped(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.4g}"
