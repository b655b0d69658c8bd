"""`release`: builds, signs and publishes what a complete study may share."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.errors import ConfigurationError, PolicyError
from common.storage.files import file_digest
from common.study.bundle import open_bundle
from common.study.plan import Study
from server.cli.options import StateFolder
from server.cli.output import check_folder
from server.cli.sign_off import (
    announce,
    check_propose,
    note_release,
    publish_proposed,
    signers_in,
)
from server.cli.state_folder import load_operator_key, open_record, open_registry
from server.cli.terminal import progress_bar, write
from server.operator import plan as plans
from server.operator.caps import models_bytes, most_images, release_bytes
from server.operator.config import citation_in, limits_in
from server.operator.hand_over import operator_keys
from server.operator.quota import check_quota, folder_bytes, note_releases
from server.operator.releasable import releases_pairs
from server.operator.sites import Registry
from server.operator.state import ServerState
from server.rounds.record import StudyRecord

if TYPE_CHECKING:  # both import torch, which takes seconds
    from numpy.typing import NDArray

    from server.evaluate.extractors import Extractor
    from server.evaluate.people import PublicPeople
    from server.evaluate.rehearsal_report import Rehearsal
    from server.release.items import Account, Pairs, ReleaseInputs, SiteBatch

Out = Annotated[Path, typer.Option(help="folder in which the releases lie")]
ReferenceImages = Annotated[
    Path | None,
    typer.Option(help="public images, or image and mask pairs, to compare with: folder or .npz"),
]
ReferenceName = Annotated[str, typer.Option(help="what the report calls the reference")]
Features = Annotated[
    str,
    typer.Option(
        help="network for FID and KID, as ARCHITECTURE:WEIGHTS.safetensors:SHA256; "
        "default: the pretrained network that comes with kohort"
    ),
]
Members = Annotated[
    Path | None,
    typer.Option(
        help="rehearsal on public data: the people whose images the sites held "
        "(photographs and labels.csv, or .npz)"
    ),
]
HeldOut = Annotated[
    Path | None,
    typer.Option(help="rehearsal on public data: people who took no part, in the same form"),
]
RehearsalFile = Annotated[
    Path | None,
    typer.Option(help="reports/findings.json of an earlier rehearsal of this plan on public data"),
]


AuditFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--audit",
        help="what `kohort-site audit --out` wrote at a site of a rehearsal of this plan; "
        "once for each site",
    ),
]
PlanBundle = Annotated[
    Path | None, typer.Argument(help="the folder that `kohort-server sign` wrote")
]
Propose = Annotated[
    bool, typer.Option("--propose", help="build it for its signers, below OUT/proposed")
]
Publish = Annotated[Path | None, typer.Option(help="publish this proposal, which was signed off")]


def release(
    state: StateFolder,
    out: Out,
    bundle: PlanBundle = None,
    reference: ReferenceImages = None,
    reference_name: ReferenceName = "",
    features: Features = "",
    members: Members = None,
    heldout: HeldOut = None,
    rehearsal: RehearsalFile = None,
    audit: AuditFiles = None,
    propose: Propose = False,
    publish: Publish = None,
) -> None:
    """Build, sign and publish the release of a complete study.

    Everything is verified again first. Where server.yaml names signers, `--propose` builds it for
    them, and `--publish` publishes it once enough of them have signed it off.
    """
    from server.release.items import ReleaseInputs

    place = ServerState(state)
    if publish is not None:
        publish_proposed(place, publish, out)
        return
    if bundle is None:
        raise ConfigurationError(
            "release: expected the folder of the signed plan",
            hint="or --publish FOLDER, for a proposal that was signed off",
        )
    key = load_operator_key(place)
    signers = signers_in(place)
    check_propose(signers, propose)
    study = open_bundle(bundle, operator_keys(place))
    check_folder("--out", out)
    found = read_people(members, heldout, rehearsal, study)
    account = make_account(study, bundle, audit or [])
    # What the rounds left: images or pairs, and the final weights.
    with open_record(place, study) as record, open_registry(place) as registry:
        check_complete(record, state)
        quarantined = sites_in_quarantine(registry)
        revoked = revoked_sites(registry)
        batches = batches_without(record, quarantined)
        weights = released_weights(record)
        limit = limits_in(place.config).releases_gib
        check_quota(out, "releases_gib", limit, bytes_of_release(record, weights))
        pairs = collect_pairs(record, quarantined, reference)
    # What the release is compared with; pairs carry their own reference.
    public = None
    if pairs is None:
        public = read_reference(reference, study)
    inputs = ReleaseInputs(
        study=study,
        bundle=bundle,
        batches=batches,
        account=account,
        weights=weights,
        reference=public,
        reference_name=name_reference(reference, reference_name),
        pairs=pairs,
        extractor=read_extractor(features),
        rehearsal=found,
        quarantined=quarantined,
        revoked=revoked,
        signers=signers,
        proposed=propose,
        author=citation_in(place.config),
    )
    note_releases(place.root, out)
    folder = build(inputs, out, key)
    note_release(place, "release-proposed" if propose else "release-published", folder)
    if propose:
        announce(folder, signers)
    else:
        write(f"released {folder}\n")


def build(inputs: ReleaseInputs, out: Path, key: Ed25519PrivateKey) -> Path:
    """Build the release under a progress bar and return its folder."""
    from server.release.build import build_release

    with progress_bar("release") as bar:
        task = bar.add_task("pictures", total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        return build_release(inputs, out, key, show)


def sites_in_quarantine(registry: Registry) -> dict[str, str]:
    """Return the sites in quarantine, each with its code."""
    sites = registry.sites().values()
    return {site.name: site.code for site in sites if site.state == "quarantined"}


def revoked_sites(registry: Registry) -> frozenset[str]:
    """Return the names of the sites that are revoked."""
    return frozenset(name for name, site in registry.sites().items() if site.state == "revoked")


def bytes_of_release(record: StudyRecord, weights: Mapping[str, Path]) -> int:
    """Return a bound on what the release needs on disk while it is built."""
    study = record.study
    images = most_images(study)
    if study.synthesis is not None:
        sent = folder_bytes(record.root / "images")
        images = min(images, sent // (study.intake.size_px**2 * study.intake.channels))
    models = models_bytes([path.stat().st_size for path in weights.values()])
    return release_bytes(study, images) + models


def released_weights(record: StudyRecord) -> dict[str, Path]:
    """Return the files of the final weights, where the plan releases them."""
    if not record.study.release.models:
        return {}
    return record.final_weights()


def name_reference(reference: Path | None, name: str) -> str:
    """Return what the report calls the reference: the given name, or its file's."""
    if reference is None:
        return ""
    return name or reference.name


