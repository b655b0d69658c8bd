"""`kohort-server`: the operator's commands. Each is a few lines; the work is done by the modules they name.

In: command lines. Out: text, files, exit codes (common/errors.py). Guaranteed: only this file prints; `run` refuses a second
server on one state folder and continues after `kill -9` where the journal ends. Not covered: hospitals (client/cli/main.py).
"""

from __future__ import annotations

import json
import logging
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from common.errors import ConfigurationError, EnvironmentFault, PolicyError
from common.privacy.planning import ModelReport
from common.storage.files import atomic_write, read_capped
from common.storage.lock import FolderLock
from common.study.plan import Study, copy_bundle, fingerprint_words, load_study, open_bundle
from common.wire import signing
from common.wire.app_bundle import write_app
from kohort.commands import run_typer
from server.flower.coordinator import Coordinator
from server.flower.superlink import SuperLink
from server.operator import plan as plans
from server.operator import sites as registry_of_sites
from server.operator.certificates import create_authority, issue_server_certificate, load_authority
from server.operator.config import ServerConfig, ServerState, load_config, new_config
from server.operator.sites import Registry
from server.rounds.record import Progress, StudyRecord, file_digest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from server.evaluate.extractors import Extractor
    from server.evaluate.rehearsal_report import Cast, Rehearsal
    from server.release.build import Pairs

FLWR_VERSION = "1.41.0"
PHANTOM_PATCHES = 16
PHANTOM_ORIGIN = (
    "procedural vessel phantoms (server/public_data/phantoms.py, style public)",
    "CC0-1.0",
    "none: nobody is in them",
)
app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
)
State = Annotated[Path, typer.Option("--state", help="the server's state folder")]
Bundle = Annotated[Path, typer.Argument(help="signed plan bundle that `kohort-server sign` wrote")]
StudyFile = Annotated[Path, typer.Argument(help="study.yaml")]
write = sys.stdout.write


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run_typer("kohort-server", lambda: app(standalone_mode=False)))


# --- set-up -------------------------------------------------------------------------------------------------------------


@app.command(
    help="Make the state folder: server.yaml, certificate authority, server certificate, operator key."
)
def init(
    state: State,
    name: Annotated[str, typer.Option(help="name of the consortium: letters, digits, hyphens")],
    url: Annotated[str, typer.Option(help="what sites connect to: https://HOST:PORT")],
) -> None:
    """Every file of a new operator; nothing existing is replaced."""
    place = ServerState(state)
    if place.config.exists() or place.operator_key.exists():
        raise ConfigurationError(
            f"{state}: a server is set up here already", hint="give another folder with --state"
        )
    try:
        config = ServerConfig.model_validate({"name": name, "url": url})
    except ValueError as error:
        first = (
            str(error).splitlines()[2].strip() if len(str(error).splitlines()) > 2 else str(error)
        )
        raise ConfigurationError(f"--name {name} --url {url}: {first}") from error
    place.root.mkdir(parents=True, exist_ok=True, mode=0o700)
    authority = create_authority(place.authority, name)
    issue_server_certificate(authority, place.tls, [config.host])
    key = signing.new_key()
    signing.save_private(place.operator_key, key)
    atomic_write(
        place.operator_key.with_suffix(".pub"),
        (signing.public_text(key.public_key(), name) + "\n").encode(),
    )
    new_config(name, url, place.config)
    write(f"server {name} set up in {state}\n")
    write(f"operator key: {signing.fingerprint(key.public_key())}\n")
    write(f"next: kohort-server sign STUDY.yaml --state {state} --out BUNDLE\n")


