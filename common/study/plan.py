"""The study plan: one YAML file that both sides read, hash and sign.

In: study.yaml. Out: a frozen `Study`, its hash, and on disk a signed bundle (study.yaml, study.sig, checkpoints/). Guaranteed:
every privacy parameter is a public constant of the file; the hash covers every field and every checkpoint's SHA-256; a bundle
opens only with the operator's signature and exact checkpoints. Not covered: whether a site agrees (its own policy decides)
and whether the constants reach the stated epsilon (common/privacy/accounting.py computes that; signing refuses if not).
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import Field, model_validator

from common.config import FrozenModel, load_yaml
from common.errors import ConfigurationError, RefusedError
from common.storage.files import atomic_write, read_capped
from common.wire import signing
from common.wire.messages import canonical

Identifier = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,31}$")]
Label = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]
Positive = Annotated[float, Field(gt=0)]
CHECKPOINT_CAP_BYTES = 1 << 30
MOST_CELLS = 192  # of one stratum: the generator samples that the inversion draws (client/synthesize/invert.py)
SIZES = (32, 64, 96, 128, 256, 512)


class Checkpoint(FrozenModel):
    """A public starting checkpoint: a safetensors file beside the plan, pinned by its SHA-256."""

    file: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}(/[A-Za-z0-9][A-Za-z0-9._-]{0,63}){0,3}\.safetensors$"
    )
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @property
    def name(self) -> str:
        """The file's name inside a bundle's checkpoints/ folder."""
        return Path(self.file).name


class SitePlan(FrozenModel):
    """A hospital and its public weight in every average."""

    name: Identifier
    weight: Positive = 1.0


class Volumes(FrozenModel):
    """MR volumes with vessel masks, cut into image + mask patches: half centred on a vessel, half anywhere (Kossen et al.
    2022). Intensities come from `intake.window`, or from each patient's own minimum and maximum without one.
    """

    patches_per_patient: int = Field(ge=2, le=1000)


class Intake(FrozenModel):
    """Which images enter a cohort, and how they look there."""

    dicom_modalities: tuple[Literal["OP", "CR", "DX", "MR"], ...] = Field(min_length=1)
    size_px: Literal[32, 64, 96, 128, 256, 512]
    channels: Literal[1, 3]
    labels: tuple[Label, ...] = Field(min_length=1, max_length=100)
    ordinal_labels: bool = False
    merge_labels: dict[Label, Label] = Field(default_factory=dict)
    stratify_laterality: bool = False
    window: tuple[float, float] | None = None
    volumes: Volumes | None = None

    @property
    def planes(self) -> int:
        """Channels of a cohort's images: the image's own, and one more where a mask comes with it."""
        return self.channels + (self.volumes is not None)

    @model_validator(mode="after")
    def _known_labels(self) -> Intake:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels: a label stands twice")
        unknown = sorted(set(self.merge_labels) - set(self.labels))
        if unknown:
            raise ValueError(f"merge_labels: {unknown} are not among labels {list(self.labels)}")
        if self.window and self.window[0] >= self.window[1]:
            raise ValueError(f"window: expected low < high, got {list(self.window)}")
        return self


class TrainedModel(FrozenModel):
    """What every privately trained model states. All are public constants of the plan."""

    rounds: int = Field(ge=1, le=10_000)
    local_steps: int = Field(ge=1, le=100_000)
    learning_rate: Positive
    noise_multiplier: float = Field(ge=0.3, le=1000)
    patients_per_step: int = Field(ge=1, le=100_000)
    clip: float = Field(gt=0, le=1000)
    items_per_patient: int = Field(default=1, ge=1, le=1000)
    max_update_norm: Positive
    trainable: tuple[str, ...] = ()
    start: Checkpoint | None = None

    @property
    def steps(self) -> int:
        """All private steps that one site takes for this model."""
        return self.rounds * self.local_steps


class GanPlan(TrainedModel):
    """The style-based generator and its critic (common/models/stylegan.py)."""

    width: int = Field(ge=8, le=512)
    latent: int = Field(ge=16, le=512)
    generator_learning_rate: Positive
    critic_steps: int = Field(default=1, ge=1, le=1000)
    loss: Literal["hinge", "logistic"] = "logistic"
    fakes_per_item: int = Field(default=1, ge=1, le=16)


class WganPlan(TrainedModel):
    """Image + mask pairs (common/models/wgan.py; Kossen et al. 2022).

    `width`, `generator_width`: channels of the first critic and the last hidden generator layer. `critic_steps`: private
    critic steps for one generator step; with `adaptive` the start of a ladder that each round climbs anew (train_wgan.py), so it
    needs rounds of more than 200 generator steps. `weight_clip`:
    bound on every critic weight after each step, needed by the loss `wgan`. `average_decay`: of the generator's moving average.
    `input_noise`: standard deviation of Gaussian noise on every pair that the critic sees, on the scale of [-1, 1]: it steadies
    the game where vessels are thin (Arjovsky and Bottou 2017); no privacy noise.
    """

    architecture: Literal["small", "kossen2022"] = "small"
    width: int = Field(ge=8, le=512)
    generator_width: int = Field(ge=8, le=512)
    latent: int = Field(ge=16, le=512)
    generator_learning_rate: Positive
    critic_steps: int = Field(default=10, ge=1, le=1000)
    adaptive: bool = True
    loss: Literal["wgan", "wgan-gp", "hinge", "logistic"] = "hinge"
    optimizer: Literal["adam", "rmsprop"] = "adam"
    weight_clip: float | None = Field(default=None, gt=0, le=100)
    average_decay: float = Field(default=0.999, ge=0, lt=1)
    input_noise: float = Field(default=0.2, ge=0, le=1)
    fakes_per_item: int = Field(default=1, ge=1, le=16)
    released_pairs: int = Field(default=256, ge=1, le=1_000_000)

    @model_validator(mode="after")
    def _bounded(self) -> WganPlan:
        if self.loss == "wgan" and self.weight_clip is None:
            raise ValueError("weight_clip: the loss wgan needs one (Kossen et al. 2022: 0.01)")
        if self.width % 4 or self.generator_width % 8:
            raise ValueError(
                "width, generator_width: expected multiples of 4 and 8, for the group norms"
            )
        return self


class GlowPlan(TrainedModel):
    """The flow (common/models/glow.py)."""

    levels: int = Field(ge=1, le=7)
    steps_per_level: int = Field(ge=1, le=64)
    width: int = Field(ge=8, le=1024)
    input_noise: float = Field(default=0.03, ge=0, le=0.5)


class EncoderPlan(FrozenModel):
    """The inversion encoder: trained on generator samples alone, on site, never sent."""

    steps: int = Field(ge=0, le=1_000_000)
    learning_rate: Positive
    iterations: int = Field(default=2, ge=1, le=10)
    width: int = Field(ge=8, le=512)
    start: Checkpoint | None = None


class Models(FrozenModel):
    """Which models the study trains."""

    gan: GanPlan | None = None
    glow: GlowPlan | None = None
    wgan: WganPlan | None = None
    encoder: EncoderPlan | None = None

    def trained(self) -> dict[str, TrainedModel]:
        """Return the privately trained models in the order in which they train."""
        named: dict[str, TrainedModel | None] = {
            "gan": self.gan,
            "glow": self.glow,
            "wgan": self.wgan,
        }
        return {name: model for name, model in named.items() if model is not None}


class Privacy(FrozenModel):
    """The promise for model updates: (epsilon, delta) per patient, zero-out adjacency, over the whole study.

    `canaries`: invented patients on coordinates of their own that each site carries through its private steps to audit the
    claim (Steinke et al. 2023); they cost no privacy and touch no weight.
    """

    unit: Literal["patient"] = "patient"
    epsilon: float = Field(gt=0, le=100)
    delta: float = Field(gt=0, le=0.01)
    planned_patients: int = Field(ge=1, le=10_000_000)
    accept_infeasible: bool = False
    canaries: int = Field(default=300, ge=0, le=10_000)


# What each mechanism of `privatize` needs, may have, and what is said of a key that it does not take.
PRIVATIZE_KEYS = {
    "laplace": (("radius", "scale"), ("clip",)),
    "gaussian": (("epsilon", "delta"), ()),
    "privunit": (("epsilon",), ()),
}
PRIVATIZE_WHY = {
    "laplace": "its noise is `scale`, from which epsilon per coordinate and, d times that, epsilon per image follow",
    "gaussian": "it clips to the l2 ball of radius sqrt(d), and its noise follows from epsilon and delta per image or average",
    "privunit": "it releases a direction, and pure epsilon per image is its only number",
}


class PrivatizePlan(FrozenModel):
    """Privatization in GLOW's latent space (Shibata et al. 2023; what each mechanism proves: common/privacy/mechanisms.py).

    `laplace`: `clip` (box, or l1_ball by default), `radius`, `scale`. `gaussian`: `epsilon`, `delta`. `privunit`: `epsilon`,
    one image, at most 64 coordinates. `epsilon` is always per image (per average of k), never per coordinate. `levels`: the
    flow's top level or all; `components` of the public `basis` (common/models/latents.py) reduce them further. `temperature`: the
    spread of what is released; `prior_temperature`: of the rest, the same by default. `claim`: refuse the plan unless epsilon
    holds per patient. `egress`: `averages` of k are privatized and sent; `single`: the averages that are
    sent stay plain, and a site that allows it may hand over single images (`kohort-site privatize --export`), each at k = 1.
    """

    mechanism: Literal["laplace", "gaussian", "privunit"] = "laplace"
    share: float = Field(gt=0, le=1)
    clip: Literal["box", "l1_ball"] | None = None
    radius: float | None = Field(default=None, gt=0, le=10)
    scale: float | None = Field(default=None, gt=0, le=10)
    epsilon: float | None = Field(default=None, gt=0, le=100)
    delta: float | None = Field(default=None, gt=0, le=0.01)
    levels: Literal["top", "all"] = "top"
    components: int | None = Field(default=None, ge=2, le=4096)
    basis: Checkpoint | None = None
    temperature: float = Field(default=0.7, ge=0, le=1.5)
    prior_temperature: float | None = Field(default=None, ge=0, le=1.5)
    claim: Literal["patient"] | None = None
    egress: Literal["averages", "single"] = "averages"

    @model_validator(mode="before")
    @classmethod
    def _spelled(cls, data: Any) -> Any:
        """Name a unit that was confused, and give `laplace` its default clip."""
        if not isinstance(data, dict):
            return data
        for name in ("epsilon_per_coordinate", "epsilon_coordinate", "epsilon_per_element"):
            if name in data:
                raise ValueError(
                    f"{name}: expected `epsilon` per image (per average), got {data[name]!r} per coordinate; "
                    "an image spends d times its coordinate's epsilon"
                )
        laplace = data.get("mechanism", "laplace") == "laplace"
        return {**data, "clip": "l1_ball"} if laplace and data.get("clip") is None else data

    @model_validator(mode="after")
    def _complete(self) -> PrivatizePlan:
        problems = list(self._problems())
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _problems(self) -> Iterator[str]:
        """What fits no single field."""
        needed, allowed = PRIVATIZE_KEYS[self.mechanism]
        for name in ("clip", "radius", "scale", "epsilon", "delta"):
            value = getattr(self, name)
            if name in needed and value is None:
                yield f"{name}: mechanism {self.mechanism} needs it, got none"
            if name not in (*needed, *allowed) and value is not None:
                why = PRIVATIZE_WHY[self.mechanism]
                yield f"{name}: mechanism {self.mechanism} takes none, got {value!r}; {why}"
        if self.mechanism == "privunit" and (self.epsilon or 0) > PRIVUNIT_LARGEST_EPSILON:
            yield f"epsilon: privunit draws by rejection, at most {PRIVUNIT_LARGEST_EPSILON:g} per image, got {self.epsilon:g}"
        if self.mechanism == "privunit" and self.egress != "single":
            yield "mechanism: privunit privatizes single images (k = 1): set egress: single, or take gaussian for averages"
        if (self.components is None) != (self.basis is None):
            yield "components, basis: expected both or neither; without a public basis no direction is before another"


PRIVUNIT_LARGEST_DIMENSION, PRIVUNIT_LARGEST_EPSILON = 64, 16.0  # common/privacy/privunit.py


class AnchorsPlan(FrozenModel):
    """Cells and noise of grouping `anchors` (common/privacy/anchors.py): averages under (epsilon, delta).

    `noise_multiplier` of all sums and counts together; `components` of a code; `threshold_delta`: what the threshold on noisy
    counts takes off privacy.delta; `cells_per_stratum`: by default planned_patients / 3k, shared out among the strata.
    """

    noise_multiplier: float = Field(ge=0.3, le=1000)
    threshold_delta: float = Field(gt=0, le=0.01)
    components: int = Field(default=32, ge=2, le=64)
    cells_per_stratum: int | None = Field(default=None, ge=1, le=MOST_CELLS)


class Synthesis(FrozenModel):
    """Groups, alignment and privatization on site (Jeon et al. 2022). What each `grouping` does: client/synthesize/group.py.

    `group_by`: what makes patients similar, or the space of the cells: whitened codes, or the inverted image's mean colour.
    `spread_directions`: along so many principal directions of the generator's codes averages are moved out until they vary as
    single images do (client/synthesize/spread.py); 0: not at all. `spread_share`: how much of that, as a power of each factor.
    """

    k: int = Field(ge=2, le=10_000)
    grouping: Literal["similar", "similar-swap", "cells", "random", "anchors"]
    anchors: AnchorsPlan | None = None
    windows: int = Field(default=2, ge=1, le=16)
    inversion_steps: int = Field(ge=0, le=10_000)
    alignment_steps: int = Field(ge=0, le=10_000)
    content_weight: float = Field(default=0.1, ge=0)
    style_weight: float = Field(default=1.0, ge=0)
    trust_weight: float = Field(default=0.05, ge=0)
    group_by: Literal["codes", "colour"] = "codes"
    spread_directions: int = Field(default=0, ge=0, le=64)
    spread_share: float = Field(default=0.75, gt=0, le=1)
    outputs_per_group: int = Field(default=1, ge=1, le=100)
    max_images_per_site: int = Field(ge=1, le=100_000)
    privatize: PrivatizePlan | None = None

    @property
    def needs_generator(self) -> bool:
        """Whether the generator makes or groups any image. Where all of `random` groups are privatized, the flow alone does."""
        share = (
            self.privatize.share if self.privatize is not None and self.privatizes_averages else 0.0
        )
        return self.grouping != "random" or share < 1

    @property
    def privatizes_averages(self) -> bool:
        """Whether averages are privatized; with egress `single` the section is about images that a site hands over itself."""
        return self.privatize is not None and self.privatize.egress == "averages"


class Release(FrozenModel):
    """What the released set says of itself."""

    version: str = Field(default="1.0.0", pattern=r"^[0-9]+\.[0-9]+\.[0-9]+$")
    licence: str = Field(default="CC-BY-4.0", max_length=64)
    models: bool = True
    min_images: int = Field(default=1, ge=1)
    date: str = Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$")


class Study(FrozenModel):
    """A study plan. Every number in it is public and signed."""

    format: Literal["kohort-study/1"]
    name: Identifier
    title: str = Field(min_length=1, max_length=200)
    modality: Literal["fundus", "chest", "vessels"]
    sites: tuple[SitePlan, ...] = Field(min_length=2, max_length=1000)
    quorum: int = Field(ge=2)
    round_deadline_s: float = Field(default=3600, gt=0, le=30 * 86400)
    intake: Intake
    models: Models
    privacy: Privacy
    synthesis: Synthesis | None = None
    release: Release

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        problems = list(self._problems())
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _problems(self) -> list[str]:
        """What fits no single field."""
        names = [site.name for site in self.sites]
        found = []
        if len(set(names)) != len(names):
            found.append("sites: a name stands twice")
        if self.quorum > len(names):
            found.append(f"quorum: {self.quorum} of {len(names)} sites can never be met")
        if not self.models.trained():
            found.append("models: at least one of gan, glow, wgan must be trained")
        for name, model in self.models.trained().items():
            if model.patients_per_step > self.privacy.planned_patients:
                found.append(f"models.{name}.patients_per_step: more than privacy.planned_patients")
        if (
            self.synthesis
            and self.synthesis.needs_generator
            and not (self.models.gan and self.models.encoder)
        ):
            found.append(
                "synthesis: needs models.gan and models.encoder (only `random` groups, all of them privatized, need neither)"
            )
        if self.synthesis and self.intake.size_px % self.synthesis.windows:
            found.append(
                f"synthesis.windows: {self.synthesis.windows} does not divide {self.intake.size_px} px"
            )
        if self.synthesis and self.synthesis.privatize and not self.models.glow:
            found.append("synthesis.privatize: needs models.glow")
        found += self._privatize_problems()
        found += self._metric_problems()
        found += self._anchors_problems()
        if self.models.wgan and self.intake.volumes is None:
            found.append(
                "models.wgan: needs intake.volumes, where its image + mask patches come from"
            )
        if self.intake.volumes and (
            self.intake.channels != 1 or self.models.gan or self.models.glow
        ):
            found.append("intake.volumes: for one channel and models.wgan alone")
        for name, game in (("gan", self.models.gan), ("wgan", self.models.wgan)):
            if game and game.critic_steps > game.local_steps:
                found.append(
                    f"models.{name}.critic_steps: more than local_steps, so the generator would never move"
                )
        if self.models.wgan and self.intake.size_px > 128:
            found.append("models.wgan: at most 128 px")
        if (
            self.models.wgan
            and self.models.wgan.architecture == "kossen2022"
            and self.intake.size_px < 64
        ):
            found.append("models.wgan.architecture: kossen2022 needs at least 64 px")
        if self.models.glow and self.intake.size_px % 2**self.models.glow.levels:
            found.append(
                f"models.glow.levels: {self.intake.size_px} px cannot be halved that often"
            )
        if self.privacy.delta > 1 / (10 * self.privacy.planned_patients):
            found.append("privacy.delta: at most 1/(10 x planned_patients)")
        return found

    def _privatize_problems(self) -> Iterator[str]:
        """What of `synthesis.privatize` depends on groups, patients and the flow."""
        synthesis, glow = self.synthesis, self.models.glow
        if synthesis and synthesis.k > self.privacy.planned_patients:
            yield f"synthesis.k: {synthesis.k} is more than privacy.planned_patients {self.privacy.planned_patients}"
        if synthesis is None or synthesis.privatize is None or glow is None:
            return
        plan, where = synthesis.privatize, "synthesis.privatize"
        coordinates = self.latent_dimension >> (glow.levels - 1 if plan.levels == "top" else 0)
        if plan.components and plan.components > coordinates:
            yield f"{where}.components: {plan.components} of {coordinates} coordinates ({plan.levels})"
        dimension = plan.components or coordinates
        if plan.mechanism == "privunit" and dimension > PRIVUNIT_LARGEST_DIMENSION:
            yield (
                f"{where}.mechanism: privunit takes at most {PRIVUNIT_LARGEST_DIMENSION} coordinates, got {dimension}; "
                "set components and basis"
            )
        if plan.claim == "patient" and plan.egress == "averages" and synthesis.grouping != "random":
            yield (
                f"{where}.claim: expected grouping random for epsilon per patient, got {synthesis.grouping}: the images choose "
                "those groups, so its epsilon is per average; change synthesis.grouping or leave claim out"
            )
        if plan.delta and plan.delta > 1 / (10 * self.privacy.planned_patients):
            yield f"{where}.delta: at most 1/(10 x planned_patients), got {plan.delta:g}"

    def _metric_problems(self) -> Iterator[str]:
        """What of `synthesis.group_by` fits no other key."""
        plan = self.synthesis
        if plan is None or plan.group_by == "codes":
            return
        if plan.grouping in ("random", "anchors"):
            yield f"synthesis.group_by: grouping {plan.grouping} takes codes alone, got {plan.group_by}"
        if plan.spread_directions:
            yield "synthesis.spread_directions: not with group_by colour, whose groups keep the spread of colour"

    def _anchors_problems(self) -> Iterator[str]:
        """What fits `synthesis.anchors` to the grouping and to delta."""
        if self.synthesis is None:
            return
        plan, where = self.synthesis.anchors, "synthesis.anchors"
        if (self.synthesis.grouping == "anchors") != (plan is not None):
            yield f"{where}: expected with grouping anchors and with no other, got grouping {self.synthesis.grouping}"
        if plan and self.synthesis.privatize:
            yield "synthesis.privatize: not with grouping anchors, whose averages are private already"
        if plan and self.synthesis.spread_directions:
            yield "synthesis.spread_directions: not with grouping anchors, whose noise it would enlarge"
        if plan and plan.threshold_delta > self.privacy.delta / 2:
            yield f"{where}.threshold_delta: at most half of privacy.delta {self.privacy.delta:g}, got {plan.threshold_delta:g}"

    @property
    def cells_per_stratum(self) -> int:
        """How many anchors a stratum has: declared, or for 3k of the planned patients each."""
        if self.synthesis is None or self.synthesis.anchors is None:
            return 0
        declared = self.synthesis.anchors.cells_per_stratum
        eyes = 2 if self.intake.stratify_laterality else 1
        fitting = self.privacy.planned_patients // (
            3 * self.synthesis.k * len(self.strata()) * eyes
        )
        return declared or max(1, min(MOST_CELLS, fitting))

    def sides(self) -> tuple[int, ...]:
        """Return the lateralities that are strata of their own: 0 unknown, 1 left, 2 right; (0,) where none counts."""
        return (0, 1, 2) if self.intake.stratify_laterality else (0,)

    @property
    def latent_dimension(self) -> int:
        """D, the coordinates of a whole latent code: as many as an image has pixels and channels."""
        return self.intake.channels * self.intake.size_px**2

    def strata(self) -> tuple[str, ...]:
        """Return the released label names: labels after merging, in order of first appearance."""
        merged = (self.intake.merge_labels.get(label, label) for label in self.intake.labels)
        return tuple(dict.fromkeys(merged))

    def sampling_rate(self, model: TrainedModel) -> float:
        """Return q: the chance of a patient to be drawn in one step. A public constant."""
        return model.patients_per_step / self.privacy.planned_patients

    def weight_of(self, site: str) -> float:
        """Return a site's public share of every average (all shares sum to 1)."""
        total = sum(s.weight for s in self.sites)
        return next(s.weight for s in self.sites if s.name == site) / total

    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """Return every public file of the plan: starting checkpoints, and the basis of its latents."""
        plans = (self.models.gan, self.models.glow, self.models.wgan, self.models.encoder)
        starts = [plan.start for plan in plans if plan is not None and plan.start is not None]
        privatize = self.synthesis.privatize if self.synthesis else None
        return (*starts, *([privatize.basis] if privatize and privatize.basis else []))

    def hash(self) -> str:
        """Return the SHA-256 of the plan's canonical JSON, in hex."""
        return hashlib.sha256(canonical(self.model_dump(mode="json"))).hexdigest()


