"""The flow of an approved plan, and the mechanism that privatizes one image with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from client.daemon.site import Site
from client.single.request import Request
from client.state.jobs import Progress
from client.synthesize.privatize import encode_released, privatize
from common.arrays import Images
from common.devices import resolve, settle
from common.errors import ConfigurationError
from common.models import glow_checkpoint
from common.models.basis import Basis
from common.models.basis import load as load_basis
from common.models.glow import Glow
from common.privacy.events import latent_mechanism, level_dimension
from common.privacy.latent_mechanisms import Latent
from common.privacy.noise import NoiseSource
from common.storage.files import read_capped
from common.study.architectures import build_flow
from common.study.plan import Study
from common.study.synthesis import PrivatizePlan
from common.study.training import GlowPlan
from common.wire.messages import digest_of
from common.wire.tensors import read as read_tensors

WEIGHTS_CAP_BYTES = 1 << 30
BATCH_IMAGES = 16  # images between two updates of the progress bar


@dataclass(frozen=True)
class Flow:
    """The plan's flow, the mechanism for one image, the basis if any, the weights' digest."""

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

    def can_encode(self, pixels: Images) -> bool:
        """Return whether the flow can encode this image; otherwise it counts as the zero latent."""
        return bool(encode_released(pixels[None], self.model, self.model.dimension).any())

    def draw(self, images: Sequence[Images], progress: Progress) -> list[Images]:
        """Return one privatized image for each, with fresh noise."""
        drawn: list[Images] = []
        for start in range(0, len(images), BATCH_IMAGES):
            groups = [[image[None]] for image in images[start : start + BATCH_IMAGES]]
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


def load_flow(site: Site, study: Study, request: Request) -> Flow:
    """Return the flow of an approved plan with the mechanism for one image (k = 1).

    Raises ConfigurationError, RefusedError.
    """
    layout = study.models.glow
    plan = _privatize_plan(study, request)
    if layout is None or plan is None:
        raise ConfigurationError(
            f"plan {study.name}: it has no flow or names no mechanism", hint="name one: --mechanism"
        )
    checkpoints = site.plans.folder(study.hash()) / "checkpoints"
    weights = _weights_file(study, layout, request, checkpoints)
    model = build_flow(study)
    glow_checkpoint.load_weights(model, read_tensors(weights, max_bytes=WEIGHTS_CAP_BYTES))
    devices = resolve(site.config.compute)
    settle(site.config.compute, devices)
    model.to(devices[0])
    coordinates = _coordinates(study, model, request)
    mechanism = latent_mechanism(plan, coordinates, 1, "random")
    basis = _load_basis(plan, request.basis, checkpoints)
    digest = digest_of(read_capped(weights, WEIGHTS_CAP_BYTES))
    return Flow(study, model, plan, mechanism, basis, digest)


def _privatize_plan(study: Study, request: Request) -> PrivatizePlan | None:
    """Return the request's own section, else the plan's, if there is one."""
    if request.section is not None:
        return request.section
    if study.synthesis is not None:
        return study.synthesis.privatize
    return None


def _weights_file(study: Study, layout: GlowPlan, request: Request, checkpoints: Path) -> Path:
    """Return the weights of a release if the request names them, else the plan's checkpoint."""
    if request.weights is not None:
        if not request.weights.is_file():
            raise ConfigurationError(
                f"{request.weights}: no such file", hint="--weights names flow weights of a release"
            )
        return request.weights
    if layout.start is None or not (checkpoints / layout.start.name).is_file():
        raise ConfigurationError(
            f"plan {study.name}: the flow has no weights yet",
            hint="--weights FILE of a release's models",
        )
    return checkpoints / layout.start.name


def _coordinates(study: Study, model: Glow, request: Request) -> int:
    """Return how many coordinates the mechanism covers: the plan's, or those the person chose."""
    if request.section is None:
        return level_dimension(study)
    if request.section.levels == "top":
        return model.top_dimension
    return model.dimension


def _load_basis(plan: PrivatizePlan, given: Path | None, checkpoints: Path) -> Basis | None:
    """Return the coordinates of the public basis that the mechanism uses, if any."""
    path = given
    if path is None and plan.basis is not None:
        path = checkpoints / plan.basis.name
    if path is None or not plan.components:
        return None
    return load_basis(path).first(plan.components)
