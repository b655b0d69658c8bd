"""`kohort-site privatize`: single images, each privatized on its own, for this hospital or, where all rules agree, to hand over.

In: a file or folder (DICOM, PNG, JPEG), the site's state folder, an approved plan with a flow. Out: one synthetic image for each
input that can be read, as PNG or as DICOM with SyntheticData = YES, numbered in the order of the inputs, and the statement.
Two ways, which do not meet:
- on site (default): any mechanism and noise, uncharged. OUT also gets the sheet original | privatized and the list of inputs,
  which make it clear that the folder must not leave. Nothing enters outbox, ledger or `exports/`, so nothing can be promoted.
- `--export`, numbered:
  1. plan, policy and cap allow single images (rule 27), before a file is opened      2. decode in a child process
  3. an image that was drawn before keeps its bytes, at no cost      4. the others are charged first: as many ledger entries as
     the patient with most of them has (files without a patient's id count as one patient)       5. draw, and keep, each once
  6. a person decides on exactly these bytes (policy), then the gate checks all again      7. only the images are written to OUT
Guaranteed: an original's pixels, name or header never enter an exported file. An image that the flow never saw the like of counts
as the zero latent, is named on this screen, and comes out as an image of nobody.
Not: the wire: no single image enters the outbox (rule 27). A folder that staff carry out by hand is theirs to answer for.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from client.daemon.site import Groups, Site
from client.egress.gate import Gate
from client.egress.review import SHEET, batch_digest
from client.ingest.decode import Photograph, Settings, decode_all
from client.ingest.persons import is_placeholder, normalised_id, pseudonym
from client.ingest.quarantine import Reason
from client.ingest.synthetic_dicom import synthetic_dicom
from client.state.config import check_plan
from client.synthesize.privatize import encode_released, privatize
from common.arrays import Images
from common.errors import ConfigurationError, PolicyError
from common.models import glow as flows
from common.models.glow import Glow
from common.models.latents import Basis
from common.models.latents import load as load_basis
from common.privacy.boundary import check_single
from common.privacy.mechanisms import Latent, latent_event, latent_mechanism, level_dimension
from common.privacy.noise import NoiseSource
from common.storage.files import atomic_write, read_capped
from common.study.plan import Study
from common.study.synthesis import PrivatizePlan
from common.wire.messages import digest_of
from common.wire.tensors import dumps
from common.wire.tensors import read as read_tensors

Progress = Callable[[int, int], None]
DECODE_MEMORY_BYTES, DECODE_TIMEOUT_S = 2 << 30, 30.0
WEIGHTS_CAP_BYTES, STORED_CAP_BYTES = 1 << 30, 1 << 24
AT_ONCE = 16  # images between two looks at the progress bar
FILES_CAP = 100_000
ON_SITE = "ON-SITE-ONLY"  # begins the names of what shows originals


@dataclass(frozen=True)
class Wish:
    """What a person asked for: the plan's own `privatize` section unless `section` gives another (on site only)."""

    source: Path
    target: Path
    section: PrivatizePlan | None = None
    basis: Path | None = None
    weights: Path | None = None
    dicom: bool = False
    export: bool = False


@dataclass(frozen=True)
class Flow:
    """The plan's flow, the mechanism for one image, and the basis where it has one. `digest`: of the weights."""

    study: Study
    model: Glow
    plan: PrivatizePlan
    mechanism: Latent
    basis: Basis | None
    digest: str

    @property
    def statement(self) -> str:
        """What every output says of itself."""
        return self.mechanism.statement(self.study.latent_dimension)

    def fits(self, pixels: Images) -> bool:
        """Whether the flow can encode this image: otherwise it counts as the zero latent."""
        return bool(encode_released(pixels[None], self.model, self.model.dimension).any())

    def draw(self, images: Sequence[Images], progress: Progress) -> list[Images]:
        """One privatized image for each, with fresh noise."""
        drawn: list[Images] = []
        for start in range(0, len(images), AT_ONCE):
            groups = [[image[None]] for image in images[start : start + AT_ONCE]]
            made = privatize(
                groups,
                self.model,
                self.mechanism,
                self.plan.temperature,
                NoiseSource(),
                prior_temperature=self.plan.prior_temperature,
                basis=self.basis,
            )
            drawn += list(made.images)
            progress(len(drawn), len(images))
        return drawn


