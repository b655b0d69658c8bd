"""The RO-Crate 1.2 metadata of a release: what each of its files and folders is.

In: the facts of the release, and its folder, all other documents written.
Out: ro-crate-metadata.json as plain data.
Guarantees: it names every file and folder at the top level, in one order, and those that sealing
adds; pictures are named by their folder alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kohort import layout
from server.release.deposit import CITABLE, PLANNED, SPDX, Deposit

METADATA = "ro-crate-metadata.json"
VERSION = "https://w3id.org/ro/crate/1.2"
AUTHOR = "#consortium"
LISTED = ("models", "reports", "statements")  # folders whose files are few, so each is named
SEALED = (layout.PROVENANCE, layout.MANIFEST, *layout.UNLISTED)  # written after this document
FILES = {
    "CITATION.cff": ("how to cite the release", "text/yaml"),
    "LICENSE": ("what may be done with the release", "text/plain"),
    "README.md": ("datasheet", "text/markdown"),
    "SHA256SUMS": ("the SHA-256 of every file", "text/plain"),
    "SHA256SUMS.sig": ("the operator's signature over SHA256SUMS", "text/plain"),
    "allowed_signers": ("whose signatures the release carries", "text/plain"),
    "croissant.json": ("Croissant metadata", "application/ld+json"),
    "datalist.json": ("list of images and masks for MONAI", "application/json"),
    "index.html": ("the release's page", "text/html"),
    "manifest.json": ("facts of the release, and the size of every file", "application/json"),
    "metadata.csv": ("table of all images", "text/csv"),
    "privacy_statement.json": ("privacy statement for programs", "application/json"),
    "privacy_statement.md": ("privacy statement", "text/markdown"),
    "provenance.c2pa": ("C2PA manifest that marks the images as synthetic", "application/c2pa"),
    "study.sig": ("the operator's signature over the plan", "text/plain"),
    "study.yaml": ("the signed study plan", "text/yaml"),
}
ENCODINGS = {
    ".json": "application/json",
    ".md": "text/markdown",
    ".onnx": "application/octet-stream",
    ".png": "image/png",
    ".safetensors": "application/octet-stream",
}
FOLDERS = {
    "data": "images in one folder a label",
    "masks": "a mask for each image, as PNG and as NIfTI",
    "models": "final weights of the trained models",
    "pages": "small pictures of large labels",
    "parquet": "the images and their table as Parquet",
    "reports": "evaluation, provenance and metadata for repositories",
    "statements": "what each hospital signed",
    "webdataset": "the images as tar files",
}


def crate(deposit: Deposit, part: Path) -> dict[str, Any]:
    """Return the document for the folder `part`."""
    things = [*_files(part), *_folders(part)]
    return {
        "@context": f"{VERSION}/context",
        "@graph": [
            {
                "@id": METADATA,
                "@type": "CreativeWork",
                "about": {"@id": "./"},
                "conformsTo": {"@id": VERSION},
            },
            _root(deposit, [thing["@id"] for thing in things if "/" not in thing["@id"][:-1]]),
            *_author(deposit),
            *_identifiers(deposit),
            *_terms(deposit),
            *things,
        ],
    }


def _root(deposit: Deposit, names: list[str]) -> dict[str, Any]:
    """The release itself."""
    study = deposit.study
    root: dict[str, Any] = {
        "@id": "./",
        "@type": "Dataset",
        "name": study.title,
        "description": deposit.description,
        "version": study.release.version,
        "datePublished": study.release.date,
        "license": {"@id": _licence_id(deposit)},
        "author": {"@id": _author_id(deposit)},
        "publisher": {"@id": _author_id(deposit)},
        "identifier": [{"@id": entry["@id"]} for entry in _identifiers(deposit)],
        "keywords": ", ".join(deposit.keywords),
        "hasPart": [{"@id": name} for name in names],
    }
    if deposit.licence:
        root["usageInfo"] = _one_or_many([{"@id": term.address} for term in deposit.licence.duo])
    return root


def _author_id(deposit: Deposit) -> str:
    """The consortium's identifier at ror.org, where it has one."""
    return deposit.author.ror or AUTHOR


