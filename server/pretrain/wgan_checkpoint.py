"""Writes the starting checkpoint of the image + mask WGAN from public pairs.

In: public pairs or phantoms, and the sizes of a plan.
Out: a folder with wgan.safetensors, MODEL_CARD.md, and training/: a sample sheet and the progress.
Guarantees: a killed run continues from its last save; each file is written atomically.
Not covered: privacy, and the optimisers' state, which a resumed run starts afresh.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from common.errors import ConfigurationError
from common.models.wgan import load_average
from common.models.wgan_pairs import sample
from common.storage import files
from common.storage.files import file_digest
from common.study.training import WganPlan
from common.wire import tensors
from server.pretrain.provenance import Provenance
from server.pretrain.session import Session, usable_device
from server.pretrain.wgan import Recipe, arrays_of, finish, like_pairs, pretrain
from server.public_data.pairs import PublicPairs
from server.public_data.pictures import contact_sheet, triptychs

CHECKPOINT = "wgan.safetensors"
WEIGHTS = "weights.safetensors"  # in training/, to go on from: as trained, with the encoder
CHECKPOINT_CAP_BYTES = 1 << 30
SAVE_EVERY_S = 120.0
SAVING_SHARE = 0.1  # of a training's time at most: samples are given a look at each save
SHEET_PAIRS = 24
Weights = Mapping[str, NDArray[np.float32]]


def public_plan(**changes: object) -> WganPlan:
    """Return a plan's WGAN for public training, with `changes` to the plan's keys.

    Only the sizes and the loss matter here; the private constants are placeholders.
    """
    placeholders = {
        "rounds": 1,
        "local_steps": 1,
        "learning_rate": 1e-3,
        "generator_learning_rate": 1e-3,
        "noise_multiplier": 1.0,
        "patients_per_step": 1,
        "clip": 1.0,
        "max_update_norm": 1.0,
        "width": 24,
        "generator_width": 24,
        "latent": 128,
    }
    return WganPlan.model_validate({**placeholders, **changes})


def run(
    source: PublicPairs,
    out: Path,
    plan: WganPlan,
    provenance: Provenance,
    session: Session,
    recipe: Recipe | None = None,
    seed: int = 0,
) -> int:
    """Train on `source` until the session ends; return the steps done, earlier runs included.

    Raises ConfigurationError for a session without a limit, and for an existing checkpoint unless
    the session resumes.
    """
    session.check()
    begun, start = _earlier(out, session.resume)
    done = int(begun["steps"])
    earlier_s = float(begun["seconds"])
    began = time.monotonic()
    next_save = began + SAVE_EVERY_S
    device = usable_device(session.device)
    for weights in pretrain(source.pairs, plan, seed + done, recipe, start, device, done):
        # count the step
        done += 1
        now = time.monotonic()
        seconds = earlier_s + now - began
        share = session.share(done, seconds)
        session.progress(done, min(1.0, share))

        # save now and then, and at the end
        if share >= 1 or now >= next_save:
            state = {"steps": done, "seconds": seconds}
            arrays = arrays_of(weights)
            if share >= 1:
                found = finish(source.pairs, arrays, plan, done, recipe, device)
            else:
                found = like_pairs(source.pairs, arrays, plan)
            _save(out, found, arrays, plan, source.pairs.shape[1], state)
            saved = time.monotonic()
            next_save = saved + max(SAVE_EVERY_S, (saved - now) / SAVING_SHARE)
        if share >= 1:
            break
    text = card(out, source, plan, provenance, done, earlier_s + time.monotonic() - began)
    files.atomic_write(out / "MODEL_CARD.md", text.encode())
    return done


def _earlier(
    out: Path, resume: bool
) -> tuple[dict[str, float], dict[str, NDArray[np.float32]] | None]:
    """Steps and seconds of an earlier run in this folder, and its weights."""
    if not (out / CHECKPOINT).exists():
        return {"steps": 0, "seconds": 0.0}, None
    if not resume:
        raise ConfigurationError(
            f"{out}: holds a checkpoint already", hint="give --resume, or name another folder"
        )
    state = json.loads(files.read_capped(out / "training" / "state.json", 1 << 16))
    found = tensors.read(out / "training" / WEIGHTS, max_bytes=CHECKPOINT_CAP_BYTES)
    return state, {name: array.astype(np.float32) for name, array in found.items()}


def _save(
    out: Path,
    weights: Weights,
    trained: Weights,
    plan: WganPlan,
    size_px: int,
    state: Mapping[str, float],
) -> None:
    """Write state, the weights as they were trained, checkpoint and sample sheet.

    `weights`: what a study starts from; a later run goes on from `trained` instead.
    The checkpoint comes last of what `resume` needs: where it lies, so do the others.
    """
    files.atomic_write(out / "training" / "state.json", json.dumps(dict(state)).encode())
    tensors.write(out / "training" / WEIGHTS, trained)
    study = {name: array for name, array in weights.items() if not name.startswith("encoder.")}
    tensors.write(out / CHECKPOINT, study)

    # pairs to look at
    average = load_average(weights, plan, size_px)
    pairs = sample(average, SHEET_PAIRS, torch.Generator().manual_seed(0))
    rows = triptychs(pairs[..., :1], np.ascontiguousarray(pairs[..., 1]))
    sheet = contact_sheet(rows, columns=4, pad=8)
    data = io.BytesIO()
    Image.fromarray(sheet).save(data, "PNG")
    files.atomic_write(out / "training" / "samples.png", data.getvalue())


def card(
    out: Path,
    source: PublicPairs,
    plan: WganPlan,
    provenance: Provenance,
    steps: int,
    seconds: float,
) -> str:
    """Return the model card in Markdown."""
    # one row for each network
    path = out / CHECKPOINT
    arrays = tensors.read(path, max_bytes=CHECKPOINT_CAP_BYTES)
    rows = []
    for prefix in ("generator.", "average.", "critic."):
        count = sum(array.size for name, array in arrays.items() if name.startswith(prefix))
        rows.append(f"| `{prefix}*` | {count:,} |")

    # fill in the template
    template = Path(__file__).with_name("cards") / "wgan.md"
    return template.read_text(encoding="utf-8").format(
        plan=plan,
        provenance=provenance,
        size=source.pairs.shape[1],
        count=len(source.pairs),
        patients=len(np.unique(source.patient_of)),
        source_digest=source.digest,
        digest=file_digest(path),
        steps=steps,
        minutes=seconds / 60,
        rows="\n".join(rows),
    )
