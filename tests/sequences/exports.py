"""`kohort-site privatize --export` without a flow's numerics: what a person carries out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from common.arrays import Images
from common.privacy.events import latent_event
from common.study.plan import Study
from tests.sequences.numerics import Numerics, latent_loss


class SingleFlow:
    """Stands for client/single/flow.py: the same mechanism, and images with fresh noise."""

    def __init__(self, study: Study, numerics: Numerics) -> None:
        self.study = study
        self.numerics = numerics
        self.mechanism = latent_event(study)
        self.plan = study.privatize
        self.basis = None
        self.digest = "0" * 64
        self.statement = "privatized"

    def can_encode(self, pixels: Images) -> bool:
        """Return that the flow knows every photograph."""
        return True

    def draw(self, images: Sequence[Images], progress: object) -> list[Images]:
        """Return one privatized image for each: one application, of one image a patient."""
        return self.numerics.draw_single(self.study, images, latent_loss(self.study))


def read_exports(folder: Path) -> list[Images]:
    """Return the images in a folder that was handed over."""
    return [np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))]
