"""`quarantine`: which files did not enter the cohorts, why, and what to do about each.

In: the lists of opaque ids in the state folder, and the data folder.
Out: the files by their paths, on this screen or in a file for this account alone.
Guarantees: nothing of it leaves or is logged; the audit log says that the list was read, for which
plan and by which way. Nothing is ever written into the data folder.
Not covered: who looks at the screen.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from client.cli.options import AsJson, StateFolder
from client.cli.state_folder import open_plans
from client.cli.terminal import printable, write_line, write_table
from client.ingest.quarantine import Reason
from client.ingest.refresh import Intakes
from client.ingest.refused import Refusals
from client.state.config import SiteConfig, load_site
from client.state.folder import State
from common.errors import ConfigurationError, PolicyError
from common.storage.files import atomic_write
from common.storage.heartbeat import spell_json, spell_time
from common.study.plan import Study

FORMAT = "kohort-site-quarantine/1"
COLUMNS = ("path", "code", "sentence", "fix", "plan")
MOST_SHOWN = 20
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what makes a spreadsheet compute a cell

Codes = Annotated[
    list[str] | None, typer.Option("--code", help="only files with this code; may be repeated")
]
Limit = Annotated[
    int, typer.Option("--limit", min=0, help="show so many files of each code; 0: all of them")
]
Export = Annotated[
    Path | None,
    typer.Option("--export", dir_okay=False, help="write all of them to this CSV file instead"),
]
Force = Annotated[bool, typer.Option("--force", help="replace the file of --export")]


def quarantine(
    state: StateFolder,
    codes: Codes = None,
    limit: Limit = MOST_SHOWN,
    export: Export = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """List the files that did not enter: path, reason, and what to do; on this screen alone.

    Of the newest cohort of each approved plan, or of a later attempt that built none.
    """
    config = load_site(state)
    place = State(state)
    _check_codes(codes or ())
    _check_export(export, config, force)
    found = _find(place, config, open_plans(state).valid(), codes or ())
    for plan_hash in found:
        place.log.note("quarantine-read", plan=plan_hash, way="file" if export else "screen")
    if export is not None:
        atomic_write(export, _table(found).encode("utf-8", "backslashreplace"), mode=0o600)
        files = sum(len(refusals.files) for refusals in found.values())
        write_line(f"wrote {export}: {files} files; it names patients' files, so keep it here")
    elif as_json:
        write_line(json.dumps(_facts(found)))
    else:
        _show(found, limit)


def _check_codes(codes: Sequence[str]) -> None:
    """Refuse a code that no reason has."""
    unknown = [code for code in codes if code not in Reason._value2member_map_]
    if unknown:
        raise ConfigurationError(
            f"--code: no reason is called {', '.join(map(repr, unknown))}",
            hint="`kohort-site quarantine` shows the codes that there are",
        )


def _check_export(export: Path | None, config: SiteConfig, force: bool) -> None:
    """Refuse to replace a file without --force, and to write into the data folder at all."""
    if export is None:
        return
    if export.exists() and not force:
        raise ConfigurationError(
            f"{export}: exists", hint="name another file, or replace it with --force"
        )
    if export.resolve().is_relative_to(Path(config.data.folder).resolve()):
        raise ConfigurationError(
            f"{export}: lies in the data folder, where kohort never writes",
            hint="name a file elsewhere",
        )


def _find(
    place: State, config: SiteConfig, studies: Mapping[str, Study], codes: Sequence[str]
) -> dict[str, Refusals]:
    """Return the refused files of each plan that was taken in; one list for plans that share it."""
    intakes = Intakes(place, config)
    found: dict[str, Refusals] = {}
    seen: set[str] = set()
    for plan_hash, study in studies.items():
        rules = study.intake.model_dump_json()
        refusals = intakes.refusals(study.intake) if rules not in seen else None
        seen.add(rules)
        if refusals is not None:
            files = tuple(file for file in refusals.files if not codes or file.code in codes)
            found[plan_hash] = replace(refusals, files=files)
    if not found:
        raise PolicyError(
            "no folder was taken in yet", hint="kohort-site ingest", code="E-COHORT-MISSING"
        )
    return found


def _show(found: Mapping[str, Refusals], limit: int) -> None:
    """Write each list, its most frequent code first."""
    for plan_hash, refusals in found.items():
        write_line(f"{plan_hash[:12]}: {_headline(refusals)}")
        rows = []
        counts = refusals.counts()
        first = {file.code: file for file in reversed(refusals.files)}
        for code, count in counts.items():
            rows.append((code, str(count), first[code].sentence, first[code].fix))
        write_table(("code", "files", "what it means", "what to do"), rows)
        for code in counts:
            write_line("")
            for line in _path_lines(refusals, code, limit):
                write_line(line)


def _headline(refusals: Refusals) -> str:
    """What the list is of, how long it is, and which of its files are no longer there."""
    whose = "of the cohort" if refusals.built else "of the last attempt, which built no cohort"
    line = f"{len(refusals.files)} files not used, {whose} ({spell_time(refusals.time)})"
    if refusals.gone:
        line += f"; {refusals.gone} more are no longer there under that name"
    return line


def _path_lines(refusals: Refusals, code: str, limit: int) -> Iterator[str]:
    """Yield the paths of one code, at most `limit`."""
    paths = [file.path for file in refusals.files if file.code == code]
    shown = paths[:limit] if limit else paths
    yield f"{code}:"
    for path in shown:
        yield f"  {printable(path)}"
    if len(shown) < len(paths):
        yield f"  and {len(paths) - len(shown)} more: --limit 0 shows all, --export writes a table"


def _facts(found: Mapping[str, Refusals]) -> dict[str, Any]:
    """Return every list as one JSON object."""
    plans = []
    for plan_hash, refusals in found.items():
        files = []
        for file in refusals.files:
            facts = {"path": file.path, "code": file.code}
            files.append(facts | {"sentence": file.sentence, "fix": file.fix})
        plans.append(
            {
                "plan": plan_hash,
                "built": refusals.built,
                "time": spell_json(refusals.time),
                "counts": refusals.counts(),
                "gone": refusals.gone,
                "files": files,
            }
        )
    return {"format": FORMAT, "plans": plans}


def _table(found: Mapping[str, Refusals]) -> str:
    """Return every list as one CSV."""
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(COLUMNS)
    for plan_hash, refusals in found.items():
        for file in refusals.files:
            path = f"./{file.path}" if file.path.startswith(FORMULA) else file.path
            table.writerow((path, file.code, file.sentence, file.fix, plan_hash[:12]))
    return text.getvalue()
