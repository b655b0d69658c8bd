"""`kohort-site`: what hospital IT types. Every command works on one state folder (`--state`).

In: a command line. Out: lines for a person, or one JSON line with `--json`; exit codes of common/errors.py. Guaranteed: only
`run` and `check` talk to the server; nothing here can raise what site.yaml allows. Counts are shown by `ingest` alone, on this
screen, and are never logged. Not covered: the decisions (client/daemon/site.py) and the wire (client/fleet/client.py).
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # before the first import of flwr
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

import httpx
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from client.daemon.site import Site
from client.egress.review import Batch, Reviews
from client.fleet.app import build_app
from client.fleet.client import FleetClient
from client.fleet.connection import FleetSettings, create_node_key, read_node_key, tls_context
from client.fleet.failures import classify
from client.fleet.health import CLIENT_CERTIFICATE_REFUSED, Health
from client.ingest.cohort import Cohort, IngestReport
from client.state import config as site_config
from client.state.config import check_plan, load_site
from client.state.folder import State, new_pseudonym_key
from client.state.jobs import Progress as Report
from client.state.membership import Membership, read_membership
from client.state.plans import Plans
from common.errors import ConfigurationError, EnvironmentFault, KohortError, PolicyError
from common.privacy.anchors import anchors_event
from common.privacy.mechanisms import latent_event
from common.privacy.planning import feasibility, refuse_hopeless
from common.storage.files import atomic_write, read_capped
from common.storage.lock import FolderLock
from common.study.bundle import open_bundle
from common.study.plan import Study
from common.study.shapes import parameter_counts
from common.study.synthesis import PrivatizePlan
from common.study.words import fingerprint_words
from common.wire import signing
from common.wire.messages import canonical
from kohort.console import run_typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
StateOption = Annotated[Path, typer.Option("--state", help="the site's state folder")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON line")]
DELIVERY_WAIT_S = 120.0
STATUS_FILE = "health.json"
DISTRIBUTION = "kohort-app"  # pyproject.toml
log = logging.getLogger("kohort")


def _line(text: str) -> None:
    sys.stdout.write(text + "\n")


# --- joining


@app.command(help="Make the state folder: site.yaml, keys, and the request for the operator.")
def init(
    state: StateOption,
    site: Annotated[str, typer.Option(help="this hospital's name in study plans: a-z, 0-9, -")],
    data: Annotated[Path, typer.Option(help="folder with the images; it is only read")],
    labels: Annotated[Path | None, typer.Option(help="labels CSV")] = None,
) -> None:
    """Write everything once; refuses a folder that is already a site."""
    if (state / site_config.FILE).exists():
        raise ConfigurationError(
            f"{state}: is a site already", hint="use another --state, or edit its site.yaml"
        )
    if not data.is_dir():
        raise ConfigurationError(
            f"{data}: no such folder", hint="--data names the folder with the images"
        )
    place = State(state)
    text = site_config.sample(site, str(data.resolve()), str(labels.resolve()) if labels else None)
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    new_pseudonym_key(place.pseudonym_key)
    create_node_key(place.node_key, place.node_key.with_suffix(".pub"), site)
    key = signing.new_key()
    signing.save_private(place.sign_key, key)
    request: dict[str, str] = {
        "format": "kohort-request/1",
        "site": site,
        "node_key": read_capped(place.node_key.with_suffix(".pub"), 4096).decode().strip(),
        "sign_key": signing.public_text(key.public_key(), site),
    }
    request["signature"] = signing.sign(key, signing.REQUEST, canonical(request)).decode()
    path = state / f"{site}.request.json"
    atomic_write(path, json.dumps(request, indent=1).encode() + b"\n")
    atomic_write(state / site_config.FILE, text.encode())  # last: a folder with it is whole
    _line(f"{state / site_config.FILE}: read it; it says what this hospital allows")
    _line(
        f"send {path} to the operator; the signing key's fingerprint is {signing.fingerprint(key.public_key())}"
    )


@app.command(help="Accept the operator's join file.")
def join(
    state: StateOption,
    file: Annotated[Path, typer.Argument(help="NAME.join.json from the operator")],
) -> None:
    """Check that the file is for this site and its node key, and keep it."""
    config, place = load_site(state), State(state)
    membership = read_membership(file)
    if membership.site != config.site:
        raise ConfigurationError(f"{file}: is for site {membership.site}, this is {config.site}")
    _check_certificate(membership, place)
    atomic_write(place.membership, read_capped(file, 1 << 20), mode=0o600)
    _write_certificates(membership, place)
    _line(f"joined {membership.server_url}")
    _line(
        f"operator's key: {signing.fingerprint(membership.operator)}; compare it with the operator by telephone"
    )


def _check_certificate(membership: Membership, place: State) -> None:
    """The certificate must be for this site's own node key."""
    from cryptography import x509

    try:
        certificate = x509.load_pem_x509_certificate(membership.client_certificate.encode())
    except ValueError as error:
        raise ConfigurationError("join file: client_certificate is not a certificate") from error
    if certificate.public_key() != read_node_key(place.node_key).public_key():
        raise ConfigurationError(
            "join file: the certificate is for another key",
            hint="send this site's own request file to the operator",
        )


