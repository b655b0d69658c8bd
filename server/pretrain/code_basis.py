"""Fits the public directions of a generator's codes, for `synthesis.anchors.basis`.

In: a plan with the starting checkpoints of generator and encoder beside it, and public images
(folders or .npz).
Out: a basis of `--components` directions: the principal ones of the encoder's W+ codes of these
images, each in the look of the generator's samples. Fundus photographs count as both eyes.
Guarantees: only these images are read, so with public ones it costs no privacy.
Not covered: a basis from patients' images, which would publish them; the refinement of codes, which
sites do and this does not.

Run: python -m server.pretrain.code_basis study.yaml IMAGES [IMAGES ...] OUT [--components 32]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.arrays import Floats, Images
from common.errors import ConfigurationError
from common.models import basis
from common.models.draws import device_of, draw_normal
from common.models.encoder import Encoder, load_encoder
from common.models.images import to_unit
from common.models.look import Look, average_looks, field_of, in_look, look_of
from common.models.stylegan import Generator, load_generator
from common.study.fields import CHECKPOINT_CAP_BYTES
from common.study.plan import Study, load_study
from common.wire import tensors
from server.pretrain.session import usable_device
from server.public_data.images import read_source

CPU = torch.device("cpu")
SAMPLES = 64  # for the generator's look
BATCH = 16


def fit_code_basis(
    study: Study,
    folder: Path,
    images: Sequence[Path],
    components: int,
    device: torch.device = CPU,
) -> basis.Basis:
    """Return the basis of the codes [L * d_w] of public images; `folder` is the plan's.

    Raises ConfigurationError for a plan without starting checkpoints, or too few images.
    """
    gan, coder = study.models.gan, study.models.encoder
    if gan is None or coder is None or gan.start is None or coder.start is None:
        raise ConfigurationError(
            "basis: the plan has no starting checkpoints of models.gan and models.encoder",
            hint="the basis is of their codes: name both",
        )
    intake = study.intake
    size, channels = intake.size_px, intake.channels
    generator = load_generator(_read(folder / gan.start.file), gan, size, channels)
    encoder = load_encoder(
        _read(folder / coder.start.file), coder.width, gan.latent, size, channels
    )
    is_fundus = study.modality == "fundus"
    sources = [read_source(path, size, channels, field_of_view=is_fundus) for path in images]
    shown = np.concatenate([source.images for source in sources])
    if is_fundus:
        shown = np.concatenate([shown, np.ascontiguousarray(shown[:, :, ::-1])])
    rows = encode(shown, generator.to(device), encoder.to(device), coder.iterations)
    return basis.fit(rows, components)


@torch.no_grad()
def encode(images: Images, generator: Generator, encoder: Encoder, iterations: int) -> Floats:
    """Return the codes float64 [N, L * d_w] of uint8 images [N, S, S, C]."""
    device = device_of(generator)
    common = _look_of_samples(generator)
    codes: list[Tensor] = []
    for start in range(0, len(images), BATCH):
        x = to_unit(images[start : start + BATCH], device)
        fields = field_of(x)
        seen = in_look(x, fields, look_of(x, fields), common).clamp(-1, 1)
        found = encoder.invert(seen, generator, iterations, keep_best=True, fields=fields)
        codes.append(found.codes.flatten(1).double().cpu())
    return np.asarray(torch.cat(codes))


def _look_of_samples(generator: Generator) -> Look:
    """The mean look of generator samples, in which photographs are encoded."""
    random = torch.Generator().manual_seed(0)
    z = draw_normal((SAMPLES, generator.latent), random, device_of(generator))
    made = generator.synthesis(generator.broadcast(generator.mapping(z)), noise=random)
    made = made.clamp(-1, 1)
    return average_looks(look_of(made, field_of(made)))


def _read(path: Path) -> tensors.Arrays:
    return tensors.read(path, max_bytes=CHECKPOINT_CAP_BYTES)


def main() -> None:
    """Read the plan and the images, write the basis."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path)
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("out", type=Path)
    parser.add_argument("--components", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    study = load_study(given.study)
    device = usable_device(given.device)
    found = fit_code_basis(study, given.study.parent, given.images, given.components, device)
    basis.save(found, given.out)


if __name__ == "__main__":
    main()
