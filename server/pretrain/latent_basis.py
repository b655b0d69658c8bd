"""Fits the public directions of a flow's latents, for `synthesis.privatize.basis`.

In: a plan with the flow's starting checkpoint beside it, and public images (folder or .npz).
Out: a basis of as many directions as the plan's `components`, on the plan's level: those that vary
most with the pictures (picture_directions.py). For `gaussian` it is scaled to the clip's radius.
Guarantees: only these images are read, so with public ones it costs no privacy.
Not covered: a basis from patients' images, which would publish them.

Run: python -m server.pretrain.latent_basis study.yaml IMAGES OUT
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from common.errors import ConfigurationError
from common.models import basis, latents
from common.models.glow_checkpoint import load
from common.privacy.events import level_dimension
from common.study.architectures import build_flow
from common.study.plan import Study, load_study
from server.pretrain.picture_directions import fit_to_pictures, scale_to_radius
from server.pretrain.session import usable_device
from server.public_data.images import read_source

CPU = torch.device("cpu")


def fit_basis(
    study: Study, checkpoint: Path, images: Path, device: torch.device = CPU
) -> basis.Basis:
    """Return the basis for a plan's level and components from public images.

    Raises ConfigurationError when the plan asks for none or there are too few images.
    Raises RefusedError for a flow that does not fit.
    """
    plan = study.synthesis and study.synthesis.privatize
    if not plan or plan.components is None or study.models.glow is None:
        raise ConfigurationError(
            "basis: the plan asks for none (synthesis.privatize.components)",
            hint="add components and basis",
        )

    # the images' latents, and the directions on the plan's level
    intake = study.intake
    flow = build_flow(study)
    load(flow, checkpoint)
    is_fundus = study.modality == "fundus"
    source = read_source(images, intake.size_px, intake.channels, field_of_view=is_fundus)
    rows = latents.encode_images(source.images, flow.to(device).eval())
    released = rows[:, -level_dimension(study) :]
    found = fit_to_pictures(released, source.images, plan.components, source.weights)
    if plan.mechanism == "gaussian":
        return scale_to_radius(found, released, source.weights)
    return found


def main() -> None:
    """Read the plan and the images, write the basis."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)

    # the plan's flow, and the basis
    study = load_study(given.study)
    start = study.models.glow and study.models.glow.start
    if not start:
        raise ConfigurationError(f"{given.study}: models.glow has no starting checkpoint")
    checkpoint = given.study.parent / start.file
    device = usable_device(given.device)
    basis.save(fit_basis(study, checkpoint, given.images, device), given.out)


if __name__ == "__main__":
    main()
