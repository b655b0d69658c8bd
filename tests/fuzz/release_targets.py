"""Targets: what a researcher downloads, and what the operator reads of public data."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from client.child.utility import read_pairs as read_release_pairs
from common.models.basis import fit, load, save
from common.study.families import GAN
from common.study.shapes import starting_weights
from common.wire import signing
from kohort import citing, layout
from kohort.catalogue import open_catalogue
from kohort.drawn_claim import STATEMENT, claim_of_drawn
from kohort.files import file_digest
from kohort.manifest import Manifest, read_manifest
from kohort.models import read_model
from kohort.picture import decode
from kohort.seen import Kept
from kohort.seen import _read as read_kept
from kohort.sign_off import read_sign_offs
from kohort.signatures import CATALOGUE
from kohort.statements import open_statement, statement_json
from kohort.table import read_table
from kohort.trust import read_trust
from kohort.verification import verify
from server.evaluate.people import _read_arrays, _read_table
from server.public_data.images import read_names, read_source
from server.public_data.pairs import read_pairs
from server.release.statement import privacy_statement
from tests.catalogues import catalogue_fields, sign_catalogue
from tests.fuzz.harness import Parser, Target
from tests.fuzz.mutation import Maker, damaged, exchanged, one_of, revalued, wrapped
from tests.fuzz.wire_targets import ODD_HEADERS, header_of, tensor_makers
from tests.releases import ACCOUNT, proposal, sign_off, small_release
from tests.studies import small_study

CHANGED = (
    "manifest.json",
    "metadata.csv",
    "statements/hospital-a.json",
    "SHA256SUMS",
    layout.DATALIST,
)
SIDE = 4


def png(pixels: np.ndarray, **options: object) -> bytes:
    """A PNG file."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", **options)
    return out.getvalue()


def jpeg(pixels: np.ndarray) -> bytes:
    """A JPEG file."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG")
    return out.getvalue()


def png_maker(*seeds: bytes) -> Maker:
    """PNG files whose chunks are damaged and then given a right checksum and length."""
    broken = damaged(*seeds)

    def mend(data: bytes) -> bytes:
        out = data[:8]
        at = 8
        while at + 8 <= len(data):
            size = int.from_bytes(data[at : at + 4], "big")
            kind = data[at + 4 : at + 8]
            body = data[at + 8 : at + 8 + size] if size < len(data) else data[at + 8 : -12]
            check = zlib.crc32(kind + body).to_bytes(4, "big")
            out += len(body).to_bytes(4, "big") + kind + body + check
            at += 12 + len(body)
        return out

    return wrapped(broken, mend)


def _release(folder: Path) -> Parser:
    """A release with one file changed, and everything above it signed again."""
    release, key = small_release(folder)
    good = {name: (release / name).read_bytes() for name in CHANGED}
    names = [line.partition("  ")[2] for line in good["SHA256SUMS"].decode().splitlines()]

    def call(data: bytes) -> None:
        number = data[0] % len(CHANGED) if data else 0
        name = CHANGED[number]
        (release / name).write_bytes(data[1:])
        try:
            if name not in ("manifest.json", "SHA256SUMS"):
                _state_size(release, name)
            if name != "SHA256SUMS":
                _sign_again(release, names, key)
            verify(release)
        finally:
            for other in (name, "SHA256SUMS", "manifest.json"):
                (release / other).write_bytes(good[other])

    makers = (revalued(good["manifest.json"]), exchanged(good["metadata.csv"]))
    makers += (revalued(good["statements/hospital-a.json"]), exchanged(good["SHA256SUMS"]))
    makers += (revalued(good[layout.DATALIST]),)
    return Parser(call, (one_of(*makers),))


def _state_size(release: Path, name: str) -> None:
    """The manifest with a file's own size, which is checked before the file is read."""
    manifest = json.loads((release / "manifest.json").read_bytes())
    for entry in manifest["files"]:
        if entry["path"] == name:
            entry["size_bytes"] = (release / name).stat().st_size
    (release / "manifest.json").write_text(json.dumps(manifest))


