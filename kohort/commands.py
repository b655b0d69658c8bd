"""`kohort`: list, pull and verify releases, and start the demo.

`verify` ends with exit code 1 and names the file if anything is not as it was signed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from kohort import download, signatures
from kohort.console import run_typer
from kohort.download import Progress as Report
from kohort.errors import ConfigurationError, KohortError
from kohort.files import read_capped
from kohort.layout import MANIFEST, SUMS, TEXT_CAP_BYTES
from kohort.manifest import Manifest, read_manifest
from kohort.sign_off import read_sign_offs
from kohort.trust import read_trust
from kohort.verification import verify

DEMO = "server.demo.rehearsal"
# of each role one module that only its extra brings
DEMO_NEEDS = (DEMO, "pydicom", "mlcroissant")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
Trust = Annotated[
    list[str] | None,
    typer.Option(
        help="whom you trust, from another channel: a fingerprint SHA256:..., a key line, or a "
        "file of such lines; may be given again. Without --require: the operator",
    ),
]
Require = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="how many sign-offs, by keys in --trust or by signers that the release names; "
        "default: as many as the release says",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON line")]
Authority = Annotated[
    Path | None, typer.Option(help="a PEM file of certificate authorities to trust")
]


@app.command("verify")
def verify_command(
    release: Path, trust: Trust = None, require: Require = None, as_json: AsJson = False
) -> None:
    """Check a downloaded release offline: signatures, every file, every site's statement."""
    trusted = read_trust(trust or ())
    with _progress_bar("verifying") as report:
        manifest = verify(release, trust=trusted, require=require, progress=report)
    if not as_json:
        _print(f"{release}: verified, {len(manifest.files) + 1} files as signed")
    _print_summary(release, manifest, as_json)


@app.command("pull")
def pull_command(
    url: str,
    folder: Path,
    trust: Trust = None,
    require: Require = None,
    ca: Authority = None,
    as_json: AsJson = False,
) -> None:
    """Download a release over HTTPS into FOLDER; run again to resume; verified at the end."""
    trusted = read_trust(trust or ())
    with _progress_bar("downloading") as report:
        manifest = download.pull(
            url, folder, ca=ca, trust=trusted, require=require, progress=report
        )
    _print_summary(folder, manifest, as_json)


@app.command("list")
def list_command(folder: Path = Path(), as_json: AsJson = False) -> None:
    """List the releases in FOLDER and whether each verifies."""
    for release in _find_releases(folder):
        try:
            verify(release)
            state = "verified"
        except KohortError as error:
            state = f"NOT verified: {error}"
        manifest = _manifest_of(release)
        if as_json:
            facts = {"path": str(release), "name": None, "version": None, "state": state}
            if manifest:
                facts |= {"name": manifest.name, "version": manifest.version}
            _print(json.dumps(facts))
        elif manifest:
            claim = f"{manifest.name} {manifest.version}, {manifest.images} images"
            _print(f"{release}: {claim}: {state}")
        else:
            _print(f"{release}: {state}")


@app.command(
    "demo",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def demo_command(context: typer.Context) -> None:
    """Three hospitals and an operator on this machine, from DICOM to a verified release.

    `kohort demo --help` lists its options.
    """
    if not all(map(_is_installed, DEMO_NEEDS)):
        raise ConfigurationError(
            "the demo needs kohort-app[site,server] (hospital and operator), "
            "which is not installed here",
            hint="run `make setup` in a clone of the repository, then `make demo`",
        )
    # The demo runs both sides, which this package may not import: it is a program of its own.
    child = subprocess.Popen([sys.executable, "-m", DEMO, *context.args])
    while True:
        try:
            raise typer.Exit(child.wait())
        except KeyboardInterrupt:  # the terminal sent it to the child as well: let it clean up
            continue


def main() -> None:
    """Run `kohort` and exit with its code."""
    sys.exit(run_typer("kohort", lambda: app(standalone_mode=False)))


def _manifest_of(release: Path) -> Manifest | None:
    """The manifest of a release, unverified; None where it cannot be read."""
    try:
        return read_manifest(release)
    except KohortError:
        return None


def _find_releases(folder: Path) -> list[Path]:
    """The release folders in `folder`, or `folder` itself if it is one."""
    found = sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))
    if found:
        return found
    if (folder / MANIFEST).is_file():
        return [folder]
    raise ConfigurationError(
        f"{folder}: holds no release", hint="`kohort pull URL DIR` fetches one"
    )


def _is_installed(module: str) -> bool:
    """Whether this Python can import `module`."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its package is not there
        return False


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")


def _print_summary(release: Path, manifest: Manifest, as_json: bool) -> None:
    """Print what a verified release claims, and who signed it."""
    key = signatures.fingerprint(signatures.parse_public(manifest.operator_key))
    signed = read_sign_offs(release, manifest, read_capped(release / SUMS, TEXT_CAP_BYTES))
    if as_json:
        facts = manifest.facts() | {"fingerprint": key, "files": len(manifest.files)}
        facts["signed_off"] = [one.name for one in signed]
        _print(json.dumps(facts, sort_keys=True))
        return
    labels = ", ".join(manifest.labels)
    count = len(manifest.sites)
    _print(f"{manifest.name} {manifest.version} ({manifest.date}): {manifest.title}")
    _print(f"  {manifest.images} synthetic images, labels {labels}, from {count} sites")
    _print(f"  {_k_claim(manifest)}")
    budget = f"({manifest.epsilon:g}, {manifest.delta:g})-DP per patient, zero-out adjacency"
    _print(f"  model updates: {budget}")
    _print(f"  signed by {key}")
    for one in signed:
        _print(f"  signed off by {one.name} {one.fingerprint}")
    if manifest.signers:
        _print(f"  it needs {manifest.sign_offs} of {len(manifest.signers)} sign-offs")


def _k_claim(manifest: Manifest) -> str:
    """What a release says about k-anonymity."""
    if manifest.k is None:
        return (
            "image + mask pairs drawn from a generator trained on the updates; "
            "k-anonymity is not claimed"
        )
    return (
        f"each image is of a group of at least k = {manifest.k} distinct patients of one site "
        f"(grouping: {manifest.grouping})"
    )


@contextmanager
def _progress_bar(title: str) -> Iterator[Report]:
    """A progress bar on standard error."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


if __name__ == "__main__":
    main()
