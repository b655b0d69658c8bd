"""Targets: what lies in a hospital's folder: DICOM, NIfTI, photographs, labels, and the child."""

from __future__ import annotations

import copy
import gzip
import io
import itertools
import json
import os
import time
import zipfile
import zlib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from imagecodecs import jpeg8_encode
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from client.dicomweb.connection import parse_answer
from client.dicomweb.multipart import LeftOut, read_part
from client.dicomweb.query import STUDY, read_studies, uid_of
from client.ingest.archive import open_source
from client.ingest.decisions import Stated, read_decisions, resolve_decisions
from client.ingest.decode import Conversation, Decoder
from client.ingest.decode_child import read_file
from client.ingest.glance import glance
from client.ingest.labels import Wording, read_labels
from client.ingest.masks import is_nifti, lies_on, read_nifti, read_segmentation
from client.ingest.quarantine import Unusable
from client.ingest.request import Caps, Limits, Settings, VolumeFiles, Wanted
from client.ingest.scanning import scan
from client.ingest.sealed import SealedFolder
from client.ingest.series import Grid
from client.ingest.stack import read_stack
from client.ingest.volumes import patches, read_volume
from common.errors import ConfigurationError
from tests import phantoms, volume_phantoms
from tests.fuzz.harness import Parser, Target
from tests.fuzz.mutation import Maker, damaged, exchanged, one_of, revalued, wrapped
from tests.fuzz.release_targets import jpeg, png, png_maker

SIDE = 16
PIXEL_CAP = 1 << 20
WANTED = Wanted(("CHEST",), ("PA", "AP"), ("FOR PRESENTATION",))
SETTINGS = Settings(
    size_px=SIDE,
    channels=3,
    modalities=("OP", "MR"),
    window=None,
    max_file_bytes=1 << 20,
    max_pixel_bytes=PIXEL_CAP,
    max_volume_bytes=PIXEL_CAP,
    memory_bytes=Limits().decode_memory_bytes,
    patches=2,
    timeout_s=2.0,
    volume_timeout_s=2.0,
    wanted=WANTED,
)
# any picture has a place in a study of radiographs; fundus photographs need a field of view
GREY = replace(SETTINGS, channels=1, modalities=("CR", "MR"))
CAPS = Caps(SIDE, ("MR",), None, 1 << 20, PIXEL_CAP, PIXEL_CAP, WANTED)
SHAPE = (4, SIDE, SIDE)
REFUSED = (Unusable,)


def _bytes_of(dataset: Any, folder: Path) -> bytes:
    """A data set as a file's bytes, without the long strings that phantoms carry."""
    path = phantoms.save(dataset, folder / "seed.dcm")
    return path.read_bytes()


def dicom_seeds(folder: Path) -> list[bytes]:
    """Small images: grey and colour, several transfer syntaxes."""
    grey = phantoms.grey(1, 8)
    colour = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    seeds = []
    for syntax in (None, ImplicitVRLittleEndian, ExplicitVRBigEndian):
        head = phantoms.header("CR") if syntax is None else phantoms.header("CR", syntax=syntax)
        dataset = phantoms.with_pixels(head, grey, "MONOCHROME2", 12)
        dataset.RescaleSlope, dataset.RescaleIntercept = 2, -5
        dataset.WindowCenter, dataset.WindowWidth = 100, 50
        seeds.append(_bytes_of(dataset, folder))
    seeds += [_bytes_of(dataset, folder) for dataset in _with_tables(grey)]
    dataset = phantoms.with_pixels(phantoms.header("CR"), colour, "RGB")
    seeds.append(_bytes_of(dataset, folder))
    seeds.append(_bytes_of(phantoms.compressed(dataset, RLELossless), folder))
    dataset = phantoms.with_pixels(phantoms.header("CR"), grey[..., :8], "MONOCHROME2", 12)
    frame = jpeg(colour)
    colourful = phantoms.with_pixels(phantoms.header("CR"), colour, "RGB")
    seeds.append(
        _bytes_of(phantoms.encapsulated(colourful, frame, JPEGBaseline8Bit, "YBR_FULL_422"), folder)
    )
    seeds += [_bytes_of(dataset, folder) for dataset in _with_codecs()]
    return seeds