def _author(deposit: Deposit) -> list[dict[str, Any]]:
    """The consortium, and where to ask."""
    author: dict[str, Any] = {
        "@id": _author_id(deposit),
        "@type": "Organization",
        "name": deposit.author_name,
    }
    if deposit.author.website:
        author["url"] = deposit.author.website
    if deposit.author.contact is None:
        return [author]
    contact = {
        "@id": f"mailto:{deposit.author.contact}",
        "@type": "ContactPoint",
        "name": f"contact of {deposit.author_name}",
        "contactType": "questions about the release",
        "email": deposit.author.contact,
    }
    return [{**author, "contactPoint": {"@id": contact["@id"]}}, contact]


def _identifiers(deposit: Deposit) -> list[dict[str, str]]:
    """The plan and the key by which the release is known."""
    study = deposit.study
    found = {"plan": (PLANNED, f"urn:kohort:{study.hash()}")}
    found["fingerprint"] = (CITABLE, deposit.fingerprint)
    entries = []
    for name, (words, value) in found.items():
        entry = {"@id": f"#{name}", "@type": "PropertyValue", "name": words}
        entries.append({**entry, "propertyID": f"urn:kohort:{name}", "value": value})
    return entries


def _terms(deposit: Deposit) -> list[dict[str, Any]]:
    """The licence, and the conditions of use as DUO terms, where they are known."""
    if deposit.licence is None:
        return []
    licence = {
        "@id": _licence_id(deposit),
        "@type": "CreativeWork",
        "name": deposit.study.release.licence,
        "description": deposit.licence.title,
        "url": deposit.licence.address,
    }
    terms = []
    for term in deposit.licence.duo:
        words = {"name": term.label, "termCode": term.code}
        terms.append({"@id": term.address, "@type": "DefinedTerm", **words})
    return [licence, *terms]


def _licence_id(deposit: Deposit) -> str:
    """The licence's address, or the file in the release where nothing more is known."""
    if deposit.licence is None:
        return "LICENSE"
    return f"{SPDX}{deposit.study.release.licence}"


def _files(part: Path) -> list[dict[str, Any]]:
    """The files at the top level, sorted: those that are there, and those that sealing adds."""
    there = {path.name for path in part.iterdir() if path.is_file()}
    names = sorted((there | set(SEALED)) - {METADATA})
    return [_file(part, name, *FILES[name]) for name in names]


def _file(part: Path, name: str, words: str, encoding: str) -> dict[str, Any]:
    """One file; with its size, where it is written already."""
    entry = {"@id": name, "@type": "File", "name": name, "description": words}
    entry["encodingFormat"] = encoding
    if name not in SEALED:
        entry["contentSize"] = str((part / name).stat().st_size)
    return entry


def _folders(part: Path) -> list[dict[str, Any]]:
    """The folders at the top level, sorted, and the files of those that hold few."""
    found = []
    for name in sorted(path.name for path in part.iterdir() if path.is_dir()):
        folder = {"@id": f"{name}/", "@type": "Dataset", "name": name}
        folder["description"] = FOLDERS[name]
        files = []
        if name in LISTED:
            for path in sorted((part / name).iterdir()):
                encoding = ENCODINGS[path.suffix]
                files.append(_file(part, f"{name}/{path.name}", path.stem, encoding))
        parts = [{"@id": entry["@id"]} for entry in files]
        found += [{**folder, "hasPart": _one_or_many(parts)} if parts else folder, *files]
    return found


def _one_or_many(values: list[dict[str, str]]) -> Any:
    """A single value instead of a list of one, as RO-Crate 1.2 asks."""
    return values[0] if len(values) == 1 else values