def _write_certificates(membership: Membership, place: State) -> None:
    """The two PEM files that the transport reads."""
    atomic_write(place.root / "ca.crt", membership.ca.encode())
    atomic_write(place.root / "node.crt", membership.client_certificate.encode())


# --- the plan


@app.command(
    help="Show a signed plan against this site's policy and, if a person says yes, allow it to run."
)
def approve(
    state: StateOption,
    bundle: Annotated[Path, typer.Argument(help="the operator's plan bundle")],
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
) -> None:
    """Verify, show, ask, keep."""
    config, place = load_site(state), State(state)
    plans = Plans(place, read_membership(place.membership).operator)
    study = open_bundle(bundle, plans.operator)
    for text in plan_lines(study):
        _line(text)
    check_plan(study, config.policy, config.site)
    counts = parameter_counts(study, bundle / "checkpoints")
    refuse_hopeless(study, counts)
    _line(f"  verdict      {feasibility(study, counts, prv=False).sentence}")
    if not yes and not typer.confirm("Allow this plan to run here?"):
        raise PolicyError("not approved", hint="nothing was changed")
    plans.approve(bundle)
    _line(f"approved: {study.hash()[:12]}")


def plan_lines(study: Study) -> Iterator[str]:
    """Yield what a person needs to know of a plan."""
    privacy, synthesis = study.privacy, study.synthesis
    yield f"plan {study.name}: {study.title}"
    yield f"  fingerprint  {fingerprint_words(study.hash())}   (compare it with the operator)"
    yield f"  sites        {', '.join(site.name for site in study.sites)}; quorum {study.quorum}"
    yield f"  updates      epsilon {privacy.epsilon:g}, delta {privacy.delta:g} per patient, over all rounds"
    for name, model in study.models.trained().items():
        yield (
            f"  {name:<12} {model.rounds} rounds of {model.local_steps} steps, noise {model.noise_multiplier:g}, "
            f"clip {model.clip:g}, {model.patients_per_step} patients a step"
        )
    if synthesis is None:
        return
    yield (
        f"  images       each of at least {synthesis.k} distinct patients ({synthesis.grouping} groups), "
        f"at most {synthesis.max_images_per_site}"
    )
    noise = anchors_event(study)
    if noise is not None:
        yield f"  averages     {noise.statement()}; epsilon above covers them too"
    if synthesis.privatize is not None:
        sent = (
            f"{synthesis.privatize.share:.0%} of the groups"
            if synthesis.privatizes_averages
            else "single images, by hand"
        )
        yield f"  privatized   {sent}: {latent_event(study).statement(study.latent_dimension)}"


# --- work


@contextmanager
def _site(state: Path, *, to_terminal: bool) -> Iterator[Site]:
    """The daemon's state with a progress bar on standard error, if that is a terminal."""
    config, place = load_site(state), State(state)
    membership = read_membership(place.membership)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("at work", total=None, visible=to_terminal)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total or None)

        report: Report = show
        yield Site(place, config, membership, progress=report)


@app.command(help="Build the cohorts of all approved plans from the data folder.")
def ingest(state: StateOption) -> None:
    """Ingest where a cohort is missing; print counts on this screen."""
    with FolderLock(state / "lock", "kohort-site"), _site(state, to_terminal=True) as site:
        hashes = site.plans.hashes()
        if not hashes:
            raise PolicyError("no plan is approved here", hint="kohort-site approve BUNDLE")
        reports = {plan_hash: site.cohort(site.plans.open(plan_hash)) for plan_hash in hashes}
    for plan_hash, report in reports.items():
        for text in ingest_lines(report):
            _line(f"{plan_hash[:12]}: {text}")


