"""`ledger` and `status`: what a person looks at."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from client.cli.options import AsJson, StateFolder
from client.cli.serve import fleet_settings
from client.cli.state_folder import STATUS_FILE, open_plans
from client.cli.terminal import write_line
from client.daemon.device import noted_devices
from client.egress.review import open_reviews
from client.fleet.expiry import ending_certificates
from client.fleet.health import NOT_RUNNING, UNRESPONSIVE
from client.state.artefacts import epsilon_of
from client.state.config import Policy, SiteConfig, load_site
from client.state.folder import State
from client.state.group_store import GroupStore
from client.state.ledger import LedgerReport
from client.state.membership import read_membership
from client.state.records import Records
from client.state.upgrade import check_state
from client.state.work import at_work
from common.errors import ConfigurationError, KohortError, damage_named
from common.storage.files import read_capped
from common.storage.lock import is_held
from common.study.plan import Study

STATUS_CAP_BYTES = 1 << 20
SILENT_S = 60.0

LedgerAction = Annotated[str, typer.Argument(metavar="[verify]", help="`verify`, or nothing")]


def ledger(state: StateFolder, what: LedgerAction = "", as_json: AsJson = False) -> None:
    """Show what was spent: every mechanism, epsilon by each accountant, the cap.

    `verify` checks the chain of all entries.
    """
    config = load_site(state)
    place = State(state)
    if what not in ("", "verify"):
        raise ConfigurationError(
            f"ledger {what}: unknown; expected `verify` or nothing",
            hint="kohort-site ledger --help",
        )
    # Opening the ledger would make an empty one.
    if not place.ledger.is_file():
        raise ConfigurationError(
            "nothing was spent yet: there is no ledger", hint="it begins with the first round"
        )
    book = Records(place, config, open_plans(state)).ledger()
    if what == "verify":
        book.verify()
        if as_json:
            write_line(json.dumps({"verified": True, "head": book.head}))
        else:
            write_line(f"the chain is whole; head {book.head}")
        return
    report = book.report()
    spent = largest_of_averages(place, config.policy)
    if as_json:
        averages = {"epsilon": spent, "cap": config.policy.max_epsilon_average}
        write_line(json.dumps(_ledger_facts(report) | {"averages": averages}))
        return
    write_line(report.to_text())
    if spent:
        write_line(
            f"  epsilon per average, all draws of one group together: at most {spent:,.4g}, "
            f"cap {config.policy.max_epsilon_average:g}"
        )


def largest_of_averages(place: State, policy: Policy) -> float:
    """Return the largest epsilon of all noised draws of one group's average; 0 for none."""
    if not place.groups.is_file():
        return 0.0
    with GroupStore(place.groups) as store:
        spent = [epsilon_of(events, policy.max_delta) for events in store.events()]
    return max(spent, default=0.0)


def _ledger_facts(report: LedgerReport) -> dict[str, Any]:
    """Return the report as one JSON object."""
    spent = report.spent
    return {
        "head": report.head,
        "mechanisms": [mechanism.describe() for mechanism in report.mechanisms],
        "declared": [mechanism.describe() for mechanism in report.declared],
        "epsilon": {"pld": spent.pld, "rdp": spent.rdp, "prv": spent.prv},
        "epsilon_is_upper_bound": spent.is_upper_bound,
        "delta": spent.delta,
        "cap_epsilon": report.cap_epsilon,
        "remaining": report.remaining,
    }


def status(state: StateFolder, as_json: AsJson = False) -> None:
    """Show plans, rounds answered, images and the connection; the daemon need not run."""
    facts = site_status(state)
    if as_json:
        write_line(json.dumps(facts))
        return
    write_line(f"site {facts['site']}")
    for device in facts["devices"]:
        write_line(f"device {device}")
    for plan in facts["plans"]:
        write_line(f"plan {plan['name']} ({plan['hash'][:12]})")
        for model, (done, total) in plan["rounds"].items():
            write_line(f"  {model:<8} {done}/{total} rounds answered")
        write_line(f"  images   {plan['images']}")
        for line in plan["at_work"]:
            write_line(f"  {line}")
    for one in facts["certificates"]:
        write_line(f"{one['severity']}: {one['text']}")
    for one in (*facts["state"], *facts["connection"]):
        fix = f"; {one['fix']}" if one["fix"] else ""
        write_line(f"{one['severity']}: {one['code']}: {one['text']}{fix}")


