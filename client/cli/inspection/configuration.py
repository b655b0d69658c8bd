"""Looks at what the hospital wrote: site.yaml, keys, data, labels, the join file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from client.cli.inspection.plans import valid_plans
from client.cli.inspection.scene import Scene, list_faults, name_fault
from client.cli.joining import check_fields
from client.cli.labels import asked_of, explain, sealing_key
from client.fleet.connection import check_addresses, read_node_key, tls_context
from client.ingest.archive import is_archive, mark_source
from client.ingest.refresh import choices_of
from client.ingest.request import Limits
from client.ingest.sealed import is_sealed
from client.ingest.text_detector import is_installed
from client.state.membership import read_membership
from common.alerts import Alert
from common.errors import KohortError


def look_at_config(scene: Scene) -> Iterator[Alert | str]:
    """site.yaml can be read, and its addresses can be called."""
    proxy = scene.config.network.proxy
    check_addresses(scene.settings.url, proxy)
    yield from ()


def look_at_keys(scene: Scene) -> Iterator[Alert | str]:
    """The keys are there, each named by itself."""
    place = scene.place
    reads: tuple[Callable[[], object], ...] = (
        place.signing_key,
        place.pseudonym_bytes,
        lambda: read_node_key(place.node_key),
    )
    for read in reads:
        try:
            read()
        except KohortError as error:
            yield from list_faults(error)


def look_at_open_keys(scene: Scene) -> Iterator[Alert | str]:
    """The keys are for the site's account alone."""
    place = scene.place
    for key in (place.sign_key, place.pseudonym_key, place.node_key):
        if key.is_file() and key.stat().st_mode & 0o077:
            yield name_fault("E-KEY-OPEN", f"{key}: readable by others", f"chmod 600 {key}")


def look_at_data(scene: Scene) -> Iterator[Alert | str]:
    """The data folder can be read."""
    folder = Path(scene.config.data.folder)
    if not folder.exists():
        yield name_fault(
            "E-DATA-FOLDER",
            f"{folder}: no such folder",
            "mount it, or correct data.folder in site.yaml",
        )
    elif is_archive(folder) or is_sealed(folder):
        # its list of files; a look that is repeated every minute does not read it
        if not scene.brief:
            key = sealing_key(scene.root)
            mark_source(folder, scene.root / ".none", Limits(), skip=None, key=key)
    elif not folder.is_dir() or not _can_enter(folder):
        yield name_fault(
            "E-DATA-FOLDER",
            f"{folder}: not a folder that can be read",
            "let this account read and enter it; kohort only reads",
        )


def look_at_choices(scene: Scene) -> Iterator[Alert | str]:
    """What this hospital decided about its files, so that whoever checks sees it."""
    if scene.config.data.derived == "accept":
        yield (
            "data.derived is accept: this hospital vouches that images with ImageType SECONDARY "
            "are plain copies, without text or drawings"
        )
    if choices_of(scene.config.data).find_text:
        yield "text in pixels is looked for: about 0.02 s of a core for each image"
    else:
        yield (
            f"text in pixels is not looked for: data.text_detector is "
            f"{scene.config.data.text_detector}, and rapidocr-onnxruntime is "
            f"{'' if is_installed() else 'not '}installed"
        )
    if scene.config.data.silent_headers == "refuse":
        yield "data.silent_headers is refuse: files that name no body part or view stay out"


def _can_enter(folder: Path) -> bool:
    """Whether this account may list a folder and open what is in it."""
    return os.access(folder, os.R_OK | os.X_OK)


def look_at_labels(scene: Scene) -> Iterator[Alert | str]:
    """The labels file is there, can be read for the plans, and is of the data folder."""
    config = scene.config
    if config.data.labels_csv is None:
        return
    path = Path(config.data.labels_csv)
    if not path.is_file():
        yield name_fault(
            "E-LABELS-FILE", f"{path}: no such file", "put it there, or correct data.labels_csv"
        )
        return
    # a look that is repeated every minute does not go through the folder
    brief = scene.brief or not Path(config.data.folder).exists()
    for asked in asked_of(dict(valid_plans(scene))):
        for found in explain(scene.root, config, asked, brief=brief):
            if isinstance(found, KohortError):
                yield from list_faults(found)
            else:
                yield found


def look_at_membership(scene: Scene) -> Iterator[Alert | str]:
    """The join file's fields can be used; the certificate may have been renewed since."""
    check_fields(read_membership(scene.place.membership))
    yield from ()


def look_at_tls(scene: Scene) -> Iterator[Alert | str]:
    """The files of TLS fit each other."""
    tls_context(scene.settings)
    yield from ()
