"""`kohort`: list, pull, verify and cite releases, hear of withdrawals, draw more, start the demo.

`verify` ends with exit code 1 and names the file if anything is not as it was signed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kohort import picture_commands
from kohort.console import plain, run_typer, warn
from kohort.errors import ConfigurationError, KohortError

# What a command needs is imported in it: `kohort --help` waits for nothing else.
if TYPE_CHECKING:
    from kohort.manifest import Manifest
    from kohort.verdict import Verdict

PROGRAM = "kohort"
Report = Callable[[int, int], None]
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
Strict = Annotated[
    bool,
    typer.Option(
        "--strict",
        help="refuse a release unless --trust names who signed it, and one known as withdrawn",
    ),
]
Catalogue = Annotated[
    str | None,
    typer.Option(
        "--from", help="address of the catalogue; default: the one seen before that names it"
    ),
]
AcceptOld = Annotated[
    bool,
    typer.Option(
        "--accept-old",
        help="take a catalogue that has ended, or is older than one seen before: later "
        "withdrawals are not in it",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON line")]
Authority = Annotated[
    Path | None, typer.Option(help="a PEM file of certificate authorities to trust")
]


@app.command("verify")
def verify_command(
    release: Path,
    trust: Trust = None,
    require: Require = None,
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Check a downloaded release offline: signatures, every file, every site's statement.

    Without --trust it warns that nobody has checked the key.
    """
    from kohort.trust import read_trust
    from kohort.verdict import judge
    from kohort.verification import verify

    trusted = read_trust(trust or ())
    with _progress_bar("verifying") as report:
        manifest = verify(release, trust=trusted, require=require, progress=report)
    _tell(release, judge(release, manifest, trusted), strict, as_json)


@app.command("pull")
def pull_command(
    wanted: Annotated[str, typer.Argument(help="NAME or NAME@VERSION of a catalogue, or https://")],
    folder: Annotated[
        Path | None, typer.Argument(help="where to put it; default: NAME-VERSION")
    ] = None,
    catalogue: Catalogue = None,
    trust: Trust = None,
    require: Require = None,
    strict: Strict = False,
    ca: Authority = None,
    accept_old: AcceptOld = False,
    as_json: AsJson = False,
) -> None:
    """Download a release over HTTPS into FOLDER; run again to resume; verified at the end.

    A name is looked up in a catalogue, and the release must be the one that the catalogue names.
    Without --trust it warns that nobody has checked the key.
    """
    from kohort.download import pull
    from kohort.from_catalogue import find_source
    from kohort.trust import read_trust
    from kohort.verdict import judge

    trusted = read_trust(trust or ())
    source = find_source(
        wanted, folder, catalogue, trusted, ca, require=require, accept_old=accept_old
    )
    with _progress_bar("downloading") as report:
        manifest = pull(
            source.url,
            source.folder,
            ca=ca,
            trust=source.trust,
            require=require,
            digest=source.digest,
            progress=report,
        )
    _tell(source.folder, judge(source.folder, manifest, source.trust), strict, as_json)


