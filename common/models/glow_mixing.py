"""The mixing layer of the flow: ActNorm and invertible 1x1 convolution in one map.

Guarantees: two machines build the same fixed rotations; the cached inverse is never stale.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.arrays import Floats


class Mixing(nn.Module):
    """y = A (x + b) with A = Q L U diag(e^s); its log-determinant is H W sum(s).

    Q is fixed. L and U are unit triangular and share one matrix, whose diagonal is unused.
    `compose_mixings` makes the matrices of all steps of a level at once.
    """

    def __init__(self, channels: int, index: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.triangles = nn.Parameter(torch.zeros(channels, channels))
        self.rotation = make_rotation(channels, index)  # a plain attribute: rebuilt, never stored
        self._inverse: tuple[Tensor, Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return (y, log-determinant of one sample) for x [N, c, H, W]."""
        matrices, biases, log_scales = compose_mixings([self])
        return F.conv2d(x, matrices[0], biases[0]), log_scales.sum() * (x.shape[-1] * x.shape[-2])

    @torch.no_grad()
    def inverse(self, y: Tensor) -> Tensor:
        """Return x for y, both [N, c, H, W]."""
        x = F.conv2d(y, self.inverse_matrix().to(y)[:, :, None, None])
        return x - self.bias[:, None, None]

    @torch.no_grad()
    def inverse_matrix(self) -> Tensor:
        """Return diag(e^-s) U^-1 L^-1 Q^T in float64.

        It is kept as long as s, L and U hold the very values that it was computed from.
        """
        # the kept inverse, if it is still right
        kept = self._inverse
        if kept is not None and _same(kept[0], self.log_scale) and _same(kept[1], self.triangles):
            return kept[2]

        # a new one
        log_scale = self.log_scale.detach().clone()
        triangles = self.triangles.detach().clone()
        lower, upper = _factors(triangles.double())
        right = self.rotation.T.to(triangles.device)
        half = torch.linalg.solve_triangular(lower, right, upper=False, unitriangular=True)
        whole = torch.linalg.solve_triangular(upper, half, upper=True, unitriangular=True)
        inverse: Tensor = whole * (-log_scale.double()).exp()[:, None]
        self._inverse = (log_scale, triangles, inverse)
        return inverse


def compose_mixings(mixings: Sequence[Mixing]) -> tuple[Tensor, Tensor, Tensor]:
    """Return (A as kernels [K, c, c, 1, 1], A b [K, c], s [K, c]) of K mixings of one width."""
    log_scale = torch.stack([mixing.log_scale for mixing in mixings])
    triangles = torch.stack([mixing.triangles for mixing in mixings])
    rotations = torch.stack([mixing.rotation.to(triangles) for mixing in mixings])
    lower, upper = _factors(triangles)
    matrices = rotations @ lower @ (upper * log_scale.exp()[:, None])
    bias = torch.stack([mixing.bias for mixing in mixings])
    return matrices[..., None, None], (matrices @ bias[..., None])[..., 0], log_scale


def make_rotation(channels: int, index: int) -> Tensor:
    """Return the fixed orthogonal matrix of mixing layer `index`, float64 [channels, channels].

    It is made by Gram-Schmidt in plain arithmetic, each column orthogonalised twice, so that no
    library chooses signs. It stays on the CPU.
    """
    source = _counter_normals(channels, channels, index)
    basis = np.zeros_like(source)
    for column in range(channels):
        v = source[:, column]
        for _ in range(2):
            v = v - basis[:, :column] @ (basis[:, :column].T @ v)
        basis[:, column] = v / np.sqrt(np.sum(v * v))
    return torch.from_numpy(basis)


def _counter_normals(rows: int, columns: int, index: int) -> Floats:
    """Nearly normal numbers from SHA-256 of a counter, the same floats on every machine."""
    blocks = []
    for row in range(rows * columns):
        text = f"kohort glow rotation {index} {row}"
        blocks.append(hashlib.sha256(text.encode()).digest())
    words = np.frombuffer(b"".join(blocks), dtype=">u4").reshape(rows, columns, 8)
    # The sum of eight uniform numbers is nearly normal; its mean is 4.
    return np.asarray((words.astype(np.float64) / 2.0**32).sum(axis=2) - 4.0, dtype=np.float64)


def _factors(triangles: Tensor) -> tuple[Tensor, Tensor]:
    """Unit lower and unit upper triangles of [..., c, c]."""
    one = torch.eye(triangles.shape[-1], dtype=triangles.dtype, device=triangles.device)
    return triangles.tril(-1) + one, triangles.triu(1) + one


def _same(kept: Tensor, current: Tensor) -> bool:
    """Whether two tensors hold the same values in the same type on the same device."""
    alike = kept.device == current.device and kept.dtype == current.dtype
    return alike and torch.equal(kept, current)
