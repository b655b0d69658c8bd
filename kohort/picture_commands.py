"""`kohort detect` and `kohort export`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kohort.console import plain, warn
from kohort.errors import ConfigurationError, KohortError, RefusedError

# What a command needs is imported in it, as in kohort/commands.py.
if TYPE_CHECKING:
    from kohort.detection import Finding, Released
    from kohort.manifest import Manifest

PROGRAM = "kohort"
Trust = Annotated[
    list[str] | None,
    typer.Option(help="whom you trust, as in `kohort verify`"),
]
PICTURES = (".png", ".dcm")


def detect_command(
    files: Annotated[list[Path], typer.Argument(help="PNG and DICOM files, folders, releases")],
    release: Annotated[
        Path | None, typer.Option(help="a release: are these files' pixels among its pictures?")
    ] = None,
    trust: Trust = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON line a file")] = False,
) -> None:
    """Say whether files are marked as synthetic, and whether their pixels are a release's.

    Ends with 0 where all are: marked, or with --release among its pictures. Ends with 1 where one
    is not, or cannot be read. That a mark is missing proves nothing: marks can be removed.
    """
    from kohort.detection import read_released
    from kohort.layout import MANIFEST

    released = read_released(release, _verify(release, trust)) if release else None
    missed = 0
    for given in files:
        inside = _pictures_of(given)
        if (given / MANIFEST).is_file() and released is None:
            missed += _detect_release(given, _verify(given, trust), inside, as_json)
            continue
        for path in inside:
            missed += not _detect(path, released, _print, as_json)
    if missed:
        raise typer.Exit(RefusedError.exit_code)


def export_command(
    release: Path,
    out: Annotated[Path, typer.Argument(help="a new folder")],
    dicom: Annotated[
        bool, typer.Option("--dicom", help="as DICOM: Secondary Capture images, masks as SEG")
    ] = False,
    trust: Trust = None,
) -> None:
    """Verify a release and write its pictures in another format into a new folder."""
    if not dicom:
        raise ConfigurationError("export: no format is given", hint="add --dicom")
    from kohort.dicom_export import export_dicom

    written = export_dicom(release, _verify(release, trust), out)
    _print(f"{out}: {written} DICOM files, each with SyntheticData = YES")


def add_to(app: typer.Typer) -> None:
    """Add both commands to a program."""
    app.command("detect")(detect_command)
    app.command("export")(export_command)


def _verify(release: Path, trust: list[str] | None) -> Manifest:
    """The manifest of a release that verifies; warns where the reader has not checked its key."""
    from kohort.trust import read_trust
    from kohort.verdict import judge, unchecked_words
    from kohort.verification import verify

    trusted = read_trust(trust or ())
    verdict = judge(release, verify(release, trust=trusted), trusted)
    if not verdict.trusted:
        warn(PROGRAM, *unchecked_words(str(release), verdict))
    return verdict.manifest


def _pictures_of(given: Path) -> list[Path]:
    """A file itself, or the PNG and DICOM files below a folder."""
    if not given.exists():
        raise ConfigurationError(f"{given}: no such file or folder")
    if not given.is_dir():
        return [given]
    inside = [path for path in given.rglob("*") if path.suffix in PICTURES and path.is_file()]
    if not inside:
        raise ConfigurationError(f"{given}: holds neither PNG nor DICOM files")
    return sorted(inside)


def _detect(
    path: Path, released: Released | None, say: Callable[[str], None], as_json: bool
) -> bool:
    """Say what is found of one file; returns whether that is a mark, or the release's pixels."""
    from kohort.detection import examine

    try:
        finding = examine(path, released)
    except RefusedError as error:
        _warn(str(error))
        return False
    say(_line(path, finding, released, as_json))
    return bool(finding.marks if released is None else finding.released_as)


def _detect_release(release: Path, manifest: Manifest, inside: list[Path], as_json: bool) -> int:
    """Say in one line what a release says of itself; returns how many marks are missing."""
    from kohort.credentials import check_credentials
    from kohort.layout import PROVENANCE

    marked = 0
    for path in inside:
        found = _detect(path, None, lambda _: None, as_json)
        marked += found
        if not found:
            _warn(f"{path}: no mark of a synthetic image")
    missed = len(inside) - marked

    # one C2PA manifest a release
    credentials = "none"
    if (release / PROVENANCE).is_file():
        try:
            check_credentials(release, manifest)
            credentials = "holds"
        except ConfigurationError as error:
            credentials = "not checked"
            _warn(f"{error}; {error.hint}")
        except KohortError as error:
            credentials = "does not hold"
            missed += 1
            _warn(str(error))
    if as_json:
        facts = {"path": str(release), "kind": "release", "pictures": len(inside)}
        _print(json.dumps(facts | {"marked": marked, "c2pa": credentials}, sort_keys=True))
    else:
        counts = f"{marked} of {len(inside)} pictures are marked as synthetic"
        _print(f"{release}: {counts}; C2PA manifest: {credentials}")
    return missed


def _line(path: Path, finding: Finding, released: Released | None, as_json: bool) -> str:
    """What is printed of one file."""
    if as_json:
        facts: dict[str, object] = {"path": str(path), "kind": finding.kind}
        facts["marks"] = finding.marks
        if released is not None:
            facts["released_as"] = finding.released_as or ()
        return json.dumps(facts, sort_keys=True)
    words = "no mark of a synthetic image"
    if finding.marks:
        words = f"marked as synthetic ({', '.join(finding.marks)})"
    if released is not None:
        name = f"{released.manifest.name} {released.manifest.version}"
        where = f"not in {name}"
        if finding.released_as:
            where = f"those of {', '.join(finding.released_as[:3])} in {name}"
        words += f"; its pixels are {where}"
    return f"{path}: {words}"


def _print(line: str) -> None:
    sys.stdout.write(plain(line) + "\n")


def _warn(line: str) -> None:
    sys.stderr.write(plain(f"{PROGRAM}: warning: {line}\n"))