WORDS = (
    "amber anchor apple arrow autumn badge bamboo basin beacon birch bishop bloom bottle bridge bronze butter "
    "cabin camel candle canyon carbon castle cedar chalk cherry circle clover cobalt copper coral cotton crane "
    "crystal dahlia desert dolphin donkey dragon eagle ember engine falcon feather fennel ferry flint forest fossil "
    "garden garnet ginger glacier goblet granite harbor hazel heron hollow honey horizon ivory island jasmine juniper"
).split()


def fingerprint_words(plan_hash: str) -> str:
    """Return six words for reading a plan's hash aloud; both sides compute them from the hash (36 bits)."""
    bits = int(plan_hash[:9], 16)
    return " ".join(WORDS[(bits >> (6 * i)) % 64] for i in range(6))


def load_study(path: Path) -> Study:
    """Return the validated plan in a YAML file; raises ConfigurationError with every problem at once."""
    return load_yaml(path, Study)


def _checked(path: Path, checkpoint: Checkpoint) -> bytes:
    """A checkpoint's bytes, if they have the pinned SHA-256."""
    if not path.is_file():
        raise ConfigurationError(
            f"{path}: the starting checkpoint of the plan is missing", hint="put it beside the plan"
        )
    data = read_capped(path, CHECKPOINT_CAP_BYTES)
    got = hashlib.sha256(data).hexdigest()
    if got != checkpoint.sha256:
        raise RefusedError(
            f"{path}: SHA-256 is {got[:12]}..., the plan pins {checkpoint.sha256[:12]}...",
            hint="use the file that the plan was written for, or write and sign a new plan",
        )
    return data


