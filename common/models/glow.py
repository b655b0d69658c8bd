"""GLOW: an exactly invertible image model whose latent code the privatizer clips and noises.

In: float images [N, C, H, W] in [-1/2, 1/2] (`from_uint8` makes them from stored 8-bit images).
Out: `encode` gives the standardised latent parts, finest level first and top level last, and log p in nats; `decode` is its
exact inverse (1e-5 in float32, 1e-12 in float64); `prior` draws parts to decode.
Guaranteed: no buffers, no batch statistics, no state set by data: a construction and a first call leave every parameter as it
was, so nothing about a private image enters the weights except through the private step. Every coupling scales by at most
e^0.5 per step, so latents far from the data decode to finite numbers. The cached inverse is compared with the current values,
so it is never stale. Two machines build the same fixed rotations (`rotation_digest`).
Not: a bound on the Lipschitz constant of the whole map; conditioning on labels; privacy (that is private_step and privatize).

Kingma & Dhariwal 2018 (arXiv 1807.03039); deviations: ActNorm and 1x1 convolution are one map without signs or permutations,
the coupling's log-scale is bounded, and the split standardises the leaving half with a learned prior.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from common.errors import ConfigurationError, RefusedError
from common.models.reversible import reversible
from common.wire import tensors

PREFIX = "glow."  # of every weight's global name, in payloads and checkpoints
LOG_SCALE_BOUND = 0.5  # alpha: one coupling scales by e^-0.5 to e^0.5
SPLIT_BOUND = 2.0  # of the learned prior's log-scale
LOG_2PI = math.log(2 * math.pi)


def _counter_normals(rows: int, columns: int, index: int) -> np.ndarray:
    """Nearly normal numbers from SHA-256 of a counter: the same integers, hence the same floats, on every machine."""
    blocks = [
        hashlib.sha256(f"kohort glow rotation {index} {row}".encode()).digest()
        for row in range(rows * columns)
    ]
    words = (
        np.frombuffer(b"".join(blocks), dtype=">u4").reshape(rows, columns, 8).astype(np.float64)
    )
    return np.asarray((words / 2.0**32).sum(axis=2) - 4.0, dtype=np.float64)


def rotation(channels: int, index: int) -> Tensor:
    """The fixed orthogonal matrix of mixing layer `index`, float64 [channels, channels] on the CPU.

    Gram-Schmidt, each column orthogonalised twice, in plain arithmetic: no library's choice of signs enters.
    """
    source = _counter_normals(channels, channels, index)
    basis = np.zeros_like(source)
    for column in range(channels):
        v = source[:, column]
        for _ in range(2):
            v = v - basis[:, :column] @ (basis[:, :column].T @ v)
        basis[:, column] = v / np.sqrt(np.sum(v * v))
    return torch.from_numpy(basis)


class Mixing(nn.Module):
    """ActNorm and invertible 1x1 convolution in one: y = A (x + b), A = Q L U diag(e^s); log-determinant H W sum(s).

    Q is fixed; L and U are unit triangular and share one matrix (strict lower and strict upper, its diagonal is inert).
    `composed` makes the matrices of all steps of a level at once.
    """

    def __init__(self, channels: int, index: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.triangles = nn.Parameter(torch.zeros(channels, channels))
        self._rotation = rotation(channels, index)  # a plain attribute: rebuilt, never stored
        self._inverse: tuple[Tensor, Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(y, log-determinant of one sample) for x [N, c, H, W]."""
        matrices, biases, log_scales = composed([self])
        return F.conv2d(x, matrices[0], biases[0]), log_scales.sum() * (x.shape[-1] * x.shape[-2])

    @torch.no_grad()
    def inverse(self, y: Tensor) -> Tensor:
        """x for y, both [N, c, H, W]."""
        x = F.conv2d(y, self.inverse_matrix().to(y)[:, :, None, None])
        return x - self.bias[:, None, None]

    @torch.no_grad()
    def inverse_matrix(self) -> Tensor:
        """diag(e^-s) U^-1 L^-1 Q^T in float64, kept as long as s, L and U hold the very values it was computed from."""
        kept = self._inverse
        if kept is not None and _same(kept[0], self.log_scale) and _same(kept[1], self.triangles):
            return kept[2]
        log_scale, triangles = self.log_scale.detach().clone(), self.triangles.detach().clone()
        lower, upper = _factors(triangles.double())
        right = self._rotation.T.to(triangles.device)
        half = torch.linalg.solve_triangular(lower, right, upper=False, unitriangular=True)
        whole = torch.linalg.solve_triangular(upper, half, upper=True, unitriangular=True)
        inverse: Tensor = whole * (-log_scale.double()).exp()[:, None]
        self._inverse = (log_scale, triangles, inverse)
        return inverse


