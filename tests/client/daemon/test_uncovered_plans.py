"""A plan that no claim covers is refused, though an older version signed and approved it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.daemon.site import Site
from common.errors import ConfigurationError
from common.study.bundle import open_bundle
from common.study.plan import Study
from common.wire import signing
from tests.sites import Hospital, make_hospital, scripted

COVERED = {"share": 1.0, "mechanism": "gaussian", "epsilon": 2.0, "delta": 1e-6}
WORDS = "privatize.share: expected 1 with grouping random, got 0.5"


def uncovered(study: Study) -> Study:
    """The plan with half of its random groups privatized, as no validation would give it."""
    assert study.synthesis is not None and study.privatize is not None
    section = study.privatize.model_copy(update={"share": 0.5})
    synthesis = study.synthesis.model_copy(update={"privatize": section})
    return study.model_copy(update={"synthesis": synthesis})


def write_signed(study: Study, folder: Path, key: Ed25519PrivateKey) -> None:
    """Study.yaml and the operator's signature over its hash."""
    folder.mkdir(parents=True, exist_ok=True)
    data = json.loads(study.model_dump_json())
    (folder / "study.yaml").write_text(yaml.safe_dump(data))
    signature = signing.sign(key, signing.PLAN, study.hash().encode())
    (folder / "study.sig").write_bytes(signature)


def approve_uncovered(hospital: Hospital, site: Site) -> Study:
    """What an older version left of such a plan in the state folder."""
    forged = uncovered(hospital.study)
    write_signed(forged, site.plans.folder(forged.hash()), hospital.operator)
    site.state.journal.append(f"plan/{forged.hash()}", "approved", {"name": forged.name})
    return forged


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return make_hospital(tmp_path, synthesis__grouping="random", synthesis__privatize=COVERED)


def test_a_bundle_of_such_a_plan_does_not_open_though_its_signature_is_right(
    hospital: Hospital, tmp_path: Path
) -> None:
    write_signed(uncovered(hospital.study), tmp_path / "bundle", hospital.operator)
    with pytest.raises(ConfigurationError) as refused:
        open_bundle(tmp_path / "bundle", hospital.operator.public_key())
    assert WORDS in str(refused.value)


@pytest.mark.parametrize("kind", ["train", "synthesize"])
def test_the_daemon_refuses_such_a_plan_though_its_staff_once_approved_it(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    site = hospital.site()
    forged = approve_uncovered(hospital, site)
    children = scripted(monkeypatch, hospital.study)
    with pytest.raises(ConfigurationError) as refused:
        site.answer(hospital.ask(kind, study=forged.hash()))
    assert WORDS in str(refused.value)
    assert children.runs == 0
    assert not site.state.ledger.is_file()


def test_the_other_plan_of_the_site_goes_on(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = hospital.site()
    approve_uncovered(hospital, site)
    children = scripted(monkeypatch, hospital.study)
    site.answer(hospital.ask("train"))
    assert children.runs == 1


def test_such_a_plan_does_not_keep_the_daemon_from_its_other_plans(
    hospital: Hospital, caplog: pytest.LogCaptureFixture
) -> None:
    site = hospital.site()
    forged = approve_uncovered(hospital, site)
    assert set(site.plans.hashes()) == {hospital.study.hash(), forged.hash()}
    assert list(site.plans.valid()) == [hospital.study.hash()]
    assert f"plan {forged.hash()[:12]} is not valid: E-CONFIG" in caplog.text
    # a plan whose files are gone still stops everything
    (site.plans.folder(hospital.study.hash()) / "study.sig").unlink()
    with pytest.raises(ConfigurationError, match="expected a plan bundle"):
        site.plans.valid()
