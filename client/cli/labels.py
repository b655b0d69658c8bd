"""`labels`: what the labels file says and fits, or a labels file to fill in.

In: site.yaml, the approved plans, the data folder.
Out: lines on this screen, or a new file for this account alone.
Guarantees: nothing of it leaves or is logged; no file is replaced, none is written into the data
folder; no image is decoded.
Not covered: whether an image enters; `ingest` says that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from client.cli.options import StateFolder
from client.cli.state_folder import open_plans
from client.cli.terminal import progress_bar, write_line
from client.ingest.archive import open_source
from client.ingest.labels import Wording, read_labels
from client.ingest.request import Limits, count_decoders
from client.ingest.template import Asked, compare_labels, write_template
from client.state.config import SiteConfig, load_site
from client.state.folder import State
from common.errors import ConfigurationError, KohortError
from common.storage.files import write_new
from common.study.plan import Study

FILE = "labels-template.csv"

WantsTemplate = Annotated[
    bool, typer.Option("--template", help="write a labels file to fill in, from the data folder")
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", dir_okay=False, help=f"the new file of --template; by default {FILE} in --state"
    ),
]


def labels(state: StateFolder, template: WantsTemplate = False, out: Out = None) -> None:
    """Say how the labels file is read, which rows and images fit, and every problem at once.

    --template writes a labels file instead, with a row for each file or patient that is there.
    """
    config = load_site(state)
    asked = asked_of(_plans(state))
    if template:
        _write(state, config, asked, out or state / FILE)
        return
    if config.data.labels_csv is None:
        raise ConfigurationError(
            "site.yaml names no labels file",
            hint="`kohort-site labels --template` writes one to fill in; name it in "
            "data.labels_csv of site.yaml",
        )
    errors: list[KohortError] = []
    for one in asked:
        for line in explain(state, config, one):
            if isinstance(line, KohortError):
                errors.append(line)
            else:
                write_line(line)
    if errors:
        problems = [text for error in errors for text in _problems_of(error)]
        raise ConfigurationError(
            "\n".join(problems), problems=problems, hint=errors[0].hint, code=errors[0].code
        )


def _problems_of(error: KohortError) -> Sequence[str]:
    """Everything that an error lists, or its text."""
    return getattr(error, "problems", ()) or (str(error),)


def _plans(state: Path) -> Mapping[str, Study]:
    """The approved plans; none before this site has joined."""
    try:
        return open_plans(state).valid()
    except KohortError:
        return {}


def asked_of(studies: Mapping[str, Study]) -> list[Asked]:
    """Return what the plans ask of a labels file, each once; without a plan, anything."""
    found: dict[Asked, None] = {}
    for study in studies.values():
        intake = study.intake
        asked = Asked(
            tuple(intake.labels),
            tuple(intake.dicom_modalities),
            intake.volumes is not None,
            intake.stratify_laterality,
        )
        found[asked] = None
    return list(found) or [Asked()]


def explain(
    state: Path, config: SiteConfig, asked: Asked, *, brief: bool = False
) -> Iterator[str | KohortError]:
    """Yield how the labels file is read and what fits, or why it cannot be used.

    What was looked at in part is said, and then is no fault. `brief`: read the file alone.
    """
    assert config.data.labels_csv is not None
    path = Path(config.data.labels_csv)
    limits = _limits(config)
    wording = Wording(config.data.columns, config.data.values)
    try:
        if brief:
            read_labels(path, asked.labels, (), limits.max_labels_bytes, wording=wording)
            return
        source = Path(config.data.folder)
        key = sealing_key(state)
        with open_source(source, state / ".none", limits, skip=path, key=key) as opened:
            found, part = compare_labels(opened.paths, path, asked, wording, limits)
    except KohortError as error:
        yield error
        return
    if part:
        # who was not looked at is not missing
        yield from found.match.table_lines()
        yield f"labels: {part}; {found.match.labelled:,} of {found.match.images:,} have a row"
        return
    yield from found.match.lines()
    try:
        found.check_match()
    except KohortError as error:
        yield error


def sealing_key(state: Path) -> bytes | None:
    """Return the key that opens what `fetch` sealed; None before `init`."""
    place = State(state)
    return place.pseudonym_bytes() if place.pseudonym_key.is_file() else None


def _write(state: Path, config: SiteConfig, asked: list[Asked], out: Path) -> None:
    """Write a labels file to fill in; an existing one is never replaced."""
    folder = Path(config.data.folder)
    if out.exists():
        raise ConfigurationError(f"{out}: exists", hint="name another file with --out")
    if out.resolve().is_relative_to(folder.resolve()):
        raise ConfigurationError(
            f"{out}: lies in the data folder, where kohort never writes",
            hint="name a file elsewhere with --out",
        )
    labels_csv = Path(config.data.labels_csv) if config.data.labels_csv else None
    limits = _limits(config)
    unused = state / ".none"
    with (
        open_source(folder, unused, limits, skip=labels_csv, key=sealing_key(state)) as opened,
        progress_bar("looking") as progress,
    ):
        made = write_template(opened.paths, merge_asked(asked), limits, progress)
    if not made.rows:
        raise ConfigurationError(
            f"{folder}: none of {made.files:,} files is an image of the study's kind",
            hint="correct data.folder in site.yaml",
        )
    # spreadsheets know UTF-8 by its mark
    write_new(out, made.text.encode("utf-8-sig", "backslashreplace"))
    write_line(f"wrote {out}: {made.rows:,} rows for {made.files - made.unused:,} files")
    if made.unused:
        write_line(f"{made.unused:,} other files have no row")
    write_line("it names patients' files, so keep it here; import its columns as text, or a")
    write_line(
        "spreadsheet takes the zeros in front of an id away; then name it in data.labels_csv"
    )


def merge_asked(asked: list[Asked]) -> Asked:
    """Return what several plans ask of one template: the labels only where they are the same."""
    labels = {one.labels for one in asked}
    modalities = dict.fromkeys(name for one in asked for name in one.modalities)
    return Asked(
        labels.pop() if len(labels) == 1 else (),
        tuple(modalities),
        any(one.volumes for one in asked),
        any(one.sides for one in asked),
    )


def _limits(config: SiteConfig) -> Limits:
    """What a look at headers may use."""
    return Limits(
        max_file_bytes=config.limits.max_file_mib << 20,
        workers=count_decoders(config.compute.decoders),
    )
