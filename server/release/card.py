"""The head of README.md: what the Hugging Face Hub and `datasets` read of a release.

In: the plan, how many pictures there are. Out: YAML between two lines of `---`.
Guarantees: one split, train, which is the Parquet files and nothing else, with so many rows.
"""

from __future__ import annotations

from typing import Any

import yaml

from common.study.plan import Study
from server.release.loaders import Feature, features

# the Hub's own identifiers of licences for data; every other one is named by its SPDX identifier
KNOWN_LICENCES = frozenset(
    {
        "cc0-1.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-4.0",
        "cc-by-nd-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-4.0", "cdla-permissive-2.0",
        "cdla-sharing-1.0", "odbl", "odc-by", "pddl", "mit", "apache-2.0",
    }
)  # fmt: skip
SPDX_NAMES = {"odbl-1.0": "odbl", "odc-by-1.0": "odc-by", "pddl-1.0": "pddl"}
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def front_matter(study: Study, count: int) -> str:
    """Return the YAML head of the card of a release of `count` pictures."""
    pairs = study.synthesis is None
    columns = features(study.strata(), pairs=pairs)
    head: dict[str, Any] = {
        "pretty_name": study.title,
        **_licence(study.release.licence),
        "task_categories": ["image-segmentation" if pairs else "image-classification"],
        "size_categories": [next(name for most, name in SIZES if count < most)],
        "tags": ["medical", study.modality, "synthetic"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": "parquet/train-*.parquet"}],
            }
        ],
        "dataset_info": {
            "features": [_feature(name, kind) for name, kind in columns.items()],
            "splits": [{"name": "train", "num_examples": count}],
        },
    }
    text = yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=100)
    return f"---\n{text}---\n"


def _licence(spdx: str) -> dict[str, str]:
    """The Hub's licence keys."""
    name = SPDX_NAMES.get(spdx.lower(), spdx.lower())
    if name in KNOWN_LICENCES:
        return {"license": name}
    return {"license": "other", "license_name": spdx, "license_link": "LICENSE"}


def _feature(name: str, kind: Feature) -> dict[str, Any]:
    """A column in the words of `dataset_info`."""
    if kind["_type"] == "ClassLabel":
        numbered = {str(index): label for index, label in enumerate(kind["names"])}
        return {"name": name, "dtype": {"class_label": {"names": numbered}}}
    return {"name": name, "dtype": kind.get("dtype", "image")}
