"""Small plans for tests: valid, and easy to vary."""

from __future__ import annotations

import copy
from typing import Any

from common.study.plan import Study

SMALL: dict[str, Any] = {
    "format": "kohort-study/1",
    "name": "small",
    "title": "A small study",
    "modality": "fundus",
    "sites": [{"name": "hospital-a"}, {"name": "hospital-b"}, {"name": "hospital-c"}],
    "quorum": 2,
    "intake": {
        "dicom_modalities": ["OP"],
        "size_px": 32,
        "channels": 3,
        "labels": ["none", "mild-moderate", "severe"],
        "ordinal_labels": True,
        "stratify_laterality": True,
    },
    "models": {
        "gan": {
            "rounds": 2,
            "local_steps": 2,
            "learning_rate": 0.0001,
            "generator_learning_rate": 0.0001,
            "noise_multiplier": 4.0,
            "patients_per_step": 16,
            "clip": 1.0,
            "max_update_norm": 10.0,
            "width": 16,
            "latent": 16,
        },
        "glow": {
            "rounds": 1,
            "local_steps": 2,
            "learning_rate": 0.0001,
            "noise_multiplier": 4.0,
            "patients_per_step": 16,
            "clip": 1.0,
            "max_update_norm": 10.0,
            "levels": 3,
            "steps_per_level": 2,
            "width": 16,
        },
        "encoder": {"steps": 2, "learning_rate": 0.001, "width": 16},
    },
    "privacy": {"epsilon": 8.0, "delta": 1e-5, "planned_patients": 100, "accept_infeasible": True},
    "synthesis": {
        "k": 5,
        "grouping": "similar",
        "inversion_steps": 2,
        "alignment_steps": 2,
        "max_images_per_site": 40,
        "privatize": {"share": 0.25, "radius": 0.8, "scale": 0.5},
    },
    "release": {"date": "2026-11-21"},
}


VESSELS: dict[str, Any] = {
    **{name: SMALL[name] for name in ("format", "name", "title", "sites", "quorum", "privacy")},
    "modality": "vessels",
    "intake": {
        "dicom_modalities": ["MR"],
        "size_px": 32,
        "channels": 1,
        "labels": ["vessels"],
        "volumes": {"patches_per_patient": 4},
    },
    "models": {
        "wgan": {
            **{k: v for k, v in SMALL["models"]["gan"].items() if k not in ("width", "latent")},
            "width": 8,
            "generator_width": 8,
            "latent": 16,
            "critic_steps": 1,
            "items_per_patient": 2,
            "released_pairs": 12,
        },
    },
    "release": {"date": "2026-11-21", "min_images": 4},
}


def small_plan(**changes: Any) -> dict[str, Any]:
    """The small plan as plain data, with changes given as `privacy__epsilon=3`."""
    return varied(SMALL, **changes)


def vessels_plan(**changes: Any) -> dict[str, Any]:
    """Return a small plan without synthesis that releases image + mask pairs.

    `changes` are as in `small_plan`.
    """
    return varied(VESSELS, **changes)


def varied(plan: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A copy of a plan with changes given as `privacy__epsilon=3`."""
    data = copy.deepcopy(plan)
    for path, value in changes.items():
        place = data
        *parents, last = path.split("__")
        for name in parents:
            place = place[name]
        # whoever changes the plan later must not change the test's own constant
        place[last] = copy.deepcopy(value)
    return data


def small_study(**changes: Any) -> Study:
    """The small plan as a validated study."""
    return Study.model_validate(small_plan(**changes))