@app.command(
    help="Print what a plan costs in privacy and whether it can learn, before anything is spent."
)
def plan(study: StudyFile, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """The accountants' report."""
    loaded = load_study(study)
    report = plans.report(loaded, study.parent)
    if not as_json:
        write(report.to_text() + "\n")
        write(f"hash {loaded.hash()} ({fingerprint_words(loaded.hash())})\n")
        return
    facts = {
        "plan": loaded.name,
        "hash": loaded.hash(),
        "verdict": report.verdict,
        "sentence": report.sentence,
        "accepted": report.accepted,
        "epsilon": {"pld": report.spent.pld, "prv": report.spent.prv, "rdp": report.spent.rdp},
        "delta": report.spent.delta,
        "sampler_delta": report.spent.sampler_delta,
        "share_of_cap": report.spent.pld / report.site_cap,
        "parameters": {model.name: model.event.dimension for model in report.models},
        "models": {model.name: _constants(model) for model in report.models},
        "fixes": list(report.fixes),
        "needs": [asdict(needs) for needs in report.needs],
    }
    write(json.dumps(facts) + "\n")


def _constants(model: ModelReport) -> dict[str, float | int | None]:
    """What `plan --json` says of one model."""
    return {
        "sampling_rate": model.event.q,
        "patients_per_step": model.plan.patients_per_step,
        "items_per_patient": model.plan.items_per_patient,
        "steps": model.event.steps,
        "noise_multiplier": model.event.noise_multiplier,
        "calibrated_noise_multiplier": model.calibrated,
        "parameters": model.event.dimension,
        "noise_ratio": model.ratio,
        "federated_noise_ratio": model.federated_ratio,
        "round_bytes": model.round_bytes,
    }


@app.command(help="Write the SHA-256 of the starting checkpoints into a plan, in place.")
def pin(study: StudyFile) -> None:
    """What a maintainer runs after training a checkpoint."""
    for file, digest in sorted(plans.pin(study).items()):
        write(f"{digest}  {file}\n")
    load_study(study)


@app.command(
    help="Sign a plan. Refused when it spends more than its own epsilon, or cannot learn without saying so."
)
def sign(
    study: StudyFile,
    state: State,
    out: Annotated[Path, typer.Option(help="folder for the signed bundle")],
) -> None:
    """The signed bundle that sites approve."""
    signed, report = plans.sign(study, _operator_key(ServerState(state)), out)
    write(report.to_text() + "\n")
    write(f"signed {signed.name}: {out}\n")
    write(f"hash {signed.hash()}\nread aloud: {fingerprint_words(signed.hash())}\n")


@app.command(help="Enrol a site from its request file and write its join file.")
def enrol(
    request: Annotated[Path, typer.Argument(help="the site's NAME.request.json")],
    state: State,
    out: Annotated[
        Path | None, typer.Option(help="join file to write; default NAME.join.json beside it")
    ] = None,
) -> None:
    """Also while the server runs."""
    place = ServerState(state)
    config = load_config(place.config)
    line = signing.public_text(_operator_key(place).public_key(), config.name)
    join = registry_of_sites.enrol(request, place, config, line)
    name = str(json.loads(join)["site"])
    target = out or request.parent / f"{name}.join.json"
    atomic_write(target, join)
    with _registry(place) as registry:
        write(f"enrolled {name}, signing key {registry.get(name).fingerprint}\n")
    write(f"read this fingerprint to the hospital over another channel, then send it {target}\n")


@app.command(
    help="List the sites; `sites revoke NAME` ends one for good, `sites release NAME` ends its quarantine."
)
def sites(
    state: State,
    action: Annotated[str | None, typer.Argument(help="revoke or release")] = None,
    name: Annotated[str | None, typer.Argument(help="the site")] = None,
) -> None:
    """States and codes."""
    with _registry(ServerState(state)) as registry:
        if action is not None:
            if action not in ("revoke", "release") or name is None:
                raise ConfigurationError(
                    f"sites {action}: expected `revoke NAME` or `release NAME`"
                )
            (registry.revoke if action == "revoke" else registry.release)(name)
        for site in registry.sites().values():
            write(f"{site.name:<24} {site.state:<12} {site.code:<24} {site.fingerprint}\n")


# --- a study ------------------------------------------------------------------------------------------------------------


@app.command(
    help="Serve a study until it is complete. Start it again after any interruption: it resumes."
)
def run(
    bundle: Bundle,
    state: State,
    port: Annotated[
        int | None, typer.Option(help="listen here instead of the port in server.yaml")
    ] = None,
) -> None:
    """SuperLink, registration, rounds, images."""
    place = ServerState(state)
    config, key = load_config(place.config), _operator_key(place)
    _check_installation()
    signal.signal(signal.SIGTERM, _stop_on_term)
    with FolderLock(place.lock, "a kohort server"):
        study = open_bundle(bundle, key.public_key())
        root = place.study(study.hash())
        if not (root / "bundle" / "study.sig").is_file():
            copy_bundle(bundle, key.public_key(), root / "bundle")
        open_bundle(root / "bundle", key.public_key())
        with _record(place, study) as record:
            if record.complete():
                write(f"study {study.name} is complete; next: kohort-server release\n")
                return
            _serve(place, config, study, record, port or config.listen.port)
        write(f"study {study.name} is complete; next: kohort-server release\n")


def _serve(
    place: ServerState, config: ServerConfig, study: Study, record: StudyRecord, port: int
) -> None:
    """Start Flower and look after the study."""
    root = place.study(study.hash()).resolve()
    shutil.rmtree(root / "app", ignore_errors=True)
    write_app(root / "app", read_capped(root / "bundle" / "study.yaml", 1 << 20))
    authority = load_authority(place.authority)
    files = issue_server_certificate(authority, place.tls, [config.host])
    environment = {
        "KOHORT_SERVER_STATE": str(place.root.resolve()),
        "KOHORT_STUDY_HASH": study.hash(),
    }
    link = SuperLink(place.superlink, port, files, host=config.listen.host, environment=environment)
    with _registry(place) as registry, _progress(study) as (show, say):
        say(f"study {study.name}: starting on {config.listen.host}:{port}")
        with link:
            Coordinator(place, link, registry, record, root / "app", config.limits, show, say).run()


@app.command(help="How far the studies are and how the sites stand.")
def status(state: State, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """From the journals alone, also while the server runs."""
    place = ServerState(state)
    key = _operator_key(place)
    found: list[dict[str, Any]] = []
    for root in sorted((place.root / "studies").glob("*/bundle")):
        study = open_bundle(root, key.public_key())
        with _record(place, study) as record:
            found.append({"study": study.name, "hash": study.hash(), **vars(record.progress())})
    with _registry(place) as registry:
        rows = [
            {"site": s.name, "state": s.state, "code": s.code} for s in registry.sites().values()
        ]
    if as_json:
        write(json.dumps({"studies": found, "sites": rows}) + "\n")
        return
    for one in found:
        now = "complete" if one["complete"] else f"{one['phase']} {one['waiting']}".strip()
        write(f"{one['study']:<24} {one['done']} of {one['total']} rounds: {now}\n")
    for row in rows:
        write(f"{row['site']:<24} {row['state']} {row['code']}\n")


@app.command(help="Build, sign and publish the release of a complete study.")
def release(
    bundle: Bundle,
    state: State,
    out: Annotated[Path, typer.Option(help="folder in which releases lie")],
    reference: Annotated[
        Path | None,
        typer.Option(
            help="public real images, or image + mask pairs (folder or .npz), to compare with"
        ),
    ] = None,
    reference_name: Annotated[str, typer.Option(help="what the report calls them")] = "",
    features: Annotated[
        str,
        typer.Option(
            help="ARCHITECTURE:WEIGHTS.safetensors:SHA256 of the network for FID and KID; empty: textures"
        ),
    ] = "",
    members: Annotated[
        Path | None,
        typer.Option(
            help="a rehearsal: the public people who played the patients (photographs and labels.csv, or .npz)"
        ),
    ] = None,
    heldout: Annotated[
        Path | None,
        typer.Option(help="a rehearsal: public people who took no part, in the same form"),
    ] = None,
    rehearsal: Annotated[
        Path | None,
        typer.Option(
            help="evaluation.json of a rehearsal of this plan, for attacks and downstream utility"
        ),
    ] = None,
) -> None:
    """Everything is verified again first."""
    from server.evaluate.canary_rehearsal import rehearsed
    from server.release.build import Account, ReleaseInputs, SiteBatch, build_release
    from server.release.pairs import releases_pairs

    place = ServerState(state)
    key = _operator_key(place)
    study = open_bundle(bundle, key.public_key())
    played_by = _rehearsal(members, heldout, rehearsal, study)
    with _record(place, study) as record, _registry(place) as registry:
        if not record.complete():
            raise PolicyError(
                f"study {study.name} is not complete", hint=f"kohort-server status --state {state}"
            )
        quarantined = {
            site.name for site in registry.sites().values() if site.state == "quarantined"
        }
        batches = [
            SiteBatch(b.site, b.key, b.parts) for b in record.batches() if b.site not in quarantined
        ]
        weights = record.final_weights() if study.release.models else {}
        pairs = _pairs(record, quarantined, reference) if releases_pairs(study) else None
    spent = plans.spent(study, bundle / "checkpoints")
    audits = rehearsed(study, place.study(study.hash()) / "canaries.json")
    account = Account(
        {"PLD": spent.pld, "RDP": spent.rdp}, {"dp-accounting": version("dp-accounting")}, audits
    )
    inputs = ReleaseInputs(
        study, bundle, batches, account, weights,
        None if pairs else _reference(reference, study), (reference_name or reference.name) if reference else "", pairs,
        _extractor(features), played_by,
    )  # fmt: skip
    with _bar("release") as bar:
        task = bar.add_task("pictures", total=None)
        folder = build_release(
            inputs, out, key, lambda done, total: bar.update(task, completed=done, total=total)
        )
    write(f"released {folder}\n")


def _pairs(record: StudyRecord, quarantined: set[str], reference: Path | None) -> Pairs:
    """The pairs of a study without synthesis, its sites' statements, and the public pairs to compare with."""
    from server.public_data.pairs import read_pairs
    from server.release.build import Pairs
    from server.release.pairs import drawn

    study, plan = record.study, record.study.models.wgan
    assert plan is not None
    statements = record.evidence("wgan")
    if len(set(statements) - quarantined) < study.quorum:
        raise PolicyError(
            f"{len(set(statements) - quarantined)} sites of the last round are in good standing, the quorum is {study.quorum}",
            hint="look at `kohort-server sites`; their updates are in the weights, so a release names them all",
            code="E-QUORUM",
        )
    weights, file = record.weights("wgan", plan.rounds), record.final_weights()["wgan"]
    pairs = drawn(record.root / "pairs", weights, file_digest(file), plan, study.intake.size_px)
    public = read_pairs(reference, study.intake.size_px) if reference else None
    return Pairs(pairs, statements, public)


def _rehearsal(
    members: Path | None, heldout: Path | None, file: Path | None, study: Study
) -> Cast | Rehearsal | None:
    """Who played the patients, or what a rehearsal found; nothing where nothing was given."""
    if (members is None) != (heldout is None) or (members and file):
        raise ConfigurationError(
            "give --members with --heldout (this run is a rehearsal), or --rehearsal FILE (another run was), or none of them"
        )
    if study.synthesis is None and (members or file):
        raise ConfigurationError(
            "--members, --rehearsal: for studies that release averages; this one releases pairs"
        )
    from server.evaluate.rehearsal_report import read_cast, read_rehearsal

    if members and heldout:
        return read_cast(members, heldout, study)
    return read_rehearsal(file, study) if file else None


def _extractor(features: str) -> Extractor | None:
    """The network that `--features` names, or None for texture features."""
    if not features:
        return None
    from server.evaluate.extractors import load_network

    architecture, _, rest = features.partition(":")
    weights, _, sha256 = rest.rpartition(":")
    if not weights:
        raise ConfigurationError(
            f"--features {features}: expected ARCHITECTURE:WEIGHTS.safetensors:SHA256"
        )
    return load_network(architecture, Path(weights), sha256)


def _reference(path: Path | None, study: Study) -> NDArray[Any] | None:
    """The public reference images in the plan's size."""
    if path is None:
        return None
    from server.public_data.images import read_source

    return read_source(path, study.intake.size_px, study.intake.channels).images


@app.command(
    help="Train a starting checkpoint on public images (never on patients' images: nothing here is private)."
)
def pretrain(
    images: Annotated[
        Path | None,
        typer.Argument(
            help="folder or .npz of public images (wgan: image + mask pairs, or --phantoms)"
        ),
    ] = None,
    *,
    out: Annotated[Path, typer.Option(help="folder for the checkpoint")],
    minutes: Annotated[float, typer.Option(min=0.01)] = 40.0,
    model: Annotated[str, typer.Option(help="gan (with its encoder), glow or wgan")] = "gan",
    size_px: Annotated[int, typer.Option("--size")] = 64,
    channels: Annotated[int, typer.Option()] = 3,
    source: Annotated[str, typer.Option(help="where the images come from, for the card")] = "",
    licence: Annotated[str, typer.Option(help="the images' licence, for the card")] = "",
    attribution: Annotated[
        str, typer.Option(help="whom the licence wants named, for the card")
    ] = "",
    exclude: Annotated[
        Path | None, typer.Option(help="names that must not be in it, one per line")
    ] = None,
    resume: Annotated[bool, typer.Option(help="continue the run in --out")] = False,
    study: Annotated[
        Path | None, typer.Option(help="glow, wgan: a study.yaml whose sizes and widths to train")
    ] = None,
    phantoms: Annotated[
        int, typer.Option(min=0, help="wgan: so many invented patients instead of public pairs")
    ] = 0,
    device: Annotated[str, typer.Option(help="gan: cpu or cuda")] = "cpu",
) -> None:
    """Imports torch only here."""
    from server.public_data.images import read_names, read_source

    if model not in ("gan", "glow", "wgan"):
        raise ConfigurationError(f"--model {model}: expected gan, glow or wgan")
    if model == "wgan":
        _pretrain_pairs(
            images, out, minutes, size_px, study, phantoms, (source, licence, attribution), resume
        )
        return
    if images is None:
        raise ConfigurationError("pretrain: expected a folder or .npz of public images")
    with _bar("pretrain") as bar:
        task = bar.add_task(model, total=100)
        if model == "gan":
            from server.pretrain.gan import PretrainPlan, Provenance, run

            public, origin = (
                PretrainPlan(size_px=size_px, channels=channels),
                Provenance(source, licence, attribution),
            )
            show = lambda _, share: bar.update(task, completed=100 * share)  # noqa: E731
            run(
                images, out, public, origin, minutes=minutes, resume=resume, exclude=exclude, device=device, progress=show
            )  # fmt: skip
        else:
            from server.pretrain import flow as pretrain_glow
            from server.pretrain.gan import Provenance

            origin, found = (
                Provenance(source, licence, attribution),
                load_study(study).models.glow if study else None,
            )
            shape = (
                {name: getattr(found, name) for name in ("levels", "steps_per_level", "width")}
                if found
                else {}
            )
            options = pretrain_glow.Pretraining(minutes=minutes, **shape)
            public_images = read_source(images, size_px, channels, read_names(exclude))
            advance = lambda _, share, bits: bar.update(task, completed=100 * share)  # noqa: E731
            pretrain_glow.run(public_images, out, options, origin, resume=resume, progress=advance)
    write(f"checkpoint in {out}; pin it with kohort-server pin STUDY.yaml\n")


def _pretrain_pairs(
    images: Path | None,
    out: Path,
    minutes: float,
    size_px: int,
    study: Path | None,
    phantoms: int,
    origin: tuple[str, str, str],
    resume: bool,
) -> None:
    """A starting checkpoint of the image + mask WGAN."""
    from server.pretrain.gan import Provenance
    from server.pretrain.wgan_checkpoint import public_plan, run
    from server.public_data.pairs import phantom_pairs, read_pairs

    wanted = load_study(study) if study else None
    plan = (wanted.models.wgan if wanted else None) or public_plan()
    size_px = wanted.intake.size_px if wanted else size_px
    if (images is None) == (phantoms == 0):
        raise ConfigurationError("pretrain --model wgan: expected public pairs, or --phantoms N")
    if images is None:
        provenance = Provenance(*PHANTOM_ORIGIN)
        pairs = phantom_pairs(phantoms, PHANTOM_PATCHES, size_px, seed=0)
    else:
        provenance, pairs = Provenance(*origin), read_pairs(images, size_px)
    with _bar("pretrain") as bar:
        task = bar.add_task("wgan", total=100)
        show = lambda _, share: bar.update(task, completed=100 * share)  # noqa: E731
        steps = run(pairs, out, plan, provenance, minutes=minutes, resume=resume, progress=show)
    write(f"{steps} steps; look at {out / 'training' / 'samples.png'}\n")
    write(f"checkpoint in {out}; pin it with kohort-server pin STUDY.yaml\n")


# --- shared -------------------------------------------------------------------------------------------------------------


def _operator_key(place: ServerState) -> Ed25519PrivateKey:
    """The operator's key of a set-up state folder."""
    if not place.operator_key.is_file():
        raise ConfigurationError(
            f"{place.root}: no server is set up here", hint="kohort-server init"
        )
    return signing.load_private(place.operator_key)


@contextmanager
def _registry(place: ServerState) -> Iterator[Registry]:
    """The open registry of a set-up state folder."""
    _operator_key(place)
    registry = Registry(place.sites)
    try:
        yield registry
    finally:
        registry.close()


@contextmanager
def _record(place: ServerState, study: Study) -> Iterator[StudyRecord]:
    """The open record of a study."""
    record = StudyRecord(place.study(study.hash()), study)
    try:
        yield record
    finally:
        record.close()


def _check_installation() -> None:
    """Flower in the pinned version; nobody else owns the names that the ServerApp will import."""
    if version("flwr") != FLWR_VERSION:
        raise EnvironmentFault(
            f"flwr {version('flwr')} is installed, expected {FLWR_VERSION}", hint="make setup"
        )
    here = Path(__file__).resolve().parents[2]
    for name in ("client", "common", "server"):
        spec = find_spec(name)
        if spec is None or here not in Path(str(spec.origin)).resolve().parents:
            raise EnvironmentFault(
                f"package {name}: not ours{f', but {spec.origin}' if spec else ''}",
                hint="install kohort alone, in its own environment",
                code="E-SHADOWED",
            )


def _stop_on_term(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _bar(title: str) -> Bar:
    """A progress bar on standard error."""
    columns = (
        TextColumn(title),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Bar(*columns, TextColumn("{task.description}"), console=Console(stderr=True))


@contextmanager
def _progress(study: Study) -> Iterator[tuple[Callable[[Progress], None], Callable[[str], None]]]:
    """A bar over the rounds where there is a terminal, else one line a change."""
    console = Console(stderr=True)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    with _bar(study.name) as bar:
        task, last = bar.add_task("starting", total=None), [""]

        def show(progress: Progress) -> None:
            now = f"{progress.phase}: {progress.waiting}".rstrip(": ")
            bar.update(task, completed=progress.done, total=progress.total, description=now)
            if not console.is_terminal and now != last[0]:
                last[0] = now
                sys.stderr.write(f"{progress.done}/{progress.total} {now}\n")

        yield show, lambda text: bar.console.print(text, markup=False, highlight=False)


if __name__ == "__main__":
    main()
