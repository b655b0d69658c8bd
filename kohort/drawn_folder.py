"""Writes drawn pictures as a folder in a release's layout, which is no release.

In: a verified release, how many pictures.
Out: a new folder: data/train/LABEL/NNNNN.png, masks/, metadata.csv, drawn.json, README.md.
Guarantees: the folder appears when it is whole, and never in the place of another. It holds no
manifest, no sums and no signature. drawn.json and README.md say that a user drew the pictures, from
which release and model, and what holds of them.
Not covered: what the pictures are worth.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kohort import signatures
from kohort.drawn_claim import DrawnClaim, claim_of_drawn
from kohort.errors import ConfigurationError, disk_faults_named
from kohort.files import read_capped
from kohort.forms import MASK
from kohort.frozen import FrozenModel
from kohort.layout import DRAWN, METADATA, PICTURES, SUMS, TEXT_CAP_BYTES
from kohort.manifest import Manifest
from kohort.marks import mark_png
from kohort.models import Model, read_model
from kohort.sample import Drawn, check_count, check_extra, draw_from
from kohort.verification import verify

if TYPE_CHECKING:
    from kohort.sample import Pixels

MECHANISM = "dp-generator"
README = """# {count} pictures drawn from {title}

**Drawn by a user. This is not the signed release**, and the consortium does not vouch for it.

| What | Value |
| --- | --- |
| release | {name} {version}, signed by {operator} |
| SHA-256 of its SHA256SUMS | `{sums}` |
| model | `{model}`, SHA-256 of its ONNX file `{digest}` |
| pictures | {count}, label `{label}` |
| seed | {seed} |

## What holds of them
{sentence}

Taken as given:
{given}

A model shows what many patients share. What is rare is missing or wrong, and nobody looked at these
pictures. {unlabelled}The licence of the release holds; it stands in the release's LICENSE.

`metadata.csv` lists the pictures, `drawn.json` says the above for programs.
"""
NO_LABEL = "They have no label: the model learned of all labels and tells none of them. "


class Source(FrozenModel):
    """The release from which pictures were drawn."""

    name: str
    version: str
    operator: str
    sums: str


class Facts(FrozenModel):
    """The content of drawn.json. `seed` is None where the operating system gave the numbers."""

    format: str = "kohort-drawn/1"
    signed: bool = False
    release: Source
    model: str
    model_sha256: str
    images: int
    label: str
    seed: int | None
    claim: DrawnClaim

    def as_text(self, out: str) -> str:
        """Return what was drawn into the folder `out`, and what holds of it, in three lines."""
        of = f"{self.model} of {self.release.name} {self.release.version}, label {self.label}"
        budget = f"({self.claim.epsilon:g}, {self.claim.delta:g})-DP per {self.claim.unit}"
        return (
            f"{out}: {self.images} pictures drawn from {of}; not a signed release\n"
            f"  together with the updates: {budget}, {self.claim.adjacency}\n"
            "  k-anonymity is not claimed"
        )


def write_drawn(
    release: Path,
    count: int,
    out: Path,
    *,
    seed: int | None = None,
    model: str | None = None,
    trust: frozenset[str] = frozenset(),
    require: int | None = None,
    accept: Callable[[Manifest], None] = lambda _: None,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Facts:
    """Verify the release, draw `count` pictures from it into the new folder `out`; returns facts.

    `accept` is called once the release is verified, and raises where the reader asks for more.
    Raises as `kohort.sample.draw` does, ConfigurationError where `out` exists, and
    EnvironmentFault for a disk that cannot be written.
    """
    check_count(count)
    check_extra()
    if out.exists() or out.is_symlink():
        raise ConfigurationError(
            f"--out {out}: exists already", hint="give the name of a new folder"
        )

    # the release, the model and what holds of its pictures
    manifest = verify(release, trust=trust, require=require)
    accept(manifest)
    source = read_model(release, model)
    facts = _facts_of(release, manifest, source, count, seed)

    # the folder
    with _new_folder(out) as part:
        pictures = draw_from(source, count, seed)
        _write_pictures(part, pictures, facts, progress)
        text = json.dumps(facts.model_dump(mode="json"), indent=1, sort_keys=True)
        (part / DRAWN).write_text(text + "\n", encoding="utf-8")
        (part / "README.md").write_text(_readme(facts, manifest), encoding="utf-8")
    return facts


def _facts_of(
    release: Path, manifest: Manifest, model: Model, count: int, seed: int | None
) -> Facts:
    """What drawn.json says."""
    sums = hashlib.sha256(read_capped(release / SUMS, TEXT_CAP_BYTES)).hexdigest()
    operator = signatures.fingerprint(signatures.parse_public(manifest.operator_key))
    return Facts(
        release=Source(name=manifest.name, version=manifest.version, operator=operator, sums=sums),
        model=model.name,
        model_sha256=model.digest,
        images=count,
        label=model.card.label,
        seed=seed,
        claim=claim_of_drawn(release, manifest),
    )


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out` that becomes it at the end, and goes with any error."""
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        with disk_faults_named("cannot write", out):
            part.mkdir(parents=True)
            yield part
            part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_pictures(
    part: Path, pictures: Iterator[Drawn], facts: Facts, progress: Callable[[int, int], None]
) -> None:
    """Write pictures and masks, and the table of them."""
    rows = []
    for i, drawn in enumerate(pictures):
        row = {"file_name": f"{PICTURES}/{drawn.label}/{i:05d}.png"}
        write_png(part / row["file_name"], drawn.image)
        if drawn.mask is not None:
            row[MASK] = f"masks/{i:05d}.png"
            write_png(part / row[MASK], drawn.mask)
        rows.append(row | {"label": drawn.label, "mechanism": MECHANISM, "synthetic": "yes"})
        progress(i + 1, facts.images)
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    (part / METADATA).write_text(table.getvalue(), encoding="utf-8")


def write_png(path: Path, pixels: Pixels) -> None:
    """Write a PNG that says that a trained algorithm made it."""
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(mark_png(data.getvalue()))


def _readme(facts: Facts, manifest: Manifest) -> str:
    """The words of README.md."""
    return README.format(
        count=facts.images,
        title=manifest.title,
        name=facts.release.name,
        version=facts.release.version,
        operator=facts.release.operator,
        sums=facts.release.sums,
        model=facts.model,
        digest=facts.model_sha256,
        label=facts.label,
        seed="none: the operating system's own numbers" if facts.seed is None else facts.seed,
        sentence=facts.claim.sentence,
        given="\n".join(f"- {sentence}" for sentence in facts.claim.given),
        unlabelled=NO_LABEL if facts.label not in manifest.labels else "",
    )