def _sign_again(release: Path, names: list[str], key: signing.Ed25519PrivateKey) -> None:
    """SHA256SUMS and its signature as a hostile operator would make them."""
    digests = {name: file_digest(release / name) for name in names}
    text = layout.sums_text(digests).encode()
    (release / "SHA256SUMS").write_bytes(text)
    (release / "SHA256SUMS.sig").write_bytes(signing.sign(key, signing.RELEASE, text))


def _sign_offs(folder: Path) -> Parser:
    """One signer's signature beside another that holds."""
    release, _, keys = proposal(folder, 1, "hospital-a", "hospital-b")
    sign_off(release, "hospital-a", keys["hospital-a"])
    target = sign_off(release, "hospital-b", keys["hospital-b"])
    manifest = read_manifest(release)
    sums = (release / "SHA256SUMS").read_bytes()
    good = target.read_bytes()

    def call(data: bytes) -> None:
        target.write_bytes(data)
        read_sign_offs(release, manifest, sums)

    return Parser(call, (exchanged(good), damaged(good)))


def _released_pictures(folder: Path) -> Parser:
    """A picture of a release as `kohort.load` decodes it, and the table that names it."""
    del folder
    grey = png(np.zeros((SIDE, SIDE), np.uint8))
    seeds = (grey, png(np.zeros((SIDE, SIDE, 3), np.uint8)), jpeg(np.zeros((8, 8, 3), np.uint8)))
    return Parser(lambda data: decode(data, "x.png"), (png_maker(*seeds[:2]), damaged(*seeds)))


def _released_tables(folder: Path) -> Parser:
    """An unverified table of a release, beside SHA256SUMS of a hostile mirror."""
    name = "data/train/none/00000.png"
    (folder / "SHA256SUMS").write_text(layout.sums_text({name: "0" * 64}))
    path = folder / "metadata.csv"
    text = f"file_name,label,mask\n{name},none,\n".encode()
    maker = exchanged(text, odd=(b"../x.png", b"/etc/passwd", b"\x00", name.encode()))
    return _reading(path, lambda: read_table(folder, ("none",)), maker, damaged(text))


def _trust(folder: Path) -> Parser:
    """A reader's file of keys and fingerprints."""
    line = signing.public_text(signing.new_key().public_key(), "hospital-a").encode()
    print_ = signing.fingerprint(signing.new_key().public_key()).encode()
    path = folder / "trusted"
    text = b"# ours\n" + line + b"\n" + print_ + b"\n"
    return _reading(path, lambda: read_trust([str(path)]), exchanged(text), damaged(text))


def _citation(folder: Path) -> Parser:
    """The DataCite metadata of a release, of which the authors' names are read."""
    release, _ = small_release(folder)
    manifest = read_manifest(release)
    path = release / citing.DATACITE
    good = path.read_bytes()
    names = json.dumps({"creators": [{"name": "A consortium"}]}).encode()

    def call() -> None:
        citing.cite(release, manifest)
        citing.bibtex(release, manifest)
        citing.datacite(release)

    return _reading(path, call, damaged(good), damaged(names), exchanged(names))


def _release_texts(folder: Path) -> Parser:
    """The four texts of a release alone: signers, sums, manifest, table."""
    release, _ = small_release(folder)
    manifest = json.loads((release / "manifest.json").read_bytes())
    manifest["files"] = manifest["files"][:2]
    small = json.dumps(manifest).encode()
    sums = b"".join((release / "SHA256SUMS").read_bytes().splitlines(keepends=True)[:3])

    def call(data: bytes) -> None:
        if data[:1] == b"\0":
            (release / "manifest.json").write_bytes(data[1:])
            read_manifest(release)
        else:
            layout.parse_sums(data[1:])

    return Parser(
        call,
        (
            one_of(revalued(small), exchanged(sums)),
            one_of(exchanged(small)),
        ),
    )


