"""The studies that a history draws from: every grouping, with and without noise, two intakes.

In: a kind and a number. Out: a plan file, signed; what the oracle needs to know of it.
"""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.privacy.claims import claims_of, find_claim
from common.study.bundle import write_bundle
from common.study.plan import Study, load_study
from common.wire import tensors
from tests.sequences.oracle import Plan
from tests.sites import WEIGHTS
from tests.studies import small_plan

DELTA = 1e-5
K = 3
NOISED = {"share": 1.0, "mechanism": "gaussian", "epsilon": 2.0, "delta": 1e-6}
ANCHORS = {
    "noise_multiplier": 0.8,
    "threshold_delta": 5e-6,
    "components": 4,
    "cells_per_stratum": 1,
}

# what each kind changes in the small plan
KINDS: dict[str, dict[str, Any]] = {
    "similar": {"synthesis__grouping": "similar"},
    "similar-wider": {"synthesis__grouping": "similar", "synthesis__k": 4},
    "similar-larger": {"synthesis__grouping": "similar", "intake__size_px": 64},
    "cells": {"synthesis__grouping": "cells"},
    "random": {"synthesis__grouping": "random"},
    "random-noised": {"synthesis__grouping": "random", "synthesis__privatize": NOISED},
    "similar-half": {
        "synthesis__grouping": "similar",
        "synthesis__privatize": {**NOISED, "share": 0.5},
    },
    "similar-half-again": {
        "synthesis__grouping": "similar",
        "synthesis__privatize": {**NOISED, "share": 0.5, "epsilon": 2.5},
    },
    "similar-half-more": {
        "synthesis__grouping": "similar",
        "synthesis__privatize": {**NOISED, "share": 0.5, "epsilon": 3.0},
    },
    "anchors": {
        "synthesis__grouping": "anchors",
        "synthesis__anchors": ANCHORS,
        "privacy__epsilon": 8.0,
    },
    "single": {
        "synthesis__grouping": "similar",
        "synthesis__privatize": {**NOISED, "egress": "single"},
    },
    # refused before it computes: its constants spend more than it promises
    "overspent": {"synthesis__grouping": "similar", "privacy__epsilon": 0.2},
}
# no plan at all: it claims epsilon per patient, and noises half of the averages
UNWRITABLE: dict[str, dict[str, Any]] = {
    "random-half": {
        "synthesis__grouping": "random",
        "synthesis__privatize": {**NOISED, "share": 0.5},
    }
}
PLAIN = ("similar", "similar-wider", "similar-larger", "cells", "random")
REFUSED = ("overspent",)


def make_study(folder: Path, kind: str, number: int, key: Ed25519PrivateKey) -> tuple[Study, Plan]:
    """Write and sign the plan of a study in a new folder; return it, and the oracle's view.

    Raises ConfigurationError where the plan cannot be written at all.
    """
    folder.mkdir(parents=True)
    data = plan_data(folder, kind, number)
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(data))))
    study = load_study(path)
    write_bundle(path, key, folder / "bundle")
    claims = claims_of(study)
    updates = find_claim(claims, "updates")
    assert study.synthesis is not None
    assert updates is not None
    assert updates.epsilon is not None
    covered = find_claim(claims, "averages") is not None
    return study, Plan(study.name, study.hash(), study.synthesis.k, updates.epsilon, covered)


def plan_data(folder: Path, kind: str, number: int) -> dict[str, Any]:
    """Return a plan as plain data, with its starting checkpoints written beside it."""
    data = small_plan(
        name=f"{kind}-{number}",
        intake__labels=["none", "severe"],
        intake__stratify_laterality=False,
        privacy__canaries=0,
        privacy__epsilon=3.0,
        privacy__delta=DELTA,
        synthesis__k=K,
        synthesis__privatize=None,
    )
    data["models"] = copy.deepcopy(data["models"])
    for path, value in (KINDS | UNWRITABLE)[kind].items():
        section, key = path.split("__")
        data[section][key] = value
    for model, arrays in WEIGHTS.items():
        file = folder / f"{model}.safetensors"
        tensors.write(file, arrays)
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        data["models"][model]["start"] = {"file": file.name, "sha256": sha256}
    return data