def _with_codecs() -> list[Any]:
    """A small image of each codec that has a file of its own kind."""
    deep = phantoms.grey(1, 64, bits=12)
    plain = phantoms.with_pixels(phantoms.header("MR"), deep, "MONOCHROME2", 12)
    made = [
        phantoms.compressed(copy.deepcopy(plain), syntax)
        for syntax in (RLELossless, JPEGLSLossless, JPEG2000Lossless)
    ]
    for syntax, lossless in ((JPEGLosslessSV1, True), (JPEGExtended12Bit, False)):
        frame = jpeg8_encode(deep, lossless=lossless, bitspersample=12)
        dataset = copy.deepcopy(plain)
        made.append(phantoms.encapsulated(dataset, frame, syntax, "MONOCHROME2"))
    return made


def _with_tables(grey: np.ndarray) -> list[Any]:
    """Images with a VOI LUT of bytes, and with a segmented palette."""
    shown = phantoms.with_pixels(phantoms.header("CR"), grey, "MONOCHROME2", 12)
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [64, 0, 8], bytes(range(64))
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "OW"
    shown.VOILUTSequence = Sequence([table])
    shown.PresentationLUTShape = "INVERSE"
    palette = phantoms.with_pixels(phantoms.header("CR"), grey, "PALETTE COLOR", 12)
    segments = np.array([0, 2, 0, 257, 1, 62, 9999, 2, 1, 0, 0], "<u2").tobytes()
    for colour in ("Red", "Green", "Blue"):
        name = f"{colour}PaletteColorLookupTable"
        palette.add_new(f"{name}Descriptor", "US", [66, 0, 16])
        palette.add_new(f"Segmented{name}Data", "OW", segments)
    return [shown, palette]


def deflated_maker(folder: Path) -> Maker:
    """Deflated data sets whose plain bytes are damaged; now and then one that inflates far."""
    dataset = phantoms.with_pixels(
        phantoms.header("CR", syntax=DeflatedExplicitVRLittleEndian),
        phantoms.grey(1, 8),
        "MONOCHROME2",
        12,
    )
    seed = _bytes_of(dataset, folder)
    start = 144 + int.from_bytes(seed[140:144], "little")
    plain = zlib.decompress(seed[start:], -zlib.MAX_WBITS)
    make = damaged(plain)

    def deflate(data: bytes) -> bytes:
        packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
        return seed[:start] + packer.compress(data) + packer.flush()

    bomb = deflate(bytes(4 * PIXEL_CAP))

    def made(rng: Random) -> bytes:
        return bomb if rng.random() < 0.005 else deflate(make(rng))

    return made


def _photograph(folder: Path) -> Parser:
    """One file as the decoding child reads it, in this process."""
    path = folder / "file"

    def call(data: bytes) -> None:
        path.write_bytes(data)
        read_file(str(path), GREY)

    seeds = dicom_seeds(folder)
    return Parser(call, (damaged(*seeds), damaged(*seeds), deflated_maker(folder)), REFUSED)


def _pictures(folder: Path) -> Parser:
    """PNG and JPEG files as the decoding child reads them."""
    path = folder / "file"

    def call(data: bytes) -> None:
        path.write_bytes(data)
        read_file(str(path), SETTINGS)

    pixels = phantoms.fundus(1, 16)
    pngs = [png(pixels), png(pixels[..., 0].astype(np.uint16) << 4), phantoms.hollow_png(70, 70)]
    pngs += [phantoms.hollow_png(60_000, 60_000), png(pixels[..., 0], optimize=True)]
    makers = (png_maker(*pngs), damaged(*pngs), damaged(jpeg(pixels), jpeg(pixels[..., 0])))
    return Parser(call, makers, REFUSED)