def _catalogue(folder: Path) -> Parser:
    """A catalogue as its operator signs it, and what the cache keeps of one."""
    key = signing.new_key()
    text, signature = sign_catalogue(key, catalogue_fields(key))
    kept = Kept(
        url="https://x.org", seen="2026-12-01T00:00:00Z", catalogue=text.decode(),
        signature=signature.decode(),
    ).model_dump_json().encode()  # fmt: skip
    path = folder / "kept.json"

    def call(data: bytes) -> None:
        if data[:1] == b"\0":
            path.write_bytes(data[1:])
            read_kept(path)
        elif data[:1] == b"\1":
            open_catalogue(text, data[1:])
        else:
            open_catalogue(data[1:], signing.sign(key, CATALOGUE, data[1:]))

    return Parser(
        call,
        (one_of(exchanged(kept), exchanged(signature), revalued(text)), damaged(b"\2" + text)),
        good=b"\2" + text,
    )


def _statement(folder: Path) -> Parser:
    key = signing.new_key()
    text = json.dumps(header_of(b"").model_dump(mode="json")).encode()
    line = signing.public_text(key.public_key(), "hospital-a")

    def seal(header: bytes) -> bytes:
        signature = signing.sign(key, signing.MESSAGE, header)
        return statement_json("hospital-a", line, header, signature)

    def call(data: bytes) -> None:
        open_statement(data, "statements/hospital-a.json")

    whole = seal(text)
    return Parser(
        call, (wrapped(revalued(text, odd=ODD_HEADERS), seal), revalued(whole), exchanged(whole))
    )


def _weights(folder: Path) -> Parser:
    """Starting checkpoints and the basis of the latents."""
    basis = fit(np.random.default_rng(0).normal(size=(5, 3)), 2)
    save(basis, folder / "basis.safetensors")
    path = folder / "start.safetensors"

    def call(data: bytes) -> None:
        path.write_bytes(data)
        starting_weights(path, GAN)
        load(path).first(1)

    return Parser(call, tensor_makers((folder / "basis.safetensors").read_bytes()))


def npz(**arrays: np.ndarray) -> bytes:
    """An .npz file."""
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def npz_maker(**arrays: np.ndarray) -> Maker:
    """Archives: damaged as a whole, or with a damaged member under right sizes and checksums."""
    import zipfile

    whole = damaged(npz(**arrays))
    members = {}
    for name, array in arrays.items():
        out = io.BytesIO()
        np.save(out, array)
        members[name] = out.getvalue()
    makers = {name: exchanged(member) for name, member in members.items()}
    names = tuple(members)

    def make(rng: object) -> bytes:
        from random import Random

        assert isinstance(rng, Random)
        if rng.random() < 0.4:
            return whole(rng)
        hit = names[int(rng.random() * len(names))]
        method = zipfile.ZIP_DEFLATED if rng.random() < 0.3 else zipfile.ZIP_STORED
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", method) as packed:
            for name in names:
                packed.writestr(name + ".npy", makers[name](rng) if name == hit else members[name])
        return out.getvalue()

    return make


def _reading(path: Path, read: Callable[[], object], *makers: Maker) -> Parser:
    """The parser of a file at one path."""

    def call(data: bytes) -> None:
        path.write_bytes(data)
        read()

    return Parser(call, makers)


def _pictures() -> np.ndarray:
    return np.arange(2 * SIDE * SIDE * 3, dtype=np.uint8).reshape(2, SIDE, SIDE, 3)


def _photographs_npz(folder: Path) -> Parser:
    path = folder / "public.npz"
    names = np.array(["a", "b"])
    maker = npz_maker(images=_pictures(), names=names, laterality=np.array([True, False]))
    return _reading(path, lambda: read_source(path, SIDE, 3), maker)


def _people_npz(folder: Path) -> Parser:
    path = folder / "people.npz"
    arrays = {"images": _pictures(), "names": np.array(["a", "b"]), "labels": np.array(["x", "y"])}
    return _reading(path, lambda: _read_arrays(path), npz_maker(**arrays))