def write_bundle(study_path: Path, key: Ed25519PrivateKey, out: Path) -> Study:
    """Write a signed bundle of the plan at `study_path` into the folder `out` and return the plan.

    Checkpoint paths in the plan are relative to the plan's folder.
    """
    study = load_study(study_path)
    for checkpoint in study.checkpoints():
        data = _checked(study_path.parent / checkpoint.file, checkpoint)
        atomic_write(out / "checkpoints" / checkpoint.name, data)
    text = read_capped(study_path, 1 << 20)
    atomic_write(out / "study.yaml", text)
    atomic_write(out / "study.sig", signing.sign(key, signing.PLAN, study.hash().encode()))
    return study


def open_bundle(folder: Path, public: Ed25519PublicKey) -> Study:
    """Return the plan of a bundle that `public` signed and whose checkpoints are the pinned ones."""
    if not (folder / "study.yaml").is_file() or not (folder / "study.sig").is_file():
        raise ConfigurationError(
            f"{folder}: expected a plan bundle with study.yaml and study.sig",
            hint="give the folder that the operator's `kohort-server sign` wrote",
        )
    study = load_study(folder / "study.yaml")
    signature = read_capped(folder / "study.sig", signing.KEY_CAP_BYTES)
    try:
        signing.verify(
            public, signing.PLAN, study.hash().encode(), signature, what=f"{folder}/study.sig"
        )
    except RefusedError as error:
        error.hint = (
            "ask the operator for the bundle again; both sides must run the same version of kohort"
        )
        raise
    for checkpoint in study.checkpoints():
        _checked(folder / "checkpoints" / checkpoint.name, checkpoint)
    return study


def copy_bundle(source: Path, public: Ed25519PublicKey, target: Path) -> Study:
    """Copy the files of a checked bundle, and nothing else, into `target`; returns the plan."""
    study = open_bundle(source, public)
    for name in ("study.yaml", "study.sig"):
        atomic_write(target / name, read_capped(source / name, 1 << 20))
    for checkpoint in study.checkpoints():
        (target / "checkpoints").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(
            source / "checkpoints" / checkpoint.name, target / "checkpoints" / checkpoint.name
        )
    return open_bundle(target, public)
