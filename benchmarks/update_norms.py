"""Norms of honest updates of the demonstration presets, beside those that their plans imply.

    python benchmarks/update_norms.py [--json [FILE]] [STUDY...]

Each preset trains all rounds of its models on one site, with practice noise and the cap lifted.
The patients are public: the demonstration photographs and radiographs, and invented phantoms.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # opacus has a package benchmarks too

from benchmarks import report
from client.ingest.cohort import Cohort
from client.learn import train_gan, train_glow, train_wgan
from client.state.ledger import PracticeReservation
from common.privacy.events import round_event
from common.privacy.noise import SeededNoiseSource
from common.study.families import FAMILIES
from common.study.plan import Study, load_study
from common.study.shapes import parameter_counts, starting_weights
from server.operator.update_norms import update_norms
from server.public_data import phantoms
from server.public_data.images import read_source

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
PRESETS = ("fundus", "chest-demo", "vessels")
TRAIN = {"gan": train_gan.train, "glow": train_glow.train, "wgan": train_wgan.train}
NO_CAP = 1e9


def public_images(study: Study) -> NDArray[np.uint8]:
    """Public or invented images in the plan's size, uint8 [N, S, S, C]."""
    size = study.intake.size_px
    if study.modality == "fundus":
        return read_source(DEPLOY / "demo" / "fundus", size, study.intake.channels).images
    if study.modality == "chest":
        images = np.load(DEPLOY / "demo" / "chest" / "radiographs.npz")["images"]
        margin = (size - images.shape[1]) // 2
        padded = ((0, 0), (margin, margin), (margin, margin))
        return np.pad(images.reshape(images.shape[:3]), padded, mode="edge")[..., None]
    rng = np.random.default_rng(0)
    style = phantoms.STYLES["hospital"]
    drawn = [phantoms.patches(phantoms.volume(rng, style), 8, size, rng) for _ in range(20)]
    return np.concatenate(drawn)


def invent_cohort(study: Study, images: NDArray[np.uint8], each: int) -> Cohort:
    """As many patients as the plan has, with `each` of the images in turn."""
    count = study.privacy.planned_patients
    chosen = images[np.arange(count * each) % len(images)]
    names = tuple(f"{patient:064x}" for patient in range(count))
    zeros = np.zeros(len(chosen), np.int64)
    return Cohort(
        folder=Path("unused"),
        images=chosen,
        patient_of=np.repeat(np.arange(count), each),
        labels=zeros,
        laterality=zeros.astype(np.int8),
        pseudonyms=names,
        aliases=tuple((name,) for name in names),
        label_names=("public",),
        digest="0" * 64,
    )


def lift_caps(study: Study) -> Study:
    """The plan with no bound on an update."""
    data = study.model_dump(mode="json")
    for model in study.models.trained():
        data["models"][model]["max_update_norm"] = NO_CAP
    return Study.model_validate(data)


def measure_model(study: Study, model: str, images: NDArray[np.uint8]) -> dict[str, object]:
    """The norms of one site's updates of every round of a model."""
    free = lift_caps(study)
    plan = free.models.trained()[model]
    assert plan.start is not None
    weights = starting_weights(DEPLOY / "studies" / plan.start.file, FAMILIES[model])
    cohort = invent_cohort(study, images, plan.items_per_patient)
    counts = parameter_counts(study, DEPLOY / "studies")
    norms = []
    for number in range(plan.rounds):
        reservation = PracticeReservation(round_event(free, model, counts[model]))
        noise = SeededNoiseSource(number)
        deltas = TRAIN[model](cohort, free, weights, reservation, noise, lambda done, total: None)
        weights = {name: weights[name] + deltas[name] for name in weights}
        flat = np.concatenate([delta.astype(np.float64).ravel() for delta in deltas.values()])
        norms.append(float(np.linalg.norm(flat)))
    expected = update_norms(study, DEPLOY / "studies")[model]
    return {
        "measured": norms,
        "noise": expected.noise,
        "start": expected.start,
        "honest": expected.honest,
        "max_update_norm": study.models.trained()[model].max_update_norm,
    }


def measure(presets: list[str]) -> dict[str, dict[str, object]]:
    """Every model of the presets, by `preset.model`."""
    found = {}
    for preset in presets:
        study = load_study(DEPLOY / "studies" / f"{preset}.yaml")
        images = public_images(study)
        for model in study.models.trained():
            found[f"{preset}.{model}"] = measure_model(study, model, images)
    return found


def table(found: dict[str, dict[str, object]]) -> report.Table:
    """One row a model."""
    rows = []
    for name, facts in found.items():
        norms = [float(norm) for norm in facts["measured"]]  # type: ignore[attr-defined]
        largest = max(norms)
        cap = float(str(facts["max_update_norm"]))
        spread = f"{min(norms):.3g} to {largest:.3g}"
        shown = [f"{float(str(facts[key])):.3g}" for key in ("noise", "start", "honest")]
        rows.append((name, spread, *shown, f"{cap:g}", f"{cap / largest:.1f}"))
    columns = ("model", "measured", "noise alone", "first round", "at most", "cap", "margin")
    note = "The margin is the cap over the largest norm that was measured."
    return report.Table("L2 norms of one site's update of one round", columns, tuple(rows), note)


def targets(found: dict[str, dict[str, object]]) -> list[report.Target]:
    """No honest update may reach its cap."""
    rows = []
    for name, facts in found.items():
        largest = max(facts["measured"])  # type: ignore[call-overload]
        cap = float(str(facts["max_update_norm"]))
        rows.append(report.Target(f"{name}: below {cap:g}", f"{largest:.3g}", largest < cap))
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, or one JSON object."""
    parser = argparse.ArgumentParser(description="Norms of honest updates beside the plans' caps.")
    report.add_json(parser)
    parser.add_argument("presets", nargs="*", help="of deploy/studies/, without .yaml")
    options = parser.parse_args(arguments)
    found = measure(options.presets or list(PRESETS))
    report.give(options.json, "update_norms", [table(found)], found, targets(found))


if __name__ == "__main__":
    main()