def ingest_lines(report: IngestReport | None) -> Iterator[str]:
    """Yield what became of the files; for this screen only."""
    if report is None:
        yield "the cohort is there already"
        return
    yield f"{report.ingested} files of {report.patients} patients ({report.merged} under several ids)"
    for code, count in report.quarantined.items():
        yield f"not used: {count} files, {code}"


@app.command(help="Connect to the server and take part until stopped.")
def run(
    state: StateOption,
    until_done: Annotated[
        bool, typer.Option("--until-done", help="end when the operator closes the study")
    ] = False,
) -> None:
    """The daemon. Ends on SIGTERM and ctrl-C; what was journaled is kept."""
    logging.basicConfig(
        level=logging.INFO,
        format="%(message)s",
        datefmt="%X",
        handlers=[_log_handler()],
        force=True,
    )
    for noisy in ("httpx", "flwr", "grpc"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    with FolderLock(state / "lock", "kohort-site run"), _site(state, to_terminal=True) as site:
        hashes = site.plans.hashes()
        if not hashes:
            raise PolicyError("no plan is approved here", hint="kohort-site approve BUNDLE")
        site.ledger().verify()
        for plan_hash in hashes:
            site.cohort(site.plans.open(plan_hash))
        _serve(site, until_done)


def _log_handler() -> logging.Handler:
    """Rich lines on a terminal, plain ones in a file or journal."""
    console = Console(stderr=True)
    return (
        RichHandler(console=console, show_path=False)
        if console.is_terminal
        else logging.StreamHandler()
    )


def _serve(site: Site, until_done: bool) -> None:
    """Run the transport in a thread until a signal, or until the study is closed and the last reply delivered."""
    root = site.state.root
    health: Health = Health(
        lambda: atomic_write(root / STATUS_FILE, json.dumps(health.to_dict()).encode())
    )
    client = FleetClient(_settings(site), site.plans.pins, build_app(site.answer), health)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: site.stop.set())
    ended: list[BaseException] = []

    def transport() -> None:
        try:
            client.run(site.stop)
        except BaseException as error:
            ended.append(error)
        site.stop.set()

    thread = threading.Thread(target=transport, name="transport")
    thread.start()
    log.info("serving %s as %s", site.membership.server_url, site.config.site)
    while not site.stop.wait(0.2):
        if until_done and site.done.is_set():
            _wait_for_delivery(root / "fleet" / "inbox")
            log.info("the study is closed")
            site.stop.set()
    thread.join()
    if ended:
        raise ended[0]


def _settings(site: Site) -> FleetSettings:
    """Where the server is and what this site shows to it."""
    root, config = site.state.root, site.config
    return FleetSettings(
        url=site.membership.server_url,
        ca_file=root / "ca.crt",
        node_key_file=site.state.node_key,
        state_dir=root / "fleet",
        client_certificate=root / "node.crt",
        proxy=config.network.proxy,
        poll_s=config.network.poll_s,
        max_message_bytes=config.limits.max_message_mib << 20,
    )


def _wait_for_delivery(inbox: Path) -> None:
    """Wait until the transport has delivered every reply: a message's folder goes with it."""
    deadline = time.monotonic() + DELIVERY_WAIT_S
    while time.monotonic() < deadline and inbox.is_dir() and any(inbox.iterdir()):
        time.sleep(0.1)


# --- looking


@app.command(help="Show images that wait for a person, or decide on them.")
def review(
    state: StateOption,
    batch: Annotated[
        str, typer.Argument(help="first letters of the batch; empty: the one that waits")
    ] = "",
    approve_it: Annotated[
        bool, typer.Option("--approve", help="let exactly this batch leave")
    ] = False,
    reject: Annotated[bool, typer.Option("--reject", help="keep it here for good")] = False,
    reviewer: Annotated[str, typer.Option(help="who decides")] = "",
) -> None:
    """Without a decision: list. With one: write it down."""
    load_site(state)
    reviews = Reviews(state / "review")
    if approve_it and reject:
        raise ConfigurationError("--approve or --reject, not both")
    if approve_it or reject:
        name = reviewer or os.environ.get("USER", "")
        _line(_batch_line(reviews.decide(batch, approve=approve_it, reviewer=name)))
        return
    for found in reviews.batches():
        _line(_batch_line(found))
        _line(f"  look at {found.sheet}")
    if not reviews.batches():
        _line("no images have been made yet")