def composed(mixings: Sequence[Mixing]) -> tuple[Tensor, Tensor, Tensor]:
    """(A as kernels [K, c, c, 1, 1], A b [K, c], s [K, c]) of K mixings of one width."""
    log_scale = torch.stack([mixing.log_scale for mixing in mixings])
    triangles = torch.stack([mixing.triangles for mixing in mixings])
    rotations = torch.stack([mixing._rotation for mixing in mixings]).to(triangles)
    lower, upper = _factors(triangles)
    matrices = rotations @ lower @ (upper * log_scale.exp()[:, None])
    bias = torch.stack([mixing.bias for mixing in mixings])
    return matrices[..., None, None], (matrices @ bias[..., None])[..., 0], log_scale


def _factors(triangles: Tensor) -> tuple[Tensor, Tensor]:
    """Unit lower and unit upper triangles of [..., c, c]."""
    one = torch.eye(triangles.shape[-1], dtype=triangles.dtype, device=triangles.device)
    return triangles.tril(-1) + one, triangles.triu(1) + one


def _same(kept: Tensor, current: Tensor) -> bool:
    return (
        kept.device == current.device and kept.dtype == current.dtype and torch.equal(kept, current)
    )


class Coupling(nn.Module):
    """Half of the channels shifts and scales the other: v' = (v + t) e^g, g = a tanh(h / a) with a = LOG_SCALE_BOUND."""

    def __init__(self, channels: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.spread = nn.Conv2d(channels // 2, width, 3, padding=1)
        self.blend = nn.Conv2d(width, width, 1)
        self.gather = nn.Conv2d(width, channels, 3, padding=1)
        for layer in (self.spread, self.blend):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(cast(Tensor, layer.bias))
        _zero(self.gather)

    def moments(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """(t, g) of the half that is moved, for the half a that stays."""
        h, t = self.gather(F.relu(self.blend(F.relu(self.spread(a))))).chunk(2, dim=1)
        return t, LOG_SCALE_BOUND * torch.tanh(h / LOG_SCALE_BOUND)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(y, log-determinant [N]) for x [N, c, H, W]."""
        a, v = x.chunk(2, dim=1)
        t, g = self.moments(a)
        return torch.cat([a, (v + t) * g.exp()], dim=1), g.sum(dim=(1, 2, 3))

    def inverse(self, y: Tensor) -> Tensor:
        """x for y, both [N, c, H, W]."""
        a, v = y.chunk(2, dim=1)
        t, g = self.moments(a)
        return torch.cat([a, v * (-g).exp() - t], dim=1)


class Split(nn.Module):
    """Standardises the leaving half by the staying half: z = (y - mu(x)) e^-l(x), l = 2 tanh(l' / 2), first an identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.prior = nn.Conv2d(channels // 2, channels, 3, padding=1)
        _zero(self.prior)

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(mu, l) of the leaving half for the staying half x."""
        mean, raw = self.prior(x).chunk(2, dim=1)
        return mean, SPLIT_BOUND * torch.tanh(raw / SPLIT_BOUND)


class Top(nn.Module):
    """The last level's learned prior: one mean and one bounded log-scale per coordinate, first an identity."""

    def __init__(self, channels: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(channels, *grid))
        self.raw_log_scale = nn.Parameter(torch.zeros(channels, *grid))

    def log_scale(self) -> Tensor:
        """l = 2 tanh(l' / 2), [c, H, W]."""
        return SPLIT_BOUND * torch.tanh(self.raw_log_scale / SPLIT_BOUND)


def _zero(layer: nn.Conv2d) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(cast(Tensor, layer.bias))


class Level(nn.Module):
    """Squeeze, then `steps` times mixing and coupling, then the split (or, on the last level, the top's prior)."""

    def __init__(
        self, channels: int, steps: int, width: int, index: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.mixings = nn.ModuleList(Mixing(channels, index + step) for step in range(steps))
        self.couplings = nn.ModuleList(Coupling(channels, width, generator) for _ in range(steps))

    def forward(self, x: Tensor, reverse: bool = False) -> tuple[Tensor, Tensor]:
        """(y, log-determinant [N]) for x [N, c/4, 2H, 2W]; `reverse`: activations are rebuilt, not stored."""
        x = F.pixel_unshuffle(x, 2)
        matrices, biases, log_scale = composed(cast(Sequence[Mixing], self.mixings))
        total = log_scale.sum() * (x.shape[-1] * x.shape[-2])
        if reverse:
            inverses = torch.stack(
                [cast(Mixing, mixing).inverse_matrix() for mixing in self.mixings]
            ).to(x)
            x, each = reversible(x, matrices, biases, inverses, list(self.couplings))
            return x, total + each
        for matrix, bias, coupling in zip(
            matrices.unbind(), biases.unbind(), self.couplings, strict=True
        ):
            x, each = coupling(F.conv2d(x, matrix, bias))
            total = total + each
        return x, total

    def inverse(self, y: Tensor) -> Tensor:
        """x for y, the exact inverse of `forward`."""
        for mixing, coupling in zip(reversed(self.mixings), reversed(self.couplings), strict=True):
            y = cast(Mixing, mixing).inverse(cast(Coupling, coupling).inverse(y))
        return F.pixel_shuffle(y, 2)


class Glow(nn.Module):
    """The flow for square images of `size_px` with 1 or 3 channels.

    `levels` (L) squeezes, `steps_per_level` (K) mixing-coupling steps each, coupling networks of `width` channels. A side that
    2^L does not divide is padded with black inside `encode` and cropped by `decode`. Raises ValueError for an impossible layout.
    `reversible` = True trades a third more time for a backward pass that stores one tensor a level: public pretraining only.
    """

    reversible: bool = False

    def __init__(
        self, size_px: int, channels: int, levels: int, steps_per_level: int, width: int
    ) -> None:
        super().__init__()
        if channels not in (1, 3) or min(levels, steps_per_level, width) < 1 or size_px < 2**levels:
            raise ValueError(f"no flow of {levels} levels for {channels} channels of {size_px} px")
        self.size_px: int = size_px
        self.channels: int = channels
        self.padded_px: int = -(-size_px // 2**levels) * 2**levels
        generator = torch.Generator().manual_seed(0)  # public: every machine builds the same start
        blocks, splits, shapes, c, px = [], [], [], channels, self.padded_px
        for level in range(levels):
            c, px = 4 * c, px // 2
            blocks.append(Level(c, steps_per_level, width, level * steps_per_level, generator))
            if level < levels - 1:
                splits.append(Split(c))
                c = c // 2
            shapes.append((c, px, px))
        self.levels, self.splits, self.top = (
            nn.ModuleList(blocks),
            nn.ModuleList(splits),
            Top(c, (px, px)),
        )
        self.part_shapes: tuple[tuple[int, int, int], ...] = tuple(shapes)

    @property
    def dimension(self) -> int:
        """D, the coordinates of one image's latent code (and of the padded image)."""
        return self.channels * self.padded_px**2

    @property
    def top_dimension(self) -> int:
        """The coordinates of the top level, the last part."""
        channels, height, width = self.part_shapes[-1]
        return channels * height * width

    def forward(self, x: Tensor) -> Tensor:
        """log p(x) in nats, [N]."""
        return self.encode(x)[1]

    def encode(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """(latent parts, finest first and top last, each [N, c, h, w]; log p(x) in nats [N]) for x [N, C, H, W].

        Raises ConfigurationError for another size or number of channels.
        """
        if tuple(x.shape[1:]) != (self.channels, self.size_px, self.size_px):
            raise ConfigurationError(
                f"flow: images {list(x.shape)}, expected [N, {self.channels}, {self.size_px}, {self.size_px}]",
                hint="resize them as the study's intake does; another size or number of channels is another flow",
            )
        x = self._pad(x)
        parts: list[Tensor] = []
        log_p = x.new_zeros(x.shape[0])
        for level, split in zip(self.levels, [*self.splits, None], strict=True):
            x, log_determinant = level(x, self.reversible and torch.is_grad_enabled())
            if split is None:
                log_scale = self.top.log_scale()
                part = (x - self.top.mean) * (-log_scale).exp()
                log_p = log_p + log_determinant - log_scale.sum()
            else:
                x, y = x.chunk(2, dim=1)
                mean, log_scale = cast(Split, split).moments(x)
                part = (y - mean) * (-log_scale).exp()
                log_p = log_p + log_determinant - log_scale.sum(dim=(1, 2, 3))
            log_p = (
                log_p
                - 0.5 * part.square().sum(dim=(1, 2, 3))
                - 0.5 * LOG_2PI * math.prod(part.shape[1:])
            )
            parts.append(part)
        return parts, log_p

    @torch.no_grad()
    def decode(self, parts: Sequence[Tensor]) -> Tensor:
        """x [N, C, H, W] for latent parts: `decode(encode(x)[0])` is x. Raises ValueError when the parts have other shapes."""
        if [tuple(part.shape[1:]) for part in parts] != list(self.part_shapes):
            raise ValueError(
                f"latent parts {[tuple(part.shape) for part in parts]}, expected {list(self.part_shapes)}"
            )
        x = parts[-1] * self.top.log_scale().exp() + self.top.mean
        x = cast(Level, self.levels[-1]).inverse(x)
        for level, split, part in zip(
            reversed(self.levels[:-1]), reversed(self.splits), reversed(parts[:-1]), strict=True
        ):
            mean, log_scale = cast(Split, split).moments(x)
            x = cast(Level, level).inverse(torch.cat([x, part * log_scale.exp() + mean], dim=1))
        return x[..., : self.size_px, : self.size_px]

    def prior(self, n: int, temperature: float, generator: torch.Generator) -> list[Tensor]:
        """Latent parts of `n` images, temperature * N(0, 1), float32 on the generator's device."""
        return [
            temperature * torch.randn(n, *shape, generator=generator, device=generator.device)
            for shape in self.part_shapes
        ]

    def bits_per_dimension(self, log_p: Tensor, depth: int = 8) -> Tensor:
        """Bits per dimension of images of `depth` bits from log p in nats: -log_p / (D ln 2) + depth."""
        return -log_p / (self.dimension * math.log(2)) + depth

    def _pad(self, x: Tensor) -> Tensor:
        missing = self.padded_px - self.size_px
        return F.pad(x, (0, missing, 0, missing), value=-0.5) if missing else x


def from_uint8(images: np.ndarray, dither: Tensor | None = None, depth: int = 8) -> Tensor:
    """float32 [N, C, H, W] in [-1/2, 1/2] from uint8 [N, H, W, C]: (image + U) / 256 - 1/2.

    U is `dither`, [N, C, H, W] in [0, 1), drawn by the caller for training; 1/2 when none is given (release). `depth` < 8 keeps
    the upper bits alone and dithers over what is cut off. Raises ConfigurationError for another type, rank or depth.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or not 1 <= depth <= 8:
        raise ConfigurationError(
            f"flow: images {images.dtype} {list(images.shape)} at {depth} bits, expected uint8 [N, H, W, C] at 1 to 8"
        )
    pixels = (
        torch.from_numpy(np.ascontiguousarray(images >> (8 - depth)))
        .permute(0, 3, 1, 2)
        .to(torch.float32)
    )
    x: Tensor = (pixels + (0.5 if dither is None else dither)) / 2**depth - 0.5
    return x


def unfamiliar(parts: Sequence[Tensor], limit: float = 1e4) -> Tensor:
    """bool [N]: images with a latent that is not finite or beyond `limit` in absolute value.

    The flow knows nothing about such an image (another modality or contrast): a clip of its latent would release the clip set's
    border, not the image.
    """
    inside = [(part.abs() <= limit).flatten(1).all(1) for part in parts]  # NaN compares false
    return ~torch.stack(inside).all(0)


def to_uint8(x: Tensor) -> np.ndarray:
    """uint8 [N, H, W, C] from [N, C, H, W]: clamped to [-1/2, 1/2]; what is not finite becomes mid-gray."""
    levels = torch.floor(
        (torch.nan_to_num(x.double(), nan=0.0, posinf=0.5, neginf=-0.5) + 0.5) * 256
    ).clamp(0, 255)
    return levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def procedural_images(n: int, size_px: int, channels: int) -> Tensor:
    """[n, C, H, W] pictures of 1/f noise (amplitude f^-1.5, std 0.2, clamped to +-1/2), the same on every call: no data."""
    generator = torch.Generator().manual_seed(1)
    frequency = (
        torch.fft.fftfreq(size_px)[:, None].square() + torch.fft.rfftfreq(size_px)[None].square()
    )
    amplitude = frequency.clamp_min(1.0 / size_px**2).pow(-0.75)
    spectrum = (
        torch.fft.rfft2(torch.randn(n, channels, size_px, size_px, generator=generator)) * amplitude
    )
    pictures = torch.fft.irfft2(spectrum, s=(size_px, size_px))
    pictures = pictures / pictures.std(dim=(1, 2, 3), keepdim=True) * 0.2
    dither = torch.rand(pictures.shape, generator=generator)
    return (torch.floor((pictures.clamp(-0.5, 0.5) + 0.5) * 255) + dither) / 256 - 0.5


@torch.no_grad()
def initialise_from_noise(model: Glow, pictures: int = 256) -> None:
    """Sets every mixing's bias and scale in one pass over procedural images: ActNorm's start without any data."""
    x = model._pad(procedural_images(pictures, model.size_px, model.channels))
    for level, split in zip(model.levels, [*model.splits, None], strict=True):
        x = F.pixel_unshuffle(x, 2)
        for mixing, coupling in zip(
            cast(Level, level).mixings, cast(Level, level).couplings, strict=True
        ):
            layer = cast(Mixing, mixing)
            layer.bias.copy_(-x.mean(dim=(0, 2, 3)))
            layer.log_scale.copy_(-x.std(dim=(0, 2, 3)).clamp_min(1e-3).log())
            x = coupling(mixing(x)[0])[0]
        x = x if split is None else x.chunk(2, dim=1)[0]


def rotation_digest(model: Glow) -> str:
    """SHA-256 over all fixed rotations, rounded to 2^-20: a checkpoint carries it, another value means another flow."""
    digest = hashlib.sha256()
    for module in model.modules():
        if isinstance(module, Mixing):
            digest.update(np.rint(module._rotation.numpy() * 2.0**20).astype("<i4").tobytes())
    return digest.hexdigest()


def weights_of(model: Glow) -> dict[str, np.ndarray]:
    """All weights as float32 arrays under their global names `glow.*`."""
    return {
        PREFIX + name: value.detach().cpu().float().numpy().copy()
        for name, value in model.named_parameters()
    }


def load_weights(
    model: Glow, weights: Mapping[str, np.ndarray], *, digest: str | None = None
) -> None:
    """Copies the arrays `glow.*` into the model, checking everything first.

    Raises RefusedError for a missing or unknown name, another shape or type, a value that is not finite, or, when the
    checkpoint's `digest` is given, rotations that differ from this model's.
    """
    if digest is not None and digest != rotation_digest(model):
        raise RefusedError(
            "flow weights were trained with other rotations",
            hint="they fit another layout or version",
        )
    expected = {PREFIX + name: parameter for name, parameter in model.named_parameters()}
    given = {name: array for name, array in weights.items() if name.startswith(PREFIX)}
    if expected.keys() != given.keys():
        odd = sorted(expected.keys() ^ given.keys())
        raise RefusedError(f"flow weights: {len(odd)} names missing or unknown, first {odd[0]}")
    for name, parameter in expected.items():
        array = given[name]
        if (
            array.dtype != np.float32
            or array.shape != tuple(parameter.shape)
            or not np.isfinite(array).all()
        ):
            raise RefusedError(
                f"flow weights: {name} is {array.dtype} {array.shape}, expected finite float32 {tuple(parameter.shape)}"
            )
    with torch.no_grad():
        for name, parameter in expected.items():
            parameter.copy_(torch.from_numpy(np.array(given[name])))


def save(model: Glow, path: Path) -> None:
    """Writes a starting checkpoint: the weights under their global names, and the rotations' digest beside them."""
    tensors.write(path, weights_of(model), {"rotations": rotation_digest(model)})


def load(model: Glow, path: Path, *, max_bytes: int = 1 << 28) -> None:
    """Reads a checkpoint that `save` wrote. Raises RefusedError as `load_weights` does, and for a missing digest."""
    arrays = tensors.read(path, max_bytes=max_bytes)
    with safe_open(path, framework="numpy") as file:
        digest = (file.metadata() or {}).get("rotations", "none")
    load_weights(model, arrays, digest=digest)
