"""How a release is cited: in words, as BibTeX, or as the DataCite metadata in the release.

In: a verified release. Out: text.
Guarantees: a citation names the release, its version and the fingerprint that signed it.
Not covered: a DOI, which a repository gives to what it has received.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from kohort import signatures
from kohort.errors import RefusedError
from kohort.files import read_capped
from kohort.layout import TEXT_CAP_BYTES
from kohort.manifest import Manifest

DATACITE = "reports/datacite.json"
# what TeX would read as a command
ESCAPES = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%",
    "#": r"\#", "_": r"\_", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


class Creator(BaseModel):
    """Whom a citation names."""

    name: str = Field(min_length=1, max_length=200)


class Datacite(BaseModel):
    """What is read of reports/datacite.json; its other fields are for repositories."""

    creators: tuple[Creator, ...] = Field(min_length=1, max_length=100)


def cite(folder: Path, manifest: Manifest, *, signed: bool = True) -> str:
    """Return the citation of a release as one line of text.

    `signed`: whether it was verified, so that the line may say who signed it.
    """
    text = (
        f"{authors(folder, manifest)} ({manifest.date[:4]}). {manifest.title}. Synthetic data set "
        f"{manifest.name}, version {manifest.version}."
    )
    if signed:
        text += f" Signed by {_fingerprint(manifest)}."
    return _plain(text)


def bibtex(folder: Path, manifest: Manifest) -> str:
    """Return the citation of a verified release as an entry for BibTeX."""
    note = (
        f"Synthetic data set {manifest.name}, version {manifest.version}, "
        f"signed by {_fingerprint(manifest)}"
    )
    fields = {
        "author": f"{{{_escape(authors(folder, manifest))}}}",
        "title": f"{{{_escape(manifest.title)}}}",
        "year": manifest.date[:4],
        "version": _escape(manifest.version),
        "note": _escape(note),
    }
    lines = [f"  {name} = {{{value}}}" for name, value in fields.items()]
    key = f"{manifest.name}-{manifest.version}"
    return f"@misc{{{key},\n" + ",\n".join(lines) + "\n}"


def datacite(folder: Path) -> str:
    """Return the DataCite metadata in a release, as it was signed.

    Raises RefusedError for a release that holds none.
    """
    data = _read(folder)
    if data is None:
        raise RefusedError(
            f"{folder / DATACITE}: this release holds no DataCite metadata",
            hint="releases of format 1 have none; leave --datacite out",
        )
    return data.decode("utf-8", "replace").rstrip("\n")


def authors(folder: Path, manifest: Manifest) -> str:
    """Return the authors' names; the study's name for a release that states none."""
    data = _read(folder)
    if data is None:
        return manifest.name
    try:
        creators = Datacite.model_validate_json(data).creators
    except ValidationError as error:
        raise RefusedError(f"{DATACITE}: names no creator as DataCite has them") from error
    return " and ".join(creator.name for creator in creators)


def _read(folder: Path) -> bytes | None:
    """The bytes of the DataCite metadata; None in a release without them."""
    path = folder / DATACITE
    if not path.is_file():
        return None
    return read_capped(path, TEXT_CAP_BYTES)


def _fingerprint(manifest: Manifest) -> str:
    """The fingerprint of the operator's key."""
    return signatures.fingerprint(signatures.parse_public(manifest.operator_key))


def _plain(text: str) -> str:
    """The text on one line, without anything that steers a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _escape(text: str) -> str:
    """The text as TeX prints it."""
    return "".join(ESCAPES.get(letter, letter) for letter in _plain(text))
