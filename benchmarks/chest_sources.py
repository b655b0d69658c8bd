"""Public chest films of several sources, as a flow's training takes them.

    python -m benchmarks.chest_sources --data FOLDER --size 64 --out films.npz [--without nih]

In: chest_nih_64, chest_hannover_128, cxr_nih_covid_64 and _128, pneumoniamnist_28 (.npz).
Out: an .npz with `images`, `weights` and `names`; each source has its share of the weights.
Guarantees: an NIH patient of chest_split's members or held-out people is nowhere in it, in either
file. Nobody under 18 but the children of PneumoniaMNIST, whose share is small. No COVID-19 image of
unknown licence. In a source a patient counts once, however many films there are.
"""

from __future__ import annotations

import argparse
import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.chest_split import role_of
from common.arrays import Floats, Images
from common.storage.files import atomic_write, read_capped
from server.demo.hospitals import as_ingested

CAP_BYTES = 1 << 28
ADULT = 18  # years
SHARES = {"nih": 0.55, "hannover": 0.2, "children": 0.25}  # at 64 px children get a third of theirs
LARGE_PX = 64
CHILDREN_LARGE = 0.08


def arrays(file: Path) -> dict[str, NDArray[Any]]:
    """All arrays of an .npz without pickles."""
    with np.load(io.BytesIO(read_capped(file, CAP_BYTES)), allow_pickle=False) as data:
        return {name: data[name] for name in data.files}


def shrink(images: NDArray[np.uint8], size_px: int) -> Images:
    """Return uint8 [N, size_px, size_px, 1] of [N, H, W], by antialiased bicubic interpolation."""
    shape = (size_px, size_px)
    small = [Image.fromarray(x).resize(shape, Image.Resampling.BICUBIC) for x in images]
    return np.stack([np.asarray(x) for x in small])[..., None]


def nih(data: Path, size_px: int) -> tuple[Images, list[str]]:
    """Adults of both NIH files whose role is public, and their patients."""
    first = arrays(data / "chest_nih_64.npz")
    name = "cxr_nih_covid_128.npz" if size_px > LARGE_PX else "cxr_nih_covid_64.npz"
    second = arrays(data / name)
    ours = second["labels"] < 2
    roles = role_of(second["patient"][ours])
    public = np.array([roles.get(str(p)) == "public" for p in second["patient"]])
    keep = ours & public & (second["age"] >= ADULT)
    numbers = [str(p).removeprefix("nih:") for p in first["patient"]]
    known = np.array([roles.get(p, "public") == "public" for p in numbers])
    images = [shrink(first["images"][known], size_px), shrink(second["images"][keep], size_px)]
    people = [p for p, kept in zip(numbers, known, strict=True) if kept]
    return np.concatenate(images), people + [str(p) for p in second["patient"][keep]]


def hannover(data: Path, size_px: int) -> tuple[Images, list[str]]:
    """Every film of the Hannover set, and its patients."""
    found = arrays(data / "chest_hannover_128.npz")
    return shrink(found["images"], size_px), [str(p) for p in found["patient"]]


def children(data: Path, size_px: int) -> tuple[Images, list[str]]:
    """Two thirds of PneumoniaMNIST's training split, as ingest makes them; every film a patient."""
    found = arrays(data / "pneumoniamnist_28.npz")["train_images"]
    public = np.flatnonzero(np.arange(len(found)) % 3 != 0)
    images = np.stack([as_ingested(found[i], size_px) for i in public])
    return images, [str(i) for i in public]


SOURCES: dict[str, Callable[[Path, int], tuple[Images, list[str]]]] = {
    "nih": nih,
    "hannover": hannover,
    "children": children,
}


def weigh(people: list[str]) -> Floats:
    """Return a weight for each film, [N]; a patient's films share 1, and all weigh 1 together."""
    films = Counter(people)
    weights = np.array([1 / films[person] for person in people])
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def gather(
    data: Path, size_px: int, without: tuple[str, ...] = ()
) -> tuple[Images, Floats, list[str]]:
    """Return films uint8 [N, S, S, 1], their weights [N] and names `source:patient`."""
    images = []
    weights = []
    names = []
    for source, read in SOURCES.items():
        if source in without:
            continue
        found, people = read(data, size_px)
        share = SHARES[source]
        if source == "children" and size_px >= LARGE_PX:
            share = CHILDREN_LARGE
        images.append(found)
        weights.append(share * weigh(people))
        names += [f"{source}:{person}" for person in people]
    every = np.concatenate(weights)
    return np.concatenate(images), np.asarray(every / every.sum()), names


def main() -> None:
    """Write the films as an .npz that the flow's pretraining reads."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--without", choices=list(SOURCES), action="append", default=[])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    images, weights, names = gather(options.data, options.size, tuple(options.without))
    stream = io.BytesIO()
    np.savez_compressed(stream, images=images, weights=weights, names=np.array(names))
    atomic_write(options.out, stream.getvalue())
    print(f"{options.out}: {Counter(name.split(':')[0] for name in names)}")


if __name__ == "__main__":
    main()
