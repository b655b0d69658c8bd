"""A study goes on in a next version: from its own weights, and under one account."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.cli.approve import check_earlier
from client.daemon.site import Site
from client.state.folder import State
from client.state.ledger_file import of_kind
from client.state.plans import Plans
from client.state.records import FILTER_ORDER
from common.errors import PolicyError, RefusedError
from common.privacy.accounting import epsilon_rdp
from common.privacy.events import plan_events
from common.privacy.plan_report import refuse_over_budget
from common.storage.files import file_digest
from common.study.bundle import write_bundle
from common.study.plan import Study
from common.study.versions import check_next
from common.wire import signing, tensors
from server.operator.state import ServerState
from server.rounds import orders
from server.rounds.loop import train_round
from server.rounds.versions import check_draft, draft_next, next_name
from tests.federation import Federation
from tests.sites import WEIGHTS, make_hospital, scripted
from tests.studies import small_study
from tests.versions import Abandoned

DIMENSIONS = {"gan": 100, "glow": 100}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Abandoned]:
    found = Abandoned.create(tmp_path)
    with closing(found.record):
        yield found


def refused(call: Any, *given: Any) -> tuple[str, str]:
    """Code and text of a refusal."""
    with pytest.raises(PolicyError) as caught:
        call(*given)
    return caught.value.code, str(caught.value)


def test_a_draft_starts_from_the_newest_weights_and_counts_their_rounds(world: Abandoned) -> None:
    new = world.draft()
    assert [site.name for site in new.sites][-1] == "hospital-d" and new.name == "small-2"
    assert new.continues is not None and new.continues.plan == world.federation.study.hash()
    assert new.continues.rounds == {"gan": 1, "glow": 0}
    assert (new.models.trained()["gan"].rounds, new.models.trained()["glow"].rounds) == (2, 1)
    start = new.models.trained()["gan"].start
    assert start is not None
    assert start.sha256 == file_digest(world.record.weights_file("gan", 1))
    assert (world.folder / "next" / start.file).is_file()
    check_draft(world.record, new)


def test_the_earlier_rounds_count_in_the_plans_epsilon_and_once_at_a_site(
    world: Abandoned,
) -> None:
    new, old = world.draft(), world.federation.study
    # one account: all rounds of both versions
    assert plan_events(new, DIMENSIONS) == plan_events(old, DIMENSIONS)
    # a site's ledger holds the earlier rounds already
    own = plan_events(new, DIMENSIONS, earlier=False)
    assert [event.steps for event in own] == [4, 2]
    assert [event.steps for event in plan_events(new, DIMENSIONS)] == [6, 2]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "fewer rounds than were closed": (
        {"continues__rounds": {"gan": 0, "glow": 1}},
        "continues.rounds: ",
    ),
    "more rounds than were closed": ({"continues__rounds__gan": 2}, "continues.rounds: "),
    "less noise than before": ({"models__gan__noise_multiplier": 3.0}, "gan.noise_multiplier"),
    "another promise": ({"privacy__epsilon": 9.0}, "privacy.epsilon"),
    "another study": ({"continues__plan": "0" * 64}, "continues.plan"),
    "smaller groups": ({"synthesis__k": 4}, "synthesis.k"),
}


@pytest.mark.parametrize("case", WRONG, ids=lambda case: case.replace(" ", "-"))
def test_a_draft_that_says_otherwise_than_the_record_is_not_signed(
    world: Abandoned, case: str
) -> None:
    changes, words = WRONG[case]
    code, text = refused(check_draft, world.record, world.draft(**changes))
    assert code == "E-PLAN-NEXT" and words in text


def test_other_starting_weights_are_not_signed(world: Abandoned) -> None:
    data = world.draft().model_dump(mode="json")
    path = world.folder / "next" / "gan-after-1.safetensors"
    arrays = tensors.read(path, max_bytes=1 << 20)
    tensors.write(path, {name: array + 1 for name, array in arrays.items()})
    data["models"]["gan"]["start"]["sha256"] = file_digest(path)
    new = Study.model_validate(data)
    assert refused(check_draft, world.record, new)[0] == "E-PLAN-NEXT"


def test_what_may_change_is_who_takes_part_and_how_long(world: Abandoned) -> None:
    new = world.draft(quorum=3, round_deadline_s=60.0, models__glow__rounds=2, title="Longer")
    check_draft(world.record, new)


def test_a_study_that_may_go_on_has_no_next_version(tmp_path: Path) -> None:
    federation = Federation.create(tmp_path)
    with closing(federation.open().record) as record:
        code, text = refused(draft_next, record, tmp_path / "next", [])
        assert code == "E-STUDY-NEXT" and "may still go on" in text
        assert not (tmp_path / "next").exists()


def test_a_model_without_a_round_left_ends_the_study(tmp_path: Path) -> None:
    federation = Federation.create(tmp_path, models__gan__rounds=1)
    run = federation.open()
    train_round(run, federation.grid(), "gan", 0)
    orders.abandon(run.record)
    with closing(run.record):
        code, text = refused(draft_next, run.record, tmp_path / "next", [])
        assert code == "E-STUDY-NEXT" and "every round of gan" in text


def test_names_of_versions_count_up() -> None:
    assert [next_name(name) for name in ("small", "small-2", "chest-2024", "x" * 32)] == [
        "small-2",
        "small-3",
        "chest-2025",
        "x" * 30 + "-2",
    ]


# --- at a site --------------------------------------------------------------------------------


def test_a_sites_ledger_adds_both_versions_and_charges_the_earlier_rounds_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital = make_hospital(tmp_path / "site", models__gan__rounds=3, privacy__epsilon=3.0)
    scripted(monkeypatch, hospital.study)
    hospital.site().answer(hospital.ask("train"))
    # the operator's side of the same study, with one round closed
    federation = federation_of(hospital.bundle.parent, hospital.operator, tmp_path)
    run = federation.open()
    train_round(run, federation.grid(), "gan", 0)
    orders.abandon(run.record)
    out = tmp_path / "next"
    draft_next(run.record, out, ["hospital-d"])
    new = write_bundle(out / "study.yaml", hospital.operator, tmp_path / "bundle-2")
    weights = run.record.weights("gan", 1)
    run.record.close()
    plans = Plans(State(hospital.root), hospital.operator.public_key())
    plans.approve(tmp_path / "bundle-2")
    check_next(hospital.study, new)
    # other weights are no start of the next version, and spend nothing
    later = replace(hospital, study=new)
    scripted(monkeypatch, new)
    # what the earlier rounds spent stands in the ledger, so it counts once under the cap
    spent = plan_events(hospital.study, DIMENSIONS)
    once = (replace(spent[0], steps=2), *plan_events(new, DIMENSIONS, earlier=False))
    twice = (replace(spent[0], steps=2), *plan_events(new, DIMENSIONS))
    epsilon = [epsilon_rdp(events, 1e-5, order=FILTER_ORDER) for events in (once, twice)]
    assert epsilon[0] < epsilon[1]
    site: Site = later.site(max_epsilon=sum(epsilon) / 2)
    with pytest.raises(RefusedError) as caught:
        site.answer(later.ask("train", weights=WEIGHTS["gan"]))
    assert caught.value.code == "E-GATE-15"
    # it is trained from the weights that both have seen
    site.answer(later.ask("train", weights=weights))
    reserved = [row.data["plan"] for row in of_kind(site.ledger().rows(), "reserve")]
    assert reserved == [hospital.study.hash(), new.hash()]


def federation_of(plans: Path, operator: signing.Ed25519PrivateKey, folder: Path) -> Federation:
    """The operator's state of a study that a hospital has approved."""
    shutil.copytree(plans, folder / "plan")
    state = ServerState(folder / "server")
    signing.save_private(state.operator_key, operator)
    return Federation.of(folder, folder / "plan" / "study.yaml", operator, state)


