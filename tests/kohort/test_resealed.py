"""A release that is correctly signed and still wrong is refused (steps 1, 3 to 6)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.errors import RefusedError
from common.privacy import boundary
from common.study.plan import Study, load_study
from common.wire import signing
from common.wire.messages import Header, canonical, seal
from kohort import layout, statements
from kohort.files import file_digest
from kohort.verification import verify
from tests.releases import small_release

Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ed25519PrivateKey]:
    return small_release(tmp_path_factory.mktemp("good"))


def reseal(
    folder: Path, key: Ed25519PrivateKey, change: Change, *, sizes: bool = True, **fields: Any
) -> None:
    """Change a release and sign it again; `fields` go into the manifest."""
    change(folder)
    manifest = json.loads((folder / layout.MANIFEST).read_text()) | fields
    if sizes:
        for entry in manifest["files"]:
            path = folder / entry["path"]
            entry["size_bytes"] = path.stat().st_size if path.exists() else 0
    (folder / layout.MANIFEST).write_text(json.dumps(manifest))
    files = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    names = [name for name in files if layout.is_listed(name)]
    sums = layout.sums_text({name: file_digest(folder / name) for name in names}).encode()
    (folder / layout.SUMS).write_bytes(sums)
    (folder / layout.SIGNATURE).write_bytes(signing.sign(key, signing.RELEASE, sums))


def in_file(name: str, old: str, new: str) -> Change:
    """Replace the first `old` in a file."""

    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return change


def shorten(path: Path) -> None:
    """Remove the last line of a file."""
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def statement(folder: Path, **fields: Any) -> None:
    """Replace hospital-a's statement by one with other header fields and another key."""
    study: Study = load_study(folder / "study.yaml")
    header: dict[str, Any] = {
        "kind": "images",
        "study": study.hash(),
        "phase": "synthesize",
        "round": 0,
        "sender": "hospital-a",
        "digest": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "statement": boundary.public_statement(study, "images")
        | {"weights": "d" * 64, "head_commitment": "0" * 64},
        **fields,
    }
    key = signing.new_key()
    sealed = seal(Header.model_validate(header), b"", key)
    line = statements.statement_json(
        "hospital-a", signing.public_text(key.public_key()), sealed.header, sealed.signature
    )
    (folder / "statements" / "hospital-a.json").write_bytes(line)


def unsigned(folder: Path) -> None:
    path = folder / "statements" / "hospital-a.json"
    data = json.loads(path.read_text()) | {
        "key": signing.public_text(signing.new_key().public_key())
    }
    path.write_text(json.dumps(data))


def not_ascii(folder: Path) -> None:
    path = folder / "statements" / "hospital-a.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"header": "Ä" * 8}))


def first(folder: Path) -> str:
    """The first picture's name."""
    return sorted(p.relative_to(folder).as_posix() for p in (folder / "data").rglob("*.png"))[0]


def moved(folder: Path) -> None:
    """A picture in another label's folder, and so in the table and the manifest."""
    name = "data/train/none/99999.png"
    old = first(folder)
    (folder / old).rename(folder / name)
    text = (folder / "metadata.csv").read_text()
    (folder / "metadata.csv").write_text(text.replace(old, name))
    manifest = (folder / layout.MANIFEST).read_text()
    (folder / layout.MANIFEST).write_text(manifest.replace(old, name))


def masked(folder: Path) -> None:
    """A mask that no row names, listed in the manifest."""
    (folder / "masks").mkdir()
    (folder / "masks" / "00000.png").write_bytes(b"x")
    manifest = json.loads((folder / layout.MANIFEST).read_text())
    manifest["files"].append({"path": "masks/00000.png", "size_bytes": 1})
    (folder / layout.MANIFEST).write_text(json.dumps(manifest))


def without(folder: Path, name: str) -> None:
    """Remove a file, from the manifest too."""
    (folder / name).unlink()
    manifest = json.loads((folder / layout.MANIFEST).read_text())
    manifest["files"] = [entry for entry in manifest["files"] if entry["path"] != name]
    (folder / layout.MANIFEST).write_text(json.dumps(manifest))