def _pairs_npz(folder: Path) -> Parser:
    path = folder / "pairs.npz"
    images = _pictures()[..., 0]
    maker = npz_maker(images=images, masks=np.zeros_like(images), patient_of=np.arange(2))
    return _reading(path, lambda: read_pairs(path, SIDE), maker)


def _photographs(folder: Path) -> Parser:
    """A folder of public photographs with its table."""
    (folder / "data").mkdir()
    pixels = _pictures()[0]
    (folder / "data" / "b.png").write_bytes(png(pixels))
    seeds = (png(pixels), jpeg(np.zeros((8, 8, 3), np.uint8)))

    def call(data: bytes) -> None:
        name = "labels.csv" if data[:1] == b"\1" else "a.png"
        (folder / "data" / name).write_bytes(data[1:])
        if name == "labels.csv":
            (folder / "data" / "a.png").write_bytes(seeds[0])
            read_names(folder / "data" / name)
            _read_table(folder / "data")
        read_source(folder / "data", SIDE, 3)

    pictures = (png_maker(seeds[0]), damaged(*seeds, b"BM\0\0\0\0", b"II*\0\x08\0\0\0"))
    table = exchanged(b"file,laterality,label\na.png,L,x\nb.png,R,y\n", odd=(b'"a\nb"', b"\x00"))
    pair = one_of(pictures[0], table)
    return Parser(call, (pair, one_of(pictures[1])))


def _pairs(folder: Path) -> Parser:
    """A folder of public pairs with its table."""
    for name in ("images", "masks"):
        (folder / "data" / name).mkdir(parents=True)
        for file in ("a.png", "b.png"):
            (folder / "data" / name / file).write_bytes(png(np.zeros((SIDE, SIDE), np.uint8)))
    table = b"file,patient\na.png,p\nb.png,q\n"
    good = (png(np.zeros((SIDE, SIDE), np.uint8)), table)
    places = ("images/a.png", "patients.csv")
    (folder / "data" / "patients.csv").write_bytes(table)

    def call(data: bytes) -> None:
        number = min(data[0] if data else 0, 1)
        (folder / "data" / places[number]).write_bytes(data[1:])
        try:
            read_pairs(folder / "data", SIDE)
        finally:
            (folder / "data" / places[number]).write_bytes(good[number])

    makers = (png_maker(good[0]), exchanged(table, odd=(b"../a.png", b"\x00")))
    return Parser(call, (one_of(*makers), one_of(damaged(good[0]), damaged(table))))


def _release_pairs(folder: Path) -> Parser:
    """The pairs of a verified release, as a site reads them."""
    (folder / "data" / "train" / "vessels").mkdir(parents=True)
    (folder / "masks").mkdir()
    image = png(np.zeros((SIDE, SIDE), np.uint8))
    table = b"file_name,mask\ndata/train/vessels/00000.png,masks/00000.png\n"
    places = ("data/train/vessels/00000.png", "metadata.csv")
    good = (image, table)
    for place, content in zip((*places, "masks/00000.png"), (*good, image), strict=True):
        (folder / place).write_bytes(content)

    def call(data: bytes) -> None:
        number = min(data[0] if data else 0, 1)
        (folder / places[number]).write_bytes(data[1:])
        try:
            read_release_pairs(folder, SIDE)
        finally:
            (folder / places[number]).write_bytes(good[number])

    makers = (png_maker(image), exchanged(table, odd=(b"\x00", b"../x.png")))
    return Parser(call, (one_of(*makers), one_of(damaged(image), damaged(table))))