def test_a_site_that_knows_the_earlier_version_compares_the_constants() -> None:
    old = small_study()
    data = old.model_dump(mode="json")
    data["continues"] = {"plan": old.hash(), "rounds": {"gan": 1, "glow": 0}}
    data["privacy"]["delta"] = 2e-5
    code, text = refused(check_next, old, Study.model_validate(data))
    assert code == "E-PLAN-NEXT" and "privacy.delta" in text


def test_a_person_is_not_asked_about_a_next_version_under_other_constants(tmp_path: Path) -> None:
    hospital = make_hospital(tmp_path)
    plans = Plans(State(hospital.root), hospital.operator.public_key())
    continues = {"plan": hospital.study.hash(), "rounds": {"gan": 1, "glow": 0}}
    data = hospital.study.model_dump(mode="json") | {"continues": continues}
    check_earlier(Study.model_validate(data), plans)
    data["models"]["gan"]["noise_multiplier"] = 3.0
    assert refused(check_earlier, Study.model_validate(data), plans)[0] == "E-PLAN-NEXT"
    # of a version that nobody here approved, the site knows nothing
    data["continues"] = continues | {"plan": "0" * 64}
    check_earlier(Study.model_validate(data), plans)


def test_a_plan_whose_earlier_rounds_break_its_promise_spends_nothing() -> None:
    study = small_study(continues={"plan": "0" * 64, "rounds": {"gan": 5_000, "glow": 0}})
    refuse_over_budget(study, plan_events(study, DIMENSIONS, earlier=False))
    code, _ = refused(refuse_over_budget, study, plan_events(study, DIMENSIONS))
    assert code == "E-PLAN-BUDGET"


@pytest.mark.parametrize(
    "rounds", [{"gan": 1}, {"gan": 0, "glow": 0}, {"gan": 1, "glow": 0, "wgan": 1}]
)
def test_an_account_of_other_models_is_no_account(rounds: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"continues\.rounds"):
        small_study(continues={"plan": "0" * 64, "rounds": rounds})