def _batch_line(batch: Batch) -> str:
    """One batch in one line."""
    by = f" by {batch.reviewer}" if batch.reviewer else ""
    return f"{batch.digest[:16]}  plan {batch.study[:12]}  {batch.state}{by}"


@app.command(
    help="Measure a release of image + mask pairs on this hospital's own cohort; the result stays here."
)
def utility(
    state: StateOption,
    release: Annotated[Path, typer.Argument(help="the downloaded release folder")],
    full: Annotated[
        bool, typer.Option("--full", help="the published network and grid: hours without a GPU")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Verify the release, train on its pairs, test on the cohort; nothing is sent."""
    if threads := load_site(state).limits.threads:
        os.environ["OMP_NUM_THREADS"] = str(
            threads
        )  # read by the import of torch, which comes next
    from client.child.utility import measure_release, recipe

    place = State(state)
    plans = Plans(place, read_membership(place.membership).operator)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("epochs", total=None)
        found = measure_release(
            release, place, plans, recipe=recipe(full=full),
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    for line in [json.dumps(asdict(found))] if as_json else found.lines():
        _line(line)


@app.command(
    help="Privatize single images: on site, or with --export to hand over, where plan, policy, ledger and review agree."
)
def privatize(
    state: StateOption,
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="an image, or a folder: DICOM, PNG, JPEG")
    ],
    target: Annotated[
        Path, typer.Argument(metavar="OUT", help="a new folder outside the state folder")
    ],
    plan: Annotated[
        str, typer.Option(help="first letters of the plan's hash; empty: the only one with a flow")
    ] = "",
    mechanism: Annotated[
        str, typer.Option(help="laplace, gaussian or privunit; empty: the plan's own")
    ] = "",
    epsilon: Annotated[
        float | None, typer.Option(help="per image, never per coordinate (gaussian, privunit)")
    ] = None,
    delta: Annotated[float | None, typer.Option(help="gaussian")] = None,
    clip: Annotated[str | None, typer.Option(help="laplace: box or l1_ball")] = None,
    radius: Annotated[
        float | None, typer.Option(help="laplace: bound of a coordinate, or of their mean size")
    ] = None,
    scale: Annotated[float | None, typer.Option(help="laplace: noise of a coordinate")] = None,
    levels: Annotated[str, typer.Option(help="top or all")] = "top",
    components: Annotated[int | None, typer.Option(help="coordinates of the public basis")] = None,
    basis: Annotated[Path | None, typer.Option(help="public basis (safetensors)")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="flow weights of a release; else the plan's checkpoint")
    ] = None,
    dicom: Annotated[
        bool, typer.Option("--dicom", help="write DICOM with SyntheticData = YES; else PNG")
    ] = False,
    export: Annotated[
        bool,
        typer.Option("--export", help="charge the ledger, ask for review, write what may leave"),
    ] = False,
) -> None:
    """Decode, privatize, write; nothing is sent."""
    given = {
        "epsilon": epsilon,
        "delta": delta,
        "clip": clip,
        "radius": radius,
        "scale": scale,
        "components": components,
    }
    section = _section(mechanism, {**given, "levels": levels}, basis)
    if threads := load_site(state).limits.threads:
        os.environ["OMP_NUM_THREADS"] = str(
            threads
        )  # read by the import of torch, which comes next
    from client.single import single

    wish = single.Wish(source, target, section, basis, weights, dicom, export)
    with (
        FolderLock(state / "lock", "kohort-site privatize"),
        _site(state, to_terminal=True) as site,
    ):
        outcome = single.run(site, _plan_with_flow(site, plan), wish, site.progress)
    for text in outcome.lines():
        _line(text)


def _section(mechanism: str, given: dict[str, Any], basis: Path | None) -> PrivatizePlan | None:
    """The options as a plan's `privatize` section, checked like one; None without --mechanism."""
    stray = [name for name, value in given.items() if value is not None and name != "levels"]
    if not mechanism:
        if stray or basis:
            raise ConfigurationError(f"--{stray[0] if stray else 'basis'}: needs --mechanism")
        return None
    named = {name: value for name, value in given.items() if value is not None}
    if basis is not None:
        named["basis"] = {
            "file": "basis.safetensors",
            "sha256": "0" * 64,
        }  # its own file is read, nothing is pinned on site
    try:
        return PrivatizePlan.model_validate(
            {"mechanism": mechanism, "share": 1.0, "egress": "single", **named}
        )
    except ValidationError as error:
        problems = [
            f"--{'.'.join(map(str, e['loc'])) or 'mechanism'}: {e['msg'].removeprefix('Value error, ')}"
            for e in error.errors()
        ]
        raise ConfigurationError(
            "\n".join(problems), problems=problems, hint="kohort-site privatize --help"
        ) from error


def _plan_with_flow(site: Site, prefix: str) -> Study:
    """The one approved plan that has a flow and whose hash starts with `prefix`."""
    found = [
        h
        for h in site.plans.hashes()
        if h.startswith(prefix) and site.plans.open(h).models.glow is not None
    ]
    if len(found) != 1:
        raise ConfigurationError(
            f"{len(found)} approved plans with a flow match {prefix or '(any)'!r}, expected one",
            hint="give the first letters of one hash: --plan; `kohort-site status` lists them",
        )
    return site.plans.open(found[0])


@app.command(
    help="Show what was spent: every mechanism, epsilon by each accountant, the cap. `verify` checks the chain."
)
def ledger(
    state: StateOption,
    what: Annotated[str, typer.Argument(help="`verify`, or nothing")] = "",
    as_json: AsJson = False,
) -> None:
    """Recompute everything from the rows."""
    config, place = load_site(state), State(state)
    if what not in ("", "verify"):
        raise ConfigurationError(f"ledger {what}: unknown; expected `verify` or nothing")
    if not place.ledger.is_file():
        raise ConfigurationError(
            "nothing was spent yet: there is no ledger", hint="it begins with the first round"
        )
    book = Site(place, config, read_membership(place.membership)).ledger()
    if what == "verify":
        book.verify()
        head = book.head
        _line(
            json.dumps({"verified": True, "head": head})
            if as_json
            else f"the chain is whole; head {head}"
        )
        return
    report = book.report()
    if not as_json:
        _line(report.to_text())
        return
    spent = report.spent
    facts = {
        "head": report.head,
        "mechanisms": [mechanism.describe() for mechanism in report.mechanisms],
        "declared": [mechanism.describe() for mechanism in report.declared],
        "epsilon": {"pld": spent.pld, "rdp": spent.rdp, "prv": spent.prv},
        "delta": spent.delta,
        "cap_epsilon": report.cap_epsilon,
        "remaining": report.remaining,
    }
    _line(json.dumps(facts))


@app.command(help="Show plans, rounds answered, images and the connection.")
def status(state: StateOption, as_json: AsJson = False) -> None:
    """Read the state folder; the daemon need not run."""
    facts = site_status(state)
    if as_json:
        _line(json.dumps(facts))
        return
    _line(f"site {facts['site']}")
    for plan in facts["plans"]:
        _line(f"plan {plan['name']} ({plan['hash'][:12]})")
        for model, (done, total) in plan["rounds"].items():
            _line(f"  {model:<8} {done}/{total} rounds answered")
        _line(f"  images   {plan['images']}")
    for one in facts["connection"]:
        _line(f"{one['severity']}: {one['code']}: {one['text']}; {one['fix']}")


def site_status(state: Path) -> dict[str, Any]:
    """Return the facts of `status`."""
    config, place = load_site(state), State(state)
    plans = Plans(place, read_membership(place.membership).operator)
    answered = {e.key for e in place.journal.entries() if e.state == "answered"}
    waiting = {b.study: b.state for b in Reviews(state / "review").batches()}
    rows = []
    for study in map(plans.open, plans.hashes()):
        keys = {m: f"{study.hash()}/train/{m}/" for m in study.models.trained()}
        rounds = {
            m: (sum(key.startswith(keys[m]) for key in answered), plan.rounds)
            for m, plan in study.models.trained().items()
        }
        sent = any(key.startswith(f"{study.hash()}/synthesize/") for key in answered)
        images = (
            "sent"
            if sent
            else waiting.get(study.hash(), "not made yet" if study.synthesis else "none planned")
        )
        rows.append({"name": study.name, "hash": study.hash(), "rounds": rounds, "images": images})
    path = state / STATUS_FILE
    connection = json.loads(read_capped(path, 1 << 20))["states"] if path.is_file() else []
    return {"site": config.site, "plans": rows, "connection": connection}


@app.command(help="Look for everything that would stop a run, before it starts.")
def check(
    state: StateOption,
    offline: Annotated[bool, typer.Option("--offline", help="do not call the server")] = False,
) -> None:
    """Name every problem at once; ends with 2 if there is one."""
    problems: list[str] = []
    looks: list[tuple[str, Callable[[Path], Iterator[str]]]] = [
        ("configuration", _check_files),
        ("program", _check_program),
        ("machine", _check_machine),
        ("plans", _check_plans),
    ]
    for name, look in looks if offline else [*looks, ("server", _check_server)]:
        found = list(_problems_of(look, state))
        _line(f"{name}: {'ok' if not found else f'{len(found)} to repair'}")
        problems += found
    if problems:
        raise ConfigurationError(
            f"{len(problems)} problems", problems=problems, hint="repair them and check again"
        )


def _problems_of(look: Callable[[Path], Iterator[str]], state: Path) -> Iterator[str]:
    """A check's findings; an error of ours is a finding too."""
    try:
        yield from look(state)
    except KohortError as error:
        for line in getattr(error, "problems", ()) or (str(error),):
            yield f"{line} ({error.hint})" if error.hint else line


def _check_files(state: Path) -> Iterator[str]:
    """site.yaml, keys, membership and data are there."""
    config, place = load_site(state), State(state)
    place.signing_key()
    place.pseudonym_bytes()
    read_node_key(place.node_key)
    for key in (place.sign_key, place.pseudonym_key, place.node_key):
        if key.stat().st_mode & 0o077:
            yield f"{key}: readable by others (chmod 600 {key})"
    if not os.access(config.data.folder, os.R_OK | os.X_OK):
        yield f"{config.data.folder}: not a folder that can be read"
    if config.data.labels_csv and not Path(config.data.labels_csv).is_file():
        yield f"{config.data.labels_csv}: no such file"
    _check_certificate(read_membership(place.membership), place)


def _check_program(state: Path) -> Iterator[str]:
    """The three general package names are ours alone."""
    owners = packages_distributions()
    for name in ("client", "common", "server"):
        others = sorted(set(owners.get(name, [DISTRIBUTION])) - {DISTRIBUTION})
        if others:
            yield f"the package name {name} also belongs to {', '.join(others)} (give kohort an environment of its own)"


def _check_machine(state: Path) -> Iterator[str]:
    """Disk and processes."""
    free = shutil.disk_usage(state).free
    if free < 2 << 30:
        yield f"{state}: {free >> 20} MiB free, at least 2048 needed"
    try:
        FolderLock(state / "lock", "kohort-site run").release()
    except EnvironmentFault as error:
        yield str(error)


def _check_plans(state: Path) -> Iterator[str]:
    """Approved plans are intact and allowed, their cohorts large enough."""
    config, place = load_site(state), State(state)
    plans = Plans(place, read_membership(place.membership).operator)
    if not plans.hashes():
        yield "no plan is approved (kohort-site approve BUNDLE)"
    for study in map(plans.open, plans.hashes()):
        check_plan(study, config.policy, config.site)
        folder = place.cohort(study.intake)
        if not folder.is_dir():
            yield f"plan {study.name}: no cohort yet (kohort-site ingest)"
        elif study.synthesis and Cohort.open(folder).patient_count < study.synthesis.k:
            yield f"plan {study.name}: fewer patients than k={study.synthesis.k}"


def _check_server(state: Path) -> Iterator[str]:
    """The server answers on TLS with this site's certificate; whatever it answers is enough."""
    place = State(state)
    settings = _settings(Site(place, load_site(state), read_membership(place.membership)))
    try:
        with httpx.Client(
            verify=tls_context(settings), proxy=settings.proxy, trust_env=False, timeout=10
        ) as http:
            refused = http.get(settings.url).status_code == 400
    except httpx.HTTPError as error:
        trouble = classify(error)
        yield f"{settings.url}: {trouble.state.text} ({trouble.state.fix})"
        return
    if refused:
        yield f"{settings.url}: {CLIENT_CERTIFICATE_REFUSED.text} ({CLIENT_CERTIFICATE_REFUSED.fix})"


def main() -> None:
    """Entry point of `kohort-site`."""
    sys.exit(run_typer("kohort-site", lambda: app(standalone_mode=False)))


if __name__ == "__main__":
    main()
