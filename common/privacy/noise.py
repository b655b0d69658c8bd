"""Noise for the privacy mechanisms, drawn from an AES-256-CTR key stream.

In: how many values, and the distribution's public parameters. Out: integers on the lattice.
Guarantees:
1. A `NoiseSource` has its key from the operating system and takes a new one in every forked child.
   It is never seeded: no torch, numpy or python seed changes it.
2. Its Gaussian reaches beyond 9 sigma (64-bit radius).
   Values beyond the first 65,536 come in blocks, each from a key stream of its own, whose key the
   source draws: the values do not depend on how many threads draw them.
3. Its discrete Laplace is exact to 192 bits, in an amount of work that no draw changes.
Not covered: a cloned virtual machine (the clone has the same key), or use by two threads at once.

Sources: Box and Muller 1958; Mironov 2012 (why a lattice); docs/methods/dp-glow.md (Laplace).
"""

import hashlib
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import lru_cache
from typing import ClassVar, final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

from common.errors import ConfigurationError

LATTICE = 2**24  # Gaussian noise comes in multiples of clip / LATTICE
LARGEST_SIGMA = 2.0**24  # keeps sigma * LATTICE * 9.5 below 2^53, exact in float64
LARGEST_SCALE = 2.0**50  # in lattice steps; keeps the geometric variables inside int64
WORDS_PER_KEY = 6  # 32 bytes of key, 16 of counter
WORDS_PER_THRESHOLD = 3  # 3 * 64 = 192 bits
GAUSSIAN_BLOCK = 2**15  # values at a time, so that a block stays in cache
KEYED_BLOCK = 2**16  # values of one key stream; an even number of Gaussian blocks
ZEROS = bytes(2**18)  # what the cipher encrypts

_forks = 0


def _count_fork() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_count_fork)


class Noise(ABC):
    """A stream of random words and the distributions drawn from it.

    Two kinds exist: `NoiseSource` and `SeededNoiseSource`.
    """

    private: ClassVar[bool]
    stamp: ClassVar[str]  # on whatever is made with it
    threads = 1  # that draw a long Gaussian vector

    @abstractmethod
    def uniform_u64(self, n: int) -> NDArray[np.uint64]:
        """`n` independent uniform 64-bit words, uint64 [n]."""

    def bernoulli(self, q: float, n: int) -> NDArray[np.bool_]:
        """Return `n` coins of bias `q` in (0, 1], bool [n].

        The bias is floor(q * 2^64) / 2^64, so q = 1 means always.
        """
        if not 0.0 < q <= 1.0:
            raise ConfigurationError(f"noise: coin bias: expected 0 < q <= 1, got {q!r}")
        words = self.uniform_u64(n)
        threshold = int(Fraction(q) * 2**64)
        if threshold == 2**64:  # q = 1: no 64-bit word holds this threshold
            return np.ones(n, dtype=np.bool_)
        return words < np.uint64(threshold)

    def gaussian_lattice(self, n: int, sigma: float) -> NDArray[np.int64]:
        """Return round(sigma * 2^24 * N(0, 1)), int64 [n], in units of clip / 2^24.

        Raises `ConfigurationError` for a sigma outside (0, 2^24].
        """
        if not 0.0 < sigma <= LARGEST_SIGMA:
            raise ConfigurationError(f"noise: sigma: expected 0 < sigma <= 2^24, got {sigma!r}")
        lattice = np.empty(n, dtype=np.int64)
        scale = sigma * LATTICE
        # a short vector comes from this source's own words
        if n <= KEYED_BLOCK:
            _fill(lattice, scale, self.uniform_u64)
            return lattice

        # each block of a long one from a key stream of its own, in as many threads as allowed
        blocks = [lattice[at : at + KEYED_BLOCK] for at in range(0, n, KEYED_BLOCK)]
        keys = self.uniform_u64(WORDS_PER_KEY * len(blocks)).tobytes()
        streams = []
        for at in range(0, len(keys), 8 * WORDS_PER_KEY):
            streams.append(_key_stream(keys[at : at + 32], keys[at + 32 : at + 48]))

        def fill(block: NDArray[np.int64], stream: CipherContext) -> None:
            _fill(block, scale, lambda count: _words(stream, count))

        if self.threads == 1:
            for block, stream in zip(blocks, streams, strict=True):
                fill(block, stream)
            return lattice
        with ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(fill, blocks, streams))  # raises what a thread raised
        return lattice

    def discrete_laplace(self, n: int, scale_in_steps: float) -> NDArray[np.int64]:
        """Return `n` values with P(z) proportional to exp(-|z| / scale_in_steps), int64 [n].

        The difference of two geometric variables, whose bits are independent coins of bias
        1 / (1 + exp(2^j / scale)), each exact to 2^-192. The work is fixed, and no floating-point
        number touches a draw. Raises `ConfigurationError` for a scale outside (0, 2^50].
        """
        total = np.zeros(2 * n, dtype=np.int64)
        for bit, threshold in enumerate(laplace_thresholds(float(scale_in_steps))):
            total += self._below(threshold, 2 * n).astype(np.int64) << bit
        return total[:n] - total[n:]

    def _below(self, threshold: tuple[int, ...], n: int) -> NDArray[np.bool_]:
        """Return whether a fresh 192-bit number lies below the threshold, bool [n].

        A tie in one word (probability 2^-64) draws the next word.
        """
        words = self.uniform_u64(n)
        below = words < np.uint64(threshold[0])
        tied = np.flatnonzero(words == np.uint64(threshold[0]))
        if tied.size and len(threshold) > 1:
            below[tied] = self._below(threshold[1:], tied.size)
        return below


