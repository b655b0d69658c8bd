"""Targets: what a child leaves for reviewers, and what a browser sends to the review desk."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from client.egress.audit import AuditReport, Nearest
from client.egress.contact_sheet import contact_sheet
from client.egress.facts import Facts, Finding, ImageFacts, findings_text, read_findings
from client.egress.sheet_pictures import SheetPictures
from tests.fuzz.harness import Parser, Target
from tests.fuzz.mutation import damaged, exchanged, one_of, revalued

FINDING = Finding("A-PASS", 1.2, 0.9)
IMAGES = (ImageFacts("grade-0", 0, 5, False, FINDING), ImageFacts("grade-1", 1, 6, True, FINDING))
REPORT = AuditReport(("A-PASS",) * 2, (Nearest(1, (2.0,) * 3, (1.0,) * 3),) * 2)


def _facts(folder: Path) -> Parser:
    """What is noted of each image, and what the audit found."""
    paths = (folder / "batch.json", folder / "findings.json")
    seeds = (Facts(32, IMAGES, "").to_json(), findings_text(REPORT))

    def call(data: bytes) -> None:
        which = data[:1] == b"\1"
        paths[which].write_bytes(data[1:])
        if which:
            read_findings(paths[1])
        else:
            Facts.read(paths[0])

    makers = (one_of(*map(revalued, seeds)), one_of(*map(exchanged, seeds)))
    return Parser(call, makers)


def _page(folder: Path) -> Parser:
    """A page of a contact sheet, from which pictures are cut."""
    images = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)
    seed = contact_sheet(images, images, REPORT)
    path = folder / "contact_sheet.png"

    def call(data: bytes) -> None:
        path.write_bytes(data)
        SheetPictures([path], Facts(8, IMAGES, "")).png(2, 1)

    return Parser(call, (damaged(seed),), good=seed)


TARGETS = (
    Target("batch-facts", ("client.egress.facts",), _facts),
    Target("sheet-page", ("client.egress.sheet_pictures",), _page, memory_mib=128, few=400),
)
