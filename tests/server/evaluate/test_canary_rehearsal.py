"""A rehearsal's audit is read from its sites' files, and refused when it refutes the plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.errors import PolicyError, RefusedError
from common.privacy.audit_file import AuditFile, ModelCounts, counts_of
from common.privacy.canaries import draw
from common.privacy.canary_audit import epsilon_at_least, guess_count
from common.privacy.events import round_event
from common.privacy.noise import SeededNoiseSource
from common.study.plan import Study
from common.study.rehearsed import plan_digest
from server.evaluate.canary_rehearsal import ModelAudit, load_audits
from server.evaluate.findings import NOT_EVALUATED
from server.evaluate.report import canary_findings
from server.release.items import Account
from server.release.statement import audit_lines, audit_statement
from tests.heard import honest_tally
from tests.studies import small_study

SITES = ("hospital-a", "hospital-b", "hospital-c")


def counts(study: Study, model: str, seed: int) -> ModelCounts:
    """What an honest site measures over all steps of a model of 500 trained numbers."""
    plan = study.models.trained()[model]
    canaries = study.privacy.canaries
    event = round_event(study, model, 500 + canaries)
    total = None
    secret = draw(SeededNoiseSource(seed), canaries, 500)
    for number in range(plan.rounds):
        noise = SeededNoiseSource(100 * seed + number)
        one = honest_tally(secret, event, plan.clip, plan.patients_per_step, noise)
        total = one if total is None else total + one
    assert total is not None
    return counts_of(total, study, model)


def write_files(folder: Path, study: Study) -> list[Path]:
    """The files of three honest sites."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for seed, site in enumerate(SITES):
        models = {name: counts(study, name, seed) for name in study.models.trained()}
        file = AuditFile(format="kohort-audit/1", plan=plan_digest(study), site=site, models=models)
        paths.append(folder / f"{site}.audit.json")
        paths[-1].write_text(file.model_dump_json())
    return paths


def change(path: Path, model: str, **values: Any) -> None:
    """Rewrite one model's counts in a file."""
    data = json.loads(path.read_text())
    data["models"][model] |= values
    path.write_text(json.dumps(data))


def test_the_sites_of_a_rehearsal_guess_together(tmp_path: Path) -> None:
    study = small_study()
    paths = write_files(tmp_path, study)
    found = load_audits(study, paths)
    assert list(found) == ["gan", "glow"]
    gan = found["gan"]
    alone = [ModelCounts.model_validate(json.loads(p.read_text())["models"]["gan"]) for p in paths]
    assert (gan.sites, gan.steps, gan.canaries, gan.guesses) == (3, 4, 450, 3 * guess_count(150))
    assert gan.correct == sum(one.correct for one in alone)
    assert gan.lower_bound == epsilon_at_least(450, gan.guesses, gan.correct, 1e-5)
    assert gan.lower_bound < gan.upper_bound < 8 and gan.ceiling > 4
    assert gan.noise_ratio == pytest.approx(1, abs=0.2)


def test_without_a_rehearsal_the_audit_reads_not_evaluated() -> None:
    assert load_audits(small_study(), []) == {}
    assert audit_lines({"updates": {"audit": audit_statement(Account({}, {}))}}) == [
        "Canary audit: not evaluated."
    ]
    (finding,) = canary_findings({})
    assert finding.status == NOT_EVALUATED and "no rehearsal" in finding.evidence


def test_an_audit_that_refutes_the_plan_releases_nothing(tmp_path: Path) -> None:
    study = small_study()
    paths = write_files(tmp_path, study)
    for path in paths:
        change(path, "gan", correct=guess_count(150))
    with pytest.raises(PolicyError, match="the accountant says at most") as refused:
        load_audits(study, paths)
    assert refused.value.code == "E-CANARIES"


def test_another_plans_audit_is_refused_but_not_that_of_the_same_plan_at_other_sites(
    tmp_path: Path,
) -> None:
    study = small_study()
    paths = write_files(tmp_path, study)
    with pytest.raises(RefusedError, match="another plan"):
        load_audits(small_study(privacy__epsilon=7.0), paths)
    other = small_study(name="other", sites=[{"name": "x"}, {"name": "y"}])
    assert list(load_audits(other, paths)) == ["gan", "glow"]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "half of the steps": ({"steps": 2}, "all 4 steps"),
    "guesses chosen afterwards": ({"guesses": 20}, "all 4 steps"),
    "more right than guessed": ({"correct": 99}, "all 4 steps"),
    "a ratio that is no number": ({"noise_ratio": None}, "not a canary audit"),
    "a key more": ({"patients": 3}, "not a canary audit"),
    "an endless count": ({"canaries": 10**400}, "not a canary audit"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_damaged_audit_is_refused(case: str, tmp_path: Path) -> None:
    values, words = REFUSED[case]
    study = small_study()
    paths = write_files(tmp_path, study)
    change(paths[1], "gan", **values)
    with pytest.raises(RefusedError, match=words):
        load_audits(study, paths)


def test_a_site_counts_once(tmp_path: Path) -> None:
    paths = write_files(tmp_path, small_study())
    with pytest.raises(RefusedError, match="got one twice"):
        load_audits(small_study(), [*paths, paths[0]])


AUDIT = ModelAudit(
    sites=3,
    canaries=450,
    steps=2000,
    guesses=222,
    correct=180,
    lower_bound=1.74,
    ceiling=4.3,
    upper_bound=8.03,
    delta=1e-5,
    confidence=0.95,
    noise_ratio=1.001,
    release_ratio=1.004,
)


def test_both_bounds_stand_side_by_side_with_what_they_prove() -> None:
    account = Account({}, {}, {"gan": AUDIT})
    statement = audit_statement(account)
    assert isinstance(statement, dict) and statement["models"]["gan"]["lower_bound"] == 1.74
    (line,) = audit_lines({"updates": {"audit": statement}})
    assert line.startswith("gan: 1.74 ≤ ε ≤ 8.03 (delta 1e-05)")
    assert "180 of 222" in line and "1.001 times" in line and "1.004 times" in line
    assert "A low bound proves little" in statement["limits"] and "rule 26" in statement["sites"]
    (finding,) = canary_findings(account.canaries)
    assert (finding.value, finding.status) == (1.74, "shown") and "at most 8.03" in finding.unit