@final
class NoiseSource(Noise):
    """The production source: AES-256-CTR keyed by `os.urandom`, re-keyed after a fork.

    There is no way to seed it. `threads` may draw a long vector; they change no guarantee.
    """

    private = True
    stamp = "private"

    def __init__(self, *, threads: int = 1) -> None:
        self.threads = threads
        self._rekey()

    def _rekey(self) -> None:
        self._fork = _forks
        self._stream = _key_stream(os.urandom(32), os.urandom(16))

    def uniform_u64(self, n: int) -> NDArray[np.uint64]:
        if self._fork != _forks:
            self._rekey()
        return _words(self._stream, n)


@final
class SeededNoiseSource(Noise):
    """NOT PRIVATE: the same seed gives the same noise.

    For tests and rehearsals; the private step refuses it with a ledger's reservation.
    """

    private = False
    stamp = "NOT PRIVATE"

    def __init__(self, seed: int, *, threads: int = 1) -> None:
        self.threads = threads
        digest = hashlib.sha512(f"kohort test noise {seed}".encode()).digest()
        self._stream = _key_stream(digest[:32], digest[32:48])

    def uniform_u64(self, n: int) -> NDArray[np.uint64]:
        return _words(self._stream, n)


def radius_of(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return Box–Muller's radius sqrt(-2 ln u) with u = (w + 1/2) 2^-64.

    It reaches 9.49 sigma, where 53 bits would stop at 8.6.
    """
    u = words.astype(np.float64)
    u += 0.5
    u *= 2.0**-64
    np.log(u, out=u)
    u *= -2.0
    return np.sqrt(u, out=u)


def _fill(
    lattice: NDArray[np.int64], scale: float, draw: Callable[[int], NDArray[np.uint64]]
) -> None:
    """Fill the vector with round(scale * N(0, 1)), from the words that `draw(count)` returns.

    Box-Muller: half of the words of a block give radii, half give angles a. With
    t = tan(a/2 - pi/2) and d = -2/(1 + t^2), cos(a) = 1 + d and sin(a) = t·d: one tangent in place
    of two functions. numpy's own loops alone, no BLAS and no torch: no team of threads starts here.
    """
    for at in range(0, len(lattice), GAUSSIAN_BLOCK):
        block = lattice[at : at + GAUSSIAN_BLOCK]
        pairs = (len(block) + 1) // 2
        words = draw(2 * pairs)
        radius = radius_of(words[:pairs])
        radius *= scale

        # t and d of the angles
        tangent = (words[pairs:] >> np.uint64(11)).view(np.int64).astype(np.float64)
        tangent *= 2.0**-53
        tangent -= 0.5
        tangent *= math.pi
        np.tan(tangent, out=tangent)
        direction = np.square(tangent)
        direction += 1.0
        np.divide(-2.0, direction, out=direction)

        # both values of each pair
        tangent *= direction
        tangent *= radius
        direction += 1.0
        direction *= radius
        block[:pairs] = np.rint(direction, out=direction)
        block[pairs:] = np.rint(tangent, out=tangent)[: len(block) - pairs]


@lru_cache(maxsize=32)
def laplace_thresholds(scale_in_steps: float) -> tuple[tuple[int, ...], ...]:
    """Return floor(2^192 / (1 + exp(2^j / scale))) for j = 0, 1, … as three 64-bit words each.

    Until the bias falls below 2^-192.
    """
    if not 0.0 < scale_in_steps <= LARGEST_SCALE:
        raise ConfigurationError(
            f"noise: Laplace scale: expected 0 < scale <= 2^50 lattice steps, "
            f"got {scale_in_steps!r}"
        )
    thresholds: list[tuple[int, ...]] = []
    with localcontext() as context:
        context.prec = 120
        rate = 1 / Decimal(scale_in_steps)
        while rate * 2 ** len(thresholds) < 134:  # 192 ln 2 = 133.1
            bias = 1 / (1 + (rate * 2 ** len(thresholds)).exp())
            scaled = int(bias * 2 ** (64 * WORDS_PER_THRESHOLD))
            thresholds.append(tuple((scaled >> shift) & (2**64 - 1) for shift in (128, 64, 0)))
    return tuple(thresholds)


def _key_stream(key: bytes, nonce: bytes) -> CipherContext:
    return Cipher(algorithms.AES256(key), modes.CTR(nonce)).encryptor()


def _words(stream: CipherContext, n: int) -> NDArray[np.uint64]:
    """The next n words of the key stream (the encryption of zeros)."""
    words = np.empty(n + 2, dtype=np.uint64)  # the cipher asks for a block of 16 bytes to spare
    room = memoryview(words.data).cast("B")
    size = 8 * n
    for at in range(0, size, len(ZEROS)):
        stream.update_into(ZEROS[: size - at], room[at:])
    return words[:n]
