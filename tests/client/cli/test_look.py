"""`kohort-site review`, `ledger` and `status`, as typed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from client.daemon.site import Site
from client.daemon.standing import site_standing
from client.state.artefacts import Limit, Wanted
from client.state.group_store import Group, GroupStore, Stratum
from common.privacy.events import latent_event
from common.privacy.price import at_most
from tests.client.cli.typing_commands import Cli
from tests.sites import Hospital


def test_the_ledger_says_what_was_spent_by_both_accountants(
    worked: tuple[Hospital, Site], cli: Cli
) -> None:
    root = worked[0].root
    code, out, _ = cli("ledger", "--state", root)
    assert code == 0
    assert all(
        word in out
        for word in (
            "PLD",
            "RDP",
            "policy.max_epsilon",
            "subsampled gaussian",
            "laplace",
            "not composed",
        )
    )
    facts = json.loads(cli("ledger", "--state", root, "--json")[1])
    assert 0 < facts["epsilon"]["pld"] <= facts["epsilon"]["rdp"] + 0.01
    assert facts["cap_epsilon"] == 10.0
    assert facts["averages"] == {"epsilon": 0.0, "cap": 1000.0}
    assert "chain is whole" in cli("ledger", "--state", root, "verify")[1]
    assert cli("ledger", "--state", root, "burn")[0] == 2


def test_the_ledger_says_what_all_draws_of_one_average_spend(
    worked: tuple[Hospital, Site], cli: Cli
) -> None:
    hospital = worked[0]
    wanted = Wanted.of(hospital.study)
    images = [np.full((32, 32, 3), shade, np.uint8) for shade in (1, 2)]
    groups = [Group(tuple(f"{place}{i:063x}" for i in range(5)), Stratum(0), 5) for place in (0, 1)]
    drawn = [wanted.artefact(image, 0, True) for image in images]
    with GroupStore(hospital.root / "groups.sqlite") as store:
        store.release({groups[0]: drawn, groups[1]: drawn[:1]}, "similar", Limit(1e6, 1e-5))
    spent = 2 * latent_event(hospital.study).epsilon_per_image
    _, out, _ = cli("ledger", "--state", hospital.root)
    words = [line.split()[:4] for line in out.splitlines()]
    assert ["spent", "so", "far", at_most(spent)] in words
    assert ["cap", "1,000", "the", "most"] in words
    facts = json.loads(cli("ledger", "--state", hospital.root, "--json")[1])
    assert facts["averages"]["epsilon"] == pytest.approx(spent)


def test_a_person_decides_on_a_batch_by_typing(worked: tuple[Hospital, Site], cli: Cli) -> None:
    hospital, site = worked
    digest = site.reviews.find("").digest
    assert "waiting" in cli("review", "--state", hospital.root)[1]
    assert site_standing(hospital.root).plans[0].images == "waiting"
    assert cli("review", "--state", hospital.root, "--approve", "--reject")[0] == 2
    code, out, _ = cli(
        "review", "--state", hospital.root, "--approve", digest[:6], "--reviewer", "Dr. R"
    )
    assert code == 0
    assert "approved by Dr. R" in out
    assert (
        cli("review", "--state", hospital.root, "--reject", digest[:6], "--reviewer", "Dr. R")[0]
        == 3
    )
    hospital.site().answer(hospital.ask("synthesize"))
    (plan,) = site_standing(hospital.root).plans
    assert (plan.rounds, plan.images, plan.work) == ({"gan": (1, 2), "glow": (0, 1)}, "sent", ())


def test_status_and_check_say_that_a_state_is_older_than_what_left(
    worked: tuple[Hospital, Site], cli: Cli
) -> None:
    root = worked[0].root
    assert site_standing(root).faults == ()
    next((root / "outbox").glob("*.sealed")).unlink()
    code, out, _ = cli("status", "--state", root)
    assert code == 0
    (line,) = [line for line in out.splitlines() if "E-ROLLBACK" in line]
    assert "outbox" in line and "newest copy" in line and "--after-loss" in line
    code, out, err = cli("check", "--state", root, "--offline")
    assert code == 2
    assert "state: 1 to repair" in out
    assert "the outbox lacks a message" in err and "newest copy" in err
