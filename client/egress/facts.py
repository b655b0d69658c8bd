"""What a reviewer learns of each image of a batch, in a file beside the sheet. ON SITE ONLY.

In: the evidence, the labels, what the audit found, the persons of the cohort. Out: `Facts`.
Guarantees: reading is total; the text is the same for the same batch.
Not covered: the pictures, which stand on the contact sheet (contact_sheet.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from client.egress.audit import AuditReport
from client.egress.evidence import Evidence
from common.errors import RefusedError, damage_named
from common.storage.files import read_capped
from common.study.plan import Study
from common.wire.messages import canonical
from common.wire.tensors import Arrays

FILE = "batch.json"
CAP_BYTES = 1 << 24


@dataclass(frozen=True)
class Finding:
    """What the audit found of one image, next to its nearest real one.

    `floor_ratio`: its distance as a share of what real images of two patients have between them.
    `lead`: its distance as a share of that to the next patient.
    """

    code: str
    floor_ratio: float
    lead: float


@dataclass(frozen=True)
class ImageFacts:
    """One image: label, the number of its group in the batch, persons in it, noise, finding."""

    label: str
    group: int
    persons: int
    privatized: bool
    finding: Finding


@dataclass(frozen=True)
class Facts:
    """One batch: the size of its images in pixels, each image in order.

    `whole`: why single images cannot be left out, in a sentence; "" where they can.
    """

    size_px: int
    images: tuple[ImageFacts, ...]
    whole: str

    def to_json(self) -> bytes:
        """Return the canonical text."""
        return canonical(asdict(self))

    def only(self, places: Sequence[int]) -> Facts:
        """Return the facts of the images at these places."""
        return replace(self, images=tuple(self.images[place] for place in places))

    def of_groups(self, numbers: Sequence[int]) -> tuple[int, ...]:
        """Return the numbers, from 1, of all images whose group one of these images has."""
        groups = {self.images[number - 1].group for number in numbers}
        places = [place for place, image in enumerate(self.images) if image.group in groups]
        return tuple(place + 1 for place in places)

    @classmethod
    def read(cls, path: Path) -> Facts:
        """Return the facts in a file; raises RefusedError."""
        text = read_capped(path, CAP_BYTES)
        with damage_named(RefusedError(f"{path}: expected what is known of each image of a batch")):
            data = json.loads(text)
            images = tuple(_image(row) for row in data["images"])
            size_px = int(data["size_px"])
            if size_px < 1:
                raise ValueError("size_px")
            return cls(size_px, images, str(data["whole"]))


def describe(
    study: Study,
    evidence: Evidence,
    tensors: Arrays,
    findings: Sequence[Finding],
    persons: Mapping[str, int],
    whole: str,
) -> Facts:
    """Return the facts of a batch; `persons`: the person behind every pseudonym of the cohort.

    Raises RefusedError where evidence, tensors and findings are not of the same images.
    """
    counts = {len(evidence.group_of), len(tensors["labels"]), len(findings)}
    labels = study.strata()
    with damage_named(RefusedError("the parts of a batch do not fit together")):
        if len(counts) != 1:
            raise ValueError("counts")
        images: list[ImageFacts] = []
        for place, index in enumerate(evidence.group_of):
            group = evidence.groups[index]
            known = {persons[member] for member in group.members if member in persons}
            label = labels[int(tensors["labels"][place])]
            noise = bool(tensors["privatized"][place])
            images.append(ImageFacts(label, index, len(known), noise, findings[place]))
    return Facts(study.intake.size_px, tuple(images), whole)


def findings_text(report: AuditReport) -> bytes:
    """Return what the audit found as text for the job folder: numbers of the nearest space."""
    rows: list[list[Any]] = []
    for code, nearest in zip(report.codes, report.nearest, strict=True):
        lead = min(nearest.leads)
        ratio = nearest.floor_ratios[nearest.leads.index(lead)]
        rows.append([code, _bounded(ratio), _bounded(lead)])
    return canonical(rows)


def read_findings(path: Path) -> tuple[Finding, ...]:
    """Return the findings in a job folder, in the order of the images; raises RefusedError."""
    text = read_capped(path, CAP_BYTES)
    with damage_named(RefusedError(f"{path}: expected the audit's findings")):
        return tuple(_finding(*row) for row in json.loads(text))


def _bounded(value: float) -> float:
    """A finite number with three decimals."""
    return round(min(float(value), 1e6), 3)


def _finding(code: Any, floor_ratio: Any, lead: Any) -> Finding:
    """The finding of a row."""
    numbers = (float(floor_ratio), float(lead))
    if not isinstance(code, str) or not all(map(math.isfinite, numbers)):
        raise ValueError("finding")
    return Finding(code, *numbers)


def _image(row: Mapping[str, Any]) -> ImageFacts:
    """The facts of a row."""
    finding = row["finding"]
    return ImageFacts(
        str(row["label"]),
        int(row["group"]),
        int(row["persons"]),
        bool(row["privatized"]),
        _finding(finding["code"], finding["floor_ratio"], finding["lead"]),
    )