@dataclass(frozen=True)
class Outcome:
    """For this screen: how many images were written, what could not be used and why, what the flow never saw the like of."""

    written: int
    statement: str
    refused: tuple[tuple[str, Reason], ...]
    off: tuple[str, ...]
    charged: int = 0
    repeated: int = 0

    def lines(self) -> Iterator[str]:
        """Yield what a person reads."""
        yield f"{self.written} images; {self.statement}"
        for name, reason in self.refused:
            yield f"not used: {name}: {reason.value}: {reason.sentence}"
        for name in self.off:
            yield f"far from anything this flow knows: {name}: what came out shows nothing of it"
        if self.charged or self.repeated:
            yield f"{self.charged} ledger entries; {self.repeated} images had been drawn before: the same bytes again, at no cost"


def run(
    site: Site, study: Study, wish: Wish, progress: Progress = lambda done, total: None
) -> Outcome:
    """Privatize what the wish names. Raises ConfigurationError, PolicyError and RefusedError before anything is written."""
    check_plan(study, site.config.policy, site.config.site)
    _check_target(wish, site)
    flow = load_flow(site, study, wish)
    if wish.export:
        return _export(site, flow, wish, progress)
    names, seen, refused = _decoded(
        wish.source, site, study
    )  # nothing before this line touched a patient's file
    images = [photograph.pixels for photograph in seen]
    drawn = flow.draw(images, progress)
    _write(wish, flow, drawn)
    sheet = side_by_side(
        images, drawn, f"epsilon = {flow.mechanism.epsilon_per_image:,.4g} per image; {ON_SITE}"
    )
    atomic_write(wish.target / f"{ON_SITE}-sheet.png", sheet, mode=0o600)
    atomic_write(wish.target / f"{ON_SITE}-inputs.csv", _listed(names), mode=0o600)
    return Outcome(len(drawn), flow.statement, refused, _off(flow, names, images))


def _check_target(wish: Wish, site: Site) -> None:
    """OUT is a new or empty folder outside the state folder: what lies in there is the daemon's."""
    target, root = wish.target.resolve(), site.state.root.resolve()
    if target == root or root in target.parents:
        raise ConfigurationError(
            f"{wish.target}: lies in the state folder", hint="name a folder outside --state"
        )
    if wish.target.exists() and (not wish.target.is_dir() or any(wish.target.iterdir())):
        raise ConfigurationError(
            f"{wish.target}: expected a new or empty folder", hint="name another OUT"
        )
    if wish.export and (wish.section or wish.basis or wish.weights):
        raise ConfigurationError(
            "--export takes mechanism, noise, basis and flow from the plan",
            hint="leave the other options out",
        )


def load_flow(site: Site, study: Study, wish: Wish) -> Flow:
    """The flow of an approved plan with the mechanism for one image (k = 1). Raises ConfigurationError, RefusedError."""
    layout, plan = (
        study.models.glow,
        wish.section or (study.synthesis.privatize if study.synthesis else None),
    )
    if layout is None or plan is None:
        raise ConfigurationError(
            f"plan {study.name}: it has no flow or says no mechanism", hint="name one: --mechanism"
        )
    folder = site.plans.folder(study.hash()) / "checkpoints"
    path = wish.weights or (folder / layout.start.name if layout.start else None)
    if path is None or not path.is_file():
        raise ConfigurationError(
            f"plan {study.name}: the flow has no weights yet",
            hint="--weights FILE of a release's models",
        )
    size, channels = study.intake.size_px, study.intake.channels
    model = Glow(size, channels, layout.levels, layout.steps_per_level, layout.width)
    flows.load_weights(model, read_tensors(path, max_bytes=WEIGHTS_CAP_BYTES))
    basis_path = wish.basis or (folder / plan.basis.name if plan.basis else None)
    basis = (
        load_basis(basis_path).first(plan.components) if basis_path and plan.components else None
    )
    coordinates = level_dimension(study) if wish.section is None else _coordinates(model, plan)
    mechanism = latent_mechanism(plan, coordinates, 1, "random")
    return Flow(
        study, model, plan, mechanism, basis, digest_of(read_capped(path, WEIGHTS_CAP_BYTES))
    )


