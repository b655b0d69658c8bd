"""`kohort`: what a researcher does with a release (list, pull, verify), and the demo. Imports no torch.

In: a folder or an https address. Out: lines for a person, or one JSON line with `--json`. Exit codes: common/errors.py;
`verify` ends with 1 and names the file if anything is not as it was signed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from common.errors import ConfigurationError, KohortError, run_command
from common.wire import signing
from kohort import download
from kohort.download import Progress as Report
from kohort.manifest import Manifest, read_manifest, verify

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
Trust = Annotated[
    str | None,
    typer.Option(help="the operator's fingerprint SHA256:... or key line, from another channel"),
]
INTERRUPTED = 130
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON line")]


def _line(text: str) -> None:
    sys.stdout.write(text + "\n")


@contextmanager
def _bar(title: str) -> Iterator[Report]:
    """A progress bar on standard error."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _summary(manifest: Manifest, as_json: bool) -> None:
    """What a verified release claims, in the words of its privacy statement."""
    key = signing.fingerprint(signing.parse_public(manifest.operator_key))
    if as_json:
        facts = manifest.model_dump(mode="json", exclude={"files"})
        _line(
            json.dumps({**facts, "fingerprint": key, "files": len(manifest.files)}, sort_keys=True)
        )
        return
    _line(f"{manifest.name} {manifest.version} ({manifest.date}): {manifest.title}")
    _line(
        f"  {manifest.images} synthetic images, labels {', '.join(manifest.labels)}, from {len(manifest.sites)} sites"
    )
    _line(
        f"  each image aggregates at least k = {manifest.k} distinct patients of one site (grouping: {manifest.grouping})"
        if manifest.k is not None
        else "  image + mask pairs drawn from a generator trained on the updates; k-anonymity is not claimed"
    )
    _line(
        f"  model updates: ({manifest.epsilon:g}, {manifest.delta:g})-DP per patient, zero-out adjacency"
    )
    _line(f"  signed by {key}")


@app.command("verify")
def verify_command(release: Path, trust: Trust = None, as_json: AsJson = False) -> None:
    """Check a downloaded release offline: signature, every file, every site's statement."""
    with _bar("verifying") as report:
        manifest = verify(release, trust=trust, progress=report)
    if not as_json:
        _line(f"{release}: verified, {len(manifest.files) + 1} files as signed")
    _summary(manifest, as_json)


@app.command("pull")
def pull_command(
    url: str,
    folder: Path,
    trust: Trust = None,
    ca: Annotated[Path | None, typer.Option()] = None,
    as_json: AsJson = False,
) -> None:
    """Download a release over HTTPS into FOLDER; run again to resume; verified at the end."""
    with _bar("downloading") as report:
        manifest = download.pull(url, folder, ca=ca, trust=trust, progress=report)
    _summary(manifest, as_json)


@app.command("list")
def list_command(folder: Path = Path(), as_json: AsJson = False) -> None:
    """List the releases in FOLDER and whether each verifies."""
    found = sorted(path.parent for path in folder.glob("*/manifest.json")) or (
        [folder] if (folder / "manifest.json").is_file() else []
    )
    if not found:
        raise ConfigurationError(
            f"{folder}: holds no release", hint="`kohort pull URL DIR` fetches one"
        )
    for release in found:
        try:
            manifest, state = verify(release), "verified"
        except KohortError as error:
            manifest, state = read_manifest(release), f"NOT verified: {error}"
        if as_json:
            _line(
                json.dumps(
                    {
                        "path": str(release),
                        "name": manifest.name,
                        "version": manifest.version,
                        "state": state,
                    }
                )
            )
        else:
            _line(
                f"{release}: {manifest.name} {manifest.version}, {manifest.images} images: {state}"
            )


@app.command(
    "demo",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def demo_command(context: typer.Context) -> None:
    """Three hospitals and an operator on this machine, from DICOM to a verified release (`kohort demo --help`)."""
    # The demo plays both sides, which common may not import: it is a program of its own.
    child = subprocess.Popen([sys.executable, "-m", "server.demo.rehearsal", *context.args])
    while True:
        try:
            raise typer.Exit(child.wait())
        except KeyboardInterrupt:  # the terminal sent it to the child as well: let it clean up
            continue


def main() -> None:
    """Entry point of `kohort`."""
    sys.exit(run_typer("kohort", lambda: app(standalone_mode=False)))


def run_typer(program: str, command: Callable[[], object]) -> int:
    """Return the exit code of a typer application, usage errors and ctrl-C included, with our `error:` and `hint:` lines."""
    import click

    code = 0

    def call() -> None:
        nonlocal code
        try:
            given = command()  # typer returns the code of an Exit, and 130 for ctrl-C
        except click.exceptions.Abort as error:
            raise KeyboardInterrupt from error
        except click.ClickException as error:
            raise ConfigurationError(
                error.format_message(), hint=f"`{program} --help` lists the commands"
            ) from error
        code = given if isinstance(given, int) else 0
        if code == INTERRUPTED:
            raise KeyboardInterrupt

    return run_command(program, call) or code


if __name__ == "__main__":
    main()
