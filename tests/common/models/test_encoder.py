"""The encoder: shapes, iterations, independent images of a batch, the shipped checkpoint."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import RefusedError
from common.models.encoder import Encoder, load_encoder
from common.models.images import to_unit
from common.models.stylegan import Generator
from common.models.weights import load_weights, numpy_weights
from common.wire.tensors import read

torch.set_num_threads(1)
SHIPPED = Path(__file__).parents[3] / "deploy" / "checkpoints" / "fundus-64"
DEMO = Path(__file__).parents[3] / "deploy" / "demo" / "fundus"


@pytest.mark.parametrize(
    ("size_px", "layers", "channels"), [(32, 8, 1), (64, 10, 3), (96, 10, 3), (128, 12, 3)]
)
def test_codes_fit_the_generator_of_the_same_size(size_px: int, layers: int, channels: int) -> None:
    generator, encoder = Generator(size_px, channels, 8, 16), Encoder(size_px, channels, 8, 16)
    with torch.no_grad():
        found = encoder.invert(torch.rand(2, channels, size_px, size_px), generator, 2)
        assert found.codes.shape == (2, layers, 16)
        assert torch.equal(generator.synthesis(found.codes), found.reconstructions)


def test_each_iteration_adds_a_residual_of_the_reconstruction_before() -> None:
    generator, encoder = Generator(32, 3, 8, 16), Encoder(32, 3, 8, 16)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        one, two = encoder.invert(x, generator, 1), encoder.invert(x, generator, 2)
        assert torch.allclose(two.codes, one.codes + encoder(x, one.reconstructions), atol=1e-6)


def test_the_best_step_is_kept_for_each_image_by_itself() -> None:
    generator, encoder = Generator(32, 3, 8, 16), Encoder(32, 3, 8, 16)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.3 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(3)
            )
        x = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
        steps = [encoder.invert(x, generator, count) for count in (1, 2, 3)]
        best = encoder.invert(x, generator, 3, keep_best=True)
        fields = torch.zeros(8, 1, 32, 32)
        fields[..., :4, :4] = 1
        inside = encoder.invert(x, generator, 3, keep_best=True, fields=fields)
    wrong = torch.stack([(s.reconstructions.clamp(-1, 1) - x).square() for s in steps])
    chosen = wrong.mean((2, 3, 4)).argmin(0)
    assert len(chosen.unique()) > 1  # or the test shows nothing
    for i, step in enumerate(chosen.tolist()):
        assert torch.equal(best.codes[i], steps[step].codes[i])
        assert torch.equal(best.reconstructions[i], steps[step].reconstructions[i])
    # or by what lies inside a field alone
    by_field = wrong[..., :4, :4].mean((2, 3, 4)).argmin(0)
    assert by_field.tolist() != chosen.tolist()
    for i, step in enumerate(by_field.tolist()):
        assert torch.equal(inside.codes[i], steps[step].codes[i])


def test_an_image_whose_steps_are_no_number_keeps_no_other_code() -> None:
    generator, encoder = Generator(32, 3, 8, 16), Encoder(32, 3, 8, 16)
    x = torch.rand(2, 3, 32, 32)
    x[1, 0, 3, 3] = torch.nan
    with torch.no_grad():
        found = encoder.invert(x, generator, 3, keep_best=True)
    assert torch.isfinite(found.codes[0]).all() and not torch.isfinite(found.codes[1]).any()


def test_an_image_is_inverted_alike_alone_and_in_a_batch() -> None:
    generator, encoder = Generator(32, 3, 8, 16), Encoder(32, 3, 8, 16)
    x = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        together = encoder.invert(x, generator, 2).codes
        for i in range(3):
            assert torch.allclose(
                encoder.invert(x[i : i + 1], generator, 2).codes[0], together[i], atol=1e-5
            )
    assert list(encoder.buffers()) == []


def test_an_encoder_of_another_size_is_refused() -> None:
    weights = numpy_weights(Encoder(32, 3, 8, 16), "encoder.")
    assert np.array_equal(
        numpy_weights(load_encoder(weights, 8, 16, 32, 3), "encoder.")["encoder.start"],
        weights["encoder.start"],
    )
    with pytest.raises(RefusedError, match="expected"):
        load_encoder(weights, 8, 32, 32, 3)


def shipped() -> tuple[Generator, Encoder]:
    """The shipped networks in the sizes that the card states."""
    generator, encoder = Generator(64, 3, 24, 128), Encoder(64, 3, 24, 128)
    load_weights(generator, read(SHIPPED / "gan.safetensors", max_bytes=1 << 24), "generator.")
    load_weights(encoder, read(SHIPPED / "encoder.safetensors", max_bytes=1 << 24), "encoder.")
    return generator, encoder


def test_the_shipped_encoder_inverts_photographs_that_it_has_never_seen() -> None:
    """By relative error inside their fields, on the demo's photographs, in the generator's look."""
    from PIL import Image

    from common.models.look import Look, field_of, in_look, look_of

    generator, encoder = shipped()
    files = sorted(DEMO.glob("*.jpg"))[:24]
    x = to_unit(
        np.stack(
            [np.asarray(Image.open(f).resize((64, 64), Image.Resampling.LANCZOS)) for f in files]
        )
    )
    with torch.no_grad():
        samples = generator(torch.randn(64, 128, generator=torch.Generator().manual_seed(0)))
        own = look_of(samples, field_of(samples))
        look = Look(*(value.mean(0, keepdim=True) for value in own))
        fields = field_of(x)
        seen = in_look(x, fields, look_of(x, fields), look).clamp(-1, 1)
        wrong = (encoder.invert(seen, generator, 2).reconstructions - seen).square() * fields
        apart = (seen - look.mean[:, :, None, None]).square() * fields
    assert float(wrong.sum()) < 0.4**2 * float(apart.sum())


def test_the_shipped_generators_samples_vary_and_show_a_round_field_on_black() -> None:
    generator, _ = shipped()
    with torch.no_grad():
        samples = generator(torch.randn(16, 128, generator=torch.Generator().manual_seed(0)))
    assert float(samples[:, :, :2, :2].mean()) < -0.9
    assert float(samples[:, 0, 28:36, 28:36].mean()) > -0.3
    assert float(samples.std(0).mean()) > 0.1  # photographs: 0.15; these 0.13; a collapse: 0


def test_the_card_states_the_hashes_of_the_shipped_files() -> None:
    card = (SHIPPED / "MODEL_CARD.md").read_text(encoding="utf-8")
    for name in ("gan.safetensors", "encoder.safetensors"):
        assert hashlib.sha256((SHIPPED / name).read_bytes()).hexdigest() in card
