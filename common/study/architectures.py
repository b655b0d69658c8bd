"""The networks of a plan's models, by prefix of their tensors."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from common.errors import Bug
from common.models import stylegan, wgan
from common.models.glow import Glow
from common.study.families import GAN, GLOW, WGAN, Family
from common.study.plan import Study

Networks = dict[str, nn.Module]


def build(study: Study, family: Family) -> Networks:
    """Return the plan's networks of one family with random starting values, by prefix."""
    return BUILDERS[family.name](study)


def build_gan(study: Study) -> Networks:
    """Return the plan's style-based generator and its critic."""
    intake = study.intake
    plan = study.models.gan
    if plan is None:
        raise Bug("architectures: the plan has no models.gan")
    return {
        "generator.": stylegan.Generator(intake.size_px, intake.channels, plan.width, plan.latent),
        "critic.": stylegan.Critic(intake.size_px, intake.channels, plan.width),
    }


def build_glow(study: Study) -> Networks:
    """Return the plan's flow, by prefix."""
    return {"glow.": build_flow(study)}


def build_flow(study: Study) -> Glow:
    """Return the plan's flow with its public starting values."""
    intake = study.intake
    plan = study.models.glow
    if plan is None:
        raise Bug("architectures: the plan has no models.glow")
    sizes = (plan.levels, plan.steps_per_level, plan.width, plan.doublings)
    return Glow(intake.size_px, intake.channels, *sizes)


def build_wgan(study: Study) -> Networks:
    """Return the plan's pair generator, its moving average and its critic."""
    plan = study.models.wgan
    if plan is None:
        raise Bug("architectures: the plan has no models.wgan")
    generator, critic = wgan.build(plan, study.intake.size_px)
    average, _ = wgan.build(plan, study.intake.size_px)
    return {"generator.": generator, "average.": average, "critic.": critic}


BUILDERS: dict[str, Callable[[Study], Networks]] = {
    GAN.name: build_gan,
    GLOW.name: build_glow,
    WGAN.name: build_wgan,
}
