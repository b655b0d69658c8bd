"""The files of a generator's pretraining: checkpoint, sample sheet and model card."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from common.models.draws import device_of, draw_normal
from common.models.images import to_uint8, to_unit
from common.models.weights import numpy_weights
from common.storage.files import atomic_write, file_digest
from common.wire.tensors import SOURCE, write
from server.pretrain.gan_plan import PretrainPlan
from server.pretrain.gan_state import PREFIXES, Networks, Training, state
from server.pretrain.provenance import Provenance
from server.public_data.images import Source
from server.public_data.sources import people_of


def save(
    training: Training,
    source: Source,
    plan: PretrainPlan,
    out: Path,
    known: Mapping[str, str] | None = None,
) -> None:
    """Write checkpoint, state and sample sheet into `out`.

    Both files of the checkpoint carry the texts `known`.
    """
    generator, critic, encoder = training.averages
    write(
        out / "gan.safetensors",
        numpy_weights(generator, "generator.") | numpy_weights(critic, "critic."),
        known,
    )
    write(out / "encoder.safetensors", numpy_weights(encoder, "encoder."), known)
    write(out / "training" / "state.safetensors", state(training))
    sheet = io.BytesIO()
    Image.fromarray(sample_sheet(training.averages, source, plan)).save(sheet, format="PNG")
    atomic_write(out / "training" / f"samples-{training.step:06d}.png", sheet.getvalue())
    losses = {name: round(value, 4) for name, value in training.losses.items()}
    atomic_write(out / "training" / f"losses-{training.step:06d}.json", json.dumps(losses).encode())


def card(
    training: Training,
    sources: Sequence[Source],
    plan: PretrainPlan,
    provenances: Sequence[Provenance],
    excluded: list[str],
    out: Path,
) -> str:
    """Return the model card in Markdown.

    It names each source with licence and digest, the files' SHA-256, and how many names were left
    out.
    """
    # one row for each network: its file, size and digest
    rows = []
    for file, parts in (("gan.safetensors", PREFIXES[:2]), ("encoder.safetensors", PREFIXES[2:])):
        digest = file_digest(out / file)
        for prefix in parts:
            network = training.averages[PREFIXES.index(prefix)]
            count = sum(p.numel() for p in network.parameters())
            rows.append(f"| {file} | `{prefix}*` | {count:,} | `{digest}` |")

    # the names that were left out are given by their digest
    left_out = hashlib.sha256("\n".join(excluded).encode()).hexdigest()
    template = Path(__file__).with_name("cards") / "gan.md"
    return template.read_text(encoding="utf-8").format(
        plan=plan,
        note=provenances[0].note,
        cameras=" --cameras" if plan.cameras else "",
        sources="\n".join(map(_source_rows, sources, provenances)),
        excluded=len(excluded),
        left_out=left_out,
        steps=training.step,
        minutes=training.seconds / 60,
        settings=", ".join(f"{name} {value}" for name, value in asdict(plan).items()),
        rows="\n".join(rows),
    )


def describe_sources(
    sources: Sequence[Source], provenances: Sequence[Provenance]
) -> dict[str, str]:
    """Return a text for each source, `source 1` and on, that a checkpoint's file carries."""
    found = {}
    for number, (source, provenance) in enumerate(zip(sources, provenances, strict=True), 1):
        found[f"{SOURCE} {number}"] = (
            f"{provenance.source} ({len(source.images)} photographs, {provenance.licence}, "
            f"attribution: {provenance.attribution})"
        )
    return found


def _source_rows(source: Source, provenance: Provenance) -> str:
    """The card's rows on one source."""
    people = len(set(people_of(source)))
    rows = (
        ("source", provenance.source),
        ("licence of the photographs", provenance.licence),
        ("attribution", provenance.attribution),
        (
            "photographs",
            f"{len(source.images)}, of {people} people as far as known; "
            f"SHA-256 of the source `{source.digest}`",
        ),
    )
    return "\n".join(f"| {name} | {value} |" for name, value in rows)


@torch.no_grad()
def sample_sheet(
    networks: Networks, source: Source, plan: PretrainPlan, columns: int = 12
) -> np.ndarray:
    """Return a sheet, uint8 [rows·S, columns·S, C].

    Its rows are photographs, their inversions after one and two steps, averages of five of one
    side, and three rows of samples.
    """
    generator, _, encoder = networks
    order = np.random.default_rng(1).permutation(len(source.images))
    side = np.zeros(len(order), dtype=int)
    if source.right is not None:
        side = source.right.astype(int)

    # photographs and their inversions
    shown = order[:columns]
    device = device_of(generator)
    x = to_unit(source.images[shown], device)
    rows = [
        x,
        encoder.invert(x, generator, 1).reconstructions,
        encoder.invert(x, generator, 2).reconstructions,
    ]

    # averages of five photographs of one side
    for which in sorted(set(side.tolist())):
        members = [i for i in order if side[i] == which][: 5 * columns]
        codes = encoder.invert(to_unit(source.images[members], device), generator, 2).codes
        means = torch.stack(
            [codes[i::columns][:5].mean(0) for i in range(min(columns, len(members)))]
        )
        rows.append(generator.synthesis(means, torch.Generator().manual_seed(1)))

    # samples
    draw = torch.Generator().manual_seed(plan.seed)
    for _ in range(3):
        rows.append(generator(draw_normal((columns, plan.latent), draw, device), draw))

    # paste the rows below one another
    lines = []
    for row in rows:
        line = np.zeros((columns, plan.size_px, plan.size_px, plan.channels), dtype=np.uint8)
        line[: len(row)] = to_uint8(row)
        lines.append(line.transpose(1, 0, 2, 3).reshape(plan.size_px, -1, plan.channels))
    sheet = np.concatenate(lines)
    return sheet[..., 0] if plan.channels == 1 else sheet