def still(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    """A picture in one of Pillow's formats."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def _stills(folder: Path) -> Parser:
    """The other formats of photographs, as the decoding child reads them."""
    path = folder / "file"

    def call(data: bytes) -> None:
        path.write_bytes(data)
        read_file(str(path), SETTINGS)

    colour = phantoms.fundus(1, 16)
    deep = colour[..., 0].astype(np.uint16) << 4
    turned = Image.Exif()
    turned[0x0112] = 6
    tiffs = [still(colour, "TIFF", exif=turned), still(deep, "TIFF")]
    tiffs += [still(colour, "TIFF", compression=name) for name in ("tiff_lzw", "jpeg")]
    tiffs += [still(colour[..., 0], "TIFF", compression="tiff_adobe_deflate", big_tiff=True)]
    others = [still(colour, "JPEG2000"), still(deep, "JPEG2000", no_jp2=True)]
    others += [still(colour, "WEBP", exif=turned.tobytes()), still(colour, "WEBP", lossless=True)]
    others += [still(colour, "BMP"), still(colour, "PNG", exif=turned)]
    return Parser(call, (damaged(*tiffs), damaged(*others)), REFUSED)


def _series() -> volume_phantoms.Series:
    """A series of four small slices."""
    return volume_phantoms.Series("P-1", volume_phantoms.image(1, SHAPE))


def _mask() -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:3, 4:9, 5:7] = 1
    return mask


def _scan(folder: Path) -> Parser:
    path = folder / "file"

    def call(data: bytes) -> None:
        path.write_bytes(data)
        scan(str(path), CAPS)

    series = _series()
    seeds = [_bytes_of(volume_phantoms.slice_of(series, 0), folder)]
    seeds.append(_bytes_of(volume_phantoms.segmentation(series, _mask()), folder))
    nifti = volume_phantoms.nifti(series, _mask()).to_bytes()
    return Parser(
        call, (damaged(*seeds), damaged(nifti[:400], gzip.compress(nifti[:400]))), REFUSED
    )


def _volume(folder: Path) -> Parser:
    """A series of which one slice is damaged, cut into patches."""
    series = _series()
    paths = volume_phantoms.write_series(folder / "series", series)
    mask = volume_phantoms.write_nifti(folder / "m.nii", volume_phantoms.nifti(series, _mask()))
    good = [path.read_bytes() for path in paths]

    def call(data: bytes) -> None:
        paths[1].write_bytes(data)
        volume = read_volume([str(path) for path in paths], ("nifti", str(mask)), CAPS)
        patches(volume, b"seed", 2, SIDE)

    return Parser(call, (damaged(good[1]), damaged(good[1], good[2])), REFUSED)


def _enhanced(folder: Path) -> Parser:
    """A damaged enhanced object of two echoes, scanned and cut into patches."""
    path = folder / "file"
    series = _series()
    mask = volume_phantoms.write_nifti(folder / "m.nii", volume_phantoms.nifti(series, _mask()))
    item = volume_phantoms.item
    groups = []
    for echo, depth in itertools.product((3.0, 9.0), range(SHAPE[0])):
        kind = item(FrameType=["ORIGINAL", "PRIMARY", "M"], ComplexImageComponent="MAGNITUDE")
        more = {"MRImageFrameTypeSequence": kind}
        more["MREchoSequence"] = item(EffectiveEchoTime=echo)
        more["PixelValueTransformationSequence"] = item(RescaleSlope=2, RescaleIntercept=-5)
        groups.append((depth, more))
    dataset = volume_phantoms.enhanced(series, groups)
    seeds = [_bytes_of(dataset, folder), _bytes_of(volume_phantoms.enhanced(series), folder)]

    def call(data: bytes) -> None:
        path.write_bytes(data)
        scan(str(path), CAPS)
        volume = read_volume([str(path)], ("nifti", str(mask)), CAPS)
        patches(volume, b"seed", 2, SIDE)

    return Parser(call, (damaged(*seeds),), REFUSED)


def grid_of(folder: Path) -> Grid:
    """The grid of the small series."""
    paths = volume_phantoms.write_series(folder / "series", _series())
    return read_stack([str(path) for path in paths], CAPS).grid


def _nifti(folder: Path) -> Parser:
    grid = grid_of(folder)
    import nibabel

    plain = [volume_phantoms.nifti(_series(), _mask()).to_bytes()]
    plain.append(volume_phantoms.nifti(_series(), _mask(), kind=nibabel.Nifti2Image).to_bytes())

    def call(data: bytes) -> None:
        file = io.BytesIO(data)
        if is_nifti(file):
            read_nifti(file, grid, PIXEL_CAP)

    heads = [seed[:560] for seed in plain]
    header = wrapped(damaged(*heads), lambda data: data + plain[0][len(data) :])
    packed = wrapped(damaged(*heads), lambda data: gzip.compress(data, 1))
    bomb = gzip.compress(plain[0][:352] + bytes(2 * PIXEL_CAP))

    def packed_or_bomb(rng: Random) -> bytes:
        return bomb if rng.random() < 0.002 else packed(rng)

    return Parser(call, (header, packed_or_bomb, damaged(*plain)), REFUSED)


def _segmentation(folder: Path) -> Parser:
    grid = grid_of(folder)
    seed = _bytes_of(volume_phantoms.segmentation(_series(), _mask()), folder)

    def call(data: bytes) -> None:
        lies_on(io.BytesIO(data), grid, PIXEL_CAP)
        read_segmentation(io.BytesIO(data), grid, PIXEL_CAP)

    return Parser(call, (damaged(seed),), REFUSED)


def _glance(folder: Path) -> Parser:
    """One file as the decoding child looks at it, in this process."""
    path = folder / "file"

    def call(data: bytes) -> None:
        path.write_bytes(data)
        glance(str(path), GREY)

    seeds = dicom_seeds(folder)
    return Parser(call, (damaged(*seeds), deflated_maker(folder)), REFUSED)


def _archive(folder: Path) -> Parser:
    """An archive that is unpacked: as it should be, with names that lead out, and by LZMA."""
    path = folder / "export.zip"
    out = folder / "cohort"
    seeds = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA):
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w", method) as archive:
            for name in ("a/b", "a\\c", "../d", "DICOMDIR"):
                archive.writestr(name, bytes(range(64)) * 4)
        seeds += [made.getvalue(), made.getvalue().replace(b"../d", b"ab/d")]

    def call(data: bytes) -> None:
        path.write_bytes(data)
        with open_source(path, out, Limits(max_file_bytes=1 << 20), skip=None) as opened:
            assert all(one.is_relative_to(folder) for one in opened.paths.values())

    return Parser(call, (damaged(*seeds),))


def _sealed(folder: Path) -> Parser:
    """A sealed file: of an empty image, and of one."""
    seeds = []
    made = SealedFolder.make(folder / "made", bytes(32))
    for name, data in (("1.2/3", b""), ("1.2/3", bytes(range(64)))):
        made.add(name, [data])
        (sealed,) = made.files(9).values()
        seeds.append(sealed.path.read_bytes())
    path = sealed.path

    def call(data: bytes) -> None:
        path.write_bytes(data)
        for number, one in enumerate(made.files(9).values()):
            out = folder / str(number)
            out.unlink(missing_ok=True)
            made.unseal(one, out)

    return Parser(call, (damaged(*seeds),))


def _dicomweb(folder: Path) -> Parser:
    """An answer of a DICOMweb server: as one of a query, and as an image in pieces of any size."""
    path = folder / "studies.txt"
    head = b"--edge\r\nContent-Type: application/dicom\r\n\r\n"
    seeds = (
        b'[{"0020000D": {"vr": "UI", "Value": ["1.2.3"]}, "00080060": {"Value": ["DX"]}}]',
        b"\x05" + head + bytes(range(64)) + b"\r\n--edge--\r\n",
        b"\x40preamble\r\n" + head + b"\r\n--edg\r\n--edge\r\n\r\n--edge--",
    )
    kinds = ('multipart/related; boundary="edge"', "multipart/related; boundary=edge")

    def call(data: bytes) -> None:
        step = 1 + data[0] if data else 1
        blocks = [data[place : place + step] for place in range(1, len(data), step)]
        for kind in (*kinds, data[:64].decode("latin-1")):
            try:
                list(read_part(kind, blocks))
            except LeftOut:
                continue
        path.write_bytes(data)
        with suppress(ConfigurationError):
            read_studies(path)
        for facts in parse_answer(data):
            uid_of(facts, STUDY)

    return Parser(call, (damaged(*seeds), exchanged(*seeds, odd=(b"--edge", b"[", b"{", b"\r\n"))))


def _labels(folder: Path) -> Parser:
    path = folder / "labels.csv"
    seeds = (
        b"file,patient,label,laterality\na/b.png,P-1,none,L\n,P-2,severe,OD\nc.png,P-1,none,\n",
        b"\xef\xbb\xbfpatient;label\nP-1;none\n",
        b"file,patient,label,mask\na.dcm,P-1,none,m.nii.gz\n",
        b"sep=|\r\nDatei|Patienten-ID|Befund|Seite|\r\nA\\B.PNG|P-1|ohne|links|\r\n",
        "Datei\tPatienten-ID\tBefund\n/x/C.png\t01\tsevere\n".encode("utf-16"),
    )
    columns = {"Datei": "file", "Patienten-ID": "patient", "Befund": "label"}
    wording = Wording({}, {"ohne": "none"})
    renamed = Wording(columns, wording.values)
    declared = ("none", "severe")
    files = ("a/b.png", "c.png", "d/c.PNG")

    def call(data: bytes) -> None:
        path.write_bytes(data)
        words = renamed if b"Befund" in data or b"B\0e\0f" in data else wording
        found = read_labels(path, declared, files, 1 << 20, masks=True, wording=words)
        list(found.match.lines())
        for name in (*found.by_file, "a/b.png"):
            found.index(found.row_of_files([name]))
        for patient in found.by_patient:
            found.row_of_patient(patient, 1)

    odd = (b'"a\nb"', b'"', b"\x00", b";", b",,,,", b"label", b"patient", b"a" * 140_000)
    return Parser(call, (exchanged(*seeds, odd=odd), damaged(*seeds)), REFUSED)


class _Child:
    """Stands for the decoding child: its answer lies in a pipe."""

    def __init__(self, answer: bytes) -> None:
        reading, writing = os.pipe()
        os.write(writing, answer[:60_000])
        os.close(writing)
        self.stdout = os.fdopen(reading, "rb", buffering=0)
        self.stdin = io.BytesIO()


def _answers(folder: Path) -> Parser:
    """What a child answers that hostile bytes have taken over."""
    decoder = Decoder(SETTINGS)
    facts = {"digest": "0" * 64, "is_dicom": True, "patient_id": "P", "issuer": "", "study": ""}
    photograph = json.dumps(facts | {"laterality": 1, "silent": ["view"]}).encode()
    scanned = json.dumps({"kind": "slice", "content": "c", "patient_id": "p"}).encode()
    facts_of_cut = {"digest": "0" * 64, "slices": 1, "refusal": None, "codes": ["blank-image"]}
    cut = json.dumps(facts_of_cut).encode()
    refusal = json.dumps({"reason": "undecodable", "at": 3}).encode()
    files = VolumeFiles((Path("a"), Path("b")), None)

    def call(data: bytes) -> None:
        child = _Child(data[1:])
        talk = Conversation(child, time.monotonic() + 5)  # type: ignore[arg-type]
        decoder._running = lambda: child  # type: ignore[assignment, method-assign, return-value]
        readers = (
            lambda _: decoder._photograph(talk),
            lambda _: decoder._scan(talk),
            lambda _: decoder._cut(talk, files, lambda digest: digest),
            lambda _: decoder._glance(talk),
        )
        with child.stdout:
            decoder._ask({}, readers[(data[0] if data else 0) % 4], 1.0)

    def framed(text: bytes) -> bytes:
        return len(text).to_bytes(4, "big") + text + bytes(5000)

    makers = (
        wrapped(revalued(photograph, refusal), framed),
        wrapped(revalued(scanned, refusal), framed),
        wrapped(revalued(cut, refusal), framed),
    )
    return Parser(
        call,
        (one_of(*makers), one_of(damaged(framed(photograph)), exchanged(framed(scanned)))),
        REFUSED,
    )


def _decisions(folder: Path) -> Parser:
    path = folder / "persons.csv"
    seeds = (
        b"first,second,decision\n0012345,12345,different\nfile:a/b.png,P-1,same\n",
        b"\xef\xbb\xbfnote;decision;first;second\nM\xc3\xbcller;same;77^^^WEST;77^^^EAST\n",
    )
    stated = Stated()
    stated.add("WEST", "77", "a")
    stated.add("", "P-1", "b")
    stated.add_files(["a/b.png"], ["c"])

    def call(data: bytes) -> None:
        path.write_bytes(data)
        resolve_decisions(path, read_decisions(path), stated, bytes(32), {"a"})

    odd = (b'"a\nb"', b'"', b"\x00", b";", b"\t", b",,,,", b"^^^", b"file:", b"a" * 140_000)
    return Parser(call, (exchanged(*seeds, odd=odd), damaged(*seeds)))


PIXELS = ("client.ingest.decode_child:read_file", "client.ingest.dicom:read_dicom")
TARGETS = (
    Target("dicom", (*PIXELS, "client.ingest.dicom_header:read_header"), _photograph, 96, few=400),
    Target("png-jpeg", ("client.ingest.stills",), _pictures, 96, few=500),
    Target("stills", ("client.ingest.stills",), _stills, 96, few=300),
    Target("volume-scan", ("client.ingest.scanning:scan",), _scan, few=400),
    Target("volume", ("client.ingest.volumes:read_volume",), _volume, few=60),
    Target("volume-enhanced", ("client.ingest.frames:frames_of",), _enhanced, few=60),
    Target("nifti", ("client.ingest.masks:read_nifti",), _nifti, few=600),
    Target("segmentation", ("client.ingest.masks:_read_bits",), _segmentation, few=150),
    Target("glance", ("client.ingest.glance:glance",), _glance, few=200),
    Target("archive", ("client.ingest.archive:_read_archive",), _archive, few=300),
    Target("sealed", ("client.ingest.sealed:SealedFolder",), _sealed, few=300),
    Target(
        "dicomweb",
        (
            "client.dicomweb.connection:parse_answer",
            "client.dicomweb.multipart:read_part",
            "client.dicomweb.query:read_studies",
        ),
        _dicomweb,
        few=400,
    ),
    Target("labels", ("client.ingest.table:open_table",), _labels),
    Target("persons-csv", ("client.ingest.decisions:_decode",), _decisions),
    Target("child-answers", ("client.ingest.decode:Conversation.facts",), _answers),
)