@app.command("sample")
def sample_command(
    release: Path,
    count: Annotated[int, typer.Option("-n", "--count", help="how many pictures, at most 100,000")],
    out: Annotated[Path, typer.Option(help="the new folder to write")],
    model: Annotated[
        str | None, typer.Option(help="gan, wgan or glow; default: the first that there is")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="draw the same again; default: this machine's chance")
    ] = None,
    trust: Trust = None,
    require: Require = None,
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Draw new pictures from a model of RELEASE, which is verified first, into a new folder.

    Needs the extra [sample]. Without --trust it warns that nobody has checked the key.
    """
    from kohort.drawn_folder import write_drawn
    from kohort.trust import read_trust
    from kohort.verdict import judge

    trusted = read_trust(trust or ())
    with _progress_bar("drawing") as report:
        facts = write_drawn(
            release,
            count,
            out,
            seed=seed,
            model=model,
            trust=trusted,
            require=require,
            accept=lambda manifest: _warn(release, judge(release, manifest, trusted), strict),
            progress=report,
        )
    _print(facts.model_dump_json() if as_json else facts.as_text(str(out)))


@app.command("list")
def list_command(
    url: Annotated[str | None, typer.Argument(help="address of a catalogue")] = None,
    folder: Path = Path(),
    trust: Trust = None,
    ca: Authority = None,
    accept_old: AcceptOld = False,
    as_json: AsJson = False,
) -> None:
    """List what a catalogue offers; without URL the releases in FOLDER.

    Of those it says whether each verifies, and whether you trust its key.
    """
    from kohort.trust import read_trust

    if url is not None:
        from kohort.from_catalogue import list_catalogue

        list_catalogue(url, read_trust(trust or ()), ca, accept_old=accept_old, as_json=as_json)
        return
    trusted = read_trust(trust or ())
    for release in _find_releases(folder):
        state, is_trusted = _state_of(release, trusted)
        manifest = _manifest_of(release)
        if as_json:
            facts = {
                "path": str(release),
                "name": manifest.name if manifest else None,
                "version": manifest.version if manifest else None,
                "state": state,
                "trusted": is_trusted,
            }
            _print(json.dumps(facts))
        elif manifest:
            claim = f"{manifest.name} {manifest.version}, {manifest.images} images"
            _print(f"{release}: {claim}: {state}")
        else:
            _print(f"{release}: {state}")


@app.command("notices")
def notices_command(
    folder: Annotated[Path, typer.Argument(help="a release, or a folder of releases")] = Path(),
    ca: Authority = None,
    as_json: AsJson = False,
) -> None:
    """Say which releases in FOLDER were withdrawn or superseded; ends with 1 for a withdrawn one.

    It asks the catalogues that `list` and `pull` have seen; where one is not reached, it says what
    was seen last.
    """
    from kohort.from_catalogue import show_notices

    raise typer.Exit(show_notices(_find_releases(folder), ca, as_json=as_json))


@app.command("cite")
def cite_command(
    release: Path,
    trust: Trust = None,
    bibtex: Annotated[bool, typer.Option("--bibtex", help="as an entry for BibTeX")] = False,
    datacite: Annotated[
        bool, typer.Option("--datacite", help="the DataCite metadata that the release holds")
    ] = False,
) -> None:
    """Verify a release and print how to cite it: name, version and fingerprint."""
    from kohort import citing
    from kohort.trust import read_trust
    from kohort.verification import verify

    if bibtex and datacite:
        raise ConfigurationError("--bibtex, --datacite: expected one of them", hint="leave one out")
    trusted = read_trust(trust or ())
    with _progress_bar("verifying") as report:
        manifest = verify(release, trust=trusted, progress=report)
    if datacite:
        _print(citing.datacite(release))
    elif bibtex:
        _print(citing.bibtex(release, manifest))
    else:
        _print(citing.cite(release, manifest))


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


picture_commands.add_to(app)


def main() -> None:
    """Run `kohort` and exit with its code."""
    sys.exit(run_typer(PROGRAM, lambda: app(standalone_mode=False)))


def _tell(release: Path, verdict: Verdict, strict: bool, as_json: bool) -> None:
    """Print the verdict; without a trusted key warn on standard error, or refuse where strict."""
    from kohort import summary
    from kohort.verdict import require_trust

    if strict:
        require_trust(str(release), verdict)
    if as_json:
        _print(summary.as_line(verdict))
    else:
        _print(summary.as_text(str(release), verdict))
    _warn(release, verdict, strict)


def _warn(release: Path, verdict: Verdict, strict: bool) -> None:
    """Warn of a key that nobody checked and of notices; refuse a key or a withdrawal if strict."""
    from kohort.notices import warn_of_notices
    from kohort.verdict import require_trust, unchecked_words

    if strict:
        require_trust(str(release), verdict)
    if not verdict.trusted:
        message, hint = unchecked_words(str(release), verdict)
        warn(PROGRAM, message, hint)
    warn_of_notices(release, verdict.manifest, strict=strict)


def _state_of(release: Path, trust: frozenset[str]) -> tuple[str, bool]:
    """In words whether a release verifies, and whether by a key that the reader trusts."""
    from kohort.summary import state
    from kohort.verdict import judge
    from kohort.verification import verify

    try:
        verdict = judge(release, verify(release, trust=trust), trust)
    except KohortError as error:
        return f"NOT verified: {error}", False
    return state(verdict), verdict.trusted


def _manifest_of(release: Path) -> Manifest | None:
    """The manifest of a release, unverified; None where it cannot be read."""
    from kohort.manifest import read_manifest

    try:
        return read_manifest(release)
    except KohortError:
        return None


def _find_releases(folder: Path) -> list[Path]:
    """The release folders in `folder`, or `folder` itself if it is one."""
    from kohort.layout import MANIFEST

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
    sys.stdout.write(plain(text) + "\n")
    sys.stdout.flush()  # before a warning


@contextmanager
def _progress_bar(title: str) -> Iterator[Report]:
    """A progress bar on standard error, where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


if __name__ == "__main__":
    main()