def _drawn_files(folder: Path) -> Parser:
    """What `kohort sample` reads of a release: a model's card, and the privacy statement."""
    (folder / "models").mkdir()
    card = {
        "format": "kohort-model/1", "family": "gan", "architecture": {"width": 8, "latent": 16},
        "tensors": "generator.", "opset": 18, "inputs": [{"name": "z", "shape": [16]}],
        "temperature": 1.0, "planes": 3, "size_px": 32, "mask": False, "label": "unlabelled",
    }  # fmt: skip
    statement = privacy_statement(small_study(), {}, ACCOUNT)
    small = {key: statement[key] for key in ("format", "claims")}
    small["updates"] = {"consortium": statement["updates"]["consortium"]}
    good = (json.dumps(card).encode(), json.dumps(small).encode())
    places = ("models/gan.json", STATEMENT)
    manifest = Manifest.model_construct(epsilon=8.0, delta=1e-5)
    (folder / "models/gan.onnx").write_bytes(b"graph")
    for place, content in zip(places, good, strict=True):
        (folder / place).write_bytes(content)

    def call(data: bytes) -> None:
        number = min(data[0] if data else 0, 1)
        (folder / places[number]).write_bytes(data[1:])
        names = (*places, "models/gan.onnx")
        sums = layout.sums_text({name: file_digest(folder / name) for name in names})
        (folder / "SHA256SUMS").write_text(sums)
        try:
            if number:
                claim_of_drawn(folder, manifest)
            else:
                read_model(folder)
        finally:
            (folder / places[number]).write_bytes(good[number])

    texts = tuple(revalued(text) for text in good)
    return Parser(call, (one_of(*texts), one_of(*(exchanged(text) for text in good))))


VERIFYING = (
    "kohort.verification:verify",
    "kohort.verification:_check_forms",
    "kohort.verification:_check_statement",
    "kohort.verification:read_rows",
    "kohort.verification:read_signed_sums",
    "kohort.verification:_read_signers",
)
SOURCES = ("server.public_data.images:read_npz", "server.public_data.images:arrays_of")
TARGETS = (
    Target("release", VERIFYING, _release, few=240),
    Target(
        "released-pictures",
        ("kohort.picture:read_picture", "kohort.picture:decode"),
        _released_pictures,
        few=500,
    ),
    Target("released-tables", ("kohort.table:read_table",), _released_tables),
    Target(
        "release-texts",
        ("kohort.manifest:read_manifest", "kohort.layout:parse_sums"),
        _release_texts,
    ),
    Target(
        "release-sign-offs",
        ("kohort.sign_off:read_sign_offs", "kohort.verdict:judge"),
        _sign_offs,
    ),
    Target(
        "release-models",
        (
            "kohort.models:read_model",
            "kohort.models:read_signed",
            "kohort.models:_read_card",
            "kohort.drawn_claim:_read_statement",
        ),
        _drawn_files,
        few=600,
    ),
    Target(
        "catalogue",
        ("kohort.catalogue:open_catalogue", "kohort.seen:_read"),
        _catalogue,
    ),
    Target("release-citation", ("kohort.citing:authors", "kohort.citing:_read"), _citation),
    Target("release-trust", ("kohort.trust:_read_file",), _trust),
    Target("site-statement", ("kohort.statements:open_statement",), _statement),
    Target(
        "checkpoints",
        ("common.study.shapes:starting_weights", "common.models.basis:load"),
        _weights,
    ),
    Target("photographs-npz", SOURCES, _photographs_npz, few=500),
    Target("people-npz", ("server.evaluate.people:_read_arrays",), _people_npz, few=500),
    Target("pairs-npz", ("server.public_data.pairs:_read_npz",), _pairs_npz, few=500),
    Target(
        "photographs",
        (
            "server.public_data.images:_read_folder",
            "server.public_data.images:_read_sides",
            "server.public_data.images:_decode",
            "server.public_data.images:read_names",
            "server.evaluate.people:_read_table",
        ),
        _photographs,
        memory_mib=1024,  # pictures of up to 64 million pixels
        few=600,
    ),
    Target(
        "pairs",
        ("server.public_data.pairs:_read_table", "server.public_data.pairs:_read_picture"),
        _pairs,
        few=600,
    ),
    Target(
        "release-pairs",
        ("client.child.utility:read_pairs", "client.child.utility:_picture"),
        _release_pairs,
        few=600,
    ),
)