def _coordinates(model: Glow, plan: PrivatizePlan) -> int:
    return model.top_dimension if plan.levels == "top" else model.dimension


def _decoded(
    source: Path, site: Site, study: Study
) -> tuple[list[str], list[Photograph], tuple[tuple[str, Reason], ...]]:
    """Names and photographs that can be used, and what cannot be, each with its reason."""
    if not source.exists():
        raise ConfigurationError(f"{source}: no such file or folder")
    paths = sorted(p for p in source.rglob("*") if p.is_file()) if source.is_dir() else [source]
    if not 1 <= len(paths) <= FILES_CAP:
        raise ConfigurationError(f"{source}: {len(paths)} files, expected 1 to {FILES_CAP:,}")
    intake, cap = study.intake, site.config.limits.max_file_mib << 20
    settings = Settings(
        intake.size_px, intake.channels, intake.dicom_modalities, intake.window, cap, cap, DECODE_MEMORY_BYTES, DECODE_TIMEOUT_S
    )  # fmt: skip
    names, seen, refused = [], [], []
    for path, outcome in zip(paths, decode_all(paths, settings, 1), strict=True):
        name = str(path.relative_to(source)) if source.is_dir() else path.name
        if isinstance(outcome, Photograph):
            names.append(name)
            seen.append(outcome)
        else:
            refused.append((name, outcome))
    if not seen:
        raise ConfigurationError(
            f"{source}: no image that can be used",
            problems=[f"{name}: {reason.value}: {reason.sentence}" for name, reason in refused],
        )
    return names, seen, tuple(refused)


def _off(flow: Flow, names: Sequence[str], images: Sequence[Images]) -> tuple[str, ...]:
    return tuple(name for name, image in zip(names, images, strict=True) if not flow.fits(image))


# --- export


@dataclass(frozen=True)
class Stored:
    """An image that was drawn and charged once: its pixels and the ledger entry."""

    pixels: Images
    reservation: int


def _export(site: Site, flow: Flow, wish: Wish, progress: Progress) -> Outcome:
    """The numbered steps of `--export`."""
    policy = site.config.policy
    epsilon = flow.mechanism.epsilon_per_image
    check_single(
        flow.study, policy.single_images == "allowed", epsilon, policy.max_epsilon_image
    )  # 1
    names, seen, refused = _decoded(wish.source, site, flow.study)  # 2
    store = site.state.root / "exports"
    keys = [_key(flow, photograph) for photograph in seen]
    fresh = {
        key: photograph
        for key, photograph in zip(keys, seen, strict=True)
        if _kept(store, key) is None
    }  # 3
    charged = _drawn(site, flow, store, fresh, progress)
    kept = [stored for key in keys if (stored := _kept(store, key)) is not None]
    images = [stored.pixels for stored in kept]
    payloads = [dumps({"image": image}) for image in images]
    digest = batch_digest(payloads)
    if policy.review == "required":  # 6
        sheet = side_by_side(
            [p.pixels for p in seen], images, f"epsilon = {epsilon:,.4g} per image; {ON_SITE}"
        )
        path = store / f"{digest[:16]}-{SHEET}"
        atomic_write(path, sheet, mode=0o600)
        state = site.reviews.propose(digest, flow.study.hash(), path).state
        if state == "waiting":
            raise PolicyError(
                f"{len(images)} images are drawn and charged, and wait for a person",
                hint=f"kohort-site review --approve {digest[:16]}, then the same command again (it costs nothing more)",
                code="E-REVIEW-WAITING",
            )
    with Groups(site.state.groups) as groups:
        gate = Gate(
            flow.study,
            policy,
            site.config.site,
            site.ledger(),
            site.plans.approved,
            groups,
            site.reviews,
        )
        gate.clear_export(
            payloads, [stored.reservation for stored in kept], latent_event(flow.study)
        )
    _write(wish, flow, images)  # 7
    repeated = sum(key not in fresh for key in keys)
    return Outcome(
        len(images),
        flow.statement,
        refused,
        _off(flow, names, [p.pixels for p in seen]),
        charged,
        repeated,
    )


