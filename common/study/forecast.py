"""What a plan asks of a site's machine: operations and memory of each phase. No I/O, no torch.

In: a plan. Out: a `Phase` for each model and for each part of the synthesis.
Guarantees: public constants of the plan alone; nothing here knows a patient or a cohort. Operations
are counted from the layers of the networks (common/models/layouts.py).
Not covered: ingest, grouping, audit and waiting. Memory is an estimate, which
tests/common/study/test_forecast.py holds against what children take.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from common.models.layouts import Layer, kept_by, products_of, weight_count
from common.study.families import FAMILIES, GAN, GLOW, WGAN, Family
from common.study.plan import Study
from common.study.planned import planned_encoder, planned_parts, planned_shapes
from common.study.synthesis import Synthesis
from common.study.training import GanPlan, TrainedModel, WganPlan

MIB = 1 << 20
NUMBER_BYTES = 4
# A child with torch loaded and nothing done, and a margin.
PROGRAM_BYTES = 800 * MIB
# A chunk of patients of a private step on a CPU takes at least this, with its trials, and several
# patients take at most a GiB together (client/learn/fast/backends.py).
CHUNK_BYTES = 192 * MIB
MOST_CHUNK_BYTES = 1024 * MIB
# Costs of a chunk, of a call and of a value in products (backends.py); calls of torch for a layer.
CHUNK_PRODUCTS = 60e6
CALL_PRODUCTS = 0.64e6
VALUE_PRODUCTS = 5.0
CALLS_A_LAYER = 4.3
# Numbers that one patient's loss makes, over those that a backward pass must keep.
MADE = {GAN.name: 1.5, GLOW.name: 2.7, WGAN.name: 1.1}
# Copies of a model's weights: as sent, as loaded, before the round, and the update twice.
WEIGHT_COPIES = 5
# Bytes of each trained number: its exact sum, its noise, a patient's row, the optimiser's means.
TRAINED_BYTES = 40
# Over the numbers that a backward pass keeps: gradients that live beside them, and the allocator.
SLACK = 2.0
# Products of a forward and backward pass over those of the forward pass alone.
WITH_WEIGHTS = 3
THROUGH = 2
# Samples of a generator step (client/learn/train_gan.py, train_wgan.py).
GENERATOR_BATCH = {GAN.name: 16, WGAN.name: 32}
ENCODER_BATCH = 8  # client/learn/train_encoder.py
BATCH = 16  # of the inversion, of the alignment and of the flow's encoding
REFERENCE_SAMPLES = 192  # client/synthesize/reference.py
STYLE_CHANNELS = 24  # client/synthesize/features.py


@dataclass(frozen=True)
class Phase:
    """A phase of a site's work, over the whole study.

    `rounds`: how often it comes. `products`: multiply-adds, `noise`: draws of privacy noise, and
    `calls` of torch in private steps, of all rounds together. `memory_bytes`: its peak.
    """

    name: str
    rounds: int
    steps: int
    products: int
    noise: int
    memory_bytes: int
    calls: int = 0


def phases(study: Study) -> tuple[Phase, ...]:
    """Return the phases of a plan at a site of `privacy.planned_patients`, in their order."""
    found = [_training(study, FAMILIES[name]) for name in study.models.trained()]
    if study.synthesis is not None:
        found += _synthesis(study, study.synthesis)
    return tuple(found)


def _training(study: Study, family: Family) -> Phase:
    """The private training of one model."""
    plan = study.models.trained()[family.name]
    parts = planned_parts(study, family)
    learned = parts["glow." if family is GLOW else "critic."]
    trained = family.private_dimension(planned_shapes(study, family), plan.trainable)
    numbers = sum(weight_count(layers) for layers in parts.values())

    # the private steps: each patient's items, with the fakes that a critic sees beside them
    items = plan.items_per_patient * (1 + _fakes_per_item(plan))
    each = WITH_WEIGHTS * items * products_of(learned)
    row = NUMBER_BYTES * (trained + int(MADE[family.name] * items * kept_by(learned)))
    calls = CHUNK_PRODUCTS / CALL_PRODUCTS + CALLS_A_LAYER * len(learned)
    chunk = _patients_of_a_chunk(plan.patients_per_step, items, learned, trained)
    calls *= plan.steps * math.ceil(plan.patients_per_step / chunk)
    several = min(MOST_CHUNK_BYTES, int(SLACK * chunk * row))
    memory = max(CHUNK_BYTES, several, int(SLACK * row))

    # the generator: the patients' fakes, and steps of its own
    steps_of_generator = 0
    of_generator = 0
    if family is not GLOW:
        generator = parts["generator."]
        each += (items - plan.items_per_patient) * products_of(generator)
        batch = GENERATOR_BATCH[family.name]
        both = WITH_WEIGHTS * products_of(generator) + THROUGH * products_of(learned)
        of_generator = batch * both
        steps_of_generator = plan.steps // _critic_steps(plan)
        kept = batch * (kept_by(generator) + kept_by(learned))
        memory = max(memory, int(SLACK * NUMBER_BYTES * kept))

    products = plan.steps * plan.patients_per_step * each + steps_of_generator * of_generator
    memory += WEIGHT_COPIES * NUMBER_BYTES * numbers + TRAINED_BYTES * trained
    noise = plan.steps * (trained + study.privacy.canaries)
    memory += PROGRAM_BYTES
    return Phase(family.name, plan.rounds, plan.steps, products, noise, memory, int(calls))


def _patients_of_a_chunk(expected: int, items: int, layers: tuple[Layer, ...], trained: int) -> int:
    """How many patients a private step works at a time on a CPU, as backends.py balances it."""
    fixed = CHUNK_PRODUCTS + CALL_PRODUCTS * CALLS_A_LAYER * len(layers)
    each = items * products_of(layers) + VALUE_PRODUCTS * trained
    balanced = min(2.0 * expected, math.sqrt(2 * expected * fixed / each))
    return 1 << math.floor(math.log2(max(1.0, balanced)))


def _fakes_per_item(plan: TrainedModel) -> int:
    """Generated items that the private step sees beside a real one."""
    if isinstance(plan, GanPlan | WganPlan):
        return plan.fakes_per_item
    return 0


def _critic_steps(plan: TrainedModel) -> int:
    """Private steps for one step of the generator."""
    if isinstance(plan, GanPlan | WganPlan):
        return plan.critic_steps
    return 1


def _synthesis(study: Study, synthesis: Synthesis) -> Iterator[Phase]:
    """The parts of the synthesis, for one image of each planned patient."""
    patients = study.privacy.planned_patients
    values = study.intake.value_count
    if synthesis.needs_generator:
        parts = planned_parts(study, GAN)
        encoder = planned_encoder(study)
        yield _encoder_training(study, parts["generator."], encoder)
        yield _inversion(study, synthesis, parts["generator."], encoder)
        yield _alignment(study, synthesis, parts["generator."], parts["critic."])
    if synthesis.privatize is not None:
        flow = planned_parts(study, GLOW)["glow."]
        # each patient's image into the flow, in a batch of its own that is filled up, and each
        # group's out of it
        products = (BATCH * patients + patients // synthesis.k) * products_of(flow)
        live = BATCH * (values + kept_by(flow) // 4)
        memory = NUMBER_BYTES * (2 * weight_count(flow) + int(SLACK * live))
        yield _part("privatize", 1, products, memory)


def _encoder_training(
    study: Study, generator: tuple[Layer, ...], encoder: tuple[Layer, ...]
) -> Phase:
    """The encoder, on samples of the generator."""
    plan = study.models.encoder
    assert plan is not None
    # sample; iterate on average half of the iterations; then one step back through both
    before = (plan.iterations + 1) / 2
    forward = products_of(generator) * (1 + before) + products_of(encoder) * (before - 1)
    back = THROUGH * products_of(generator) + WITH_WEIGHTS * products_of(encoder)
    products = plan.steps * ENCODER_BATCH * int(forward + back)
    kept = ENCODER_BATCH * (kept_by(generator) + kept_by(encoder))
    weights = 5 * weight_count(encoder) + 2 * weight_count(generator)
    return _part("encoder", plan.steps, products, NUMBER_BYTES * (int(SLACK * kept) + weights))


def _inversion(
    study: Study, synthesis: Synthesis, generator: tuple[Layer, ...], encoder: tuple[Layer, ...]
) -> Phase:
    """The inversion of one image of each planned patient, and of the reference's samples."""
    plan = study.models.encoder
    assert plan is not None
    iterate = plan.iterations * (products_of(generator) + products_of(encoder))
    # upright and turned twice, then the refinement
    of_image = 3 * iterate
    of_image += synthesis.inversion_steps * (1 + THROUGH) * products_of(generator)
    images = study.privacy.planned_patients
    products = images * of_image + REFERENCE_SAMPLES * 2 * iterate
    kept = BATCH * kept_by(generator)
    values = study.intake.value_count
    # the reference's samples with their inversions; the cohort's lie on disk, by blocks
    held = 2 * REFERENCE_SAMPLES * values
    weights = 2 * (weight_count(generator) + weight_count(encoder))
    return _part("invert", images, products, NUMBER_BYTES * (int(SLACK * kept) + held + weights))


