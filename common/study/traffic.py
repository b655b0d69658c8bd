"""What a plan sends and stores: images, bytes over the wire, disk. No I/O, no torch.

In: a plan. Out: a `Traffic`.
Guarantees: public constants of the plan alone. A payload's bytes are those of its file
(common/wire/tensors.py: dumps), to the last one.
Not covered: TLS, Flower's own frames, journals, and files that a person asks for.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from common.study.families import FAMILIES, GAN, GLOW, Shapes
from common.study.plan import Study
from common.study.planned import (
    ENCODER_PREFIX,
    planned_encoder,
    planned_shapes,
    shapes_with_prefix,
)

NUMBER_BYTES = 4
HEADER_BYTES = 2048  # of a signed message, beside its payload
INBOX_MESSAGES = 4  # client/state/config.py


@dataclass(frozen=True)
class Traffic:
    """Bytes and images of a plan.

    `round_bytes`: of one instruction, and of one reply, by model. `site_down_bytes` and
    `site_up_bytes`: of one site over the whole study. `images`: that one site sends at most.
    `images_bytes`: of those.
    """

    round_bytes: dict[str, int]
    site_down_bytes: int
    site_up_bytes: int
    images: int
    images_bytes: int
    site_disk_bytes: int
    server_disk_bytes: int
    server_wire_bytes: int


def traffic_of(study: Study) -> Traffic:
    """Return what a plan sends and stores, with `privacy.planned_patients` at each site."""
    sites = len(study.sites)
    sizes = {name: file_bytes(planned_shapes(study, FAMILIES[name])) for name in _trained(study)}
    trained = sum(plan.rounds * sizes[name] for name, plan in study.models.trained().items())
    messages = sum(plan.rounds for plan in study.models.trained().values())
    images = most_images(study)
    images_bytes = images * study.intake.value_count
    asked = _weights_for_images(study, sizes)
    down = trained + asked + (messages + 1) * HEADER_BYTES
    up = trained + images_bytes + (messages + 1) * HEADER_BYTES
    bundle = sum(sizes.values()) + _encoder_bytes(study)
    largest = max(sizes.values())
    intake = study.intake
    cohort = study.privacy.planned_patients * intake.planes * intake.size_px**2
    return Traffic(
        round_bytes=sizes,
        site_down_bytes=down,
        site_up_bytes=up,
        images=images,
        images_bytes=images_bytes,
        # the cohort, all replies (which stay), the plan, the messages that wait and a job
        site_disk_bytes=cohort + up + bundle + (INBOX_MESSAGES + 2) * largest,
        # two sets of weights of each model, the replies of one round, all images twice, the plan
        server_disk_bytes=2 * sum(sizes.values())
        + sites * largest
        + 2 * sites * images_bytes
        + bundle,
        server_wire_bytes=sites * (down + up),
    )


def most_images(study: Study) -> int:
    """Return how many images one site sends at most: the plan's cap, or what its groups give."""
    if study.synthesis is None:
        return 0
    possible = study.privacy.planned_patients // study.synthesis.k
    return min(study.synthesis.max_images_per_site, possible * study.synthesis.outputs_per_group)


def file_bytes(shapes: Shapes) -> int:
    """Return the bytes of float32 tensors of these shapes in a file."""
    header = {}
    offset = 0
    for name in sorted(shapes):
        end = offset + NUMBER_BYTES * math.prod(shapes[name])
        header[name] = {
            "dtype": "F32",
            "shape": list(shapes[name]),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":"), sort_keys=True)
    return 8 + -(-len(text) // 8) * 8 + offset


def _trained(study: Study) -> tuple[str, ...]:
    return tuple(study.models.trained())


def _weights_for_images(study: Study, sizes: dict[str, int]) -> int:
    """The bytes of the weights that the synthesis gets."""
    if study.synthesis is None:
        return 0
    needed = sizes.get(GAN.name, 0)
    if study.synthesis.privatizes_averages:
        needed += sizes.get(GLOW.name, 0)
    return needed


def _encoder_bytes(study: Study) -> int:
    """The bytes of the encoder's checkpoint."""
    if study.models.encoder is None or study.models.gan is None:
        return 0
    return file_bytes(shapes_with_prefix({ENCODER_PREFIX: planned_encoder(study)}))