def _drawn(
    site: Site, flow: Flow, store: Path, fresh: dict[str, Photograph], progress: Progress
) -> int:
    """Steps 4 and 5: charge, draw, keep; returns the number of ledger entries."""
    turns: list[list[str]] = []  # each turn holds at most one image of a patient, and is one entry
    count: Counter[str] = Counter()
    for key, photograph in fresh.items():
        who = _patient(site, photograph)
        turn, count[who] = count[who], count[who] + 1
        if turn == len(turns):
            turns.append([])
        turns[turn].append(key)
    store.mkdir(exist_ok=True, mode=0o700)
    for keys in turns:
        reservation = site.ledger().reserve(flow.mechanism, flow.study.hash())  # 4
        images = flow.draw([fresh[key].pixels for key in keys], progress)  # 5
        payloads = [
            dumps({"image": image, "reservation": np.array([reservation.id], np.int64)})
            for image in images
        ]
        site.ledger().commit(reservation, batch_digest(payloads))
        for key, payload in zip(keys, payloads, strict=True):
            atomic_write(store / f"{key}.safetensors", payload, mode=0o600)
    return len(turns)


def _key(flow: Flow, photograph: Photograph) -> str:
    """What makes two requests one: the same image under the same plan, mechanism and flow."""
    parts = (flow.study.hash(), flow.mechanism.event(), flow.digest, photograph.digest.hex())
    return hashlib.sha256("\n".join(("kohort-export", *parts)).encode()).hexdigest()


def _kept(store: Path, key: str) -> Stored | None:
    """What was drawn before for this key."""
    path = store / f"{key}.safetensors"
    if not path.is_file():
        return None
    arrays = read_tensors(path, max_bytes=STORED_CAP_BYTES)
    return Stored(np.asarray(arrays["image"], dtype=np.uint8), int(arrays["reservation"][0]))


def _patient(site: Site, photograph: Photograph) -> str:
    """Whose image this is; all files without a usable id are counted as one patient's."""
    issuer, identifier = normalised_id(photograph.issuer), normalised_id(photograph.patient_id)
    return (
        ""
        if is_placeholder(identifier)
        else pseudonym(site.state.pseudonym_bytes(), issuer, identifier)
    )


# --- what is written


def _write(wish: Wish, flow: Flow, images: Sequence[Images]) -> None:
    """The images under numbers, and the statement."""
    wish.target.mkdir(parents=True, exist_ok=True)
    modality = flow.study.intake.dicom_modalities[0]
    for number, image in enumerate(images, 1):
        data = synthetic_dicom(image, modality, flow.statement) if wish.dicom else png(image)
        atomic_write(wish.target / f"{number:05d}.{'dcm' if wish.dicom else 'png'}", data)
    said = {
        **flow.mechanism.describe(),
        "statement": flow.statement,
        "plan": flow.study.hash(),
        "exported": wish.export,
    }
    atomic_write(
        wish.target / "statement.json", json.dumps(said, indent=1, sort_keys=True).encode() + b"\n"
    )


def png(image: Images) -> bytes:
    """PNG bytes of uint8 [H, W, 1 or 3], without any text chunk."""
    stream = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(stream, "PNG")
    return stream.getvalue()


def side_by_side(
    originals: Sequence[Images], privatized: Sequence[Images], title: str, columns: int = 6
) -> bytes:
    """PNG bytes of a sheet: each original beside its privatized image, left and right. ON SITE ONLY."""
    height, width = originals[0].shape[:2]
    rows, step, head = -(-len(originals) // columns), (2 * width + 8, height + 8), 16
    sheet = Image.new(
        "RGB", (max(step[0] * min(columns, len(originals)), 420), step[1] * rows + head), "white"
    )
    ImageDraw.Draw(sheet).text((4, 2), f"original | privatized: {title}", fill="black")
    for i, pair in enumerate(zip(originals, privatized, strict=True)):
        x, y = step[0] * (i % columns) + 4, step[1] * (i // columns) + head
        for side, image in enumerate(pair):
            picture = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).convert(
                "RGB"
            )
            sheet.paste(picture, (x + side * width, y))
    stream = io.BytesIO()
    sheet.save(stream, "PNG")
    return stream.getvalue()


def _listed(names: Sequence[str]) -> bytes:
    """Which number is which input: for this hospital's eyes."""
    table = io.StringIO()
    csv.writer(table, lineterminator=os.linesep).writerows(
        [("number", "input"), *((i, name) for i, name in enumerate(names, 1))]
    )
    return table.getvalue().encode()
