"""The privacy statement says by which rule the sites' updates became weights."""

from __future__ import annotations

from typing import Any

import pytest

from server.release.statement import privacy_statement, statement_markdown
from tests.releases import ACCOUNT
from tests.studies import small_study


@pytest.mark.parametrize(
    ("aggregation", "words"),
    [
        ({"rule": "mean"}, "step is the mean of the sites' updates"),
        (
            {"rule": "trimmed_mean", "trim": 0.34},
            "without the smallest and the largest 34% of them",
        ),
        ({"rule": "norm_weighted"}, "longer than the median counted less"),
    ],
)
def test_the_statement_names_the_rule(aggregation: dict[str, Any], words: str) -> None:
    statement = privacy_statement(small_study(aggregation=aggregation, quorum=3), {}, ACCOUNT)
    assert words in statement["weights"]["aggregation"]
    assert words in statement_markdown(statement)


def test_the_statement_counts_and_names_an_earlier_version() -> None:
    continues = {"plan": "ab" * 32, "rounds": {"gan": 3, "glow": 0}}
    study = small_study(continues=continues)
    statement = privacy_statement(study, {}, ACCOUNT)
    assert (
        "earlier version of the study (plan abababababab), after 3 closed rounds"
        in (statement["weights"]["claim"])
    )
    alone = privacy_statement(small_study(), {}, ACCOUNT)
    assert "earlier version" not in alone["weights"]["claim"]
    steps = [found["updates"]["models"]["gan"]["steps"] for found in (alone, statement)]
    assert steps == [4, 10]
