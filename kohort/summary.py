"""What `kohort verify` and `pull` print of a release, for people and for programs."""

from __future__ import annotations

import json

from kohort.manifest import Manifest
from kohort.verdict import UNCHECKED, Verdict, signed_lines


def as_line(verdict: Verdict) -> str:
    """Return the manifest and the verdict as one line of JSON."""
    manifest = verdict.manifest
    facts = manifest.facts() | {
        "fingerprint": verdict.fingerprint,
        "files": len(manifest.files),
        "signed_off": [one.name for one in verdict.sign_offs],
        "trusted": verdict.trusted,
    }
    return json.dumps(facts, sort_keys=True)


def as_text(release: str, verdict: Verdict) -> str:
    """Return what a verified release claims, and who signed it."""
    manifest = verdict.manifest
    labels = ", ".join(manifest.labels)
    budget = f"({manifest.epsilon:g}, {manifest.delta:g})-DP per patient, zero-out adjacency"
    lines = [
        f"{release}: {state(verdict)}: {len(manifest.files) + 1} files as signed",
        f"{manifest.name} {manifest.version} ({manifest.date}): {manifest.title}",
        f"  {manifest.images} synthetic images, labels {labels}, from {len(manifest.sites)} sites",
        f"  {_k_claim(manifest)}",
        f"  model updates: {budget}",
    ]
    lines += [f"  {line}" for line in signed_lines(verdict)]
    return "\n".join(lines)


def state(verdict: Verdict) -> str:
    """Return in a few words how far a release that passed can be relied on."""
    if verdict.trusted:
        return "verified, signed by whom you trust"
    return UNCHECKED


def _k_claim(manifest: Manifest) -> str:
    """What a release says about k-anonymity."""
    if manifest.k is None:
        return (
            "image + mask pairs drawn from a generator trained on the updates; "
            "k-anonymity is not claimed"
        )
    return (
        f"each image is of a group of at least k = {manifest.k} distinct patients of one site "
        f"(grouping: {manifest.grouping})"
    )
