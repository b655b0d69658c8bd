"""The memory of a child that decodes, with text in pixels sought and without.

    python -m benchmarks.child_memory --cases FOLDER [--side 8000] [--json [FILE]]

FOLDER holds DICOM files of every kind. The large images are grey squares and grain over soft
shapes, of 16 bits where the format has them: so many strokes that the whole picture is searched,
for a study of 512 px. Each kind is decoded by a child of its own, as `ingest` does.
Peak: the largest resident memory; address space: what the kernel caps. Both from /proc.
Not covered: volumes; children that end with a refusal (mutated_files.py has those).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # opacus has a package benchmarks too

import numpy as np
from imagecodecs import jpeg8_encode, jpegls_encode
from numpy.typing import NDArray
from PIL import Image
from pydicom.uid import JPEGLosslessSV1, JPEGLSLossless

from benchmarks import report
from client.ingest.decode import Decoder
from client.ingest.quarantine import Unusable
from client.ingest.request import Choices, Limits, Settings, child_bytes
from tests import phantoms

MOST_MIB = 1024
LIST = ("DX", "CR", "CT", "MR", "US", "OT", "NM", "SC", "XA", "MG")


def settings(size_px: int, *, find_text: bool) -> Settings:
    """What a study asks of a child, with the limits of ingest."""
    limits = Limits()
    choices = Choices(find_text=find_text, accept_derived=True)
    return Settings(
        size_px=size_px,
        channels=1,
        modalities=LIST,
        window=None,
        max_file_bytes=limits.max_file_bytes,
        max_pixel_bytes=limits.max_pixel_bytes,
        memory_bytes=child_bytes(choices),
        timeout_s=300.0,
        choices=choices,
    )


def draw(side: int) -> NDArray[np.uint16]:
    """A large grey image of 16 bits."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 60000, (16, 16)).astype(np.float32)
    soft = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))
    squares = rng.integers(0, 20000, (side // 16, side // 16)).astype(np.float32)
    strokes = np.asarray(Image.fromarray(squares).resize((side, side), Image.Resampling.NEAREST))
    image = soft.clip(0, 40000) + strokes + rng.integers(0, 400, (side, side))
    return np.asarray(image, dtype=np.uint16)


def write_large(folder: Path, side: int) -> Iterator[tuple[str, Path]]:
    """A file of each kind; each is gone when the next is asked for."""
    deep = draw(side)
    shallow = (deep >> 8).astype(np.uint8)
    path = folder / "large"
    Image.fromarray(deep).save(path, "PNG", compress_level=1)
    yield "PNG, 16 bits", path
    Image.fromarray(shallow).save(path, "JPEG")
    yield "JPEG, 8 bits", path
    plain = phantoms.with_pixels(phantoms.header("DX"), deep, "MONOCHROME2", 16)
    yield "DX, 16 bits", phantoms.save(plain, path)
    for name, frame, syntax in (
        ("DX, lossless JPEG", bytes(jpeg8_encode(deep, lossless=True)), JPEGLosslessSV1),
        ("DX, JPEG-LS", bytes(jpegls_encode(deep)), JPEGLSLossless),
    ):
        dataset = phantoms.encapsulated(plain, frame, syntax, "MONOCHROME2")
        yield name, phantoms.save(dataset, path)


def decode(paths: list[Path], size_px: int, *, find_text: bool) -> dict[str, Any]:
    """Peaks of the children that decode some files, in MiB, and how many files were read."""
    peaks = [0, 0]
    read = 0
    decoder = Decoder(settings(size_px, find_text=find_text))
    for path in paths:
        try:
            decoder.decode(path)
            read += 1
        except Unusable:
            pass
        peaks = [max(pair) for pair in zip(peaks, memory_of(decoder), strict=True)]
    decoder.close()
    return {"resident": peaks[0], "address": peaks[1], "read": read, "files": len(paths)}


def memory_of(decoder: Decoder) -> list[int]:
    """The largest resident memory and address space of a child so far, in MiB; 0 if it ended."""
    child = decoder._child
    if child is None or child.poll() is not None:
        return [0, 0]
    lines = Path(f"/proc/{child.pid}/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines)
    return [int(values[key].split()[0]) >> 10 for key in ("VmHWM", "VmPeak")]


def measure(cases: Path, side: int) -> dict[str, Any]:
    """Peaks of each kind, with text sought and without."""
    files = sorted(path for path in cases.rglob("*") if path.is_file() and path.suffix != ".csv")
    found: dict[str, Any] = {}
    for name, size_px, paths in _kinds(files, side):
        for words, find_text in (("plain", False), ("text", True)):
            found.setdefault(name, {})[words] = decode(paths, size_px, find_text=find_text)
        print(name, found[name], file=sys.stderr)
    return found


def _kinds(files: list[Path], side: int) -> Iterator[tuple[str, int, list[Path]]]:
    yield f"{len(files)} DICOM cases", 64, files
    with tempfile.TemporaryDirectory() as scratch:
        for name, path in write_large(Path(scratch), side):
            yield f"{side} x {side}: {name}", 512, [path]


def tables(found: dict[str, Any]) -> list[report.Table]:
    """One row a kind."""
    rows = []
    for name, kinds in found.items():
        plain, text = kinds["plain"], kinds["text"]
        sizes = [str(one[key]) for one in (plain, text) for key in ("resident", "address")]
        rows.append((name, f"{text['read']} of {text['files']}", *sizes))
    columns = (
        "files", "read", "resident", "address space", "text sought: resident", "address space",
    )  # fmt: skip
    return [report.Table("MiB", columns, tuple(rows))]


def targets(found: dict[str, Any]) -> list[report.Target]:
    """No child takes more than its cap, in memory that is there."""
    most = max(one["resident"] for kinds in found.values() for one in kinds.values())
    return [report.Target(f"peak of any child at most {MOST_MIB} MiB", f"{most}", most <= MOST_MIB)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    report.add_json(parser)
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--side", type=int, default=8000)
    options = parser.parse_args()
    report.say_conditions()
    found = measure(options.cases, options.side)
    report.give(options.json, "child_memory", tables(found), found, targets(found))


if __name__ == "__main__":
    main()