def _alignment(
    study: Study, synthesis: Synthesis, generator: tuple[Layer, ...], critic: tuple[Layer, ...]
) -> Phase:
    """The alignment of each group's code, and the features of each patient's image."""
    patients = study.privacy.planned_patients
    groups = patients // synthesis.k
    area = study.intake.size_px**2
    style = 9 * STYLE_CHANNELS * (study.intake.channels + STYLE_CHANNELS) * area
    grams = STYLE_CHANNELS**2 * area
    features = products_of(critic) + style + grams
    of_group = synthesis.alignment_steps * (1 + THROUGH) * (products_of(generator) + features)
    of_group += synthesis.outputs_per_group * products_of(generator)
    kept = kept_by(generator) + kept_by(critic) + 4 * STYLE_CHANNELS * area
    # of the members of as many groups as are aligned at once
    members = min(patients, BATCH * (2 * synthesis.k - 1))
    tables = members * synthesis.windows**2 * STYLE_CHANNELS**2
    products = patients * features + groups * of_group
    weights = weight_count(generator) + weight_count(critic)
    memory = NUMBER_BYTES * (int(SLACK * BATCH * kept) + tables + 2 * weights)
    return _part("align", groups, products, memory)


def _part(name: str, steps: int, products: int, memory_bytes: int) -> Phase:
    """A part of the synthesis, which comes once and draws no noise that counts."""
    return Phase(name, 1, steps, products, 0, PROGRAM_BYTES + memory_bytes)