def site_status(state: Path) -> dict[str, Any]:
    """Return the facts of `status`."""
    config = load_site(state)
    place = State(state)
    plans = open_plans(state)
    # What the journal says was answered, and what the reviews say of the images.
    answered = {entry.key for entry in place.journal.entries() if entry.state == "answered"}
    batches: dict[str, str] = {}
    for batch in open_reviews(place, config).batches():
        batches[batch.study] = batch.state
    rows = []
    for plan_hash, study in plans.valid().items():
        rounds = {}
        for model, trained in study.models.trained().items():
            rounds[model] = (_count(answered, f"{plan_hash}/train/{model}/"), trained.rounds)
        images = _image_state(study, answered, batches)
        row = {"name": study.name, "hash": plan_hash, "rounds": rounds, "images": images}
        rows.append(row | {"at_work": list(_work_lines(place, plan_hash, study))})
    return {
        "site": config.site,
        "devices": noted_devices(place) or [f"{config.compute.device}: not looked for yet"],
        "plans": rows,
        "certificates": list(_ending(place, config)),
        "state": list(_state_faults(place)),
        "connection": _connection(state),
    }


def _work_lines(place: State, plan_hash: str, study: Study) -> Iterator[str]:
    """Yield what the child of a running daemon is at."""
    if is_held(place.root / "lock"):
        for one in at_work(place, plan_hash, study):
            yield one.line(time.time(), counts=True)


def _ending(place: State, config: SiteConfig) -> Iterator[dict[str, Any]]:
    """Yield the certificates of this site that end soon; before it has joined it has none."""
    if place.membership.is_file():
        settings = fleet_settings(place, config, read_membership(place.membership))
        for one in ending_certificates(settings):
            facts = {"of": one.whose, "ends": one.ends.isoformat(), "severity": one.severity}
            yield facts | {"text": one.line, "fix": one.fix}


def _state_faults(place: State) -> Iterator[dict[str, Any]]:
    """Yield what is wrong with the state folder: older than what left, or damaged."""
    try:
        check_state(place)
    except KohortError as error:
        yield {
            "severity": "error",
            "code": error.code,
            "text": str(error),
            "fix": error.hint,
        }


def _image_state(study: Study, answered: set[str], batches: Mapping[str, str]) -> str:
    """Return how far the images of a plan are, in words."""
    if _count(answered, f"{study.hash()}/synthesize/"):
        return "sent"
    if study.hash() in batches:
        return batches[study.hash()]
    return "not made yet" if study.synthesis else "none planned"


def _count(keys: set[str], prefix: str) -> int:
    """Return how many keys begin with a prefix."""
    return sum(key.startswith(prefix) for key in keys)


def _connection(state: Path) -> list[dict[str, Any]]:
    """Return the health states that the daemon wrote last; what a dead one wrote is not true."""
    path = state / STATUS_FILE
    if not path.is_file():
        return []
    if not is_held(state / "fleet" / "lock"):
        return [asdict(NOT_RUNNING)]
    # the daemon touches the file every few seconds; a clock that jumped is right again then
    if abs(time.time() - path.stat().st_mtime) > SILENT_S:
        return [asdict(UNRESPONSIVE)]
    damage = ConfigurationError(
        f"{path}: not a status file of kohort",
        hint="delete it; `kohort-site run` writes it again",
    )
    text = read_capped(path, STATUS_CAP_BYTES)
    with damage_named(damage):
        states: list[dict[str, Any]] = json.loads(text)["states"]
        # every state has what a line of `status` shows
        for one in states:
            [one[name] for name in ("severity", "code", "text", "fix")]
    return states
