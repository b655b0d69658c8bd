"""What the two rules about pixels let in: text in films, and pictures without colour.

    python -m benchmarks.what_enters --data FOLDER [--json [FILE]] [--most 150] [--repeats 24]

Text: chest films of public sets at 1,024 px, with an invented name, date or number drawn into them,
by height of its letters as a part of the side and by grey level. False alarms: pictures of public
sets as they are, enlarged to 1,024 px. Colour: the palest and the reddest photograph of each public
set, beside grey and one-plane versions of the same, after JPEG.
The folder holds the sets as .npz, uint8 `images`. Processor time, one thread.
"""

import argparse
import contextlib
import io
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # opacus has a package benchmarks too

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks import report
from client.ingest.colour import COLOUR_SHARE, PLANE_SHARE, shares_of
from client.ingest.decode_child import check_text
from client.ingest.images import Framer
from client.ingest.quarantine import Unusable
from common.arrays import Pixels

FILM_PX = 1024
LARGE_PX = 2048  # whose search is timed
TIMED = 10  # pictures of a set
FILMS = "chest_hannover_128"
CHEST = ("chest_hannover_128", "cxr_nih_covid_128", "chest_tb_128", "chest_cxnet_128")
FUNDUS = (
    "idrid_128",
    "fundus_palm_128",
    "fundus_odir_128",
    "fundus_eyepacs_128",
    "fundus_csdi_128",
    "fundus_diaretdb1_128",
)
HAVE_TEXT = "have handwriting, figure letters and days of illness in them, as their makers say"
TEXTS = ("MUELLER, ANNA", "12.03.1967", "ID 0048213", "Smith John M", "ACC 99412", "R. Okafor")
PARTS = (100, 64, 48, 32, 20)
LEVELS = {"white": 255, "light grey": 180, "black": 0}
QUALITY = 30