# --- time -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hardware:
    """A named machine: multiply-adds a second of the phases as they run, seconds of other costs.

    `noise_s`: of a noise value. `call_s`: of a call of torch in a private step. `source`: where the
    rates come from.
    """

    name: str
    products_per_s: float
    noise_s: float
    call_s: float
    source: str


# Rates of whole phases, not of a kernel at its best. Those of one core: products from a run of
# benchmarks/forecast.py on a busy machine (docs/measurements/forecast.md), calls from backends.py.
CORE = Hardware("1 core", 2.8e10, 4e-8, 1.1e-4, "measured on one processor, the noise assumed")
CORES = Hardware("16 cores", 2.8e11, 5e-9, 1.1e-4, "10 times one core, assumed")
GPU = Hardware("1 H100", 6e12, 5e-9, 3e-5, "a fifth of the data sheet's float32 rate, assumed")
HARDWARE = (CORE, CORES, GPU)


def hours(phase: Phase, hardware: Hardware) -> float:
    """Return an estimate of the phase's hours over the whole study."""
    seconds = phase.products / hardware.products_per_s
    seconds += phase.noise * hardware.noise_s + phase.calls * hardware.call_s
    return seconds / 3600


def peak_bytes(found: tuple[Phase, ...]) -> int:
    """Return the largest memory of any phase."""
    return max((phase.memory_bytes for phase in found), default=PROGRAM_BYTES)
