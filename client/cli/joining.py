"""`init` and `join`: a hospital's state folder, and the operator's answer to its request."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from client.cli.options import StateFolder
from client.cli.terminal import write_line
from client.fleet.connection import check_addresses, create_node_key, read_node_key
from client.fleet.renewal import known_number
from client.state.config import FILE, load_site
from client.state.folder import State, new_pseudonym_key
from client.state.membership import (
    Membership,
    parse_membership,
    read_join_file,
    read_membership,
)
from client.state.operators import is_handover, take_handover
from client.state.records import note_loss
from client.state.request import write_request_file
from client.state.sample import sample
from client.state.upgrade import upgrade
from common.errors import ConfigurationError, PolicyError, damage_named, disk_faults_named
from common.storage.files import atomic_write
from common.wire import signing
from common.wire.authority import open_authorities

EPSILON_CAP = 100  # of policy.max_epsilon

SiteName = Annotated[
    str, typer.Option("--site", help="this hospital's name in study plans: a-z, 0-9, -")
]
DataFolder = Annotated[Path, typer.Option("--data", help="folder with the images; it is only read")]
LabelsFile = Annotated[Path | None, typer.Option("--labels", help="labels CSV")]
AfterLoss = Annotated[
    float | None,
    typer.Option(
        "--after-loss",
        metavar="EPSILON",
        help="an earlier state of this hospital is lost: EPSILON, the largest policy.max_epsilon "
        "that it ever had, counts as spent",
    ),
]
Replace = Annotated[
    bool, typer.Option("--replace", help="trust the operator of this file instead of another")
]
JoinFile = Annotated[
    Path, typer.Argument(dir_okay=False, help="NAME.join.json, or a hand-over, from the operator")
]


def init(
    state: StateFolder,
    site: SiteName,
    data: DataFolder,
    labels: LabelsFile = None,
    after_loss: AfterLoss = None,
) -> None:
    """Make the state folder: site.yaml, keys, and the request for the operator."""
    config_file = state / FILE
    if config_file.exists():
        raise ConfigurationError(
            f"{state}: is a site already", hint="use another --state, or edit its site.yaml"
        )
    # Check everything before anything is written.
    text = _config_text(site, data, labels)
    if after_loss is not None and not 0 < after_loss <= EPSILON_CAP:
        raise ConfigurationError(
            f"--after-loss {after_loss:g}: expected above 0, at most {EPSILON_CAP}",
            hint="give the largest policy.max_epsilon that the lost site.yaml ever had",
        )
    with disk_faults_named("cannot create", state):
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        state.chmod(0o700)

    # The keys, then the request that the operator needs.
    place = State(state)
    upgrade(place)
    if after_loss is not None:
        note_loss(place, after_loss)
    key = _new_keys(place, site)
    path = write_request_file(place, site)

    # Last, because a folder with a site.yaml counts as whole.
    atomic_write(config_file, text.encode())
    if after_loss is not None:
        write_line(
            f"epsilon {after_loss:g} counts as spent before the loss: a study needs a "
            "policy.max_epsilon above it"
        )
    write_line(f"{config_file}: read it; it says what this hospital allows")
    fingerprint = signing.fingerprint(key.public_key())
    write_line(f"send {path} to the operator; the signing key's fingerprint is {fingerprint}")


def _config_text(site: str, data: Path, labels: Path | None) -> str:
    """Return the text of site.yaml; raises ConfigurationError for a wrong option."""
    if not data.is_dir():
        raise ConfigurationError(
            f"{data}: no such folder", hint="--data names the folder with the images"
        )
    if labels is not None and not labels.is_file():
        raise ConfigurationError(
            f"{labels}: no such file", hint="--labels names the CSV file with the labels"
        )
    labels_text = None
    if labels is not None:
        labels_text = str(labels.resolve())
    try:
        return sample(site, str(data.resolve()), labels_text)
    except ValidationError as error:
        raise ConfigurationError(
            f"--site {site!r}: expected a-z, 0-9 and hyphens, a letter first, 32 at most",
            hint="choose a name such as hospital-a; study plans use it",
        ) from error


def _new_keys(place: State, site: str) -> Ed25519PrivateKey:
    """Write the three keys of a new site; return the one that signs.

    An init that was cut short goes on with the keys that it made.
    """
    if not place.pseudonym_key.exists():
        new_pseudonym_key(place.pseudonym_key)
    place.pseudonym_bytes()
    if not place.node_key.exists():
        create_node_key(place.node_key, place.node_key.with_suffix(".pub"), site)
    if not place.sign_key.exists():
        signing.save_private(place.sign_key, signing.new_key())
    return place.signing_key()


def join(state: StateFolder, file: JoinFile, replace: Replace = False) -> None:
    """Accept the operator's join file. Another operator's file is refused without `--replace`."""
    config = load_site(state)
    place = State(state)
    # read once: what is checked is what is stored
    text = read_join_file(file)
    if is_handover(text):
        _join_handover(place, text)
        return
    membership = parse_membership(text, file)
    # The file must be for this site and its own node key.
    if membership.site != config.site:
        raise ConfigurationError(
            f"{file}: is for site {membership.site}, this is {config.site}",
            hint="ask the operator for the join file of this site",
        )
    check_membership(membership, place)
    if place.membership.is_file() and not replace:
        _refuse_change(read_membership(place.membership), membership, known_number(place))
    operator = signing.fingerprint(membership.operator)
    place.log.note("joined", operator=operator, server=membership.server_url)
    place.log.close()
    atomic_write(place.membership, text, mode=0o600)
    # The two files that TLS reads.
    atomic_write(place.root / "ca.crt", membership.ca.encode())
    if membership.authority:
        atomic_write(place.authority, membership.authority.encode(), mode=0o600)
    atomic_write(place.certificate, membership.client_certificate.encode())
    write_line(f"joined {membership.server_url}")
    write_line(f"operator's key: {operator}; compare it with the operator by telephone")


def _join_handover(place: State, text: bytes) -> None:
    """Trust the operator's next key, which the present one signed."""
    found = take_handover(place, read_membership(place.membership), text)
    for name, line in (("was", found.old), ("is now", found.new)):
        finger = signing.fingerprint(signing.parse_public(line))
        write_line(f"operator's key {name}: {finger}")
    write_line("compare both with the operator by telephone; a running daemon needs a restart")


