"""Every term that a page of a release uses is explained on it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from common.study.plan import Study
from kohort import layout
from server.release.glossary import TERMS, terms_in
from server.release.statement import privacy_statement, statement_markdown
from tests.releases import ACCOUNT, small_release
from tests.studies import small_plan, small_study, vessels_plan

GAUSSIAN = {"share": 1.0, "mechanism": "gaussian", "epsilon": 4.0, "delta": 1e-6}
ANCHORS = {
    "k": 5,
    "grouping": "anchors",
    "inversion_steps": 0,
    "alignment_steps": 0,
    "max_images_per_site": 40,
    "anchors": {"noise_multiplier": 0.8, "threshold_delta": 1e-6, "components": 8},
}
COMMON = (
    "zero-out",
    "differentially private",
    "epsilon",
    "delta",
    "PLD",
    "RDP",
    "canaries",
    "gate",
    "ledger",
    "consortium",
    "starting checkpoint",
    "Unit of protection",
)
PLANS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "similar": (
        {},
        (
            *COMMON,
            "k-anonymity",
            "Grouping: similar",
            "l1_ball",
            "replace-one",
            "expected cosine",
            "d=",
            "laplace",
        ),
    ),
    "random": (
        {"synthesis__grouping": "random", "synthesis__privatize": GAUSSIAN},
        (*COMMON, "Grouping: random", "roster", "l2_ball", "gaussian"),
    ),
    "anchors": (
        {"synthesis": ANCHORS},
        (
            *COMMON,
            "Grouping: anchors",
            "add or remove one patient",
            "linked component",
            "sigma",
            "whitened code",
        ),
    ),
    "moved averages": (
        {"synthesis": {**small_plan()["synthesis"], "spread_directions": 2}},
        (*COMMON, "principal directions", "generator"),
    ),
}


def check_explained(text: str, words: tuple[str, ...]) -> None:
    """Each word stands in the text, and the pattern of an explained term finds it."""
    body, _, glossary = text.partition("## Terms")
    explained = [term for term in TERMS if f"**{term.name}**: {term.meaning}" in glossary]
    for word in words:
        assert word in body, word
        assert any(re.search(term.pattern, word) for term in explained), word


@pytest.mark.parametrize("name", PLANS)
def test_a_statement_explains_the_terms_that_it_uses(name: str) -> None:
    changes, words = PLANS[name]
    statement = privacy_statement(small_study(**changes), {}, ACCOUNT)
    check_explained(statement_markdown(statement), words)


def test_a_statement_on_pairs_explains_its_terms_and_no_others() -> None:
    study = Study.model_validate(vessels_plan())
    text = statement_markdown(privacy_statement(study, {}, ACCOUNT))
    check_explained(text, (*COMMON, "post-processing", "k-anonymity", "starting checkpoint"))
    assert "Replace-one" not in text
    assert "Grouping" not in text


def test_page_and_datasheet_explain_what_they_measure(tmp_path: Path) -> None:
    folder, _ = small_release(tmp_path)
    findings = json.loads((folder / layout.FINDINGS).read_text())["findings"]
    words = " ".join(finding["name"] for finding in findings)
    names = [term.name for term in terms_in(words)]
    assert {"Linkage", "Precision, recall", "Membership inference"} <= set(names)
    for file in ("README.md", "index.html"):
        text = (folder / file).read_text()
        assert not [name for name in names if name not in text]


def test_each_term_is_explained_once() -> None:
    assert len({term.name for term in TERMS}) == len(TERMS)
    assert all(re.search(term.pattern, " ".join(PATTERN_SAMPLES)) for term in TERMS)


PATTERN_SAMPLES = (
    "Unit of protection site plan update differential privacy epsilon delta zero-out replace-one",
    "add or remove one patient linked component PLD canary Lower bound gate k-anonymity group",
    "Grouping: similar. Grouping: similar-swap. Grouping: cells. Grouping: random. ",
    "Grouping: anchors. privatized not evaluated latent whitened code gaussian l1_ball",
    "expected cosine principal directions roster generator post-processing starting checkpoint",
    "reference rehearsal real against real k-Same-Pixel Fréchet precision",
    "nearest reference ratio downstream",
    "ledger basis of the latents",
    "kappa membership inference AUC linkage re-identification DSC Hausdorff",
)
