"""The sizes that a plan gives a model, and those that a checkpoint's tensors show.

In: a plan; or names and shapes from a checkpoint's header. Out: sizes by key of the plan.
Guarantees: numbers from a file are only compared: no network of their size is built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from common.models import layouts
from common.models.sizes import IMAGE_SIZES_PX, PAIR_SIZES_PX, SMALL
from common.study.families import Shapes
from common.study.plan import Study
from common.study.planned import ENCODER_PREFIX
from common.study.planned import shapes_with_prefix as named

Sizes = Mapping[str, object]  # the keys of a plan that size a model, with their values
SIZE_KEY = "intake.size_px"
MOST_LEVELS = 7
MOST_STEPS = 64
MOST_DOUBLINGS = 4


def planned_sizes(study: Study, key: str) -> Sizes:
    """Return the keys that size a model, with the plan's values. `key`: `models.gan`, ..."""
    return PLANNED[key](study)


def recognise(key: str, found: Shapes) -> Sizes | None:
    """Return the sizes at which a checkpoint's tensors are those of a network; None for none."""
    for sizes, expected in CANDIDATES[key](found):
        if expected == dict(found):
            return sizes
    return None


def _gan_sizes(study: Study) -> Sizes:
    plan = study.models.gan
    assert plan is not None
    intake = study.intake
    return _gan_keys(intake.size_px, intake.channels, plan.width, plan.latent)


def _encoder_sizes(study: Study) -> Sizes:
    plan = study.models.encoder
    gan = study.models.gan
    assert plan is not None and gan is not None
    intake = study.intake
    return _encoder_keys(intake.size_px, intake.channels, plan.width, gan.latent)


def _glow_sizes(study: Study) -> Sizes:
    plan = study.models.glow
    assert plan is not None
    intake = study.intake
    sizes = (plan.levels, plan.steps_per_level, plan.width, plan.doublings)
    return _glow_keys(intake.size_px, intake.channels, *sizes)


def _wgan_sizes(study: Study) -> Sizes:
    plan = study.models.wgan
    assert plan is not None
    return _wgan_keys(
        study.intake.size_px, plan.width, plan.generator_width, plan.latent, plan.architecture
    )


def _gan_keys(size_px: int, channels: int, width: int, latent: int) -> Sizes:
    sizes = {SIZE_KEY: size_px, "intake.channels": channels}
    return sizes | {"models.gan.width": width, "models.gan.latent": latent}


def _encoder_keys(size_px: int, channels: int, width: int, latent: int) -> Sizes:
    sizes = {SIZE_KEY: size_px, "intake.channels": channels}
    return sizes | {"models.encoder.width": width, "models.gan.latent": latent}


def _glow_keys(
    size_px: int, channels: int, levels: int, steps: int, width: int, doublings: int
) -> Sizes:
    sizes = {SIZE_KEY: size_px, "intake.channels": channels, "models.glow.levels": levels}
    sizes |= {"models.glow.doublings": doublings}
    return sizes | {"models.glow.steps_per_level": steps, "models.glow.width": width}


def _wgan_keys(size_px: int, width: int, wide: int, latent: int, architecture: str) -> Sizes:
    sizes = {SIZE_KEY: size_px, "models.wgan.width": width, "models.wgan.generator_width": wide}
    return sizes | {"models.wgan.latent": latent, "models.wgan.architecture": architecture}


PLANNED: dict[str, Callable[[Study], Sizes]] = {
    "models.gan": _gan_sizes,
    "models.glow": _glow_sizes,
    "models.wgan": _wgan_sizes,
    "models.encoder": _encoder_sizes,
}


def _gan_candidates(found: Shapes) -> Iterator[tuple[Sizes, Shapes]]:
    latent = _side(found, "generator.mapping.layers.0.bias", 0)
    channels = _side(found, "generator.image_bias", 0)
    last = _most(found, "generator.same.")
    width = _side(found, f"generator.same.{last}.bias", 0)
    for size_px in IMAGE_SIZES_PX:
        parts = {
            "generator.": layouts.generator(size_px, channels, width, latent),
            "critic.": layouts.critic(size_px, channels, width),
        }
        yield _gan_keys(size_px, channels, width, latent), named(parts)


def _encoder_candidates(found: Shapes) -> Iterator[tuple[Sizes, Shapes]]:
    latent = _side(found, "encoder.shared.bias", 0)
    width = _side(found, "encoder.trunk.0.0.bias", 0)
    channels = _side(found, "encoder.trunk.0.0.weight", 1) // 2
    for size_px in IMAGE_SIZES_PX:
        layers = layouts.encoder(size_px, channels, width, latent)
        yield _encoder_keys(size_px, channels, width, latent), named({ENCODER_PREFIX: layers})


def _glow_candidates(found: Shapes) -> Iterator[tuple[Sizes, Shapes]]:
    levels = min(_most(found, "glow.levels.") + 1, MOST_LEVELS)
    steps = min(_most(found, "glow.levels.0.couplings.") + 1, MOST_STEPS)
    width = _side(found, "glow.levels.0.couplings.0.blend.bias", 0)
    channels = _side(found, "glow.levels.0.mixings.0.bias", 0) // 4
    grown = any(name.startswith("glow.doublings.") for name in found)
    doublings = min(_most(found, "glow.doublings.") + grown, MOST_DOUBLINGS)
    for size_px in IMAGE_SIZES_PX:
        sizes = (size_px, channels, levels, steps, width, doublings)
        yield _glow_keys(*sizes), named({"glow.": layouts.flow(*sizes)})


def _wgan_candidates(found: Shapes) -> Iterator[tuple[Sizes, Shapes]]:
    latent = _side(found, "generator.start.weight", 1)
    width = _side(found, "critic.layers.0.bias", 0)
    last = _most(found, "generator.layers.")
    for architecture, sizes_px in PAIR_SIZES_PX.items():
        # the last layer has `wide` channels before it, in a transposed convolution on the first
        # axis; of `mask-first` it is a norm of so many
        axis = 1 if architecture == SMALL else 0
        wide = _side(found, f"generator.layers.{last}.weight", axis)
        for size_px in sizes_px:
            generator = layouts.pair_generator(size_px, wide, latent, architecture)
            critic = layouts.pair_critic(size_px, width, architecture)
            parts = {"generator.": generator, "average.": generator, "critic.": critic}
            yield _wgan_keys(size_px, width, wide, latent, architecture), named(parts)


CANDIDATES: dict[str, Callable[[Shapes], Iterable[tuple[Sizes, Shapes]]]] = {
    "models.gan": _gan_candidates,
    "models.glow": _glow_candidates,
    "models.wgan": _wgan_candidates,
    "models.encoder": _encoder_candidates,
}


def _side(found: Shapes, name: str, axis: int) -> int:
    """One side of a tensor's shape, 1 where there is none."""
    shape = found.get(name, ())
    if axis < len(shape):
        return max(1, shape[axis])
    return 1


def _most(found: Shapes, prefix: str) -> int:
    """The largest number that follows a prefix in any name, 0 where none does."""
    numbers = [0]
    for name in found:
        text = name.removeprefix(prefix).partition(".")[0]
        if name.startswith(prefix) and text.isascii() and text.isdigit():
            numbers.append(int(text[:3]))
    return max(numbers)
