"""Every code that crosses the line has words on the other side."""

from __future__ import annotations

from common.codes import advise, all_advice
from common.privacy.boundary_rules import RULES


def test_a_code_is_answered_with_its_meaning_and_its_fix() -> None:
    found = advise("E-POLICY-CAP")
    assert "policy.max_epsilon" in found.means and "kohort-site ledger" in found.fix
    assert found.line.startswith("E-POLICY-CAP: ")
    assert all(one.means and one.fix and one.who for one in all_advice().values())


def test_a_rule_of_the_gate_is_answered_with_its_sentence() -> None:
    for rule in RULES.values():
        assert advise(rule.code).means == rule.sentence


def test_a_code_of_flower_is_answered() -> None:
    assert "Flower answered" in advise("E-FLOWER-7").means


def test_an_unknown_code_is_answered_and_a_text_that_is_none_is_not_repeated() -> None:
    assert advise("E-FROM-THE-FUTURE").code == "E-FROM-THE-FUTURE"
    assert advise("Mrs. Miller, 1950-01-01").code == "E-UNKNOWN"