NOTHING: Change = lambda folder: None  # noqa: E731
WRONG: dict[str, tuple[Change, dict[str, Any], str]] = {
    "a file that the manifest does not list": (
        lambda f: (f / "data/train/none/99998.png").write_bytes(b"x"),
        {},
        "lists other files",
    ),
    "a file missing that the manifest lists": (
        lambda f: (f / "index.html").unlink(),
        {},
        "lists other files",
    ),
    "a program": (
        lambda f: (f / "run.py").write_text("x"),
        {},
        r"run\.py: not a file that a release may hold",
    ),
    "no table of its images": (
        lambda f: without(f, layout.METADATA),
        {},
        r"metadata\.csv: missing",
    ),
    "sizes that are not the files'": (
        lambda f: (f / "README.md").write_text("short"),
        {"sizes": False},
        r"README\.md: 5 bytes",
    ),
    "another operator's key in its manifest": (
        NOTHING,
        {"operator_key": signing.public_text(signing.new_key().public_key())},
        "allowed_signers: altered",
    ),
    "a picture that the table does not list": (
        lambda f: in_file(layout.METADATA, first(f), "data/train/none/77777.png")(f),
        {},
        r"metadata\.csv: lists",
    ),
    "another number of images": (NOTHING, {"images": 13}, "13 stated"),
    "a picture in another label's folder": (moved, {}, "another folder than its label"),
    "a label that the manifest does not name": (
        NOTHING,
        {"labels": ["none"]},
        "another folder than its label",
    ),
    "a smaller k in its table": (
        in_file(layout.METADATA, ",5,", ",4,"),
        {},
        "states k = 4, at least 5",
    ),
    "a larger k in its manifest": (NOTHING, {"k": 6}, "states k = 5, at least 6"),
    "no k although its images have one": (NOTHING, {"k": None}, "states k = 5, none expected"),
    "a mask that nobody lists": (masked, {}, "lists 0 mask files, 1 are there"),
    "a table of imagefolder with another label": (
        in_file(layout.FOLDER_TABLE, ",severe,", ",none,"),
        {},
        r"data/train/metadata\.csv: says other things",
    ),
    "a table of imagefolder without its last row": (
        lambda f: shorten(f / layout.FOLDER_TABLE),
        {},
        r"data/train/metadata\.csv: says other things",
    ),
    "a datalist with another label": (
        in_file(layout.DATALIST, '"label": 2', '"label": 1'),
        {},
        r"datalist\.json: lists other",
    ),
    "a datalist that is no list": (
        lambda f: (f / layout.DATALIST).write_text("[" * 100_000),
        {},
        r"datalist\.json: not JSON",
    ),
    "no datalist": (
        lambda f: without(f, layout.DATALIST),
        {},
        r"datalist\.json: missing",
    ),
    "a statement of another site": (
        lambda f: statement(f, sender="hospital-b"),
        {},
        "hospital-a.json: about another site",
    ),
    "a statement about another plan": (
        lambda f: statement(f, study="0" * 64),
        {},
        "hospital-a.json: about another site",
    ),
    "a statement that its site did not sign": (unsigned, {}, "hospital-a.json"),
    "a statement whose k is text": (
        lambda f: statement(
            f, statement={"k": "5", "weights": "d" * 64, "head_commitment": "0" * 64}
        ),
        {},
        "the site states k = 5, the release 5",
    ),
    "a statement whose k is a truth value": (
        lambda f: statement(
            f, statement={"k": True, "weights": "d" * 64, "head_commitment": "0" * 64}
        ),
        {},
        "the site states k = True",
    ),
    "a statement that is not ASCII": (not_ascii, {}, r"hospital-a\.json"),
    "a site without a statement": (
        NOTHING,
        {"sites": ["hospital-a", "../hospital-b"]},
        "missing, though manifest.json names the site",
    ),
    "a table without labels": (
        in_file(layout.METADATA, "label", "kind"),
        {},
        "another folder than its label",
    ),
    "a k in its table that is no number": (
        in_file(layout.METADATA, ",5,", ",\u00b2,"),
        {},
        "at least 5 expected",
    ),
    "a table that is no CSV": (
        lambda f: (f / "metadata.csv").write_text("file_name\n" + "x" * 200_000 + "\n"),
        {},
        r"metadata\.csv: not a CSV table",
    ),
    "a statement of a smaller k": (
        lambda f: statement(
            f, statement={"k": 2, "weights": "d" * 64, "head_commitment": "0" * 64}
        ),
        {},
        "the site states k = 2",
    ),
}


@pytest.mark.parametrize("sentence", WRONG)
def test_a_release_is_refused_that_is_well_signed_and_has(
    sentence: str, good: tuple[Path, Ed25519PrivateKey], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(good[0], tmp_path / "copy"))
    reseal(folder, good[1], NOTHING)
    verify(folder)
    change, fields, message = WRONG[sentence]
    reseal(folder, good[1], change, **fields)
    with pytest.raises(RefusedError, match=message):
        verify(folder)


def test_the_same_statement_is_accepted_when_it_says_what_the_release_says(
    good: tuple[Path, Ed25519PrivateKey], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(good[0], tmp_path / "copy"))
    reseal(folder, good[1], statement)
    verify(folder)


def old_statement(folder: Path) -> None:
    """A statement as a site of kohort 0.1 signed it: no `heads`, and the ledger's head in it."""
    study: Study = load_study(folder / "study.yaml")
    public = boundary.public_statement(study, "images")
    header = {
        "version": 1,
        "kind": "images",
        "study": study.hash(),
        "phase": "synthesize",
        "model": "",
        "round": 0,
        "part": 0,
        "parts": 1,
        "sender": "hospital-a",
        "digest": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "statement": public | {"ledger_head": "0" * 64, "ledger_seq": 7},
        "receipts": [],
    }
    key = signing.new_key()
    text = canonical(header)
    signature = signing.sign(key, signing.MESSAGE, text)
    line = statements.statement_json(
        "hospital-a", signing.public_text(key.public_key()), text, signature
    )
    (folder / "statements" / "hospital-a.json").write_bytes(line)


def test_a_release_with_statements_of_version_0_1_still_verifies(
    good: tuple[Path, Ed25519PrivateKey], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(good[0], tmp_path / "copy"))
    reseal(folder, good[1], old_statement)
    verify(folder)


SUMS: dict[str, Callable[[str], str]] = {
    "another order": lambda text: "".join(reversed(text.splitlines(keepends=True))),
    "a line twice": lambda text: text + text.splitlines(keepends=True)[-1],
    "a name that a release may not hold": lambda text: "0" * 64 + "  ../evil\n" + text,
    "an upper-case digest": lambda text: text[:64].upper() + text[64:],
    "its own name": lambda text: "0" * 64 + "  SHA256SUMS\n" + text,
}


@pytest.mark.parametrize("sentence", SUMS)
def test_sums_are_refused_with(sentence: str, good: tuple[Path, Ed25519PrivateKey]) -> None:
    text = (good[0] / layout.SUMS).read_text()
    layout.parse_sums(text.encode())
    with pytest.raises(RefusedError, match="SHA256SUMS"):
        layout.parse_sums(SUMS[sentence](text).encode())
