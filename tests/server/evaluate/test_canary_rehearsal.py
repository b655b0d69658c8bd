"""The operator's canary audit is kept for rebuilds and refused when it refutes the plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.errors import PolicyError, RefusedError
from common.privacy.noise import NoiseSource
from server.evaluate.canary_rehearsal import ModelAudit, load_audits
from server.evaluate.findings import NOT_EVALUATED
from server.evaluate.report import canary_findings
from server.release.items import Account
from server.release.statement import audit_lines, audit_statement
from tests.studies import small_study


def test_every_trained_model_is_rehearsed_once_and_kept(tmp_path: Path) -> None:
    study = small_study()
    found = load_audits(study, tmp_path / "canaries.json")
    assert list(found) == ["gan", "glow"]
    assert (found["gan"].steps, found["glow"].steps, found["gan"].canaries) == (4, 2, 300)
    assert found["gan"].guesses == 150 and 0.8 < found["gan"].noise_ratio < 1.25
    assert found["gan"].lower_bound < found["gan"].upper_bound < 8
    assert load_audits(study, tmp_path / "canaries.json") == found


def test_a_plan_without_canaries_has_no_audit(tmp_path: Path) -> None:
    assert load_audits(small_study(privacy__canaries=0), tmp_path / "canaries.json") == {}
    assert not (tmp_path / "canaries.json").exists()
    assert audit_lines({"updates": {"audit": audit_statement(Account({}, {}))}}) == [
        "Canary audit: not evaluated."
    ]
    assert [f.status for f in canary_findings({})] == [NOT_EVALUATED]


def test_a_step_that_does_not_keep_its_promise_releases_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = NoiseSource.gaussian_lattice
    monkeypatch.setattr(
        NoiseSource, "gaussian_lattice", lambda self, n, sigma: honest(self, n, sigma / 2)
    )
    with pytest.raises(PolicyError) as refused:
        load_audits(small_study(), tmp_path / "canaries.json")
    assert refused.value.code == "E-CANARIES"
    assert not (tmp_path / "canaries.json").exists()


def test_another_plans_audit_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "canaries.json"
    load_audits(small_study(), path)
    with pytest.raises(RefusedError, match="another plan"):
        load_audits(small_study(privacy__epsilon=7.0), path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"patients": 3}))
    with pytest.raises(RefusedError, match="not a canary audit"):
        load_audits(small_study(), path)


AUDIT = ModelAudit(
    canaries=300,
    steps=2000,
    guesses=150,
    correct=136,
    lower_bound=1.74,
    ceiling=3.9,
    upper_bound=8.03,
    delta=1e-5,
    confidence=0.95,
    noise_ratio=1.001,
)


def test_both_bounds_stand_side_by_side_with_what_they_prove() -> None:
    account = Account({}, {}, {"gan": AUDIT})
    statement = audit_statement(account)
    assert isinstance(statement, dict) and statement["models"]["gan"]["lower_bound"] == 1.74
    (line,) = audit_lines({"updates": {"audit": statement}})
    assert (
        line.startswith("gan: 1.74 ≤ ε ≤ 8.03 (delta 1e-05)")
        and "136 of 150" in line
        and "1.001 times" in line
    )
    assert "A low bound proves little" in statement["limits"] and "rule 26" in statement["sites"]
    (finding,) = canary_findings(account.canaries)
    assert (finding.value, finding.status) == (1.74, "shown") and "at most 8.03" in finding.unit