def _refuse_change(old: Membership, new: Membership, number: int) -> None:
    """Refuse another operator's key or CA. `number`: of the newest statement that is here."""
    if (old.operator_key, old.ca) == (new.operator_key, new.ca):
        return
    if old.operator_key == new.operator_key and new.authority:
        # the operator signed that its authority changes
        stated = open_authorities(new.authority.encode(), old.operator)
        if stated.ca == new.ca and stated.number >= number:
            return
    raise PolicyError(
        "this site has joined another operator: its key is "
        f"{signing.fingerprint(old.operator)}, that of this file is "
        f"{signing.fingerprint(new.operator)}",
        hint="compare both with the operator by telephone; `kohort-site join FILE --replace` "
        "trusts the new one",
        code="E-JOIN-OTHER",
    )


def check_membership(membership: Membership, place: State) -> None:
    """Raise ConfigurationError unless every field is usable and fits this site's node key."""
    certificate = check_fields(membership)
    with damage_named(_bad_field("client_certificate holds no key")):
        key = certificate.public_key()
    if key != read_node_key(place.node_key).public_key():
        raise ConfigurationError(
            "join file: the certificate is for another key",
            hint="send this site's own request file to the operator",
        )


def check_fields(membership: Membership) -> x509.Certificate:
    """Return the certificate of a join file; raises ConfigurationError for an unusable field."""
    check_addresses(membership.server_url, None)
    try:
        signing.fingerprint(membership.operator)
    except ConfigurationError as error:
        raise _bad_field("operator_key is not a public key") from error
    with damage_named(_bad_field("ca is not a certificate")):
        x509.load_pem_x509_certificates(membership.ca.encode())
    with damage_named(_bad_field("client_certificate is not a certificate")):
        return x509.load_pem_x509_certificate(membership.client_certificate.encode())


def _bad_field(problem: str) -> ConfigurationError:
    """Return the refusal of a join file with a field that cannot be used."""
    return ConfigurationError(
        f"join file: {problem}", hint="ask the operator for the join file again"
    )
