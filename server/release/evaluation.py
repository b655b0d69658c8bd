"""What reports/findings.json says: the pictures measured against public data.

In: the inputs and the items of a release. Out: plain data.
Guarantees: what was not measured reads "not evaluated".
"""

from __future__ import annotations

from typing import Any

import numpy as np

from server.evaluate import rehearsal_report
from server.evaluate.attacker import load_networks
from server.evaluate.comparison import GROUP_SIZE
from server.evaluate.downstream import Labelled
from server.evaluate.findings import Finding, to_json
from server.evaluate.people import PublicPeople
from server.evaluate.rehearsal_report import Rehearsal
from server.evaluate.report import canary_findings, evaluate
from server.release.items import Items, ReleaseInputs


def evaluation(inputs: ReleaseInputs, items: Items) -> dict[str, Any]:
    """Return the report: reference, rehearsal and findings."""
    rehearsal = _rehearsal(inputs, items)
    if inputs.pairs is not None and items.masks is not None:
        findings = _pair_findings(inputs, items)
    else:
        findings = _image_findings(inputs, items, rehearsal)
    findings += canary_findings(inputs.account.canaries)
    return {
        "reference": inputs.reference_name or None,
        "rehearsal": rehearsal and rehearsal.model_dump(mode="json"),
        "findings": to_json(findings),
    }


def _rehearsal(inputs: ReleaseInputs, items: Items) -> Rehearsal | None:
    """The rehearsal that was given, or that of this release if its people are public."""
    if not isinstance(inputs.rehearsal, PublicPeople):
        return inputs.rehearsal
    checkpoints = inputs.bundle / "checkpoints"
    attacker = load_networks(inputs.study, inputs.weights, checkpoints)
    released = Labelled(items.images, items.labels)
    return rehearsal_report.rehearse(released, inputs.rehearsal, inputs.study, attacker)


def _image_findings(
    inputs: ReleaseInputs, items: Items, rehearsal: Rehearsal | None
) -> list[Finding]:
    """Images against public reference images, and what the rehearsal found."""
    utility, attacks = rehearsal_report.findings(rehearsal)
    return evaluate(
        items.images,
        items.labels,
        inputs.study.strata(),
        inputs.reference,
        extractor=inputs.extractor,
        group_size=_group_size(inputs),
        downstream=utility,
        attacks=attacks,
    )


def _group_size(inputs: ReleaseInputs) -> int:
    """The plan's k, for the averages that stand beside the release."""
    plan = inputs.study.synthesis
    return GROUP_SIZE if plan is None else plan.k


def _pair_findings(inputs: ReleaseInputs, items: Items) -> list[Finding]:
    """Pairs against public reference pairs (imports torch)."""
    from server.evaluate.pair_utility import evaluate_pairs

    # the reference: its pairs, and its images alone
    assert inputs.pairs is not None
    assert items.masks is not None
    reference = inputs.reference
    pairs = None
    patient_of = None
    if inputs.pairs.reference is not None:
        pairs = inputs.pairs.reference.pairs
        patient_of = inputs.pairs.reference.patient_of
        reference = pairs[..., :1]

    # the images as images, and the pairs as pairs
    released = np.concatenate([items.images, items.masks[..., None]], axis=-1)
    return evaluate(
        items.images,
        items.labels,
        inputs.study.strata(),
        reference,
        patient_of=patient_of,
        extractor=inputs.extractor,
        downstream=evaluate_pairs(released, pairs, patient_of),
    )
