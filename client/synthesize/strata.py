"""Which stratum each image of a cohort is of: the merged label, and the side where sides count.

In: a cohort, a plan. Out: two arrays, one entry an image.
"""

from __future__ import annotations

import numpy as np

from client.ingest.cohort import Cohort
from common.arrays import Labels
from common.study.plan import Study


def labels_and_sides(cohort: Cohort, study: Study) -> tuple[Labels, Labels | None]:
    """Return each image's merged label (-1: unknown), and its side where the plan says so."""
    intake = study.intake
    strata = study.strata()
    # the stratum of each of the cohort's labels
    merged: list[int] = []
    for label in cohort.label_names:
        merged.append(strata.index(intake.merge_labels.get(label, label)))
    # a label of -1, unknown, takes the last entry, which is -1
    labels = np.array([*merged, -1], np.int64)[cohort.labels]
    if not intake.stratify_laterality:
        return labels, None
    return labels, np.asarray(cohort.laterality, np.int64)
