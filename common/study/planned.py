"""The layers of a plan's networks, by prefix of their tensors. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable

from common.errors import Bug
from common.models import layouts
from common.models.layouts import Layer
from common.study.families import GAN, GLOW, WGAN, Family, Shapes
from common.study.plan import Study

Parts = dict[str, tuple[Layer, ...]]
ENCODER_PREFIX = "encoder."


def planned_parts(study: Study, family: Family) -> Parts:
    """Return the layers of each network of a family, by the prefix of its tensors."""
    return LAYOUTS[family.name](study)


def planned_shapes(study: Study, family: Family) -> Shapes:
    """Return names and shapes of a family's tensors, as the plan's sizes give them."""
    return shapes_with_prefix(planned_parts(study, family))


def shapes_with_prefix(parts: Parts) -> Shapes:
    """Return all tensors' shapes by global name."""
    found: dict[str, tuple[int, ...]] = {}
    for prefix, layers in parts.items():
        for name, shape in layouts.shapes_of(layers).items():
            found[prefix + name] = shape
    return found


def planned_encoder(study: Study) -> tuple[Layer, ...]:
    """Return the layers of the plan's encoder."""
    encoder = study.models.encoder
    gan = study.models.gan
    if encoder is None or gan is None:
        raise Bug("planned: the plan has no models.encoder beside models.gan")
    intake = study.intake
    return layouts.encoder(intake.size_px, intake.channels, encoder.width, gan.latent)


def _gan(study: Study) -> Parts:
    plan = study.models.gan
    if plan is None:
        raise Bug("planned: the plan has no models.gan")
    size_px, channels = study.intake.size_px, study.intake.channels
    return {
        "generator.": layouts.generator(size_px, channels, plan.width, plan.latent),
        "critic.": layouts.critic(size_px, channels, plan.width),
    }


def _glow(study: Study) -> Parts:
    plan = study.models.glow
    if plan is None:
        raise Bug("planned: the plan has no models.glow")
    size_px, channels = study.intake.size_px, study.intake.channels
    sizes = (plan.levels, plan.steps_per_level, plan.width, plan.doublings)
    return {"glow.": layouts.flow(size_px, channels, *sizes)}


def _wgan(study: Study) -> Parts:
    plan = study.models.wgan
    if plan is None:
        raise Bug("planned: the plan has no models.wgan")
    size_px = study.intake.size_px
    generator = layouts.pair_generator(
        size_px, plan.generator_width, plan.latent, plan.architecture
    )
    return {
        "generator.": generator,
        "average.": generator,
        "critic.": layouts.pair_critic(size_px, plan.width, plan.architecture),
    }


LAYOUTS: dict[str, Callable[[Study], Parts]] = {GAN.name: _gan, GLOW.name: _glow, WGAN.name: _wgan}