def load(folder: Path, name: str, most: int) -> list[Pixels]:
    """At most so many pictures of a set, spread over it, uint8 [H, W, 1 or 3]."""
    images = np.load(folder / f"{name}.npz")["images"]
    found = [images[at] for at in range(0, len(images), max(1, -(-len(images) // most)))]
    return [image if image.ndim == 3 else image[..., None] for image in found]


def enlarge(picture: Pixels, side_px: int = FILM_PX) -> Pixels:
    """A picture at the size of a film."""
    channels = picture.shape[2]
    image = Image.fromarray(picture.squeeze() if channels == 1 else picture)
    larger = image.resize((side_px, side_px), Image.Resampling.BICUBIC)
    return np.asarray(larger).reshape(side_px, side_px, channels)


def is_text(picture: Pixels, size_px: int = 64) -> bool:
    """Whether a picture is refused for its text, as the decoding child does it."""
    channels = picture.shape[2]
    framer = Framer(picture, channels, field_of_view=channels == 3)
    try:
        framer.frame(size_px)
        check_text(framer, size_px)
    except Unusable:
        return True
    return False


def with_text(film: Pixels, at: int, part: int, level: int) -> Pixels:
    """A film with a text whose capitals are a `part`-th of the side high."""
    random = np.random.default_rng(at)
    image = Image.fromarray(film[..., 0])
    font = ImageFont.load_default(size=1.4 * FILM_PX / part)
    down = 0.5 if level == 0 else random.choice([0.02, 0.5, 0.9])
    place = (random.uniform(0.02, 0.5) * FILM_PX, down * FILM_PX)
    ImageDraw.Draw(image).text(place, TEXTS[at % len(TEXTS)], fill=level, font=font)
    return np.asarray(image)[..., None]


def recall(films: list[Pixels], repeats: int) -> Iterator[dict[str, Any]]:
    """How many of the films with text are refused, by letter height and grey level."""
    for part in PARTS:
        row: dict[str, Any] = {"part": part}
        for name, level in LEVELS.items():
            drawn = (with_text(films[at % len(films)], at, part, level) for at in range(repeats))
            row[name] = sum(map(is_text, drawn))
        yield row


def alarms(folder: Path, most: int) -> Iterator[dict[str, Any]]:
    """How many pictures of each set are refused as they are."""
    for name in (*CHEST, *FUNDUS):
        pictures = [enlarge(picture) for picture in load(folder, name, most)]
        yield {"set": name, "pictures": len(pictures), "refused": sum(map(is_text, pictures))}


def colours(folder: Path) -> Iterator[dict[str, Any]]:
    """The smallest shares of each set, and the largest of its grey and one-plane versions."""
    for name in FUNDUS:
        pictures = load(folder, name, 10_000)
        real = [shares_of(picture) for picture in pictures]
        grey = [shares_of(compress(np.repeat(one[..., 1:2], 3, axis=2))) for one in pictures]
        single = [shares_of(compress(one * np.array([0, 1, 0], np.uint8))) for one in pictures]
        yield {
            "set": name,
            "pictures": len(pictures),
            "colour": round(min(shares[0] for shares in real), 3),
            "plane": round(min(shares[1] for shares in real), 3),
            "grey colour": round(max(shares[0] for shares in grey), 4),
            "single plane": round(max(shares[1] for shares in single), 4),
        }


def compress(picture: Pixels) -> Pixels:
    """A picture after JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=QUALITY)
    return np.asarray(Image.open(buffer).convert("RGB"))


def milliseconds(folder: Path, most: int) -> dict[str, float]:
    """Mean processor time to search one picture of LARGE_PX, framing for it counted."""
    found = {}
    for words, sets in (("radiograph", CHEST), ("fundus photograph", FUNDUS)):
        pictures = [one for name in sets for one in load(folder, name, most)]
        for size_px in (256, 512):
            taken_s = 0.0
            for picture in pictures:
                framer = Framer(
                    enlarge(picture, LARGE_PX),
                    picture.shape[2],
                    field_of_view=words != "radiograph",
                )
                framer.frame(size_px)
                began = time.process_time()
                with contextlib.suppress(Unusable):
                    check_text(framer, size_px)
                taken_s += time.process_time() - began
            found[f"{words}, up to {size_px} px"] = round(1000 * taken_s / len(pictures), 1)
    return found


def tables(found: dict[str, Any], repeats: int) -> list[report.Table]:
    """The figures, as they are read."""
    recalled = tuple(
        (f"1/{row['part']}", *(f"{row[name]} of {repeats}" for name in LEVELS))
        for row in found["recall"]
    )
    alarmed = tuple(
        (row["set"], str(row["pictures"]), str(row["refused"])) for row in found["alarms"]
    )
    keys = ("pictures", "colour", "grey colour", "plane", "single plane")
    coloured = tuple((row["set"], *(str(row[key]) for key in keys)) for row in found["colours"])
    timed = tuple((size, f"{value} ms") for size, value in found["ms"].items())
    return [
        report.Table(
            "Films with text that are refused",
            ("letters, of the side", *LEVELS),
            recalled,
            "White and grey letters stand anywhere, black ones in the middle of the film: on its "
            "dark edges they would not show.",
        ),
        report.Table(
            "Pictures of public sets that are refused for text",
            ("set", "pictures", "refused"),
            alarmed,
            f"chest_tb_128 and chest_cxnet_128 {HAVE_TEXT}.",
        ),
        report.Table(
            "Colour",
            (
                "set",
                "pictures",
                "smallest colour share",
                "largest of grey ones",
                "smallest plane share",
                "largest of single planes",
            ),
            coloured,
            f"Refused are a colour share under {COLOUR_SHARE} and a plane share under "
            f"{PLANE_SHARE}. Grey ones: the green plane three times; both after JPEG of quality "
            f"{QUALITY}.",
        ),
        report.Table(
            f"Time to search one picture of {LARGE_PX} px",
            ("picture, study's size", "processor time"),
            timed,
        ),
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    report.add_json(parser)
    parser.add_argument("--data", type=Path, required=True, help="folder with the .npz files")
    parser.add_argument("--most", type=int, default=150, help="pictures of a set to search")
    parser.add_argument("--repeats", type=int, default=24, help="films of each kind")
    options = parser.parse_args()
    films = [enlarge(film) for film in load(options.data, FILMS, options.repeats)]
    found: dict[str, Any] = {"ms": milliseconds(options.data, TIMED)}
    found["recall"] = list(recall(films, options.repeats))
    found["alarms"] = list(alarms(options.data, options.most))
    found["colours"] = list(colours(options.data))
    report.give(options.json, "what_enters", tables(found, options.repeats), found)


if __name__ == "__main__":
    main()