def check_complete(record: StudyRecord, state: Path) -> None:
    """Refuse a study whose rounds are not all closed, or that was abandoned."""
    if record.abandoned():
        raise PolicyError(
            f"study {record.study.name} was abandoned",
            hint="what was released of it before stays; a new study needs a plan of its own",
            code="E-STUDY-ENDED",
        )
    if not record.complete():
        raise PolicyError(
            f"study {record.study.name} is not complete",
            hint=f"kohort-server status --state {state}",
        )


def batches_without(record: StudyRecord, quarantined: Collection[str]) -> list[SiteBatch]:
    """Return the accepted image batches of the sites that are not in quarantine."""
    from server.release.items import SiteBatch

    batches = []
    for batch in record.batches():
        if batch.site not in quarantined:
            batches.append(SiteBatch(batch.site, batch.key, batch.parts))
    return batches


def make_account(study: Study, bundle: Path, audits: list[Path]) -> Account:
    """Return what one site's messages spend, and what a rehearsal's canary audits found."""
    from server.evaluate.canary_rehearsal import load_audits
    from server.release.items import Account

    found = load_audits(study, audits)
    spent = plans.spending(study, bundle / "checkpoints")
    versions = {"dp-accounting": version("dp-accounting")}
    return Account(spent.by_accountant(), versions, found)


def collect_pairs(
    record: StudyRecord, quarantined: Collection[str], reference: Path | None
) -> Pairs | None:
    """Return the drawn pairs, the sites' statements and public pairs to compare with.

    None for a study with synthesis, which releases images.
    """
    from server.public_data.pairs import read_pairs
    from server.release.items import Pairs
    from server.release.pairs import draw_pairs

    study = record.study
    if not releases_pairs(study):
        return None
    plan = study.models.wgan
    assert plan is not None
    statements = record.evidence("wgan")
    check_quorum(len(set(statements) - set(quarantined)), study.quorum)
    size_px = study.intake.size_px
    weights = record.weights("wgan", plan.rounds)
    digest = file_digest(record.final_weights()["wgan"])
    pairs = draw_pairs(record.root / "pairs", weights, digest, plan, size_px)
    public = None
    if reference is not None:
        public = read_pairs(reference, size_px)
    return Pairs(pairs, statements, public)


def check_quorum(sites: int, quorum: int) -> None:
    """Refuse pairs from weights whose last round has too few sites in good standing."""
    if sites < quorum:
        raise PolicyError(
            f"{sites} sites of the last round are in good standing, the quorum is {quorum}",
            hint="look at `kohort-server sites`; their updates are in the weights, "
            "so a release names them all",
            code="E-QUORUM",
        )


def read_people(
    members: Path | None, heldout: Path | None, file: Path | None, study: Study
) -> PublicPeople | Rehearsal | None:
    """Return this rehearsal's public people, an earlier rehearsal's findings, or None."""
    from server.evaluate.people import read_public_people
    from server.evaluate.rehearsal_report import read_rehearsal

    if (members is None) != (heldout is None) or (members and file):
        raise ConfigurationError(
            "--members, --heldout, --rehearsal: these options exclude or need each other",
            hint="give --members with --heldout where this run is a rehearsal, "
            "--rehearsal FILE where another run was, or none of them",
        )
    if study.synthesis is None and (members or file):
        raise ConfigurationError(
            "--members, --rehearsal: for studies that release averages; this one releases pairs",
            hint="leave these options out",
        )
    if members and heldout:
        return read_public_people(members, heldout, study)
    if file:
        return read_rehearsal(file, study)
    return None


def read_extractor(features: str) -> Extractor | None:
    """Return the network that --features names, or None for the package's own."""
    from server.evaluate.extractors import load_network

    if not features:
        return None
    architecture, _, rest = features.partition(":")
    weights, _, sha256 = rest.rpartition(":")
    if not weights:
        raise ConfigurationError(
            f"--features: expected ARCHITECTURE:WEIGHTS.safetensors:SHA256, got {features!r}",
            hint="for example resnet18:resnet18.safetensors:0123...; "
            "leave it out for the network that comes with kohort",
        )
    return load_network(architecture, Path(weights), sha256)


def read_reference(path: Path | None, study: Study) -> NDArray[Any] | None:
    """Return the public reference images in the plan's size."""
    from server.public_data.images import read_source

    if path is None:
        return None
    intake = study.intake
    is_fundus = study.modality == "fundus"
    return read_source(path, intake.size_px, intake.channels, field_of_view=is_fundus).images
